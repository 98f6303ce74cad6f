"""Attention over token trees, for models that take their attention function from transformers' `AttentionInterface`.

In: queries, keys and values of one `Pack`, and its layout, which travels as the forward keyword `tree_layout`. Out:
what plain causal attention gives each text alone, with grouped heads, sliding windows, capped scores and sinks. This
file knows no model and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any

from legend_hf.reading.packing import Branch, Pack
from legend_hf.reading.plain import check_choice

if TYPE_CHECKING:
    import torch

NAME = "legend_tree"
"""What this attention is called in transformers' tables."""

KERNELS = ("dense", "sdpa", "varlen")

# Queries are taken in runs of this many rows: keys after a run's last row are never touched, and the scores of a run
# stay in the cache. On a GPU a run must be longer to fill it. On two cores 64 to 128 differ by a tenth.
_RUN = {"cpu": 96}
_RUN_ELSEWHERE = 512

# How much faster torch's own attention must be before it is preferred to the dense kernel.
_WORTH_SDPA = 1.2

# Keys are copied once for each cut.
_MOST_CUTS = 8

# Forward keywords of transformers that say nothing about which key a query sees, or how much.
_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"})


class UnservedAttention(Exception):
    """A layer asks for something that tree attention does not do; the model must be read in another way."""


@dataclass(frozen=True)
class _Varlen:
    """A pack as `varlen_attn` takes it: each branch a sequence whose keys are its own copy of what it sees."""

    rows: torch.Tensor  # int64 [t_k]: rows of the keys, branch after branch
    queries: torch.Tensor  # int32 [branches + 1]: where each branch's queries begin
    keys: torch.Tensor  # int32 [branches + 1]: where each branch's keys begin
    most_queries: int
    most_keys: int


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """Who sees whom in one pack. Make one with `tree_layout`.

    Attributes:
        branches: Of the pack.
        varlen: Set if the layers are to use `varlen_attn`.
        sdpa: Whether the layers are to use `scaled_dot_product_attention`.
        masks: Filled by the layers: they share masks, all branches of a like shape do.
    """

    branches: tuple[Branch, ...]
    varlen: _Varlen | None = None
    sdpa: bool = False
    masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)


def register_tree_attention() -> None:
    """Makes `legend_tree` known to transformers, in this process. Doing so again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, tree_attention)
    # The layout says what a mask would say; building one for a whole pack would cost its length squared.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)


def tree_layout(pack: Pack, device: str | torch.device, *, kernel: str = "dense") -> TreeLayout:
    """Prepares a pack's layout for the layers of one forward pass.

    Args:
        pack: What will be read.
        device: Where the model is.
        kernel: `"dense"` computes scores run by run, in float32, anywhere; `"sdpa"` is torch's own attention, branch by
            branch; `"varlen"` is flash attention over sequences of unequal length, on a GPU and in half precision.

    Raises:
        ValueError: `kernel` is none of them.
    """
    check_choice("kernel", kernel, KERNELS)
    varlen = _varlen(pack.branches, device) if kernel == "varlen" else None
    return TreeLayout(pack.branches, varlen, kernel == "sdpa")


@cache
def sdpa_is_faster(dtype: torch.dtype) -> bool:
    """Whether torch's own attention beats the dense kernel on this CPU; ties go to the latter.

    On real texts they are equal in float32. In bfloat16 it takes half the time where a CPU has instructions for whole
    tiles (AMX).
    """
    import time

    import torch

    branches = (Branch(0, 160), Branch(160, 224, ((0, 96),)))
    # Filled by hand: what is drawn would take numbers from the user's random generator.
    x = torch.linspace(-1, 1, 9 * 224 * 64).view(9, 224, 64).to(dtype)
    best: dict[Any, float] = {}
    with torch.inference_mode():
        for _ in range(5):
            for attend in (_attend_dense, _attend_sdpa):
                start = time.perf_counter()
                attend(x, x[:3], x[:3], TreeLayout(branches), 0.125)
                best[attend] = min(best.get(attend, float("inf")), time.perf_counter() - start)
    return best[_attend_dense] > _WORTH_SDPA * best[_attend_sdpa]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree_layout: TreeLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over one pack, as `AttentionInterface` calls it.

    Args:
        module: The layer.
        query: `[1, heads, t, d]`.
        key: `[1, key heads, t, d]`; each key head serves `heads / key heads` query heads.
        value: `[1, key heads, t, d_value]`.
        attention_mask: Must be None: the layout is the mask.
        tree_layout: Of the pack.
        scaling: Of the scores; None for `d ** -0.5`.
        dropout: Must be 0.
        is_causal: Must not be False, here or on the module.
        sliding_window: A token sees itself and this many - 1 before it.
        softcap: Scores are squeezed into ± this.
        s_aux: `[heads]`: one more score per head, that takes its share of attention and gives nothing.
        others: Refused, unless they are None or cannot matter.

    Returns:
        `[1, t, heads, d_value]` and None, since nobody asks for the weights.

    Raises:
        UnservedAttention: The layer wants something else.
    """
    unknown = [k for k, v in others.items() if k not in _HARMLESS and v is not None and v is not False]
    refusals = {
        "no `tree_layout` reached the layer": tree_layout is None,
        "the layer brings its own mask": attention_mask is not None,
        "dropout is on": dropout != 0.0,
        "the layer also looks ahead": not (getattr(module, "is_causal", False) if is_causal is None else is_causal),
        f"the layer asks for {', '.join(f'`{k}`' for k in unknown)}": bool(unknown),
        "more than one row": query.shape[0] != 1,
        "queries and keys of different length": query.shape[2] != key.shape[2],
    }
    for reason, refused in refusals.items():
        if refused:
            raise UnservedAttention(reason)
    assert tree_layout is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tree_layout.varlen is not None and softcap is None and s_aux is None:
        out = _attend_varlen(query[0], key[0], value[0], tree_layout.varlen, scale, sliding_window)
    elif tree_layout.sdpa and softcap is None and s_aux is None and not _within_reach(tree_layout, sliding_window):
        out = _attend_sdpa(query[0], key[0], value[0], tree_layout, scale)
    else:
        out = _attend_dense(query[0], key[0], value[0], tree_layout, scale, sliding_window, softcap, s_aux)
    return out[None], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """In place of a mask function of transformers."""


