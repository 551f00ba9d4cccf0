"""When a node joins and leaves: as soon as its process begins to serve, and when it ends to.

Importing an application must open no socket: migrations and shells import it too, and ``gunicorn --preload`` imports
it in a master that never serves. Waiting for the first client would be too late: what an HTTP route emits before that
would reach no other node. What all ways of serving with gevent have in common is `gevent.baseserver.BaseServer.start`
(``socketio.run``, ``pywsgi.WSGIServer``, both kinds of gunicorn worker): there waiting managers are started.

The server's sockets get TCP_NODELAY on that occasion (accepted ones inherit it): pywsgi leaves Nagle's algorithm on,
and with it the second of two packets to a client waits for the client's delayed acknowledgement, about 40 ms.

What they all have in common at the end is `BaseServer.close`: with the last server of the process its nodes begin to
leave. Whoever calls `BaseServer.stop` waits for that, within the time that it gives. gunicorn does not, but waits while
requests are under way, and so the leave counts as one.

``socketio.run`` does nothing about SIGTERM, which ends the process there and then. Where nobody handles it, a handler
closes the servers, waits for the nodes to leave, and has the process end as it would have. That takes a hub that runs:
where it does not, a thread ends the process, and when the nodes have left the handler is taken away again.

A fork leaves the child with copies of the parent's sockets. They are given up there, and the child starts as a new node
when it begins to serve.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
import weakref
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.baseserver import BaseServer
from gevent.monkey import get_original

from .errors import StartError

__all__ = ["is_served", "watch"]

logger = logging.getLogger(__name__)

BEGIN_SECONDS = 2.0
"""Who is told to end and has not begun to by then is blocked, or runs no hub any more."""

_start_new_thread = get_original("_thread", "start_new_thread")
_sleep = get_original("time", "sleep")


class Ending(Protocol):
    """A node that is on its way out."""

    @property
    def is_over(self) -> bool:
        """Whether it is gone."""

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is gone; with `seconds`, make it go within them."""


class Startable(Protocol):
    """What `watch` takes."""

    def serving(self) -> bool:
        """This process begins to serve: join if there is something to join for, and tell whether you have.

        Raises:
            StartError: something outside of the program is in the way.
        """

    def ending(self) -> Ending | None:
        """This process does not serve any more: begin to leave, unless you have never joined. Must not wait."""

    def forked(self) -> None:
        """This process is a new child: nothing that was open belongs to it."""


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(manager: Startable) -> None:
    """Tell `manager` when this process begins and ends to serve, and when it is a fork."""
    _hook()
    _watched.add(manager)


@functools.cache
def _hook() -> None:
    """Install the hooks, once for each process and its forks."""
    original_start, original_close, original_stop = BaseServer.start, BaseServer.close, BaseServer.stop

    @functools.wraps(original_start)
    def start(self: BaseServer) -> None:
        is_ours = getattr(self, "belongs_to_a_node", False)
        if not is_ours:
            _process.is_served = True
            if _tell_serving():
                _handle_sigterm()
        original_start(self)
        with contextlib.suppress(OSError, AttributeError):  # not TCP, or no socket at all
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not is_ours:
            _process.servers.add(self)

    @functools.wraps(original_close)
    def close(self: BaseServer) -> None:
        # Before the socket is: a node is not ready any more before it takes no more clients.
        _server_ends(self)
        original_close(self)

    @functools.wraps(original_stop)
    def stop(self: BaseServer, timeout: float | None = None) -> None:
        if not getattr(self, "belongs_to_a_node", False):
            self.close()
            _wait(timeout)
        original_stop(self, timeout)

    BaseServer.start, BaseServer.close, BaseServer.stop = start, close, stop
    os.register_at_fork(after_in_child=_after_fork)


def _tell_serving() -> bool:
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
    return joined


def _server_ends(server: BaseServer) -> None:
    """One of the application's servers takes no more connections. Callable from the hub."""
    if server not in _process.servers:
        return
    _process.servers.discard(server)
    if _process.servers:
        return
    _process.endings = [ending for manager in list(_watched) if (ending := manager.ending()) is not None]
    if not _process.endings:
        _give_sigterm_back()
    elif server.pool is None:
        gevent.spawn(_wait)
    elif server.pool.full():
        # There is a place when the first client has gone.
        gevent.spawn(server.pool.spawn, _wait)
    else:
        # Now: gunicorn looks next whether there is a request, and ends its worker if there is none.
        server.pool.spawn(_wait)


def _wait(seconds: float | None = None) -> None:
    """Wait until all nodes that are about to leave have left."""
    deadline = None if seconds is None else monotonic() + seconds
    for ending in _process.endings:
        ending.wait(None if deadline is None else max(0.0, deadline - monotonic()))
    if not _process.servers and all(ending.is_over for ending in _process.endings):
        _give_sigterm_back()


# ---------------------------------------------------------------------- SIGTERM


def _handle_sigterm() -> None:
    """Have SIGTERM let the nodes leave first, if it would end the process at once."""
    if threading.current_thread() is threading.main_thread() and _handler_of(signal.SIGTERM) == 0:
        signal.signal(signal.SIGTERM, _on_sigterm)
        _process.handler = _handler_of(signal.SIGTERM)


def _give_sigterm_back() -> None:
    """Have SIGTERM end the process at once again, unless another handler has come meanwhile."""
    if signal.getsignal(signal.SIGTERM) is _on_sigterm and _handler_of(signal.SIGTERM) == _process.handler:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _handler_of(number: int) -> int | None:
    """Where a signal is handled, 0 for nowhere. The system is asked: Python does not know of event loops' handlers."""
    try:
        import ctypes

        action = (ctypes.c_size_t * 32)()  # struct sigaction, and more; the handler comes first
        return int(action[0]) if ctypes.CDLL(None).sigaction(int(number), None, action) == 0 else None
    except (ImportError, OSError, AttributeError, TypeError):  # a Python without it, or not POSIX
        return None


def _on_sigterm(number: int, _frame: object) -> None:
    """Runs wherever the main thread is, so it may not wait. A second SIGTERM ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    gevent.spawn(_end, number)
    with contextlib.suppress(RuntimeError):  # there are too many threads
        _start_new_thread(_end_without_hub, (number,))


def _end(number: int) -> None:
    _process.is_ending = True
    try:
        for server in list(_process.servers):
            server.close()
        _wait()
    finally:
        _kill(number)


def _end_without_hub(number: int) -> None:
    """In a thread of the system, for the main one does not come to `_end`, or who knows when."""
    _sleep(BEGIN_SECONDS)
    if not _process.is_ending:
        _kill(number)


def _kill(number: int) -> None:
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container is spared by its own signals


class _Process:
    """What is known of this process."""

    is_served: bool
    servers: weakref.WeakSet[BaseServer]
    endings: list[Ending]
    handler: int | None
    is_ending: bool

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing of it is true in a fork."""
        self.is_served = False
        self.servers = weakref.WeakSet()
        self.endings = []
        self.handler = None
        self.is_ending = False


_process = _Process()


def is_served() -> bool:
    """Whether a gevent server of an application has started in this process."""
    return _process.is_served


def _after_fork() -> None:
    _give_sigterm_back()
    _process.forget()
    for manager in list(_watched):
        manager.forked()
