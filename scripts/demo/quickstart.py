"""The main job on data that ships with the project: fit a direction, annotate preferences, save both with their cards.

In: the contrast pairs and preference rows of this folder, and a model: the toy annotator that ships with them, or, with
`--real`, the chat model that `scripts/real_llm` makes, for which a ready direction ships as well. Out: a folder with a
direction, an annotated dataset and a report, and on the screen some rows and a summary. Nothing is downloaded but, with
`--real`, that model, once.

    scripts/quickstart
    scripts/quickstart --real
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import real_llm
from datasets import Dataset, DatasetDict, load_dataset

from legend_hf import Direction, LegendMarginFn, fit_direction, save_annotated
from legend_hf.directions.direction import check_place
from legend_hf.publish import check_saved_place
from legend_hf.reports.report import check_place as check_report_place
from legend_hf.reports.report import report

DEMO = Path(__file__).parent
# One file a shape that users have: strings, whole dialogues, message lists, two responses with a label.
SHAPES = ("explicit", "dialogue", "messages", "safer")
READY = DEMO / "real_direction"
out = logging.getLogger("quickstart")


def main() -> None:
    """Runs the whole job and says what came out of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart_output"), help="folder for the results")
    parser.add_argument("--real", action="store_true", help="a real chat model of 135 million parameters, not the toy")
    given = parser.parse_args()
    folder: Path = given.output
    logging.basicConfig(format="%(message)s")
    out.setLevel(logging.INFO)

    check_place(folder / "direction", again=True)  # before the work, not after it
    check_saved_place(folder / "annotated")
    check_report_place(folder / "report")
    annotator = real_model() if given.real else DEMO / "annotator"
    out.info("1. Fit a direction on contrast pairs: careful answers against careless ones.\n")
    pairs = rows_of(DEMO / "contrast_pairs.jsonl")
    direction = fit_direction(pairs, model=str(annotator), pairs_source="the project's own contrast pairs")
    direction.save_pretrained(folder / "direction")
    loaded = Direction.from_pretrained(folder / "direction", model=annotator)
    directions: Direction | dict[str, Direction] = loaded
    if given.real:
        # Both at once: each text is read once, whatever the number of directions.
        directions = {"fitted": loaded, "ready": Direction.from_pretrained(READY, model=annotator)}

    out.info(
        "\n2. Annotate preference rows of four shapes with the saved direction%s.\n",
        ", and with the one that is ready for this model" if given.real else "",
    )
    annotated = {
        shape: rows_of(DEMO / "preferences" / f"{shape}.jsonl").map(LegendMarginFn(directions), batched=True)
        for shape in SHAPES
    }
    margin = "margin_fitted" if given.real else "margin"
    show(annotated["explicit"], margin)

    out.info("3. Save the annotated dataset, a configuration for each shape, with its card, and a report.\n")
    save_annotated(
        {shape: DatasetDict(train=ds) for shape, ds in annotated.items()},
        folder / "annotated",
        direction=directions,
    )
    again = load_dataset(str(folder / "annotated"), "explicit", split="train")
    if again[margin][:] != annotated["explicit"][margin][:]:
        raise SystemExit("the saved dataset differs from the annotated one")
    report(annotated, direction=directions).save(folder / "report")
    if given.real:
        summarise_real(loaded, annotated)
    else:
        summarise(loaded, annotated)
    out.info("\nLook at  %s", folder / "direction" / "README.md")
    out.info("         %s", folder / "annotated" / "README.md")
    out.info("         %s, and its plots", folder / "report" / "report.md")
    out.info('Load     load_dataset("%s", "explicit")', folder / "annotated")
    if not given.real:
        out.info("\nThe annotator is a toy of a few megabytes: enough to see how it goes, not to label data with.")
        out.info("`scripts/quickstart --real` does the same on a real chat model (a download of 93 MB).")


def real_model() -> Path:
    """The folder of the real chat model, made if it is not there."""
    folder = real_llm.default_folder()
    if not (folder / "config.json").is_file():
        real_llm.make(folder, None)
    return folder


def rows_of(file: Path) -> Dataset:
    """Rows of a JSON lines file, as a dataset."""
    return load_dataset("json", data_files=str(file), split="train")


def show(ds: Dataset, margin: str, rows: int = 6) -> None:
    """Shows the widest, the narrowest and the most negative margins of a column."""
    order = np.argsort(ds[margin][:])
    middle = np.argsort(np.abs(ds[margin][:]))[:2]
    for i in [*order[::-1][:2], *middle, *order[:2]][:rows]:
        row = ds[int(i)]
        out.info("margin %+.2f   %s", row[margin], row["prompt"])
        out.info("   chosen    %s", row["chosen"])
        out.info("   rejected  %s\n", row["rejected"])


def summarise(direction: Direction, annotated: dict[str, Dataset]) -> None:
    """Says how good the toy's direction is and what its margins look like."""
    facts = direction.facts
    margins = np.concatenate([np.array(ds["margin"][:]) for ds in annotated.values()])
    out.info("Direction: %d pairs, layer %d of the annotator.", facts.pairs, direction.reader.layer)
    out.info("  verdict            %s", direction.verdict.headline)
    out.info(
        "  held-out accuracy  %s  (too good here: this annotator was trained on",
        share(facts.accuracy, facts.accuracy_interval),
    )
    out.info(
        "  length alone       %s   these pairs, see the rows below instead)",
        share(facts.length_accuracy, facts.length_accuracy_interval),
    )
    positive = 100 * (margins > 0).mean()
    out.info(
        "Margins: %d rows it was not trained on, mean %+.2f, %.0f %% positive.", len(margins), margins.mean(), positive
    )
    out.info("  (a negative margin: the annotator disagrees with the label, or the pair is close;")
    out.info("  in half of these rows the chosen response is the shorter one)")


def summarise_real(direction: Direction, annotated: dict[str, Dataset]) -> None:
    """Says how good the real model's two directions are and what their margins look like."""
    facts = direction.facts
    out.info("Direction: %d pairs, layer %d of %d.", facts.pairs, direction.reader.layer, direction.reader.n_layers)
    for asked, answer in direction.verdict.lines:
        out.info("  %-12s  %s", asked, answer)
    out.info("Margins of the annotated rows, which no direction was fitted on:")
    for name, what in (("fitted", "the direction of these pairs"), ("ready", "the ready one, of hh-rlhf alone")):
        margins = np.concatenate([np.array(ds[f"margin_{name}"][:]) for ds in annotated.values()])
        out.info(
            "  %-32s %d rows, mean %+.2f, %.0f %% positive",
            what, len(margins), margins.mean(), 100 * (margins > 0).mean(),
        )  # fmt: skip
    out.info("  (in half of these rows the chosen response is the shorter one)")


def share(value: float | None, interval: tuple[float, float] | None) -> str:
    """A share with its 95 % interval."""
    if value is None:
        return "not recorded"
    return f"{value:.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


if __name__ == "__main__":
    main()
