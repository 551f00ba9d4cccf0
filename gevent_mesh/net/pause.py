"""Giving way to everybody else, sockets and timers included."""

from __future__ import annotations

import gevent

__all__ = ["give_way"]


def give_way() -> None:
    """Let one whole turn of the event loop pass.

    `gevent.sleep(0)` does not: what it puts off runs again in the same turn, up to 50 times over, before the loop looks
    at a single socket or timer. With slices of 5 ms, heartbeats and clients would wait for a quarter of a second.
    A timer of length zero is due in the next turn, and costs no more.
    """
    hub = gevent.get_hub()
    with hub.loop.timer(0) as timer:
        hub.wait(timer)
