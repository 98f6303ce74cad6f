"""A loaded model reads texts only as far as needed: to the highest layer asked for, and no language-model head.

In: a model without head, token ids, the positions and layers that are needed. Out: mean hidden states of those
positions, float32. How a model is to be read (its `Route`) is decided in `probe`; this file only follows it, and knows
no text, no tokenizer and no direction.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from legend_hf.reading.attention import NAME as TREE
from legend_hf.reading.attention import UnservedAttention, tree_layout
from legend_hf.reading.packing import Pack, plan_padded, plan_trees
from legend_hf.reading.state import changed_on_purpose, reading

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Way = Literal["tree", "padded", "grouped", "alone"]
WAYS: tuple[Way, ...] = ("tree", "padded", "grouped", "alone")

LAST = -1
"""In `Route.sites`: the model's `last_hidden_state`."""

# Measured on two cores: 1024 to 4096 differ by a few percent, fewer read the weights too often, more only take memory.
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 32768

# How much faster oneDNN must be before its products are preferred to torch's own.
_WORTH_ONEDNN = 1.2

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

Take = Callable[[int, "torch.Tensor"], None]
Watch = Callable[[int, "torch.Tensor", Sequence[int]], None]
"""Called with a layer, the states of all needed positions of a batch `[m, d_model]`, float32, and each text's count."""


@dataclass(frozen=True)
class Route:
    """How to read texts with one loaded model.

    Attributes:
        way: `"tree"`: shared beginnings once, nothing padded. `"padded"`: texts of like length, padded on the right.
            `"grouped"`: only texts of equal length together, for models in which a neighbour's length matters.
            `"alone"`: one text at a time, for models in which any neighbour matters.
        reason: Why not a better way, or what was compared; for a person to read.
        attention: What transformers calls the attention to read with; None leaves it as it is.
        kernel: For `"tree"`: see `tree_layout`.
        onednn: Whether float32 matrix products go through oneDNN, which is faster on some CPUs.
        sites: For each layer, where in a pass the model's own `hidden_states[layer]` comes about: k for the output of
            block k, 0 for the input of the first, `LAST`, or None where it is in the model's own list alone. Of most
            models layer k is the output of block k, and the last one `last_hidden_state`: then None in place of all.
        refused: Layers that cannot be read, and why.
    """

    way: Way
    reason: str
    attention: str | None = None
    kernel: str = "dense"
    onednn: bool = False
    sites: tuple[int | None, ...] | None = None
    refused: tuple[tuple[int, str], ...] = ()


def default_batch_tokens(device: str | torch.device) -> int:
    """Most tokens in one forward pass where the caller does not say."""
    return _BATCH_TOKENS.get(str(device).partition(":")[0], _BATCH_TOKENS_ELSEWHERE)


