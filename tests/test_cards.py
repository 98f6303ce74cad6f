"""Cards: what is said is true, what people wrote stays, and no string of a stranger breaks out."""

from __future__ import annotations

import copy
import html
import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.hub import cards
from legend_hf.hub.verdict import verdict_on

HOSTILE = (
    "x | y `z` <script>alert(1)</script> --> <!-- legend_hf:end -->\n---\n| a |\n# h [l](javascript:1) $model &amp; {{"
)

READER = {
    "model": "user/model",
    "revision": "a" * 40,
    "model_sha256": None,
    "model_type": "llama",
    "d_model": 64,
    "n_layers": 4,
    "tokenizer_sha256": "b" * 64,
    "chat_template_sha256": None,
    "template": "dialogue",
    "joiner": "",
    "fit_joiner": None,
    "eos": "none",
    "layer": 3,
    "pooling": "mean",
    "max_length": 2048,
    "dtype": "float32",
    "date": "2025-01-01",
    "weights_sha256": "c" * 64,
    "tensors_sha256": None,
    "config_sha256": "e" * 64,
    "code_sha256": None,
}
FIT = {
    "estimator": "mean_difference",
    "pairs": 640,
    "prompts": 600,
    "skipped": 2,
    "accuracy": 0.731,
    "accuracy_interval": (0.70, 0.76),
    "length_accuracy": 0.62,
    "length_accuracy_interval": (0.59, 0.65),
    "held_out": "one prompt in five, by hash",
    "seed": 0,
    "pairs_source": "user/pairs@main",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
DIRECTION: dict[str, Any] = {
    "repo_id": "user/direction",
    "library": "legend_hf 0.1.0",
    "reader": READER,
    "calibration": {"kind": "unit", "scale": 7.25},
    "facts": FIT,
}


def row(split: str, column: str = "margin", **changes: Any) -> dict[str, Any]:
    numbers = {"mean": 0.25, "sd": 0.5, "q05": -0.75, "q50": 0.125, "q95": 1.0, "positive": 0.7}
    return {"split": split, "column": column, "rows": 100, "skipped": 3, **numbers, **changes}


def dataset_facts(**changes: Any) -> dict[str, Any]:
    info = {"features": [], "splits": [{"name": "train", "num_bytes": 1, "num_examples": 100}]}
    config = {
        "directions": {"": {**DIRECTION, "revision": "c" * 40}},
        "statistics": [row("train")],
        "scales": {"": "unit, scale 7.25"},
        "kept_splits": [],
    }
    facts = {
        "repo_id": "user/annotated",
        "library": "legend_hf 0.1.0",
        "sources": [],
        "metadata": {"dataset_info": info, "configs": [{"config_name": "default", "data_files": []}]},
        "configs": {"default": config},
    }
    return copy.deepcopy({**facts, **changes})


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(re.split(r"---\r?\n", card)[1])


def tables(card: str) -> Iterator[list[str]]:
    """The card's tables, as lists of lines."""
    block: list[str] = []
    for line in [*card.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield block
            block = []


def assert_whole(card: str) -> None:
    """One section, well-formed tables, front matter that is YAML, no HTML but ours."""
    assert card.count("<!-- legend_hf:begin -->") == card.count("<!-- legend_hf:end -->") == 1
    for table in tables(card):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    assert set(re.findall(r"<([A-Za-z]\w*)", card)) <= {"code"}
    assert card.count("```") == 2
    assert isinstance(front(card), dict)


def test_direction_card_says_what_the_artifact_is():
    card = cards.direction_card(DIRECTION)
    for said in (
        'LegendMarginFn("user/direction")',
        "[`user/model`](https://huggingface.co/user/model) at `" + "a" * 40,
        "0.731 (95 % interval 0.700 to 0.760)",
        "0.620 (95 % interval 0.590 to 0.650)",
        "divided by 7.25",
        "https://huggingface.co/papers/2406.08124",
        "torch 2.13.0, transformers 5.23.0",
        "One unit vector of 64 numbers",
    ):
        assert said in card, said
    assert front(card) == {
        "base_model": "user/model",
        "datasets": ["user/pairs"],
        "library_name": "legend-hf",
        "pipeline_tag": "text-classification",
        "tags": ["legend", "direction", "safety", "preference", "reward-model", "representation-engineering"],
    }
    assert_whole(card)


def test_a_direction_card_shows_all_of_its_reader():
    """A field that is added to the Reader is shown, or this fails."""
    from legend_hf.reading.reader import Reader

    shown = {key for key, _ in cards._READER} | {"d_model", "n_layers"}  # these stand in a sentence
    # Most models are loaded as they are, of which nothing is written.
    assert shown == {f.name for f in fields(Reader)} == READER.keys() | {"loading"}
    loading = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    loaded = cards.direction_card({**DIRECTION, "reader": {**READER, "loading": loading}})
    said = '| loaded from, or quantised by | <code>{"load_in_8bit": true, "quant_method": "bitsandbytes"}</code> |'
    assert said in html.unescape(loaded)
    card = cards.direction_card(DIRECTION)
    assert "loaded from" not in card
    for name, value in READER.items():
        assert value is None or str(value) in card, name
    assert "| sha256 of the weights, in whatever files | not recorded |" in card
    assert "| sha256 of the model's own code | none was run |" in card


def test_unknown_facts_are_said_to_be_unknown_and_missing_ones_are_an_error():
    unknown = {**DIRECTION, "repo_id": None, "facts": dict.fromkeys(FIT)}
    card = cards.direction_card(unknown)
    assert card.count("not recorded") >= 8
    assert "None" not in card
    for group in ("reader", "calibration", "facts"):
        for key in DIRECTION[group]:
            holed = {**DIRECTION, group: {k: v for k, v in DIRECTION[group].items() if k != key}}
            with pytest.raises(KeyError, match=key):
                cards.direction_card(holed)


def test_a_direction_on_a_model_folder_says_how_to_give_the_folder():
    reader = {**READER, "model": None, "revision": None, "model_sha256": "d" * 64}
    card = cards.direction_card({**DIRECTION, "reader": reader})
    assert 'LegendMarginFn("user/direction", model="path/to/its/model")' in card
    assert "d" * 64 in card
    assert "base_model" not in front(card)
    assert 'model="path' not in cards.direction_card(DIRECTION)


body_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300).filter(
    lambda text: "legend_hf:" not in text and "---" not in text
)


@settings(max_examples=200, deadline=None)
@given(before=body_text, after=body_text, newline=st.sampled_from(["\n", "\r\n"]))
def test_what_people_wrote_stays_byte_for_byte(before: str, after: str, newline: str):
    first = cards.direction_card(DIRECTION, "# mine" + newline + before)
    head, section = first.split("<!-- legend_hf:begin -->")
    edited = head + before + "<!-- legend_hf:begin -->" + section + after
    second = cards.direction_card({**DIRECTION, "calibration": {"kind": "raw", "scale": 1.0}}, edited)

    def outside(card: str) -> tuple[str, str]:
        body = re.split(r"(?:\A|\n)---\r?\n", card, maxsplit=2)[2]
        return body[: body.index("<!-- legend_hf:begin -->")], body[body.index("<!-- legend_hf:end -->") :]

    assert outside(second) == outside(edited)
    assert "divided by 7.25" in edited
    assert "divided by 7.25" not in second
    # The control: a card written without looking at the one that is there loses it.
    assert outside(cards.direction_card(DIRECTION)) != outside(edited)


@pytest.mark.parametrize(
    "existing", [None, "", "# Mine\n", "---\n---\n", "---\nlicense: mit\n---\n# Mine\r\n", "\ufeff---\na: 1\n---\nx"]
)
def test_writing_again_changes_nothing(existing: str | None):
    first = cards.direction_card(DIRECTION, existing)
    assert cards.direction_card(DIRECTION, first) == first
    first = cards.dataset_card(dataset_facts(), existing)
    assert cards.dataset_card(dataset_facts(), first) == first
    changed = dataset_facts()
    changed["configs"]["default"]["statistics"][0]["mean"] = 0.5
    assert cards.dataset_card(changed, first) != first


def test_front_matter_is_merged_not_replaced():
    existing = (
        "---\nlicense: cc-by-nc-4.0\ntags:\n- mine\n- legend\nlibrary_name: other\nbase_model: old/model\n"
        "extra: {deep: [1, 2]}\nlanguage: en\n---\n# Mine\n"
    )
    merged = front(cards.direction_card(DIRECTION, existing))
    assert merged["license"] == "cc-by-nc-4.0"
    assert merged["tags"][:2] == ["mine", "legend"]
    assert merged["tags"].count("legend") == 1
    assert "safety" in merged["tags"]
    assert merged["extra"] == {"deep": [1, 2]}
    assert merged["library_name"] == "legend-hf"
    assert merged["base_model"] == "user/model"


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\na: [1\n---\n", "front matter is not YAML .* correct it by hand"),
        ("---\n- a\n---\n", "front matter is a list"),
        ("<!-- legend_hf:begin -->\nours", "it has 1 and 0: restore the line"),
        ("<!-- legend_hf:end --><!-- legend_hf:begin -->", "it has 1 and 1: restore"),
    ],
)
def test_a_readme_that_cannot_be_understood_is_refused(existing: str, message: str):
    with pytest.raises(ValueError, match=message):
        cards.direction_card(DIRECTION, existing)


