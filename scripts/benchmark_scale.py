"""What does scale cost? Time and memory against rows, workers, a cluster, kills; and hours and money by arithmetic.

In: preference rows, the shipped annotator as a toy model. Out: a table in Markdown, and JSON. Rows are those of the
file again and again, each made its own by a number before it. Every figure is measured in this run, in a process of its
own where memory or start-up count, but for the last table, which is computed and says from what.

The default is small and takes minutes. All of it, on an idle machine:

    python scripts/benchmark_scale.py --data ../shared/data/hh_harmless.jsonl --sizes 1000 10000 100000
        --memory 10000 40000 --rows 2000 --kills 10 --json scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars, load_dataset
from tqdm.auto import tqdm

from legend_hf import Direction, LegendMarginFn, annotate
from legend_hf.directions.calibrate import Calibration
from legend_hf.margins.devices import usable_cores
from legend_hf.margins.sharing import parts_of
from legend_hf.margins.workers import handed_out, workers
from legend_hf.reading.reader import OpenReader, describe_model
from legend_hf.scale import annotate_ray, annotate_stream

DEMO = Path(__file__).parent / "demo"
COLUMNS = ("prompt", "chosen", "rejected")
# Readers of the cost model: parameters without embeddings, in billions; layers; width. Of the public configs of
# SmolLM2-135M, Qwen2.5-1.5B, Qwen2.5-7B and Llama-3.1-70B.
READERS = {"135M": (0.106, 30, 576), "1.5B": (1.31, 28, 1536), "7B": (6.53, 28, 3584), "70B": (68.5, 80, 8192)}
PEAK, EFFICIENCY, PRICE = 989e12, 0.4, 3.0  # an H100's bfloat16 rate; what is reached of it; US dollars an hour


def main() -> None:
    """Measures one thing after the other, and prints the table."""
    arguments = parse()
    disable_progress_bars()
    if arguments.once:
        what, rows, folder = arguments.once
        once(what, int(rows), folder, arguments)
        return
    found: dict[str, Any] = {"cores": usable_cores(), "data": arguments.data.name, "arguments": sys.argv[1:]}
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "time": time_against_rows, "memory": memory_against_rows, "handling": handling, "workers": two_workers,
        "ray": ray_against_map, "kills": kills, "cost": cost,
    }  # fmt: skip
    with tqdm([name for name in parts if not arguments.only or name in arguments.only], unit="part") as bar:
        for name in bar:
            bar.set_description(name)
            found[name] = parts[name](arguments)
    print_table(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = DEMO / "preferences" / "dialogue.jsonl"
    parser.add_argument("--data", type=Path, default=sample, help="JSON lines of preference rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 400, 800], help="rows of time against rows")
    parser.add_argument("--memory", type=int, nargs="+", default=[2000, 6000], help="rows of memory against rows")
    parser.add_argument("--rows", type=int, default=300, help="rows of everything else")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="some parts: time memory handling workers ray kills cost")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--once", nargs=3, metavar=("WHAT", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


# -- What is read ------------------------------------------------------------------------------------------------------


def rows_of(file: Path, number: int) -> Iterator[dict[str, str]]:
    """Real rows, each its own."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for i in range(number):
        row = lines[i % len(lines)]
        own = row if "prompt" in row else {name: row[name].replace("Human: ", f"Human: {i}: ", 1) for name in row}
        yield {name: f"{i}: {own[name]}" if name == "prompt" else own[name] for name in COLUMNS if name in row}


def dataset(arguments: argparse.Namespace, number: int) -> Dataset:
    return Dataset.from_list(list(rows_of(arguments.data, number)))


def transform(**options: Any) -> LegendMarginFn:
    """Margins by the toy model along some direction, which costs what any does."""
    reader = describe_model(str(DEMO / "annotator"), pooling="last", template="dialogue")
    vector = np.zeros(reader.d_model, dtype=np.float32)
    vector[0] = 1.0
    direction = Direction(vector, reader, Calibration("unit", 1.0), model_path=str(DEMO / "annotator"))
    return LegendMarginFn(direction, on_error="skip", **options)


def without_model() -> None:
    """From here on reading costs nothing: what is left is the handling of rows."""
    import torch

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
    """Seconds of `annotate`, the model loaded, by rows."""
    fn = transform()
    annotate(dataset(arguments, 20), fn)
    return {str(n): seconds(lambda n=n: annotate(dataset(arguments, n), fn)) for n in arguments.sizes}  # type: ignore[misc]


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
    found["auto, whole call"] = len(rows) / seconds(lambda: annotate(rows.with_format(None), fn, devices="auto"))
    return found


