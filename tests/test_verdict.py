"""The verdict on a direction: a direction of coin-flipped labels is named worthless wherever it shows, and no other."""

from __future__ import annotations

import json
import math
import pickle
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf import Direction, LegendMarginFn, LegendScoreFn, annotate, fit_direction, push_annotated, report
from legend_hf.directions import resample
from legend_hf.directions.choose import choose, right
from legend_hf.directions.curve import learning_curve
from legend_hf.directions.direction import CONFIG_FILE, TENSOR_FILE, ArtifactError, Facts, _digest
from legend_hf.directions.summary import summary
from legend_hf.hub.verdict import verdict_on

SOUND = {
    "pairs": 640,
    "prompts": 600,
    "skipped": 0,
    "accuracy": 0.70,
    "accuracy_interval": (0.66, 0.74),
    "length_accuracy": 0.60,
    "length_accuracy_interval": (0.56, 0.64),
    "length_rule": "shorter",
    "gain": 0.10,
    "gain_interval": (0.05, 0.15),
}


def demo_pairs(coin=None):
    """The shipped pairs; with a seed, each of them turned round or not by a coin."""
    text = (ROOT / "scripts" / "demo" / "contrast_pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    if coin is None:
        return rows
    toss = random.Random(coin)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [toss.choice(both) for both in zip(rows, turned, strict=True)]


@pytest.fixture(scope="module")
def sound(demo):
    return fit_direction(demo_pairs(), model=demo)


@pytest.fixture(scope="module")
def tossed(demo):
    return fit_direction(demo_pairs(coin=1), model=demo)


def test_a_sound_fit_beats_both_and_one_of_coins_neither(sound, tossed):
    good, bad = (verdict_on(asdict(d.facts)) for d in (sound, tossed))
    assert (good.beats_coin, good.beats_length, good.doubts) == (True, True, ())
    assert good.headline == "it beats a coin and length"
    assert (bad.beats_coin, bad.beats_length) == (False, False)
    assert "worthless" in bad.headline
    for verdict, direction in ((good, sound), (bad, tossed)):
        text = summary(direction).splitlines()
        assert [line for line in text if line.split()[0] == "verdict"] == [f"     verdict  {verdict.headline}"]
        for _, answer in verdict.lines:
            assert sum(answer in line for line in text) == 1, "a line each"
        assert f"{100 * direction.facts.accuracy:.1f} %" in verdict.coin
        assert "88 distinct prompts" in verdict.sure


def test_a_printed_verdict_is_a_line_for_each_question(sound, tossed):
    for direction in (sound, tossed):
        printed = str(direction.verdict).splitlines()
        assert printed == [f"{asked}: {said}" for asked, said in direction.verdict.lines]
    assert "doubtful" in str(tossed.verdict)
    assert "doubtful" not in str(sound.verdict)


def test_a_fit_says_that_it_is_doubtful_once_and_a_sound_one_nothing(demo, caplog):
    fit_direction(demo_pairs(coin=2), model=demo, layer=2)
    assert caplog.text.count("this direction is doubtful") == 1
    caplog.clear()
    fit_direction(demo_pairs(), model=demo, layer=2)
    assert "doubtful" not in caplog.text


@pytest.mark.parametrize("coin", range(3, 9))
def test_no_toss_of_coins_is_taken_for_labels(demo, coin):
    found = verdict_on(asdict(fit_direction(demo_pairs(coin=coin), model=demo, layer=2).facts))
    assert found.doubtful
    assert False in (found.beats_coin, found.beats_length)


def test_cards_say_what_the_verdict_says(sound, tossed, tmp_path):
    for name, direction in (("sound", sound), ("tossed", tossed)):
        direction.save_pretrained(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        verdict = verdict_on(asdict(direction.facts))
        for asked, answer in verdict.lines:
            assert f"- **{asked.capitalize()}:** {answer}." in card
        assert card.count("**Doubtful:**") == len(verdict.doubts)
        assert ("worthless" in card) is (name == "tossed")
        assert Direction.from_pretrained(tmp_path / name).facts == direction.facts


def warnings_of(caplog):
    """What was warned of since, but for what the libraries beneath say."""
    found = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("legend_hf")]
    caplog.clear()
    return found


def annotated(fn, **columns):
    from datasets import Dataset

    rows = [{**row, **{name: make(row) for name, make in columns.items()}} for row in demo_pairs()[:30]]
    return annotate(Dataset.from_list(rows), fn)


def test_a_transform_of_a_doubtful_direction_warns_once(sound, tossed, demo, tmp_path, caplog):
    made = {
        "margins": lambda given, **k: annotated(LegendMarginFn(given, **k)),
        "scores": lambda given, **k: annotated(
            LegendScoreFn(given, **k), responses=lambda row: [row["chosen"], row["rejected"]]
        ),
    }
    for name, direction in (("tossed", tossed), ("sound", sound)):
        direction.save_pretrained(tmp_path / name)
        warnings_of(caplog)
        for make in made.values():
            make(direction)
            make(tmp_path / name, model=demo)
            said = warnings_of(caplog)
            assert len(said) == (2 if name == "tossed" else 0), said
            assert all("this direction is doubtful: not to be told from a coin" in one for one in said)
    LegendMarginFn({"a": tossed, "b": sound, "c": tossed})
    (said,) = warnings_of(caplog)
    assert ("the direction 'a' is doubtful" in said, "'b'" in said, "'c'" in said) == (True, False, True)


def test_a_push_its_card_and_the_report_name_it(sound, tossed, demo, hub, tmp_path, caplog):
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    api.create_repo("user/annotator", exist_ok=True)
    api.upload_folder(repo_id="user/annotator", folder_path=demo, ignore_patterns="README.md")
    for name, direction in (("tossed", tossed), ("sound", sound)):
        doubtful = name == "tossed"
        rows = annotated(LegendMarginFn(direction))
        warnings_of(caplog)
        direction.push_to_hub(f"user/{name}", model_id="user/annotator")
        said = warnings_of(caplog)
        assert len([one for one in said if f"pushing a direction to `user/{name}` that is doubtful" in one]) == doubtful
        push_annotated(rows, f"user/margins-{name}", direction=direction, source=[])
        said = warnings_of(caplog)
        assert len([one for one in said if "of a direction that is doubtful" in one]) == len(said) == doubtful
        with open(hf_hub_download(f"user/margins-{name}", "README.md", repo_type="dataset"), encoding="utf-8") as file:
            card = file.read()
        made = report(rows, direction=direction)
        for text in (card, made.to_markdown()):
            assert (("**Doubtful" in text), ("worthless" in text)) == (doubtful, doubtful)
        assert f"- **Verdict:** {direction.verdict.headline}." in made.to_markdown()
        verdict = json.loads(made.to_json())["directions"][0]["verdict"]
        assert (verdict["beats_coin"], verdict["beats_length"]) == (not doubtful, not doubtful)


@pytest.mark.parametrize(
    ("changes", "coin", "length", "headline"),
    [
        ({}, True, True, "it beats a coin and length"),
        ({"gain": 0.01, "gain_interval": (-0.03, 0.05)}, True, False, "not shown to beat the length"),
        ({"gain": None, "gain_interval": None, "accuracy_interval": (0.59, 0.8)}, True, False, "not shown to beat"),
        ({"gain": None, "gain_interval": None}, True, True, "it beats a coin and length"),
        ({"accuracy_interval": (0.49, 0.9)}, False, True, "worthless"),
        ({"accuracy": 0.4, "accuracy_interval": (0.3, 0.5), "gain": -0.2}, False, False, "worthless"),
        ({"length_accuracy": 0.75, "length_accuracy_interval": None, "gain": -0.05}, True, False, "not shown to beat"),
        ({"prompts": 12}, True, True, "measured on 12 distinct prompts, too few to tell"),
        ({"accuracy": None, "accuracy_interval": None}, None, None, "held-out accuracy is unknown"),
        ({"accuracy": math.nan}, None, None, "no share between 0 and 1"),
        ({"gain_interval": (math.nan, 7.0)}, None, None, "no share between 0 and 1"),
        (dict.fromkeys(SOUND), None, None, "not known: nothing is recorded"),
    ],
    ids=str,
)
def test_what_is_said_follows_from_the_facts(changes, coin, length, headline):
    found = verdict_on({**SOUND, **changes})
    assert (found.beats_coin, found.beats_length) == (coin, length)
    assert headline in found.headline
    assert found.doubtful is ("doubtful" in found.headline)
    assert verdict_on(asdict(Facts(**{**SOUND, **changes}))) == found
    assert "nan" not in "".join(found.lines[i][1] for i in range(6))


def test_a_rule_of_length_from_a_stranger_is_no_text_to_repeat():
    assert "<script>" not in str(verdict_on({**SOUND, "length_rule": "<script>"}))
    assert "taking the shorter response" in str(verdict_on(SOUND)), "the control"


@settings(max_examples=40)
@given(st.integers(40, 400), st.integers(51, 64))
def test_as_many_more_prompts_as_are_said_would_settle_it(prompts, percent):
    seen = round(prompts * percent / 100) / prompts

    def facts(count):
        values = np.zeros(count)
        values[: round(count * seen)] = 1.0
        share, interval = resample.share_interval(values, np.arange(count))
        return {"pairs": count, "prompts": count, "accuracy": share, "accuracy_interval": interval}

    found = verdict_on(facts(prompts))
    if found.beats_coin or "about" not in found.sure:
        return
    more = int(found.sure.split("about ")[1].split(" more")[0].replace(",", ""))
    assert verdict_on(facts(round(1.1 * (prompts + more)))).beats_coin
    assert not verdict_on(facts(round(0.8 * (prompts + more)))).beats_coin


def curve_of(differences, seed=0):
    groups = np.arange(len(differences))
    chosen = choose(differences[None], [0], ["mean_difference"], groups, middle=0, seed=seed)
    return learning_curve(differences, groups, chosen, seed=seed), chosen


def test_the_curve_rises_where_more_pairs_help_and_not_where_they_do_not():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=(400, 300)) + 0.06  # a weak signal in many dimensions: the mean of few pairs is all noise
    easy = rng.normal(size=(400, 300)) * 0.1 + np.eye(300)[0]
    found = {}
    for name, differences in (("hard", hard), ("easy", easy), ("tossed", hard * rng.choice([-1, 1], (400, 1)))):
        before = differences.copy()
        curve, chosen = curve_of(differences)
        np.testing.assert_array_equal(differences, before)
        assert [at["share"] for at in curve] == [0.25, 0.5, 1.0]
        assert curve[-1]["accuracy"] == right(chosen.raw).mean(), "that of the fit's own folds"
        found[name] = curve, verdict_on({**SOUND, "curve": curve}).more
    assert found["hard"][0][0]["behind"][0] > 0
    assert found["hard"][1].startswith("would help: 25, 50, 100 % of the prompts give ")
    assert found["easy"][1].startswith("would hardly help: ")
    assert not found["tossed"][1].startswith("would help")
    assert verdict_on(SOUND).more == "not measured"