def hostile(value: Any, text: str) -> Any:
    """The same facts with every string replaced."""
    if isinstance(value, dict):
        return {key: hostile(v, text) for key, v in value.items()}
    return text if isinstance(value, str) else value


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.just(HOSTILE), st.text(max_size=80), st.text("|`<>!-\\*_[]()#&$\n\r\u2028\u202e\x00\ud800 ", max_size=40)
    )
)
def test_no_string_breaks_out_of_a_direction_card(text: str):
    card = cards.direction_card(hostile(DIRECTION, text))
    assert_whole(card)
    card.encode("utf-8")
    assert set(front(card)) <= {"library_name", "pipeline_tag", "tags", "base_model", "datasets"}
    assert cards.direction_card(hostile(DIRECTION, text), card) == card


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.just(HOSTILE), st.text(max_size=80)))
def test_no_string_breaks_out_of_a_dataset_card(text: str):
    facts = dataset_facts(repo_id=text, library=text, sources=[{"repo_id": text, "revision": text}])
    config = facts["configs"]["default"]
    config["directions"] = {text: hostile({**DIRECTION, "revision": "x"}, text)}
    config["scales"] = {text: text}
    assert_whole(cards.dataset_card(facts))


ADDRESSES = [
    "https://evil.example/x", "HTTP://evil.example", "ftp://evil.example", "www.evil.example", "see (www.evil.example)",
    "me@evil.example", "a.b+c@evil.example.org", "mailto:me@evil.example", "@somebody", "say @somebody", "<https://e.example>",
    "[l](https://evil.example)", "[l]: https://evil.example", "//evil.example", "x https://a.example y www.b.example",
]  # fmt: skip


