"""Events whose clients acknowledge: asking the clients of all nodes, and passing on what each of them answers.

Rules:

- Every node that gets such an event says at once how many clients it asks, then passes on each answer, and says so when
  a client has gone without one. So the asking node knows when nothing more can come.
- A client's answer counts once. Whatever happens, everything is freed after `callback_timeout`, on both sides.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import gevent

from ..clients import Clients
from ..errors import PayloadError
from ..net.mesh import Mesh
from ..net.pause import in_slices
from ..node import Node
from ..packets import Packets
from ..protocol import messages
from ..protocol.messages import ClusterMessage, MessageType
from ..protocol.peers import Peer
from ..selection import Selection
from ..service import Handler, Service
from .requests import Request, Requests

__all__ = ["Acknowledgements", "Tally"]

logger = logging.getLogger(__name__)

Say = Callable[[MessageType, str, dict[str, Any]], object]
"""Called with a message's type, namespace and data: sends it to whoever asked."""


@dataclass(slots=True)
class Tally:
    """Who was asked and who has answered, on all nodes.

    Attributes:
        answered: called with the arguments of each answer, where they came in.
        promised: clients asked, by node, as far as nodes have said so; less those that have gone.
        received: answers, by node.
    """

    answered: Callable[[list[Any]], None]
    promised: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)

    def take(self, uid: str, message: ClusterMessage) -> bool:
        """Something came from a node. Tells whether it was the last."""
        data = message.data
        if message.type is MessageType.BROADCAST_CLIENT_COUNT:
            # Answers, and word of clients that have gone, may come before the count.
            self._counted.add(uid)
            self.promised[uid] = self.promised.get(uid, 0) + data["clientCount"]
        elif message.type is MessageType.CLIENTS_GONE:
            self.promised[uid] = self.promised.get(uid, 0) - data["count"]
        else:
            self.count_answer(uid)
            self.answered(messages.acknowledged_arguments(data))
        return uid in self._counted and self.received.get(uid, 0) >= self.promised[uid]

    def count_answer(self, uid: str) -> None:
        """A client of this node has answered."""
        self.received[uid] = self.received.get(uid, 0) + 1


@dataclass(slots=True, eq=False)
class _Asked:
    """Clients of this node that were asked and have not answered."""

    answered: Callable[..., None]
    gone: Callable[[int], None]
    deadline: float
    numbers: dict[str, int] = field(default_factory=dict)
    is_asking: bool = True


