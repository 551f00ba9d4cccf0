"""Server-side events: what the nodes say to each other for the application, and how they answer.

Rules:

- Every event gets a greenlet of its own, so that a handler that waits delays nobody; they start in the order in which
  one node sent them.
- Whoever asks is answered once by each node, also where there is no handler, or where it fails or is killed: with an
  error then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import gevent

from ..errors import PayloadError
from ..node import Node
from ..protocol import messages
from ..protocol.messages import ClusterMessage, MessageType
from ..protocol.peers import Peer
from ..service import Handler, Service
from .requests import Requests

__all__ = ["ServerEvents"]


class ServerEvents(Service):
    """The application's handlers of server-side events.

    Args:
        node: the way to other nodes.
        requests: where this node's open questions are.
        logger: where to report.
    """

    def __init__(self, node: Node, requests: Requests, logger: logging.Logger) -> None:
        self._node = node
        self._requests = requests
        self._logger = logger
        self._handled: dict[tuple[str, str], Callable[..., Any]] = {}

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {
            MessageType.SERVER_SIDE_EMIT: self._on_event,
            MessageType.SERVER_SIDE_EMIT_RESPONSE: self._on_answer,
        }

    def handle(self, event: str, namespace: str, handler: Callable[..., Any]) -> None:
        """Call this handler for an event from now on, and no other.

        Raises:
            TypeError: it is no function.
        """
        if not callable(handler):
            raise TypeError(f"the handler of {event!r} must be a function, not {type(handler).__name__}")
        self._handled[namespace, event] = handler

    def _on_answer(self, peer: Peer, message: ClusterMessage) -> None:
        self._requests.take(message.data["requestId"], peer.uid, message)

    def _on_event(self, peer: Peer, message: ClusterMessage) -> None:
        event, *arguments = message.data["packet"]
        if (message.nsp, event) in self._handled:
            gevent.spawn(self._run, event, arguments, peer, message)
        else:
            self._run(event, arguments, peer, message)

    def _run(self, event: str, arguments: list[Any], peer: Peer, message: ClusterMessage) -> None:
        value, error = None, "the handler was killed"
        try:
            value, error = self.run(event, arguments, message.nsp)
        finally:
            self._answer(peer, message.nsp, message.data.get("requestId"), value, error)

    def run(self, event: str, arguments: list[Any], namespace: str) -> tuple[Any, str]:
        """Call the handler of an event; it may wait.

        Returns:
            What it returned, and why there is nothing if it failed or is not there.
        """
        handler = self._handled.get((namespace, event))
        if handler is None:
            return None, f"no handler of {event!r} in {namespace!r}"
        try:
            return handler(*arguments), ""
        except (Exception, gevent.Timeout) as exc:
            self._logger.exception("the handler of the server-side event %r failed", event)
            return None, f"{type(exc).__name__}: {exc}"

    def _answer(self, peer: Peer, namespace: str, request_id: str | None, value: Any, error: str) -> None:
        if request_id is None:
            return
        kind = MessageType.SERVER_SIDE_EMIT_RESPONSE
        try:
            self._node.send(peer.uid, kind, namespace, messages.server_side_answer(request_id, value, error))
        except PayloadError as exc:
            self._logger.error("the answer to a server-side event cannot be sent: %s", exc)
            self._node.send(peer.uid, kind, namespace, messages.server_side_answer(request_id, None, str(exc)))