def live(card: str) -> list[str]:
    """What Markdown, GitHub's kind, would make links of, after entities are decoded, but for our own links."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", card.split("---\n", 2)[-1], flags=re.DOTALL)
    text = re.sub(r"\]\(https://huggingface\.co/[\w./-]*\)", "", text)
    decoded = html.unescape(text)
    return re.findall(r"(?i)(?:https?|ftp)://\S+|\bwww\.\S+|[\w.+-]+@[\w-]+\.\w+|(?<!\S)@\w+", decoded) + re.findall(
        r"\]\(|\]: ", text
    )


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_text_of_a_stranger_becomes_a_link(address: str):
    assert live(cards.direction_card(hostile(DIRECTION, address))) == []
    facts = dataset_facts(repo_id=address, library=address, sources=[{"repo_id": address, "revision": address}])
    config = facts["configs"]["default"]
    config["directions"] = {address: hostile({**DIRECTION, "revision": "x"}, address)}
    config["scales"] = {address: address}
    config["statistics"] = [row(address, address)]
    card = cards.dataset_card(facts)
    assert live(card) == []
    assert live(f"{cards.escaped(address)} and {cards.as_code(address)}") == []
    # The control, and what is shown is what was written.
    assert live(card + address) != [] or address == "//evil.example"
    assert html.unescape(cards.escaped(address)).replace("\u2060", "") == address


def test_no_concept_breaks_out_of_a_card():
    """A loaded artifact's concept is plain words; a card escapes it all the same."""
    spoken = {**DIRECTION, "facts": {**FIT, "concept": HOSTILE, "poles": (HOSTILE, f"{HOSTILE}!")}}
    assert_whole(cards.direction_card(spoken))
    facts = dataset_facts()
    facts["configs"]["default"]["directions"][""] |= {"facts": spoken["facts"]}
    card = cards.dataset_card(facts)
    assert_whole(card)
    assert cards.dataset_card(facts, card) == card


