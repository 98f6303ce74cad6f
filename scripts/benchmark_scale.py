"""What does scale cost? Time and memory against rows, workers, a cluster, kills; and hours and money by arithmetic.

In: preference rows, the shipped annotator as a toy model. Out: a table in Markdown, and JSON. Rows are those of the
file again and again, each made its own by a number before it. Every figure is measured in this run, in a process of its
own where memory or start-up count, but for the last table, which is computed and says from what.

The default is small and takes minutes. All of it, on an idle machine:

    python scripts/benchmark_scale.py --data ../shared/data/hh_harmless.jsonl --sizes 1000 10000 100000
        --memory 10000 40000 --rows 2000 --kills 10 --calls 100000 --json scale.json --results scripts/RESULTS.md

A part that stands in the file of `--json`, measured with the same options, is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, disable_progress_bars
from real_runs import replace_section

from legend_hf import Direction, LegendMarginFn, annotate
from legend_hf.directions.calibrate import Calibration
from legend_hf.margins import devices, remote_store
from legend_hf.margins.devices import usable_cores
from legend_hf.margins.sharing import parts_of
from legend_hf.margins.workers import handed_out, workers
from legend_hf.reading.reader import OpenReader, describe_model
from legend_hf.scale import annotate_ray, annotate_stream

log = logging.getLogger("benchmark_scale")
DEMO = Path(__file__).parent / "demo"
# What a part's figures depend on, beside the rows.
OPTIONS = {
    "time": ["sizes"], "memory": ["memory"], "handling": ["rows"], "workers": ["rows"], "calls": ["calls"],
    "ray": ["rows"], "kills": ["rows", "kills"], "cost": [],
}  # fmt: skip
COLUMNS = ("prompt", "chosen", "rejected")
# Readers of the cost model: parameters without embeddings, in billions; layers; width. Of the public configs of
# SmolLM2-135M, Qwen2.5-1.5B, Qwen2.5-7B and Llama-3.1-70B.
READERS = {"135M": (0.106, 30, 576), "1.5B": (1.31, 28, 1536), "7B": (6.53, 28, 3584), "70B": (68.5, 80, 8192)}
PASS = 10  # rows in one call of the transform, where processes are killed
PEAK, EFFICIENCY, PRICE = 989e12, 0.4, 3.0  # an H100's bfloat16 rate; what is reached of it; US dollars an hour


def main() -> None:
    """Measures one thing after the other, and prints the table."""
    arguments = parse()
    disable_progress_bars()
    if arguments.once:
        what, rows, folder = arguments.once
        once(what, int(rows), folder, arguments)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("legend_hf").setLevel(logging.ERROR)
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "time": time_against_rows, "memory": memory_against_rows, "handling": handling, "workers": two_workers,
        "calls": many_calls, "ray": ray_against_map, "kills": kills, "cost": cost,
    }  # fmt: skip
    found, failed = measured_before(arguments.json), list[str]()
    for name in [name for name in parts if not arguments.only or name in arguments.only]:
        options = {key: str(getattr(arguments, key)) for key in ("data", *OPTIONS[name])}
        options["cores"] = str(usable_cores())
        if found.get(name, {}).get("options") == options:
            log.info("%s: measured before", name)
            continue
        log.info("%s ...", name)
        begun = time.perf_counter()
        try:
            figures = parts[name](arguments)
        except Exception:  # the others are worth their time
            log.exception("%s failed", name)
            failed.append(name)
            continue
        found[name] = {"figures": figures, "options": options, "seconds": time.perf_counter() - begun}
        log.info("%s: %.0f s: %s", name, found[name]["seconds"], json.dumps(figures))
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(table({name: part["figures"] for name, part in found.items()}, arguments))
    took = sum(part["seconds"] for part in found.values()) / 60
    command = " ".join(["python scripts/benchmark_scale.py", *without_places(sys.argv[1:])])
    sys.stdout.write(f"{text}\n")
    if arguments.results:
        replace_section(
            arguments.results, f"## At scale\n\nMade in {took:.0f} minutes by `{command}`.\n\n{text}", "scale"
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the same command measures them alone")


def measured_before(file: Path | None) -> dict[str, Any]:
    """Parts that an earlier run finished."""
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}


def without_places(words: list[str]) -> list[str]:
    """What was typed, but for where files go."""
    kept = [w for i, w in enumerate(words) if not {"--json", "--results"} & {w, *words[max(0, i - 1) : i]}]
    return [Path(word).name if "/" in word else word for word in kept]


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = DEMO / "preferences" / "dialogue.jsonl"
    parser.add_argument("--data", type=Path, default=sample, help="JSON lines of preference rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 400, 800], help="rows of time against rows")
    parser.add_argument("--memory", type=int, nargs="+", default=[2000, 6000], help="rows of memory against rows")
    parser.add_argument("--rows", type=int, default=300, help="rows of everything else")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--calls", type=int, default=2000, help="single texts and pairs that one process is asked for")
    parser.add_argument("--only", nargs="+", help="some parts: time memory handling workers calls ray kills cost")
    parser.add_argument("--json", type=Path, help="where the figures of each part are written, and found again")
    parser.add_argument("--results", type=Path, help="Markdown file whose marked section is replaced")
    parser.add_argument("--once", nargs=3, metavar=("WHAT", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


# -- What is read ------------------------------------------------------------------------------------------------------


def rows_of(file: Path, number: int, first: int | None = None) -> Iterator[dict[str, str]]:
    """Real rows, each its own; those of the first lines alone, again and again, are as long whatever their number."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:first]
    for i in range(number):
        row = lines[i % len(lines)]
        mark = f"{i:06d}: "  # as many characters whatever the number
        own = row if "prompt" in row else {name: row[name].replace("Human: ", f"Human: {mark}", 1) for name in row}
        yield {name: f"{mark}{own[name]}" if name == "prompt" else own[name] for name in COLUMNS if name in row}


