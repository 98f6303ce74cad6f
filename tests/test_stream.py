"""Streams into pieces: equal to a whole run, gone on with where they were stopped, in memory that does not grow."""

from __future__ import annotations

import glob
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import pair_rows
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, NamedSplit, Value, load_dataset

from legend_hf import Direction, LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.margins.store import open_store
from legend_hf.margins.transform import Transform
from legend_hf.scale import annotate_stream
from legend_hf.scale.pieces import Pieces

ROWS = 47


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    return fit_direction(pair_rows(), model=str(tiny_llama))


@pytest.fixture(scope="module")
def rows() -> Dataset:
    made = pair_rows([f"thing {i}" for i in range(ROWS)])
    labelled = Dataset.from_list([{**row, "kind": i % 2} for i, row in enumerate(made)])
    return labelled.cast_column("kind", ClassLabel(names=["mild", "milder"]))


@pytest.fixture(scope="module")
def files(rows, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("source")
    for i, (first, end) in enumerate([(0, 20), (20, 31), (31, ROWS)]):
        rows.select(range(first, end)).to_parquet(folder / f"{i}.parquet", batch_size=7)
    return sorted(glob.glob(f"{folder}/*"))


@pytest.fixture(scope="module")
def whole(direction, rows) -> Dataset:
    return annotate(rows, LegendMarginFn(direction))


def same(done: Dataset, whole: Dataset) -> bool:
    if len(done) != len(whole) or done.features != whole.features:
        return False
    margins = np.allclose(done["margin_raw"], whole["margin_raw"], rtol=0, atol=1e-4 * np.std(whole["margin_raw"]))
    others = ("prompt", "chosen", "kind", "margin_direction")
    return margins and all(done[name][:] == whole[name][:] for name in others)


def loaded(output: Path | str, split: str = "train") -> Dataset:
    return load_dataset(str(output), split=split)


class Stopped(Exception):
    pass


@pytest.fixture
def calls(monkeypatch):
    """The prompts that each call of a transform reads; after `stop_after` calls it fails."""
    made: list[list[str]] = []
    limit = [10**9]
    finish = Transform.finish

    def counted(fn, batch, prepared, rank=None):
        if len(made) >= limit[0]:
            raise Stopped
        made.append(list(batch["prompt"]))
        return finish(fn, batch, prepared, rank)

    monkeypatch.setattr(Transform, "finish", counted)
    return type("Calls", (), {"made": made, "limit": limit})


def test_pieces_are_the_whole_run_with_its_features(direction, files, whole, tmp_path):
    stream = load_dataset("parquet", data_files=files, streaming=True)
    assert annotate_stream(stream, direction, tmp_path / "out", rows_per_file=10, batch_size=4) == {"train": ROWS}
    done = loaded(tmp_path / "out")
    assert same(done, whole)
    assert [len(pq.read_table(f)) for f in sorted(glob.glob(f"{tmp_path}/out/data/*"))] == [10, 10, 10, 10, 7]
    # The controls: a row that is lost, doubled or out of its place is seen.
    for wrong in ([*range(1, ROWS)], [0, *range(ROWS)], [1, 0, *range(2, ROWS)]):
        assert not same(done.select(wrong), whole)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5, 9])
def test_a_stopped_run_goes_on_and_reads_nothing_of_complete_pieces(
    direction, files, whole, tmp_path, calls, stop_after
):
    def run():
        stream = load_dataset("parquet", data_files=[f for f in files if Path(f).exists()], streaming=True)
        return annotate_stream(stream, direction, tmp_path / "out", rows_per_file=10, batch_size=5)

    calls.limit[0] = stop_after
    with pytest.raises(Stopped):
        run()
    complete = len(glob.glob(f"{tmp_path}/out/data/*"))
    assert complete == stop_after // 2
    calls.limit[0], before = 10**9, len(calls.made)
    assert run() == {"train": ROWS}
    again = [prompt for call in calls.made[before:] for prompt in call]
    assert again == whole["prompt"][10 * complete :]
    assert same(loaded(tmp_path / "out"), whole)
    # Complete: a third run reads nothing.
    before = len(calls.made)
    assert run() == {"train": ROWS}
    assert len(calls.made) == before


