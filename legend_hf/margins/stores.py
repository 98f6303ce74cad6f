"""Which store? A path is a file on this machine, a URL a folder that outlives it.

In: what a user gives as `store=`. Out: it, checked before anything is loaded; and the store. This file knows nothing of
what stores hold.
"""

from __future__ import annotations

import atexit
import os
import threading

from legend_hf.hub.transfer import is_url, without_secrets
from legend_hf.margins.remote_store import RemoteStore, check_url
from legend_hf.margins.store import Store, check_path, flush_stores, once_a_process

_users: set[int] = set()  # Processes that used a store themselves: a fork copies all of this to those that did not.


def check_where(store: str | os.PathLike[str]) -> str:
    """The path or URL of a store, as plain text.

    Raises:
        ValueError: It is neither the path of a `.sqlite` file nor the URL of a folder that can be added to.
        ImportError: The URL's kind needs a package which is not installed.
    """
    given = os.fspath(store)
    return check_url(given) if is_url(given) else str(check_path(store))


def store_at(where: str | os.PathLike[str]) -> Store:
    """This process's store there. What one at a URL has not sent yet, it sends when the process ends.

    Raises:
        ValueError, ImportError: As `check_where`.
    """
    given = os.fspath(where)
    _users.add(os.getpid())
    return once_a_process(RemoteStore(given) if is_url(given) else Store(given))


def shown(where: str) -> str:
    """A store's path or URL, for messages: without what may be secret in it."""
    return without_secrets(where) if is_url(where) else where


def _at_exit() -> None:
    if os.getpid() in _users:
        flush_stores()


# Before threads are joined, where Python can say so: after that no client of a network starts the threads it needs.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
