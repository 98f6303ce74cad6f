"""Front matter edited as text: what others wrote stays byte for byte, and means what it meant."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.hub import front_matter

# Entries that a reader and a writer of YAML do not give back as they were, each with its key.
OTHERS = {
    "version": "version: 1.10",
    "length": "length: 1:30:00",
    "octal": "octal: 010",
    "hex": "hex: 0x1F",
    "language": "language: no",
    "languages": "languages:\n- en\n- no  # Norwegian\n- 'on'",
    "released": "released: 2024-01-02",
    "when": "when: 2024-01-02 03:04:05 +01:00",
    "quoted": "quoted:   'it''s'   # two spaces, on purpose",
    "double": 'double: "tab\\t and \\u00e9"',
    "folded": "folded: >-\n  one\n  two\n\n  three",
    "literal": "literal: |+\n  a: 1\n  # no comment\n",
    "flow": "flow: {b: 1, a: [x,   y]}",
    "long": "long: [one,\n  two,  # the second\n  three]",
    "deep": "deep:\n    z: 1\n    a:\n        - {k: v}\n        -   w",
    "anchor": "anchor: &it [1, 2]\nagain: *it",
    "base": "base: &base {a: 1}\nmerged:\n  <<: *base\n  b: 2",
    "null_": "null_: ~",
    "empty": "empty:",
    "big": "big: 12345678901234567890",
    "exp": "exp: 1e3",
    "under": "under: 1_000",
    "y": "y: yes",
    "? complex": "? complex\n: explained",
    "plain": "plain: several words\n  over two lines",
    "ünï": "ünï: cödé",
}
COMMENTS = ["# A comment\n", "\n", "  # indented\n", ""]
OURS: list[dict[str, Any]] = [
    {"tags": ["a", "b"]},
    {"tags": "legend", "library_name": "legend_hf"},
    {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}], "size": 3},
    {"licence": "no", "tags": []},
]


@settings(max_examples=400, deadline=None)
@given(
    order=st.permutations(sorted(OTHERS)),
    count=st.integers(0, len(OTHERS)),
    comments=st.lists(st.sampled_from(COMMENTS), min_size=30, max_size=30),
    ours=st.sampled_from(OURS),
    there=st.booleans(),
    place=st.integers(0, 30),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_others_keys_stay_byte_for_byte(order, count, comments, ours, there, place, newline):
    """Whatever stands around them, whether ours are there already, and wherever."""
    entries = [OTHERS[key] for key in order[:count]]
    if there:
        entries.insert(place % (count + 1), "tags: [old]  # ours\nsize: 1")
    text = "".join(f"{comments[i]}{entry}\n" for i, entry in enumerate(entries)).removesuffix("\n")
    text = text.replace("\n", newline)
    edit = front_matter.edited(text, ours, newline=newline)
    for key in order[:count]:
        assert OTHERS[key].replace("\n", newline) in edit
    # What is not ours is all there, in its order.
    kept = re.sub(r"tags: \[old\]  # ours\r?\nsize: 1", "", text)
    rest = edit
    for line in filter(None, (line.strip() for line in kept.splitlines())):
        assert line in rest
        rest = rest[rest.index(line) + len(line) :]
    assert {k: front_matter.as_written(edit)[k] for k in ours} == ours
    assert front_matter.edited(edit, ours, newline=newline) == edit
    # The control: a writer of YAML changes them.
    if count == len(OTHERS):
        assert yaml.safe_dump(yaml.safe_load(edit), sort_keys=False) != edit


@pytest.mark.parametrize("text", ["{license: mit, tags: [old], v: 1.10}", "{license: mit,\n  tags: [old],\n v: 1.10}"])
def test_a_mapping_in_braces_is_opened(text: str):
    edit = front_matter.edited(text, {"tags": ["new"]})
    assert front_matter.as_written(edit) == {"license": "mit", "tags": ["new"], "v": "1.10"}
    assert front_matter.edited(text, {"license": "mit"}) == text


def test_a_key_that_stands_twice_or_deeper_is_set_once():
    edit = front_matter.edited("  tags: [a]\n  v: 1.10\n  tags: [b]", {"tags": ["c"], "new": {"x": "no"}})
    assert edit.count("tags:") == 1
    assert front_matter.as_written(edit) == {"tags": ["c"], "v": "1.10", "new": {"x": "no"}}


def test_a_key_that_others_point_into_is_not_set():
    with pytest.raises(ValueError, match="has keys that point into `tags`, which must change; write their values out"):
        front_matter.edited("tags: &t [a]\nmine: *t", {"tags": ["b"]})


def test_values_are_read_as_they_are_written():
    read = front_matter.as_written("\n".join(OTHERS.values()))
    for key, value in {
        "version": "1.10", "length": "1:30:00", "octal": "010", "language": "no", "released": "2024-01-02", "y": "yes",
    }.items():  # fmt: skip
        assert read[key] == value
        # The control: Python's reader does not.
        assert yaml.safe_load(OTHERS[key]) != {key: value}
    plain = "a: true\nb: 3\nc: 0.5\nd: null\ne: -1.25"
    assert front_matter.as_written(plain) == yaml.safe_load(plain)
