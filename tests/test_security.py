"""What a stranger's files, a busy server and a careless moment can do: nothing that runs, tells or leaves behind.

That strings cannot break out of a card is in `test_cards`; refused artifacts, byte by byte, are in `test_direction`.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import shutil
import stat
import struct
import tempfile
import traceback
import unicodedata
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import pair_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback_hub import WRITE_TOKEN, LoopbackHub
from typer.testing import CliRunner

from legend_hf import ArtifactError, Direction, LegendMarginFn, Writer, annotate, fit_direction, publish
from legend_hf.cli import app, screen
from legend_hf.directions import differences
from legend_hf.directions import direction as direction_module
from legend_hf.directions.calibrate import RAW
from legend_hf.directions.direction import CONFIG_FILE, TENSOR_FILE, _digest, _unpack
from legend_hf.directions.induce import induce_pairs
from legend_hf.hub import transfer
from legend_hf.hub.outputs import write_whole
from legend_hf.margins.store import Store
from legend_hf.margins.stores import store_at
from legend_hf.publish import push_annotated, save_annotated
from legend_hf.reading import templates
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, close_readers, describe_model, open_reader

PAIRS = pair_rows()


@pytest.fixture(autouse=True)
def _no_model_is_kept() -> Iterator[None]:
    """A model that an earlier test loaded would hide that this one loads none."""
    close_readers()
    yield
    close_readers()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)


@pytest.fixture
def repo_id(hub: LoopbackHub) -> str:
    return f"user/s{uuid.uuid4().hex[:12]}"


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.evidence,)


def uploaded(folder: Path, repo_id: str) -> tuple[str, str]:
    """Puts a folder on the Hub: its id and its commit."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    return repo_id, HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid


@pytest.fixture(scope="module")
def whole(tiny_llama: Path) -> Direction:
    """A direction as a stranger would publish it, whose model is said to be on the Hub."""
    reader = replace(describe_model(tiny_llama), model="user/nowhere", revision="0" * 40, model_sha256=None)
    return Direction(np.eye(reader.d_model, dtype=np.float32)[0], reader, RAW)


def forged(direction: Direction, folder: Path, *, tensors: bytes | None = None, **reader: Any) -> Path:
    """Saves an artifact with another reader or other tensors, and a digest that fits."""
    direction.save_pretrained(folder)
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    config.pop("sha256")
    config["reader"].update(reader)
    tensors = (folder / TENSOR_FILE).read_bytes() if tensors is None else tensors
    (folder / TENSOR_FILE).write_bytes(tensors)
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "sha256": _digest(config, tensors)}))
    return folder


# ---------------------------------------------------------------- code: weights


def with_pickled_weights(model: Path, folder: Path, name: str = "pytorch_model.bin") -> Path:
    """A copy of a model whose only weights are a pickle that makes the file `ran` in it; where that is."""
    import torch

    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(Runs(folder / "ran"), folder / name)
    # The control: this is what it would do.
    torch.load(folder / name, weights_only=False)
    (folder / "ran").unlink()
    return folder / "ran"


def test_pickled_weights_of_a_folder_are_not_loaded(tiny_llama: Path, tmp_path: Path):
    model = tmp_path / "model"
    ran = with_pickled_weights(tiny_llama, model)
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        fit_direction(PAIRS, model=str(model))
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        open_reader(describe_model(model), Runtime(path=str(model)))
    assert not ran.exists()


def test_pickled_weights_of_an_annotator_are_not_loaded(demo: Path, tmp_path: Path):
    model = tmp_path / "model"
    ran = with_pickled_weights(demo, model)
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        induce_pairs([{"prompt": "How do I bake bread?"}], model=Writer(model, max_new_tokens=1))
    assert not ran.exists()


def test_weights_that_a_config_names_are_safetensors_too(tiny_llama: Path, tmp_path: Path):
    """A model's config can name its file of weights, and then `use_safetensors` is not asked."""
    import torch
    from transformers import AutoModel

    model = tmp_path / "model"
    ran = with_pickled_weights(tiny_llama, model, "adapter_model.bin")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    for call in (
        lambda: describe_model(model),
        lambda: fit_direction(PAIRS, model=str(model)),
        lambda: induce_pairs([{"prompt": "How do I bake bread?"}], model=Writer(model, max_new_tokens=1)),
    ):
        with pytest.raises(ValueError, match=r"names its weights 'adapter_model.bin'.*safetensors"):
            call()
    assert not ran.exists()
    # The control: the library itself opens that file, in spite of being told to take safetensors.
    torch.save(AutoModel.from_pretrained(tiny_llama).state_dict(), model / "adapter_model.bin")
    AutoModel.from_pretrained(model, use_safetensors=True)