def test_the_check_for_breaking_out_finds_a_string_that_does():
    card = cards.direction_card(DIRECTION)
    for spoilt in (
        card.replace("mean_difference", HOSTILE),
        card.replace("mean_difference", "a | b"),
        card.replace("mean_difference", "<b>"),
        card.replace("mean_difference", "\n```\n"),
    ):
        with pytest.raises(AssertionError):
            assert_whole(spoilt)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"pairs": 0}, "fitted on 0 pairs"),
        ({"prompts": 0}, "fitted on 0 prompts"),
        ({"accuracy": float("nan")}, "no share between 0 and 1"),
        ({"accuracy": 1.5}, "no share between 0 and 1"),
        ({"accuracy": 0.4, "accuracy_interval": (0.3, 0.5)}, "under one half"),
        ({"accuracy_interval": (0.49, 0.9)}, "down to chance"),
        ({"length_accuracy": 0.8}, "no better than the length"),
    ],
)
def test_implausible_facts_are_doubted(changes: dict[str, Any], doubt: str):
    assert any(doubt in d for d in verdict_on({**FIT, **changes}).doubts)
    assert "**Doubtful:** " in cards.direction_card({**DIRECTION, "facts": {**FIT, **changes}})


def test_plausible_and_unknown_facts_are_not_doubted():
    assert verdict_on(FIT).doubts == ()
    assert verdict_on(dict.fromkeys(FIT)).doubts == ()
    assert "Doubtful" not in cards.direction_card(DIRECTION)


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**9, "n>1B")],
)
def test_size_category(rows: int, category: str):
    facts = dataset_facts()
    facts["metadata"]["dataset_info"]["splits"][0]["num_examples"] = rows
    assert front(cards.dataset_card(facts))["size_categories"] == [category]


def test_dataset_card_says_where_margins_come_from_and_how_they_lie():
    card = cards.dataset_card(dataset_facts(sources=[{"repo_id": "user/pairs", "revision": "e" * 40}]))
    for said in (
        "[`user/direction`](https://huggingface.co/user/direction) | `" + "c" * 40,
        "[`user/pairs`](https://huggingface.co/datasets/user/pairs), commit `" + "e" * 40,
        "| `train` | `margin` | 100 | 3 | 0.25 | 0.5 | -0.75 | 0.125 | 1 | 70.0 % |",
        "unit, scale 7.25",
        "Content warning",
        "legend_hf 0.1.0",
        f'Direction.from_pretrained("user/direction", revision="{"c" * 40}")',
        f'load_dataset("user/pairs", revision="{"e" * 40}")',
    ):
        assert said in card, said
    metadata = front(card)
    assert metadata["annotations_creators"] == ["machine-generated"]
    assert metadata["source_datasets"] == ["user/pairs"], "an id, which the Hub makes a link of"
    assert {"legend", "trl", "preference"} <= set(metadata["tags"])
    assert_whole(card)


SOURCE_CARD = """---
license: mit
license_link: LICENSE.md
language:
- en
- fr
tags: [human-feedback, legend]
annotations_creators: [crowdsourced]
dataset_info: {features: []}
configs: [{config_name: default, data_files: "*.jsonl"}]
extra_gated_prompt: agree
nested: {a: {b: c}}
---
# Their dataset

<!-- legend_hf:begin -->
Their margins.
<!-- legend_hf:end -->
"""