def test_a_curve_needs_prompts_and_repeats_to_the_bit(sound, demo):
    assert sound.facts.curve == fit_direction(demo_pairs(), model=demo).facts.curve
    assert fit_direction(demo_pairs()[:19], model=demo).facts.curve is None


POINT = {"share": 0.5, "accuracy": 0.5, "behind": [0.0, 0.1]}


@pytest.mark.parametrize(
    "curve",
    [[], [POINT] * 11, [{**POINT, "accuracy": 2}], [{**POINT, "behind": ["<b>", 1]}], [{**POINT, "note": "x"}], "x"],
    ids=str,
)
def test_a_curve_from_strangers_is_held_against_its_type(sound, tmp_path, curve):
    sound.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    tensors = (tmp_path / TENSOR_FILE).read_bytes()

    def load(facts):
        changed = {**{k: v for k, v in config.items() if k != "sha256"}, "facts": facts}
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**changed, "sha256": _digest(changed, tensors)}))
        return Direction.from_pretrained(tmp_path).facts

    with pytest.raises(ArtifactError, match=r"has `facts.curve` = .*, not Curve \| None"):
        load({**config["facts"], "curve": curve})
    assert load({**config["facts"], "curve": [POINT]}).curve == (POINT,)
    less = {key: value for key, value in config["facts"].items() if key not in ("curve", "gain")}
    assert load(less) == replace(sound.facts, curve=None, gain=None), "what is not said is not known"


