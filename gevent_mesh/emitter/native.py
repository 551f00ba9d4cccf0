"""Threads and locks of the operating system, also where gevent has put its own in their place.

An emitter's network thread has an event loop of its own. Were it a greenlet, as patched threads are, it would stand
still whenever the application does.
"""

from __future__ import annotations

# The first event loop of a process imports these when it begins to work. Were it in the network thread, a fork at that
# moment would leave the child with halves of modules.
import pprint  # noqa: F401
from collections.abc import Callable
from typing import Protocol

import gevent
import gevent.resolver.thread
import gevent.threadpool
import gevent.util
from gevent._hub_local import get_hub_if_exists
from gevent.monkey import get_original, is_module_patched

__all__ = ["Lock", "has_greenlets", "make_lock", "may_wait", "native_sleep", "pause", "start_thread"]


class Lock(Protocol):
    """A native lock."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it."""

    def release(self) -> None:
        """Give it back; any thread may."""

    def __enter__(self) -> bool: ...

    def __exit__(self, *exc_info: object) -> None: ...


def make_lock() -> Lock:
    """A new native lock. Nobody may wait, log or switch greenlets while holding it."""
    lock: Lock = get_original("_thread", "allocate_lock")()
    return lock


def start_thread(run: Callable[[], None]) -> None:
    """Run a function in a new native thread, which does not keep the process from ending."""
    get_original("_thread", "start_new_thread")(run, ())


def has_greenlets() -> bool:
    """Whether the caller is one greenlet of many, which a native wait would hold up."""
    return is_module_patched("threading") or isinstance(gevent.getcurrent(), gevent.Greenlet)


def may_wait() -> bool:
    """Whether the caller may wait at all: callbacks of an event loop may not."""
    return gevent.getcurrent() is not get_hub_if_exists()


def native_sleep(seconds: float) -> None:
    """Wait, with the whole thread."""
    get_original("time", "sleep")(seconds)


def pause(seconds: float) -> None:
    """Wait, and let the other greenlets of this thread run if it has any."""
    # Asking for the hub would make one, in every thread of a program that does not use gevent.
    if get_hub_if_exists() is None:
        native_sleep(seconds)
    else:
        gevent.sleep(seconds)