def test_pickled_weights_of_a_directions_model_on_the_hub_are_not_loaded(
    whole: Direction, tiny_llama: Path, tmp_path: Path, repo_id: str, hub: LoopbackHub
):
    model = tmp_path / "model"
    ran = with_pickled_weights(tiny_llama, model)
    name, commit = uploaded(model, repo_id)
    direction = Direction.from_pretrained(forged(whole, tmp_path / "direction", model=name, revision=commit))
    hub.log(clear=True)
    with pytest.raises(OSError, match=r"does not appear to have a file named model.safetensors"):
        direction.score("Why?", "Because.")
    assert not ran.exists()
    assert not hub.log(r"pytorch_model\.bin|discussions"), "neither fetched nor sent to be converted"


# ---------------------------------------------------------------- code: programs in a model's repository


def with_code(model: Path, folder: Path) -> Path:
    """A copy of a model with a program of its own, which makes the file `ran` when it is imported; where that is."""
    ran = folder.with_name("ran")
    shutil.copytree(model, folder)
    (folder / "own.py").write_text(
        f"from pathlib import Path\n\nfrom transformers import LlamaConfig, LlamaModel\n\nPath({str(ran)!r}).touch()\n\n\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n\n\nclass Model(LlamaModel):\n    config_class = Config\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    return ran


def test_a_folders_program_runs_only_when_told(tiny_llama: Path, tmp_path: Path):
    model = tmp_path / "model"
    ran = with_code(tiny_llama, model)
    for call in (
        lambda: describe_model(model),
        lambda: fit_direction(PAIRS, model=str(model)),
        lambda: induce_pairs([{"prompt": "How do I bake bread?"}], model=Writer(model, max_new_tokens=1)),
    ):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            call()
    assert not ran.exists()
    reader = describe_model(model, trust_remote_code=True)
    assert ran.exists()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        open_reader(reader, Runtime(path=str(model)))
    opened = open_reader(reader, Runtime(path=str(model), trust_remote_code=True))
    assert type(opened.model).__name__ == "Model"


def test_a_tokenizers_program_runs_only_when_told(tiny_llama: Path, tmp_path: Path):
    model, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_llama, model)
    (model / "own.py").write_text(
        "from pathlib import Path\n\nfrom transformers import PreTrainedTokenizerFast\n\n"
        f"Path({str(ran)!r}).touch()\n\n\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        describe_model(model)
    assert not ran.exists()
    describe_model(model, trust_remote_code=True)
    assert ran.exists()


def test_the_program_of_a_directions_model_runs_only_when_told(
    whole: Direction, tiny_llama: Path, tmp_path: Path, repo_id: str
):
    model = tmp_path / "model"
    ran = with_code(tiny_llama, model)
    name, commit = uploaded(model, repo_id)
    artifact = forged(whole, tmp_path / "direction", model=name, revision=commit, model_type="own", config_sha256=None)
    artifact_id, _ = uploaded(artifact, f"{repo_id}-direction")
    direction = Direction.from_pretrained(artifact_id)
    row = {"prompt": ["Why?"], "chosen": ["Because."], "rejected": ["Ask me later."]}
    for call in (lambda: direction.score("Why?", "Because."), lambda: LegendMarginFn(direction)(row)):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            call()
    assert not ran.exists()
    margins = LegendMarginFn(direction, trust_remote_code=True)(row)["margin"]
    assert ran.exists()
    assert np.isfinite(margins).all()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_ask_for_a_program_from_the_hub(tiny_llama: Path, tmp_path: Path, key: str):
    """A config can name a repository with a kernel as its attention."""
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: "user/kernel"}))
    with pytest.raises(ValueError, match="asks for the program 'user/kernel'.*trust_remote_code"):
        describe_model(model)
    assert describe_model(model, trust_remote_code=True).d_model == 32  # the control: it was that alone


# ---------------------------------------------------------------- artifacts


def test_a_pickle_in_place_of_the_tensors_is_refused_and_not_run(whole: Direction, tmp_path: Path):
    content = pickle.dumps(Runs(tmp_path / "ran"))
    with pytest.raises(ArtifactError, match="`direction.safetensors` that cannot be read"):
        Direction.from_pretrained(forged(whole, tmp_path / "a", tensors=content))
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)  # the control
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "model",
    ["/etc", "{here}", ".", "..", "./you/model", "../x", "you/../model", "you/..", "~/model", "~", "you/model/more",
     "file:///etc", "hf://you/model", "https://a/b", "zip://x::y", "C:\\model", "you\\model", "you/model\n", "", " ",
     "you/mo del", "you/model@main", "a" * 201],
)  # fmt: skip
def test_an_artifact_names_no_place_on_this_machine(
    whole: Direction, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
):
    monkeypatch.chdir(tiny_llama)
    with pytest.raises(ArtifactError, match="names the model .*, which is no Hub id; ask its author"):
        Direction.from_pretrained(forged(whole, tmp_path, model=model.format(here=tiny_llama)))


@pytest.mark.parametrize("model", ["you/model", "model", "0-y_o.u/Mo-d_e.l"])
def test_a_hub_id_is_accepted(whole: Direction, tmp_path: Path, model: str):
    assert Direction.from_pretrained(forged(whole, tmp_path, model=model)).reader.model == model