def test_a_direction_and_its_transforms_are_a_line_to_print(sound, tossed, demo):
    from legend_hf.preferences import PairSimilarityFn

    short = sound.reader.model_sha256[:7]
    right = f"{100 * sound.facts.accuracy:.1f} %"
    said = f"Direction(safety, a folder with sha256 {short}, layer 2 of 4, right on {right} of held-out pairs)"
    assert repr(sound) == said
    assert repr(tossed).endswith(f"right on {100 * tossed.facts.accuracy:.1f} % of held-out pairs, doubtful)")
    published = replace(sound, reader=replace(sound.reader, model="user/x", revision="c" * 40, model_sha256=None))
    assert "(safety, user/x@ccccccc, layer 2" in repr(published)
    assert repr(LegendMarginFn(sound)) == f"LegendMarginFn({said})"
    assert repr(LegendScoreFn(sound, add=["choice_probs"])) == f"LegendScoreFn({said}, add=['choice_probs'])"
    several = LegendMarginFn({"a": sound, "b": sound}, scale="raw", on_error="skip")
    assert repr(several) == f"LegendMarginFn(a={said}, b={said}, scale='raw', on_error='skip')"
    assert repr(PairSimilarityFn(demo)) == f"PairSimilarityFn(a folder with sha256 {short}, layer 4 of 4)"
    assert repr(replace(sound, facts=Facts())) == f"Direction(safety, a folder with sha256 {short}, layer 2 of 4)"
    copy = pickle.loads(pickle.dumps(several))
    assert "\n" not in repr(copy)
    assert "layer 2 of 4" in repr(copy)
