"""The gallery: which rows it shows, on one scale, and the command that makes it."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset
from test_trace import direction_of
from typer.testing import CliRunner

from legend_hf import LegendMarginFn, save_annotated
from legend_hf.reports import gallery


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return direction_of(tiny_llama, template="dialogue")


@pytest.fixture(scope="module")
def annotated(direction):
    some = pair_rows([*"abcdefgh", "bread", "bikes"])
    for row in some[::2]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    rows = Dataset.from_list([*some, {"prompt": "Soup?", "chosen": "", "rejected": "No."}])
    return rows.map(LegendMarginFn(direction, on_error="skip"), batched=True)


def test_the_rows_that_contradict_their_labels_most_come_first(direction, annotated):
    made = gallery(annotated, direction=direction, most=3)
    raw = np.array(annotated["margin_raw"][:])
    order = np.argsort(raw, kind="stable")[:3]
    assert [pair.title for pair in made.pairs] == [f"Row {i}, margin {raw[i]:+.1f}".replace("-", "−") for i in order]
    assert [pair.margin_raw for pair in made.pairs] == pytest.approx(raw[order].tolist(), abs=1e-5)
    assert all(pair.margin_raw < 0 for pair in made.pairs)
    best = gallery(annotated, direction=direction, rows="most-positive", most=99)
    assert len(best.pairs) == (raw > 0).sum()
    assert best.pairs[0].margin_raw == pytest.approx(raw.max(), abs=1e-5)


def test_all_rows_are_on_one_scale(direction, annotated):
    made = gallery(annotated, direction=direction, rows="0,3,5")
    scores = [annotated[f"{side}_score"][i] for side in ("chosen", "rejected") for i in range(10)]
    neutrals = {pair.chosen.neutral for pair in made.pairs} | {pair.rejected.neutral for pair in made.pairs}
    assert [n.zero for n in neutrals] == pytest.approx([np.median(scores)])
    assert [pair.title.split(",")[0] for pair in made.pairs] == ["Row 0", "Row 3", "Row 5"]
    plain = annotated.remove_columns([c for c in annotated.column_names if "score" in c or c.startswith("margin")])
    bare = gallery(plain, direction=direction, rows="0")
    assert bare.pairs[0].chosen.neutral.zero == pytest.approx(np.mean([annotated[0][f"{s}_score"] for s in ("chosen", "rejected")]), abs=1e-5)  # fmt: skip


def test_rows_drawn_at_random_were_read_and_are_the_same_again(direction, annotated):
    first, again, other = (gallery(annotated, direction=direction, rows="random", most=4, seed=s) for s in (0, 0, 1))
    assert [p.title for p in first.pairs] == [p.title for p in again.pairs] != [p.title for p in other.pairs]
    assert not any(
        p.title.startswith("Row 10") for p in gallery(annotated, direction=direction, rows="random", most=99).pairs
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": "worst"}, "`rows` is 'worst'; allowed are \"most-negative\""),
        ({"rows": "3,99"}, "names row 99; the dataset has rows 0 to 10"),
        ({"most": 0}, "`most` is 0"),
        ({"margin_column": "margin_x"}, "has no column `margin_x` to choose by"),
        ({"rows": "10"}, "`chosen`"),
    ],
)
def test_what_cannot_be_shown_is_refused(direction, annotated, options, said):
    with pytest.raises(ValueError, match=said):
        gallery(annotated, direction=direction, **options)


def test_another_direction_than_made_the_margins_is_refused(tiny_llama, annotated):
    with pytest.raises(ValueError, match="another direction|made by"):
        gallery(annotated, direction=direction_of(tiny_llama, template="dialogue", layer=3))
    with pytest.raises(ValueError, match="give one split"):
        gallery({"train": annotated}, direction=None)


def test_the_command_writes_a_page(direction, annotated, tmp_path, tiny_llama):
    from legend_hf.cli import app

    direction.save_pretrained(tmp_path / "direction")
    save_annotated(annotated, tmp_path / "annotated", direction=direction, source="some/rows")
    where = [str(tmp_path / "annotated"), str(tmp_path / "direction"), "--model", str(tiny_llama)]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["trace", *where, "--rows", "most-negative", "--most", "2", "--output", str(page)])
    assert (done.exit_code, done.stdout) == (0, f"2 rows; saved {page}, open it in a browser\n"), done.output
    assert page.read_text("utf-8").count("<h2>Row ") == 2
    (tmp_path / "other.html").write_text("mine")
    refused = CliRunner().invoke(app, ["trace", *where, "--output", str(tmp_path / "other.html")])
    assert refused.exit_code == 2
    assert "something else made it" in refused.stderr
