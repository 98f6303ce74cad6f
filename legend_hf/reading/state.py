"""A model reads each batch as if it were its first, and one thread at a time.

In: a loaded model. Out: a context in which it may be run. Some models change as they read: frequencies that follow the
longest text so far, attention that is exchanged for good once a short text comes. And a pass is more than one call: an
attention is set, hooks are hung, and two threads would take each other's. This file knows neither texts nor layers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HELD = "_legend_hf_held"
_guard = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Held:
    """What is kept beside a model: its lock, and what it was like when it had read nothing."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    process: int = field(default_factory=os.getpid)
    modules: list[_Module] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Module:
    module: torch.nn.Module
    attributes: dict[str, Any]
    children: dict[str, torch.nn.Module | None]
    buffers: dict[str, tuple[torch.Tensor | None, int, torch.Tensor | None]]  # itself, its version, a copy


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """Within it this thread alone runs the model, which has forgotten what it read before.

    What is put back are attributes, submodules and buffers that were there the first time; what a model hangs on to in
    another way shows when it is loaded, as a text that reads otherwise the second time.
    """
    held = _held(model)
    with held.lock:
        _put_back(held.modules)
        yield


def changed_on_purpose(model: Any) -> None:
    """Takes the model as it is now for the one to go back to. Nothing that was taken out of it is held on to."""
    held = _held(model)
    with held.lock:
        held.modules[:] = _remember(model)


def _held(model: Any) -> _Held:
    with _guard:
        held: _Held | None = vars(model).get(_HELD)
        if held is None or held.process != os.getpid():  # a fork copies a lock that nobody there will release
            held = _Held(modules=held.modules if held is not None else _remember(model))
            vars(model)[_HELD] = held
        return held


def _remember(model: Any) -> list[_Module]:
    return [
        _Module(
            module,
            {name: value for name, value in vars(module).items() if name != _HELD},
            dict(module._modules),
            {
                name: (buffer, 0, None) if buffer is None else (buffer, _version(buffer), buffer.clone())
                for name, buffer in module._buffers.items()
            },
        )
        for module in model.modules()
    ]


def _put_back(modules: list[_Module]) -> None:
    for one in modules:
        now = vars(one.module)
        for name, value in one.attributes.items():
            if now.get(name, one) is not value:
                now[name] = value
        for name, child in one.children.items():
            if one.module._modules.get(name) is not child:
                one.module._modules[name] = child
        for name, (buffer, version, copy) in one.buffers.items():
            if one.module._buffers.get(name) is not buffer:
                one.module._buffers[name] = buffer
            if buffer is not None and copy is not None and _version(buffer) != version:
                buffer.data.copy_(copy)
                one.buffers[name] = (buffer, _version(buffer), copy)


def _version(buffer: torch.Tensor) -> int:
    """A number that every change in place raises."""
    return -1 if buffer.is_inference() else int(buffer._version)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
