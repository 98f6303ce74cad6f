"""How can this model be read? Tried out once, when it is loaded.

In: a loaded model and the longest text it will be given. Out: a `Route`, with the reason in words. Some architectures
silently ignore an attention function that they do not know, some look past what they are told, some let a long
neighbour change the numbers of all: only comparing with one text at a time tells. This file knows no text; it reads
random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from legend_hf.reading import attention
from legend_hf.reading.forward import (
    WAYS,
    Route,
    Way,
    attention_of,
    find_blocks,
    forget_lengths,
    hidden_states,
    keep_freed_memory,
    onednn_is_faster,
    out_of_memory,
    padded_inputs,
    rope_limit,
    set_attention,
    tree_inputs,
    whole_numbers,
)
from legend_hf.reading.packing import plan_trees

if TYPE_CHECKING:
    import torch

# Differences are measured in standard deviations of the states. In float32 a right reading was seen to differ by at
# most 1e-5, a wrong one by 5e-3 or more. Rounding to half precision alone makes about 1e-2 over a few blocks.
TOLERANCE = 1e-4
TOLERANCE_HALF = 0.1

# Longest text that is tried, so that a probe stays affordable: past the windows and chunks that are in use today.
MOST_TOKENS = 8448

# Words in a config that name a length at which something changes.
_RANGES = ("sliding_window", "window_size", "chunk_size", "original_max_position", "local_attention")

# Tokens compared at the end of each text: whatever sees too much or too little shows there.
_TAIL = 8


def probe(model: Any, *, max_length: int, force: Way | None = None) -> Route:
    """Decides how to read with a model. Leaves the model as it was.

    Trees of unequal length in one row, one of them past every range of the model, are compared with reading one text at
    a time through the attention that the model was loaded with. Only as many blocks run as show every kind of block
    that the model has, in float32 whatever its dtype, so that a small fault is not taken for rounding.

    Args:
        model: A model without head, in evaluation mode.
        max_length: Longest text that it will be given; ranges beyond it need no trial.
        force: Take this way without asking whether another would be quicker. `"tree"` is tried all the same.

    Returns:
        The route: the first of `"tree"`, `"padded"`, `"grouped"` that gives the numbers of one-by-one reading.

    Raises:
        ValueError: `"tree"` is forced but does not give them, `force` is no way, or the model's blocks cannot be found.
    """
    if force is not None and force not in WAYS:
        raise ValueError(f"`force` is {force!r}; allowed are {', '.join(repr(w) for w in WAYS)}, or None to find out")
    attention.register_tree_attention()
    if attention_of(model) == attention.NAME:  # read before
        set_attention(model, "sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
    plain = attention_of(model)
    if model.device.type == "cpu":
        keep_freed_memory()
    onednn = onednn_is_faster(model)
    if force in ("padded", "grouped"):
        return Route(force, "as asked", plain, onednn=onednn)

    limit = rope_limit(model)
    if limit is not None and limit < max_length:
        no_tree = f"its rotary frequencies change with the longest text of a batch once that has over {limit} tokens"
        no_padding = no_tree
    else:
        no_padding = ""
        blocks = find_blocks(model)
        layer = _blocks_to_try(model, blocks)
        texts = _texts(model, max_length)
        with _in_float32(model, blocks[layer:]) as exact:
            tolerance = TOLERANCE if exact else TOLERANCE_HALF
            expected = [_tails(model, "padded", [text], layer, onednn=onednn) for text in texts]
            no_tree = _fault(model, "tree", texts, expected, layer, tolerance, onednn=onednn)
            if no_tree:
                no_padding = _fault(model, "padded", texts, expected, layer, tolerance, onednn=onednn)
        kernel = "dense"
        if not no_tree and model.dtype != expected[0].dtype:
            # As it will be run: the quickest kernel that copes with this dtype and device.
            for kernel in ("varlen", "dense") if model.device.type == "cuda" else ("dense",):
                no_tree = _fault(model, "tree", texts, expected, layer, TOLERANCE_HALF, kernel=kernel)
                if not no_tree:
                    break
        if not no_tree:
            reason = f"tried on texts of up to {max(map(len, texts))} tokens"
            return Route("tree", reason, attention.NAME, kernel, onednn)
    if force == "tree":
        raise ValueError(
            f"{type(model).__name__} cannot be read by trees: {no_tree}; leave the choice open, or take `padded` or "
            "`grouped`"
        )
    if no_padding:
        reason = no_tree if no_tree == no_padding else f"{no_tree}; padded: {no_padding}"
        return Route("grouped", reason, plain, onednn=onednn)
    return Route("padded", no_tree, plain, onednn=onednn)


def _fault(
    model: Any,
    way: Way,
    texts: Sequence[list[int]],
    expected: Sequence[torch.Tensor],
    layer: int,
    tolerance: float,
    *,
    kernel: str = "dense",
    onednn: bool = False,
) -> str:
    """What is wrong with this way of reading; empty if nothing is."""
    import torch

    plain = attention_of(model)
    try:
        if way == "tree":
            set_attention(model, attention.NAME)
        found = _tails(model, way, texts, layer, kernel=kernel, onednn=onednn)
    except Exception as error:  # a model's own code can fail in any way on what it does not know
        if out_of_memory(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        return said if isinstance(error, attention.UnservedAttention) else f"{type(error).__name__}: {said}"
    finally:
        set_attention(model, plain)
    right = torch.cat(list(expected))  # [texts, tail, d_model]
    spread = right.flatten(0, 1).std(0)
    difference = (found - right) / (spread + 1e-6 * spread.max() + 1e-30)
    worst = float(difference.square().mean((1, 2)).sqrt().max())
    # Written so that a state that is no number counts as wrong.
    return "" if worst <= tolerance else f"its states differ from one-by-one reading by {worst:.0e} of their spread"


def _tails(
    model: Any, way: Way, texts: Sequence[list[int]], layer: int, *, kernel: str = "dense", onednn: bool = False
) -> torch.Tensor:
    """States of the last tokens of each text after block `layer`, `[texts, tail, d_model]`, float32."""
    places = [range(max(0, len(text) - _TAIL), len(text)) for text in texts]
    rows: list[int] = []
    if way == "tree":
        # The cap on sharing is lowered to have forks within forks in a short text.
        (pack,) = plan_trees(texts, places, max_tokens=sum(map(len, texts)), min_shared=4)
        inputs = tree_inputs(model, pack, kernel)
        counts = iter(pack.rows.reshape(len(texts), -1))
        of_text = dict(zip(pack.texts, counts, strict=True))
        rows = [int(row) for text in range(len(texts)) for row in of_text[text]]
    else:
        inputs = padded_inputs(model, texts)
        width = max(map(len, texts))
        rows = [text * width + place for text, own in enumerate(places) for place in own]
        forget_lengths(model)
    found: list[torch.Tensor] = []
    # A block more is announced than is run, so that the norm after the last never comes in.
    hidden_states(
        model,
        inputs,
        [layer],
        lambda _, states: found.append(states.flatten(0, 1)[rows].float()),
        n_layers=layer + 1,
        onednn=onednn,
    )
    return found[0].view(len(texts), -1, found[0].shape[-1])


def _texts(model: Any, max_length: int) -> list[list[int]]:
    """Random texts: forks within forks, a fork past every range of the model, and one alone."""
    import torch

    ranges = [n for n in whole_numbers(model.config.to_dict(), _RANGES) if n < max_length]
    long = min(max([*ranges, 40]) + 3 * _TAIL, MOST_TOKENS)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    # The first ids are often special tokens, to which some models give a meaning of their own.
    numbers = torch.randint(
        vocabulary // 4, vocabulary, (long + 100,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    take = iter(numbers)

    def more(n: int) -> list[int]:
        return [next(take) for _ in range(n)]

    prompt, far = more(11), more(long - 2 * _TAIL)
    second = [*prompt, *more(13)]
    texts = [[*prompt, *more(9)], second, [*second[:-4], *more(8)], [*far, *more(16)], [*far, *more(12)], more(14)]
    return [text[:max_length] for text in texts]


def _blocks_to_try(model: Any, blocks: Sequence[torch.nn.Module]) -> int:
    """How many of the first blocks show every kind of block that there is; at least two, as errors then add up."""
    seen: set[tuple[Any, ...]] = set()
    needed = 2
    for i, block in enumerate(blocks):
        kind = tuple(
            (
                name,
                type(module),
                *(getattr(module, a, None) for a in ("sliding_window", "attention_type", "layer_type")),
            )
            for name, module in block.named_modules()
        )
        if kind not in seen:
            seen.add(kind)
            needed = max(needed, i + 1)
    return min(needed, len(blocks))


@contextmanager
def _in_float32(model: Any, left_out: Sequence[torch.nn.Module]) -> Iterator[bool]:
    """Widens the weights of what runs, and gives the same tensors back; says whether all of it could be."""
    import torch

    later = {id(p) for block in left_out for p in block.parameters()}
    tensors = [p for p in [*model.parameters(), *model.buffers()] if id(p) not in later]
    narrow = [(p, p.data) for p in tensors if p.is_floating_point() and p.dtype != torch.float32]
    if any(p.device.type == "meta" or not p.dtype.is_floating_point for p in model.parameters()):
        yield False  # quantised or held elsewhere
        return
    try:
        for p, data in narrow:
            p.data = data.float()
        yield True
    finally:
        for p, data in narrow:
            p.data = data
