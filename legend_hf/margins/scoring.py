"""Texts become scores along directions: from the store where it has them, else from the model.

In: directions, and texts. Out: one score for each text and direction, float64. A `Scorer` is plain data that transforms
carry, their `Reading`; readers and stores are opened where they are used. This file knows neither rows nor columns nor
what is made of a score.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf._version import __version__
from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction
from legend_hf.margins.naming import Text, name_of, naming_of
from legend_hf.margins.store import Store, flush_stores
from legend_hf.margins.stores import check_where, shown, store_at
from legend_hf.reading.formats import Conversation
from legend_hf.reading.forward import Way
from legend_hf.reading.plain import digest_of, key_of, make_plain
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.reader import (
    OpenReader,
    Reader,
    Runtime,
    deciding,
    open_reader,
    resolve_device,
    with_layer,
)
from legend_hf.reading.stopping import finish_batches, how_to_go_on, settle_in_worker
from legend_hf.reading.templates import TextError, Tokens

if TYPE_CHECKING:
    import torch

# A change that alters numbers raises this: it is part of the pickled state and of the store's keys. An imported class
# is hashed by its name alone, so a `map` cache would otherwise survive the upgrade.
SCORING_VERSION = 2

logger = logging.getLogger(__name__)

GivenDirection = Direction | str | os.PathLike[str]


def edition() -> str:
    """What a cached result of this package must depend on, passed to every function that it gives to `map`.

    `datasets` hashes an imported function by its name alone: without this, what an earlier version made would be found
    again after an upgrade.
    """
    return f"{__version__}, scoring {SCORING_VERSION}"


@dataclass(frozen=True)
class Scorer:
    """Directions, and where to compute scores along them.

    Attributes:
        directions: Names and directions; the only one of a transform is called `""`.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        route: How texts are put together; None takes the quickest that gives the model's own numbers.
        trust_remote_code: Run code that comes with a model.
        store: File or URL of known scores, or None.
        traces: Give the projections of each text's tokens beside its score, packed (see `packed`).
    """

    directions: tuple[tuple[str, Direction], ...]
    device: str | None = None
    batch_tokens: int | None = None
    route: Way | None = None
    trust_remote_code: bool = False
    store: str | None = None
    traces: bool = False

    def __post_init__(self) -> None:
        """Checks where to run now, not in a worker."""
        make_plain(self)
        Runtime(device=self.device, batch_tokens=self.batch_tokens, route=self.route)
        if self.store is not None:
            object.__setattr__(self, "store", check_where(self.store))
            store_at(self.store)  # so that this process sends, at its end, what its workers left unsent

    def __repr__(self) -> str:
        """The directions, in a line."""
        return ", ".join(f"{name}={direction!r}" if name else repr(direction) for name, direction in self.directions)

    @property
    def how_to_go_on(self) -> str:
        """What to do after a run was stopped."""
        return how_to_go_on(None if self.store is None else shown(self.store))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the directions."""
        return tuple(name for name, _ in self.directions)

    @property
    def spread(self) -> bool:
        """Whether a model lies on several devices."""
        return any(direction.device_map is not None for _, direction in self.directions)

    def __getitem__(self, name: str) -> Direction:
        """The direction of that name."""
        return dict(self.directions)[name]

    def not_finite(self, name: str) -> str:
        """What is wrong with a text whose score along that direction is NaN or infinite."""
        return self[name].reader.not_finite

    def open(self, rank: int | None = None, *, look: bool = False) -> OpenScorer:
        """Opens each reader once, with the directions that it serves: those that read alike but for the layer.

        Their models are loaded when the first text is read.

        Args:
            rank: Of the worker; GPUs go round.
            look: Only to ask what is `unread`; the store is not made.
        """
        served: dict[tuple[Reader, str | None, str], list[tuple[str, Direction]]] = {}
        for name, direction in self.directions:
            alike = (with_layer(direction.reader, -1), direction.model_path, key_of(direction.device_map))
            served.setdefault(alike, []).append((name, direction))
        settle_in_worker()
        store = None if self.store is None else store_at(self.store)
        if store is not None and not look:
            store.check()
        opened = []
        for (reader, _, _), directions in served.items():
            first = directions[0][1]
            device = self.device if first.device_map is not None else resolve_device(self.device, rank)
            runtime = first.runtime(device, self.batch_tokens, self.route, trust_remote_code=self.trust_remote_code)
            deepest = max(direction.reader.layer for _, direction in directions)
            opened_reader = open_reader(reader, runtime, depth=deepest, load=False)
            opened.append(Scoring(opened_reader, tuple(directions), self.how_to_go_on, store, self.traces, look))
        return OpenScorer(tuple(opened))

    def deciding(self) -> list[Any]:
        """All that decides a score and what is made of it, and nothing that only says where to compute it."""
        parts: list[Any] = [SCORING_VERSION]
        for name, direction in self.directions:
            parts += [name, _identity(direction), asdict(direction.calibration)]
        return parts

    def state(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """Plain values and the vectors' bytes, equal for equal scorers: what is known of a fit makes no score."""
        values = {
            "scoring_version": SCORING_VERSION,
            "directions": [
                {
                    "name": name,
                    "reader": list(direction.reader.to_dict().values()),
                    "calibration": asdict(direction.calibration),
                    "from": [direction.repo_id, direction.revision, direction.model_path, *_mapped(direction)],
                    "folder": deciding(direction.reader, direction.model_path)[1],
                }
                for name, direction in self.directions
            ],
            "where": [self.device, self.batch_tokens, self.route, self.trust_remote_code, self.store, self.traces],
        }
        return values, tuple(direction.vector.tobytes() for _, direction in self.directions)

    @classmethod
    def from_state(cls, values: Mapping[str, Any], vectors: Sequence[bytes]) -> Scorer:
        """The scorer that `state` describes.

        Raises:
            ValueError: It was written by a version that scores differently.
        """
        if values["scoring_version"] != SCORING_VERSION:
            raise ValueError(
                f"this transform was pickled by a version of legend_hf that scores differently (scoring version "
                f"{values['scoring_version']}, this one has {SCORING_VERSION}); make it anew"
            )
        directions = tuple(
            (
                entry["name"],
                Direction(
                    np.frombuffer(vector, dtype=np.float32).copy(),
                    Reader(*entry["reader"]),
                    Calibration.from_dict(entry["calibration"]),
                    **dict(zip(("repo_id", "revision", "model_path", "device_map"), entry["from"], strict=False)),
                ),
            )
            for entry, vector in zip(values["directions"], vectors, strict=True)
        )
        return cls(directions, *values["where"])


def scorer_of(
    direction: GivenDirection | Mapping[str, GivenDirection],
    *,
    revision: str | None = None,
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    batch_tokens: int | None = None,
    route: Way | None = None,
    trust_remote_code: bool = False,
    store: str | os.PathLike[str] | None = None,
) -> Scorer:
    """Makes the Scorer of one direction or of several, with one warning if any is doubtful.

    Arguments are those of `LegendMarginFn`.

    Raises:
        ValueError: An argument that is not allowed, which is found before anything is loaded.
    """
    where = Scorer((), device, batch_tokens, route, trust_remote_code, None if store is None else os.fspath(store))
    directions = load_directions(direction, revision=revision, model=model, device_map=device_map)
    for _, one in directions:
        one.runtime(device)  # which it may not have beside a map of several
    doubtful = [(name, d.verdict.warning) for name, d in directions if d.verdict.doubtful]
    if doubtful:
        said = "; ".join(
            f"the direction {name!r} is {why}" if name else f"this direction is {why}" for name, why in doubtful
        )
        logger.warning(said)
    return replace(where, directions=directions)


def load_directions(
    direction: GivenDirection | Mapping[str, GivenDirection],
    *,
    revision: str | None = None,
    model: str | os.PathLike[str] | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[tuple[str, Direction], ...]:
    """One direction, called `""`, or several by their names, loaded where they are not `Direction` objects.

    Raises:
        ValueError: A name is missing, they cannot be loaded, or `model` is not the model of one.
    """
    named = direction if isinstance(direction, Mapping) else {"": direction}
    if not named or any(not isinstance(n, str) or (not n and len(named) > 1) for n in named):
        raise ValueError(f"`direction` maps {list(named)}; give each direction a name, such as 'safety'")
    loaded = tuple((name, _loaded(d, revision, model)) for name, d in named.items())
    if device_map is not None:
        loaded = tuple((name, replace(one, device_map=device_map)) for name, one in loaded)
    return loaded


def _loaded(direction: GivenDirection, revision: str | None, model: str | os.PathLike[str] | None) -> Direction:
    if not isinstance(direction, Direction):
        return Direction.from_pretrained(direction, revision=revision, model=model)
    if revision is not None:
        raise ValueError(
            f"`revision` is {revision!r} but `direction` is a `Direction`, which is loaded already; leave it out, or "
            "give the id"
        )
    return direction if model is None else direction.with_model(model)


@dataclass(frozen=True, eq=False)
class OpenScorer:
    """Open readers, each with its directions. A text is a tuple, one entry for each reader."""

    readings: tuple[Scoring, ...]

    def encode(self, conversations: Sequence[Conversation]) -> list[tuple[Text, ...] | TextError]:
        """Tokenises texts for every reader; what one of them cannot read comes back as its error."""
        encoded = zip(*(scoring.encode(conversations) for scoring in self.readings), strict=True)
        return [next((t for t in texts if isinstance(t, TextError)), texts) for texts in encoded]

    def check(self, conversations: Sequence[Conversation]) -> list[TextError | None]:
        """Why a text cannot be read, by the first reader that cannot."""
        checked = zip(*(scoring.opened.check(conversations) for scoring in self.readings), strict=True)
        return [next((error for error in errors if error is not None), None) for errors in checked]

    def unread(self, texts: Sequence[tuple[Text, ...]]) -> list[tuple[OpenReader, list[int], list[Tokens]]]:
        """What `read` would read, without reading it: each reader, its layers, and the texts that no store has."""
        return [
            (scoring.opened, scoring.layers, scoring.unread([text[place] for text in texts]))
            for place, scoring in enumerate(self.readings)
        ]

    def read(self, texts: Sequence[tuple[Text, ...]]) -> dict[str, np.ndarray]:
        """Scores `[n]`, float64, of each direction; or, with traces, what `packed` makes of both."""
        scores = [scoring.score([text[place] for text in texts]) for place, scoring in enumerate(self.readings)]
        return {name: values for found in scores for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class Scoring:
    """An open reader, the directions that it serves, and their store. Get them from `Scorer.open`."""

    opened: OpenReader
    directions: tuple[tuple[str, Direction], ...]
    how_to_go_on: str
    store: Store | None = None
    traces: bool = False
    look: bool = False
    digests: Mapping[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Hashes the directions once, for a store; each batch makes one of these."""
        digests = {} if self.store is None else {name: _digest(direction) for name, direction in self.directions}
        object.__setattr__(self, "digests", digests)

    @property
    def layers(self) -> list[int]:
        """Those that are read."""
        return sorted({direction.reader.layer for _, direction in self.directions})

    def encode(self, conversations: Sequence[Conversation]) -> list[Text | TextError]:
        """Tokenises texts, or finds their scores by what they are called."""
        if self.store is None or self.traces:
            return [one if isinstance(one, TextError) else Text(one) for one in self.opened.encode(conversations)]
        naming = naming_of(self.opened, self.directions[0][1].model_path)
        names = [name_of(one, naming) for one in conversations]
        known = self._scores_of([name for name in names if name is not None])
        read = iter(
            self.opened.encode([one for one, name in zip(conversations, names, strict=True) if name not in known])
        )
        found: list[Text | TextError] = []
        for name in names:
            if name in known:
                found.append(Text(None, known[name], name))
            else:
                one = next(read)
                found.append(one if isinstance(one, TextError) else Text(one, (), name))
        return found

    def _scores_of(self, names: Sequence[bytes]) -> dict[bytes | None, tuple[float, ...]]:
        """The scores along every direction of those texts that the store has them all of, by their names."""
        assert self.store is not None
        keys = self.store.named(names, look=self.look)
        find, wanted = self.store.look if self.look else self.store.find, list(dict.fromkeys(keys.values()))
        found = [find(self.digests[name], wanted) for name, _ in self.directions] if wanted else []
        return {
            name: tuple(scores[key] for scores in found)
            for name, key in keys.items() if all(key in scores for scores in found)
        }  # fmt: skip

    def unread(self, texts: Sequence[Text]) -> list[Tokens]:
        """The distinct texts of which the store, as it stands, does not have all scores."""
        distinct = {_text_digest(text.tokens): text.tokens for text in texts if text.tokens is not None}
        if self.store is None:
            return list(distinct.values())
        known = [self.store.look(self.digests[name], list(distinct)) for name, _ in self.directions]
        return [text for key, text in distinct.items() if not all(key in found for found in known)]

    def score(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """Scores texts, each distinct one at most once.

        What a forward pass gives is in the store before the next one begins. SIGINT and SIGTERM wait for that.

        Args:
            texts: What `encode` gave, `[n]`.

        Returns:
            Scores `[n]`, float64, for each direction; or, with traces, what `packed` makes of both.
        """
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        scores = {name: np.full(len(distinct), np.nan) for name, _ in self.directions}
        keys = [b"" if self.store is None or t.tokens is None else _text_digest(t.tokens) for t in distinct]
        missing = np.full(len(distinct), self.store is None or self.traces)
        traces: dict[str, list[np.ndarray]] = {name: [np.empty(0)] * len(distinct) for name, _ in self.directions}
        if self.store is not None:
            for name, _ in self.directions:
                found = self.store.find(self.digests[name], [key for key in keys if key])
                known = np.array([key in found for key in keys], dtype=bool)
                scores[name][known] = [found[key] for key in keys if key in found]
                missing |= ~known
        for i, text in enumerate(distinct):
            if text.tokens is None:
                missing[i] = False
                for (name, _), score in zip(self.directions, text.scores, strict=True):
                    scores[name][i] = score
        unread = np.flatnonzero(missing)
        layers = self.layers
        with finish_batches(self.how_to_go_on, flush_stores) as batch_is_done:
            for index, hidden, lines in self._read([tokens for i in unread if (tokens := distinct[i].tokens)], layers):
                rows = unread[index]
                for name, direction in self.directions:
                    for row, line in zip(rows, lines.get(name, ()), strict=False):
                        traces[name][row] = line
                    read = direction.project(hidden[:, layers.index(direction.reader.layer)])
                    scores[name][rows] = self._kept(name, direction, [keys[i] for i in rows], read)
                batch_is_done()
            if self.store is not None:
                named = ((text.name, keys[place[text]]) for text in texts)
                self.store.name({name: key for name, key in named if name and key})
        order = [place[text] for text in texts]
        if self.traces:
            return {name: packed(values[order], [traces[name][i] for i in order]) for name, values in scores.items()}
        return {name: values[order] for name, values in scores.items()}

    def _read(
        self, texts: Sequence[Tokens], layers: Sequence[int]
    ) -> Iterator[tuple[list[int], torch.Tensor, dict[str, list[np.ndarray]]]]:
        """What `OpenReader.read` yields, and with traces those of each direction, of the response's own tokens."""
        if not self.traces:
            for index, hidden in self.opened.read(texts, layers):
                yield index, hidden, {}
            return
        import torch

        at = {layer: [n for n, d in self.directions if d.reader.layer == layer] for layer in layers}
        vectors = {name: torch.from_numpy(direction.vector) for name, direction in self.directions}
        along = {layer: torch.stack([vectors[name] for name in names]) for layer, names in at.items()}
        for index, hidden, lines in self.opened.read_tokens(texts, along):
            own = [np.searchsorted(self.opened.seen(texts[i]), texts[i].said) for i in index]
            yield (
                index,
                hidden,
                {
                    name: [line[keep, column] for line, keep in zip(lines[layer], own, strict=True)]
                    for layer, names in at.items()
                    for column, name in enumerate(names)
                },
            )

    def _kept(self, name: str, direction: Direction, keys: Sequence[bytes], read: np.ndarray) -> np.ndarray:
        """Writes scores to the store, and gives those that now stand there; what is not finite is not written."""
        if self.store is None:
            return read
        finite = {key: float(score) for key, score in zip(keys, read, strict=True) if np.isfinite(score)}
        label = f"{direction.reader.name}, layer {direction.reader.layer}"
        standing = self.store.keep(self.digests[name], finite, label=label)
        return np.array([standing.get(key, score) for key, score in zip(keys, read, strict=True)])


def packed(scores: np.ndarray, traces: Sequence[np.ndarray]) -> np.ndarray:
    """Scores `[n]` and traces of any length in one array `[n, 2 + longest]`: score, length, values, zeros."""
    made = np.zeros((len(scores), 2 + max(map(len, traces), default=0)))
    made[:, 0] = scores
    for row, trace in zip(made, traces, strict=True):
        row[1] = len(trace)
        row[2 : 2 + len(trace)] = trace
    return made


def unpacked(
    numbers: Sequence[np.ndarray | None],
) -> tuple[list[np.ndarray | None], list[list[np.ndarray]]]:
    """The scores of each row's texts, and their traces, of what `read` gave; empty ones of a row without any.

    Args:
        numbers: Of each row `[texts]`, or packed `[texts, k]`; None of a row that was not read.
    """
    scores = [row if row is None or row.ndim == 1 else row[:, 0] for row in numbers]
    none = [np.empty(0), np.empty(0)]
    traces = [none if row is None or row.ndim == 1 else [text[2 : 2 + int(text[1])] for text in row] for row in numbers]
    return scores, traces


def _mapped(direction: Direction) -> list[DeviceMap]:
    """Its `device_map`, if it has one: a transform without is pickled as it always was."""
    return [] if direction.device_map is None else [direction.device_map]


def _identity(direction: Direction) -> list[Any]:
    """What a score depends on besides the text; the calibration is made of scores, not the other way."""
    return [*deciding(direction.reader, direction.model_path), direction.vector.tobytes().hex()]


def _digest(direction: Direction) -> bytes:
    return bytes.fromhex(digest_of([SCORING_VERSION, *_identity(direction)]))


def _text_digest(text: Tokens) -> bytes:
    """Hash of token ids and of the positions that are pooled, each with its length: neither runs into the other."""
    numbers = (len(text.ids), *text.ids, len(text.content), *text.content, text.last)
    return hashlib.sha256(struct.pack(f"<{len(numbers)}q", *numbers)).digest()
