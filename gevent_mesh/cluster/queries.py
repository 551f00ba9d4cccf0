"""Questions about the clients of all nodes, and commands whose effect is counted: asking, and answering.

Rules:

- Whom a question is about is settled when it is read, in order with all that its node said before; the answer is then
  worked out in a greenlet of its own, so nobody waits for it.
- A large answer travels in pieces of at most `PIECE_SOCKETS` clients or `PIECE_BYTES`, made in slices of a few
  milliseconds, at the pace of the asking node.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

import gevent

from ..clients import Clients, packed_bytes
from ..errors import MessageError, PayloadError
from ..net.pause import in_slices
from ..node import Node
from ..protocol import messages, nodejs
from ..protocol.messages import ClusterMessage, MessageType
from ..protocol.peers import Peer
from ..selection import Selection
from ..service import Handler, Service
from .requests import Request, Requests

__all__ = ["Answering", "MakeData", "Queries", "pieces", "pieces_of_rooms", "take_count"]

MAX_ANSWERS = 1000
"""Answers that are worked out for one peer at a time; what it asks beyond that is dropped, and counted."""
PIECE_SOCKETS = 200
PIECE_ROOMS = 1000
PIECE_BYTES = 32 * 1024
"""Even the smallest outbox that can be configured has room for two."""

T = TypeVar("T")

MakeData = Callable[[str], dict[str, Any]]
"""The data of a message, given the id of the request."""


class Answering:
    """Answers that are worked out in greenlets of their own, for each peer a bounded number at a time."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def begin(self, uid: str, answer: Callable[..., None], *args: Any) -> None:
        """Work out an answer for a peer.

        Raises:
            MessageError: there are too many already.
        """
        if self._open[uid] >= MAX_ANSWERS:
            raise MessageError("too many questions at a time")
        self._open[uid] += 1
        gevent.spawn(answer, *args).rawlink(lambda _: self._end(uid))

    def _end(self, uid: str) -> None:
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]