def read_vectors(
    model: Any,
    texts: Sequence[Sequence[int]],
    needed: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    route: Route,
    batch_tokens: int | None = None,
    watch: Watch | None = None,
    last: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Reads texts and means their hidden states over the needed positions.

    Every text is read once whatever happens: where a batch does not fit the memory, the texts that are left are read
    in smaller ones, with a warning.

    Args:
        model: A model without head, in evaluation mode, whose `probe` gave `route`.
        texts: Token ids of each whole text.
        needed: For each text the positions to mean over, ascending; one position for "the last token".
        layers: Indices into the model's own `hidden_states`: 0 = embeddings, k = output of block k, n_layers = after
            the final norm.
        route: How to read with this model.
        batch_tokens: Most tokens in one forward pass, padding included; None for the device's default. A single longer
            text still gets its own pass.
        watch: Sees the states before they become vectors. What it was shown before the last yield is of that batch:
            one that does not fit the memory is shown again, in parts.
        last: Take the last of the needed positions, in place of the mean.

    Yields:
        Indices of the texts in this batch, and their vectors `[b, layers, d_model]`, float32, on the model's device.

    Raises:
        ValueError: A layer that the model does not have, or see `plan_trees`.
        RuntimeError: A single text does not fit the memory.
    """
    device = device_of(model)
    budget = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    _check_layers(model, layers, route)
    waiting = list(range(len(texts)))
    while waiting:
        done: list[int] = []
        for size, index, batch in plan(texts, needed, waiting, route, budget):
            vectors = None
            try:
                vectors = _read_batch(model, batch, layers, route, watch, last)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(index) == 1:
                    raise
            if vectors is None:
                # Outside the handler, whose traceback holds on to the tensors of the failed pass.
                _free(device)
                budget = max(1, min(budget, size) // 2)
                logger.warning(
                    "a batch of %d tokens does not fit the memory of %s; going on with `batch_tokens=%d`",
                    size,
                    device,
                    budget,
                )
                break
            done += index
            yield index, vectors
        read = set(done)
        waiting = [i for i in waiting if i not in read]


def device_of(model: Any) -> torch.device:
    """Where a model takes its inputs, whose parts may lie on several devices, in memory and on disk."""
    import torch

    # By what `accelerate` hung at the whole model: its first weights may be elsewhere until they are needed.
    place = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return torch.device(model.device if place is None else place)


def find_blocks(model: Any) -> torch.nn.ModuleList:
    """The model's blocks in order: the one list of modules that is as long as its config says, and not inside another.

    Raises:
        ValueError: There is no such list, or more than one.
    """
    import torch

    n = _text_config(model).num_hidden_layers
    found: list[tuple[str, torch.nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) == n and not inside:
            found.append((name, module))
    if len(found) > 1:
        # A model of several media: the one that reads text.
        own = {id(m) for m in model.get_decoder().modules()}
        found = [(name, module) for name, module in found if id(module) in own]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of {n} modules"
            f"{''.join(f' `{name}`' for name, _ in found)}, so its {n} blocks cannot be told; use a model with one "
            "such list, as most decoders and encoders have"
        )
    return found[0][1]


def cut(model: Any, keep: int) -> None:
    """Takes the blocks after the first `keep` out of a model, to give their memory back.

    What a model makes of its number of blocks stays as it is: a model loaded with fewer may be another one (residuals
    scaled by depth, windows dealt out by it). It can only be read up to `keep` from now on.
    """
    with reading(model):  # as if it had read nothing, for so it will be put back from now on
        blocks = find_blocks(model)
        for i in range(keep, len(blocks)):
            blocks[i] = _cut_block(blocks[i])
        changed_on_purpose(model)


def loaded_blocks(model: Any) -> int:
    """How many of a model's blocks are there to be run."""
    return sum(not getattr(block, _CUT, False) for block in find_blocks(model))


def hidden_states(
    model: Any,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    take: Take,
    *,
    sites: Sequence[int | None] | None = None,
    onednn: bool = False,
) -> None:
    """Runs a model up to the highest of `layers` and hands over each as soon as it is there.

    The pass ends by an exception out of a hook, so nothing after the highest block runs, whatever the architecture.
    Where one of the layers is in the model's own list alone, the whole model runs.

    Args:
        model: A model without head.
        inputs: Its forward arguments.
        layers: As for `read_vectors`.
        take: Called with a layer and its hidden states `[b, t, d_model]`, which it must not keep as they are.
        sites: See `Route`.
        onednn: See `Route`.

    Raises:
        OtherShapeError: What is there are no hidden states of these tokens (a ValueError).
    """
    import torch

    whole = sites is not None and any(sites[layer] is None for layer in layers)
    if whole:
        with torch.inference_mode(), _through_onednn(model) if onednn else nullcontext():
            states = model(**inputs, output_hidden_states=True).hidden_states
        for layer in sorted(set(layers)):
            _check_shape(model, states[layer], inputs)
            take(layer, states[layer])
        return

    blocks = find_blocks(model)
    wanted: dict[int, int] = {}  # a site, and the layer that comes about there
    for layer in layers:
        site = sites[layer] if sites is not None else LAST if layer == len(blocks) else layer
        assert site is not None
        wanted[site] = layer
    highest = LAST if LAST in wanted else max(wanted)
    handles = []

    def took(site: int, states: Any) -> None:
        states = states_of(states)
        _check_shape(model, states, inputs)
        take(wanted[site], states)
        if site == highest:
            raise _Reached

    def before_first(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        took(0, args[0] if args else kwargs.get("hidden_states"))

    def after(site: int) -> Callable[..., None]:
        return lambda module, args, output: took(site, output)

    try:
        if 0 in wanted:
            handles.append(blocks[0].register_forward_pre_hook(before_first, with_kwargs=True))
        handles += [blocks[site - 1].register_forward_hook(after(site)) for site in wanted if site > 0]
        with torch.inference_mode(), _through_onednn(model) if onednn else nullcontext():
            output = model(**inputs)
            if LAST in wanted:
                take(wanted[LAST], output.last_hidden_state)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


def states_of(output: Any) -> Any:
    """The hidden states among what a block returns."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def attention_of(model: Any) -> str:
    """What transformers calls the attention that a model uses now."""
    return str(_text_config(model)._attn_implementation)


def set_attention(model: Any, name: str) -> None:
    """Exchanges a model's attention.

    Raises:
        UnservedAttention: The model does not take its attention from transformers' table.
    """
    if attention_of(model) == name:
        return
    # Asked first, because transformers only warns, and where every user would see it.
    settable = getattr(model, "_can_set_attn_implementation", None)
    if settable is None or settable():
        model.set_attn_implementation(name)
    if attention_of(model) != name:
        raise UnservedAttention("its attention cannot be exchanged")


def own_attention(model: Any) -> None:
    """Gives a model that was set to tree attention one of its own again, for what is no tree."""
    if attention_of(model) == TREE:
        set_attention(model, "sdpa" if getattr(model, "_supports_sdpa", False) else "eager")


def tree_inputs(model: Any, pack: Pack, kernel: str = "dense") -> dict[str, Any]:
    """Forward arguments for one pack; the model must be set to tree attention."""
    import torch

    device = device_of(model)
    return {
        "input_ids": torch.from_numpy(pack.input_ids)[None].to(device),
        "position_ids": torch.from_numpy(pack.position_ids)[None].to(device),
        "tree_layout": tree_layout(pack, device, kernel=kernel),
        **_without_cache(model),
    }


def padded_inputs(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Forward arguments for texts padded on the right, where positions count as they do for a text alone."""
    import torch

    pad = getattr(_text_config(model), "pad_token_id", None)
    ids = torch.full((len(texts), max(len(text) for text in texts)), pad if isinstance(pad, int) and pad >= 0 else 0)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text, dtype=torch.long)
        mask[row, : len(text)] = 1
    device = device_of(model)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), **_without_cache(model)}