@pytest.mark.parametrize("revision", ["main", None, "../../../../tmp", "refs/pr/1", "0" * 39, "A" * 40])
def test_an_artifact_names_its_model_by_commit(whole: Direction, tmp_path: Path, revision: str | None):
    with pytest.raises(ArtifactError, match="names the revision .* of its model, which is no commit"):
        Direction.from_pretrained(forged(whole, tmp_path, revision=revision))


@pytest.mark.parametrize("name", ["model", "you/model"])
def test_a_folder_here_is_not_read_in_place_of_a_directions_model(
    whole: Direction, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """A folder of the same spelling is what the library that loads models prefers."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, tmp_path / name)
    direction = Direction.from_pretrained(forged(whole, tmp_path / "direction", model=name))
    with pytest.raises(ValueError, match=f"`{name}` is a model on the Hub, and something here is called the same"):
        direction.score("Why?", "Because.")
    # The control: it would have been read.
    from transformers import AutoModel

    assert AutoModel.from_pretrained(name, revision="0" * 40).config.hidden_size == 32
    given = Direction.from_pretrained(tmp_path / "direction", model=tmp_path / name)
    assert np.isfinite(given.score("Why?", "Because."))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 10**12}, "has `reader.max_length` = 1000000000000, more than 16777216"),
        ({"max_length": 10**400}, "has `reader.max_length` = 10+.*, not int"),
        ({"n_layers": 10**9, "layer": 10**9}, "has `reader.n_layers` = 1000000000, more than 65536"),
        ({"layer": 10**9}, "contradicts itself: `layer` is 1000000000"),
        ({"layer": -1}, "contradicts itself: `layer` is -1"),
        ({"d_model": 10**12}, "contradicts itself: `vector` is"),
        ({"template": "{prompt}" + "x" * 10**6}, "has a `reader.template` of 1000008 characters, and at most 10000"),
        ({"joiner": "x" * 10**6}, "has a `reader.joiner` of 1000000 characters"),
        ({"fit_joiner": "x" * 10**6}, "has a `reader.fit_joiner` of 1000000 characters"),
        ({"template": "\ud800{prompt}"}, "that UTF-8 can write"),
        ({"date": "1" * 10**5}, "contradicts itself: Invalid isoformat"),
    ],
)
def test_sizes_in_an_artifact_are_bounded(whole: Direction, tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(ArtifactError, match=message) as caught:
        Direction.from_pretrained(forged(whole, tmp_path, **change))
    assert len(str(caught.value)) < 1000 + 10**5 * ("date" in change)


def test_a_direction_reads_no_further_than_its_model(whole: Direction, tiny_llama: Path, tmp_path: Path, repo_id: str):
    name, commit = uploaded(tiny_llama, repo_id)
    for length in (512, 513):
        artifact = forged(whole, tmp_path, model=name, revision=commit, max_length=length)
        direction = Direction.from_pretrained(artifact)
        if length == 512:
            direction.score("Why?", "Because.")
        else:
            with pytest.raises(ValueError, match="it reads up to 512 tokens, the direction up to 513"):
                direction.score("Why?", "Because.")


def tensors_of(kind: str, shape: list[int], size: int, *, offset: int | None = None) -> bytes:
    header = {"direction": {"dtype": kind, "shape": shape, "data_offsets": [0, size if offset is None else offset]}}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(size)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (struct.pack("<Q", 1 << 60) + b"{}", "header too large"),
        (tensors_of("F32", [10**12], 8, offset=4 * 10**12), "cannot be read"),
        (tensors_of("F32", [1 << 62, 4], 0), "cannot be read"),
        (tensors_of("F32", [0, 1 << 40], 0), r"`vector` is float32 \[0, 1099511627776\]"),
        (tensors_of("BF16", [32], 64), "cannot be read"),
        (tensors_of("F8_E4M3", [32], 32), "cannot be read"),
        (tensors_of("I64", [32], 256), "`vector` is int64"),
    ],
)
def test_a_tensor_is_no_larger_than_its_file(whole: Direction, tmp_path: Path, tensors: bytes, message: str):
    with pytest.raises(ArtifactError, match=message):
        Direction.from_pretrained(forged(whole, tmp_path, tensors=tensors))


def test_files_of_an_artifact_are_bounded(whole: Direction, tmp_path: Path):
    whole.save_pretrained(tmp_path)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / TENSOR_FILE, TENSOR_FILE)
        archive.writestr(CONFIG_FILE, b" " * (8 * 1024 * 1024 + 1))
    assert (tmp_path / "packed.zip").stat().st_size < 50_000
    for source in (tmp_path, f"zip://::file://{tmp_path}/packed.zip"):
        if source == tmp_path:
            (tmp_path / CONFIG_FILE).write_bytes((tmp_path / CONFIG_FILE).read_bytes() + b" " * (8 * 1024 * 1024))
        with pytest.raises(ValueError, match="`config.json` of .* is larger than the 8388608 bytes"):
            Direction.from_pretrained(source)


@pytest.mark.parametrize("depth", [100, 900, 980, 985, 990, 995, 1000, 10**5])
def test_a_deep_config_is_refused(whole: Direction, tmp_path: Path, depth: int):
    whole.save_pretrained(tmp_path)
    deep = (tmp_path / CONFIG_FILE).read_text().replace('"seed": null', f'"seed": {"[" * depth}{"]" * depth}')
    with pytest.raises(ArtifactError, match="is not JSON|nested too deep|does not match its own sha256"):
        _unpack(deep.encode(), (tmp_path / TENSOR_FILE).read_bytes(), "you/direction")


@pytest.mark.parametrize("template", ["{prompt.__class__}", "{prompt!r}", "{prompt:>9999999}", "{0}", "{}", "%s"])
def test_a_template_without_a_plain_prompt_is_refused(whole: Direction, tmp_path: Path, template: str):
    with pytest.raises(ArtifactError, match="`template` is .*; allowed are"):
        Direction.from_pretrained(forged(whole, tmp_path, template=template))


def test_a_template_is_text_and_no_program(whole: Direction, tmp_path: Path):
    tricks = "{prompt.__class__.__mro__} {0} {prompt!r:>99} %s ${prompt} {{ 7 * 7 }} {% for x in y %}"
    direction = Direction.from_pretrained(forged(whole, tmp_path, template=tricks + "{prompt}", joiner="{prompt}|"))
    reader = direction.reader
    rendered = templates.render(
        conversation("Why {prompt}?", "Because {0}."), None, template=reader.template, joiner=reader.joiner, date=reader.date
    )  # fmt: skip
    # The first plain `{prompt}` takes the prompt, which here stands in `${prompt}`; all else is text.
    before, after = (tricks + "{prompt}").split("{prompt}", 1)
    assert rendered.text == f"{before}Why {{prompt}}?{after}{{prompt}}|Because {{0}}."
    assert "mro" not in tricks.partition("{0}")[0].format_map({"prompt": ""})  # the control: what a formatter would do


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].getcwd() }}",
        "{% for i in range(999999999) %}{% endfor %}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(tiny_llama: Path, template: str):
    """The sandbox is that of `transformers`; what it refuses is an error of the row."""
    import jinja2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = template
    with pytest.raises(templates.TextError, match="the chat template refuses these messages"):
        templates.render(conversation("Why?", "So."), tokenizer, template="chat", joiner="", date="2025-01-01")
    if "range" not in template:
        jinja2.Environment().from_string(template).render(messages=[])  # the control: without one, it runs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(["reader", "facts"]), data=st.data())
def test_whatever_stands_in_an_artifact_it_is_refused_or_can_be_saved(whole: Direction, part: str, data: st.DataObject):
    config = whole.to_config()
    name = data.draw(st.sampled_from(sorted(config[part])))
    config[part] = {**config[part], name: data.draw(JSON)}
    tensors = whole._files(None)[TENSOR_FILE]
    sealed = {**json.loads(json.dumps(config)), "sha256": _digest(json.loads(json.dumps(config)), tensors)}
    try:
        direction = _unpack(json.dumps(sealed).encode(), tensors, "you/direction")
    except ArtifactError:
        return
    card = direction._files(None)["README.md"].decode()
    assert card.count("legend_hf:begin") == card.count("legend_hf:end") == 1
    assert direction.reader.model is not None
    assert transfer._REPO_ID.fullmatch(f"x/{direction.reader.model.replace('/', '-')}")


# ---------------------------------------------------------------- tokens


# Like none that a pattern would find: only whoever knows it can leave it out.
TOKEN = "-".join(["api", "org", "kLm93xPqR7vT"])
JWT = ".".join(["hf_jwt_eyJhbGciOiJS", "eyJzdWIiOiJ1c2VyIn0", "c2lnbmF0dXJl-x_y"])


@pytest.fixture(params=["argument", "environment"])
def token(hub: LoopbackHub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What to pass as `token=`, so that `TOKEN` is used."""
    hub.config.tokens[TOKEN] = {"user": "user", "role": "write"}
    if request.param == "argument":
        monkeypatch.delenv("HF_TOKEN")
        return TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return None


def printed(error: BaseException) -> str:
    """All that Python shows of an error, but for the source lines, which may name the token's own name."""
    return "".join(traceback.format_exception(error))


def said(caplog: pytest.LogCaptureFixture) -> str:
    """All that this library logged, with tracebacks."""
    format_ = logging.Formatter().format
    return "\n".join(format_(record) for record in caplog.records if record.name.startswith("legend_hf"))


def annotated(direction: Direction) -> Any:
    """A dataset such as `annotate` makes."""
    from datasets import Dataset, DatasetDict, Features, Value

    raw = np.linspace(-2, 2, 9).astype(np.float32)
    numbers = {"margin": direction.calibration.apply(raw.astype(np.float64)), "margin_raw": raw}
    texts = {"chosen": [f"yes {i}" for i in range(9)], "rejected": [f"no {i}" for i in range(9)]}
    features = {**dict.fromkeys(texts, Value("string")), **dict.fromkeys(numbers, Value("float32"))}
    return DatasetDict(train=Dataset.from_dict({**texts, **numbers}, features=Features(features)))


def operation(name: str, direction: Direction, repo_id: str, token: str | None, cache: Path) -> Any:
    if name == "load":
        return Direction.from_pretrained(repo_id, token=token, cache_dir=cache)
    if name == "push":
        changed = replace(direction, facts=replace(direction.facts, pairs_source=uuid.uuid4().hex))
        return changed.push_to_hub(repo_id, token=token)
    return push_annotated(annotated(direction), repo_id, direction=direction, token=token)


FAULTS: dict[str, dict[str, Any]] = {
    "401": {"action": "status", "status": 401, "path": "/api/"},
    "403": {"action": "status", "status": 403, "path": "/api/"},
    "429": {"action": "status", "status": 429, "path": "/api/", "retry_after": 0},
    "500": {"action": "status", "status": 500, "path": "/api/"},
    "dropped": {"action": "drop", "path": "/api/"},
    "upload refused": {"action": "status", "status": 403, "path": "/up/", "side": "store"},
    "download refused": {"action": "status", "status": 403, "path": "^/dl/", "side": "store"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["load", "push", "publish"])
def test_no_token_is_told_when_the_hub_fails(
    hub: LoopbackHub, whole: Direction, repo_id: str, tmp_path: Path, token: str | None, name: str, fault: str, caplog
):
    """The server quotes the token in its answer, which is the worst that it can do; signed URLs are secrets as well."""
    if fault == ("upload refused" if name == "load" else "download refused"):
        return
    if name == "load":
        whole.push_to_hub(repo_id, token=token)
    hub.faults.add(count=-1, message=f"no good: Bearer {TOKEN}", **FAULTS[fault])
    with caplog.at_level(logging.DEBUG), pytest.raises(OSError, match="cannot (read|push|look)") as caught:
        operation(name, whole, repo_id, token, tmp_path)
    assert sum(rule["hits"] for rule in hub.faults.list())
    for text in (str(caught.value), printed(caught.value), said(caplog)):
        assert TOKEN not in text
        assert "Signature=" not in text
    if fault in ("429", "500", "dropped"):
        assert "trying again" in said(caplog)
    # The control: the client's own error holds it.
    if fault.isdigit():
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        with pytest.raises(HfHubHTTPError) as bare:
            HfApi(token=TOKEN).model_info(repo_id)
        assert TOKEN in printed(bare.value)


@pytest.mark.parametrize("name", ["load", "push", "publish"])
def test_no_token_is_kept_when_all_goes_well(
    hub: LoopbackHub, whole: Direction, repo_id: str, tmp_path: Path, token: str | None, name: str, caplog
):
    if name == "load":
        whole.push_to_hub(repo_id, token=token)
    hub.log(clear=True)
    with caplog.at_level(logging.DEBUG):
        made = operation(name, whole, repo_id, token, tmp_path / "cache")
    assert all(record["auth"] for record in hub.log("/api/")), "the token was used"
    repo = hub.store.repos["datasets" if name == "publish" else "models", *repo_id.split("/")]
    stored = [hub.store.blobs.read(entry["sha"]) for entry in repo.resolve("main").tree.values()]
    kept = [said(caplog).encode(), repr(made).encode(), pickle.dumps(made), *stored]
    kept += [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    if isinstance(made, Direction):
        kept.append(pickle.dumps(LegendMarginFn(made)))
    assert not [content for content in kept if TOKEN.encode() in content]


def test_no_token_is_in_what_annotating_writes(
    hub: LoopbackHub, whole: Direction, tiny_llama: Path, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a private direction and a private model, from the transform's pickle to the store and the saved dataset."""
    from datasets import Dataset

    hub.config.tokens[TOKEN] = {"user": "user", "role": "write"}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    name, commit = uploaded(tiny_llama, repo_id)
    uploaded(forged(whole, tmp_path / "direction", model=name, revision=commit), f"{repo_id}-direction")
    shutil.rmtree(tmp_path / "direction")
    direction = Direction.from_pretrained(f"{repo_id}-direction", token=TOKEN)
    fn = LegendMarginFn(direction, store=tmp_path / "scores.sqlite")
    made = annotate(Dataset.from_list(PAIRS), fn)
    save_annotated(made, tmp_path / "saved", direction=direction)
    made.save_to_disk(tmp_path / "disk")
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"scores.sqlite", "README.md", "state.json"} <= {file.name for file in kept}
    assert not [file for file, content in kept.items() if TOKEN.encode() in content]
    assert TOKEN.encode() not in pickle.dumps(fn)
    assert TOKEN.encode() in pickle.dumps({"where": os.environ["HF_TOKEN"]})  # the control


@pytest.mark.parametrize("bad", ["{}\n", "\n{}", "{} ", "{}\u00e9", "a\0{}"])
def test_a_token_that_cannot_be_one_is_refused_unseen(hub: LoopbackHub, repo_id: str, bad: str, caplog):
    """The client would put it into a header and, where that is refused, quote the header."""
    hub.log(clear=True)
    given = bad.format(TOKEN)
    with caplog.at_level(logging.DEBUG):
        for call in (
            lambda: transfer.read_files(repo_id, ["a"], token=given),
            lambda: transfer.Repository(repo_id, token=given).commit({"a": b"1"}, commit_message="x"),
        ):
            with pytest.raises(ValueError, match="`token` holds a space, a line end or another character") as caught:
                call()
            assert TOKEN not in printed(caught.value)
    assert TOKEN not in caplog.text
    assert hub.log() == []


@pytest.mark.parametrize("secret", [JWT, WRITE_TOKEN])
def test_a_token_that_this_process_does_not_know_is_left_out_by_its_form(
    hub: LoopbackHub, repo_id: str, secret: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    hub.faults.add(path="/api/", action="status", status=401, message=f"no good: {secret}, sorry", count=-1)
    with pytest.raises(PermissionError, match=r"401 no good: hf_\*\*\*, sorry") as caught:
        transfer.read_files(repo_id, ["a"], token="another-token")
    for part in secret.removeprefix("hf_").split("."):
        assert part not in printed(caught.value)


def test_the_cause_stays_where_it_tells_nothing(hub: LoopbackHub, repo_id: str):
    hub.faults.add(path="/api/", action="status", status=403, message="not today", count=-1)
    with pytest.raises(PermissionError) as caught:
        transfer.Repository(repo_id).describe()
    assert "not today" in str(caught.value.__cause__)


def test_a_notes_token_is_seen():
    error = ValueError("fine")
    assert transfer._cause(error, TOKEN) is error
    error.add_note(f"sent {TOKEN}")
    assert transfer._cause(error, TOKEN) is None


# ---------------------------------------------------------------- credentials in URLs


SECRET = "Zq8-wLk2"
URLS = [
    "s3://KEY:{}@bucket/folder", "s3://KEY:ab/{}+c@bucket/folder", "https://me:{}@127.0.0.1:9/folder",
    "https://127.0.0.1:9/folder?token={}", "https://127.0.0.1:9/folder?X-Date=1:2&X-Signature={}#x",
    "https://127.0.0.1:9/folder#{}", "ftp://me:p@{}@127.0.0.1:9/folder", "ftp://me:p'{}@127.0.0.1:9/folder",
    "ftp://{}@127.0.0.1:9/folder", "memory://nowhere?a='{}", "zip://a::memory://nowhere.zip?key={}",
    "zip://a::ftp://me:{}@127.0.0.1:9/x.zip", "simplecache::ftp://me:{}@127.0.0.1:9/x", "ftp:/me:{}@127.0.0.1/x",
    "nothing://me:{}@host/x", "reference::https://me:{}@host/x",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_no_url_is_told_with_its_credentials(url: str, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises((OSError, ValueError, ImportError)) as caught:
        Direction.from_pretrained(url.format(SECRET))
    assert SECRET not in str(caught.value)
    assert SECRET not in printed(caught.value)
    assert SECRET not in said(caplog)
    assert "***" in str(caught.value)
    with pytest.raises((OSError, ValueError, ImportError)) as caught:  # nor as the name of a model
        describe_model(url.format(SECRET))
    assert SECRET not in printed(caught.value)


@pytest.mark.parametrize("url", ["loud://me:{}@host/x", "loud://host/x?key={}", "zip://x::loud://host/x?key={}"])
@pytest.mark.parametrize("moment", ["at once", "when opened"])
def test_what_a_file_system_says_of_a_url_is_cleaned(url: str, moment: str):
    """Every kind of URL has errors of its own, of any class, which quote the URL or a part of it."""
    import fsspec
    from fsspec.spec import AbstractFileSystem

    class LoudError(Exception):
        pass

    class Loud(AbstractFileSystem):
        protocol = "loud"
        cachable = False

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if moment == "at once":
                raise LoudError(f"denied: {url.format(SECRET)} (key '{SECRET}')")

        def _open(self, path: str, **options: Any) -> Any:
            raise LoudError(f"denied: {path} and {url.format(SECRET)}, as {SECRET} is wrong")

        def info(self, path: str, **options: Any) -> Any:
            raise LoudError(f"denied: {path} and {url.format(SECRET)}, as {SECRET} is wrong")

    fsspec.register_implementation("loud", Loud, clobber=True)
    with pytest.raises(OSError, match=r"`(zip://x::)?loud://.*\*\*\*.*denied") as caught:
        Direction.from_pretrained(url.format(SECRET))
    assert SECRET not in printed(caught.value)
    with pytest.raises(LoudError) as bare, fsspec.open(url.format(SECRET)) as file:  # the control
        file.read()
    assert SECRET in printed(bare.value)


def test_a_broken_artifact_is_named_without_its_urls_credentials(whole: Direction):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(f"/me:{SECRET}@host/broken/{CONFIG_FILE}", b"{")
    memory.pipe(f"/me:{SECRET}@host/broken/{TENSOR_FILE}", b"")
    with pytest.raises(ArtifactError, match=r"the direction at 'memory://\*\*\*@host/broken' has a `config.json`") as e:
        Direction.from_pretrained(f"memory://me:{SECRET}@host/broken")
    assert SECRET not in printed(e.value)


# ---------------------------------------------------------------- URLs read what they name


@contextmanager
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Notes every file that an fsspec file system opens: (path, mode)."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.implementations.zip import ZipFileSystem

    seen: list[tuple[str, str]] = []
    with monkeypatch.context() as patched:
        for kind in (LocalFileSystem, MemoryFileSystem, ZipFileSystem):

            def noted(self, path, mode="rb", *args, _real=kind._open, **options):
                seen.append((str(path), mode))
                return _real(self, path, mode, *args, **options)

            patched.setattr(kind, "_open", noted)
        yield seen


def test_a_url_reads_the_files_of_the_artifact_and_no_other(whole: Direction, tmp_path: Path, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    whole.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "other.json").write_text("{}")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in (tmp_path / "in").iterdir():
            memory.pipe(f"/bounded/{file.name}", file.read_bytes())
            archive.write(file, f"in/{file.name}")
    own = {CONFIG_FILE, TENSOR_FILE}
    cases = {
        "memory://bounded": {f"/bounded/{name}" for name in own},
        f"file://{tmp_path}/in": {f"{tmp_path}/in/{name}" for name in own},
        f"zip://in::file://{packed}": {str(packed), *(f"in/{name}" for name in own)},
    }
    for url, allowed in cases.items():
        with opens(monkeypatch) as seen:
            assert Direction.from_pretrained(url).reader == whole.reader
        assert {path for path, _ in seen} == allowed, url
        assert {mode for _, mode in seen} == {"rb"}
    with opens(monkeypatch) as seen:  # the control
        memory.open("/bounded/other.json").close()
        memory.open("/bounded/new", "wb").close()
    assert seen == [("/bounded/other.json", "rb"), ("/bounded/new", "wb")]


def test_no_path_leads_out_of_an_archive(whole: Direction, tmp_path: Path):
    whole.save_pretrained(tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("in/nothing", b"")
    for inside in ("..", "in/..", f"{tmp_path}", "../../.." + str(tmp_path), "*"):
        with pytest.raises(FileNotFoundError, match="`config.json` is not at"):
            Direction.from_pretrained(f"zip://{inside}::file://{tmp_path}/empty.zip")


@pytest.mark.parametrize("form", ["reference::file://{}", "reference://{}", "REFERENCE::file://{}", "dir::reference::file://{}"])  # fmt: skip
def test_a_list_of_references_is_refused(whole: Direction, tmp_path: Path, form: str):
    """It could name any file of this machine, and any host."""
    import fsspec

    whole.save_pretrained(tmp_path / "private")
    listed = {name: [f"file://{tmp_path}/private/{name}"] for name in (CONFIG_FILE, TENSOR_FILE)}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="is a `reference` URL, which reads other files than it names; give"):
        Direction.from_pretrained(form.format(tmp_path / "list.json"))
    # The control: they would be read.
    fs = fsspec.filesystem("reference", fo=f"{tmp_path}/list.json", remote_protocol="file")
    assert fs.cat(CONFIG_FILE) == (tmp_path / "private" / CONFIG_FILE).read_bytes()


def test_the_hubs_token_goes_to_the_hub_only(whole: Direction, monkeypatch: pytest.MonkeyPatch):
    import fsspec

    seen: list[dict[str, Any]] = []
    real = fsspec.core.url_to_fs
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: seen.append(options) or real(url, **options))
    for url in ("memory://nowhere", "zip://x::memory://nowhere.zip", "hf://user/nowhere/sub"):
        with pytest.raises(OSError, match="; check the URL"):
            Direction.from_pretrained(url, token=WRITE_TOKEN)
    assert seen == [{}, {}, {"token": WRITE_TOKEN}]


# ---------------------------------------------------------------- files for a while


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Nothing is private by the process's own settings."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_umask: None) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("fails", [False, True])
def test_a_push_leaves_nothing_and_shows_nothing(
    hub: LoopbackHub, whole: Direction, repo_id: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
):
    seen: list[tuple[Path, int]] = []

    def create_commit(*args: Any, **options: Any) -> Any:
        seen.extend((folder, mode(folder)) for folder in temporary.iterdir())
        assert list(temporary.rglob("*.parquet")), "the rows lie there now"
        return real_commit(*args, **options)

    from huggingface_hub import HfApi

    real_commit = HfApi.create_commit
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    if fails:
        hub.faults.add(path="/commit/main", action="status", status=500, count=-1)
        with pytest.raises(ConnectionError):
            push_annotated(annotated(whole), repo_id, direction=whole)
    else:
        push_annotated(annotated(whole), repo_id, direction=whole)
    assert seen
    assert {m for _, m in seen} == {0o700}
    assert list(temporary.iterdir()) == []
    (temporary / "control").mkdir()
    assert mode(temporary / "control") == 0o777


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", ["direction", "dataset", "pairs"])
def test_saving_leaves_nothing_half(
    whole: Direction, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fails: bool
):
    seen: list[int] = []
    real = os.replace

    def moved(part: Any, whole_file: Any) -> Any:
        seen.append(mode(next(p for p in Path(part).parents if p.name.startswith(".partial_"))))
        if fails:
            raise OSError("the disk is gone")
        return real(part, whole_file)

    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(Path, "replace", moved)
    target = tmp_path / "out"

    def save() -> None:
        if what == "direction":
            whole.save_pretrained(target)
        elif what == "pairs":
            target.mkdir()
            write_whole(target / "README.md", "{}")
        else:
            save_annotated(annotated(whole), target, direction=whole)

    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            save()
        assert [p for p in target.rglob("*") if p.is_file()] == []
    else:
        save()
        assert (target / "README.md").is_file()
    assert set(seen) == {0o700}
    assert not list(target.glob(".*"))
    assert list(temporary.iterdir()) == []


def test_a_partial_file_is_not_written_through_a_link(whole: Direction, tmp_path: Path):
    """In a folder that others may write to, a name that can be known beforehand could be a link to a file of ours."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    target = tmp_path / "out"
    target.mkdir()
    for name in (CONFIG_FILE, TENSOR_FILE, "README.md"):
        (target / f".{name}.partial").symlink_to(mine)
    whole.save_pretrained(target)
    assert mine.read_text() == "precious"


def test_differences_on_disk_have_no_name_and_are_private(temporary: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[os.stat_result] = []
    real = os.posix_fallocate

    def noted(handle: int, *args: int) -> None:
        seen.append(os.fstat(handle))
        real(handle, *args)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    array = differences._zeros((2, 3, 4), in_memory=0)
    assert array.shape == (2, 3, 4)
    assert [(stat.S_IMODE(s.st_mode), s.st_nlink) for s in seen] == [(0o600, 0)]
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("open_umask")
def test_a_store_and_its_log_are_private(tmp_path: Path):
    store = Store(tmp_path / "scores.sqlite")
    store.keep(b"d" * 32, {b"t" * 32: 1.0}, label="a model")
    modes = {file.name: mode(file) for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("scores.sqlite", "scores.sqlite-wal", "scores.sqlite-shm"), 0o600)
    store.close()


def test_pushing_a_direction_writes_no_file(
    hub: LoopbackHub, whole: Direction, repo_id: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(direction_module, "TemporaryDirectory", None)
    monkeypatch.setattr(publish, "TemporaryDirectory", None)
    whole.push_to_hub(repo_id)
    assert list(temporary.iterdir()) == []


def test_a_url_where_none_can_be_is_named_without_its_secrets():
    from legend_hf.directions.kept import KeptDifferences
    from legend_hf.hub.rows import load_rows

    for door in (load_rows, lambda url: KeptDifferences(url, [])):
        with pytest.raises(ValueError, match=r"s3://\*\*\*@bucket/rows") as refused:
            door("s3://me:hunter22@bucket/rows")
        assert "hunter22" not in str(refused.value)


STEERS = "\x1b[2J\x1b]0;mine\x07\u202e\n  9 scores, last used today"


@pytest.mark.parametrize("where", ["store", "direction", "error"])
def test_what_strangers_wrote_steers_no_terminal(whole: Direction, where: str, tmp_path: Path, monkeypatch):
    """A label in a store at a URL, a fact of a direction, a name in an error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = f"memory://{uuid.uuid4().hex}/run"
    store_at(url).keep(b"d" * 32, {b"t" * 32: 1.0}, label=f"a model{STEERS}")
    store_at(url).flush()
    facts = replace(whole.facts, estimator=f"mean{STEERS}")
    replace(whole, facts=facts).save_pretrained(tmp_path / "direction")
    words = {
        "store": ["store", "show", url],
        "direction": ["inspect", str(tmp_path / "direction")],
        "error": ["inspect", f"{tmp_path}/none{STEERS}"],
    }
    told = CliRunner().invoke(app, words[where]).output
    assert "⟨U+001B⟩[2J" in told or "\\x1b[2J" in told, "the control: it is told"
    assert not {c for c in told if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}
    assert not [line for line in told.splitlines() if line.startswith("  9 scores")], "nor is it a line of its own"


def speaks_itself(source: str) -> list[str]:
    """Where a source puts something on the screen by other means than `say` and `show`."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [name for name in calls if name in ("print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write")]


def test_every_command_speaks_by_one_function():
    folder = Path(screen.__file__).parent
    found = {file.name: speaks_itself(file.read_text(encoding="utf-8")) for file in folder.glob("*.py")}
    assert {name for name, calls in found.items() if calls} == {"screen.py"}, "the control is in the same line"
