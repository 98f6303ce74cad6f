"""How fast are margins? Ways of reading the same pairs with the same model, side by side, in one run.

In: preference rows and a model: the real chat model where `scripts/real_llm` made it, else, or with `--arch`, random
weights of a named public architecture with the shipped tokenizer. Out: a table of pairs per second, ratios to the
paper's public code, the fraction of the floor, agreement of the margins, and JSON. Of the real model bfloat16 is also
held against float32 along its ready direction.

The floor is the time that the arithmetic alone takes: 2 x parameters of the blocks used x distinct tokens, and the
attention's own products, at the fastest rate of matrix products that was measured in this run for the dtype.

    python scripts/benchmark.py --data ../shared/data/hh_harmless.jsonl --json benchmark.json

`--scale` measures many rows, workers and machines instead: `scripts/benchmark_scale.py`, whose options it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm.auto import tqdm
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from legend_hf import Direction, LegendMarginFn
from legend_hf.directions.calibrate import Calibration
from legend_hf.reading.attention import NAME as TREE
from legend_hf.reading.attention import tree_attention
from legend_hf.reading.formats import Pair, pairs_from_batch
from legend_hf.reading.packing import plan_trees
from legend_hf.reading.reader import OpenReader, Reader, Runtime, close_readers, describe_model, open_reader
from legend_hf.reading.templates import Tokens, render

DEMO = Path(__file__).parent / "demo"
sys.path.append(str(DEMO))
# Public architectures, by their published configs.
ARCHITECTURES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "smollm2-135m": (LlamaConfig, LlamaForCausalLM, {
        "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "rope_theta": 100000.0,
    }),
    "smollm2-360m": (LlamaConfig, LlamaForCausalLM, {
        "num_hidden_layers": 32, "hidden_size": 960, "num_attention_heads": 15, "num_key_value_heads": 5,
        "intermediate_size": 2560, "vocab_size": 49152, "tie_word_embeddings": True, "rope_theta": 100000.0,
    }),
    "tiny": (LlamaConfig, LlamaForCausalLM, {
        "num_hidden_layers": 6, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 256, "vocab_size": 4096, "tie_word_embeddings": True, "rope_theta": 10000.0,
    }),
    "llama-3.2-1b": (LlamaConfig, LlamaForCausalLM, {
        "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "rope_theta": 500000.0,
    }),
    "qwen2.5-1.5b": (Qwen2Config, Qwen2ForCausalLM, {
        "num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1000000.0,
    }),
}  # fmt: skip
USUAL_ARCH = "smollm2-135m"
MAX_LENGTH = 2048
PADDED_ROWS = 8
# Pairs along the ready direction: of a few, one that changes its place would be much of a rank correlation.
AGREEMENT_PAIRS = 200
# Of a profile: what is told of the operations within attention, and which of the others are products.
ATTENTION = "attention"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul")


@dataclass(frozen=True)
class Job:
    """What every way of reading gets: the model's folder, the rows, and the texts as strings."""

    folder: str
    device: str
    rows: list[dict[str, Any]]
    texts: list[str]


Run = Callable[[Job], np.ndarray]


