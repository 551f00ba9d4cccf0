"""Requests: whom a question went to, whose part of the answer is complete, and what is missing in the end.

Rules:

- A request goes to the nodes that are present when it is made. Each has one part of the answer, in one message or in
  several. It ends when every part is complete, at its deadline, and not later.
- A node that lapses ends its part at once: what it did not say is missing, and named.
- What comes after the end, or from somebody who was not asked, is ignored. Nothing is kept for ever.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from gevent.event import Event

from .results import Outcome

__all__ = ["Request", "Requests", "Take"]

Take = Callable[[str, Any], bool]
"""Called with (uid, what came); tells whether this node's part is complete."""


class Request:
    """One open question.

    Args:
        asked: uids of the nodes that are asked.
        missing: uids of nodes that belong to the cluster and cannot be reached.
        take: what to do with what comes.
        deadline: when it ends at the latest, monotonic.
        may_grow: nodes that are not known yet may be asked as well; it then ends at its deadline only.
        request_id: its id, if somebody else has chosen it.
        knows_nodes: whether it is known which nodes there are.

    Attributes:
        id: names it in messages; 16 hex digits.
        waiting: nodes whose part is not complete.
        missing: nodes whose part never will be.
        expected_nodes: how many nodes the answer should come from.
    """

    def __init__(
        self,
        asked: Iterable[str],
        missing: Iterable[str],
        take: Take,
        deadline: float,
        *,
        may_grow: bool = False,
        request_id: str = "",
        knows_nodes: bool = True,
    ) -> None:
        self._knows_nodes = knows_nodes
        self.id = request_id or secrets.token_hex(8)
        self.waiting = set(asked)
        self.missing = set(missing)
        self.expected_nodes = len(self.waiting) + len(self.missing)
        self.deadline = deadline
        self._asked = frozenset(self.waiting)
        self._take = take
        self._may_grow = may_grow
        self._ended = Event()

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come."""
        return not self.waiting and not self._may_grow

    def take(self, uid: str, what: Any) -> None:
        """Something came from a node."""
        if uid not in self.waiting and not (self._may_grow and uid not in self._asked):
            return
        if self._take(uid, what):
            self.waiting.discard(uid)

    def lapsed(self, uid: str) -> None:
        """A node will say nothing more."""
        if uid in self.waiting:
            self.waiting.discard(uid)
            self.missing.add(uid)

    def stop_growing(self) -> None:
        """It is known now which nodes there are."""
        self._may_grow = False

    def end(self) -> None:
        """Nothing is waited for any more."""
        self.missing |= self.waiting
        self.waiting.clear()
        self._may_grow = False
        self._ended.set()

    def wait(self) -> None:
        """Wait for the end."""
        self._ended.wait(max(0.0, self.deadline - monotonic()))

    def note(self, outcome: Outcome, expected: int, received: int) -> None:
        """Say in an answer how much of it is there."""
        outcome.note(self.missing, expected, received, knows_nodes=self._knows_nodes)


class Requests:
    """The requests of this node that are still open."""

    def __init__(self) -> None:
        self._open: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    def is_open(self, request_id: str) -> bool:
        """Whether there is such a request."""
        return request_id in self._open

    def open(self, request: Request) -> None:
        """Take what comes for this request from now on."""
        self._open[request.id] = request

    def wait(self, request: Request) -> None:
        """Wait until a request ends, and close it."""
        self._end_if_complete(request)
        request.wait()
        self.end(request)

    def take(self, request_id: str, uid: str, what: Any) -> None:
        """A node says something about a request."""
        request = self._open.get(request_id)
        if request is not None:
            request.take(uid, what)
            self._end_if_complete(request)

    def lapsed(self, uid: str) -> None:
        """A node is not present any more."""
        for request in list(self._open.values()):
            request.lapsed(uid)
            self._end_if_complete(request)

    def left(self, own_uid: str) -> None:
        """This node has left the mesh: others will say nothing more."""
        for request in list(self._open.values()):
            for uid in request.waiting - {own_uid}:
                request.lapsed(uid)
            request.stop_growing()
            self._end_if_complete(request)

    def sweep(self, now: float) -> None:
        """End the requests whose time is over."""
        for request in list(self._open.values()):
            if now >= request.deadline:
                self.end(request)

    def end(self, request: Request) -> None:
        """Close a request, whatever is missing."""
        self._open.pop(request.id, None)
        request.end()

    def _end_if_complete(self, request: Request) -> None:
        if request.is_complete:
            self.end(request)
