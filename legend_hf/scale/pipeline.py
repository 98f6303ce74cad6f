"""A step of a datatrove pipeline, which its executors run: locally, on Slurm, on Ray, as jobs.

In: datatrove's documents, whose metadata is a row. Out: the same documents, with the transform's columns in it. Tasks,
ranks, files and what is complete are datatrove's. This file does not know what a margin is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from legend_hf.margins.annotate import transform_of
from legend_hf.margins.scoring import GivenDirection
from legend_hf.margins.store import sending_on
from legend_hf.margins.transform import Transform

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError('`AnnotateStep` needs datatrove: `pip install "legend-hf[datatrove]"`') from error


class AnnotateStep(PipelineStep):
    """Annotates documents: `[ParquetReader(rows, text_key="chosen"), AnnotateStep(direction), ParquetWriter(out)]`.

    Args:
        fn: A transform, such as `LegendMarginFn(direction, on_error="skip")`, or what that one takes as direction.
        text_column: The column that the reader made the document's text, by its `text_key`; None: none of them.
        batch_size: Documents in one call of the transform.

    Raises:
        ValueError: `fn` is neither.
    """

    name = "Margins"
    type = "ANNOTATOR"

    def __init__(
        self,
        fn: Transform | GivenDirection | Mapping[str, GivenDirection],
        *,
        text_column: str | None = "chosen",
        batch_size: int = 200,
    ) -> None:
        super().__init__()
        self.fn, self.text_column, self.batch_size = transform_of(fn), text_column, batch_size

    def run(self, data: Iterable[Any] | None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Annotates what comes, in its order; the rank of a task chooses its GPU."""
        documents = iter(data or ())
        with sending_on():
            yield from self._annotated(documents, rank)

    def _annotated(self, documents: Iterator[Any], rank: int) -> Iterator[Any]:
        while some := list(islice(documents, self.batch_size)):
            rows = [self._row(document) for document in some]
            names = list(dict.fromkeys(name for row in rows for name in row))
            with self.track_time(unit="batch"):
                made = self.fn({name: [row.get(name) for row in rows] for name in names}, rank)
            plain = {name: getattr(values, "tolist", lambda same=values: same)() for name, values in made.items()}
            for i, document in enumerate(some):
                document.metadata |= {name: values[i] for name, values in plain.items()}
                self.stat_update("annotated")
                yield document

    def _row(self, document: Any) -> dict[str, Any]:
        text = {} if self.text_column is None else {self.text_column: document.text}
        return {**document.metadata, **text}
