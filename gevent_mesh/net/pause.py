"""Giving way to everybody else, sockets and timers included; and telling long work from a greenlet that is stuck.

Whoever gives way, or waits for a bounded time on purpose, is *at work*: it has come so far a moment ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

import gevent
from gevent.lock import Semaphore

__all__ = [
    "ITEMS_SLICE_SECONDS",
    "SLICE_SECONDS",
    "Turns",
    "at_work",
    "give_way",
    "in_slices",
    "slice_behind_read",
    "worked_at",
]

SLICE_SECONDS = 0.005
"""How long a reader works before it lets others run."""
ITEMS_SLICE_SECONDS = 0.002
"""The same for work on many items, of which several kinds may be under way at once."""
WAITED_SECONDS = 0.001
"""A read that took longer has waited, and others have run meanwhile."""

T = TypeVar("T")


def at_work() -> None:
    """Note that the present greenlet is not stuck."""
    gevent.getcurrent().worked_at = monotonic()


def worked_at(greenlet: gevent.Greenlet) -> float:
    """When a greenlet noted that last, by the monotonic clock."""
    found: float = getattr(greenlet, "worked_at", float("-inf"))
    return found


def give_way() -> None:
    """Let one whole turn of the event loop pass.

    `gevent.sleep(0)` does not: what it puts off runs again in the same turn, up to 50 times over, before the loop looks
    at a single socket or timer. With slices of 5 ms, heartbeats and clients would wait for a quarter of a second.
    A timer of length zero is due in the next turn, and costs no more.
    """
    at_work()
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)


def slice_behind_read(began: float, now: float, slice_ends: float) -> float:
    """When the slice of a reader ends, behind a read that began then: one that has waited begins a new slice."""
    return now + SLICE_SECONDS if now - began > WAITED_SECONDS else slice_ends


def in_slices(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and give way before one of them whenever a slice of time is used up.

    What the items stand for may have changed by then. In the hub itself, which must not wait, nobody is given way to.
    """
    in_hub = gevent.getcurrent() is gevent.get_hub()
    slice_ends = monotonic() + ITEMS_SLICE_SECONDS
    for item in items:
        if monotonic() > slice_ends and not in_hub:
            give_way()
            slice_ends = monotonic() + ITEMS_SLICE_SECONDS
        yield item


class Turns:
    """Work that many greenlets do at the same moment, each its own: one goes after the other.

    Whoever finds a slice of time used up gives way first, and those behind it wait that long. Nobody is held up by one
    that waits for something later on.
    """

    def __init__(self) -> None:
        self._door = Semaphore(1)
        self._slice_ends = 0.0

    def take_turn(self) -> None:
        """Wait until it is this greenlet's turn."""
        with self._door:
            if monotonic() > self._slice_ends:
                give_way()
                self._slice_ends = monotonic() + ITEMS_SLICE_SECONDS
