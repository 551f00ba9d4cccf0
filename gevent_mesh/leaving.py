"""How a node leaves: its clients first, then what was published, then the goodbye.

Rules:

- From the first moment on `Node.is_leaving` is true: the node is not ready any more, and takes no new client.
- Clients go at a limited and jittered rate, so that they do not all come to the other nodes at once; the rate rises
  where they would not be gone in time.
- To a client the connection ends. It is not disconnected from its namespace, and gets no Engine.IO CLOSE: official
  clients come back after the one, and stay away after the others.
- What disconnect handlers emit goes out like anything else: the node is a full member until its clients are gone.
- A leave is begun once. Whoever has less time for it hurries it.
"""

from __future__ import annotations

import logging
import math
import random
from time import monotonic

import gevent
from gevent.event import Event
from gevent.pool import Group

from .clients import Clients
from .node import Node

__all__ = ["Leave"]

JITTER = (0.5, 1.5)
"""Each pause between two clients is the average one times something between these."""
PACED = 0.8
"""The part of the time in which clients are disconnected; the rest is for the disconnect handlers of the last ones."""
LOOK_SECONDS = 0.1
"""How often one that waits for disconnect handlers looks whether it should hurry."""


class Leave:
    """One leave of a node; it goes on in a greenlet of its own.

    Args:
        node: who leaves.
        clients: its clients.
        rate: how many of them are disconnected in a second.
        drain_seconds: by when all of them are, and their disconnect handlers should have ended.
        flush_seconds: how long peers may take, after that, to acknowledge what was published.
        logger: where to report.

    Attributes:
        is_flushed: whether the peers have all of it; false until it is over.
    """

    def __init__(
        self,
        node: Node,
        clients: Clients,
        *,
        rate: float,
        drain_seconds: float,
        flush_seconds: float,
        logger: logging.Logger,
    ) -> None:
        self.is_flushed = False
        self._node = node
        self._clients = clients
        self._rate = rate
        self._flush_seconds = flush_seconds
        self._logger = logger
        self._hurried = Event()
        self._paced_by = self._drain_by = self._flush_by = math.inf
        self._end_within(drain_seconds, flush_seconds)
        node.is_leaving = True
        self._greenlet = gevent.spawn(self._run)

    @property
    def is_over(self) -> bool:
        """Whether the node is gone."""
        return bool(self._greenlet.dead)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is over.

        Args:
            seconds: there is no more time than this; what remains to be done is fitted into it.
        """
        if seconds is not None:
            self._end_within(seconds / 2, seconds / 4)
            self._hurried.set()
        self._greenlet.join(seconds)

    def forget(self) -> None:
        """In a forked child: it is the parent that leaves."""
        self._greenlet.kill(block=False)

    def _end_within(self, drain_seconds: float, flush_seconds: float) -> None:
        now = monotonic()
        self._paced_by = min(self._paced_by, now + PACED * drain_seconds)
        self._drain_by = min(self._drain_by, now + drain_seconds)
        self._flush_by = min(self._flush_by, self._drain_by + flush_seconds)

    def _run(self) -> None:
        try:
            self._drain()
        except Exception:
            self._logger.exception("disconnecting the clients failed; the node leaves all the same")
        self.is_flushed = self._node.stop(max(0.0, min(self._flush_seconds, self._flush_by - monotonic())))
        self._logger.info("node %s has left", self._node.uid)

    def _drain(self) -> None:
        closing = Group()
        # Those that had come to the door before it was closed are clients by the next look.
        while connections := self._clients.connections():
            self._logger.info("node %s leaves: %d clients are disconnected", self._node.uid, len(connections))
            for left, connection in zip(range(len(connections), 0, -1), connections, strict=True):
                closing.spawn(self._clients.end_connection, connection)
                self._hurried.wait(self._pause(left))
                self._hurried.clear()
            gevent.sleep(0)  # where there was no time for pauses, they have not begun to close
        while closing and monotonic() < self._drain_by:
            closing.join(LOOK_SECONDS)

    def _pause(self, left: int) -> float:
        """Until the next of so many clients that are left."""
        available = max(0.0, self._paced_by - monotonic())
        return min(1 / self._rate, available / left) * random.uniform(*JITTER)
