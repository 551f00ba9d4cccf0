"""Relaying: this node passes on what emitters publish, and tells them how far everybody has got.

The rules, and why nothing is lost or doubled by them, stand in `gevent_mesh.protocol.relay`.

- A PUBLISH is passed on in the reader of its emitter's link, which waits there for peers that are behind or whose link
  is down, as long as they may be back soon: TCP then slows the emitter down, and nobody else.
- What an emitter says acts here as if another node had said it. It may publish and nothing else, in its own name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

from .cluster.acknowledgements import Acknowledgements, Tally
from .cluster.requests import Request, Requests
from .errors import MessageError, PayloadError
from .interest import InterestService
from .net.lines import LinesPerSecond
from .node import Node
from .protocol import messages
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .protocol.relay import Delivered, Receipt, open_message
from .service import Handler, Service

__all__ = ["Relay"]

SETTLE_SECONDS = 0.01
"""How often it is looked whether peers have acknowledged what emitters wait for."""
TURNS = 64
MAX_QUESTIONS = 10_000
"""Events of emitters whose clients are to acknowledge, at a time."""


class Relay(Service):
    """Takes what emitters publish, directly and by way of other nodes.

    Args:
        node: the way to other nodes, and to the services that messages are for.
        requests: where this node's open questions are.
        acknowledgements: asks this node's own clients.
        logger: where to report.
        interest: which nodes are left out of events, if any are.
    """

    def __init__(
        self,
        node: Node,
        requests: Requests,
        acknowledgements: Acknowledgements,
        logger: logging.Logger,
        interest: InterestService | None = None,
    ) -> None:
        self._node = node
        self._requests = requests
        self._acknowledgements = acknowledgements
        self._logger = logger
        self._interest = interest
        self._delivered = Delivered()
        self._receipts: dict[str, Receipt] = {}
        self._settling: gevent.Greenlet | None = None
        self._questions = 0
        self._lines = LinesPerSecond()
        # By emitter, as far as there are enough. To have one for each would need somebody to take them away again.
        self._turns = [BoundedSemaphore() for _ in range(TURNS)]

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {MessageType.PUBLISH: self._on_publish, MessageType.RELAY: self._on_relay}

    def linked(self, peer: Peer) -> None:
        if peer.is_emitter:
            self._receipts[peer.uid] = Receipt()
        else:
            self._receipts.pop(peer.uid, None)

    def lapsed(self, peer: Peer) -> None:
        self._receipts.pop(peer.uid, None)

    def left(self) -> None:
        self._receipts.clear()

    def sweep(self, now: float) -> None:
        self._delivered.sweep(now)

    # ------------------------------------------------------------------ from emitters

    def _on_publish(self, peer: Peer, message: ClusterMessage) -> None:
        receipt = self._receipts.get(peer.uid)
        if receipt is None:
            self._refuse(f"{peer.uid} publishes as emitters do, and is none")
            return
        number, packed = message.data["n"], message.data["message"]
        try:
            inner = open_message(packed, peer.uid)
            outer = self._node.encode(MessageType.RELAY, inner.nsp, messages.relay(peer.uid, number, packed))
        except (MessageError, PayloadError) as exc:
            receipt.refuse(number)
            self._refuse(str(exc))
        else:
            request_id = inner.data.get("requestId")
            if request_id is not None:
                self._open_question(peer.uid, inner, request_id)
            is_new = self._deliver(peer, number, inner, request_id)
            # May wait. Node.js servers cannot tell a repeat, and most likely it is one to them as well.
            self._node.publish_encoded(outer, to_nodejs=is_new, patiently=True)
            if self._interest is not None and inner.type is MessageType.SOCKETS_JOIN:
                # What the emitter has this node publish next finds the clients in the room.
                self._interest.drop_leases()
        receipt.taken = max(receipt.taken, number)
        self._settle_soon()

    def _deliver(self, peer: Peer, number: int, message: ClusterMessage, own_question: str | None = None) -> bool:
        """Act on a message of an emitter, unless it is a repeat.

        Args:
            peer: who sent it, and gets the answers.
            own_question: the id of a question of ours that the clients of this node are to answer.

        Returns:
            Whether it was new.
        """
        # Long work gives way, and the next message may come by another way meanwhile.
        with self._turns[int(message.uid, 16) % TURNS]:
            if not self._delivered.is_new(message.uid, number, monotonic()):
                return False
            try:
                if own_question is not None:
                    self._acknowledgements.ask_own(message, peer.codec, partial(self._answer_own, own_question))
                else:
                    try:
                        self._node.hand_on(peer, message)
                    finally:
                        # Before anything is logged, which may let others run.
                        self._node.settle()
            except Exception:
                # Others may be able to handle it.
                self._logger.exception("a %s of emitter %s could not be handled", message.type.name, message.uid)
            return True

    def _refuse(self, why: str) -> None:
        if self._node.mesh is not None:
            self._node.mesh.counters.spoofed += 1
        if self._lines.next(monotonic()) is not None:
            self._logger.warning("a message of an emitter is dropped: %s", why)

    # ------------------------------------------------------------------ from other relays

    def _on_relay(self, peer: Peer, message: ClusterMessage) -> None:
        if peer.link is not None:
            # Its emitter may be waiting: acknowledge with the next write, and not after the usual while.
            peer.link.request_ack()
        emitter = message.data["from"]
        if self._is_node(emitter):
            self._refuse(f"{peer.uid} relays in the name of {emitter}, which is a node")
            return
        try:
            inner = open_message(message.data["message"], emitter)
        except MessageError as exc:
            self._refuse(str(exc))
            return
        self._deliver(peer, message.data["n"], inner)

    def _is_node(self, uid: str) -> bool:
        known = None if self._node.mesh is None else self._node.mesh.table.get(uid)
        return uid == self._node.uid or (known is not None and not known.is_emitter)

    # ------------------------------------------------------------------ how far everybody has got

    def _settle_soon(self) -> None:
        if self._settling is None:
            self._settling = gevent.spawn(self._settle)

    def _settle(self) -> None:
        try:
            while self._settle_once():
                gevent.sleep(SETTLE_SECONDS)
        finally:
            self._settling = None

    def _settle_once(self) -> bool:
        """Tell emitters what is news to them. Returns whether any of them still waits for some."""
        mesh = self._node.mesh
        if mesh is None:
            return False
        still_open = False
        # Before the first roster there are nodes that we do not know of.
        owed = None if mesh.outboxes.awaits_roster else set(mesh.table.owed())
        for emitter, receipt in list(self._receipts.items()):
            upto = None if owed is None else receipt.settle(owed)
            if upto is not None:
                self._node.send(emitter, MessageType.RELAYED, "/", messages.relayed(upto, receipt.take_refused()))
            still_open = still_open or receipt.is_open
        return still_open

    # ------------------------------------------------------------------ acknowledgements of clients

    def _open_question(self, emitter: str, message: ClusterMessage, request_id: str) -> None:
        """An emitter asks clients: the other nodes answer us as if we did, and we tell it what comes."""
        mesh = self._node.mesh
        if mesh is None or self._requests.is_open(request_id) or self._questions >= MAX_QUESTIONS:
            return
        tell = partial(self._tell, emitter, message.nsp, request_id)
        asked = [self._node.uid, *(peer.uid for peer in mesh.table.reachable(message.nsp))]
        deadline = monotonic() + self._node.config.callback_timeout
        request = Request(asked, [], Tally(_numbered(request_id, tell)).take, deadline, request_id=request_id)
        self._requests.open(request)
        self._questions += 1
        gevent.spawn(self._close_question, request, tell)

    def _close_question(self, request: Request, tell: partial[None]) -> None:
        try:
            self._requests.wait(request)
            tell(messages.told_all(request.id))
        finally:
            self._questions -= 1

    def _tell(self, emitter: str, namespace: str, request_id: str, data: dict[str, Any]) -> None:
        try:
            self._node.send(emitter, MessageType.TOLD, namespace, data)
        except PayloadError as exc:
            self._logger.warning("a client's acknowledgement of %s cannot be passed on: %s", request_id, exc)

    def _answer_own(self, request_id: str, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        self._requests.take(request_id, self._node.uid, ClusterMessage(kind, self._node.uid, namespace, data))


def _numbered(request_id: str, tell: partial[None]) -> Any:
    """Tell an emitter of each answer, with a number by which it knows repeats."""
    count = 0

    def answered(arguments: list[Any]) -> None:
        nonlocal count
        count += 1
        tell(messages.told(request_id, count, arguments))

    return answered
