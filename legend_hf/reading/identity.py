"""Which model is it? Its weights, the fields of its config that change numbers, and the code that comes with it.

In: a folder, or a Hub model at a commit. Out: three digests, equal where the model is the same one, whatever lies
beside it and whatever it is called. A Hub model is not downloaded for this: the Hub knows the sha256 of its weight
files. (A GGUF file is, since nothing else tells its config.) What was hashed is not hashed again until a file changes,
which costs a look at the folder. The tokenizer and the chat template, the other half of what decides a number, are
hashed in `reader`, by what they do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from legend_hf.hub.nearby import MOST_NAMED, held_in, is_path, no_folder
from legend_hf.hub.transfer import Repository, is_url, without_secrets
from legend_hf.reading.plain import digest_of

logger = logging.getLogger(__name__)

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GGUF = ".gguf"
# One file, or several that an index names; in the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Who wrote a config and how, what heads and generation do, and what a Reader says itself.
_NO_NUMBER = frozenset(
    {
        *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
        *("use_cache", "id2label", "label2id", "problem_type", "task_specific_params", "finetuning_task"),
        *("output_hidden_states", "output_attentions", "return_dict", "_attn_implementation_autoset"),
    }
)
# All that transformers may read a fast tokenizer from.
_TOKENIZER_FILES = frozenset(
    {
        *("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "tekken.json"),
        *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
    }
)
_SETTLED_SECONDS = 1.0  # A file that was written just now may be written again without a change of its times.


@dataclass(frozen=True)
class Identity:
    """What makes a model the same one.

    Attributes:
        weights_sha256: Of its weight file, as the Hub says it; of several files, hash of their sorted sha256. None
            where it cannot be known, offline.
        config_sha256: Of the fields of its config that can change a number.
        code_sha256: Of the code that comes with it, None where none is run.
    """

    weights_sha256: str | None
    config_sha256: str
    code_sha256: str | None


def gguf_path(source: str, commit: str | None, gguf_file: str) -> Path:
    """Where a GGUF file lies on this machine; one on the Hub is downloaded.

    Args:
        source: Folder, or Hub id of the model.
        commit: Of a Hub model.
        gguf_file: Its name in there.

    Raises:
        FileNotFoundError: It is not there; the error says which are.
        OSError: The Hub cannot be reached and it is not cached.
    """
    if commit is not None:
        repo = Repository(source, revision=commit)
        try:
            return repo.download(gguf_file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {other_files(gguf_files(repo))}") from error
    path = Path(source) / gguf_file
    if not path.is_file():
        there = sorted(str(one.relative_to(source)) for one in Path(source).rglob(f"*{GGUF}"))
        raise FileNotFoundError(f"{source!r} has no {gguf_file!r}; {other_files(there)}")
    return path.absolute()


def gguf_files(repo: Repository) -> list[str]:
    """The GGUF files of a repository of the Hub.

    Raises:
        OSError: It cannot be asked.
    """
    return [name for name in repo.list_files() if name.endswith(GGUF)]


def other_files(names: Sequence[str]) -> str:
    """What to name as `gguf_file`."""
    if not names:
        return "there are no GGUF files; leave `gguf_file` out to read safetensors"
    return f"the GGUF files there are {', '.join(map(repr, names[:MOST_NAMED]))}: name one of them as `gguf_file`"


def gguf_identity(path: Path) -> Identity:
    """Identity of the model in a GGUF file, which holds config, tokenizer and weights: of the whole file."""
    return Identity(_file_sha256(path), config_sha256({}), None)


def folder_identity(
    folder: str | os.PathLike[str], *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> Identity:
    """Identity of the model in a folder, as the folder is now.

    Raises:
        ValueError: The folder has no `config.json`.
        OSError: It has no safetensors, or not the GGUF file that is named.
    """
    if gguf_file is not None:
        return gguf_identity(gguf_path(os.fspath(folder), None, gguf_file))
    place = Path(folder)
    config = folder_config(place)
    names = _weight_names(config, lambda name: (place / name).is_file(), lambda name: _content(place / name))
    if not names:
        raise FileNotFoundError(
            f"{str(folder)!r} has no file named {WEIGHTS[0]}, and none that an index names; weights of another kind "
            "are not read: save the model by `save_pretrained`"
        )
    code = code_sha256(str(folder), None, config, _json_of(place / TOKENIZER_CONFIG)) if trust_remote_code else None
    return Identity(_joined([_file_sha256(place / name) for name in names]), config_sha256(config), code)


def commit_identity(
    model: str, commit: str, *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> Identity:
    """Identity of a Hub model at a commit; its weights are not downloaded, but for a GGUF file.

    Raises:
        OSError: The Hub cannot be reached and the config is not cached, or it has none.
    """
    if gguf_file is not None:
        return gguf_identity(gguf_path(model, commit, gguf_file))
    repo = Repository(model, revision=commit)
    content = repo.read(CONFIG)
    if content is None:
        raise FileNotFoundError(f"`{model}` has no `{CONFIG}` at commit {commit}; give the id of a model")
    config = json.loads(content)
    try:
        names = _weight_names(config, lambda name: bool(repo.sha256s([name])), repo.read)
        found = repo.sha256s(names)
    except ConnectionError as error:
        logger.warning("which weights `%s` has at %s cannot be told: %s", model, commit, error)
        names, found = [], {}
    weights = _joined(list(found.values())) if names and len(found) == len(names) else None
    code = None
    if trust_remote_code:
        code = code_sha256(model, commit, config, json.loads(repo.read(TOKENIZER_CONFIG) or b"{}"))
    return Identity(weights, config_sha256(config), code)


def folder_sha256(folder: str | os.PathLike[str], *, gguf_file: str | None = None) -> str:
    """One digest for the model in a folder: of its weights and of the fields of its config that change numbers.

    Raises:
        ValueError: The folder has no `config.json`.
        OSError: It has no safetensors, or not the GGUF file that is named.
    """
    found = folder_identity(folder, gguf_file=gguf_file)
    return hashlib.sha256(f"{found.weights_sha256}\n{found.config_sha256}".encode()).hexdigest()


def folder_state(
    folder: str | os.PathLike[str], *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> str:
    """Digest of all that is loaded from a folder, tokenizer included: equal states load the same."""
    place = Path(folder)
    parts: list[Any] = [vars(folder_identity(folder, gguf_file=gguf_file, trust_remote_code=trust_remote_code))]
    for path in sorted([*place.iterdir(), *place.glob("additional_chat_templates/*.jinja")]):
        if (path.name in _TOKENIZER_FILES or path.suffix in (".model", ".jinja")) and path.is_file():
            parts.append([path.name, _file_sha256(path)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def folder_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        ValueError: It has none, or none that can be read.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{str(folder)!r} has no `{CONFIG}`; give the folder of a model saved by `save_pretrained`"
            f"{', or name a GGUF file of it by `gguf_file`' if [*folder.glob(f'*{GGUF}')] else ''}; {held_in(folder)}"
        )
    try:
        config = _json_of(folder / CONFIG)
    except ValueError as error:
        raise ValueError(f"the `{CONFIG}` of {str(folder)!r} is not JSON ({error}); save the model anew") from error
    check_no_direction(config, str(folder))
    return config


def model_folder(model: str | os.PathLike[str]) -> str | None:
    """The folder that a model is to be read from; None for the id of one on the Hub.

    Raises:
        FileNotFoundError: It can only be a folder, and there is none.
        ValueError: It is a URL.
    """
    folder = os.path.expanduser(os.fspath(model))
    if os.path.isdir(folder):
        return folder
    if is_url(model):
        raise ValueError(
            f"`model` is {without_secrets(str(model))!r}, a URL; give a folder, or the id of a model on the Hub"
        )
    if folder.endswith(GGUF) and os.path.isfile(folder):
        place, name = os.path.split(folder)
        raise ValueError(f"`model` is the file {folder!r}; give `model={place or '.'!r}` and `gguf_file={name!r}`")
    if is_path(model):
        raise FileNotFoundError(no_folder(model, "model"))
    return None


def check_no_direction(config: Any, source: str) -> None:
    """Refuses the config of a direction where that of a model belongs."""
    reader = config.get("reader") if isinstance(config, dict) else None
    if isinstance(reader, dict) and "calibration" in config:
        of = f"{reader.get('model')!s:.100}" if reader.get("model") else "the folder that it was fitted on"
        raise ValueError(
            f"{source!r} is a direction, not a model; give it as `direction`, and its model ({of}) as `model`"
        )


def tensors_sha256(folder: str | os.PathLike[str]) -> str:
    """Digest of the weights themselves, in however many files they lie: names, dtypes, shapes and bytes.

    Args:
        folder: Where the model is, or its snapshot in the Hub's cache.
    """
    place = Path(folder)
    config = folder_config(place)
    names = _weight_names(config, lambda name: (place / name).is_file(), lambda name: _content(place / name))
    tensors = sorted(entry for name in names for entry in made_once(_tensors_in, place / name))
    return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()


def config_sha256(config: Mapping[str, Any]) -> str:
    """Digest of the fields of a config, and of its parts, that can change a number; not of how they are written."""
    return digest_of(_deciding(config))


def code_sha256(
    source: str, commit: str | None, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> str | None:
    """Digest of the modules that a model and its tokenizer bring along, with all that they import of their own.

    They may lie in another repository, whose newest state is then what runs. Nothing is run here.

    Args:
        source: Folder or Hub id of the model.
        commit: Of a Hub model.
        config: Its `config.json`.
        tokenizer_config: Its `tokenizer_config.json`.
    """
    from transformers.dynamic_module_utils import get_cached_module_file, get_relative_import_files
    from transformers.utils import HF_MODULES_CACHE

    auto, tokenizer = config.get("auto_map") or {}, tokenizer_config.get("auto_map") or {}
    named = [auto.get(name) for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")]
    for given in (
        auto.get("AutoTokenizer"),
        tokenizer.get("AutoTokenizer") if isinstance(tokenizer, dict) else tokenizer,
    ):
        named += given if isinstance(given, list | tuple) else [given]  # a slow one and a fast one
    digests = set()
    for reference in filter(None, named):
        repo, _, attribute = reference.rpartition("--")
        file = f"{attribute.partition('.')[0]}.py"
        path = get_cached_module_file(repo or source, file, revision=commit if repo in ("", source) else None)
        module = os.path.join(HF_MODULES_CACHE, path)
        for name in [module, *get_relative_import_files(module)]:
            digests.add(f"{os.path.basename(name)}:{_file_sha256(Path(name))}")
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest() if digests else None


def _weight_names(
    config: Mapping[str, Any], there: Callable[[str], bool], read: Callable[[str], bytes | None]
) -> list[str]:
    """The files that transformers loads weights from; none where there are no safetensors."""
    named = config.get("transformers_weights")
    name = next((name for name in ([named] if named else WEIGHTS) if there(name)), None)
    if name is None or not name.endswith(".index.json"):
        return [] if name is None else [name]
    return sorted(set(json.loads(read(name) or b"{}").get("weight_map", {}).values()))


def _joined(digests: Sequence[str]) -> str:
    """One file's own sha256, which the Hub's page shows; a hash over those of several, whatever they are called."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _deciding(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deciding(entry) for key, entry in value.items() if key not in _NO_NUMBER}
    return [_deciding(entry) for entry in value] if isinstance(value, list | tuple) else value


def _tensors_in(path: str) -> list[tuple[str, str, list[int], str]]:
    """Name, dtype, shape and sha256 of each tensor of a safetensors file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        entries = []
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                digest = hashlib.sha256()
                for chunk in _chunks(file, end - begin):
                    digest.update(chunk)
                entries.append((name, entry["dtype"], entry["shape"], digest.hexdigest()))
        return entries


def _chunks(file: Any, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        size -= len(chunk)
        yield chunk


def _hash_whole(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_sha256(path: Path) -> str:
    digest: str = made_once(_hash_whole, path)
    return digest


def made_once(work: Callable[[str], Any], path: Path) -> Any:
    """What `work` makes of a file; made once as long as the file stays the same."""
    status = path.stat()
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_SECONDS:
        return work(str(path))
    return _remembered(work, os.path.abspath(path), state)


@lru_cache(maxsize=1024)
def _remembered(work: Callable[[str], Any], path: str, state: tuple[int, ...]) -> Any:
    return work(path)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _json_of(path: Path) -> dict[str, Any]:
    content = json.loads(_content(path) or b"{}")
    if not isinstance(content, dict):
        raise ValueError(f"`{path.name}` is no mapping")
    return content