def test_the_source_passes_on_its_licence_and_its_text_once():
    facts = dataset_facts(sources=[{"repo_id": "user/pairs", "revision": None}])
    card = cards.dataset_card(facts, None, {"user/pairs": SOURCE_CARD})
    metadata = front(card)
    assert (metadata["license"], metadata["license_link"], metadata["language"]) == ("mit", "LICENSE.md", ["en", "fr"])
    assert metadata["tags"][:2] == ["human-feedback", "legend"]
    assert metadata["annotations_creators"] == ["crowdsourced", "machine-generated"]
    assert metadata["dataset_info"] == facts["metadata"]["dataset_info"]
    assert metadata["configs"] == facts["metadata"]["configs"]
    assert not {"extra_gated_prompt", "nested"} & set(metadata)
    assert card.index("<!-- legend_hf:end -->") < card.index("# Their dataset") < card.index("Their margins.")
    assert_whole(card)

    edited = card.replace("# Their dataset", "# Their dataset, which I know well")
    assert cards.dataset_card(facts, edited, {"user/pairs": SOURCE_CARD}) == edited
    assert "# Their dataset" not in cards.dataset_card(facts, None, None)


def source_cards(**heads: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Sources and their cards, from what their front matter says; None: a repository without a card."""
    ids = {f"user/{name}": f"---\n{head}\n---\n# {name}\n" if head else "" for name, head in heads.items()}
    return [{"repo_id": repo_id, "revision": None} for repo_id in ids], ids


def licensed(existing: str | None, *, others: bool = False, **heads: str) -> dict[str, Any]:
    """The front matter of a card over sources with these heads, beside a configuration that stays, or not."""
    sources, texts = source_cards(**heads)
    facts = dataset_facts(sources=sources)
    if others:
        facts["metadata"]["configs"].append({"config_name": "other", "data_files": []})
    card = cards.dataset_card(facts, existing, texts)
    assert cards.dataset_card(facts, card, texts) == card
    return front(card)


MIT, NC, MINE = "license: mit", "license: cc-by-nc-4.0", "---\nlicense: apache-2.0\n---\nMine.\n"


@pytest.mark.parametrize(
    ("existing", "others", "heads", "licence"),
    [
        (None, False, [MIT], "mit"),
        (None, False, [NC], "cc-by-nc-4.0"),
        (None, False, [""], None),
        (None, False, [MIT, MIT], "mit"),
        (None, False, [MIT, NC], ["mit", "cc-by-nc-4.0"]),
        (None, False, ["license: [mit, cc-by-nc-4.0]"], ["mit", "cc-by-nc-4.0"]),
        (None, False, [MIT, ""], ["mit", "unknown"]),
        (None, False, [MIT, "tags: [a]"], ["mit", "unknown"]),
        (MINE, False, [MIT], ["apache-2.0", "mit"]),
        (MINE, True, [NC], ["apache-2.0", "cc-by-nc-4.0"]),
        (MINE, True, [""], ["apache-2.0", "unknown"]),
        (MINE, False, [""], "apache-2.0"),
        (MINE, True, [], "apache-2.0"),
        ("# Bare\n", True, [NC], ["unknown", "cc-by-nc-4.0"]),
        ("# Bare\n", True, [""], None),
        ("---\nlicense: MIT\n---\n", True, [MIT], "MIT"),
        ("---\nlicense: [a, b]\n---\n", True, ["license: a"], ["a", "b"]),
    ],
)
def test_every_licence_is_said(existing: str | None, others: bool, heads: list[str], licence: Any):
    """What is under several licences says all of them, "unknown" being one; none is taken for another's."""
    found = licensed(existing, others=others, **{f"s{i}": head for i, head in enumerate(heads)})
    assert found.get("license") == licence


OTHER = "license: other\nlicense_name: {0}\nlicense_link: https://example.org/{0}"


def test_a_licence_with_a_name_of_its_own_keeps_it_and_two_are_refused():
    found = licensed(MINE, a=OTHER.format("ours"))
    assert found["license"] == ["apache-2.0", "other"]
    assert (found["license_name"], found["license_link"]) == ("ours", "https://example.org/ours")
    with pytest.raises(ValueError, match="`license_name` of the card is 'ours' and that of the source `user/b` is 'x'"):
        licensed(None, a=OTHER.format("ours"), b=OTHER.format("x"))
    with pytest.raises(ValueError, match="a card has room for one, so push to another repository"):
        licensed(f"---\n{OTHER.format('ours')}\n---\n", a=OTHER.format("x"))


def test_each_sources_licence_stands_beside_it():
    sources, texts = source_cards(a=MIT, b=OTHER.format("ours"), c="")
    card = cards.dataset_card(dataset_facts(sources=sources), None, texts)
    for said in ("licence `mit`.", "licence `other`, `ours`, `https://example.org/ours`.", "licence not stated."):
        assert said in card
    assert "(It has no text.)" not in card
    assert_whole(card)


@pytest.mark.parametrize("written", ["no", "[en, no]", '\n- en\n- no\n- "yes"', "'no'", "on"])
def test_languages_that_yaml_reads_as_booleans_are_languages(written: str):
    """Inherited they are strings for every reader of YAML; in a card that is there they stay as they are."""
    expected = cards._listed(yaml.load(written, yaml.BaseLoader))
    inherited = licensed(None, a=f"language: {written}")["language"]
    assert cards._listed(inherited) == expected
    for existing in (f"---\nlanguage: {written}\n---\n", f"---\r\nlanguage: {written}\r\n---\r\n"):
        card = cards.dataset_card(dataset_facts(), existing)
        assert f"language: {written}".encode() in card.encode()
        united = licensed(existing, a="language: fr")["language"]
        assert united == [*expected, "fr"]


def test_a_source_card_without_readable_metadata_still_passes_on_its_text(caplog: pytest.LogCaptureFixture):
    facts = dataset_facts(sources=[{"repo_id": "user/pairs", "revision": None}])
    with caplog.at_level(logging.WARNING):
        card = cards.dataset_card(facts, None, {"user/pairs": "---\na: [1\n---\nTheir text."})
    assert "took no licence, language or tags from the card of `user/pairs`" in caplog.text
    assert "Their text." in card


def test_each_config_keeps_its_own_part():
    first = cards.dataset_card(dataset_facts())
    facts = dataset_facts()
    facts["configs"] = {"other": facts["configs"].pop("default")}
    facts["configs"]["other"]["statistics"] = [row("train", mean=0.875)]
    both = cards.dataset_card(facts, first)
    assert "### How `default` was annotated" in both
    assert "### How `other` was annotated" in both
    assert "| 0.25 |" in both
    assert "| 0.875 |" in both
    assert cards.dataset_card(dataset_facts(), both) == both


def test_splits_that_stay_keep_their_rows_unless_the_direction_is_another():
    facts = dataset_facts()
    facts["configs"]["default"]["statistics"] = [row("train"), row("test", mean=0.375)]
    first = cards.dataset_card(facts)
    facts["configs"]["default"] |= {"statistics": [row("train", mean=0.5)], "kept_splits": ["test"]}
    second = cards.dataset_card(facts, first)
    assert "| `test` | `margin` | 100 | 3 | 0.375 |" in second
    assert "| `train` | `margin` | 100 | 3 | 0.5 |" in second
    assert "| 0.25 |" not in second

    facts["configs"]["default"]["directions"][""]["revision"] = "f" * 40
    with pytest.raises(ValueError, match=r"splits \['test'\] that were annotated with another direction"):
        cards.dataset_card(facts, first)


def test_templates_are_found_in_the_package_or_the_checkout(tmp_path, monkeypatch: pytest.MonkeyPatch):
    cards._template.cache_clear()
    assert "## Limitations" in cards._template("direction.md")
    (tmp_path / "dataset_cards").mkdir()
    (tmp_path / "dataset_cards" / "direction.md").write_text("shipped")
    monkeypatch.setattr(cards, "files", lambda package: tmp_path)
    cards._template.cache_clear()
    assert cards._template("direction.md") == "shipped"
    cards._template.cache_clear()