class Acknowledgements(Service):
    """Asks clients of this node and of others.

    Args:
        node: the way to other nodes.
        clients: this node's own.
        packets: gives the form of packets that clients get now.
        requests: where this node's open questions are.
        manager: gives numbers to packets, and calls back when an answer has one.
        logger: where to report.
    """

    def __init__(
        self,
        node: Node,
        clients: Clients,
        packets: Callable[[], Packets],
        requests: Requests,
        manager: Any,
        logger: logging.Logger,
    ) -> None:
        self._node = node
        self._clients = clients
        self._packets = packets
        self._requests = requests
        self._manager = manager
        self._logger = logger
        self._asked: deque[_Asked] = deque()
        self._asked_by_sid: dict[str, dict[_Asked, None]] = {}

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return dict.fromkeys(
            (MessageType.BROADCAST_CLIENT_COUNT, MessageType.BROADCAST_ACK, MessageType.CLIENTS_GONE), self._on_answer
        )

    # ------------------------------------------------------------------ asking

    def ask(
        self,
        event: list[Any],
        selection: Selection,
        publish: Callable[[str], None] | None,
        tally: Tally,
        timeout: float,
        callback: Callable[..., object] | None = None,
    ) -> Request:
        """Ask the selected clients of all nodes.

        With a callback, clients of nodes that discovery has yet to name are waited for as well.

        Args:
            event: ``[event, *arguments]``.
            selection: which clients.
            publish: called with the request's id: sends the event to the other nodes; None when nobody there can be
                meant.
            tally: is told of what comes.
            timeout: seconds until the request ends at the latest.
            callback: called instead of `tally.answered` with what clients of this node answer, in their own greenlets.

        Returns:
            The request, which is open.

        Raises:
            PayloadError: the event cannot be sent; nobody has got it.
        """
        own = self._clients.select(selection)
        mesh = self._node.mesh if publish is not None else None
        asked, missing = ([], []) if mesh is None else self._others(mesh, selection)
        if self._node.mesh is None:
            # Nobody sweeps then.
            self.sweep(monotonic())
        us, knows_nodes = self._node.uid, publish is None or self._node.knows_nodes
        request = Request(
            [us, *asked],
            missing,
            tally.take,
            monotonic() + timeout,
            may_grow=callback is not None and mesh is not None and not knows_nodes,
            knows_nodes=knows_nodes,
        )
        self._requests.open(request)
        if publish is not None:
            self._publish(publish, request)
        say = partial(self._requests.take, request.id, us)
        say(_count(request.id, len(own)))
        self._ask_own(
            own,
            event,
            selection.namespace,
            answered=partial(self._answered_here, request, tally, say, callback),
            gone=lambda count: say(_message(MessageType.CLIENTS_GONE, messages.clients_gone(request.id, count))),
            deadline=request.deadline,
        )
        return request

    def _others(self, mesh: Mesh, selection: Selection) -> tuple[list[str], list[str]]:
        """The uids of other nodes that may have selected clients: those that can be asked, and those that cannot."""
        asked = [peer.uid for peer in mesh.table.reachable(selection.namespace)]
        missing = [peer.uid for peer in mesh.table.unreachable()]
        owners = self._node.owners(selection.rooms)
        if owners is None:
            return asked, missing
        uids = {peer.uid for peer in owners}
        return [uid for uid in asked if uid in uids], [uid for uid in missing if uid in uids]

    def _publish(self, publish: Callable[[str], None], request: Request) -> None:
        try:
            publish(request.id)
        except BaseException:
            self._requests.end(request)
            raise

    def _answered_here(
        self,
        request: Request,
        tally: Tally,
        say: Callable[[ClusterMessage], None],
        callback: Callable[..., object] | None,
        *arguments: Any,
    ) -> None:
        if callback is None:
            say(_message(MessageType.BROADCAST_ACK, messages.broadcast_ack(request.id, list(arguments))))
            return
        # Counted first: whatever the application does then, the request is not kept by it.
        tally.count_answer(self._node.uid)
        say(_message(MessageType.CLIENTS_GONE, messages.clients_gone(request.id, 0)))
        callback(*arguments)

    def _on_answer(self, peer: Peer, message: ClusterMessage) -> None:
        self._requests.take(message.data["requestId"], peer.uid, message)

    # ------------------------------------------------------------------ being asked

    def on_asked(self, peer: Peer, message: ClusterMessage) -> None:
        """Another node has sent an event that clients are to acknowledge."""
        self.ask_own(message, peer.codec, partial(self._node.send, peer.uid))

    def ask_own(self, message: ClusterMessage, codec: str, say: Say) -> None:
        """Ask the clients of this node.

        Args:
            message: the event, a BROADCAST with a request id.
            codec: the form of packets where it comes from.
            say: called with what there is to answer.
        """
        opts, request_id, namespace = message.data["opts"], message.data["requestId"], message.nsp
        event = self._packets().question(message.data, codec, namespace)
        own = self._clients.select(Selection(namespace, opts["rooms"], opts["except"]))
        say(MessageType.BROADCAST_CLIENT_COUNT, namespace, messages.client_count(request_id, len(own)))
        self._ask_own(
            own,
            event,
            namespace,
            answered=partial(self._pass_on, say, namespace, request_id),
            gone=partial(_tell_gone, say, namespace, request_id),
            deadline=monotonic() + self._node.config.callback_timeout,
        )

    def _pass_on(self, say: Say, namespace: str, request_id: str, *arguments: Any) -> None:
        answer = messages.broadcast_ack(request_id, list(arguments))
        try:
            say(MessageType.BROADCAST_ACK, namespace, answer)
        except PayloadError as exc:
            # The client's fault: it must not look like an error of the application's.
            self._logger.warning("a client's acknowledgement cannot be passed on: %s", exc)
            _tell_gone(say, namespace, request_id, 1)

    def _ask_own(
        self,
        sids: Sequence[str],
        event: list[Any],
        namespace: str,
        *,
        answered: Callable[..., None],
        gone: Callable[[int], None],
        deadline: float,
    ) -> None:
        asked = _Asked(answered, gone, deadline)
        if sids:
            self._asked.append(asked)
        try:
            for sid in in_slices(sids):
                if monotonic() >= deadline:
                    break
                if self._clients.is_ours(sid, namespace):
                    self._ask_one(asked, sid, event, namespace)
                else:
                    gone(1)
        finally:
            asked.is_asking = False

    def _ask_one(self, asked: _Asked, sid: str, event: list[Any], namespace: str) -> None:
        number = self._manager._generate_ack_id(sid, partial(self._on_client, asked, sid))
        asked.numbers[sid] = number
        self._asked_by_sid.setdefault(sid, {})[asked] = None
        packet = self._packets().numbered(event, namespace, number)
        self._clients.fanout.deliver_to(self._clients.eio_sid(sid, namespace), packet)

    def _on_client(self, asked: _Asked, sid: str, *arguments: Any) -> None:
        if self._forget(asked, sid):
            asked.answered(*arguments)

    def _forget(self, asked: _Asked, sid: str) -> bool:
        open_for_sid = self._asked_by_sid.get(sid, {})
        open_for_sid.pop(asked, None)
        if not open_for_sid:
            self._asked_by_sid.pop(sid, None)
        return asked.numbers.pop(sid, None) is not None

    # ------------------------------------------------------------------ what ends by itself

    def client_gone(self, sid: str, namespace: str) -> None:  # noqa: ARG002  # a sid is of one namespace
        for asked in list(self._asked_by_sid.get(sid, ())):
            self._forget(asked, sid)
            asked.gone(1)

    def lapsed(self, peer: Peer) -> None:
        self._requests.lapsed(peer.uid)

    def left(self) -> None:
        self._requests.left(self._node.uid)

    def sweep(self, now: float) -> None:
        self._requests.sweep(now)
        # Deadlines differ (`call` has a timeout of its own), so the oldest is not always the first that is over.
        kept: deque[_Asked] = deque()
        for asked in self._asked:
            if asked.is_asking or (asked.numbers and now < asked.deadline):
                kept.append(asked)
            else:
                self._give_up(asked)
        self._asked = kept

    def _give_up(self, asked: _Asked) -> None:
        for sid, number in list(asked.numbers.items()):
            self._manager.callbacks.get(sid, {}).pop(number, None)
            self._forget(asked, sid)


def _tell_gone(say: Say, namespace: str, request_id: str, count: int) -> None:
    say(MessageType.CLIENTS_GONE, namespace, messages.clients_gone(request_id, count))


def in_greenlets(callback: Callable[..., object]) -> Callable[[list[Any]], None]:
    """Call an application's callback with answers that come in a reader, which must not wait for it."""
    return lambda arguments: gevent.spawn(_call, callback, arguments) and None


def _call(callback: Callable[..., object], arguments: list[Any]) -> None:
    try:
        callback(*arguments)
    except Exception:
        logger.exception("the callback of an emit failed")


def _message(kind: MessageType, data: dict[str, Any]) -> ClusterMessage:
    return ClusterMessage(kind, "", "", data)


def _count(request_id: str, count: int) -> ClusterMessage:
    return _message(MessageType.BROADCAST_CLIENT_COUNT, messages.client_count(request_id, count))
