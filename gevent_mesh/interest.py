"""Room interest: what asks, answers and waits. The rules are in `protocol.interest`.

Rules:

- Nothing is asked before there is something to publish, and only nodes that have asked are told. Changes are sent as
  soon as the greenlet that makes them lets others run: many of one moment share a message.
- What is pending is announced before anything else is said of our rooms.
- All rooms are told by a greenlet of its own, one for each node that asks, at the pace of that node.
- A peer without a link is told nothing, so that no event makes room for it: it has to ask again.
- Who puts clients of other nodes into rooms, by a command, counts on no lease of a question that was asked before it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from itertools import count
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from .net.mesh import Mesh
from .node import Node
from .protocol.interest import Announced, Copy, answer
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .routing import interested, owner_of
from .service import Handler, Service

__all__ = ["InterestService"]

ROOM_FOR_BYTES = 32 * 1024
"""A part of all rooms waits until the outbox has room for so much."""


class InterestService(Service):
    """Which rooms have members here, and on other nodes.

    Args:
        node: the way to other nodes.
        rooms: the tables of this node's server, by namespace: of each room, its members.
    """

    def __init__(self, node: Node, rooms: Mapping[str, Mapping[Hashable, object]]) -> None:
        self._node = node
        self._rooms = rooms
        self._announced = Announced()
        self._copies: dict[str, Copy] = {}
        self._numbers = count(1)
        self._telling: dict[str, int] = {}
        self._is_announcing = False
        self._news = Event()

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {
            MessageType.INTEREST_WANTED: self._on_wanted,
            MessageType.INTEREST: self._on_interest,
            MessageType.INTEREST_KNOWN: self._on_known,
        }

    # ------------------------------------------------------------------ publishing

    def choose(self, mesh: Mesh, namespace: str, rooms: list[Hashable]) -> list[Peer]:
        """The peers that an event goes to. Never waits."""
        peers = list(mesh.table)
        found = interested(peers, self._copies, namespace, rooms, monotonic(), self._ask)
        mesh.counters.events_spared += len(peers) - len(found)
        return found

    def _ask(self, peer: Peer) -> None:
        """Ask for a lease, unless that is of no use now: whoever does not answer gets everything."""
        if peer.link is None or peer.is_nodejs or peer.is_emitter:
            return
        copy = self._copies.setdefault(peer.uid, Copy())
        wanted = copy.ask(next(self._numbers), peer.link, monotonic())
        self._node.send(peer.uid, MessageType.INTEREST_WANTED, "/", wanted)

    def drop_leases(self, peers: Iterable[Peer] | None = None) -> None:
        """A command has gone out that may put clients of other nodes into rooms: what they said before it is old.

        To be called behind the command, in the outboxes: a question between the two would be answered before it.

        Args:
            peers: whom it has gone to; all, if left out.
        """
        uids = list(self._copies) if peers is None else [peer.uid for peer in peers]
        for uid in uids:
            if (copy := self._copies.get(uid)) is not None:
                copy.drop_lease()

    def _on_interest(self, peer: Peer, message: ClusterMessage) -> None:
        data = message.data
        copy = self._copies.get(peer.uid)
        if copy is not None:
            copy.take(data, monotonic())
        # Taken or not, there is no lease without it any more.
        if data.get("all") or ("out" in data and data.get("in")):
            self._node.send(peer.uid, MessageType.INTEREST_KNOWN, "/", {"version": data["version"]})

    # ------------------------------------------------------------------ our own rooms

    def entered(self, namespace: str, room: Hashable) -> None:
        """A room of this node has a member."""
        # Events for a sid go to its node in any case.
        if owner_of(room) != self._node.uid:
            self._announced.enter(namespace, room)
            self._wake()

    def left_room(self, namespace: str, room: Hashable) -> None:
        """A room of this node has no member any more."""
        self._announced.leave(namespace, room)
        self._wake()

    @property
    def may_wait(self) -> bool:
        """Whether the present greenlet may: all but the hub."""
        return gevent.getcurrent() is not gevent.get_hub()

    def wait_until_known(self, namespace: str, rooms: Iterable[Hashable], deadline: float = math.inf) -> None:
        """Wait until no node leaves us out of an event for these rooms, which have members here: a round trip, or at
        most `LEASE_SECONDS`, and not beyond the deadline (monotonic). Nobody waits in the hub."""
        if not self.may_wait:
            return
        for room in rooms:
            while (until := self._announced.unsettled_until(namespace, room, now := monotonic())) is not None:
                if now >= deadline:
                    return
                self._news.wait(min(until, deadline) - now)

    def _wake(self) -> None:
        if self._announced.has_pending and not self._is_announcing:
            self._is_announcing = True
            gevent.spawn(self._announce)

    def _announce(self) -> None:
        self._is_announcing = False
        if self._announced.has_pending:
            try:
                for data in self._announced.announce():
                    self._tell_followers(data)
            finally:
                # Whoever waits for what was pending is to wait for the end of leases now, and for no longer.
                self._hear_news()

    def _tell_followers(self, data: dict[str, Any]) -> None:
        told = {uid: follower for uid, follower in self._announced.followers.items() if follower.is_told}
        peers = [peer for peer in self._node.peers if peer.uid in told]
        for follower in told.values():
            follower.is_told = False
        message = self._node.encode(MessageType.INTEREST, "/", data)
        for peer in peers:
            if peer.link is not None:
                told[peer.uid].is_told = not data.get("all")
                self._node.send_encoded(peer.uid, message)

    def _hear_news(self) -> None:
        news, self._news = self._news, Event()
        news.set()

    # ------------------------------------------------------------------ answering

    def _on_known(self, peer: Peer, message: ClusterMessage) -> None:
        if self._announced.known(peer.uid, message.data["version"], monotonic()):
            self._hear_news()

    def _on_wanted(self, peer: Peer, message: ClusterMessage) -> None:
        self._announce()
        number = message.data["number"]
        is_current = self._announced.asked(peer.uid, message.data["version"], monotonic())
        is_being_told = peer.uid in self._telling
        if self._announced.is_everything:
            return
        if is_current and not is_being_told:
            self._answer(peer, number, parts=0)
            return
        self._telling[peer.uid] = number
        if not is_being_told:
            gevent.spawn(self._tell_all, peer)

    def _answer(self, peer: Peer, number: int, parts: int) -> None:
        data = answer(number, self._announced.version, parts)
        self._node.send(peer.uid, MessageType.INTEREST, "/", data)

    def _tell_all(self, peer: Peer) -> None:
        try:
            number = 0
            while number != self._telling[peer.uid]:
                number = self._telling[peer.uid]
                if self._tell_parts(peer, number) and number != self._telling[peer.uid]:
                    # Asked once more meanwhile, and needs no more now.
                    number = self._telling[peer.uid]
                    self._answer(peer, number, parts=0)
        finally:
            del self._telling[peer.uid]

    def _tell_parts(self, peer: Peer, number: int) -> bool:
        """Tell all rooms and answer; False if the link goes down, or this node takes everything."""
        link, mesh = peer.link, self._node.mesh
        parts = 0
        snapshot = self._announced.snapshot()
        while mesh is not None and link is not None:
            mesh.outboxes.keep_pace([peer], ROOM_FOR_BYTES)
            gevent.sleep(0)
            # Nothing waits from here on until the part is sent.
            self._announce()
            if peer.link is not link or self._node.mesh is not mesh or self._announced.is_everything:
                return False
            part = next(snapshot, None)
            if part is None:
                self._answer(peer, number, parts)
                return True
            self._node.send(peer.uid, MessageType.INTEREST, "/", part)
            parts += 1
        return False

    # ------------------------------------------------------------------ what the node says

    def lapsed(self, peer: Peer) -> None:
        self._copies.pop(peer.uid, None)

    def left(self) -> None:
        """To the others this node is another one when it is back. Sids that name the former one are rooms like any."""
        self._copies.clear()
        self._announced = Announced()
        for namespace, rooms in self._rooms.items():
            for room in rooms:
                self._announced.enter(namespace, room)
        self._hear_news()

    def sweep(self, now: float) -> None:
        self._announced.forget(now)
        for uid, copy in list(self._copies.items()):
            if copy.is_unused(now):
                del self._copies[uid]