def rope_limit(model: Any) -> int | None:
    """Longest text that its rotary frequencies read like any shorter one; None if length never changes them."""
    limits = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                config = module.config
                limits += whole_numbers(getattr(config, "rope_parameters", None), ("original_max_position",))
                limits.append(int(config.max_position_embeddings))
    return min(limits, default=None)


def onednn_is_faster(model: Any) -> bool:
    """Measures both libraries on the widest matrix of the first block; ties go to torch's own choice.

    On AMD processors the library that torch takes for float32 leaves half of the vector units idle: 205 against 450
    Gflop/s were measured on two cores of an EPYC of family 26.
    """
    import torch

    if device_of(model).type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        first: Any = find_blocks(model)[0]
    except ValueError:
        first = model
    shapes = [
        tuple(module.weight.shape)
        for module in first.modules()
        if isinstance(module, torch.nn.Linear)
        and type(module.weight) is torch.nn.Parameter
        and module.weight.dtype == torch.float32
    ]
    return bool(shapes) and _onednn_gain(*max(shapes, key=lambda shape: shape[0] * shape[1])) > _WORTH_ONEDNN


def whole_numbers(config: Any, words: Sequence[str]) -> list[int]:
    """Every whole number in a nested config whose name contains one of the words."""
    if not isinstance(config, Mapping):
        return []
    found = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += whole_numbers(value, words)
        elif isinstance(value, int) and not isinstance(value, bool) and any(word in str(name) for word in words):
            found.append(value)
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was what was missing; on a CPU torch says so only in the wording of a `RuntimeError`."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory for the next layer instead of giving it back to the system.

    Each layer's temporaries, some megabytes each, are otherwise handed back and mapped anew, page by page: a tenth of
    the time of a pass on a CPU. Only glibc is told so, for the whole process, and only if the user has not tuned it.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes; a larger block is always mapped
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


