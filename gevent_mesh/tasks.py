"""The greenlets that python-engineio starts for each client, at less cost.

Rules:

- What becomes of a client, and when, is the same as in python-engineio.
- A greenlet that only sleeps is none: a PING is sent by one that a timer starts when it is due, for a stack
  is most of what a greenlet costs. Nor is what is left of a client that has gone kept until then.
- Of who has started them there is no record, as gevent else keeps it, for people who debug.
- What the application starts, and what it has replaced, is left alone.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
from engineio import packet
from engineio import socket as eio_socket

from .stock import stock

__all__ = ["Task", "install"]

_STOCK_PING = stock(getattr(eio_socket.Socket, "_send_ping", None), eio_socket)


class Task(gevent.Greenlet):  # type: ignore[misc]  # gevent has no types
    """A greenlet of one client."""

    spawning_stack_limit = 0


def install(eio: Any) -> None:
    """Have an `engineio.Server` start its own tasks so."""
    start: Callable[..., Any] = eio.start_background_task

    def start_background_task(target: Any, *args: Any, **kwargs: Any) -> Any:
        if _STOCK_PING is not None and getattr(target, "__func__", None) is _STOCK_PING:
            session = target.__self__
            # The last one was answered. Newer ones of python-engineio have noted that already.
            session.last_ping = None
            return Task.spawn_later(eio.ping_interval, _ping, weakref.ref(session))
        if getattr(target, "__module__", None) == eio_socket.__name__:
            return Task.spawn(target, *args, **kwargs)
        return start(target, *args, **kwargs)

    eio.start_background_task = start_background_task


def _ping(find_session: Callable[[], Any]) -> None:
    session = find_session()
    if session is not None and not session.closing and not session.closed:
        session.last_ping = time.time()
        session.send(packet.Packet(packet.PING))