def dataset(arguments: argparse.Namespace, number: int, first: int | None = None) -> Dataset:
    return Dataset.from_list(list(rows_of(arguments.data, number, first)))


def transform(
    layer: int = -1, model: Path = DEMO / "annotator", template: str = "dialogue", **options: Any
) -> LegendMarginFn:
    """Margins by the toy model, or another, along some direction, which costs what any does."""
    reader = describe_model(str(model), pooling="last", template=template, layer=layer)
    vector = np.zeros(reader.d_model, dtype=np.float32)
    vector[0] = 1.0
    direction = Direction(vector, reader, Calibration("unit", 1.0), model_path=str(model))
    return LegendMarginFn(direction, on_error="skip", **options)


def without_model() -> None:
    """From here on reading costs nothing: what is left is the handling of rows."""

    def nothing(opened: OpenReader, texts: Any, layers: Any, *, batch_tokens: int | None = None) -> Iterator[Any]:
        for first in range(0, len(texts), 64):
            index = np.arange(first, min(first + 64, len(texts)))
            yield index, torch.zeros(len(index), len(layers), opened.reader.d_model)

    OpenReader.read = nothing  # type: ignore[method-assign, assignment]


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# -- The parts ---------------------------------------------------------------------------------------------------------


def time_against_rows(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of `annotate` by rows: the same texts again and again, read up to the toy model's first block."""
    fn, sizes = transform(layer=1), sorted(arguments.sizes)
    annotate(dataset(arguments, sizes[0], sizes[0]), fn)
    several: dict[int, list[float]] = {number: [] for number in sizes}
    # Before the longest and after it: a machine slows down while it works, and not because there are more rows.
    for number in (*sizes, *sizes[-2::-1]):
        rows = dataset(arguments, number, sizes[0])
        for _ in range(3 if number == sizes[0] else 1):  # the rest of what the machine does is more of a short time
            several[number].append(seconds(lambda rows=rows: annotate(rows, fn)))  # type: ignore[misc]
        log.info("%d rows: %.1f s", number, several[number][-1])
    return {str(number): float(np.median(times)) for number, times in several.items()}


def memory_against_rows(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of a stream into pieces of 1,000 rows, without a model's work."""
    return {str(n): float(in_own_process("stream", n, arguments)) for n in arguments.memory}


def handling(arguments: argparse.Namespace) -> dict[str, float]:
    """Microseconds a row outside the model, cold and with a warm store; seconds of a cached `annotate` in all."""
    return dict(json.loads(in_own_process("handling", arguments.rows, arguments)))


def two_workers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows a second of one process with all cores, of two with half each, and of what `auto` took."""
    rows, fn, cores = dataset(arguments, arguments.rows).with_format("arrow"), transform(), usable_cores()
    found: dict[str, Any] = {}
    for number in (1, 2):
        with workers(fn, ["cpu"] * number, max(1, cores // number)) as running:
            for worker in running:
                worker.read(rows[:8])
            tokens = running[0].look(rows[:], 0)[1]
            parts = parts_of(tokens, number, most_rows=200)
            took = seconds(lambda: list(handed_out(running, parts, lambda w, p: w.read(rows[p[0] : p[1]]))))  # noqa: B023
            found[str(number)] = len(rows) / took
    chosen: list[str] = []
    with short_runs_too(chosen):
        found["auto, whole call"] = len(rows) / seconds(lambda: annotate(rows.with_format(None), fn, devices="auto"))
    found["auto took"] = int(chosen[-1].split()[2]) if chosen else 1
    return found


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, into: list[str]) -> None:
        super().__init__()
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        """Of each record its text."""
        self.into.append(record.getMessage())


@contextmanager
def short_runs_too(chosen: list[str]) -> Iterator[None]:
    """Has `auto` try processes however short the run is, and say in `chosen` what it took."""
    worth, devices.WORTH_SECONDS = devices.WORTH_SECONDS, 0.0
    said, level = Said(chosen), devices.logger.level
    devices.logger.addHandler(said)
    devices.logger.setLevel(logging.INFO)
    devices.logger.propagate = False
    yield
    devices.logger.propagate = True
    devices.logger.setLevel(level)
    devices.logger.removeHandler(said)
    devices.WORTH_SECONDS = worth


def many_calls(arguments: argparse.Namespace) -> dict[str, float]:
    """MiB that a process grows by from a tenth of its calls to the last; the control calls less and keeps something."""
    return {
        "calls": arguments.calls,
        "grown by": float(in_own_process("calls", arguments.calls, arguments)),
        "the control": float(in_own_process("leaking", max(10, arguments.calls // 10), arguments)),
    }


def ray_against_map(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of `ds.map` and of Ray on two nodes of this machine, with two processes each, and without their start.

    Both load the model in each process, and Ray's actors import all that it needs: that is in a whole call's seconds.
    What a row costs without it is the difference between all rows and a quarter of them.
    """
    many, fn = dataset(arguments, arguments.rows), transform()
    few = many.select(range(len(many) // 4))
    found = {
        f"map, {len(rows)} rows": seconds(
            lambda rows=rows: rows.map(fn, batched=True, batch_size=50, num_proc=2, with_rank=True)  # type: ignore[misc]
        )
        for rows in (few, many)
    }
    options: dict[str, Any] = {"concurrency": (1, 2), "num_cpus": 2, "batch_size": 50}
    with tempfile.TemporaryDirectory() as folder, two_nodes():
        for rows in (few, many):
            source, out = f"{folder}/{len(rows)}", f"{folder}/out{len(rows)}"
            for i in range(8):
                rows.shard(8, i).to_parquet(f"{source}/{i}.parquet")
            found[f"ray, {len(rows)} rows"] = seconds(lambda s=source, o=out: annotate_ray(s, fn, o, **options))  # type: ignore[misc]
    for way in ("map", "ray"):
        more = found[f"{way}, {len(many)} rows"] - found[f"{way}, {len(few)} rows"]
        found[f"{way}, a row"] = more / (len(many) - len(few))
    return found


@contextmanager
def two_nodes() -> Iterator[None]:
    """A Ray cluster on this machine, whose processes have as many threads in all as those of `map`."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
    os.environ |= {"OMP_NUM_THREADS": str(max(1, usable_cores() // 2)), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    node = {"num_cpus": 3, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """A run whose whole machine is lost again and again: killed, its disk emptied, gone on with from a bucket."""
    draw, texts = random.Random(0), 2 * arguments.rows
    with tempfile.TemporaryDirectory() as folder, bucket(folder) as (kind, url):
        lost: list[int] = []
        for _ in range(arguments.kills):
            process = start("killed", arguments.rows, folder, arguments, machine=url)
            before, due = computed(folder), 1 + draw.randrange(max(1, int(1.5 * texts / arguments.kills)))
            while process.poll() is None and computed(folder) - before < due:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.05))
            if process.poll() is not None:
                break  # it came to its end before
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(f"{folder}/disk")
            lost.append(computed(folder) - held(url) - sum(lost))
            log.info("killed: %d texts read, %d in the bucket", computed(folder), held(url))
        if not Path(f"{folder}/result.npy").exists():
            assert start("killed", arguments.rows, folder, arguments, machine=url).wait() == 0, "nobody killed the last"
        got = np.load(f"{folder}/result.npy")
        made = annotate(dataset(arguments, arguments.rows), transform())
        whole, texts = np.array(made["margin_raw"]), 2 * made["margin_status"][:].count("ok")
        return {
            "kept in": kind,
            "kills": len(lost),
            "complete": len(got) == len(whole) and held(url) == texts,
            "furthest from the whole, in its standard deviations": float(np.abs(got - whole).max() / np.std(whole)),
            "texts read again, at most": max(lost, default=0),
            "texts read again, mean": (computed(folder) - texts) / max(1, len(lost)),
            "texts of a chunk and of a pass": f"{chunk(arguments.rows)} + {2 * PASS}",
        }


@contextmanager
def bucket(folder: str) -> Iterator[tuple[str, str]]:
    """A bucket on a server of this machine, where `moto` and `s3fs` are installed; else a folder."""
    if not (find_spec("moto") and find_spec("s3fs")):
        Path(f"{folder}/bucket").mkdir()
        yield "a folder", f"file://{folder}/bucket/run"
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://localhost:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null",
    }  # fmt: skip
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(3000):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            fsspec.filesystem("s3").mkdir("bucket")
            yield "S3 on loopback", "s3://bucket/run"
        finally:
            server.kill()


def held(url: str) -> int:
    """Texts with a score in the bucket."""
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    found: set[bytes] = set()
    for name in files.glob(f"{root}/scores-*.parquet"):
        with files.open(name, "rb") as file:
            found |= set(pq.read_table(file, columns=["text"]).column("text").to_pylist())
    return len(found)


def cost(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hours and dollars, by arithmetic: nothing here is measured but the tokens of a row."""
    some = dataset(arguments, min(200, arguments.rows))
    tokens = float(np.mean(transform().look(some[:])[1]))
    found: dict[str, Any] = {"tokens a row": tokens}
    for name, (billions, layers, width) in READERS.items():
        # Each token: twice the parameters, and the products of attention over half of a text, forward only.
        flops = tokens * (2e9 * billions + 4 * layers * width * tokens / 4)
        hours = {rows: rows * flops / (PEAK * EFFICIENCY) / 3600 for rows in (160_000, 100_000_000)}
        found[name] = {str(rows): {"hours": h, "dollars": h * PRICE} for rows, h in hours.items()}
    return found


# -- In processes of their own -----------------------------------------------------------------------------------------


def chunk(rows: int) -> int:
    """Texts in one chunk of the store, of which there are some forty in all."""
    return max(20, rows // 20)


def computed(folder: str) -> int:
    log = Path(folder) / "log"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def start(
    what: str, rows: int, folder: str, arguments: argparse.Namespace, machine: str | None = None, **options: Any
) -> subprocess.Popen[str]:
    """A process; with a `machine`, the URL of its store, in a group of its own and with an empty disk."""
    command = [sys.executable, __file__, "--data", str(arguments.data), "--once", what, str(rows), folder]
    if machine is not None:
        os.makedirs(f"{folder}/disk")
        at = {"TMPDIR": f"{folder}/disk", "HF_HOME": f"{folder}/disk/hf", "LEGEND_HF_SCALE_STORE": machine}
        options |= {"env": {**os.environ, **at}, "start_new_session": True}
    return subprocess.Popen(command, text=True, **options)


def in_own_process(what: str, rows: int, arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        said = start(what, rows, folder, arguments, stdout=subprocess.PIPE).communicate()[0]
    return said.strip().splitlines()[-1]


def once(what: str, number: int, folder: str, arguments: argparse.Namespace) -> None:
    """What is measured in a process of its own; prints what it found."""
    from datasets import Features, IterableDataset, Value

    if what == "killed":
        killed(arguments, number, folder)
        return
    fn = transform()
    if what in ("calls", "leaking"):
        sys.stdout.write(f"{called(arguments, number, 10_000 if what == 'leaking' else 0)}\n")
        return
    if what == "handling":
        sys.stdout.write(json.dumps(handled(arguments, number, folder)) + "\n")
        return
    given = {"file": arguments.data, "number": number}
    kinds = Features({name: Value("string") for name in COLUMNS if name in next(rows_of(arguments.data, 1))})
    stream = IterableDataset.from_generator(rows_of, features=kinds, gen_kwargs=given)
    without_model()
    annotate_stream(stream, fn, f"{folder}/out", rows_per_file=1000)
    sys.stdout.write(f"{peak()}\n")


def called(arguments: argparse.Namespace, number: int, keep: int) -> float:
    """A transform and a direction that are asked for one row at a time, by texts without a model's work."""
    from legend_hf.reading import forward

    width = json.loads((DEMO / "annotator" / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    zeros = torch.zeros(1, 8192, width)

    def nothing(model: Any, inputs: Any, layers: Any, take: Callable[[int, torch.Tensor], None], **_: Any) -> None:
        for layer in layers:
            take(layer, zeros)

    fn, kept = transform(), []
    rows = [{name: text[:200] for name, text in row.items()} for row in rows_of(arguments.data, 500)]
    forward.hidden_states = nothing
    for i in range(number):
        if i == number // 10:
            gc.collect()
            before = resident()
        row = rows[i % len(rows)]
        fn({name: [text] for name, text in row.items()})
        kept += [bytes(keep)] if keep else []
    gc.collect()
    return resident() - before


def resident() -> float:
    """MiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def killed(arguments: argparse.Namespace, number: int, folder: str) -> None:
    """A run that notes what it reads, and may end at any moment."""
    remote_store.CHUNK_ROWS, remote_store.CHUNK_SECONDS = chunk(number), 3600.0
    read = OpenReader.read

    def noted(opened: OpenReader, texts: Any, layers: Any, *, batch_tokens: int | None = None) -> Iterator[Any]:
        with open(f"{folder}/log", "a", encoding="ascii") as file:
            file.write(f"{len(texts)}\n")
        yield from read(opened, texts, layers, batch_tokens=batch_tokens)

    OpenReader.read = noted  # type: ignore[method-assign, assignment]
    fn = transform(store=os.environ["LEGEND_HF_SCALE_STORE"])
    made = annotate(dataset(arguments, number), fn, batch_size=PASS)
    np.save(f"{folder}/result.npy", np.array(made["margin_raw"]))


def handled(arguments: argparse.Namespace, number: int, folder: str) -> dict[str, float]:
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    without_model()
    rows, found, fn = dataset(arguments, number), dict[str, float](), transform()
    ways: dict[str, dict[str, Any]] = {"": {}}
    if (default_folder() / "config.json").is_file():
        ways[" by a chat template"] = {"model": default_folder(), "template": "chat"}
    for name, how in ways.items():
        once, kept = transform(**how), transform(**how, store=f"{folder}/{len(found)}.sqlite")
        annotate(rows.select(range(8)), once)
        found[f"cold{name}, µs a row"] = 1e6 * seconds(lambda: annotate(rows, once)) / number  # noqa: B023
        annotate(rows, kept)
        found[f"warm{name}, µs a row"] = 1e6 * seconds(lambda: annotate(rows, kept)) / number  # noqa: B023
    rows.save_to_disk(f"{folder}/rows")
    annotate(Dataset.load_from_disk(f"{folder}/rows"), fn)
    found["cached, s in all"] = seconds(lambda: annotate(Dataset.load_from_disk(f"{folder}/rows"), fn))
    return found


def peak() -> float:
    """Peak MiB of this process; where it is told, without what a parent had before."""
    if os.path.exists("/proc/self/status"):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- The table ---------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """What was measured, beside what is aimed at, in lines."""
    lines = [f"{usable_cores()} cores, rows of {arguments.data.name}, the shipped toy model.", ""]
    lines += ["| figure | aim | measured |", "|---|---|---|"]
    if "time" in found:
        each = {int(n): 1e3 * s / int(n) for n, s in found["time"].items()}
        off = max(each.values()) / min(each.values()) - 1
        said = ", ".join(f"{n:,} rows {found['time'][str(n)]:.1f} s" for n in each)
        lines.append(f"| time against rows | linear within 5 % | {said}: a row's time differs by {off:.0%} |")
    if "memory" in found:
        sizes = found["memory"]
        off = max(sizes.values()) / min(sizes.values()) - 1
        said = ", ".join(f"{int(n):,} rows {size:.0f} MiB" for n, size in sizes.items())
        lines.append(f"| peak memory, streaming | flat within 5 % | {said}: {off:.1%} |")
    if "handling" in found:
        said = ", ".join(f"{name} {value:,.3g}" for name, value in found["handling"].items())
        lines.append(f"| row handling | 300 µs / 200 µs / 1 s | {said} |")
    if "workers" in found:
        one, two, auto, took = (found["workers"][name] for name in ("1", "2", "auto, whole call", "auto took"))
        lines.append(
            f"| two workers against one, same threads in all | 1.0 × | {two / one:.2f} × ({one:.1f} and {two:.1f} "
            f"rows/s; `auto` took {took}: {auto:.1f} with start and trial) |"
        )
    if "calls" in found:
        number, grown, control = found["calls"].values()
        lines.append(
            f"| memory of a server, {number:,} calls | no growth | {grown:+.1f} MiB after the first tenth "
            f"(the control, {number // 10:,} calls that keep 10,000 bytes each: {control:+.1f} MiB) |"
        )
    if "ray" in found:
        ray, mapped = found["ray"]["ray, a row"], found["ray"]["map, a row"]
        said = ", ".join(f"{name} {1e3 * s:.2f} ms" if name.endswith("a row") else f"{name} {s:.1f} s"
                         for name, s in found["ray"].items())  # fmt: skip
        lines.append(
            "| Ray, two nodes, against `ds.map` of two: a row, the start of neither counted | 0.9 × | "
            f"{mapped / ray:.2f} × ({said}; whole calls with their start) |"
        )
    if "kills" in found:
        said = ", ".join(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                         for name, value in found["kills"].items())  # fmt: skip
        lines.append(f"| killed, gone on with an empty disk | complete, equal, one chunk a worker again | {said} |")
    if "cost" in found:
        lines += ["", f"Computed, not measured: {found['cost']['tokens a row']:.0f} tokens a row (both texts, nothing "
                  f"shared), an H100 at {EFFICIENCY:.0%} of {PEAK / 1e12:.0f} TFLOP/s, {PRICE:.2f} dollars an hour, "
                  "start-up and the reading of rows not counted.", ""]  # fmt: skip
        lines += ["| reader | 160,000 rows | 100 million rows |", "|---|---|---|"]
        for name in READERS:
            cells = [f"{c['hours']:,.2g} h, {c['dollars']:,.2g} $" if c["hours"] < 10 else
                     f"{c['hours']:,.0f} h, {c['dollars']:,.0f} $" for c in found["cost"][name].values()]  # fmt: skip
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


if __name__ == "__main__":
    main()
