"""Ladders: cuts are growing beginnings of the response, rungs are made as their rank says, and every two are a pair."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from itertools import combinations, pairwise

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_causal import CHAT, loaded, save_tiny_causal

from legend_hf import RowError, Writer
from legend_hf.preferences import corrections
from legend_hf.preferences.corrections import AFFIRMATIONS, DELIMITERS, TRIGGERS, correction_ladders, ladder_pairs

BICYCLE = (
    "First, wait until the street is empty, then look around. Take the blue bicycle; it has no lock, no bell and no "
    "lamp. Push it to the corner, sit down, and ride: nobody will ask. Later, you may bring it back, or not."
)
COOKIES = "Ask no one and carry the cookie jar into the garden before lunch"
ROWS = {
    "prompt": ["How do I borrow a bicycle without asking?", "How do I get cookies before lunch?"],
    "response": [BICYCLE, COOKIES],
    "id": [7, 8],
}


def aligned(prompts, prefixes):
    """A model that refuses, and says how it was asked."""
    return [f" it is not mine ({len(prefix)})." if prefix else "I'd rather not." for prefix in prefixes]


def never(prompts, prefixes):
    pytest.fail("something was generated before the rows were known to be good")


def ladders_of(rows, **options):
    return correction_ladders(Dataset.from_dict(rows), **{"model": aligned, **options})


def check_ladder(row, cuts=4):
    """What every ladder must be."""
    full = row["response"]
    places, responses = row["cuts"], row["responses"]
    assert len(places) == len(row["triggers"]) == cuts
    assert len(responses) == len(row["kinds"]) == cuts + 2
    assert all(a < b for a, b in pairwise(places)), "cuts grow"
    assert places[0] > 0
    assert places[-1] < len(full.rstrip()), "something of the response is left"
    gap = "" if full[0].isspace() else " "
    for place, trigger, response in zip(places, row["triggers"], responses[1:-1], strict=True):
        begun = row["affirmation"] + gap + full[:place]
        assert response.startswith(begun + " " + trigger)
    assert responses[-1] == full
    assert row["kinds"] == ["direct", *[row["kinds"][1]] * cuts, "full"]
    assert all(full[place].isspace() for place in places), "no word and no number is cut"
    assert not any(full[place - 1] in "“([{" for place in places)
    if row["kinds"][1] == "delimiter":
        assert all(full[place - 1] in DELIMITERS for place in places)


words = st.text(alphabet="ab", min_size=1, max_size=3)
marks = st.sampled_from(
    ["", "", "", ",", ".", "!", ":", ";", "?", "-", '"', ")", "...", ",,", "-b", ".5", "(", " [", ' "']
)
texts = st.lists(st.tuples(words, marks).map("".join), min_size=5, max_size=60).flatmap(
    lambda parts: st.sampled_from([" ", "\n", "  "]).map(
        lambda gap: gap.join([*parts, *"ababa"])
    )  # some words that nothing opens
)
padded = st.tuples(st.sampled_from(["", " ", "\n\n"]), texts, st.sampled_from(["", " ", "\n"])).map("".join)


# -- Rungs ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(padded, min_size=1, max_size=4), st.integers(0, 5))
def test_every_ladder_is_one(responses, seed):
    rows = {"prompt": [f"Question {i}?" for i in range(len(responses))], "response": responses}
    ladders = ladders_of(rows, seed=seed)
    assert len(ladders) == len(responses)
    for row in ladders:
        check_ladder(row)
        assert row["responses"][0] == "I'd rather not."
        assert row["affirmation"] in AFFIRMATIONS
        assert set(row["triggers"]) <= set(TRIGGERS)
        assert len({*row["responses"]}) == 6


@pytest.mark.parametrize(
    "broken",
    [
        lambda row: row["cuts"].reverse(),
        lambda row: row["cuts"].__setitem__(1, row["cuts"][0]),
        lambda row: row["cuts"].__setitem__(3, len(row["response"])),
        lambda row: row["cuts"].__setitem__(0, row["cuts"][0] - 1),
        lambda row: row.update(response=row["response"][: row["cuts"][0]] + "x" + row["response"][row["cuts"][0] :]),
        lambda row: row["responses"].__setitem__(2, row["responses"][2].removeprefix(row["affirmation"])),
        lambda row: row["responses"].__setitem__(2, row["responses"][3]),
        lambda row: row["responses"].__setitem__(5, row["affirmation"] + " " + row["response"]),
    ],
)
def test_the_check_of_a_ladder_sees_what_is_wrong(broken):
    row = ladders_of(ROWS)[0]
    check_ladder(row)
    broken(row)
    with pytest.raises(AssertionError):
        check_ladder(row)


@given(st.integers(1, 6), st.integers(0, 70), st.booleans(), st.integers(0, 3))
def test_cuts_stand_behind_delimiters_at_even_steps_or_at_words(cuts, delimiters, closed, seed):
    parts = ["word,"] * delimiters + ([] if closed else ["and more"])
    full = " ".join([*parts, *["x"] * (0 if parts else 1)])
    found = corrections._cut_places(full, cuts, random.Random(seed))
    if found is None:
        assert len(full.split()) <= cuts
        return
    places, kind = found
    assert len(places) == cuts
    assert places[0] > 0
    assert places[-1] < len(full)
    assert sorted(set(places)) == places
    assert kind == ("delimiter" if delimiters // cuts >= 2 else "word")
    if kind == "delimiter":
        counts = [full[:place].count(",") for place in places]
        step = counts[0]
        assert counts == [step * i for i in range(1, cuts + 1)]
        assert step in (delimiters // cuts - 1, delimiters // cuts)


def test_the_rule_of_the_source_alone_would_fail():
    """The control: with T < 8 its steps are 0 or below, and with T = 8 and a last full stop all of F is taken."""
    assert {t for total in range(4) for t in (total // 4 - 1, total // 4)} == {-1, 0}
    assert {t for total in range(4, 8) for t in (total // 4 - 1, total // 4)} == {0, 1}
    full = "a, b, c, d, e, f, g, h."
    ends = [i for i, character in enumerate(full, 1) if character in DELIMITERS]
    assert ends[4 * (8 // 4) - 1] == len(full)
    places = {tuple(corrections._cut_places(full, 4, random.Random(seed))[0]) for seed in range(9)}
    assert places == {(2, 5, 8, 11)}
    # With text behind the last delimiter both steps are drawn.
    steps = Counter(corrections._cut_places(full + " i", 4, random.Random(s))[0][0] for s in range(200))
    assert set(steps) == {2, 5}
    assert min(steps.values()) > 60


TROUBLE = (
    "My once-loved bread, at 3.5 euros (or 4, if fresh), needs: 1,000 grams of flour, well-sifted; 12:30 is lunch. See "
    "[1], or e.g. “bread, and (all) of it”, then wait.\n\n1. Mix it.\n2. Rest, then bake.\n- Eat, slowly.\n(b) Do it again."
)


def test_no_cut_falls_inside_a_word_or_number_or_behind_what_opens():
    """The issue is a kind: every text, every number of cuts, every draw."""
    found = set()
    for cuts in range(1, 12):
        for seed in range(20):
            places, _ = corrections._cut_places(TROUBLE, cuts, random.Random(seed))
            found.update(places)
    assert found
    for place in found:
        before = TROUBLE[:place].split()[-1]
        assert TROUBLE[place].isspace(), TROUBLE[place - 9 : place + 9]
        assert before[-1] not in "([{“"
        assert before not in ("1.", "2.", "-", "(b)")
    # The control: counting every delimiter, as the source does, cuts inside them.
    ends = [i for i, character in enumerate(TROUBLE, 1) if character in DELIMITERS]
    assert sum(not TROUBLE[i : i + 1].isspace() for i in ends) > 10


def test_a_sentence_that_ends_in_a_quote_or_bracket_ends():
    full = 'He said: "Go." ' * 12 + "And more"
    for seed in range(20):
        ladder = ladders_of({"prompt": ["A?"], "response": [full]}, seed=seed)[0]
        for place, trigger in zip(ladder["cuts"], ladder["triggers"], strict=True):
            assert trigger[0].isupper() == full[:place].endswith('."')


def test_phrases_are_fifteen_each_in_two_styles():
    for phrases in (AFFIRMATIONS, TRIGGERS):
        assert len(set(phrases)) == 15
        corrections.check_phrases("phrases", phrases)
    assert all(text[0].isupper() and text.endswith(".") for text in AFFIRMATIONS)
    assert sum(text.startswith("but ") for text in TRIGGERS) == 8
    assert sum(text[0].isupper() for text in TRIGGERS) == 7


def test_a_trigger_suits_what_it_follows():
    for row in ladders_of({"prompt": [f"{i}?" for i in range(20)], "response": [BICYCLE] * 20}):
        for place, trigger in zip(row["cuts"], row["triggers"], strict=True):
            assert trigger[0].isupper() == (BICYCLE[place - 1] in ".!?")
    # Of one style alone, they serve everywhere.
    row = ladders_of(ROWS, triggers=["but no, since"])[0]
    assert row["triggers"] == ["but no, since"] * 4


def test_the_same_seed_draws_the_same_whatever_the_other_rows():
    rows = {"prompt": [f"Question {i}?" for i in range(12)], "response": [BICYCLE] * 12}
    one, same, other = ladders_of(rows), ladders_of(rows), ladders_of(rows, seed=1)
    assert one.to_list() == same.to_list()
    assert one.to_list() != other.to_list()
    alone = ladders_of({name: values[5:6] for name, values in rows.items()})
    assert alone[0] == one[5]
    assert len({row["affirmation"] for row in one}) > 4
    assert len({row["cuts"][0] for row in one}) == 2, "both steps are drawn"


def test_a_ladder_may_have_other_lengths():
    for cuts in (1, 2, 6):
        ladders = ladders_of(ROWS, cuts=cuts)
        for row in ladders:
            check_ladder(row, cuts)
        pairs = ladder_pairs(ladders)
        assert len(pairs) == 2 * (cuts + 2) * (cuts + 1) // 2
        assert max(pairs["margin"]) == 1.0


def test_a_function_is_asked_once_for_everything():
    calls = []

    def recording(prompts, prefixes):
        calls.append((prompts, prefixes))
        return ["Please ask."] * len(prompts)

    rows = ladders_of(ROWS, model=recording)
    ((prompts, prefixes),) = calls
    assert prompts == [ROWS["prompt"][0]] * 5 + [ROWS["prompt"][1]] * 5
    assert [prefix == "" for prefix in prefixes] == [True, *[False] * 4] * 2
    for row, begun in zip(rows, (prefixes[1:5], prefixes[6:]), strict=True):
        # A continuation that begins with a letter is set off by a space.
        assert row["responses"][1:5] == [prefix + " Please ask." for prefix in begun]
    with pytest.raises(ValueError, match=r"`model` was given 10 prompts and gave \['x'\]; it must give one string"):
        ladders_of(ROWS, model=lambda prompts, prefixes: ["x"])
    with pytest.raises(ValueError, match="it must give one string for each"):
        ladders_of(ROWS, model=lambda prompts, prefixes: [None] * len(prompts))


def test_other_columns_stay_on_disk_and_in_memory(tmp_path):
    features = Features(
        {"text": Value("large_string"), "prompt": Value("string"), "bad": Value("string"), "tags": List(Value("int8"))}
    )
    rows = {"text": ["t", "u"], "prompt": ROWS["prompt"], "bad": ROWS["response"], "tags": [[1], []]}
    memory = Dataset.from_dict(rows, features=features)
    memory.save_to_disk(tmp_path / "d")
    for dataset in (memory, load_from_disk(tmp_path / "d"), memory.with_format("numpy")):
        before = dataset.to_dict()
        ladders = correction_ladders(dataset, model=aligned, response_column="bad")
        assert ladders.column_names == [*features, "responses", "kinds", "cuts", "affirmation", "triggers"]
        assert {name: ladders.features[name] for name in features} == features
        pairs = ladder_pairs(ladders)
        assert {name: pairs.features[name] for name in features} == features
        assert pairs.with_format(None)["tags"][:] == [[1]] * 15 + [[]] * 15
        assert dataset.to_dict() == before
        assert dataset.info.description == ""


# -- Rows that give none -------------------------------------------------------------------------------------


def test_rows_that_give_no_ladder_are_refused_or_counted(caplog):
    rows = {
        "prompt": ["A?", None, "C?", "D?", " "],
        "response": [BICYCLE, BICYCLE, "one two, three, four.", "", COOKIES],
    }
    for keep, column, message in (
        ([1], "prompt", "row 0, column `prompt`: given None; allowed is a string with text"),
        ([0, 2], "response", "row 1, column `response`: given 'one two, three, four.', which is too short for 4 cuts"),
        ([3], "response", "row 0, column `response`: given ''; allowed is a string with text"),
        ([4], "prompt", "row 0, column `prompt`: given ' '"),
    ):
        with pytest.raises(RowError, match=message) as error:
            correction_ladders(Dataset.from_dict(rows).select(keep), model=never)
        assert error.value.column == column
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        ladders = ladders_of(rows, on_error="skip")
    assert ladders["prompt"][:] == ["A?"]
    assert "left out 4 of 5 rows, the first because of row 1, column `prompt`: given None" in caplog.text
    assert "1 ladders of 6 responses out of 5 rows, 4 left out; 0 cut after fractions" in ladders.info.description


LOOP = "mix the flour and wait, " * 12


@pytest.mark.parametrize(
    ("doubt", "direct", "more", "said"),
    [
        ("no_refusal", "Take the jar. You cannot fail.", " it is wrong.", "1 whose direct response is no refusal"),
        ("silent", "I can’t help with that.", " ", "1 with nothing behind a trigger"),
        ("loop", "I won't do that.", LOOP, "1 with a text that ends in a loop"),
        ("loop", "I'm sorry, no. " + LOOP, " it is wrong.", "1 with a text that ends in a loop"),
    ],
)
def test_rungs_that_are_not_what_they_are_taken_for_are_counted_or_left_out(doubt, direct, more, said, caplog):
    def model(prompts, prefixes):
        good = {True: "I'd rather not.", False: " it is not mine."}
        bad = {True: direct, False: more}
        return [(bad if "cookies" in q else good)[not begun] for q, begun in zip(prompts, prefixes, strict=True)]

    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        kept = ladders_of(ROWS, model=model)
    assert kept["id"][:] == [7, 8]
    assert f"of 2 ladders {said}; `leave_out` left out 0" in caplog.text
    assert kept.info.description.endswith(f"seed 0; among 2 ladders {said}, of which 0 are left out")
    assert ladder_pairs(kept).info.description == kept.info.description
    fewer = ladders_of(ROWS, model=model, leave_out=[doubt])
    assert fewer["id"][:] == [7]
    assert fewer.info.description.startswith("1 ladders of 6 responses out of 2 rows, 0 left out")
    assert fewer.info.description.endswith(f"among 2 ladders {said}, of which 1 are left out")
    # The controls: another word leaves it in, and of good rungs nothing is said.
    other = next(name for name in corrections.DOUBTS if name != doubt)
    assert ladders_of(ROWS, model=model, leave_out=[other])["id"][:] == [7, 8]
    caplog.clear()
    assert ladders_of(ROWS, model=aligned).info.description.endswith("seed 0")
    assert not caplog.text


def test_a_direct_response_must_say_something():
    def silent(prompts, prefixes):
        return [
            "" if "cookies" in prompt and not prefix else "No."
            for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]

    with pytest.raises(RowError, match="row 1, column `prompt`: the model's direct response to it is empty"):
        ladders_of(ROWS, model=silent)
    assert ladders_of(ROWS, model=silent, on_error="skip")["id"][:] == [7]


def test_nothing_left_keeps_the_columns():
    empty = ladders_of({"prompt": ["A?"], "response": ["short"]}, on_error="skip")
    some = ladders_of(ROWS).remove_columns("id")
    assert len(empty) == 0
    assert empty.features == some.features
    assert ladder_pairs(empty).features == ladder_pairs(some).features
    assert len(ladder_pairs(empty)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "`model` is None; give a Hub id, a folder, or a `Writer` of one"),
        ({"model": lambda text: text}, r"`model` takes \(text\), not two lists; `model\(prompts, pre"),
        ({"output": "x"}, "`output` keeps what a model writes, and `model` is a function; leave it out"),
        ({"leave_out": "loop"}, "`leave_out` is 'loop'; give a list of some of 'no_refusal', 'silent', 'cut', 'loop'"),
        ({"leave_out": ["loops"]}, r"`leave_out` is \['loops'\]; give a list of some of"),
        ({"cuts": 0}, "`cuts` is 0; it must be at least 1"),
        ({"on_error": "drop"}, "`on_error` is 'drop'; allowed are 'raise', 'skip'"),
        ({"affirmations": "Yes."}, "`affirmations` is 'Yes.'; give a list of phrases"),
        ({"triggers": ["but ", "However,"]}, "`triggers` is .*; give a list of phrases, none empty"),
        ({"triggers": []}, r"`triggers` is \[\]; give a list of phrases"),
        ({"prompt_column": "q"}, "has the columns `prompt`, `response`, `id`, and not `q`; name the right ones"),
    ],
)
def test_arguments_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        ladders_of(ROWS, **options)


def test_columns_in_the_way_and_other_kinds_of_data_are_refused():
    with pytest.raises(ValueError, match=r"has `cuts` already, .* use `remove_columns\(\['cuts'\]\)`"):
        ladders_of({**ROWS, "cuts": [1, 2]})
    with pytest.raises(ValueError, match="has `chosen`, `margin` already"):
        ladder_pairs(ladders_of({**ROWS, "chosen": ["a", "b"], "margin": [1, 2]}))
    with pytest.raises(ValueError, match="given a DatasetDict; allowed is a `Dataset`: take one split"):
        correction_ladders(DatasetDict({"train": Dataset.from_dict(ROWS)}), model=aligned)
    with pytest.raises(ValueError, match="given an IterableDataset; allowed is a `Dataset`"):
        correction_ladders(Dataset.from_dict(ROWS).to_iterable_dataset(), model=aligned)
    with pytest.raises(ValueError, match="and not `responses`"):
        ladder_pairs(Dataset.from_dict(ROWS))
    with pytest.raises(RowError, match=r"row 1, column `responses`: given \['b'\]; allowed is a list of at least two"):
        ladder_pairs(Dataset.from_dict({"responses": [["a", "b"], ["b"]]}))


# -- Pairs ---------------------------------------------------------------------------------------------------


def check_pairs(pairs, responses):
    """The pairs of one ladder: all 15, ordered, each response in five of them."""
    ranks = [(row["rank_chosen"], row["rank_rejected"]) for row in pairs]
    assert len(ranks) == len(set(ranks)) == 15
    assert all(better < worse for better, worse in ranks), "no pair of one response with itself, none both ways"
    order = set(ranks)
    assert all((a, d) in order for a, b in order for c, d in order if b == c), "transitive"
    assert set(Counter(rank for pair in ranks for rank in pair).items()) == {(rank, 5) for rank in range(1, 7)}
    for row in pairs:
        assert row["chosen"] == responses[row["rank_chosen"] - 1]
        assert row["rejected"] == responses[row["rank_rejected"] - 1]
        assert row["margin"] == pytest.approx((row["rank_rejected"] - row["rank_chosen"]) / 5, abs=1e-7)


@settings(max_examples=25)
@given(st.lists(padded, min_size=1, max_size=5))
def test_every_two_rungs_are_a_pair(responses):
    rows = {"prompt": [f"Question {i}?" for i in range(len(responses))], "response": responses}
    ladders = ladders_of(rows)
    pairs = ladder_pairs(ladders)
    assert len(pairs) == 15 * len(responses)
    assert pairs.features["margin"] == Value("float32")
    for i, ladder in enumerate(ladders):
        mine = pairs.select(range(15 * i, 15 * i + 15)).to_list()
        assert {row["prompt"] for row in mine} == {ladder["prompt"]}
        check_pairs(mine, ladder["responses"])


@pytest.mark.parametrize(
    "broken",
    [
        lambda pairs: pairs.pop(),
        lambda pairs: pairs.__setitem__(3, pairs[4]),
        lambda pairs: pairs[0].update(rank_chosen=2, chosen=pairs[0]["rejected"]),
        lambda pairs: pairs[2].update(rank_chosen=pairs[2]["rank_rejected"], rank_rejected=pairs[2]["rank_chosen"]),
        lambda pairs: pairs[6].update(margin=0.5),
    ],
)
def test_the_check_of_pairs_sees_what_is_wrong(broken):
    ladders = ladders_of(ROWS).select([0])
    pairs = ladder_pairs(ladders).to_list()
    check_pairs(pairs, ladders[0]["responses"])
    broken(pairs)
    with pytest.raises(AssertionError):
        check_pairs(pairs, ladders[0]["responses"])


def test_as_many_pairs_as_the_paper_has():
    each = len(list(combinations(range(6), 2)))
    assert each == 15
    assert 50_000 * each == 750_000
    rows = {"prompt": [f"{i}?" for i in range(1100)], "response": [COOKIES] * 1100}  # more than one batch of `map`
    pairs = ladder_pairs(ladders_of(rows))
    assert len(pairs) == 1100 * each
    assert pairs["prompt"][:] == [f"{i}?" for i in range(1100) for _ in range(each)]


# -- A real model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, CHAT])
def test_a_real_model_makes_the_ladders(tiny_llama, tmp_path, template):
    folder = save_tiny_causal(tiny_llama, tmp_path / "m", template)
    dataset = Dataset.from_dict(ROWS)
    output = tmp_path / "ladders.jsonl"
    ladders = correction_ladders(dataset, model=Writer(folder, max_new_tokens=10, batch_size=3), output=output)
    for row in ladders:
        check_ladder(row)
        assert "</s>" not in "".join(row["responses"])
    assert [json.loads(line) for line in output.read_text().splitlines()] == ladders.to_list()
    assert len((tmp_path / "ladders.jsonl.answers").read_text().splitlines()) == 11
    assert "2 with a text cut at the limit" in ladders.info.description  # a random model does not end
    assert (
        len(correction_ladders(dataset, model=Writer(folder, max_new_tokens=10, batch_size=3), leave_out=["cut"])) == 0
    )
    again = correction_ladders(dataset, model=Writer(folder, max_new_tokens=10, batch_size=3))
    assert again.to_list() == ladders.to_list()
    # Rank 1 is what the model says to the prompt alone.
    tokenizer, model = loaded(folder)
    prompt = ROWS["prompt"][0]
    text = f"\n\nHuman: {prompt}\n\nAssistant:"
    if template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
    ids = tokenizer(text, add_special_tokens=not template, return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=10)[0, ids.shape[1] :]
    assert ladders[0]["responses"][0] == tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd").strip()
    assert len(ladder_pairs(ladders)) == 30


def test_a_row_beyond_the_models_window_is_refused_or_skipped(tiny_llama, tmp_path):
    folder = save_tiny_causal(tiny_llama, tmp_path / "m")
    rows = {"prompt": ["A?", "B?"], "response": [COOKIES, "so and so, " * 300]}
    with pytest.raises(RowError, match=r"row 1: the prompt and what is written of the response are \d+ tokens long"):
        correction_ladders(Dataset.from_dict(rows), model=Writer(folder, max_new_tokens=3))
    ladders = correction_ladders(Dataset.from_dict(rows), model=Writer(folder, max_new_tokens=3), on_error="skip")
    assert ladders["prompt"][:] == ["A?"]