def test_rows_of_files_that_are_done_are_not_read_again(direction, files, whole, tmp_path, calls):
    source = tmp_path / "source"
    source.mkdir()
    for file in files:
        (source / Path(file).name).write_bytes(Path(file).read_bytes())
    run = {"rows_per_file": 7, "batch_size": 7}
    calls.limit[0] = 6  # in the third file
    with pytest.raises(Stopped):
        annotate_stream(f"{source}/*.parquet", direction, tmp_path / "out", **run)
    calls.limit[0] = 10**9
    with open(source / "0.parquet", "r+b") as first:  # its rows; what says which columns there are stands at the end
        first.seek(4)
        first.write(b"\0" * 300)
    assert annotate_stream(f"{source}/*.parquet", direction, tmp_path / "out", **run) == {"train": ROWS}
    assert same(loaded(tmp_path / "out"), whole)
    with pytest.raises(
        Exception, match=r"(?i)parquet|page|thrift|decompress|generating"
    ):  # the control: a new run does
        annotate_stream(f"{source}/*.parquet", direction, tmp_path / "new", **run)


@pytest.mark.parametrize("of", [2, 5])
def test_a_job_array_writes_one_output_and_each_job_may_run_again(direction, files, rows, whole, tmp_path, calls, of):
    source = load_dataset("parquet", data_files=files, split="train", streaming=True)
    for number in (2, 1, 2, *range(3, of + 1)):
        annotate_stream(source, direction, tmp_path / "out", shard=f"{number}/{of}", rows_per_file=8)
    assert sorted(prompt for call in calls.made for prompt in call) == sorted(rows["prompt"])  # none twice
    done = loaded(tmp_path / "out")
    order = {prompt: i for i, prompt in enumerate(done["prompt"])}
    assert same(done.select([order[prompt] for prompt in rows["prompt"]]), whole)
    with pytest.raises(
        ValueError, match=rf"holds parts of {of}, and this is one of 3: together rows would stand twice"
    ):
        annotate_stream(source, direction, tmp_path / "out", shard="1/3")


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_output_at_a_url(direction, rows, whole, tmp_path, kind, calls):
    url = {"memory": f"memory://{tmp_path.name}/run", "file": f"file://{tmp_path}/below"}[kind]
    calls.limit[0] = 3
    with pytest.raises(Stopped):
        annotate_stream(rows, direction, url, rows_per_file=12, batch_size=12)
    calls.limit[0] = 10**9
    assert annotate_stream(rows, direction, url, rows_per_file=12, batch_size=12) == {"train": ROWS}
    files, root = fsspec.core.url_to_fs(url)
    for name in files.ls(f"{root}/data", detail=False):
        (tmp_path / "copy" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / "data" / name.rpartition("/")[2]).write_bytes(files.cat_file(name))
    assert same(loaded(tmp_path / "copy"), whole)
    assert len([prompt for call in calls.made for prompt in call]) == ROWS


def test_a_piece_that_is_not_whole_is_written_again(direction, rows, whole, tmp_path):
    annotate_stream(rows, direction, tmp_path, rows_per_file=12)
    torn = Path(Pieces(str(tmp_path), "train", _only()).path(2))
    torn.write_bytes(torn.read_bytes()[:-20])
    annotate_stream(rows, direction, tmp_path, rows_per_file=12)
    assert same(loaded(tmp_path), whole)


def _only():
    from legend_hf.scale.shards import Shard

    return Shard()


def test_what_another_direction_or_source_made_is_refused(direction, rows, files, tmp_path):
    annotate_stream(files[0], direction, tmp_path, rows_per_file=12)
    with pytest.raises(ValueError, match="were made by another direction or other options; give another output"):
        annotate_stream(files[0], LegendMarginFn(direction, negative="flag"), tmp_path)
    with pytest.raises(ValueError, match=r"were made of '.*0\.parquet'"):
        annotate_stream(files[1], direction, tmp_path)
    assert annotate_stream(files[0], LegendMarginFn(direction, batch_tokens=64), tmp_path) == {"train": 20}


