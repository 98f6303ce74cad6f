"""Concept and poles: a direction of helpfulness is spoken of as such in every place, and by default it is of safety."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest
from builders import pair_rows
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from legend_hf import Direction, LegendMarginFn, annotate, fit_direction, report, save_annotated
from legend_hf.cli.options import app
from legend_hf.directions.direction import CONFIG_FILE, TENSOR_FILE, ArtifactError, Facts, _digest
from legend_hf.directions.summary import summary
from legend_hf.hub.concept import SAFETY, Concept, check_concept
from legend_hf.reports.plots import draw

PAIRS = pair_rows((*"abcdefghijkl", "bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain"))
HELP = {"concept": "helpfulness", "poles": ("unhelpful", "helpful")}
# Words of safety that are no name of the paper, of a file or of a dataset, nor the warning about contents.
SAFE = re.compile(r"\b(?:un)?safer?\b(?!tensors)|\bsafety (?!Margin|filter)|harmless(?!-base)", re.IGNORECASE)


@pytest.fixture(scope="module")
def fitted(tiny_llama):
    helpful = fit_direction(PAIRS, model=tiny_llama, **HELP)
    return {"helpfulness": helpful, "safety": replace(helpful, facts=replace(helpful.facts, concept=None, poles=None))}


@pytest.fixture(scope="module")
def rows(fitted):
    from datasets import Dataset

    return annotate(Dataset.from_list(PAIRS), LegendMarginFn(fitted["safety"], add=["margin_prob"]))


def said_of(direction, rows, folder):
    """All that is said of a direction and of its margins, by place."""
    direction.save_pretrained(folder / "direction")
    assert Direction.from_pretrained(folder / "direction").facts == direction.facts
    save_annotated(rows, folder / "annotated", direction=direction, source=[])
    made = report(rows, direction=direction)
    pictures = draw(made)
    return {
        "summary": summary(direction),
        "card": (folder / "direction" / "README.md").read_text(encoding="utf-8"),
        "dataset's card": (folder / "annotated" / "README.md").read_text(encoding="utf-8"),
        "report": made.to_markdown(),
        "plots": "\n".join(picture.description for picture in pictures.values()),
    }


def test_every_place_speaks_of_the_concept(fitted, rows, tmp_path):
    helpful = said_of(fitted["helpfulness"], rows, tmp_path / "helpful")
    for place, text in helpful.items():
        assert "more helpful" in text or "from unhelpful to helpful" in text, place
        wrong = [line for line in text.splitlines() if SAFE.search(line) and "65 to 75 %" not in line]
        assert wrong == [], place
    assert "no figures for this concept" in helpful["summary"]
    for place, text in said_of(fitted["safety"], rows, tmp_path / "safe").items():
        assert "safer" in text or "from unsafe to safe" in text, place
        assert "helpful" not in text, place
        assert SAFE.search(text), "the control: these words are found"
    assert "tags:\n- legend\n- direction\n- helpfulness\n" in helpful["card"]
    assert "- helpfulness\n" in helpful["dataset's card"].split("---")[1]


def test_the_words_of_a_picture_are_the_concepts(fitted, rows, monkeypatch):
    from legend_hf.reports import plots

    said = []

    def look(figure):
        said.extend(text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts, axes.xaxis.label))
        said.extend(axes.get_title(loc="left") for axes in figure.axes)
        return b""

    monkeypatch.setattr(plots, "_png", look)
    draw(report(rows, direction=fitted["helpfulness"]))
    assert "Which layer tells helpful from unhelpful?" in said
    assert "By how much does the chosen response read as more helpful?" in said
    assert not SAFE.search("\n".join(said))


def test_several_concepts_are_told_apart(fitted, tmp_path):
    from datasets import Dataset

    both = {"safe": fitted["safety"], "help": fitted["helpfulness"]}
    rows = annotate(Dataset.from_list(PAIRS), LegendMarginFn(both))
    save_annotated(rows, tmp_path / "both", direction=both, source=[])
    assert "reads as safer or more helpful than" in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    made = {split.column: split.concept for split in report(rows, direction=both).splits}
    assert made == {"margin_safe": SAFETY, "margin_help": Concept("helpfulness", "unhelpful", "helpful")}
    # A configuration that stays keeps its words in the card.
    alone = annotate(Dataset.from_list(PAIRS), fitted["helpfulness"])
    save_annotated(alone, tmp_path / "both", direction=fitted["helpfulness"], source=[], config_name="help")
    assert "reads as safer or more helpful than" in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("concept", "poles", "message"),
    [
        ("helpfulness", None, "`poles` is missing; give both: `concept="),
        (None, ("a", "b"), "`concept` is missing"),
        ("helpfulness", ("helpful",), "give two different ones"),
        ("helpfulness", ("helpful", "helpful"), "give two different ones"),
        ("helpfulness", "ab", "give two different ones"),
        ("<b>", ("a", "b"), "`concept` has '<b>'; give words of letters and digits"),
        ("honest talk", ("a", "two\nlines"), "`poles` has"),
        ("x" * 41, ("a", "b"), "40 characters at most"),
        ("", ("a", "b"), "`concept` has ''"),
    ],
)
def test_what_no_card_could_say_is_refused_before_the_model_is_looked_at(concept, poles, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_direction(PAIRS, model="user/no-such-model", concept=concept, poles=poles)
    check_concept("plain-speaking", ("wordy", "l'essentiel"))


@given(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50))
def test_whatever_is_taken_is_plain_text(concept, low, high):
    try:
        check_concept(concept, (low, high))
    except ValueError:
        return
    assert all(word.isprintable() and not set(word) & set("<>|`[]&*_$#\\\n") for word in (concept, low, high))


def test_a_strangers_concept_is_checked_too(fitted, tmp_path):
    fitted["helpfulness"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (config["facts"]["concept"], config["facts"]["poles"]) == ("helpfulness", ["unhelpful", "helpful"])
    for change in ({"concept": "<script>"}, {"poles": ["a", "b", "c"]}, {"poles": [1, 2]}, {"concept": None}):
        changed = {**{k: v for k, v in config.items() if k != "sha256"}, "facts": {**config["facts"], **change}}
        digest = _digest(changed, (tmp_path / TENSOR_FILE).read_bytes())
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**changed, "sha256": digest}))
        with pytest.raises(ArtifactError):
            Direction.from_pretrained(tmp_path)
    assert Concept.of(asdict(Facts())) == SAFETY


def test_the_command_fits_and_shows_it(tiny_llama, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    typed = ["fit", file, "--model", tiny_llama, "--no-store", "--concept", "helpfulness", "--output", tmp_path / "out"]
    poles = ["--poles", "unhelpful", "--poles", "helpful"]
    done = CliRunner().invoke(app, [str(word) for word in (*typed, *poles)])
    assert done.exit_code == 0, done.stderr
    assert "     concept  helpfulness, from unhelpful to helpful" in done.output
    refused = CliRunner().invoke(app, [str(word) for word in (*typed[:-1], tmp_path / "other")])
    assert (refused.exit_code, "`--poles` is missing" in refused.stderr) == (2, True), refused.stderr
