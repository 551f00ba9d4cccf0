"""Commands: what other nodes have this node's clients do. Events for them, rooms to enter and to leave, disconnects.

Commands of one node take effect in the order in which it gave them: each is done, as far as that needs no waiting for
the application, before the next message of that node is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic

from .clients import Clients
from .cluster.acknowledgements import Acknowledgements
from .cluster.queries import Answering
from .interest import InterestService
from .net.lines import LinesPerSecond
from .node import Node
from .packets import Packets
from .protocol import messages
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .selection import Selection
from .service import Handler, Service

__all__ = ["Commands"]


class Commands(Service):
    """Carries out what comes.

    Args:
        node: answers for it.
        clients: whom it is about.
        packets: gives the form of packets that clients get now.
        acknowledgements: takes over the events that clients are to acknowledge.
        logger: where to report.
        interest: who is to know which rooms are entered, if anybody.
    """

    def __init__(
        self,
        node: Node,
        clients: Clients,
        packets: Callable[[], Packets],
        acknowledgements: Acknowledgements,
        logger: logging.Logger,
        interest: InterestService | None = None,
    ) -> None:
        self._node = node
        self._clients = clients
        self._packets = packets
        self._acknowledgements = acknowledgements
        self._logger = logger
        self._interest = interest
        self._answering = Answering()
        self._lines = LinesPerSecond()

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {
            MessageType.BROADCAST: self._on_broadcast,
            MessageType.SOCKETS_JOIN: self._on_join,
            MessageType.SOCKETS_LEAVE: self._on_leave,
            MessageType.DISCONNECT_SOCKETS: self._on_disconnect,
        }

    def _on_broadcast(self, peer: Peer, message: ClusterMessage) -> None:
        if message.data.get("requestId") is not None:
            self.settle()
            self._acknowledgements.on_asked(peer, message)
        elif self._clients.is_served:
            opts = message.data["opts"]
            encoded = self._packets().for_clients(message.data, peer.codec, message.nsp)
            self._clients.fanout.gather(message.nsp, opts["rooms"], opts["except"], encoded)

    def settle(self) -> None:
        self._clients.fanout.flush()

    def _on_join(self, peer: Peer, message: ClusterMessage) -> None:
        def enter(sids: list[str]) -> int:
            try:
                return self._clients.enter(sids, message.nsp, message.data["rooms"])
            except ValueError as exc:
                self._warn("%s asked to put clients into rooms that they cannot enter: %s", peer.uid, exc)
                return 0

        count = self._carry_out(message, enter)
        if self._interest is None or message.data.get("requestId") is None:
            self._answer(peer, message, count)
        else:
            self._answering.begin(peer.uid, self._answer_settled, self._interest, peer, message, count)

    def _answer_settled(self, interest: InterestService, peer: Peer, message: ClusterMessage, count: int) -> None:
        """Whoever hears that clients are in a room may have others publish to it."""
        interest.wait_until_known(message.nsp, message.data["rooms"])
        self._answer(peer, message, count)

    def _on_leave(self, peer: Peer, message: ClusterMessage) -> None:
        rooms = message.data["rooms"]
        for sid in (room for room in rooms if self._clients.is_ours(room, message.nsp)):
            # It would not be reached by its sid any more. Its own node would have raised.
            self._warn("%s asked to close the room of client %s itself", peer.uid, sid)
        count = self._carry_out(message, lambda sids: self._clients.leave(sids, message.nsp, rooms))
        self._answer(peer, message, count)

    def _warn(self, text: str, *arguments: object) -> None:
        if self._lines.next(monotonic()) is not None:
            self._logger.warning(text, *arguments)

    def _on_disconnect(self, peer: Peer, message: ClusterMessage) -> None:
        close = message.data.get("close", False)
        do = partial(self._clients.disconnect, namespace=message.nsp, close=close)
        self._answer(peer, message, self._carry_out(message, do))

    def _carry_out(self, message: ClusterMessage, do: Callable[[list[str]], int]) -> int:
        opts = message.data["opts"]
        if message.data.get("client"):
            sids = [sid for sid in opts["rooms"] if self._clients.is_ours(sid, message.nsp)]
        else:
            sids = self._clients.select(Selection(message.nsp, opts["rooms"], opts["except"]))
        return do(sids)

    def _answer(self, peer: Peer, message: ClusterMessage, count: int) -> None:
        request_id = message.data.get("requestId")
        if request_id is not None:
            self._node.send(peer.uid, MessageType.ANSWER, message.nsp, messages.answer_count(request_id, count))