def test_no_piece_holds_a_secret_of_its_source(direction, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{annotate_stream.__module__}._splits", lambda *_: {"train": rows})
    annotate_stream("s3://me:hunter22@bucket/rows/*.parquet", direction, tmp_path)
    (piece,) = tmp_path.glob("data/*")
    said = pq.read_schema(piece).metadata[b"legend_hf"]
    assert b"***@bucket/rows" in said
    assert b"hunter22" not in piece.read_bytes()


def test_every_split_and_one_without_rows(direction, rows, tmp_path):
    both = DatasetDict(train=rows, empty=rows.select([]))
    assert annotate_stream(both, direction, tmp_path, rows_per_file=30) == {"train": ROWS, "empty": 0}
    assert annotate_stream(both, direction, tmp_path, rows_per_file=30) == {"train": ROWS, "empty": 0}
    assert list(load_dataset(str(tmp_path))) == ["train"]  # which fails where a file has no rows
    assert annotate_stream(both, direction, tmp_path / "one", split="train") == {"train": ROWS}


def test_a_row_that_cannot_be_read_is_named_by_its_number_in_the_part(direction, tmp_path):
    made = pair_rows([f"thing {i}" for i in range(30)])
    made[23]["chosen"] = ""
    bad = Dataset.from_list(made)
    with pytest.raises(RowError, match="row 23, column `chosen`") as refused:
        annotate_stream(bad, direction, tmp_path / "out", rows_per_file=10, batch_size=4)
    assert refused.value.__notes__ == [
        "in split 'train', part 1/1; the pieces before it are kept",
        '`on_error="skip"` is an option of `LegendMarginFn`: give one of those',
    ]
    assert len(loaded(tmp_path / "out")) == 20
    assert annotate_stream(bad, LegendMarginFn(direction, on_error="skip"), tmp_path / "skipped") == {"train": 30}
    assert [s == "ok" for s in loaded(tmp_path / "skipped")["margin_status"]].count(False) == 1


def test_a_stream_that_does_not_know_its_columns(direction, rows, whole, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(pair_rows([f"thing {i}" for i in range(ROWS)])))
    assert stream.features is None
    annotate_stream(stream, direction, tmp_path / "out", rows_per_file=20)
    done = loaded(tmp_path / "out")
    assert np.allclose(done["margin"], whole["margin"], atol=1e-4)
    assert done.features["margin"] == Value("float32")
    number = count()
    changing = IterableDataset.from_generator(
        lambda: (
            {**row, "extra": str(i) if next(number) > 24 else i} for i, row in enumerate(pair_rows(map(str, range(40))))
        )
    )
    with pytest.raises((ValueError, TypeError)):
        annotate_stream(changing, direction, tmp_path / "changing", rows_per_file=20)


def test_what_cannot_be_streamed_is_refused_before_the_work(direction, rows, tmp_path):
    for given, said in (
        ({"rows_per_file": 0}, "`rows_per_file` is 0; it must be at least 1"),
        ({"batch_size": -1}, "`batch_size` is -1"),
        ({"shard": "0/2"}, "`shard` is '0/2'"),
        ({"split": "test"}, "`split` is 'test', and the source has 'train'"),
        ({"source": [1]}, "`source` is a list; allowed are a name, a URL"),
        ({"source": "s3://bucket/rows"}, "a URL must name files, by a pattern"),
        (
            {"source": "https://me:hunter22@host/r.parquet?key=hunter22"},
            r"is 'https://\*\*\*@host/r.parquet\?\*\*\*'; a",
        ),
        ({"source": rows.to_iterable_dataset().shuffle(seed=0)}, "is shuffled in a buffer"),
        ({"source": rows.add_column("margin", [0.5] * ROWS)}, "already has `margin`"),
        ({"fn": 3}, "`fn` is an int; allowed are"),
        *(
            ({"source": {name: rows}}, f"a split is called {re.escape(repr(name))}, which names no files")
            for name in ("a/b", "../a", "train-1", "a..b", ".a", "a b", "", "train[:9]")
        ),
    ):
        with pytest.raises(ValueError, match=said):
            annotate_stream(**{"source": rows, "fn": direction, "output": tmp_path / "no", **given})
    assert not (tmp_path / "no").exists()


def test_a_store_keeps_what_a_piece_that_was_not_written_had(direction, rows, whole, tmp_path, calls):
    fn = LegendMarginFn(direction, store=tmp_path / "s.sqlite")
    calls.limit[0] = 3
    with pytest.raises(Stopped):
        annotate_stream(rows, fn, tmp_path / "out", batch_size=10)
    assert not (tmp_path / "out").exists()
    assert sum(k.scores for k in open_store(tmp_path / "s.sqlite").contents()) == 60


@pytest.mark.parametrize("name", ["validation.clean", "данные", "a_1"])
def test_a_split_goes_on_whatever_it_is_called(direction, rows, tmp_path, calls, name):
    few = {name: rows.select(range(9))}
    for _ in range(2):
        assert annotate_stream(few, direction, tmp_path, rows_per_file=4, batch_size=4) == {name: 9}
    assert [len(call) for call in calls.made] == [4, 4, 1], "nothing twice"
    assert len(load_dataset(str(tmp_path), split=name)) == 9


def test_a_part_of_several_splits_is_called_train(direction, rows, tmp_path):
    joined = Dataset(rows.data, split=NamedSplit("train") + NamedSplit("test"))
    assert annotate_stream(joined.select(range(3)), direction, tmp_path) == {"train": 3}


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_an_output_in_what_is_read_is_refused(direction, rows, tmp_path, form):
    """The next time its rows would be read, too."""
    (tmp_path / "rows").mkdir()
    rows.select(range(4)).to_parquet(tmp_path / "rows" / "0.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    for inside in ("rows", "rows/out", "link/out"):
        with pytest.raises(ValueError, match="lies in what is read"):
            annotate_stream(tmp_path / "rows", direction, form.format(tmp_path / inside))
    assert annotate_stream(tmp_path / "rows", direction, form.format(tmp_path / "rows-2")) == {"train": 4}
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["0.parquet"]


def test_a_store_at_a_url_has_all_scores_at_the_end(direction, rows, tmp_path, monkeypatch):
    """However it ends: on return, and after an error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def held(url: str) -> int:
        files, root = fsspec.core.url_to_fs(url)
        return sum(pq.read_metadata(files.open(name)).num_rows for name in files.glob(f"{root}/*.parquet"))

    made = pair_rows([f"thing {i}" for i in range(12)])
    whole, part = (f"memory://{tmp_path.name}/{name}" for name in ("whole", "part"))
    annotate_stream(Dataset.from_list(made), LegendMarginFn(direction, store=whole), tmp_path / "out")
    assert held(whole) == 24
    made[8]["chosen"] = ""
    with pytest.raises(RowError):
        annotate_stream(Dataset.from_list(made), LegendMarginFn(direction, store=part), tmp_path / "half", batch_size=4)
    assert held(part) == 16


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """With a transform that costs nothing, in a process of its own; the control holds all rows."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from datasets import Dataset, Features, IterableDataset, Value\n"
        "from test_transform import LengthFn\n"
        "from legend_hf.scale import annotate_stream\n"
        "text = 'some words of a response that is as long as others are ' * 8\n"
        "def rows(number):\n"
        "    for i in range(number):\n"
        "        yield {'prompt': f'What of {i}?', 'chosen': f'{i} {text}', 'rejected': f'{text} {i}'}\n"
        "kinds = Features({c: Value('string') for c in ('prompt', 'chosen', 'rejected')})\n"
        "number, rows_per_file, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
        "stream = IterableDataset.from_generator(rows, features=kinds, gen_kwargs={'number': number})\n"
        "annotate_stream(stream, LengthFn(), output, rows_per_file=rows_per_file)\n"
        "(most,) = (line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(most.split()[1]) / 1024)\n"
    )

    def peak(number: int, rows_per_file: int = 500) -> float:
        command = [sys.executable, str(program), str(number), str(rows_per_file), str(tmp_path / f"{number}")]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    few, many = peak(2_000), peak(20_000)
    assert many < 1.05 * few
    assert peak(20_001, 20_001) > 1.05 * few  # the control: all rows in one piece
