"""Ray Data on a real cluster of two nodes on this machine: equal, complete, no row twice, whatever dies."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from builders import pair_rows
from datasets import ClassLabel, Dataset, load_dataset
from typer.testing import CliRunner

from legend_hf import Direction, LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.reading.reader import close_readers
from legend_hf.scale import annotate_ray

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROWS = 120
STORE = 80 * 2**20
WANTED = "nodes wanted"


class SlowFn(LegendMarginFn):
    """Takes its time, notes each batch in a folder, and goes on when as many nodes have as are to read."""

    def finish(self, batch, prepared, rank=None):
        made = super().finish(batch, prepared, rank)
        folder = Path(os.environ["LEGEND_HF_TEST_NOTES"])
        node = ray.get_runtime_context().get_node_id()
        (folder / f"{node}-{os.getpid()}-{time.time_ns()}").write_text("\n".join(batch["prompt"]))
        end = time.monotonic() + 60
        while len(by_node(folder)) < int((folder / WANTED).read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        return made


def want(folder: Path, nodes: int) -> None:
    """Says how many nodes are to read, in one step: nobody reads half of it."""
    (folder / "new").write_text(str(nodes))
    (folder / "new").replace(folder / WANTED)


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    fitted = fit_direction(pair_rows(), model=str(tiny_llama))
    close_readers()
    return fitted


@pytest.fixture(scope="module")
def rows() -> Dataset:
    made = [{**row, "kind": i % 2} for i, row in enumerate(pair_rows([f"thing {i}" for i in range(ROWS)]))]
    return Dataset.from_list(made).cast_column("kind", ClassLabel(names=["mild", "milder"]))


@pytest.fixture(scope="module")
def source(rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for i in range(12):
        rows.shard(12, i).to_parquet(folder / f"{i:02d}.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(direction, rows) -> Dataset:
    return annotate(rows, LegendMarginFn(direction)).sort("prompt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture
def notes(folder) -> Path:
    for note in folder.iterdir():
        note.unlink()
    want(folder, 1)
    return folder


@pytest.fixture(scope="module")
def cluster(folder):
    from ray.cluster_utils import Cluster

    # The nodes are on this machine: what an installed package gives others, the environment gives these.
    here = (Path(__file__).parent, Path(__file__).parents[1], *filter(None, [os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, here)))
        patch.setenv("LEGEND_HF_TEST_NOTES", str(folder))
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine would starve them
        head = {"num_cpus": 5, "object_store_memory": STORE, "include_dashboard": False}
        try:
            made = Cluster(initialize_head=True, head_node_args=head)
            ray.init(address=made.address, log_to_driver=False)
        except (OSError, ConnectionError, RuntimeError) as error:  # of the machine's, before any of our code has run
            pytest.skip(f"Ray can start no cluster here: {error}")
        yield made
        ray.shutdown()
        made.shutdown()


def same(output: Path, whole: Dataset) -> bool:
    done = load_dataset(str(output), split="train")
    if len(done) != len(whole) or any(done.features.get(n) != kind for n, kind in whole.features.items()):
        return False
    done = done.sort("prompt")
    return done["prompt"][:] == whole["prompt"][:] and np.allclose(
        done["margin_raw"], whole["margin_raw"], rtol=0, atol=1e-4 * np.std(whole["margin_raw"])
    )


def by_node(notes: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for note in notes.glob("*-*"):
        found.setdefault(note.name.partition("-")[0], []).extend(note.read_text().splitlines())
    return found


def test_a_node_that_is_killed_midway_takes_no_row_with_it(cluster, direction, source, whole, notes, tmp_path):
    want(notes, 2)
    node = cluster.add_node(num_cpus=3, object_store_memory=STORE)
    cluster.wait_for_nodes()
    killed: list[float] = []

    def kill() -> None:
        while len(by_node(notes).get(node.node_id, [])) < 20:
            time.sleep(0.02)
        want(notes, 1)
        cluster.remove_node(node, allow_graceful=False)
        killed.append(sum(map(len, by_node(notes).values())))

    threading.Thread(target=kill, daemon=True).start()
    options = {
        "concurrency": (2, 3),
        "num_cpus": 2,
        "batch_size": 5,
        "rows_per_file": 10,
    }
    assert annotate_ray(str(source), SlowFn(direction), tmp_path / "out", **options) == ROWS
    assert killed, "the node was to be killed while rows were left"
    assert killed[0] < ROWS
    assert len(by_node(notes)) == 2, "both nodes were to read"
    assert same(tmp_path / "out", whole)
    # The controls: a row that is lost or doubled is seen.
    for wrong in (range(1, ROWS), [0, *range(ROWS)]):
        load_dataset(str(tmp_path / "out"), split="train").select(wrong).to_parquet(
            tmp_path / f"wrong{len(wrong)}" / "x.parquet"
        )
        assert not same(tmp_path / f"wrong{len(wrong)}", whole)
    with pytest.raises(ValueError, match="has rows already, which would stand twice"):
        annotate_ray(str(source), direction, tmp_path / "out")


def test_a_run_that_died_goes_on_from_its_checkpoint(cluster, direction, source, whole, notes, tmp_path, monkeypatch):
    """Killed in the driver: some files are written, their rows are not read again."""
    options = {"concurrency": 1, "batch_size": 10, "rows_per_file": 10, "checkpoint": tmp_path / "kept"}

    def dies() -> None:
        while len(list((tmp_path / "out" / "data").glob("*.parquet"))) < 3:
            time.sleep(0.02)
        import ctypes

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))

    main = threading.get_ident()
    threading.Thread(target=dies, daemon=True).start()
    with pytest.raises((KeyboardInterrupt, Exception)):
        annotate_ray(str(source), SlowFn(direction), tmp_path / "out", **options)
    first = {prompt for several in by_node(notes).values() for prompt in several}
    written = {p for f in (tmp_path / "out" / "data").glob("*.parquet") for p in Dataset.from_parquet(str(f))["prompt"]}
    assert 0 < len(written) < ROWS
    assert written <= first
    actors = {note.name.split("-")[1] for note in notes.glob("*-*")}  # of the first run, which may still be at a batch
    assert annotate_ray(str(source), SlowFn(direction), tmp_path / "out", **options) == ROWS
    new = [note for note in notes.glob("*-*") if note.name.split("-")[1] not in actors]
    again = [prompt for note in new for prompt in note.read_text().splitlines()]
    assert len(again) == len({*again})
    assert 0 < len(again) < ROWS
    assert same(tmp_path / "out", whole)


def test_the_command_and_a_push(cluster, direction, source, whole, tmp_path, hub):
    from legend_hf.cli import app

    direction.save_pretrained(tmp_path / "direction", overwrite=True)
    words = [
        str(source),
        str(tmp_path / "direction"),
        "--model",
        direction.model_path,
        "--output",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, ["annotate", *words, "--engine", "ray"])
    assert done.exit_code == 0, done.output
    assert f"{ROWS} rows annotated in {tmp_path}/out" in done.output
    assert same(tmp_path / "out", whole)
    annotate_ray(f"{source}/00.parquet", LegendMarginFn(direction), tmp_path / "one", push_to="user/by-ray")
    assert len(load_dataset("user/by-ray", split="train")) == ROWS // 12


def test_a_row_that_cannot_be_read_and_json(cluster, direction, tmp_path):
    made = pair_rows(["maps", "soup", "tents"])
    made[1]["chosen"] = ""
    Dataset.from_list(made).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(RowError, match="column `chosen`") as refused:
        annotate_ray(tmp_path / "rows.jsonl", direction, tmp_path / "out")
    assert "Ray does not say which" in refused.value.__notes__[0]
    skipping = LegendMarginFn(direction, on_error="skip")
    assert annotate_ray(tmp_path / "rows.jsonl", skipping, tmp_path / "skipped") == 3
    done = load_dataset(str(tmp_path / "skipped"), split="train")
    assert [status == "ok" for status in done["margin_status"]].count(False) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": (2, 2)}, r"a pool of fixed size waits for ever .*give \(1, 2\)"),
        ({"concurrency": (3, 2)}, r"`concurrency` is \(3, 2\)"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"batch_size": None}, "`batch_size` is None"),
        ({"source": "nothing/*.parquet"}, "where there are no files"),
        ({"source": ["a.jsonl"], "checkpoint": "kept"}, "needs `id_column`"),
        ({"source": ["memory://rows", "a.jsonl"]}, "in places of several kinds"),
        ({"fn": 3}, "`fn` is an int"),
    ],
)
def test_what_ray_could_not_do_is_refused_before_it_starts(direction, source, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=said):
        annotate_ray(**{"source": str(source), "fn": direction, "output": tmp_path / "no", **options})
