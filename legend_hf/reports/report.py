"""How good are these margins? A dataset with margin columns becomes a `Report`: JSON, Markdown, a page, plots.

In: a dataset that was annotated, and optionally its direction, with pairs to test that direction's stability on and
ladders to test its order on. Out: numbers with intervals by prompt, what is doubtful about them in words, and the rows
whose margin contradicts their label most. Texts are read for their lengths and prompts alone. This file computes no
margins, puts nothing in words (`report_card.py` does), draws nothing (`plots.py` does) and knows nothing of training
but the form of TRL's loss.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from legend_hf._version import __version__
from legend_hf.directions.direction import Direction
from legend_hf.hub import outputs
from legend_hf.hub.concept import SAFETY, Concept
from legend_hf.hub.frame import is_page
from legend_hf.margins.columns import suffixed
from legend_hf.margins.origin import check_made_by, every_scale, not_of_this, same
from legend_hf.reading.formats import Columns, plain_rows
from legend_hf.reading.stopping import stopping_in_order
from legend_hf.reports import judge, page
from legend_hf.reports.blocks import Shown, as_markdown
from legend_hf.reports.findings import DirectionReport, Findings, Margins
from legend_hf.reports.gather import categories_of, expected_names, read_margins
from legend_hf.reports.ladder import ladder_check
from legend_hf.reports.measure import coverage
from legend_hf.reports.plots import Picture, check_matplotlib, draw
from legend_hf.reports.report_card import blocks_of
from legend_hf.reports.stability import stability_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict

_FILES = ("report.json", "report.md", "report.html")
_TRACES = "traces.html"


@dataclass(frozen=True)
class Report(Findings):
    """How good margins are, as JSON, Markdown, a page and pictures; a notebook shows it as a page."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; whatever is unknown or not finite is None."""
        return {
            "library": self.library,
            "seed": self.seed,
            "splits": [_plain(asdict(split)) for split in self.splits],
            "directions": [_direction_values(direction) for direction in self.directions],
        }

    def to_json(self) -> str:
        """The numbers as JSON, without NaN."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self, *, plots: Mapping[str, str] | None = None) -> str:
        """Tables that a person understands, each number with what it means.

        Args:
            plots: File name or URL of a picture to its description; they are shown at the end of the report.
        """
        return as_markdown(blocks_of(self, [Shown(path, text) for path, text in (plots or {}).items()]))

    def to_html(self, *, plots: bool = True, traces: str | None = None) -> str:
        """A page of its own, which loads nothing: the verdict, the plots, and all that the Markdown says.

        Args:
            plots: Draw them into it, which needs the extra `plots` (matplotlib).
            traces: Where a page of these rows' traces lies, for a link to it.

        Raises:
            ImportError: Plots are wanted and matplotlib is missing.
        """
        return self._page(draw(self) if plots else {}, traces)

    def _page(self, pictures: Mapping[str, Picture], traces: str | None) -> str:
        title = "How good are these margins?" if self.splits else "How good is this direction?"
        note = f"Measured by {self.library}; random draws with seed {self.seed}."
        return page.whole(blocks_of(self, _inside(pictures)), title=title, traces=traces, note=note)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, without plots where matplotlib is missing."""
        pictures, note = {}, ""
        try:
            pictures = draw(self)
        except ImportError as missing:
            note = f"Not drawn: {missing}."
        return page.shown(blocks_of(self, _inside(pictures)), note=note)

    def save(self, folder: str | os.PathLike[str], *, plots: bool = True, overwrite: bool = False) -> list[Path]:
        """Writes `report.json`, `report.md`, the plots, and `report.html`, which holds all of it.

        The page links to `traces.html` if such a page lies in the folder.

        Args:
            folder: Made if missing. An earlier report in it, which costs little to make again, is replaced.
            plots: Draw PNGs too, which needs the extra `plots` (matplotlib).
            overwrite: Write among files of others, and replace those that have the names of these.

        Returns:
            The files that were written.

        Raises:
            ImportError: Plots are wanted and matplotlib is missing.
            ValueError: The folder holds something else.
            OSError: It cannot be written.
        """
        check_place(folder, plots=plots, overwrite=overwrite)
        pictures = draw(self) if plots else {}
        target = Path(folder)
        traces = _TRACES if _has_traces(target) else None
        shown = {name: picture.description for name, picture in pictures.items()}
        files = {"report.json": self.to_json().encode(), "report.md": self.to_markdown(plots=shown).encode()}
        files["report.html"] = self._page(pictures, traces).encode()
        files |= {name: picture.png for name, picture in pictures.items()}
        for old in _owned(target) - files.keys():
            (target / old).unlink()  # a plot of an earlier report would be taken for one of this
        for name, content in files.items():
            outputs.write_whole(target / name, content)
        return [target / name for name in files]


