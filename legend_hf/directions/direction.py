"""The direction: a vector that means something, with all that is needed to read another text as it was read.

In and out: `direction.safetensors` (the vector), `config.json` (everything else) and `README.md` (its card), in a
folder, on the Hub or at any fsspec URL. Nothing in them can run. This file knows no datasets and no columns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from legend_hf._version import __version__
from legend_hf.directions.calibrate import Bins, Calibration, Link
from legend_hf.hub import cards, outputs, transfer
from legend_hf.hub.concept import Concept, check_concept
from legend_hf.hub.nearby import DIRECTION, is_path, no_folder, saying_what_is_there
from legend_hf.hub.verdict import Verdict, verdict_on
from legend_hf.reading.formats import SKIP, Columns, Message, RowError, conversation, pairs_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.loading import Loading
from legend_hf.reading.plain import make_plain
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.reader import OpenReader, Reader, Runtime, located, open_reader, published_as
from legend_hf.tracing.stream import Stream
from legend_hf.tracing.trace import Trace, TracePair, trace_texts
from legend_hf.tracing.values import Neutral

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FORMAT = 2
CONFIG_FILE = "config.json"
TENSOR_FILE = DIRECTION
CARD_FILE = "README.md"
MOST_TRIED = 4096
"""Most entries of `Facts.search`."""

Curve: TypeAlias = tuple[Mapping[str, Any], ...]

# What a stranger's artifact may take; far more than any direction needs.
_MOST_BYTES = 8 * 1024 * 1024  # of each of its files
_MOST_TEXT = 10_000  # characters of a template or a joiner, which are copied into every text
_MOST_LAYERS = 1 << 16
_MOST_TOKENS = 1 << 24  # of `max_length`
_MODEL_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ArtifactError(ValueError):
    """A direction artifact is incomplete, corrupt, from the future, or not one at all."""


@dataclass(frozen=True)
class Facts:
    """What is known of a fit. Every field may be None: unknown.

    Attributes:
        estimator: How the vector came from the pairs.
        pairs: Pairs it was fitted on.
        prompts: Distinct prompts among them.
        skipped: Pairs that could not be read and were left out.
        accuracy: Share of held-out pairs whose raw margin is positive (a tie counts half).
        accuracy_interval: Its 95 % interval, by prompt; None where one prompt is all there is.
        length_accuracy: The same for the better one of two rules: the shorter response is the safer, or the longer, in
            characters.
        length_accuracy_interval: Its 95 % interval, which knows that the better one was picked.
        held_out: How pairs were held out for accuracy and calibration.
        seed: Of the folds.
        pairs_source: What the pairs are, in the fitter's words (a dataset id, say).
        versions: Package names and versions at the fit.
        debias: What the fit was made to leave out: `"length"`, or None.
        search: What was tried when layer or estimator were chosen, one mapping each: `layer`, `estimator`, `accuracy`
            on held-out pairs and its `interval`. The best of them is a little too good, having been picked; the field
            `accuracy` is not.
        length_rule: Which response the better rule takes, `"shorter"` or `"longer"`.
        effect: Mean of the held-out raw margins divided by their standard deviation, every pair scored without its
            prompt. About 0 where the labels were drawn at random, whose margins a calibration makes as large as any.
        effect_interval: Its 95 % interval, by prompt, the deviation taken as known.
        gain: `accuracy` minus `length_accuracy`, on the same pairs.
        gain_interval: Its 95 % interval, by prompt, which holds for whichever rule of length is the better one.
        concept: What the direction is about; None is safety.
        poles: What it points from and to; None is from unsafe to safe.
        curve: Held-out accuracy by the share of the prompts fitted on, one mapping each, see `curve.learning_curve`.
        transfer_accuracy: Where the pairs' sources were told: share of a source's pairs that are right by a direction
            chosen and fitted on the other sources, the mean over the sources. What to expect of another kind of pairs.
        transfer_interval: Its 95 % interval, by prompt, the sources taken as given.
        transfer_by_source: The share of each source.
    """

    estimator: str | None = None
    pairs: int | None = None
    prompts: int | None = None
    skipped: int | None = None
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    length_accuracy: float | None = None
    length_accuracy_interval: tuple[float, float] | None = None
    held_out: str | None = None
    seed: int | None = None
    pairs_source: str | None = None
    versions: Mapping[str, str] | None = None
    debias: str | None = None
    search: tuple[Mapping[str, Any], ...] | None = None
    length_rule: str | None = None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    curve: Curve | None = None
    concept: str | None = None
    poles: tuple[str, str] | None = None
    transfer_accuracy: float | None = None
    transfer_interval: tuple[float, float] | None = None
    transfer_by_source: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Makes numbers and paths what JSON has, and refuses a concept that cannot be told."""
        make_plain(self)
        check_concept(self.concept, self.poles)


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector from one pole of a concept towards the other (unsafe to safe), and how to read texts for it.

    Attributes:
        vector: `[d_model]`, float32, of length one.
        reader: How a text becomes a vector.
        calibration: How a raw margin becomes a margin.
        facts: What is known of the fit.
        repo_id: Hub repository of this artifact, None when it was never there. Not part of the artifact.
        revision: Its commit there. Not part of the artifact.
        model_path: Folder to load the model from instead of the Hub. Not part of the artifact.
        device_map: Where the parts of a model larger than one device lie, see `Runtime`. Not part of the artifact.
    """

    vector: np.ndarray
    reader: Reader
    calibration: Calibration
    facts: Facts = field(default_factory=Facts)
    repo_id: str | None = None
    revision: str | None = None
    model_path: str | None = None
    device_map: DeviceMap | None = None

    def __post_init__(self) -> None:
        """Refuses a vector that is none."""
        make_plain(self)
        Runtime(device_map=self.device_map)
        v = self.vector
        if v.shape != (self.reader.d_model,) or v.dtype != np.float32:
            raise ValueError(
                f"`vector` is {v.dtype} {list(v.shape)}; this reader's model needs float32 [{self.reader.d_model}]"
            )
        if not np.isfinite(v).all() or abs(float(np.linalg.norm(v.astype(np.float64))) - 1.0) > 1e-3:
            raise ValueError("`vector` must be finite and of length one; divide it by its norm")

    def __repr__(self) -> str:
        """What it is, in a line: what of, of which model, from which layer, how good."""
        right = "" if self.facts.accuracy is None else f", right on {100 * self.facts.accuracy:.1f} % of held-out pairs"
        return (
            f"Direction({self.concept.name}, {self.reader.name_in_short}, layer {self.reader.layer} of "
            f"{self.reader.n_layers}{right}{', doubtful' if self.verdict.doubtful else ''})"
        )

    @property
    def verdict(self) -> Verdict:
        """Is it any good? By what is known of its fit: `verdict.doubtful`, or `verdict.lines` to read."""
        return verdict_on(vars(self.facts))

    @property
    def concept(self) -> Concept:
        """What it is about, and its two poles."""
        return Concept.of(vars(self.facts))

    def project(self, hidden: torch.Tensor) -> np.ndarray:
        """Projects pooled hidden states `[n, d_model]` on the direction: scores `[n]`, float64, in hidden-state units.

        Widened to float64 because a margin is a small difference of two such numbers.
        """
        import torch

        vector = torch.from_numpy(self.vector.astype(np.float64)).to(hidden.device)
        return (hidden.double() @ vector).cpu().numpy()  # [n]

    def score(
        self,
        prompt: str | list[Message] | None,
        response: str | list[Message],
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> float:
        """Reads one text and says how far along the direction it lies.

        Args:
            prompt: A string or messages; None for a response alone.
            response: A string or messages.
            device: Where to run; None takes a GPU when there is one.
            trust_remote_code: Run code that comes with the model.

        Returns:
            The raw score, in hidden-state units. Only differences between two scores mean something.

        Raises:
            ValueError: The text cannot be read, or has no finite score.
        """
        opened = self._open(device, trust_remote_code)
        (text,) = opened.encode([conversation(prompt, response)])
        if isinstance(text, Exception):
            raise ValueError(str(text).removesuffix(SKIP))
        ((_, hidden),) = opened.read([text], [self.reader.layer])
        score = float(self.project(hidden[:, 0])[0])
        if not np.isfinite(score):
            raise ValueError(self.reader.not_finite.removesuffix(SKIP))
        return score

    def trace(
        self,
        prompt: str | list[Message] | None,
        response: str | list[Message],
        *,
        zero: float = 0.0,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> Trace:
        """Reads one text once and says what the direction reads in each of its tokens.

        The trace shows itself in a notebook and is saved as a page by `Trace.save`.

        Args:
            prompt: A string or messages; None for a response alone.
            response: A string or messages.
            zero: The score that the page shows as neutral, in hidden-state units. A calibration has no offset: where
                the direction's scores lie elsewhere, give the score of a text that you call neutral.
            device: Where to run; None takes a GPU when there is one.
            trust_remote_code: Run code that comes with the model.

        Raises:
            ValueError: The text cannot be read, or has no finite score.
        """
        neutral = Neutral(zero, self.calibration.scale, self.concept)
        opened = self._open(device, trust_remote_code)
        return trace_texts(opened, [conversation(prompt, response)], self.vector, neutral)[0]

    def trace_pair(
        self,
        row: Mapping[str, Any],
        *,
        zero: float | None = None,
        title: str = "",
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> TracePair:
        """Reads both responses of a row, each once, and says what the direction reads in each token: on one scale.

        Args:
            row: In any shape that `LegendMarginFn` takes.
            zero: As for `trace`; None takes the middle of the two scores, where the calibration's margin is 0.
            title: What to call the pair on a page.
            prompt_column: Name of the prompts' column, where it is not `prompt`.
            chosen_column: Name of the chosen responses' column.
            rejected_column: Name of the rejected responses' column.
            device: Where to run; None takes a GPU when there is one.
            trust_remote_code: Run code that comes with the model.

        Raises:
            RowError: The row cannot be read (a ValueError).
            ValueError: A text cannot be read, or has no finite score.
        """
        if not isinstance(row, Mapping):
            raise ValueError(f"`row` is {row!r:.60}; give one row of a dataset: `dataset[0]`")
        columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
        (pair,) = pairs_from_batch({name: [value] for name, value in row.items()}, columns)
        if isinstance(pair, RowError):
            raise pair
        opened = self._open(device, trust_remote_code)
        neutral = Neutral(zero or 0.0, self.calibration.scale, self.concept)
        both = trace_texts(opened, [pair.chosen, pair.rejected], self.vector, neutral)
        if zero is None:
            middle = replace(neutral, zero=(both[0].score + both[1].score) / 2)
            both = [replace(one, neutral=middle) for one in both]
        return TracePair(both[0], both[1], title)

    def stream(
        self,
        prompt: str | list[Message] | None,
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> Stream:
        """Opens what reads a response while it is written, and answers the score so far after each piece.

        A token costs one step of the model and one dot product. `Stream.stop_below` makes a stopping criterion for
        `generate` of it.

        Args:
            prompt: A string or messages; None for a response alone.
            device: Where to run; None takes a GPU when there is one.
            trust_remote_code: Run code that comes with the model.

        Raises:
            ValueError: The prompt cannot be read, or the model cannot be read on from where it was, as encoders.
        """
        return Stream(self._open(device, trust_remote_code), prompt, self.vector)

    def _open(self, device: str | None, trust_remote_code: bool) -> OpenReader:
        return open_reader(self.reader, self.runtime(device, trust_remote_code=trust_remote_code))

    def runtime(
        self,
        device: str | None = None,
        batch_tokens: int | None = None,
        route: Way | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> Runtime:
        """Where and how its model is to run.

        Args:
            device: Of a model that lies on one; None takes a GPU when there is one, or its `device_map`.
            batch_tokens: See `Runtime`.
            route: See `Runtime`.
            trust_remote_code: See `Runtime`.

        Raises:
            ValueError: A device was given, and it has a `device_map`.
        """
        return Runtime(self.model_path, device, batch_tokens, trust_remote_code, route, self.device_map)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        model: str | os.PathLike[str] | None = None,
        device_map: DeviceMap | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Direction:
        """Loads a direction from the Hub, a folder or an fsspec URL.

        Args:
            source: A Hub model id, a folder, or a URL such as `s3://bucket/direction` or `hf://you/direction`.
            revision: Branch, tag or commit on the Hub; resolved to a commit, cached, and then usable offline.
            model: Folder or Hub id of the model, for a direction that was fitted on a folder, or to spare a download.
            device_map: Where the parts of a model larger than one device go: `"auto"`, or a mapping as transformers
                has it. It changes no number.
            token: Hub token; None takes the environment's.
            cache_dir: Instead of the Hub's cache folder.
            local_files_only: Never ask the Hub.

        Raises:
            ArtifactError: The artifact is incomplete, corrupt, of a newer format, or contradicts itself.
            ValueError: `model` is not the model of this direction.
            OSError: It cannot be reached or does not exist.
        """
        name = os.fspath(source)
        if not os.path.isdir(name) and (is_path(source) or "/" not in name):
            raise FileNotFoundError(no_folder(source, "direction"))
        with saying_what_is_there(source, "direction"):
            found = transfer.read_files(
                name,
                [CONFIG_FILE],
                optional=[TENSOR_FILE],
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                max_bytes=_MOST_BYTES,
            )
            _check_tensors(found)
        # Not by the name that was given, which may hold a password.
        direction = _unpack(found.contents[CONFIG_FILE], found.contents[TENSOR_FILE], found.source)
        direction = replace(direction, repo_id=found.repo_id, revision=found.commit)
        direction = direction if device_map is None else replace(direction, device_map=device_map)
        return direction if model is None else direction.with_model(model)

    def with_model(self, model: str | os.PathLike[str]) -> Direction:
        """The same direction, its model read from somewhere else.

        Args:
            model: Folder of its model, or the Hub id of one (`id` or `id@revision`).

        Raises:
            ValueError: It is another model.
            OSError: It is not there; the error says what is.
        """
        reader, folder = located(self.reader, model)
        return replace(self, reader=reader, model_path=folder)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the artifact and its card into a folder; a hand-written card text stays.

        Args:
            folder: Made if missing. A direction in it is replaced, as by every `save_pretrained`.
            overwrite: Write among files of others, and replace those that have the names of these.

        Raises:
            ValueError: The folder holds something else than a direction. Nothing was written.
            OSError: It cannot be written.
        """
        target = Path(folder)
        card = target / CARD_FILE
        files = self._files(outputs.read_text(card) if card.is_file() else None)
        check_place(target, again=True, overwrite=overwrite)
        target.mkdir(parents=True, exist_ok=True)
        # Written beside and moved into place, so that a reader never meets half a file.
        with TemporaryDirectory(prefix=".partial_", dir=target) as partial:
            for name, content in files.items():
                (Path(partial) / name).write_bytes(content)
            for name in files:
                (Path(partial) / name).replace(target / name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        model_id: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Add a direction",
        create_pr: bool = False,
        trust_remote_code: bool = False,
    ) -> Direction:
        """Publishes the artifact with its card in one commit; text that somebody wrote into the card stays.

        Args:
            repo_id: Hub model repository, made if missing.
            private: Whether a repository that is made now is private.
            model_id: Hub id (`id` or `id@revision`) of the model, for a direction that was fitted on a folder: others
                cannot load the folder. Its weights, config and tokenizer are held against the reader's; the Hub knows
                the sha256 of its weight files, so they are not downloaded.
            token: Hub token; None takes the environment's.
            revision: Branch to push to.
            commit_message: Of the commit.
            create_pr: Open a pull request instead.
            trust_remote_code: Run code that comes with `model_id`.

        Returns:
            The same direction, knowing its repository and commit.

        Raises:
            ValueError: The direction was fitted on a folder and `model_id` is missing or another model.
        """
        published = self._with_model_id(model_id, trust_remote_code)
        if self.verdict.doubtful:
            logger.warning("pushing a direction to `%s` that is %s", repo_id, self.verdict.warning)
        # A bare name stands for a repository of the token's owner; the card's program needs the whole id.
        repo_id = transfer.Repository(repo_id, token=token).check_writable(create_pr=create_pr).repo_id
        info = transfer.Repository(repo_id, revision=revision, token=token).commit(
            {name: content for name, content in published._files(None).items() if name != CARD_FILE},
            readme=lambda existing: published._card(existing, repo_id),
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
        )
        return replace(published, repo_id=repo_id, revision=info.oid)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        vector: np.ndarray,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
        model_path: str | None = None,
    ) -> Direction:
        """Rebuilds a direction from what `to_config` gave and its vector.

        Raises:
            ValueError: They contradict each other.
        """
        facts: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config["facts"].items()
        }
        return cls(
            vector=vector,
            reader=Reader(**config["reader"]),
            calibration=Calibration.from_dict(config["calibration"]),
            facts=Facts(**facts),
            repo_id=repo_id,
            revision=revision,
            model_path=model_path,
        )

    def to_config(self) -> dict[str, Any]:
        """What `config.json` holds, but for the digest."""
        return {
            "format": FORMAT,
            "library": f"legend_hf {__version__}",
            "reader": self.reader.to_dict(),
            "calibration": asdict(self.calibration),
            "facts": _plain(asdict(self.facts)),
        }

    def _files(self, existing_card: str | None) -> dict[str, bytes]:
        from safetensors.numpy import save

        tensors = save({"direction": np.ascontiguousarray(self.vector)})
        config = self.to_config()
        config["sha256"] = _digest(config, tensors)
        return {
            TENSOR_FILE: tensors,
            CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            CARD_FILE: self._card(existing_card, self.repo_id).encode(),
        }

    def _card(self, existing: str | None, repo_id: str | None) -> str:
        return cards.direction_card({**self.to_config(), "repo_id": repo_id}, existing)

    def _with_model_id(self, model_id: str | None, trust_remote_code: bool) -> Direction:
        """The direction of a published model: its own, or the one that is said to be the folder's."""
        name, _, revision = (model_id or "").partition("@")
        if self.reader.model is not None and (not name or (name == self.reader.model and not revision)):
            return self
        if self.reader.model is not None and name != self.reader.model:
            raise ValueError(f"`model_id` is {model_id!r}, but this direction was fitted on {self.reader.name}")
        if not name:
            raise ValueError(
                "this direction was fitted on a model folder, which nobody else can load; publish the model and name "
                'it: `push_to_hub(..., model_id="you/model")`'
            )
        reader = published_as(self.reader, model_id or name, trust_remote_code=trust_remote_code)
        return self if self.reader.model is not None else replace(self, reader=reader)


