"""What a client of the application may cost: how much may wait for it, and how large a message it may send.

python-engineio keeps everything for a client that does not read, and leaves a connection alone whose session has ended.
Both places where that is put right are its own seam for event loops: what it makes queues with, and WebSockets (see
`connections`).

Rules:

- A client for which more waits than `queue_bytes` is cut as soon as the next packet comes: so the limit is overshot by
  one packet at most, and an event that is larger than the limit cuts nobody who keeps up.
- Nobody is cut because the application emits in a loop: `keep_pace` lets the writers work before that.
- When a session ends its connections end too, at most five seconds later. A client that does not read, or does not
  answer, keeps neither socket nor greenlet.
- It never waits where packets are queued, and application code runs in greenlets of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from sys import getsizeof
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.queue import Empty, JoinableQueue

from .config import MeshConfig
from .errors import WebSocketError
from .net.lines import LinesPerSecond
from .net.outboxes import Counters
from .net.pause import give_way

__all__ = ["ENDING_SECONDS", "SLOW_CONSUMER", "ClientLimits", "ClientQueue"]

SLOW_CONSUMER = "slow consumer"
"""The reason that the disconnect handler of a client is given that was cut because it does not keep up."""

ENDING_SECONDS = 5.0
"""How long a connection may outlive its session: to take what still waits, and to say goodbye."""

PACKET_BYTES = 150
"""What a packet costs besides its data."""

ROUND_BYTES = 256 * 1024
"""How much Engine.IO's writer takes at a time. It takes all that there is, and what it has taken waits all the same."""


class Ends(Protocol):
    """A connection of a client, as its queue sees it."""

    def end_soon(self) -> None:
        """The session has ended: so does this, in good order or soon."""

    def abort(self) -> None:
        """End it at once, and free whoever reads or writes."""


class ClientLimits:
    """The limits of the clients of one server.

    Args:
        config: valid options.
        counters: where to count, if there is a place.
        logger: where to report.
    """

    def __init__(self, config: MeshConfig, counters: Callable[[], Counters | None], logger: logging.Logger) -> None:
        limit = config.client_queue_bytes
        self.queue_bytes = inf if limit is None else limit
        self.crowded_bytes = self.queue_bytes / 4
        self.bounded_reader = config.bounded_reader
        #: Much waits for somebody.
        self.is_crowded = False
        #: Clients may be written to past their queues: the server looks itself for those that have gone.
        self.allows_outlets = False
        self._direct_writes = config.direct_writes
        self._counters = counters
        self._logger = logger
        self._lines = LinesPerSecond()
        self._server: Any = None

    def watch(self, server: Any) -> None:
        """Limit what the clients of this server cost."""
        self._server = server
        self.allows_outlets = self._direct_writes and bool(server.eio.start_service_task)
        eio, connect = server.eio, server._handle_eio_connect
        # A copy: the original is shared by all servers of the process.
        eio._async = {**eio._async, "queue": partial(ClientQueue, self)}

        def handle_connect(eio_sid: str, environ: dict[str, Any]) -> Any:
            session = eio.sockets.get(eio_sid)
            if session is not None:
                session.queue.session = session
            return connect(eio_sid, environ)

        server._handle_eio_connect = handle_connect
        eio.on("connect", handle_connect)

    def keep_pace(self) -> None:
        """Let the writers work if much waits for somebody."""
        if self.is_crowded:
            self.is_crowded = False
            if gevent.getcurrent() is not gevent.get_hub():
                give_way()

    def cut(self, session: Any, connections: Iterable[Ends]) -> None:
        """End a session whose client does not keep up. Runs the application's disconnect handler."""
        counters = self._counters()
        if counters is not None:
            counters.slow_clients += 1
        self._tell(session.sid, f"cut: more than {self.queue_bytes} bytes wait for it")
        for connection in connections:
            # After the session knows why it ends, and whatever the application does then.
            gevent.spawn(connection.abort)
        session.close(wait=False, abort=True, reason=SLOW_CONSUMER)
        self._server.eio.sockets.pop(session.sid, None)

    def refused(self, session: Any, error: WebSocketError) -> None:
        """A client has broken a rule of its WebSocket, which has ended: so does its session."""
        counters = self._counters()
        if counters is not None:
            counters.refused_clients += 1
        self._tell(session.sid, f"refused: {error}")
        session.close(wait=False, abort=True, reason=self._server.eio.reason.TRANSPORT_ERROR)

    def _tell(self, eio_sid: str, what: str) -> None:
        more = self._lines.next(monotonic())
        if more is not None:
            address = self._server.environ.get(eio_sid, {}).get("REMOTE_ADDR", "?")
            self._logger.warning("a client from %s was %s%s", address, what, more)


class ClientQueue(JoinableQueue):  # type: ignore[misc]  # gevent ships no types
    """What waits for one client, whatever its transport.

    Engine.IO takes what there is in rounds: it waits for a packet, takes more as long as there are some, sends them,
    and comes back. So whoever waits for a packet has sent those of the round before.

    Attributes:
        session: the Engine.IO socket that it belongs to, until that has ended.
        connections: those that the client has, WebSockets only.
    """

    __slots__ = ("_limits", "_taken_bytes", "_waiting_bytes", "connections", "session")

    def __init__(self, limits: ClientLimits) -> None:
        super().__init__()
        self.session: Any = None
        self.connections: list[Ends] = []
        self._limits = limits
        self._waiting_bytes = 0.0
        self._taken_bytes = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add a packet, or None: the session has ended."""
        if item is None:
            for connection in self.connections:
                connection.end_soon()
            # It has a queue: to leave a circle of the two to the garbage collector would cost more the more clients
            # there are.
            self.session = None
        else:
            waiting = self._waiting_bytes
            if waiting > self._limits.crowded_bytes:
                self._limits.is_crowded = True
                if waiting > self._limits.queue_bytes:
                    self._overflow()
                    return
            self._waiting_bytes = waiting + getsizeof(item.data) + PACKET_BYTES
        JoinableQueue.put(self, item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a packet; without `block` it is one more of a round.

        Raises:
            gevent.queue.Empty: there is none, or the round is large enough.
        """
        if block:
            self._waiting_bytes = max(0, self._waiting_bytes - self._taken_bytes)
            self._taken_bytes = 0
        elif self._taken_bytes > ROUND_BYTES:
            raise Empty
        item = JoinableQueue.get(self, block, timeout)
        if item is not None:
            self._taken_bytes += getsizeof(item.data) + PACKET_BYTES
        return item

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the client has taken everything, but not for one that never will: no longer than it has for it."""
        return bool(super().join(ENDING_SECONDS if timeout is None else timeout))

    def _overflow(self) -> None:
        """Cut the client, once. What would be added is dropped from now on."""
        if self._waiting_bytes != inf and self.session is not None:
            self._waiting_bytes = inf
            gevent.spawn(self._limits.cut, self.session, list(self.connections))
