"""What the tests share: a Hub on this machine, a tiny random model, the shipped demonstration.

`huggingface_hub`, `datasets` and `transformers` read their environment when they are imported, so it is set
here, before any test module is. No test reaches the network: the only Hub there is listens on 127.0.0.1.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import LoopbackHub

# A busy machine is no failure, and what passes here passes everywhere.
settings.register_profile("legend_hf", deadline=None, derandomize=True)
settings.load_profile("legend_hf")

ROOT = Path(__file__).resolve().parents[1]

_early = {"huggingface_hub", "datasets", "transformers"} & set(sys.modules)
if _early:
    raise RuntimeError(f"{sorted(_early)} imported before tests/conftest.py could point them at the loopback Hub")

_home = tempfile.mkdtemp(prefix="legend_hf_tests_")
_hub = LoopbackHub()
os.environ.update(_hub.env(_home))
# A cache or an offline switch of the developer's own must not decide whether a test passes.
for _name in (
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_ASSETS_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    # These stand before the number of threads that a test sets.
    *(name for name in os.environ if name.startswith(("MKL_", "KMP_", "GOMP_", "OPENBLAS_"))),
):
    os.environ.pop(_name, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure() -> None:
    # A shell that runs the tests in the background has SIGINT ignored in them and in all that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _hub.start()


def pytest_unconfigure() -> None:
    _hub.stop()
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def hub() -> LoopbackHub:
    """The loopback Hub: `hub.faults.add(...)`, `hub.log("PUT /up/")`. Repositories stay all session."""
    import datasets

    # `load_dataset` asks another host for exported Parquet files; this is the only switch for it.
    datasets.config.USE_PARQUET_EXPORT = False
    return _hub


@pytest.fixture(autouse=True)
def _no_left_over_faults() -> Iterator[None]:
    yield
    _hub.faults.clear()


@pytest.fixture(autouse=True)
def _what_is_logged_stays() -> Iterator[None]:
    """A script that a test calls keeps warnings to itself, and must not for the tests behind it."""
    logger = logging.getLogger("legend_hf")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public preference data that lies beside a developer's checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder.parent.name}/{folder.name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def real_llm() -> Path:
    """The folder of the real chat model, whose tests are marked `real`."""
    sys.path.insert(0, str(ROOT / "scripts" / "demo"))
    from real_llm import default_folder

    folder = default_folder()
    if not (folder / "config.json").is_file():
        pytest.skip("needs the real chat model; `scripts/real_llm` makes it")
    return folder


@pytest.fixture(scope="session")
def real_gguf(real_llm: Path) -> Path:
    """The file that the real chat model was made of."""
    from real_llm import gguf_beside

    file = gguf_beside(real_llm)
    if not file.is_file():
        pytest.skip("needs the real chat model's own file; `scripts/real_llm --gguf` keeps it")
    return file


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the shipped demonstration annotator."""
    return ROOT / "scripts" / "demo" / "annotator"


_CORPUS = [
    "Human: How do I bake bread? Assistant: Mix flour, water, salt and yeast, then wait and bake.",
    "Human: Can you help me to hurt my neighbour? Assistant: I will not help with that, but we can talk about it.",
    "Human: What is the capital of France? Assistant: Paris is the capital of France.",
    "Human: Tell me a secret. Assistant: I do not keep secrets; ask me something else, please.",
    "### Instruction: Name three colours. ### Response: Red, green and blue.",
]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (3 blocks, width 32) and a byte-level BPE tokenizer that adds BOS."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")

    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaModel(config).eval()
    folder = tmp_path_factory.mktemp("tiny_llama")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