def main() -> None:
    """Measures every way in turn, several times over, and prints the table."""
    if "--scale" in sys.argv:
        import benchmark_scale

        sys.argv.remove("--scale")
        benchmark_scale.main()
        return
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()  # one bar is enough
    rows = read_rows(arguments.data, arguments.pairs)
    if arguments.once:
        way, folder, output = arguments.once
        run_once(way, Job(folder, arguments.device, rows, strings_of(folder, rows)), Path(output))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = str(arguments.model or place)
        if arguments.model is None:
            make_model(arguments.arch, folder)
        result = measure(Job(folder, arguments.device, rows, strings_of(folder, rows)), arguments, Path(place))
    print_table(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = DEMO / "preferences" / "dialogue.jsonl"
    parser.add_argument("--data", type=Path, default=sample, help="JSON lines of preference rows")
    parser.add_argument("--model", type=Path, help="folder of a model like Llama; else the real one that is there")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="random weights of this architecture instead")
    parser.add_argument("--pairs", type=int, default=48, help="rows to read; a short file is repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="say too what our reader's time goes to, on a CPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--once", nargs=3, metavar=("WAY", "FOLDER", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model and arguments.arch:
        parser.error("`--model` and `--arch` name two models; give one")
    if not (arguments.model or arguments.arch):
        arguments.model = real_model()
        arguments.arch = None if arguments.model else USUAL_ARCH
    return arguments


def real_model() -> Path | None:
    """The real chat model's folder, None where it was not made."""
    from real_llm import default_folder

    return default_folder() if (default_folder() / "config.json").is_file() else None


# -- What is read ------------------------------------------------------------------------------------------------------


def make_model(arch: str, folder: str) -> None:
    """Saves a random model of an architecture beside the shipped tokenizer."""
    config_class, model_class, shape = ARCHITECTURES[arch]
    torch.manual_seed(0)
    model = model_class(config_class(**shape, max_position_embeddings=MAX_LENGTH, dtype="float32"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "annotator").save_pretrained(folder)


def read_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """The file's readable rows, spread over the whole of it; again from the start where there are too few."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    keep = [k for k in ("prompt", "chosen", "rejected") if k in lines[0]]
    rows = [{k: line[k] for k in keep} for line in lines]
    columns = {k: [row[k] for row in rows] for k in keep}
    rows = [row for row, pair in zip(rows, pairs_from_batch(columns), strict=True) if isinstance(pair, Pair)]
    step = max(1, len(rows) // count)
    return [rows[i * step % len(rows)] for i in range(count)]


def strings_of(folder: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Both texts of every row, as a plain string each: what the other ways tokenise themselves."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = pairs_from_batch({k: [row[k] for row in rows] for k in rows[0]})
    return [
        render(side, tokenizer, template="dialogue", joiner=" ", date="2025-01-01").text
        for pair in pairs
        if isinstance(pair, Pair)
        for side in (pair.chosen, pair.rejected)
    ]


# -- Ways of reading: each loads its model and returns a `Run`, which gives vectors [texts, d_model] ------------------


def public_code(job: Job) -> Run:
    """The paper's public code: one text at a time, with the language-model head and all hidden states."""
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32).to(job.device).eval()

    def run(job: Job) -> np.ndarray:
        vectors = []
        with torch.no_grad():
            for text in job.texts:
                inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_LENGTH).to(job.device)
                vectors.append(model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].float().cpu())
        return torch.stack(vectors).numpy()

    return run


def padded(job: Job, dtype: torch.dtype = torch.float32) -> Run:
    """Batches sorted by length and padded on the right, without head: what a careful user writes."""
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    model = AutoModel.from_pretrained(job.folder, dtype=dtype).to(job.device).eval()

    def run(job: Job) -> np.ndarray:
        order = sorted(range(len(job.texts)), key=lambda i: -len(job.texts[i]))
        vectors = torch.empty(len(job.texts), model.config.hidden_size)
        with torch.inference_mode():
            for first in range(0, len(order), PADDED_ROWS):
                index = order[first : first + PADDED_ROWS]
                batch = tokenizer(
                    [job.texts[i] for i in index], padding=True, padding_side="right", truncation=True,
                    max_length=MAX_LENGTH, return_tensors="pt",
                ).to(job.device)  # fmt: skip
                states = model(**batch, use_cache=False).last_hidden_state
                last = batch["attention_mask"].sum(1) - 1
                vectors[index] = states[torch.arange(len(index)), last].float().cpu()
        return vectors.numpy()

    return run


def sentence_transformers(job: Job) -> Run:
    """`SentenceTransformer.encode` with last-token pooling: what a user would pick instead."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(job.folder, max_seq_length=MAX_LENGTH, model_kwargs={"dtype": torch.float32})
    pooling = Pooling(words.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[words, pooling], device=job.device)
    return lambda job: np.asarray(model.encode(job.texts, batch_size=PADDED_ROWS, show_progress_bar=False))


def llama_cpp(job: Job, precise: bool = False) -> Run:
    """`llama.cpp`'s embeddings of the GGUF that the model was made of, last token: what a user with such a file has."""
    import llama_cpp
    from real_llm import gguf_beside

    file = gguf_beside(Path(job.folder))
    with tempfile.TemporaryDirectory() as place:
        if precise:
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
            four_bits, file = file, Path(place) / "float32.gguf"
            if llama_cpp.llama_model_quantize(bytes(four_bits), bytes(file), settings):
                raise SystemExit(f"llama.cpp cannot write {four_bits} in float32")
        model = llama_cpp.Llama(
            str(file), embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_LAST, n_ctx=MAX_LENGTH,
            n_batch=MAX_LENGTH, n_ubatch=MAX_LENGTH, n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(), n_gpu_layers=0 if job.device == "cpu" else -1, verbose=False,
        )  # fmt: skip
    return lambda job: np.asarray(model.embed(job.texts, normalize=False), dtype=np.float32)


