"""Token sequences become batches: trees that hold a shared beginning once, or padded batches of like length.

In: token ids of whole texts and the positions that are needed of each. Out: `Pack`s (rows of tokens without padding,
with what each row may see and where each text lies) or lists of indices. This file knows no model and no torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
"""Rows `start` to `end` (exclusive) of a pack."""

# A shared beginning is read once only if it is at least this long. Every branch costs a little to set up, about what a
# few tokens cost, and a few tokens that all texts begin with (BOS, "Human:") would tie a whole batch into one tree.
MIN_SHARED = 8


@dataclass(frozen=True)
class Branch:
    """A run of consecutive rows of a pack: it sees what comes before it in its texts, and itself causally.

    Attributes:
        start: Its first row.
        end: The row after its last.
        before: Rows of the tokens before it in its texts, in the order of their positions, each span as long as it
            can be; empty where a text begins.
    """

    start: int
    end: int
    before: tuple[Span, ...] = ()

    @property
    def position(self) -> int:
        """Position in its texts of its first token."""
        return sum(end - start for start, end in self.before)


@dataclass(frozen=True, eq=False)
class Pack:
    """Token trees in one row, for one forward pass.

    Attributes:
        input_ids: int64 `[t]`.
        position_ids: Position of each token in its own texts, int64 `[t]`.
        branches: In the order of their rows; together they hold every row once.
        texts: Indices of the texts read here, as numbered by the caller.
        paths: For each of `texts`, the rows that hold its tokens from position 0 on, as spans.
        rows: Rows of the needed tokens, text after text, int64 `[m]`.
        counts: How many of `rows` belong to each of `texts`.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    branches: tuple[Branch, ...]
    texts: tuple[int, ...]
    paths: tuple[tuple[Span, ...], ...]
    rows: NDArray[np.int64]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """Number of tokens that the forward pass reads."""
        return len(self.input_ids)


def plan_trees(
    texts: Sequence[Sequence[int]],
    needed: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    min_shared: int = MIN_SHARED,
) -> list[Pack]:
    """Packs texts so that a beginning shared by several is read once, and nothing is padded.

    A text is read up to its last needed position: in a causal model what follows cannot matter. The same input gives
    the same packs, the fullest first, so that a budget which does not fit the memory shows at once.

    Args:
        texts: Token ids of each whole text.
        needed: For each text the positions whose hidden states are wanted, ascending, at least one.
        max_tokens: Most tokens in one pack; a single longer text has a pack of its own.
        min_shared: Fewest tokens that are worth sharing.

    Returns:
        Packs that together read every text once.

    Raises:
        ValueError: `texts` and `needed` differ in length, a text has no needed position or one outside it, or a
            number is not positive.
    """
    _check_positive("max_tokens", max_tokens)
    _check_positive("min_shared", min_shared)
    if len(texts) != len(needed):
        raise ValueError(f"`needed` has {len(needed)} entries for {len(texts)} `texts`; give one for each")
    if not len(texts):
        return []
    ids = []
    for i, (text, places) in enumerate(zip(texts, needed, strict=True)):
        if not len(places) or not 0 <= places[0] <= places[-1] < len(text):
            raise ValueError(
                f"text {i} has {len(text)} tokens and needs positions {list(places)[:5]}; give at least one, "
                "ascending, each from 0 to the text's length - 1"
            )
        ids.append(np.asarray(text[: places[-1] + 1], dtype=np.int64))

    # Sorted, texts that share a beginning stand side by side. Big-endian bytes sort as the numbers do.
    keys = [text.astype(">u4").tobytes() for text in ids]
    order = sorted(range(len(ids)), key=lambda i: (keys[i], i))
    distinct = [i for at, i in enumerate(order) if at == 0 or keys[i] != keys[order[at - 1]]]
    readers: dict[bytes, list[int]] = {}
    for i in order:
        readers.setdefault(keys[i], []).append(i)

    lengths = [len(ids[i]) for i in distinct]
    shared = _worth_sharing(lengths, [0, *(_common(ids[i], ids[j]) for i, j in pairwise(distinct))], min_shared)
    packs = []
    for parts in _fill(_parts(lengths, shared, max_tokens), max_tokens):
        builder = _PackBuilder()
        for first, last in parts:
            builder.add([ids[i] for i in distinct[first:last]], [0, *shared[first + 1 : last]])
        own = [i for first, last in parts for i in distinct[first:last]]
        packs.append(builder.pack([readers[keys[i]] for i in own], needed))
    return packs