def ray_against_map(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the whole call, with two processes each: `ds.map`, and Ray on two nodes of this machine."""
    import ray
    from ray.cluster_utils import Cluster

    rows, fn = dataset(arguments, arguments.rows), transform()
    found = {"map": seconds(lambda: rows.map(fn, batched=True, batch_size=50, num_proc=2, with_rank=True))}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(8):
            rows.shard(8, i).to_parquet(f"{folder}/rows/{i}.parquet")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
        node = {"num_cpus": 3, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        options: dict[str, Any] = {"concurrency": (1, 2), "num_cpus": 2, "batch_size": 50}
        found["ray"] = seconds(lambda: annotate_ray(f"{folder}/rows", fn, f"{folder}/out", **options))
        ray.shutdown()
        cluster.shutdown()
    return found


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """A stream that is killed at random moments and gone on with by processes that share nothing but its output."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        done, log = 0, Path(folder) / "log"
        while done < arguments.kills:
            process = start("killed", arguments.rows, folder, arguments)
            before = computed(folder)
            while process.poll() is None and computed(folder) == before:
                time.sleep(0.05)  # until it reads
            time.sleep(draw.random() * 2.0)
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            done += 1
        finish = start("killed", arguments.rows, folder, arguments)
        assert finish.wait() == 0, log
        out = load_dataset(f"{folder}/out", split="train")
        texts = [row["chosen"] for row in rows_of(arguments.data, arguments.rows)]
        whole = annotate(dataset(arguments, arguments.rows), transform())
        return {
            "kills": done,
            "complete": out["chosen"][:] == texts,
            "furthest from the whole, in its standard deviations":
                float(np.abs(np.array(out["margin_raw"]) - whole["margin_raw"]).max() / np.std(whole["margin_raw"])),
            "rows computed again, a kill": (computed(folder) - arguments.rows) / max(1, done),
            "rows of a piece": piece(arguments.rows),
        }  # fmt: skip


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


def piece(rows: int) -> int:
    return max(10, rows // 20)


def computed(folder: str) -> int:
    log = Path(folder) / "log"
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def start(what: str, rows: int, folder: str, arguments: argparse.Namespace, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--data", str(arguments.data), "--once", what, str(rows), folder]
    return subprocess.Popen(command, text=True, **options)


def in_own_process(what: str, rows: int, arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        said = start(what, rows, folder, arguments, stdout=subprocess.PIPE).communicate()[0]
    return said.strip().splitlines()[-1]


def once(what: str, number: int, folder: str, arguments: argparse.Namespace) -> None:
    """What is measured in a process of its own; prints what it found."""
    from datasets import Features, IterableDataset, Value

    fn = transform()
    if what == "handling":
        sys.stdout.write(json.dumps(handled(arguments, number, folder)) + "\n")
        return
    given = {"file": arguments.data, "number": number}
    kinds = Features({name: Value("string") for name in COLUMNS if name in next(rows_of(arguments.data, 1))})
    stream = IterableDataset.from_generator(rows_of, features=kinds, gen_kwargs=given)
    if what == "stream":
        without_model()
        annotate_stream(stream, fn, f"{folder}/out", rows_per_file=1000)
        sys.stdout.write(f"{peak()}\n")
        return
    read = OpenReader.read

    def noted(opened: OpenReader, texts: Any, layers: Any, *, batch_tokens: int | None = None) -> Iterator[Any]:
        with open(f"{folder}/log", "a", encoding="ascii") as log:
            log.write(f"{len(texts) // 2}\n")
        yield from read(opened, texts, layers, batch_tokens=batch_tokens)

    OpenReader.read = noted  # type: ignore[method-assign, assignment]
    annotate_stream(stream, fn, f"{folder}/out", rows_per_file=piece(number), batch_size=10)


def handled(arguments: argparse.Namespace, number: int, folder: str) -> dict[str, float]:
    without_model()
    fn, kept = transform(), transform(store=f"{folder}/s.sqlite")
    rows = dataset(arguments, number)
    annotate(rows.select(range(8)), fn)
    found = {"cold, µs a row": 1e6 * seconds(lambda: annotate(rows, fn)) / number}
    annotate(rows, kept)
    found["warm, µs a row"] = 1e6 * seconds(lambda: annotate(rows, kept)) / number
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


def print_table(found: dict[str, Any]) -> None:
    """What was measured, beside what is aimed at."""
    lines = [f"{found['cores']} cores, rows of {found['data']}, the shipped toy model.", ""]
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
        one, two, auto = (found["workers"][name] for name in ("1", "2", "auto, whole call"))
        lines.append(
            f"| two workers against one, same threads in all | 1.0 × | {two / one:.2f} × ({one:.1f} and {two:.1f} "
            f"rows/s; `auto`, starting included, {auto:.1f}) |"
        )
    if "ray" in found:
        ray, mapped = found["ray"]["ray"], found["ray"]["map"]
        lines.append(
            f"| Ray, two nodes, against `ds.map` of two | 0.9 × | {mapped / ray:.2f} × ({ray:.1f} and {mapped:.1f} s) |"
        )
    if "kills" in found:
        said = ", ".join(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
                         for name, value in found["kills"].items())  # fmt: skip
        lines.append(f"| killed and gone on with | complete, equal, one piece again | {said} |")
    if "cost" in found:
        lines += ["", f"Computed, not measured: {found['cost']['tokens a row']:.0f} tokens a row (both texts, nothing "
                  f"shared), an H100 at {EFFICIENCY:.0%} of {PEAK / 1e12:.0f} TFLOP/s, {PRICE:.2f} dollars an hour, "
                  "start-up and the reading of rows not counted.", ""]  # fmt: skip
        lines += ["| reader | 160,000 rows | 100 million rows |", "|---|---|---|"]
        for name in READERS:
            cells = [f"{c['hours']:,.2g} h, {c['dollars']:,.2g} $" if c["hours"] < 10 else
                     f"{c['hours']:,.0f} h, {c['dollars']:,.0f} $" for c in found["cost"][name].values()]  # fmt: skip
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