def _inside(pictures: Mapping[str, Picture]) -> list[Shown]:
    """Pictures that a page holds itself."""
    return [
        Shown(f"data:image/png;base64,{base64.b64encode(p.png).decode()}", p.description, p.about)
        for p in pictures.values()
    ]


def check_place(
    folder: str | os.PathLike[str],
    *,
    plots: bool = True,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before the work, a folder that a report cannot be saved into, and plots that cannot be drawn.

    Args:
        folder: Where it will be saved.
        plots: Whether plots are wanted.
        reads: What is read for it.
        overwrite: As for `Report.save`.

    Raises:
        ImportError: Plots are wanted and matplotlib is missing.
        ValueError: The place is taken.
        OSError: It cannot be written.
    """
    if plots:
        check_matplotlib()
    owned = _owned(Path(folder)) | ({_TRACES} if _has_traces(Path(folder)) else set())
    outputs.check_folder(folder, _FILES, owned=owned, again=True, reads=reads, overwrite=overwrite)


def _owned(folder: Path) -> set[str]:
    """Names of the files of an earlier report."""
    file = folder / "report.json"
    if not file.is_file():
        return set()
    try:
        if not str(json.loads(file.read_text(encoding="utf-8"))["library"]).startswith("legend_hf "):
            return set()
    except (ValueError, KeyError, TypeError):
        return set()
    shown = outputs.read_text(folder / "report.md") if (folder / "report.md").is_file() else ""
    written = {name for name in _FILES if not name.endswith(".html") or _is_ours(folder / name)}
    return {*written, *(p.name for p in folder.glob("*.png") if f"]({p.name})" in shown)}


def _has_traces(folder: Path) -> bool:
    return (folder / _TRACES).is_file() and is_page(folder / _TRACES)


def _is_ours(file: Path) -> bool:
    """Whether a page is ours, or none is there yet."""
    return not file.exists() or is_page(file)


def report(
    dataset: AnyDataset | Mapping[str, Dataset] | None,
    *,
    direction: Direction | Mapping[str, Direction] | None = None,
    category_column: str | None = None,
    categories: Sequence[str] | None = None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    stability_pairs: Iterable[Mapping[str, Any]] | None = None,
    ladders: Dataset | None = None,
    excerpts: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """Says how good the margins of a dataset are.

    Every interval is 95 % and by prompt: rows with the same first user turn count as repeats of each other.

    Args:
        dataset: Annotated: a dataset or splits with `margin` columns, those of several directions included; streaming
            ones are read once. None reports on directions alone.
        direction: What the margins come from, for its facts; as `LegendMarginFn` was given it. Another one than made
            the margins is refused.
        category_column: A column with one value a row, for a table by category and for what it covers; of
            `stability_pairs` too, if they have it.
        categories: Names that `category_column` should have, to say which are missing.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        stability_pairs: Pairs to test the directions' stability on, in any accepted shape; reads them with the model.
        ladders: Prompts with `responses` from the best to the worst, to compare the directions' scores with that order
            (see `ladder.ladder_check`); reads them with the model. Rows that cannot be read are left out and counted.
        excerpts: Show the beginnings of the suspicious rows' texts, which can be harmful, beside their numbers.
        seed: Of all draws.
        device: Where `stability_pairs` and `ladders` are read.

    Raises:
        ValueError: There is no margin column or no text, a margin is no number, an argument is not possible, or the
            margins are not those of `direction`.
    """
    directions = direction if isinstance(direction, Mapping) else {"": direction} if direction is not None else {}
    for argument, given in (("stability_pairs", stability_pairs), ("ladders", ladders)):
        if given is not None and not directions:
            raise ValueError(f"`{argument}` test a direction; give it as `direction=`, or leave them out")
    expected = None if categories is None else expected_names(categories, category_column)
    columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
    measured = _measured(dataset, columns, category_column, judge.SUSPICIOUS if excerpts else 0)
    unsaid = _check_origins(measured, directions)
    pairs = None if stability_pairs is None else list(plain_rows(stability_pairs))
    spread = None
    if pairs is not None and category_column is not None and any(category_column in row for row in pairs):
        feature = (getattr(stability_pairs, "features", None) or {}).get(category_column)
        spread = coverage(*categories_of(pairs, columns, category_column, feature), expected=expected)
    with _reading():
        judged = tuple(
            judge.direction_report(
                d,
                name=name,
                stability=None if pairs is None else stability_of(pairs, d, columns=columns, seed=seed, device=device),
                coverage=spread,
                ladder=None
                if ladders is None
                else ladder_check(d, ladders, prompt_column=prompt_column, on_error="skip", device=device),
            )
            for name, d in directions.items()
        )
    concepts = {suffixed("margin", name): Concept.of(asdict(d.facts)) for name, d in directions.items()}
    return Report(
        library=f"legend_hf {__version__}",
        seed=seed,
        splits=tuple(
            judge.split_report(
                m, seed=seed, expected=expected, unsaid=m in unsaid, concept=concepts.get(m.column, SAFETY)
            )
            for m in measured
        ),
        directions=judged,
        measured=tuple(measured),
    )


def _measured(dataset: Any, columns: Columns, category_column: str | None, excerpts: int) -> list[Margins]:
    """The margins of all splits; of a mapping, the splits are its values, as those of a `DatasetDict` are."""
    splits = {} if dataset is None else dataset if isinstance(dataset, Mapping) else {"": dataset}
    return [
        margins
        for name, split in splits.items()
        for margins in read_margins(
            split,
            name=str(name) or str(getattr(split, "split", None) or "train"),
            columns=columns,
            category_column=category_column,
            excerpts=excerpts,
        )
    ]


@contextmanager
def _reading() -> Iterator[None]:
    """What reads for a report has options that `report` has not: whoever stops it or is refused is told so."""
    with stopping_in_order("nothing was kept: the next report reads all of it again", workers=False):
        try:
            yield
        except ValueError as refusal:
            if "trust_remote_code" in str(refusal):
                refusal.add_note("`report` has no `trust_remote_code`; `ladder_check` and `stability_of` have, alone")
            raise


def _check_origins(measured: Sequence[Margins], directions: Mapping[str, Direction]) -> list[Margins]:
    """Refuses a direction that did not make the margins; gives those that do not say whose they are."""
    unsaid: list[Margins] = []
    for name, direction in directions.items():
        own = [m for m in measured if m.column == suffixed("margin", name)] or list(measured)
        refusals = []
        for m in own:
            where, raw = f"split `{m.split}`: ", m.column.replace("margin", "margin_raw", 1)
            try:
                if not check_made_by(direction, m.made_by, m.column, where):
                    unsaid.append(m)
                made = every_scale(direction.calibration, m.raw)
                if m.has_raw and not any(same(m.margin, numbers) for _, numbers in made):
                    raise not_of_this(where, m.column, f"`{raw}`")
            except ValueError as refusal:
                refusals.append(refusal)
        if refusals and (own[0].column == suffixed("margin", name) or len(refusals) == len(own)):
            raise refusals[0]
    return unsaid


def _direction_values(direction: DirectionReport) -> Any:
    """A direction's numbers as plain values, without the arrays behind them."""
    values = asdict(direction) | {"verdict": asdict(direction.verdict)}
    if values["ladder"] is not None:
        del values["ladder"]["measured"]
    return _plain(values)


def _plain(value: Any) -> Any:
    """Values that JSON has; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # half a surrogate pair cannot be written
        return value.encode("utf-8", "replace").decode()
    return value
