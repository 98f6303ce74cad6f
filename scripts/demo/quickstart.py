"""The main job on data that ships with the project: fit a direction, annotate preferences, save both with their cards.

In: the contrast pairs, preference rows and annotator of this folder. Out: a folder with a direction and an annotated
dataset, and on the screen some rows and a summary. Nothing is downloaded.

    scripts/quickstart
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset

from legend_hf import Direction, LegendMarginFn, fit_direction, save_annotated
from legend_hf.directions.direction import check_place
from legend_hf.publish import check_saved_place

DEMO = Path(__file__).parent
# One file a shape that users have: strings, whole dialogues, message lists, two responses with a label.
SHAPES = ("explicit", "dialogue", "messages", "safer")
out = logging.getLogger("quickstart")


def main() -> None:
    """Runs the whole job and says what came out of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart_output"), help="folder for the results")
    folder: Path = parser.parse_args().output
    logging.basicConfig(format="%(message)s")
    out.setLevel(logging.INFO)

    check_place(folder / "direction", again=True)  # before the work, not after it
    check_saved_place(folder / "annotated")
    out.info("1. Fit a direction on contrast pairs: careful answers against careless ones.\n")
    annotator = DEMO / "annotator"
    pairs = rows_of(DEMO / "contrast_pairs.jsonl")
    direction = fit_direction(pairs, model=str(annotator), pairs_source="the project's own contrast pairs")
    direction.save_pretrained(folder / "direction")

    out.info("\n2. Annotate preference rows of four shapes with the saved direction.\n")
    loaded = Direction.from_pretrained(folder / "direction", model=annotator)
    annotated = {
        shape: rows_of(DEMO / "preferences" / f"{shape}.jsonl").map(LegendMarginFn(loaded), batched=True)
        for shape in SHAPES
    }
    show(annotated["explicit"])

    out.info("3. Save the annotated dataset, a configuration for each shape, with its card.\n")
    save_annotated(
        {shape: DatasetDict(train=ds) for shape, ds in annotated.items()},
        folder / "annotated",
        direction=loaded,
    )
    again = load_dataset(str(folder / "annotated"), "explicit", split="train")
    if again["margin"][:] != annotated["explicit"]["margin"][:]:
        raise SystemExit("the saved dataset differs from the annotated one")
    summarise(loaded, annotated, folder)


def rows_of(file: Path) -> Dataset:
    """Rows of a JSON lines file, as a dataset."""
    return load_dataset("json", data_files=str(file), split="train")


def show(ds: Dataset, rows: int = 6) -> None:
    """Shows the widest, the narrowest and the most negative margins."""
    order = np.argsort(ds["margin"][:])
    middle = np.argsort(np.abs(ds["margin"][:]))[:2]
    for i in [*order[::-1][:2], *middle, *order[:2]][:rows]:
        row = ds[int(i)]
        out.info("margin %+.2f   %s", row["margin"], row["prompt"])
        out.info("   chosen    %s", row["chosen"])
        out.info("   rejected  %s\n", row["rejected"])


def summarise(direction: Direction, annotated: dict[str, Dataset], folder: Path) -> None:
    """Says how good the direction is and what the margins look like."""
    facts = direction.facts
    margins = np.concatenate([np.array(ds["margin"][:]) for ds in annotated.values()])
    out.info("Direction: %d pairs, layer %d of the annotator.", facts.pairs, direction.reader.layer)
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
    out.info("\nLook at  %s", folder / "direction" / "README.md")
    out.info("         %s", folder / "annotated" / "README.md")
    out.info('Load     load_dataset("%s", "explicit")', folder / "annotated")
    out.info("\nThe annotator is a toy of a few megabytes: enough to see how it goes, not to label data with.")


def share(value: float | None, interval: tuple[float, float] | None) -> str:
    """A share with its 95 % interval."""
    if value is None:
        return "not recorded"
    return f"{value:.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


if __name__ == "__main__":
    main()
