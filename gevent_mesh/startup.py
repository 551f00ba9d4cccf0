"""When a node joins: as soon as its process begins to serve, and not before.

Importing an application must open no socket: migrations and shells import it too, and ``gunicorn --preload`` imports
it in a master that never serves. Waiting for the first client would be too late: what an HTTP route emits before that
would reach no other node. What all ways of serving with gevent have in common is `gevent.baseserver.BaseServer.start`
(``socketio.run``, ``pywsgi.WSGIServer``, both kinds of gunicorn worker): there waiting managers are started.

The server's sockets get TCP_NODELAY on that occasion (accepted ones inherit it): pywsgi leaves Nagle's algorithm on,
and with it the second of two packets to a client waits for the client's delayed acknowledgement, about 40 ms.

A fork leaves the child with copies of the parent's sockets. They are given up there, and the child starts as a new node
when it begins to serve.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import weakref
from typing import Any, Protocol

from gevent.baseserver import BaseServer

from .errors import StartError

__all__ = ["is_served", "watch"]

logger = logging.getLogger(__name__)


class Startable(Protocol):
    """What `watch` takes."""

    def serving(self) -> bool:
        """This process begins to serve: join if there is something to join for, and tell whether you have.

        Raises:
            StartError: something outside of the program is in the way.
        """

    def forked(self) -> None:
        """This process is a new child: nothing that was open belongs to it."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(manager: Startable) -> None:
    """Tell `manager` when this process begins to serve, and when it is a fork."""
    _hook()
    _watched.add(manager)


@functools.cache
def _hook() -> None:
    """Install the two hooks, once for each process and its forks."""
    original = BaseServer.start

    @functools.wraps(original)
    def start(self: BaseServer) -> None:
        if not getattr(self, "belongs_to_a_node", False):
            _process.is_served = True
            _tell_serving()
        original(self)
        with contextlib.suppress(OSError, AttributeError):  # not TCP, or no socket at all
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    BaseServer.start = start
    os.register_at_fork(after_in_child=_after_fork)


def _tell_serving() -> None:
    """Start what waits. If nothing can, the server does not start either; which of several it is for is not known."""
    joined = False
    errors: list[StartError] = []
    for manager in list(_watched):
        try:
            joined = manager.serving() or joined
        except StartError as error:
            errors.append(error)
    if errors and not joined:
        raise errors[0]
    for problem in errors:
        logger.error("a node could not start: %s", problem)


class _Process:
    """What is known of this process."""

    is_served = False


_process = _Process()


def is_served() -> bool:
    """Whether a gevent server of an application has started in this process."""
    return _process.is_served


def _after_fork() -> None:
    _process.is_served = False
    for manager in list(_watched):
        manager.forked()
