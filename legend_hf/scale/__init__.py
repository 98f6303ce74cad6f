"""Beyond one run on one machine: parts of a dataset for job arrays, streams into pieces, clusters, pipelines.

Each way gives the same numbers; which to take depends on the number of rows and on what there is to run them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.scale.cluster import annotate_ray as annotate_ray
    from legend_hf.scale.pipeline import AnnotateStep as AnnotateStep
    from legend_hf.scale.shards import shard_of as shard_of
    from legend_hf.scale.stream import annotate_stream as annotate_stream

__all__ = hand_on(
    __name__, {"AnnotateStep": "pipeline", "annotate_ray": "cluster", "annotate_stream": "stream", "shard_of": "shards"}
)