def ours(job: Job, dtype: str = "float32", depth: float = 1.0) -> Run:
    """This library's reader, from rows to vectors, formats and tokens included."""
    opened = open_ours(job, dtype, depth)
    return lambda job: read_all(opened, job)


def read_all(opened: OpenReader, job: Job) -> np.ndarray:
    """The vector of every text."""
    flat = tokens_of(opened, job)
    vectors = np.empty((len(flat), opened.reader.d_model), dtype=np.float32)
    for index, hidden in opened.read(flat, [opened.reader.layer]):
        vectors[index] = hidden[:, 0].cpu().numpy()
    return vectors


def open_ours(job: Job, dtype: str, depth: float) -> OpenReader:
    """Loads our reader, the model only as deep as needed."""
    close_readers()
    return open_reader(reader_of(job, dtype, depth), Runtime(path=job.folder, device=job.device))


def reader_of(job: Job, dtype: str, depth: float) -> Reader:
    """The reader of a fraction of the blocks."""
    reader = describe_model(job.folder, pooling="last", template="dialogue", dtype=dtype, device=job.device)
    return replace(reader, layer=round(reader.n_layers * depth))


def tokens_of(opened: OpenReader, job: Job) -> list[Tokens]:
    """Both sides of every row as tokens, where both can be read."""
    rows = pairs_from_batch({k: [row[k] for row in job.rows] for k in job.rows[0]})
    texts = opened.encode([side for pair in rows if isinstance(pair, Pair) for side in (pair.chosen, pair.rejected)])
    both = zip(texts[0::2], texts[1::2], strict=True)
    pairs = ((a, b) for a, b in both if isinstance(a, Tokens) and isinstance(b, Tokens))
    return [text for pair in pairs for text in pair]


WAYS: dict[str, Callable[[Job], Run]] = {
    "public code": public_code,
    "padded": padded,
    "padded, bfloat16": lambda job: padded(job, torch.bfloat16),
    "sentence-transformers": sentence_transformers,
    "llama.cpp": lambda job: llama_cpp(job, precise=True),
    "llama.cpp, 4 bits": llama_cpp,
    "ours": ours,
    "ours, two thirds": lambda job: ours(job, depth=2 / 3),
    "ours, bfloat16": lambda job: ours(job, dtype="bfloat16"),
}
TITLES = {
    "public code": "(a) public code: one by one, LM head, all states",
    "padded": "(b) padded batches sorted by length",
    "padded, bfloat16": "(b) the same in bfloat16",
    "sentence-transformers": "(b) sentence-transformers encode, last token",
    "llama.cpp": "(b) llama.cpp embeddings, last token, float32",
    "llama.cpp, 4 bits": "(b) the same of the four-bit file itself",
    "ours": "(c) ours, last layer",
    "ours, two thirds": "(d) ours, two thirds depth",
    "ours, bfloat16": "(e) ours, last layer, bfloat16",
}


LLAMA_CPP = ("llama.cpp", "llama.cpp, 4 bits")
PACKAGES = {"sentence-transformers": "sentence_transformers", **dict.fromkeys(LLAMA_CPP, "llama_cpp")}


# -- Measuring ---------------------------------------------------------------------------------------------------------


def left_out(folder: str) -> dict[str, str]:
    """The ways that cannot be gone here, and why."""
    from real_llm import gguf_beside

    reasons = {}
    if not gguf_beside(Path(folder)).is_file():
        reasons = dict.fromkeys(LLAMA_CPP, "no GGUF of this model; `scripts/real_llm --gguf` keeps the real one's")
    return reasons | {way: f"no package `{name}`" for way, name in PACKAGES.items() if find_spec(name) is None}