def plan_padded(lengths: Sequence[int], *, max_tokens: int, group_equal: bool = False) -> list[list[int]]:
    """Groups texts of like length into batches whose padded size stays in the budget, longest first.

    Args:
        lengths: Tokens of each text.
        max_tokens: Most tokens in one batch, padding included; a single longer text has a batch of its own.
        group_equal: Put only texts of equal length together, so that nothing is padded.

    Returns:
        Indices of the texts of each batch.

    Raises:
        ValueError: A length or `max_tokens` is not positive.
    """
    _check_positive("max_tokens", max_tokens)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        _check_positive("lengths", lengths[i])
        longest = lengths[batches[-1][0]] if batches else 0
        full = (len(batches[-1]) + 1) * longest > max_tokens if batches else True
        if full or (group_equal and lengths[i] != longest):
            batches.append([])
        batches[-1].append(i)
    return batches


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` is {value}; it must be at least 1")


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the common beginning of two sequences."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


@dataclass
class _Node:
    """A stretch of tokens of a tree: positions `start` to `end` of the sorted text `text` (and of all below it)."""

    start: int
    end: int
    text: int
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    kept: int = 0  # how much of its beginning is worth sharing, as a number of tokens from position 0
    longest: int = 0  # end of the longest text below it


def _forest(lengths: Sequence[int], shared: Sequence[int]) -> tuple[list[_Node], list[_Node], list[_Node | None]]:
    """Trees of sorted distinct texts, by how much each shares with the one before it.

    Returns:
        Every node, parents before their children; for each text the node that it ends in; for each text the node at
        whose end it parts from the text before it, None where it shares nothing.
    """
    nodes: list[_Node] = []
    ends: list[_Node] = []
    forks: list[_Node | None] = []
    node: _Node | None = None
    for text, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        # Up to the stretch that holds the last common token ...
        while node is not None and node.start >= common:
            node = node.parent
        # ... which is cut in two if the texts part inside it: the upper half is new, the lower hangs below it.
        if node is not None and node.end > common:
            upper = _Node(node.start, common, node.text, node.parent, [node])
            if node.parent is not None:
                node.parent.children[-1] = upper
            nodes.append(upper)
            node.start, node.parent = common, upper
            node = upper
        forks.append(node)
        leaf = _Node(common, length, text, node)
        if node is not None:
            node.children.append(leaf)
        nodes.append(leaf)
        ends.append(leaf)
        node = leaf
    # An upper half is made after what hangs below it, so the order of making is not yet from the root down.
    nodes.sort(key=lambda n: (n.text, n.start))
    return nodes, ends, forks


def _worth_sharing(lengths: Sequence[int], common: Sequence[int], min_shared: int) -> list[int]:
    """For each sorted text, how many tokens it should share with the one before it.

    Only a stretch of at least `min_shared` tokens below the last shared one counts; a shorter one is read again by each
    text below it.
    """
    nodes, _, forks = _forest(lengths, common)
    for node in sorted(nodes, key=lambda n: n.start):
        above = node.parent.kept if node.parent is not None else 0
        node.kept = node.end if node.end - above >= min_shared else above
    return [fork.kept if fork is not None else 0 for fork in forks]


def _parts(lengths: Sequence[int], shared: Sequence[int], max_tokens: int) -> list[tuple[int, int, int]]:
    """Cuts the sorted texts into runs that fit the budget, where cutting repeats the fewest tokens.

    Returns:
        For each run its first text, the one after its last, and its number of tokens.
    """
    starts = [i for i, common in enumerate(shared) if common == 0]
    parts = []
    for first, last in zip(starts, [*starts[1:], len(lengths)], strict=True):
        # repeated[j]: fewest tokens read twice if a run ends before text j; cut[j]: where that run begins.
        repeated, cut = {first: 0}, {}
        for j in range(first + 1, last + 1):
            size, best, at = 0, -1, j - 1
            for i in range(j - 1, first - 1, -1):
                size += lengths[i] - (shared[i + 1] if i + 1 < j else 0)
                if size > max_tokens and i < j - 1:
                    break
                cost = repeated[i] + shared[i]
                if best < 0 or cost <= best:
                    best, at = cost, i
            repeated[j], cut[j] = best, at
        j = last
        while j > first:
            i = cut[j]
            parts.append((i, j, sum(lengths[i:j]) - sum(shared[i + 1 : j])))
            j = i
    return parts


def _fill(parts: Sequence[tuple[int, int, int]], max_tokens: int) -> list[list[Span]]:
    """Best fit, largest first: each run goes where it leaves the least room."""
    packs: list[list[Span]] = []
    sizes: list[int] = []
    room: list[tuple[int, int]] = []  # (room left, pack), ascending
    for first, last, size in sorted(parts, key=lambda p: (-p[2], p[0])):
        at = bisect_left(room, (size, 0))
        left, pack = room.pop(at) if at < len(room) else (max_tokens, len(packs))
        if pack == len(packs):
            packs.append([])
            sizes.append(0)
        packs[pack].append((first, last))
        sizes[pack] += size
        insort(room, (left - size, pack))
    return [packs[i] for i in sorted(range(len(packs)), key=lambda i: (-sizes[i], i))]


class _PackBuilder:
    """Lays trees one after the other, each depth first, the longest text of each fork first."""

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.branches: list[Branch] = []
        self.paths: list[tuple[Span, ...]] = []
        self.size = 0

    def add(self, texts: Sequence[NDArray[np.int64]], shared: Sequence[int]) -> None:
        """Lays sorted distinct texts; `shared[i]` tokens of text i are those of text i - 1."""
        nodes, ends, _ = _forest([len(text) for text in texts], shared)
        downwards = sorted(nodes, key=lambda n: n.start)
        for node in reversed(downwards):
            node.longest = max([node.end, *(child.longest for child in node.children)])
            # The longest text runs on from its fork without a break: it needs no keys from elsewhere.
            node.children.sort(key=lambda n: -n.longest)
        spans: dict[int, tuple[Span, ...]] = {}
        waiting = [node for node in reversed(nodes) if node.parent is None]
        while waiting:
            node = waiting.pop()
            before = spans[id(node.parent)] if node.parent is not None else ()
            start, end = self.size, self.size + node.end - node.start
            self.ids.append(texts[node.text][node.start : node.end])
            self.positions.append(np.arange(node.start, node.end, dtype=np.int64))
            self.size = end
            if before and before[-1][1] == start:
                spans[id(node)] = (*before[:-1], (before[-1][0], end))
                last = self.branches.pop()
                self.branches.append(Branch(last.start, end, last.before))
            else:
                spans[id(node)] = (*before, (start, end))
                self.branches.append(Branch(start, end, before))
            waiting.extend(reversed(node.children))
        self.paths += [spans[id(node)] for node in ends]

    def pack(self, readers: Sequence[Sequence[int]], needed: Sequence[Sequence[int]]) -> Pack:
        """Closes the pack; `readers[i]` are the caller's texts that path i holds."""
        texts, paths, rows, counts = [], [], [], []
        for path, same in zip(self.paths, readers, strict=True):
            place = np.concatenate([np.arange(start, end, dtype=np.int64) for start, end in path])
            for text in same:
                texts.append(text)
                paths.append(path)
                rows.append(place[np.asarray(needed[text], dtype=np.int64)])
                counts.append(len(rows[-1]))
        return Pack(
            input_ids=np.concatenate(self.ids),
            position_ids=np.concatenate(self.positions),
            branches=tuple(self.branches),
            texts=tuple(texts),
            paths=tuple(paths),
            rows=np.concatenate(rows),
            counts=tuple(counts),
        )
