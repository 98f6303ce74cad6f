"""A package hands on names that are loaded when they are first used, so that its import costs nothing.

In: a package, and which of its files has which public name. Out: a package with these names. This file knows no name.

A file may have the name of what it holds, as `reports/report.py` has, and Python puts a file that it has imported into
its package. The public name would be the one or the other by what was imported first; here it is never the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    _home: Mapping[str, str]
    __all__: list[str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._home:
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}; it has {', '.join(sorted(self._home))}"
            )
        found = getattr(import_module(f"{self.__name__}.{self._home[name]}"), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in self._home and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__all__)


def hand_on(package: str, home: Mapping[str, str]) -> list[str]:
    """Makes names of a package's files names of the package.

    Args:
        package: Its `__name__`.
        home: Each name to the file that has it, from the package: `"report"` or `"directions.fit"`.

    Returns:
        The names, for its `__all__`.
    """
    module = sys.modules[package]
    module.__dict__["_home"] = dict(home)
    module.__class__ = _Package
    return sorted(home)