class Queries(Service):
    """Asks the other nodes, and answers them.

    Args:
        node: the way to other nodes.
        clients: this node's own.
        requests: where this node's open questions are.
        logger: where to report.
    """

    def __init__(self, node: Node, clients: Clients, requests: Requests, logger: logging.Logger) -> None:
        self._node = node
        self._clients = clients
        self._requests = requests
        self._logger = logger
        self._answering = Answering()

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {
            MessageType.FETCH_SOCKETS: self._on_fetch,
            MessageType.COUNT_SOCKETS: self._on_count,
            MessageType.LIST_ROOMS: self._on_list_rooms,
            MessageType.FETCH_SOCKETS_RESPONSE: self._on_answer,
            MessageType.ANSWER: self._on_answer,
        }

    # ------------------------------------------------------------------ asking

    def ask(
        self,
        kind: MessageType,
        namespace: str,
        make_data: MakeData,
        take: Callable[[str, ClusterMessage], bool],
        timeout: float,
    ) -> Request:
        """Ask all other nodes that are present. May wait for room in their outboxes.

        Args:
            make_data: makes the message's data for the id of the request.
            take: called with (uid, message) of what comes, in readers; tells whether that node's part is complete.
            timeout: seconds until the request ends at the latest.

        Returns:
            The request, open; `Requests.wait` waits for its end.

        Raises:
            PayloadError: the message cannot be sent; nobody has got it.
        """
        mesh = self._node.cluster()
        peers = mesh.table.reachable(namespace) if mesh is not None else []
        missing = mesh.table.unreachable() if mesh is not None else []
        return self.ask_some(peers, missing, kind, namespace, make_data, take, timeout)

    def ask_some(
        self,
        peers: Sequence[Peer],
        missing: Sequence[Peer],
        kind: MessageType,
        namespace: str,
        make_data: MakeData,
        take: Callable[[str, ClusterMessage], bool],
        timeout: float,
    ) -> Request:
        """`ask` for some nodes only; `missing` are those that should have been asked, and cannot be."""
        mesh = self._node.mesh
        deadline = monotonic() + timeout
        request = Request(
            [peer.uid for peer in peers if peer.present],
            [peer.uid for peer in missing],
            _taking(kind, take),
            deadline,
            knows_nodes=self._node.knows_nodes,
        )
        message = self._node.encode(kind, namespace, make_data(request.id))
        self._requests.open(request)
        if mesh is not None:
            mesh.outboxes.publish(peers, message)
        return request

    def _on_answer(self, peer: Peer, message: ClusterMessage) -> None:
        self._requests.take(message.data["requestId"], peer.uid, message)

    def count_servers(self, namespace: str, timeout: float) -> int:  # noqa: ARG002  # for those that have to ask
        """How many nodes serve a namespace, this one included."""
        mesh = self._node.mesh
        others = mesh.table.serving(namespace) if mesh is not None else []
        return len(others) + self._clients.serves(namespace)

    # ------------------------------------------------------------------ this node's own part

    def describe(self, sids: Iterable[str], namespace: str) -> Iterator[tuple[str, bytes]]:
        """What is told of clients, packed, of those that are still there; gives way now and then."""
        for sid in in_slices(sids):
            if self._clients.is_ours(sid, namespace):
                packed = self._pack(sid, namespace)
                if packed is not None:
                    yield sid, packed

    def _pack(self, sid: str, namespace: str) -> bytes | None:
        try:
            return messages.pack_socket(self._clients.describe(sid, namespace))
        except PayloadError as exc:
            self._logger.warning("client %s is left out of an answer: %s", sid, exc)
            return None

    def count_rooms(self, sids: Iterable[str], namespace: str) -> Counter[Hashable]:
        """How many of the clients are in each room; a client's own room does not count."""
        rooms: Counter[Hashable] = Counter()
        for sid in in_slices(sids):
            rooms.update(self._clients.rooms_of(sid, namespace))
        return rooms

    # ------------------------------------------------------------------ answering

    def _on_count(self, peer: Peer, message: ClusterMessage) -> None:
        count = messages.answer_count(message.data["requestId"], len(self._selected(message)))
        self._node.send(peer.uid, MessageType.ANSWER, message.nsp, count)

    def _on_fetch(self, peer: Peer, message: ClusterMessage) -> None:
        self._answer(self._answer_fetch, peer, message)

    def _on_list_rooms(self, peer: Peer, message: ClusterMessage) -> None:
        self._answer(self._answer_rooms, peer, message)

    def _answer(
        self, answer: Callable[[Peer, ClusterMessage, list[str]], None], peer: Peer, message: ClusterMessage
    ) -> None:
        self._answering.begin(peer.uid, answer, peer, message, self._selected(message))

    def _selected(self, message: ClusterMessage) -> list[str]:
        opts = message.data["opts"]
        return self._clients.select(Selection(message.nsp, opts["rooms"], opts["except"]))

    def _answer_fetch(self, peer: Peer, message: ClusterMessage, sids: list[str]) -> None:
        request_id = message.data["requestId"]
        if peer.is_nodejs:
            self._answer_nodejs(peer, message, sids)
            return
        for packed, more in _with_last(pieces(self.describe(sids, message.nsp))):
            data = messages.packed_sockets(request_id, packed, more=more)
            if not self._tell(peer, MessageType.FETCH_SOCKETS_RESPONSE, message.nsp, data):
                return

    def _answer_nodejs(self, peer: Peer, message: ClusterMessage, sids: list[str]) -> None:
        """A Node peer takes the first message for the whole answer."""
        packed = [nodejs.repack_socket(packed) for _, packed in self.describe(sids, message.nsp)]
        answer = nodejs.fetched_sockets(self._node.uid, message.nsp, message.data["requestId"], packed)
        try:
            self._node.publish_encoded_to([peer], answer)
        except PayloadError as exc:
            self._logger.error("an answer to %s cannot be sent: %s", peer.uid, exc)

    def _answer_rooms(self, peer: Peer, message: ClusterMessage, sids: list[str]) -> None:
        request_id = message.data["requestId"]
        for piece, more in _with_last(pieces_of_rooms(self.count_rooms(sids, message.nsp))):
            data = messages.answer_rooms(request_id, piece, more=more)
            if not self._tell(peer, MessageType.ANSWER, message.nsp, data):
                return

    def _tell(self, peer: Peer, kind: MessageType, namespace: str, data: dict[str, Any]) -> bool:
        """Send one piece. False when there is nobody to hear the others."""
        if not peer.present:
            return False
        try:
            self._node.publish_to([peer], kind, namespace, data)
        except PayloadError as exc:
            self._logger.error("a part of an answer to %s cannot be sent: %s", peer.uid, exc)
            if not data.get("more"):
                # Nobody is to wait for it.
                nothing: dict[str, Any] = {key: [] for key in ("packed", "rooms") if key in data}
                self._node.publish_to([peer], kind, namespace, {**data, **nothing})
        return True


def take_count(counts: list[int], _uid: str, message: ClusterMessage) -> bool:
    """Take the part of one node that consists of a number."""
    counts.append(message.data.get("count", 0))
    return True


def _taking(kind: MessageType, take: Callable[[str, ClusterMessage], bool]) -> Callable[[str, ClusterMessage], bool]:
    """Take what Node peers answer for what our own nodes would have answered."""
    return lambda uid, message: take(uid, nodejs.as_answer(kind, message))


def pieces(sockets: Iterable[tuple[str, bytes]]) -> Iterator[list[bytes]]:
    """What was told of sockets (sid, packed), in pieces that are not too large for one message."""
    return _in_pieces(((packed, len(packed)) for _, packed in sockets), PIECE_SOCKETS)


def pieces_of_rooms(counts: Mapping[Hashable, int]) -> Iterator[list[tuple[Hashable, int]]]:
    """Rooms and how many are in them, the same way. Rooms that have no form in msgpack are left out."""
    sized = (((room, count), packed_bytes(room)) for room, count in in_slices(counts.items()))
    return _in_pieces(((pair, size + 8) for pair, size in sized if size is not None), PIECE_ROOMS)


def _in_pieces(sized: Iterable[tuple[T, int]], most: int) -> Iterator[list[T]]:
    piece: list[T] = []
    piece_bytes = 0
    for item, size in sized:
        piece.append(item)
        piece_bytes += size
        if len(piece) >= most or piece_bytes >= PIECE_BYTES:
            yield piece
            piece, piece_bytes = [], 0
    if piece:
        yield piece


def _with_last(parts: Iterable[Sequence[T]]) -> Iterator[tuple[list[T], bool]]:
    """Each piece, and whether more come; an empty one when there is none at all."""
    before: Sequence[T] | None = None
    for piece in parts:
        if before is not None:
            yield list(before), True
        before = piece
    yield list(before or ()), False