class OtherShapeError(ValueError):
    """A model's states are not those of the tokens that it was given, one for each."""


def _check_shape(model: Any, states: Any, inputs: Mapping[str, Any]) -> None:
    """Refuses states with rows that are no tokens: such as those that a model adds to fill its own blocks."""
    given = list(inputs["input_ids"].shape)
    shape = list(getattr(states, "shape", ()))
    if len(shape) != 3 or shape[:2] != given:
        raise OtherShapeError(
            f"{type(model).__name__} gives hidden states of shape {shape} for tokens of shape {given}; expected is "
            "`[b, t, d_model]`"
        )


class _Reached(Exception):
    """The highest layer that was asked for is there."""


_CUT = "_legend_hf_cut"


def _cut_block(block: torch.nn.Module) -> torch.nn.Module:
    """A block without its weights: what a model asks of a block before it runs it is still answered."""
    import torch

    empty = torch.nn.Module()
    plain = {name: value for name, value in vars(block).items() if isinstance(value, str | int | float | bool | None)}
    vars(empty).update({**plain, _CUT: True})
    return empty


def _check_layers(model: Any, layers: Sequence[int], route: Route) -> None:
    if route.sites is not None and None in route.sites:  # the whole model runs
        n = loaded = len(route.sites) - 1
    else:
        n, blocks = len(find_blocks(model)), loaded_blocks(model)
        sites = [*range(n), LAST] if route.sites is None else route.sites
        loaded = n if blocks == n else max((i for i, site in enumerate(sites) if 0 <= site <= blocks), default=0)
    if not len(layers) or not all(0 <= layer <= loaded for layer in layers):
        whole = f"of its {n} blocks {loaded} are loaded" if loaded < n else "its last block"
        raise ValueError(
            f"`layers` is {list(layers)}; give at least one, each from 0 (embeddings) to {loaded} ({whole})"
        )
    for layer, reason in route.refused:
        if layer in layers:
            raise ValueError(f"layer {layer} of {type(model).__name__} cannot be read: {reason}; take another `layer`")


def plan(
    texts: Sequence[Sequence[int]], needed: Sequence[Sequence[int]], waiting: Sequence[int], route: Route, budget: int
) -> Iterator[tuple[int, list[int], _Batch]]:
    """Batches of the texts that wait: number of tokens, indices of the texts, and what to read."""
    if route.way == "tree":
        for pack in plan_trees([texts[i] for i in waiting], [needed[i] for i in waiting], max_tokens=budget):
            yield len(pack), [waiting[i] for i in pack.texts], pack
    else:
        lengths = [len(texts[i]) for i in waiting]
        budget = 1 if route.way == "alone" else budget  # a single text is never too long
        for batch in plan_padded(lengths, max_tokens=budget, group_equal=route.way == "grouped"):
            index = [waiting[i] for i in batch]
            yield len(batch) * lengths[batch[0]], index, ([texts[i] for i in index], [needed[i] for i in index])


