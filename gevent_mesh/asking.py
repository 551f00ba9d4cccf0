"""Asking for emitters: this node puts their questions to the cluster as its own, and passes on the answers.

Rules:

- Each question runs in a greenlet of its own. How many there are is bounded, for each emitter and in all; what is too
  much is refused at once. Of those whose answers may be large, few run at a time.
- An answer travels in pieces, at the pace of its emitter, and over the link that the question came by: over another
  one the emitter asks again.
- Whatever goes wrong, the emitter is told that nothing more comes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from time import monotonic
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

from .cluster.api import ClusterApi
from .cluster.events import ServerEvents
from .cluster.queries import pieces, pieces_of_rooms
from .cluster.results import ClientCount, NodeAnswers, Outcome
from .errors import MeshError, MessageError, PayloadError
from .net.pause import in_slices
from .node import Node
from .packets import Packets
from .protocol import messages
from .protocol.link import AnyLinkProtocol
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .protocol.relay import open_question
from .service import Handler, Service

__all__ = ["Asking"]

MAX_OPEN_EACH = 64
MAX_OPEN = 1000
MAX_LARGE = 4
"""Questions with large answers that run at a time: each may hold all the clients of the cluster."""
MAX_ERROR_CHARS = 1000

Answer = tuple[Outcome, Iterable[bytes]]
"""How complete it is, and the messages that it consists of."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question, and its way back.

    Attributes:
        link: the one that it came by.
        size: bytes that it takes.
    """

    peer: Peer
    link: AnyLinkProtocol | None
    id: str
    deadline: float
    size: int

    @property
    def is_wanted(self) -> bool:
        """Whether there is still somebody to hear the answer."""
        return self.link is not None and self.peer.link is self.link

    @property
    def seconds_left(self) -> float:
        return max(0.001, self.deadline - monotonic())


class Asking(Service):
    """Takes the questions of emitters.

    Args:
        node: the way to the emitters.
        api: whom the questions are put to.
        events: this node's own handlers of server-side events.
        packets: reads the packets of emitters.
        logger: where to report.
    """

    def __init__(
        self,
        node: Node,
        api: ClusterApi,
        events: ServerEvents,
        packets: Callable[[], Packets],
        logger: logging.Logger,
    ) -> None:
        self._node = node
        self._api = api
        self._events = events
        self._packets = packets
        self._logger = logger
        self._open: Counter[str] = Counter()
        self._open_bytes = 0
        self._large = BoundedSemaphore(MAX_LARGE)
        self._answers: dict[MessageType, Callable[[ClusterMessage, float], Answer]] = {
            MessageType.FETCH_SOCKETS: self._fetch_sockets,
            MessageType.COUNT_SOCKETS: self._count_sockets,
            MessageType.LIST_ROOMS: self._list_rooms,
            MessageType.COUNT_SERVERS: self._count_servers,
            MessageType.SOCKETS_JOIN: self._sockets_join,
            MessageType.SOCKETS_LEAVE: self._sockets_leave,
            MessageType.DISCONNECT_SOCKETS: self._disconnect_sockets,
            MessageType.SERVER_SIDE_EMIT: self._server_side_call,
            MessageType.BROADCAST: self._call,
        }

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {MessageType.ASK: self._on_ask}

    # ------------------------------------------------------------------ questions

    def _on_ask(self, peer: Peer, message: ClusterMessage) -> None:
        if not peer.is_emitter:
            self._count_spoofed()
            return
        data, packed = message.data, message.data["message"]
        asked = _Asked(peer, peer.link, data["requestId"], monotonic() + data["timeout"], len(packed))
        try:
            question = open_question(packed, peer.uid)
        except MessageError as exc:
            self._count_spoofed()
            self._refuse(asked, str(exc))
            return
        if not self._has_room(asked):
            self._refuse(asked, "this node is at too many questions of emitters already")
            return
        self._open[peer.uid] += 1
        self._open_bytes += asked.size
        gevent.spawn(self._run, asked, question)

    def _count_spoofed(self) -> None:
        if self._node.mesh is not None:
            self._node.mesh.counters.spoofed += 1

    def _has_room(self, asked: _Asked) -> bool:
        limit = self._node.config.outbox_bytes
        return (
            self._open[asked.peer.uid] < MAX_OPEN_EACH
            and self._open.total() < MAX_OPEN
            and (not self._open_bytes or self._open_bytes + asked.size <= 2 * limit)
        )

    def _refuse(self, asked: _Asked, why: str) -> None:
        self._logger.debug("a question of %s is refused: %s", asked.peer.uid, why)
        # From a reader: must not wait.
        self._node.send(asked.peer.uid, MessageType.REPLY, "/", messages.reply_error(asked.id, why))

    def _run(self, asked: _Asked, question: ClusterMessage) -> None:
        try:
            last = self._answer(asked, question)
        except (MeshError, ValueError, TypeError) as exc:
            last = _failed(asked, exc)
        except Exception as exc:  # the top of a greenlet
            self._logger.exception("a %s of emitter %s failed", question.type.name, asked.peer.uid)
            last = _failed(asked, exc)
        finally:
            self._open[asked.peer.uid] -= 1
            self._open += Counter()  # drops those that have none
            self._open_bytes -= asked.size
        self._say(asked, last)

    def _answer(self, asked: _Asked, question: ClusterMessage) -> dict[str, Any]:
        """Ask, and pass on all of the answer but its end, which is returned."""
        with self._turn(asked, question):
            outcome, answers = self._answers[question.type](question, asked.seconds_left)
            for piece in pieces(("", packed) for packed in in_slices(answers)):
                if not self._say(asked, messages.reply(asked.id, piece)):
                    break
        return messages.replied(asked.id, outcome.missing_nodes, outcome.expected, outcome.received)

    def _turn(self, asked: _Asked, question: ClusterMessage) -> AbstractContextManager[None]:
        is_large = question.type in (MessageType.FETCH_SOCKETS, MessageType.LIST_ROOMS)
        return self._one_of_few(asked) if is_large else nullcontext()

    @contextmanager
    def _one_of_few(self, asked: _Asked) -> Iterator[None]:
        if not self._large.acquire(timeout=asked.seconds_left):
            raise MessageError("this node is at other questions with large answers")
        try:
            yield
        finally:
            self._large.release()

    def _say(self, asked: _Asked, data: dict[str, Any]) -> bool:
        """Tell the emitter something, at its pace. False when there is nobody to hear more."""
        if asked.is_wanted:
            self._node.publish_to([asked.peer], MessageType.REPLY, "/", data)
        return asked.is_wanted

    def _encode(self, kind: MessageType, uid: str, question: ClusterMessage, data: dict[str, Any]) -> bytes:
        return messages.encode(kind, uid, question.nsp, data)

    # ------------------------------------------------------------------ each kind

    def _fetch_sockets(self, question: ClusterMessage, timeout: float) -> Answer:
        sockets = self._api.fetch_sockets(**_selection(question), timeout=timeout)

        def answers() -> Iterator[bytes]:
            for uid, told in groupby(in_slices(sockets.told), key=lambda one: one[1]):
                for piece in pieces((sid, packed) for sid, _, packed in told):
                    data = messages.packed_sockets(question.data["requestId"], piece)
                    yield self._encode(MessageType.FETCH_SOCKETS_RESPONSE, uid, question, data)

        return sockets, answers()

    def _list_rooms(self, question: ClusterMessage, timeout: float) -> Answer:
        rooms = self._api.list_rooms(**_selection(question), timeout=timeout)

        def answers() -> Iterator[bytes]:
            for piece in pieces_of_rooms(rooms):
                data = messages.answer_rooms(question.data["requestId"], piece)
                yield self._encode(MessageType.ANSWER, self._node.uid, question, data)

        return rooms, answers()

    def _counted(self, question: ClusterMessage, count: int, outcome: Outcome) -> Answer:
        data = messages.answer_count(question.data["requestId"], count)
        return outcome, [self._encode(MessageType.ANSWER, self._node.uid, question, data)]

    def _count_sockets(self, question: ClusterMessage, timeout: float) -> Answer:
        count = self._api.count_sockets(**_selection(question), timeout=timeout)
        return self._counted(question, count, count)

    def _count_servers(self, question: ClusterMessage, _timeout: float) -> Answer:
        return self._counted(question, self._api.server_count(question.nsp), Outcome())

    def _sockets_join(self, question: ClusterMessage, timeout: float) -> Answer:
        # It may take longer than it is told to; the emitter waits no longer.
        timeout = max(timeout / 2, timeout - self._api.settle_seconds)
        count = self._api.sockets_join(question.data["rooms"], **_selection(question), timeout=timeout)
        return self._counted(question, count, count)

    def _sockets_leave(self, question: ClusterMessage, timeout: float) -> Answer:
        count = self._api.sockets_leave(question.data["rooms"], **_selection(question), timeout=timeout)
        return self._counted(question, count, count)

    def _disconnect_sockets(self, question: ClusterMessage, timeout: float) -> Answer:
        close = question.data.get("close", False)
        count: ClientCount = self._api.disconnect_sockets(**_selection(question), timeout=timeout, close=close)
        return self._counted(question, count, count)

    def _server_side_call(self, question: ClusterMessage, timeout: float) -> Answer:
        """To an emitter all nodes are other nodes, this one included."""
        event, *arguments = question.data["packet"]
        deadline = monotonic() + timeout
        own = gevent.spawn(self._events.run, event, arguments, question.nsp)
        answers = self._api.server_side_call(event, *arguments, namespace=question.nsp, timeout=timeout)
        own.join(max(0.0, deadline - monotonic()))
        missing = set(answers.missing_nodes)
        # One that was killed has a GreenletExit for a value.
        has_run = own.successful() and isinstance(own.value, tuple)
        value, error = own.value if has_run else (None, "")
        if has_run and not error:
            answers[self._node.uid] = value
        else:
            missing.add(self._node.uid)
            if error:
                answers.errors[self._node.uid] = error
        packed = [self._node_answer(question, answers, missing, uid) for uid in [*answers, *answers.errors]]
        expected = answers.expected + 1
        answers.note(missing, expected, expected - len(missing))
        return answers, packed

    def _node_answer(self, question: ClusterMessage, answers: NodeAnswers, missing: set[str], uid: str) -> bytes:
        kind, request_id = MessageType.SERVER_SIDE_EMIT_RESPONSE, question.data["requestId"]
        error = answers.errors.get(uid, "")
        try:
            if not error:
                return self._encode(kind, uid, question, messages.server_side_answer(request_id, answers[uid]))
        except PayloadError as exc:
            error = str(exc)
            missing.add(uid)
        return self._encode(kind, uid, question, messages.server_side_answer(request_id, None, error))

    def _call(self, question: ClusterMessage, timeout: float) -> Answer:
        event, *arguments = self._packets().event(question.data, "")
        answers = self._api.call(event, tuple(arguments), **_selection(question), timeout=timeout)
        packed = []
        for value in in_slices(answers):
            data = messages.broadcast_ack(question.data["requestId"], _arguments(value))
            try:
                packed.append(self._encode(MessageType.BROADCAST_ACK, self._node.uid, question, data))
            except PayloadError as exc:
                self._logger.warning("a client's acknowledgement cannot be passed on: %s", exc)
        answers.note(answers.missing_nodes, answers.expected, len(packed))
        return answers, packed


def _failed(asked: _Asked, exc: Exception) -> dict[str, Any]:
    return messages.reply_error(asked.id, f"{type(exc).__name__}: {exc}"[:MAX_ERROR_CHARS])


def _selection(question: ClusterMessage) -> dict[str, Any]:
    """Whom a question is about, as the parameters of the methods have it."""
    opts = question.data["opts"]
    return {"room": opts["rooms"] or None, "except_rooms": opts["except"], "namespace": question.nsp}


def _arguments(value: Any) -> list[Any]:
    """The arguments that a client's answer was made of."""
    if isinstance(value, tuple):
        return list(value)
    return [] if value is None else [value]
