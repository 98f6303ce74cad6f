"""`annotate` beyond one run on one machine: as a stream, as one job of many, on a Ray cluster.

In: what was typed for `annotate`. Out: what the library did with it, in words. This file knows no transform.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from legend_hf.cli.options import Place, Rows
from legend_hf.cli.screen import say

ENGINES = ("stream", "ray")


@dataclass(frozen=True)
class Scale:
    """How to annotate what is too much for one run.

    Attributes:
        engine: stream (in pieces, in constant memory, to any folder or URL) or ray (on a Ray cluster).
        shard: Which part of the rows this job annotates, such as 2/8; all jobs write one output.
        checkpoint: Folder or URL where Ray keeps which rows are written.
    """

    engine: str | None = None
    shard: str | None = None
    checkpoint: str | None = None

    @property
    def asked(self) -> bool:
        """Whether any of it was asked for."""
        return any(option is not None for option in (self.engine, self.shard, self.checkpoint))

    def check(self, *, dry_run: bool, num_proc: int | None, devices: Any) -> None:
        """Refuses options of a run that has all rows at once, rather than to pass over them.

        Raises:
            ValueError: One was given.
        """
        for name, given in (("dry_run", dry_run), ("num_proc", num_proc), ("devices", devices)):
            if given:
                raise ValueError(
                    f"`{name}` needs all rows at once; leave it out, or `engine`, `shard` and `checkpoint`"
                )


def annotate_at_scale(dataset: Rows, fn: Any, place: Place, scale: Scale, *, batch_size: int = 200) -> None:
    """Annotates rows by an engine, and says what stands where.

    Raises:
        ValueError: The options do not go together.
    """
    from legend_hf.hub.transfer import without_secrets
    from legend_hf.reading.plain import check_choice
    from legend_hf.scale import annotate_ray, annotate_stream

    check_choice("engine", scale.engine, (*ENGINES, None))
    output = _url(place)
    shown = without_secrets(output)
    if scale.engine == "ray":
        if scale.shard is not None:
            raise ValueError("`--shard` is for jobs without Ray, which parts rows itself; leave it out")
        for name in ("config", "data_dir", "split", "revision", "max_samples", "shuffle"):
            if getattr(dataset, name):
                raise ValueError(f"`{name}` is not for Ray, which reads whole files; leave it out, or name the files")
        source = [*dataset.data_files] or dataset.source
        rows = annotate_ray(source, fn, output, batch_size=batch_size, checkpoint=scale.checkpoint)
        say(f"{rows} rows annotated in {shown}")
        return
    if scale.checkpoint is not None:
        raise ValueError(
            "`--checkpoint` is of `--engine ray`; a stream keeps in its output how far it is: leave it out"
        )
    done = annotate_stream(_source(dataset), fn, output, shard=scale.shard, split=dataset.split, batch_size=batch_size)
    part = f" of part {scale.shard}" if scale.shard else ""
    for name, number in done.items():
        say(f"{name}: {number} rows{part} annotated in {shown}")
    say(f'load_dataset("{shown}") gives back what all parts have written')


def _url(place: Place) -> str:
    """The output as it was typed: a path has one slash where a URL has two."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", str(place.output))


def _source(dataset: Rows) -> Any:
    """The rows, to be read as they stream by."""
    if dataset.shuffle or dataset.max_samples is not None:
        raise ValueError("`--shuffle` and `--max-samples` need all rows at once; leave them or `--engine` out")
    chosen = {"data_dir": dataset.data_dir, "data_files": [*dataset.data_files] or None, "revision": dataset.revision}
    if dataset.config is None and not any(chosen.values()):
        return dataset.source
    from datasets import load_dataset

    return load_dataset(str(dataset.source), dataset.config, streaming=True, **chosen)