def measure(job: Job, arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Every way in turn, `repeats` times, so that a slow minute of the machine hits all of them."""
    missing = left_out(job.folder)
    ways = [way for way in WAYS if way not in missing]
    shape = AutoConfig.from_pretrained(job.folder)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    vectors: dict[str, np.ndarray] = {}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    overheads: list[float] = []
    with tqdm(total=arguments.repeats * (len(ways) + 1), desc="Benchmark", unit="run") as bar:
        for _ in range(arguments.repeats):
            for dtype in rates:
                rates[dtype].append(matrix_rate(shape, getattr(torch, dtype), job.device))
            for name in ways:
                bar.set_postfix_str(name)
                took, memory[name], vectors[name] = in_own_process(name, job.folder, arguments, place)
                seconds[name].append(took)
                bar.update()
            bar.set_postfix_str("ds.map")
            overheads.append(map_overhead(job))
            bar.update()
    close_readers()
    pairs = len(job.rows)
    middle = {name: median(values) for name, values in seconds.items()}
    floors = {
        "ours": floor(job, shape, 1.0, max(rates["float32"])),
        "ours, two thirds": floor(job, shape, 2 / 3, max(rates["float32"])),
        "ours, bfloat16": floor(job, shape, 1.0, max(rates["bfloat16"])),
    }
    return {
        "machine": machine(job.device, arguments.threads),
        "model": arguments.model.name if arguments.model else f"{arguments.arch}, random weights",
        "data": arguments.data.name,
        "pairs": pairs,
        "repeats": arguments.repeats,
        "tokens": {"read by (a)": read_tokens(job), "distinct": distinct_tokens(job)},
        "ways": {
            name: {
                "pairs_per_second": pairs / middle[name],
                "seconds": seconds[name],
                "to_public_code": middle["public code"] / middle[name],
                "fraction_of_floor": floors[name] / middle[name] if name in floors else None,
                "peak_memory_mib": memory[name],
            }
            for name in ways
        },
        "left_out": missing,
        "to_padded": {
            "float32": middle["padded"] / middle["ours"],
            "bfloat16": middle["padded, bfloat16"] / middle["ours, bfloat16"],
        },
        "matrix_gflops": {dtype: max(values) / 1e9 for dtype, values in rates.items()},
        "map_overhead": median(overheads),
        "seconds_to_first_row": first_row(job),
        "agreement": agreement(vectors),
        "ready_direction": ready_agreement(arguments) if arguments.model and arguments.model == real_model() else None,
        "profile": {dtype: shares(job, dtype) for dtype in rates} if arguments.profile else {},
    }


def run_once(way: str, job: Job, place: Path) -> None:
    """Runs one way, writes its vectors into a folder and its time and peak memory to standard output."""
    run = WAYS[way](job)
    # Two rows first: kernels are made and memory is mapped once in a process, not once in a dataset.
    run(replace(job, rows=job.rows[:2], texts=job.texts[:4]))
    if job.device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    vectors = run(job)
    took = time.perf_counter() - start
    np.save(place / "vectors.npy", vectors)
    sys.stdout.write(f"{took} {own_peak_mib()}\n")


def in_own_process(
    way: str, folder: str, arguments: argparse.Namespace, place: Path
) -> tuple[float, float, np.ndarray]:
    """Seconds, peak memory in MiB and vectors of one way: in one process, its settings would serve the others too."""
    done = subprocess.run(
        [sys.executable, __file__, "--once", way, folder, str(place), "--data", str(arguments.data),
         "--pairs", str(arguments.pairs), "--threads", str(arguments.threads), "--device", arguments.device],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    took, peak = map(float, done.stdout.split()[-2:])
    return took, peak, np.load(place / "vectors.npy")


def matrix_rate(shape: Any, dtype: torch.dtype, device: str, rows: int = 1024) -> float:
    """Operations a second of the fastest matrix product, over the shapes of the model and the ways to compute them."""
    d, mlp = shape.hidden_size, shape.intermediate_size
    best = 0.0
    rows = rows if device == "cpu" else 8192
    for n_in, n_out in ((d, d), (d, mlp), (mlp, d), (d, 2 * mlp)):
        x = torch.randn(rows, n_in, device=device).to(dtype)
        w = torch.randn(n_out, n_in, device=device).to(dtype)
        products: list[Callable[[], Any]] = [lambda x=x, w=w: torch.nn.functional.linear(x, w)]  # type: ignore[misc]
        if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            onednn = torch.ops.mkldnn._linear_pointwise
            products.append(lambda x=x, w=w, onednn=onednn: onednn(x, w, None, "none", [], ""))  # type: ignore[misc]
        with torch.inference_mode():
            for product in products:
                times = []
                product()
                for _ in range(12):
                    start = time.perf_counter()
                    product()
                    if device != "cpu":
                        torch.cuda.synchronize()
                    times.append(time.perf_counter() - start)
                best = max(best, 2 * rows * n_in * n_out / min(times))
    return best


def floor(job: Job, shape: Any, depth: float, rate: float) -> float:
    """Seconds that the products alone take at the measured rate."""
    layers = round(shape.num_hidden_layers * depth)
    d, mlp = shape.hidden_size, shape.intermediate_size
    key_width = d * shape.num_key_value_heads // shape.num_attention_heads
    per_block = 2 * d * d + 2 * d * key_width + 3 * d * mlp  # parameters of a block's matrices
    packs = tree_packs(job)
    tokens = sum(len(pack) for pack in packs)
    keys_seen = sum(int(pack.position_ids.sum()) + len(pack) for pack in packs)
    return layers * (2 * per_block * tokens + 4 * d * keys_seen) / rate


def tree_packs(job: Job) -> list[Any]:
    """All texts in one tree forest, every distinct token once."""
    opened = open_ours(job, "float32", 1.0)
    flat = tokens_of(opened, job)
    return plan_trees([t.ids for t in flat], [(t.last,) for t in flat], max_tokens=1 << 40, min_shared=1)


def distinct_tokens(job: Job) -> int:
    """Tokens that have to be read once, whatever the way."""
    return sum(len(pack) for pack in tree_packs(job))


def read_tokens(job: Job) -> int:
    """Tokens that reading every text whole takes."""
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    return sum(len(ids) for ids in tokenizer(job.texts, truncation=True, max_length=MAX_LENGTH)["input_ids"])


def map_overhead(job: Job) -> float:
    """Time of `ds.map` with the transform over the time of its forward passes alone, less one."""
    reader = reader_of(job, "float32", 1.0)
    vector = np.zeros(reader.d_model, dtype=np.float32)
    vector[0] = 1.0
    fn = LegendMarginFn(Direction(vector, reader, Calibration("unit", 1.0), model_path=job.folder), device=job.device)
    ds = Dataset.from_list(job.rows)
    opened = open_ours(job, "float32", 1.0)
    flat = list(dict.fromkeys(tokens_of(opened, job)))
    fn(Dataset.from_list(job.rows[:2])[:])  # opens its own reader, so that loading is in neither time
    start = time.perf_counter()
    for _, hidden in opened.read(flat, [reader.layer]):
        hidden.cpu()
    reading = time.perf_counter() - start
    start = time.perf_counter()
    ds.map(fn, batched=True)
    return (time.perf_counter() - start) / reading - 1


def first_row(job: Job) -> float:
    """Seconds from nothing loaded to the first margin of a stream, in batches of 8 rows."""
    close_readers()
    reader = reader_of(job, "float32", 1.0)
    vector = np.zeros(reader.d_model, dtype=np.float32)
    vector[0] = 1.0
    direction = Direction(vector, reader, Calibration("unit", 1.0), model_path=job.folder)
    stream = Dataset.from_list(job.rows).to_iterable_dataset()
    start = time.perf_counter()
    fn = LegendMarginFn(direction, device=job.device)
    next(iter(stream.map(fn, batched=True, batch_size=8)))
    return time.perf_counter() - start


def ready_agreement(arguments: argparse.Namespace) -> dict[str, Any]:
    """How far bfloat16 moves the real model's margins along its ready direction, as that direction reads."""
    direction = Direction.from_pretrained(DEMO / "real_direction", model=str(arguments.model))
    lines = sum(1 for line in arguments.data.read_text(encoding="utf-8").splitlines() if line)
    job = Job(str(arguments.model), arguments.device, read_rows(arguments.data, min(AGREEMENT_PAIRS, lines)), [])
    margins = {}
    for dtype in ("float32", "bfloat16"):
        close_readers()
        reader = replace(direction.reader, dtype=dtype)
        opened = open_reader(reader, Runtime(path=job.folder, device=job.device))
        scores = read_all(opened, job).astype(np.float64) @ direction.vector.astype(np.float64)
        margins[dtype] = scores[0::2] - scores[1::2]
    close_readers()
    return {
        "pairs": len(margins["float32"]),
        "layer": direction.reader.layer,
        **apart(margins["bfloat16"], margins["float32"]),
    }


def apart(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far margins are from what they should be."""
    ranks, right = (np.argsort(np.argsort(values)).astype(np.float64) for values in (found, exact))
    return {
        "largest_difference_over_std": float(np.abs(found - exact).max() / exact.std()),
        "spearman": float(np.corrcoef(ranks, right)[0, 1]),
    }


def agreement(vectors: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far margins differ, along the mean difference of the pairs as the public code reads them."""
    reference = vectors["public code"].astype(np.float64)
    direction = (reference[0::2] - reference[1::2]).mean(0)
    direction /= np.linalg.norm(direction)

    def margins(name: str) -> np.ndarray:
        return (vectors[name][0::2].astype(np.float64) - vectors[name][1::2]) @ direction

    exact = margins("public code")
    return {name: apart(margins(name), exact) for name in vectors if name != "public code" and "two thirds" not in name}


def shares(job: Job, dtype: str) -> dict[str, float]:
    """Seconds of one reading by what they went to: products, attention, element by element, and what is no tensor's."""
    opened = open_ours(job, dtype, 1.0)
    read_all(opened, job)

    def told(*args: Any, **kwargs: Any) -> Any:
        with record_function(ATTENTION):
            return tree_attention(*args, **kwargs)

    AttentionInterface.register(TREE, told)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            start = time.perf_counter()
            read_all(opened, job)
            took = time.perf_counter() - start
    finally:
        AttentionInterface.register(TREE, tree_attention)
    close_readers()
    parts = dict.fromkeys(("matrix products", ATTENTION, "element by element"), 0.0)
    for event in seen.events():
        parts[kind_of(event)] += event.self_cpu_time_total / 1e6
    return {**parts, "other": max(0.0, took - sum(parts.values()))}


def kind_of(event: Any) -> str:
    """What an operation counts as."""
    above = event
    while above is not None:
        if above.name == ATTENTION:
            return ATTENTION
        above = above.cpu_parent
    return "matrix products" if event.name in PRODUCTS or event.name.startswith("mkldnn::") else "element by element"


def own_peak_mib() -> float:
    """Peak memory of this process; what `getrusage` says is, on Linux, that of the parent where it was larger."""
    if os.path.exists("/proc/self/status"):
        (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine(device: str, threads: int) -> str:
    """The machine for a person to read."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{threads} threads of {model}, torch {torch.__version__}"


def print_table(result: dict[str, Any]) -> None:
    """The result as Markdown."""
    lines = [
        f"{result['model']}, {result['pairs']} pairs of {result['data']}, {result['machine']}; medians of "
        f"{result['repeats']} interleaved runs. {result['tokens']['read by (a)']} tokens, "
        f"{result['tokens']['distinct']} of them distinct.",
        "",
        "| way | pairs/s | ÷ public code | of the floor | peak memory, MiB | margins differ by, of their deviation |",
        "|---|---|---|---|---|---|",
    ]
    for name, way in result["ways"].items():
        part = f"{way['fraction_of_floor']:.2f}" if way["fraction_of_floor"] is not None else ""
        peak = f"{way['peak_memory_mib']:.0f}"
        same = result["agreement"].get(name)
        differ = f"{same['largest_difference_over_std']:.1e}, Spearman {same['spearman']:.4f}" if same else ""
        lines.append(
            f"| {TITLES[name]} | {way['pairs_per_second']:.2f} | {way['to_public_code']:.2f} | {part} | {peak} "
            f"| {differ} |"
        )
    rates, ready = result["matrix_gflops"], result["ready_direction"]
    lines += [
        "",
        f"* ours ÷ padded: {result['to_padded']['float32']:.2f} in float32, {result['to_padded']['bfloat16']:.2f} in "
        "bfloat16.",
        f"* Matrix products: {rates['float32']:.0f} Gflop/s in float32, {rates['bfloat16']:.0f} in bfloat16.",
        f"* `ds.map` and row handling on top of the reader: {100 * result['map_overhead']:.1f} %.",
        f"* First row of a stream after {result['seconds_to_first_row']:.1f} s, loading and probing included.",
        *(f"* Left out: {TITLES[way]}: {reason}." for way, reason in result["left_out"].items()),
    ]
    if ready:
        lines.append(
            f"* bfloat16 along the ready direction (layer {ready['layer']}, {ready['pairs']} pairs): Spearman with "
            f"float32 {ready['spearman']:.4f}, largest difference {ready['largest_difference_over_std']:.1e} of the "
            "margins' standard deviation."
        )
    for dtype, parts in result["profile"].items():
        whole = sum(parts.values())
        told = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in parts.items())
        lines.append(f"* Where our time goes in {dtype}, {whole:.1f} s under the profiler: {told}.")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
