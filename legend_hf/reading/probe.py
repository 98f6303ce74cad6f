"""How can this model be read? Tried out once, when it is loaded.

In: a loaded model and the longest text it will be given. Out: a `Route`, with the reason in words. Some architectures
silently ignore an attention function that they do not know, some look past what they are told, some let a long
neighbour change the numbers of all, some make of their layers another list than that of their blocks: only comparing
with the model's own `hidden_states`, one text at a time, tells. This file knows no text; it reads random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from legend_hf.reading import attention
from legend_hf.reading.forward import (
    LAST,
    WAYS,
    OtherShapeError,
    Route,
    Way,
    attention_of,
    cut,
    device_of,
    find_blocks,
    hidden_states,
    keep_freed_memory,
    loaded_blocks,
    onednn_is_faster,
    out_of_memory,
    own_attention,
    padded_inputs,
    rope_limit,
    set_attention,
    states_of,
    tree_inputs,
)
from legend_hf.reading.packing import plan_padded, plan_trees
from legend_hf.reading.plain import check_choice
from legend_hf.reading.state import changed_on_purpose, reading

if TYPE_CHECKING:
    import torch

# Differences are measured in standard deviations of the states. In float32 a right reading was seen to differ by at
# most 1e-5, a wrong one by 5e-3 or more. Rounding to half precision alone makes about 1e-2 over a few blocks, and more
# over many, where a layer that is another one differs by 1.
TOLERANCE = 1e-4
TOLERANCE_HALF = 0.1
TOLERANCE_HALF_DEEP = 0.3

# Longest text that is tried, so that a probe stays affordable: past the windows and chunks that are in use today.
MOST_TOKENS = 8448

# Tokens compared at the end of each text: whatever sees too much or too little shows there.
_TAIL = 8


def probe(model: Any, *, max_length: int, force: Way | None = None, depth: int | None = None) -> Route:
    """Decides how to read with a model.

    Every layer that will be read is compared with the model's own list of hidden states on short texts, and trees of
    unequal length in one row, one of them as long as a text may be, with reading one text at a time through the
    attention that the model was loaded with. There only as many blocks run as show every kind of block that the model
    has, in float32 whatever its dtype, so that a small fault is not taken for rounding.

    Args:
        model: A model without head, in evaluation mode.
        max_length: Longest text that it will be given; ranges beyond it need no trial.
        force: Take this way without asking whether another would be quicker. It is tried all the same.
        depth: Highest layer that will be read: blocks that none up to it needs are taken out of the model. None leaves
            the model as it was.

    Returns:
        The route: the first of `"tree"`, `"padded"`, `"grouped"`, `"alone"` that gives the model's own numbers, with
        hooks that end the pass early, else by the model's own list.

    Raises:
        ValueError: No way gives them, or not the one that is forced, or the model cannot run at all.
    """
    check_choice("force", force, (*WAYS, None), otherwise=" to find out")
    attention.register_tree_attention()
    own_attention(model)
    if device_of(model).type == "cpu":
        keep_freed_memory()
    with reading(model):
        trial = _Trial(model, max_length, onednn_is_faster(model))
        trial.read_own(depth)
        return trial.choose(force, depth)


class _Trial:
    """One model under trial, and what is found of it."""

    def __init__(self, model: Any, max_length: int, onednn: bool) -> None:
        self.model = model
        self.name = type(model).__name__
        self.plain = attention_of(model)
        self.max_length = max_length
        self.onednn = onednn
        self.texts, self.short = _texts(model, max_length)
        self.sites: tuple[int | None, ...] = ()
        self.refused: tuple[tuple[int, str], ...] = ()

    def read_own(self, depth: int | None) -> None:
        """What the model calls its hidden states, and where in a pass they come about.

        Raises:
            ValueError: Its list is another than that of its blocks, or no text reads twice alike.
        """
        try:
            own, self.sites = _own_states(self.model, self.short[0])
            # Each of them, and the first again at the end: with all that the model has seen meanwhile.
            all_own = [_own_states(self.model, text, places=False)[0] for text in [*self.short, self.short[0]]]
        except Exception as error:  # a model's own code can fail in any way on what it does not know
            if out_of_memory(error):
                raise
            raise ValueError(
                f"{self.name} cannot read a text of {len(self.short[0])} tokens by itself ({_said(error)}); use "
                "another model, or another version of transformers"
            ) from error
        n = self.model.config.get_text_config(decoder=True).num_hidden_layers
        if len(own) != n + 1:
            raise ValueError(
                f"{self.name} gives {len(own)} hidden states for {n} blocks, so layer k of it cannot be told; use a "
                f"model that gives one more than it has blocks, as most decoders and encoders do"
            )
        width = self.model.config.get_text_config(decoder=True).hidden_size
        refused = {}
        for layer, states in enumerate(own):
            shape = None if states is None else list(states.shape)
            if shape != [1, len(self.short[0]), width]:
                refused[layer] = (
                    f"its hidden states are {shape} for a text of {len(self.short[0])} tokens, where "
                    f"{[1, len(self.short[0]), width]} are expected"
                )
        self.refused = tuple(refused.items())
        self.layers = [k for k in range(1 + (n if depth is None else depth)) if k not in refused]
        if not self.layers:
            raise ValueError(f"no layer of {self.name} can be read: {refused[0]}; use another model")
        import torch

        self.expected = torch.stack([_tail(states, self.layers) for states in all_own[:-1]])
        worst = _worst(_tail(all_own[-1], self.layers)[None], self.expected[:1])
        if not worst <= (TOLERANCE if self.model.dtype == torch.float32 else TOLERANCE_HALF):
            raise ValueError(
                f"{self.name} reads the same text differently the second time (by {worst:.0e} of the spread of its "
                "states): its numbers depend on chance or on what was read before; use another model"
            )

    def choose(self, force: Way | None, depth: int | None) -> Route:
        """The first way that gives the model's own numbers."""
        reasons: dict[Way, str] = {}
        own_list: tuple[int | None, ...] = (None,) * len(self.sites)
        attempts = [(own_list, False)]
        if all(self.sites[layer] is not None for layer in self.layers):
            attempts.insert(0, (self.sites, False))
        needed = [self.sites[layer] or 0 for layer in self.layers]
        blocks = _blocks(self.model)
        if len(attempts) == 2 and depth is not None and blocks is not None and LAST not in needed:
            attempts.insert(0, (self.sites, True))
        taken: list[torch.nn.Module] = []
        for sites, shallow in attempts:
            if shallow and blocks is not None:
                taken = list(blocks)
                cut(self.model, max(1, *needed))
            elif taken and blocks is not None:  # a model that asks something of blocks that it does not run
                with reading(self.model):
                    for i, block in enumerate(taken):
                        blocks[i] = block
                    changed_on_purpose(self.model)
                taken = []
            reasons = {}
            for way in (force,) if force is not None else WAYS:
                route = self._try(way, sites, reasons)
                if route is not None:
                    return route
        said = "; ".join(f"{way}: {reason}" for way, reason in reasons.items())
        if force is not None:
            raise ValueError(
                f"{self.name} cannot be read {'by trees' if force == 'tree' else f'the {force} way'}: "
                f"{reasons[force]}; leave the choice open, or take `padded` or `grouped`"
            )
        raise ValueError(f"{self.name} cannot be read: no way gives its own numbers ({said}); use another model")

    def _try(self, way: Way, sites: tuple[int | None, ...], reasons: dict[Way, str]) -> Route | None:
        """The route, if this way gives the model's own numbers; else why not, among the reasons."""
        import torch

        limit = rope_limit(self.model)
        if way in ("tree", "padded") and limit is not None and limit < self.max_length:
            reasons[way] = (
                f"its rotary frequencies change with the longest text of a batch once that has over {limit} tokens"
            )
            return None
        half = self.model.dtype != torch.float32
        onednn = self.onednn
        # As it will be run: the quickest kernel that copes with this dtype and device.
        kernels = ["dense"]
        if half and way == "tree":
            if device_of(self.model).type == "cuda":
                kernels.insert(0, "varlen")
            elif device_of(self.model).type == "cpu" and attention.sdpa_is_faster(self.model.dtype):
                kernels.insert(0, "sdpa")
        fault = ""
        for kernel in kernels:
            fault = self._fault(
                way, self.short, self.expected, self.layers, TOLERANCE_HALF_DEEP if half else TOLERANCE, sites, kernel
            )
            if not fault:
                break
        if not fault:
            fault = self._fault_of_long_texts(way, sites, kernel)
        if fault:
            reasons[way] = fault
            return None
        said = [reason if one == "tree" else f"{one}: {reason}" for one, reason in reasons.items()]
        reason = "; ".join(said[:1] if len(set(reasons.values())) == 1 else said)
        reason = reason or f"tried on texts of up to {max(map(len, self.texts))} tokens"
        natural = sites == (*range(len(sites) - 1), LAST)
        name = attention.NAME if way == "tree" else self.plain
        return Route(way, reason, name, kernel, onednn, None if natural else sites, self.refused)

    def _fault_of_long_texts(self, way: Way, sites: tuple[int | None, ...], kernel: str) -> str:
        """What is wrong with a way for texts up to the longest, in the first blocks; empty if nothing is."""
        import torch

        blocks, left_out = _blocks(self.model), []
        if blocks is None or None in sites:
            layer = self.layers[-1]
        else:
            there = list(blocks)[: loaded_blocks(self.model)]
            layer = _blocks_to_try(there)
            sites, left_out = tuple(range(len(blocks) + 1)), there[layer:]  # as they leave a block, before any norm
        with _in_float32(self.model, left_out) as exact:
            tolerance = TOLERANCE if exact else TOLERANCE_HALF
            try:
                expected = torch.cat([self._states("alone", [text], [layer], sites, "dense") for text in self.texts])
            except OtherShapeError as error:  # of some lengths, which the short texts did not have
                layer, sites = self._leave_out_blocks(error)
                expected = torch.cat([self._states("alone", [text], [layer], sites, "dense") for text in self.texts])
            except Exception as error:
                if out_of_memory(error):
                    raise
                self._raise_too_long(error)
            in_float32 = "dense" if kernel == "varlen" else kernel
            return self._fault(way, self.texts, expected, [layer], tolerance, sites, in_float32)

    def _leave_out_blocks(self, error: OtherShapeError) -> tuple[int, tuple[int | None, ...]]:
        """Refuses all layers but the model's last state, if that will be read; gives that layer and the sites."""
        last = len(self.sites) - 1
        said = str(error).split("; ")[0]
        if last not in self.layers or self.sites[last] != LAST:
            raise ValueError(f"layers 0 to {last - 1} of {said}; take the last layer, {last}") from error
        self.refused = (*self.refused, *((k, said) for k in self.layers if k != last))
        self.expected = self.expected[:, self.layers.index(last) :]
        self.layers = [last]
        return last, self.sites

    def _raise_too_long(self, error: Exception) -> None:
        """Finds the longest text that the model can read, and says so."""
        import torch

        low, high = 1, self.max_length
        while low < high:
            middle = (low + high + 1) // 2
            try:
                with torch.inference_mode():
                    self.model(**padded_inputs(self.model, [random_tokens(self.model, middle)]))
                low = middle
            except Exception:
                high = middle - 1
        if low >= self.max_length:  # it is not the length
            raise ValueError(f"{self.name} cannot be read ({_said(error)}); use another model") from error
        raise ValueError(
            f"{self.name} cannot read texts of {self.max_length} tokens ({_said(error)}); the longest that it can read "
            f"has {low}: give `max_length={low}`"
        ) from error

    def _fault(
        self,
        way: Way,
        texts: Sequence[list[int]],
        expected: torch.Tensor,
        layers: Sequence[int],
        tolerance: float,
        sites: tuple[int | None, ...],
        kernel: str,
    ) -> str:
        """What is wrong with this way of reading; empty if nothing is."""
        try:
            found = self._states(way, texts, layers, sites, kernel)
        except Exception as error:  # a model's own code can fail in any way on what it does not know
            if out_of_memory(error):
                raise
            return str(error) if isinstance(error, attention.UnservedAttention) else _said(error)
        finally:
            set_attention(self.model, self.plain)
        worst = _worst(found, expected)
        # Written so that a state that is no number counts as wrong.
        return "" if worst <= tolerance else f"its states differ from one-by-one reading by {worst:.0e} of their spread"

    def _states(
        self, way: Way, texts: Sequence[list[int]], layers: Sequence[int], sites: tuple[int | None, ...], kernel: str
    ) -> torch.Tensor:
        """States of the last tokens of each text, `[texts, layers, tail, d_model]`, float32."""
        import torch

        places = [range(max(0, len(text) - _TAIL), len(text)) for text in texts]
        result: dict[int, torch.Tensor] = {}
        for batch, inputs, rows in _batches(self.model, way, texts, places, kernel):
            found: dict[int, torch.Tensor] = {}

            def take(layer: int, states: torch.Tensor, found: Any = found, rows: Any = rows) -> None:
                found[layer] = states.flatten(0, 1)[rows].to(device_of(self.model)).float()

            with reading(self.model):
                if way == "tree":
                    set_attention(self.model, attention.NAME)
                hidden_states(self.model, inputs, layers, take, sites=sites, onednn=self.onednn)
            states = torch.stack([found[layer] for layer in layers])  # [layers, texts * tail, d_model]
            for at, text in enumerate(batch):
                tail = len(places[text])
                result[text] = states[:, at * tail : (at + 1) * tail]
        return torch.stack([result[i] for i in range(len(texts))])