_Batch = Pack | tuple[list[Sequence[int]], list[Sequence[int]]]


def _read_batch(
    model: Any, batch: _Batch, layers: Sequence[int], route: Route, watch: Watch | None, last: bool
) -> torch.Tensor:
    """Vectors of one batch, `[b, layers, d_model]`, float32."""
    with reading(model):
        return _read_held(model, batch, layers, route, watch, last)


def _read_held(
    model: Any, batch: _Batch, layers: Sequence[int], route: Route, watch: Watch | None, last: bool
) -> torch.Tensor:
    import torch

    # For each batch, since readers of different lengths may share a model and take turns.
    if route.attention is not None:
        set_attention(model, route.attention)
    if isinstance(batch, Pack):
        inputs, places, counts = tree_inputs(model, batch, route.kernel), batch.rows, batch.counts
    else:
        texts, needed = batch
        inputs = padded_inputs(model, texts)
        width = inputs["input_ids"].shape[1]
        places = np.concatenate([row * width + np.asarray(one, dtype=np.int64) for row, one in enumerate(needed)])
        counts = tuple(len(one) for one in needed)
    device = device_of(model)
    rows = torch.from_numpy(places).to(device)
    found: dict[int, torch.Tensor] = {}

    def take(layer: int, states: torch.Tensor) -> None:
        # Gathered before it is widened: only the positions that count become float32.
        gathered = states.flatten(0, 1)[rows.to(states.device)].to(device).float()  # [m, d_model]
        found[layer] = torch.stack([one[-1] if last else one.mean(0) for one in gathered.split(counts)])
        if watch is not None:
            watch(layer, gathered, counts)

    hidden_states(model, inputs, layers, take, sites=route.sites, onednn=route.onednn)
    return torch.stack([found[layer] for layer in layers], dim=1)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _without_cache(model: Any) -> dict[str, bool]:
    """A cache of keys and values would only cost memory; encoders do not know the word."""
    return {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}


def _free(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _through_onednn(model: Any) -> Iterator[None]:
    """Within it, the model's float32 `Linear`s multiply with oneDNN."""
    import torch

    product, linear = torch.ops.mkldnn._linear_pointwise, torch.nn.functional.linear

    def plain(x: torch.Tensor) -> bool:
        # oneDNN reads other layouts too, but a hundred times slower. What is quantised may call itself float32.
        whole = type(x) in (torch.Tensor, torch.nn.Parameter)
        return whole and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()

    def forward(x: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return product(x, weight, bias, "none", [], "") if plain(x) else linear(x, weight, bias)

    # An attribute of the instance stands before the method of its class, and leaves no trace once it is gone. (A
    # `TorchFunctionMode` would do without touching the model, at a percent or two of the time.)
    changed = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear and "forward" not in vars(module) and plain(module.weight)
    ]
    for module in changed:
        vars(module)["forward"] = partial(forward, weight=module.weight, bias=module.bias)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


@cache
def _onednn_gain(n_out: int, n_in: int) -> float:
    """How many times faster oneDNN is than torch's own float32 product, the best of a few tries each; 0 if it errs."""
    import time

    import torch

    # Filled by hand: the usual initialisation would take numbers from the user's random generator.
    layer = torch.nn.utils.skip_init(torch.nn.Linear, n_in, n_out, bias=False)
    layer.weight.data = torch.linspace(-1, 1, n_out * n_in, dtype=torch.float32).view(n_out, n_in)
    x = torch.linspace(-1, 1, 512 * n_in, dtype=torch.float32).view(512, n_in)
    best: dict[str, float] = {}
    results: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(4):
            for name, mode in (("torch", nullcontext()), ("onednn", _through_onednn(layer))):
                with mode:
                    start = time.perf_counter()
                    results[name] = layer(x)
                    best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    right = torch.allclose(results["torch"], results["onednn"], rtol=1e-3, atol=1e-3)
    return best["torch"] / best["onednn"] if right else 0.0