def _attend_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TreeLayout,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run by run of queries: scores against all keys that one of them sees, masked where another does not.

    On a CPU this beats `scaled_dot_product_attention`, whose causal form saves nothing at the length of a text, and is
    as exact: scores and their softmax are float32 in every dtype. Key heads are not repeated for the heads they serve.
    """
    import torch

    heads, t, d = query.shape
    groups, d_value = key.shape[0], value.shape[-1]
    per_group = heads // groups
    grouped = query.view(groups, per_group, t, d)
    key = key.float()
    out = value.new_empty(t, groups, per_group, d_value)
    run = _RUN.get(query.device.type, _RUN_ELSEWHERE)
    # Products of many small matrices are dealt out to threads whole: each group's are cut until they come out even.
    threads = torch.get_num_threads() if query.device.type == "cpu" else 1
    cut = min(threads // gcd(groups, threads), _MOST_CUTS)
    for branch in layout.branches:
        length, before = branch.end - branch.start, branch.position
        # Keys and values of one branch in the order of their positions: 0 to before + length.  [groups * cut, n, d]
        own_key, own_value = (_repeat(_rows(x, branch), cut) for x in (key, value))
        step = -(-length // -(-length // run))
        for first in range(0, length, step):
            last = min(first + step, length)
            rows, high = last - first, before + last
            low = 0 if window is None else max(0, before + first + 1 - window)
            filled = rows + -rows % cut
            own_query = torch.empty((groups, per_group, filled, d), dtype=torch.float32, device=query.device)
            own_query[:, :, rows:] = 0.0
            own_query[:, :, :rows].copy_(grouped[:, :, branch.start + first : branch.start + last]).mul_(scale)
            scores = torch.bmm(
                own_query.view(groups * cut, -1, d), own_key[:, low:high].transpose(1, 2)
            )  # [groups * cut, per_group * filled / cut, high - low]
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            mask, columns = _mask(layout, rows, high, low, window, query.device)
            by_row = scores.view(groups, per_group, filled, high - low)
            by_row[:, :, :rows, high - low - columns :].add_(mask)
            if sinks is not None:
                sink = sinks.float().view(groups, per_group, 1, 1).expand(-1, -1, filled, 1)
                scores = torch.cat([by_row, sink], dim=-1).view(*scores.shape[:2], -1)
            weights = torch.softmax(scores, dim=-1)[..., : high - low].to(value.dtype)
            seen = torch.bmm(weights, own_value[:, low:high]).view(groups, per_group, filled, d_value)
            out[branch.start + first : branch.start + last].copy_(seen[:, :, :rows].permute(2, 0, 1, 3))
    return out.view(t, heads, d_value)


def _within_reach(layout: TreeLayout, window: int | None) -> bool:
    """Whether a window hides any key of any text."""
    return window is not None and window < max(b.position + b.end - b.start for b in layout.branches)


def _attend_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float
) -> torch.Tensor:
    """Branch by branch, each by one call of torch's own attention, which knows no window, cap or sink."""
    import torch

    heads, t, _ = query.shape
    out = value.new_empty(t, heads, value.shape[-1])
    for branch in layout.branches:
        own_key, own_value = _rows(key, branch), _rows(value, branch)
        rows, keys = branch.end - branch.start, own_key.shape[1]
        mask = None
        if keys > rows:  # its causal form is aligned at the first key, and a branch ends with the last
            kind = (rows, keys)
            if kind not in layout.masks:
                hidden = torch.ones(rows, keys, dtype=torch.bool, device=query.device).triu_(keys - rows + 1)
                layout.masks[kind] = query.new_zeros(rows, keys).masked_fill_(hidden, float("-inf"))
            mask = layout.masks[kind]
        seen = torch.nn.functional.scaled_dot_product_attention(
            query[None, :, branch.start : branch.end],
            own_key[None],
            own_value[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=heads != key.shape[0],
        )  # [1, heads, rows, d_value]
        out[branch.start : branch.end] = seen[0].transpose(0, 1)
    return out


def _repeat(x: torch.Tensor, times: int) -> torch.Tensor:
    """Each of the groups of `[groups, n, d]` so many times, one after the other."""
    groups, n, d = x.shape
    return x if times == 1 else x[:, None].expand(groups, times, n, d).reshape(groups * times, n, d)


def _rows(x: torch.Tensor, branch: Branch) -> torch.Tensor:
    """What one branch sees of `[groups, t, d]`, without a copy if it begins its texts."""
    import torch

    own = x[:, branch.start : branch.end]
    return torch.cat([*(x[:, start:end] for start, end in branch.before), own], dim=1) if branch.before else own


def _mask(
    layout: TreeLayout, rows: int, high: int, low: int, window: int | None, device: torch.device
) -> tuple[torch.Tensor, int]:
    """What to add to the scores of the queries at positions high - rows to high, and over how many last columns.

    Without a window in reach, only a run's own columns need a mask, and it is the same for all runs of that length.
    """
    import torch

    if window is not None and high - low <= window:
        window = None
    columns = rows if window is None else high - low
    kind = (device, rows) if window is None else (device, rows, columns, window)
    if kind not in layout.masks:
        # How far each key lies before each query.
        distance = torch.arange(columns - rows, columns, device=device)[:, None] - torch.arange(columns, device=device)
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        layout.masks[kind] = torch.zeros(rows, columns, device=device).masked_fill_(hidden, float("-inf"))
    return layout.masks[kind], columns


def _varlen(branches: tuple[Branch, ...], device: str | torch.device) -> _Varlen:
    import torch

    spans = [(*branch.before, (branch.start, branch.end)) for branch in branches]
    queries = [branch.end - branch.start for branch in branches]
    keys = [sum(end - start for start, end in one) for one in spans]

    def starts(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)

    return _Varlen(
        rows=torch.cat([torch.arange(start, end) for one in spans for start, end in one]).to(device),
        queries=starts(queries),
        keys=starts(keys),
        most_queries=max(queries),
        most_keys=max(keys),
    )


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    varlen: _Varlen,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """One call for the whole pack. Its causal mask is aligned at the end of the keys, which is what a branch needs.

    Checked on a CPU against what its documentation promises; not yet run on a GPU. `probe` tries it there first.
    """
    from torch.nn.attention.varlen import varlen_attn

    at = query.device  # of a model on several devices, that of this layer
    out: torch.Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only if more is asked for
        query.transpose(0, 1),
        key.transpose(0, 1)[varlen.rows.to(at)],
        value.transpose(0, 1)[varlen.rows.to(at)],
        varlen.queries.to(at),
        varlen.keys.to(at),
        varlen.most_queries,
        varlen.most_keys,
        scale=scale,
        # Its window counts the tokens before a token, transformers' counts the token too.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out