def _batches(
    model: Any, way: Way, texts: Sequence[list[int]], places: Sequence[range], kernel: str
) -> Iterator[tuple[list[int], dict[str, Any], list[int]]]:
    """Texts of each batch, its inputs, and the rows of its tails."""
    if way == "tree":
        # The cap on sharing is lowered to have forks within forks in a short text.
        (pack,) = plan_trees(texts, places, max_tokens=sum(map(len, texts)), min_shared=4)
        yield list(pack.texts), tree_inputs(model, pack, kernel), pack.rows.tolist()
        return
    lengths = [len(text) for text in texts]
    budget = 1 if way == "alone" else len(texts) * max(lengths)
    for batch in plan_padded(lengths, max_tokens=budget, group_equal=way == "grouped"):
        width = lengths[batch[0]]
        rows = [row * width + place for row, text in enumerate(batch) for place in places[text]]
        yield batch, padded_inputs(model, [texts[i] for i in batch]), rows


def _own_states(
    model: Any, text: list[int], *, places: bool = True
) -> tuple[list[torch.Tensor | None], tuple[int | None, ...]]:
    """The model's own list of hidden states of one text, and the site of each in a pass (see `Route`)."""
    import torch

    blocks: Sequence[torch.nn.Module] = list(_blocks(model) or ()) if places else []
    seen: dict[int, list[Any]] = {}
    handles = []

    def note(site: int, states: Any) -> None:
        states = states_of(states)
        seen.setdefault(site, []).append(states.clone() if isinstance(states, torch.Tensor) else None)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        note(0, args[0] if args else kwargs.get("hidden_states"))

    for i, block in enumerate(blocks):
        if i == 0:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(lambda m, a, output, i=i: note(i + 1, output)))
    try:
        with reading(model), torch.inference_mode():
            output = model(**padded_inputs(model, [text]), output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    own = list(output.hidden_states)
    if blocks:
        seen[LAST] = [output.last_hidden_state]
    sites: list[int | None] = []
    for layer, states in enumerate(own):
        expected = LAST if layer == len(own) - 1 else layer
        # Where several places hold the same, the usual one, and none twice. A block that runs twice is no place.
        order = sorted(seen, key=lambda site: (site != expected, abs(site - layer)))
        found = (
            site
            for site in order
            if site not in sites and len(seen[site]) == 1 and states is not None and _same(seen[site][0], states)
        )
        sites.append(next(found, None))
    return own, tuple(sites)


def _same(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    import torch

    return a is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _tail(states: Sequence[torch.Tensor | None], layers: Sequence[int]) -> torch.Tensor:
    """`[layers, tail, d_model]`, float32."""
    import torch

    chosen = [one for one in (states[layer] for layer in layers) if one is not None]
    return torch.stack([one[0, -_TAIL:].to(chosen[-1].device).float() for one in chosen])


def _worst(found: torch.Tensor, right: torch.Tensor) -> float:
    """The most that a text differs in a layer, in standard deviations of that layer's states.

    Args:
        found: `[texts, layers, tail, d_model]`.
        right: The same.
    """
    if found.shape != right.shape:
        return float("inf")
    states = right.transpose(0, 1).flatten(1, 2)  # [layers, texts x tail, d_model]
    # A single state, that of a window of one token, has no spread: there its size stands for it.
    spread = (states.std(1) if states.shape[1] > 1 else states.abs()[:, 0])[:, None]  # [layers, 1, d_model]
    difference = (found.to(right.device) - right) / (spread + 1e-6 * spread.amax(-1, keepdim=True) + 1e-30)
    return float(difference.square().mean((2, 3)).sqrt().max())


def _blocks(model: Any) -> torch.nn.ModuleList | None:
    """The model's blocks, None where they cannot be told."""
    try:
        return find_blocks(model)
    except ValueError:
        return None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _texts(model: Any, max_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Random texts: forks within forks, two as long as a text may be, and one alone; and the short ones of them.

    Of the short ones two are of equal length, which is what reading in groups is tried on.
    """
    long = min(max_length, MOST_TOKENS)
    take = iter(random_tokens(model, max(long, 40) + 100))

    def more(n: int) -> list[int]:
        return [next(take) for _ in range(n)]

    prompt, far = more(11), more(max(long, 40) - 2 * _TAIL)
    second = [*prompt, *more(13)]
    short = [[*prompt, *more(9)], second, [*second[:-4], *more(4)], [*second[:-4], *more(8)], more(14)]
    texts = [*short, [*far, *more(16)], [*far, *more(11)]]
    return [text[:max_length] for text in texts], [text[:max_length] for text in short]


def random_tokens(model: Any, n: int) -> list[int]:
    """Random tokens. The first ids are often special ones, to which some models give a meaning of their own."""
    import torch

    try:
        vocabulary = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"{type(model).__name__} has no table of its tokens' embeddings ({_said(error)}); use another model"
        ) from error
    numbers = torch.randint(vocabulary // 4, vocabulary, (n,), generator=torch.Generator().manual_seed(0))
    return [int(number) for number in numbers]


def _blocks_to_try(blocks: Sequence[torch.nn.Module]) -> int:
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
    elsewhere = any(p.device.type == "meta" for p in model.parameters())
    quantised = any(type(p) is not torch.nn.Parameter or not p.is_floating_point() for p in model.parameters())
    if quantised or (elsewhere and model.dtype != torch.float32):  # nothing could be widened
        yield False
        return
    try:
        for p, data in narrow:
            p.data = data.float()
        yield True
    finally:
        for p, data in narrow:
            p.data = data