def _check_tensors(found: transfer.Files) -> None:
    """Refuses what has no vector, and says so where it is a model."""
    if TENSOR_FILE in found.contents:
        return
    try:
        config = json.loads(found.contents[CONFIG_FILE])
    except (ValueError, RecursionError):
        config = None
    if isinstance(config, dict) and "model_type" in config:
        raise ArtifactError(
            f"{found.source!r} is a model, not a direction; give a direction that was fitted on it, and the model as "
            "`model` if need be"
        )
    raise FileNotFoundError(f"{found.source!r} has no `{TENSOR_FILE}`; check that it is the right place and revision")


def _unpack(config_bytes: bytes, tensor_bytes: bytes, source: str) -> Direction:
    """Rebuilds a direction, believing nothing."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    def refuse(why: str, remedy: str) -> ArtifactError:
        return ArtifactError(f"the direction at {source!r} {why}; {remedy}")

    again = "download it again, or ask its author for a whole one"
    try:
        config = json.loads(config_bytes)
    except (ValueError, RecursionError) as error:
        raise refuse(f"has a `{CONFIG_FILE}` that is not JSON ({error})", again) from error
    if not isinstance(config, dict) or "format" not in config:
        raise refuse(f"has a `{CONFIG_FILE}` that is not a direction's", "give the id of a legend_hf direction")
    version = config["format"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise refuse(f"has format {version!r}", again)
    if version > FORMAT:
        raise refuse(f"has format {version}, this library reads up to {FORMAT}", "upgrade: `pip install -U legend-hf`")
    digest = config.pop("sha256", None)
    try:
        expected_digest = _digest(config, tensor_bytes)
    except RecursionError as error:
        raise refuse(f"has a `{CONFIG_FILE}` that is nested too deep", again) from error
    if digest != expected_digest:
        raise refuse("does not match its own sha256: a file was damaged, cut or changed", again)
    expected = {"format", "library", "reader", "calibration", "facts"}
    _check_keys(config, expected, CONFIG_FILE, refuse)
    for name, kind in (("reader", Reader), ("calibration", Calibration), ("facts", Facts)):
        _check_types(config[name], kind, name, refuse)
    _check_reader(config["reader"], refuse)
    try:
        tensors = load(tensor_bytes)
    except (SafetensorError, ValueError, KeyError) as error:  # a `KeyError`: of a type that NumPy does not have
        raise refuse(f"has a `{TENSOR_FILE}` that cannot be read ({error})", again) from error
    if set(tensors) != {"direction"}:
        raise refuse(f"has tensors {sorted(tensors)} instead of `direction`", again)
    try:
        return Direction.from_config(config, tensors["direction"])
    except ValueError as error:
        raise refuse(f"contradicts itself: {error}", again) from error


def _check_keys(found: Mapping[str, Any], expected: set[str], name: str, refuse: Any) -> None:
    missing, unknown = expected - set(found), set(found) - expected
    if missing or unknown:
        what = [f"lacks {sorted(missing)}"] if missing else []
        what += [f"has unknown {sorted(unknown)}"] if unknown else []
        raise refuse(
            f"has a `{name}` that {' and '.join(what)}",
            "upgrade (`pip install -U legend-hf`), or ask its author for a whole one",
        )


def _check_reader(reader: Mapping[str, Any], refuse: Any) -> None:
    """Refuses what would have this machine read something of its own, or work without end.

    A model is loaded by its name: a path would be a folder here, and a branch could be another model tomorrow.
    """
    model, revision = reader["model"], reader["revision"]
    if model is not None and not (len(model) <= 200 and _MODEL_ID.fullmatch(model)):
        raise refuse(f"names the model {model!r:.60}, which is no Hub id", "ask its author for one with a model's id")
    if model is not None and not _COMMIT.fullmatch(revision or ""):
        raise refuse(f"names the revision {revision!r:.60} of its model, which is no commit", "ask its author for one")
    for name in ("template", "joiner", "fit_joiner"):
        text = reader[name] or ""
        if len(text) > _MOST_TEXT or any("\ud800" <= c <= "\udfff" for c in text):
            raise refuse(
                f"has a `reader.{name}` of {len(text)} characters, and at most {_MOST_TEXT} that UTF-8 can write are "
                "allowed",
                "ask its author for another",
            )
    for name, most in (("n_layers", _MOST_LAYERS), ("max_length", _MOST_TOKENS)):
        if reader[name] > most:
            raise refuse(f"has `reader.{name}` = {reader[name]}, more than {most}", "ask its author for another")


def _is_float(value: Any) -> bool:
    # JSON has whole numbers of any length, and the longest are no float.
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000
    )


def _is_search(value: Any) -> bool:
    """A list of what was tried, no longer than any search is: an artifact comes from strangers."""
    return isinstance(value, list) and len(value) <= MOST_TRIED and all(map(_is_tried, value))


def _is_tried(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"layer", "estimator", "accuracy", "interval"}
        and _TYPES["int"](entry["layer"])
        and 0 <= entry["layer"] < 1 << 16
        and isinstance(entry["estimator"], str)
        and len(entry["estimator"]) <= 100
        and _is_share(entry["accuracy"])
        and isinstance(entry["interval"], list)
        and len(entry["interval"]) == 2
        and all(map(_is_share, entry["interval"]))
    )


def _is_curve(value: Any) -> bool:
    """A list of what was reached with how many prompts, as short as a curve is."""
    return isinstance(value, list) and 0 < len(value) <= 10 and all(map(_is_point, value))


def _is_point(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"share", "accuracy", "behind"}:
        return False
    behind = entry["behind"]
    return (
        _is_share(entry["share"])
        and _is_share(entry["accuracy"])
        and (behind is None or (isinstance(behind, list) and len(behind) == 2 and all(map(_is_float, behind))))
    )


def _is_share(value: Any) -> bool:
    return _is_float(value) and 0 <= value <= 1


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63,
    "float": _is_float,
    "None": lambda value: value is None,
    "Mapping[str, str]": lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
    "tuple[str, str]": lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value),
    "Mapping[str, float]": lambda value: (
        isinstance(value, dict)
        and len(value) <= MOST_TRIED
        and all(len(name) <= _MOST_TEXT and _is_share(v) for name, v in value.items())
    ),
    "tuple[float, float]": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_float, value)),
    "tuple[float, ...]": lambda value: isinstance(value, list) and all(map(_is_float, value)),
    "tuple[Mapping[str, Any], ...]": _is_search,
    "Curve": _is_curve,
    "Mapping[str, Any]": lambda value: isinstance(value, dict),  # `Loading` says what may stand in it
}
_NESTED: Mapping[str, type] = {"Bins": Bins, "Link": Link, "Loading": Loading}
_UNSAID: Mapping[type, frozenset[str] | None] = {Facts: None, Reader: frozenset({"loading"}), Loading: None}
"""Of which class which fields may be left out, None being all: then they are None."""


def _check_types(found: Any, kind: type, name: str, refuse: Any) -> None:
    """Holds JSON values against the annotations of a dataclass: a string where a number belongs is refused by name."""
    if not isinstance(found, dict):
        raise refuse(f"has a `{name}` that is not a mapping", "ask its author for a whole one")
    # What is not said of a fit is not known of it.
    unsaid = _UNSAID.get(kind, frozenset())
    known = [f for f in fields(kind) if f.name in found or not (unsaid is None or f.name in unsaid)]
    _check_keys(found, {f.name for f in known}, name, refuse)
    for f in known:
        value, allowed = found[f.name], str(f.type).split(" | ")
        nested = next((_NESTED[part] for part in allowed if part in _NESTED), None)
        if nested is not None and isinstance(value, dict):
            _check_types(value, nested, f"{name}.{f.name}", refuse)
        elif not any(_TYPES[part](value) for part in allowed if part in _TYPES):
            raise refuse(f"has `{name}.{f.name}` = {value!r:.60}, not {f.type}", "ask its author for a whole one")


def _digest(config: Mapping[str, Any], tensors: bytes) -> str:
    """Hash over the canonical config and the whole tensor file: plain Hub downloads are not hash-checked."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical + b"\0" + tensors).hexdigest()


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def check_place(
    folder: str | os.PathLike[str],
    *,
    again: bool = False,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before the work, a folder that a direction cannot be saved into without loss.

    Args:
        folder: Where it will be saved.
        again: Whether a direction that is there may be replaced.
        reads: What is read for it.
        overwrite: As for `Direction.save_pretrained`.

    Raises:
        ValueError: The place is taken.
        OSError: It cannot be written.
    """
    names = (CONFIG_FILE, TENSOR_FILE, CARD_FILE)
    config = Path(folder) / CONFIG_FILE
    ours = config.is_file() and b'"library": "legend_hf ' in config.read_bytes()
    outputs.check_folder(folder, names, owned=names if ours else (), again=again, reads=reads, overwrite=overwrite)
