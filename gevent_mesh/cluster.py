"""Requests to the whole cluster, and their answers.

A request has an id; every node that gets it says how many clients it went to, and passes on what each of them answers.
A request ends when all that were promised have come, or when its time is over: nothing is kept for ever.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

__all__ = ["Acknowledgements", "Requests"]


@dataclass(slots=True)
class Acknowledgements:
    """An emit whose clients on other nodes are to acknowledge.

    Attributes:
        callback: called with each client's answer.
        deadline: when to stop waiting, monotonic.
        silent_nodes: nodes that have not said yet how many clients they asked.
        may_grow: nodes that are not known yet may have been asked as well.
        promised: clients asked, as far as known.
        received: answers so far.
    """

    callback: Callable[..., object]
    deadline: float
    silent_nodes: set[str]
    may_grow: bool = False
    promised: int = 0
    received: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come."""
        return not self.may_grow and not self.silent_nodes and self.received >= self.promised


@dataclass(slots=True)
class Requests:
    """The requests of this node that are still open.

    Args:
        timeout_seconds: how long a request is kept.
    """

    timeout_seconds: float
    _open: dict[str, Acknowledgements] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def expect(self, callback: Callable[..., object], nodes: Iterable[str], *, may_grow: bool = False) -> str:
        """Open a request.

        Args:
            callback: called with the arguments of each answer.
            nodes: uids of those who are asked.
            may_grow: nodes that are not known yet may be asked as well; the request then stays open until its time
                is over.

        Returns:
            The request's id: 16 hex digits.
        """
        request_id = secrets.token_hex(8)
        self._open[request_id] = Acknowledgements(callback, monotonic() + self.timeout_seconds, set(nodes), may_grow)
        return request_id

    def counted(self, request_id: str, node: str, clients: int) -> None:
        """A node says how many clients it has asked."""
        request = self._open.get(request_id)
        if request is not None and node in request.silent_nodes:
            request.silent_nodes.discard(node)
            request.promised += clients
            self._close_if_complete(request_id, request)

    def answered(self, request_id: str, arguments: list[Any]) -> Callable[[], object] | None:
        """A client has acknowledged.

        Returns:
            What to run, in a greenlet that may wait; None when nobody waits for it any more.
        """
        request = self._open.get(request_id)
        if request is None:
            return None
        request.received += 1
        self._close_if_complete(request_id, request)
        callback = request.callback
        return lambda: callback(*arguments)

    def sweep(self, now: float) -> None:
        """Free requests whose time is over."""
        for request_id, request in list(self._open.items()):
            if now >= request.deadline:
                del self._open[request_id]

    def _close_if_complete(self, request_id: str, request: Acknowledgements) -> None:
        if request.is_complete:
            del self._open[request_id]
