"""Text in a file is text in the row, whatever it looks like; a name of a file is a name; a bad file is named by its line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legend_hf.hub.rows import check_splits, load_rows, note_sources, save_rows, sources_of

WORDS = [
    "null",
    "NA",
    "nan",
    "N/A",
    "None",
    "",
    "2024-01-02",
    "2024-01-02T03:04:05",
    "12:30:00",
    "007",
    "1e5",
    "1",
    "1.0",
]
WORDS += ["true", "False", "inf", "-", "[1]", '{"a": 1}', "1,5", "é\u2028x", " x ", '"', "a\nb", "#", "=1"]


def as_csv(rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


WRITERS = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "json": lambda rows: json.dumps(rows, indent=1),
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows, "\t"),
}
texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")))


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": texts, "chosen": texts}), min_size=1, max_size=8), n=st.integers()
)
def test_text_in_a_file_is_text_in_the_row(kind, rows, n, tmp_path):
    file = tmp_path / f"rows{abs(n)}.{kind}"
    file.write_bytes(WRITERS[kind](rows).encode())
    got = load_rows(file, split="train")
    assert got.to_list() == rows
    assert {str(feature.dtype) for feature in got.features.values()} == {"string"}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("word", WORDS)
def test_a_column_of_one_word_is_text_too(kind, word, tmp_path):
    rows = [{"prompt": word, "chosen": "x"}] * 3
    (tmp_path / f"rows.{kind}").write_bytes(WRITERS[kind](rows).encode())
    assert load_rows(tmp_path / f"rows.{kind}", split="train").to_list() == rows
    # In a folder that `datasets` would read by itself.
    assert load_rows(tmp_path, split="train").to_list() == rows


def test_the_readers_of_datasets_would_change_the_words(tmp_path):
    """The control."""
    rows = [{"prompt": "2024-01-02", "chosen": "007"}, {"prompt": "2024-01-03", "chosen": "NA"}]
    for kind in ("jsonl", "csv"):
        (tmp_path / f"rows.{kind}").write_text(WRITERS[kind](rows))
        loader = {"jsonl": "json", "csv": "csv"}[kind]
        assert load_dataset(loader, data_files=str(tmp_path / f"rows.{kind}"), split="train").to_list() != rows


def test_what_is_no_text_in_json_stays_what_it_is(tmp_path):
    turns = [{"role": "user", "content": "null"}, {"role": "assistant", "content": "2024-01-02", "name": "007"}]
    rows = [
        {"n": 1, "x": 0.5, "b": True, "none": None, "some": None, "turns": turns, "mixed": "null"},
        {"n": -2, "x": 1.0, "b": False, "none": None, "some": "x", "turns": turns[:1], "mixed": turns[:1]},
        {"n": 3, "x": 2.5, "b": True, "none": None, "some": "NA", "turns": [], "mixed": "007"},
    ]
    (tmp_path / "rows.jsonl").write_text(WRITERS["jsonl"](rows))
    got = load_rows(tmp_path / "rows.jsonl", split="train").to_list()
    assert got == rows
    assert [type(row["n"]) for row in got] == [int] * 3


def test_columns_that_this_library_writes_as_numbers_are_numbers_in_csv(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,margin,safer_response_id,marks,id\n7,0.5,1,3,007\n8,-0.25,0,4,008\n")
    got = load_rows(tmp_path / "rows.csv", split="train", numbers=["marks"])
    expected = {"prompt": ["7", "8"], "margin": [0.5, -0.25], "safer_response_id": [1, 0], "marks": [3.0, 4.0]}
    assert got[:] == {**expected, "id": ["007", "008"]}


@pytest.mark.parametrize("name", ["data[1]", "a*b", "what?", "[!x]", "{a,b}", "a b", "é", "**"])
@pytest.mark.parametrize("kind", [*WRITERS, "parquet"])
def test_a_name_is_a_name_and_no_pattern(kind, name, tmp_path):
    rows = [{"prompt": name, "chosen": "x"}]
    folder = tmp_path / f"folder {name}"
    folder.mkdir()
    for where, some in (
        (folder / f"{name}.{kind}", rows),
        (tmp_path / f"data1.{kind}", [{"prompt": "another", "chosen": "y"}]),
    ):
        if kind == "parquet":
            Dataset.from_list(some).to_parquet(where)
        else:
            where.write_text(WRITERS[kind](some), encoding="utf-8")
    assert load_rows(folder / f"{name}.{kind}", split="train").to_list() == rows
    assert load_rows(folder, split="train").to_list() == rows
    save_rows({"train": Dataset.from_list(rows)}, folder / "out")
    assert load_rows(folder / "out", split="train").to_list() == rows


def test_a_file_that_changes_is_read_anew(tmp_path):
    for word in ("a", "bb"):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"a": word}))
        assert load_rows(tmp_path / "rows.jsonl", split="train")[0] == {"a": word}
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "x"}).encode())
    assert load_rows(tmp_path / "rows.jsonl", split="train[:1]")[0] == {"a": "x"}, "a byte order mark is no text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl' is empty"),
        ("a.json", b" \n", "a.json' is empty"),
        ("a.csv", b"prompt,chosen\n", "a.csv' is empty"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n', r"a.jsonl' is not UTF-8: line 2 holds the byte 0xe9; .*iconv"),
        ("a.csv", "a,b\n1,é\n".encode("cp1252"), "a.csv' is not UTF-8: line 2"),
        ("a.tsv", "a\tb\n".encode("utf-16"), "a.tsv' is not UTF-8: line 1"),
        ("a.json", b"\x89PNG\r\n\x1a\n\0", "a.json' is not UTF-8: line 1"),
        ("a.csv", b"a,b\n\0,1\n", "a.csv' is no text: line 2 holds a zero byte"),
        ("a.parquet", b"nothing", "a.parquet' cannot be read"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl' cannot be read: line 2 is no JSON|line 3 is no JSON"),
        ("a.jsonl", b'{"a": 1}\n"x"\n', "a.jsonl' cannot be read: line 2 holds 'x', and no row"),
        ("a.json", b"[1, 2]", "a.json' cannot be read: row 0 is '1'"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.jsonl", b'{"a": %d}' % (1 << 80), "column 'a'"),
        ("a.csv", b"a,b\n1,2\n3\n", "the row that ends in line 3 has 1 values, and there are 2 columns"),
        ("a.csv", b'a,b\n"1,2\n', "a.csv' cannot be read: line 2"),
        ("a.csv", b"a,a\n1,2\n", "two columns have the same name"),
        ("a.txt", b"x", r"ends in '.txt'; allowed are .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["train", "a.b", "1", "no", "stage_1", "é", "all_2", "small.all", "all", "All", "a-b"])
def test_what_is_refused_as_a_split_is_what_cannot_be_loaded(name, tmp_path):
    import yaml
    from datasets import load_dataset

    rows = Dataset.from_list([{"a": "x"}])
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    files = [{"split": name, "path": f"data/{name}-*"}]
    front = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, allow_unicode=True)
    (tmp_path / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    try:
        loaded = list(load_dataset(str(tmp_path))) == [name]
    except ValueError:
        loaded = False
    assert loaded == (name not in ("all", "All", "a-b"))
    if loaded:
        check_splits([name])
    else:
        with pytest.raises(ValueError, match="could not be loaded again"):
            check_splits([name])


@pytest.mark.parametrize("name", ["all", "All", "a-b", "train 1", ""])
def test_a_split_that_could_not_be_loaded_again_is_said_before_the_work(name, tmp_path):
    rows = Dataset.from_list([{"a": "x"}])
    with pytest.raises(ValueError, match="could not be loaded again; rename it"):
        check_splits([name])
    with pytest.raises(ValueError, match="could not be loaded again"):
        save_rows({name: rows}, tmp_path / "out")
    if name in ("all", "a-b"):
        DatasetDict({name: rows}).save_to_disk(tmp_path / "saved")
        assert load_rows(tmp_path / "saved")[name].to_list() == [{"a": "x"}]
        assert load_rows(tmp_path / "saved", split=name).split == "train"


def test_sources_go_from_folder_to_folder_and_file(tmp_path):
    known = [{"repo_id": "user/Mine", "revision": "a" * 40}]
    save_rows({"train": Dataset.from_list([{"a": "x"}])}, tmp_path / "one", sources=known)
    assert sources_of(tmp_path / "one") == known
    (file,) = (tmp_path / "one" / "data").iterdir()
    assert sources_of(file) == known, "a file of the folder is of the folder"
    (tmp_path / "rows.jsonl").write_text("{}")
    assert sources_of(tmp_path / "rows.jsonl") is None, "nobody knows, which is not: from nowhere"
    note_sources(tmp_path / "rows.jsonl", known)
    assert sources_of(tmp_path / "rows.jsonl") == known
    assert sources_of("user/there-is-none") == [{"repo_id": "user/there-is-none", "revision": None}]
