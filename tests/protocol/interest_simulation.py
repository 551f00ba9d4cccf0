"""Nodes that tell each other of their rooms, in memory: the real rules, driven by a random schedule, and a checker.

Streams between nodes are ordered and late. Links are cut, with both ends, one or neither of them hearing of it, and
made anew; outboxes overflow, which loses the oldest messages. Clients come to rooms and go, by themselves or by a
command of another node; some rooms cannot be told. All rooms are told in small parts, with changes between them. At
every event that a node publishes:

- no node is left out where a client has been let into the room before, or has been sent there by the publisher itself;
- nobody waits for longer than `LEASE_SECONDS` before it is let in;
- a copy of the present version has the present rooms.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any
from unittest import mock

from gevent_mesh.protocol import interest
from gevent_mesh.protocol.interest import LEASE_SECONDS, Announced, Copy, answer, is_tellable
from gevent_mesh.routing import interested
from tests.fakes import ManualClock

__all__ = ["SimNode", "Simulation", "Violation", "run_schedule"]

ROOMS = [*"abcdefg", None, "x" * 300]
MAX_OUTBOX = 12
PART_ROOMS = 1


class Violation(AssertionError):
    """A promise was broken."""


class Wire:
    """One connection of a pair."""

    def __init__(self) -> None:
        self.works = True


class Stream:
    """What one node has to say to another one, and the link as its sender sees it."""

    def __init__(self, simulation: Simulation, sender: SimNode, receiver: SimNode) -> None:
        self._simulation = simulation
        self._sender, self._receiver = sender, receiver
        self._outbox: deque[tuple[str, dict[str, Any]]] = deque()
        self._is_carrying = False
        self.uid = receiver.uid
        self.link: Wire | None = None

    def send(self, kind: str, data: dict[str, Any]) -> None:
        self._outbox.append((kind, data))
        while self.link is None and len(self._outbox) > MAX_OUTBOX:
            kind, lost = self._outbox.popleft()
            if kind == "join":
                self._sender.sent_there[self.uid, lost["room"]].discard(lost["client"])
        self.carry()

    def carry(self) -> None:
        """Have the first message arrive some time, if there is a way."""
        if self._outbox and not self._is_carrying and self._is_open():
            self._is_carrying = True
            rng = self._simulation.rng
            self._simulation.clock.after(rng.choice([0.0, 0.001, 0.01, rng.uniform(0, 1.5)]), self._arrive)

    def _is_open(self) -> bool:
        return self.link is not None and self.link.works and self._receiver.streams[self._sender.uid].link is self.link

    def _arrive(self) -> None:
        self._is_carrying = False
        if self._outbox and self._is_open():
            kind, data = self._outbox.popleft()
            self._receiver.take(self._sender.uid, kind, data)
        self.carry()


class SimNode:
    """What the service does, without greenlets. Tests break a rule by overriding a method."""

    Copy = Copy

    def __init__(self, simulation: Simulation, uid: str) -> None:
        self.simulation, self.uid = simulation, uid
        self.clock = simulation.clock
        self.streams: dict[str, Stream] = {}
        self.announced = Announced()
        self.copies: dict[str, Copy] = {}
        self.numbers = itertools.count(1)
        self.members: dict[object, set[int]] = {}
        self.let_in: dict[object, set[int]] = {}
        self.waiting: list[tuple[object, int, float, Callable[[], None]]] = []
        self.sent_there: dict[tuple[str, object], set[int]] = {}
        self.telling: dict[str, int] = {}
        self.left_out = 0

    # -- clients

    def enter(self, room: object, client: int, then: Callable[[], None] = lambda: None) -> None:
        self.members.setdefault(room, set()).add(client)
        self.announced.enter("/", room)
        self.clock.after(self.simulation.rng.choice([0.0, 0.002]), self.announce)
        self.waiting.append((room, client, self.clock.now, then))
        self.look()

    def leave(self, room: object, client: int) -> None:
        self.members[room].discard(client)
        for node in self.simulation.nodes:
            node.sent_there.get((self.uid, room), set()).discard(client)
        self.let_in.get(room, set()).discard(client)
        self.waiting = [one for one in self.waiting if one[:2] != (room, client)]
        if not self.members[room]:
            del self.members[room]
            self.announced.leave("/", room)
            self.clock.after(self.simulation.rng.choice([0.0, 0.002]), self.announce)

    def look(self) -> None:
        """Let in whoever need not wait any more."""
        for one in list(self.waiting):
            room, client, since, then = one
            if self.clock.now - since > LEASE_SECONDS + 0.01:
                raise Violation(f"a client has waited for {self.clock.now - since} s")
            until = self.unsettled_until(room)
            if until is None:
                self.waiting.remove(one)
                self.let_in.setdefault(room, set()).add(client)
                then()
            else:
                self.clock.at(until, self.look)

    def unsettled_until(self, room: object) -> float | None:
        return self.announced.unsettled_until("/", room, self.clock.now)

    def announce(self) -> None:
        for data in self.announced.announce():
            for uid, follower in self.announced.followers.items():
                if follower.is_told:
                    follower.is_told = self.streams[uid].link is not None and not data.get("all")
                    if self.streams[uid].link is not None:
                        self.streams[uid].send("interest", data)
        self.look()

    # -- publishing

    def publish(self, room: object) -> None:
        rooms = [] if room is None else [room]
        peers: list[Any] = list(self.streams.values())
        found: list[Any] = interested(peers, self.copies, "/", rooms, self.clock.now, self.ask)
        for node in self.simulation.nodes:
            if node is self or self.streams[node.uid] in found:
                continue
            self.left_out += 1
            self.compare(node)
            if node.let_in.get(room) or self.sent_there.get((node.uid, room)):
                raise Violation(f"{node.uid} has members of {room} and is left out by {self.uid}")

    def compare(self, other: SimNode) -> None:
        """A copy that seems to be up to date is."""
        copy, theirs = self.copies[other.uid], other.announced
        if copy._is_whole and copy._version == theirs.version and not (theirs.has_pending or theirs.is_everything):
            told = set(filter(is_tellable, other.members))
            if copy.rooms.get("/", set()) != told:
                raise Violation(f"{self.uid} has {copy.rooms} of {other.uid}, which has {told}")

    def ask(self, peer: Any) -> None:
        if peer.link is not None:
            copy = self.copies.setdefault(peer.uid, self.Copy())
            peer.send("wanted", copy.ask(next(self.numbers), peer.link, self.clock.now))

    def send_there(self, uid: str, room: object, client: int) -> None:
        """Put a client of another node into a room."""
        self.sent_there.setdefault((uid, room), set()).add(client)
        self.streams[uid].send("join", {"room": room, "client": client})
        self.drop_leases()

    def drop_leases(self) -> None:
        for copy in self.copies.values():
            copy.drop_lease()

    # -- what comes

    def take(self, uid: str, kind: str, data: dict[str, Any]) -> None:
        if kind == "wanted":
            self.announce()
            self.answer(uid, data, self.announced.asked(uid, data["version"], self.clock.now))
        elif kind == "interest":
            self.copies[uid].take(data, self.clock.now)
            if data.get("all") or ("out" in data and data["in"]):
                self.streams[uid].send("known", {"version": data["version"]})
        elif kind == "known":
            self.announced.known(uid, data["version"], self.clock.now)
        elif kind == "join":
            self.enter(data["room"], data["client"])
        self.look()

    def answer(self, uid: str, data: dict[str, Any], is_current: bool) -> None:
        if self.announced.is_everything:
            return
        is_being_told = uid in self.telling
        if is_current and not is_being_told:
            self.streams[uid].send("interest", answer(data["number"], self.announced.version, 0))
            return
        self.telling[uid] = data["number"]
        if not is_being_told:
            self.tell_all(uid)

    def tell_all(self, uid: str) -> None:
        """Tell all rooms in parts, each some time after the one before, and answer."""
        stream, number = self.streams[uid], self.telling[uid]
        link, snapshot, parts = stream.link, self.announced.snapshot(), itertools.count()
        rng = self.simulation.rng

        def end(*, is_told: bool) -> None:
            last = self.telling[uid]
            if last != number and not is_told:
                self.clock.after(0.0, lambda: self.tell_all(uid))
                return
            del self.telling[uid]
            if last != number:
                stream.send("interest", answer(last, self.announced.version, 0))

        def tell_next() -> None:
            self.announce()
            if link is None or stream.link is not link or self.announced.is_everything:
                end(is_told=False)
                return
            part = next(snapshot, None)
            if part is not None:
                stream.send("interest", part)
                next(parts)
                self.clock.after(rng.choice([0.0, 0.001, 0.02, 0.2]), tell_next)
            else:
                stream.send("interest", answer(number, self.announced.version, next(parts)))
                end(is_told=True)

        self.clock.after(rng.choice([0.0, 0.01]), tell_next)


class Simulation:
    """Nodes and a schedule.

    Args:
        seed: of everything random.
        kind: of the nodes.
    """

    def __init__(self, seed: int, kind: type[SimNode] = SimNode) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self._clients = itertools.count(1)
        self.nodes = [kind(self, letter * 16) for letter in "abc"]
        for one, other in itertools.permutations(self.nodes, 2):
            one.streams[other.uid] = Stream(self, one, other)
        for one, other in itertools.combinations(self.nodes, 2):
            self.link(one, other)

    def link(self, one: SimNode, other: SimNode) -> None:
        """A new connection takes the place of whatever there was."""
        wire = Wire()
        self.cut(one, other, (True, True))
        one.streams[other.uid].link = other.streams[one.uid].link = wire
        one.streams[other.uid].carry()
        other.streams[one.uid].carry()

    def cut(self, one: SimNode, other: SimNode, tell: tuple[bool, bool]) -> None:
        ends = (one.streams[other.uid], other.streams[one.uid])
        for end, is_told in zip(ends, tell, strict=True):
            if end.link is not None:
                end.link.works = False
                if is_told:
                    end.link = None

    def act(self) -> None:
        """One random thing happens."""
        actions = [self.publish, self.enter, self.leave, self.send, self.part, self.rejoin, self.burst, self.wait]
        one, other = self.rng.sample(self.nodes, 2)
        self.rng.choices(actions, [50, 12, 14, 4, 6, 8, 5, 20])[0](one, other)

    def _room(self) -> object:
        return self.rng.choices(ROOMS, [10] * (len(ROOMS) - 1) + [0.3])[0]

    def publish(self, one: SimNode, _other: SimNode) -> None:
        one.publish(self._room())

    def enter(self, one: SimNode, _other: SimNode) -> None:
        one.enter(self._room(), next(self._clients))

    def leave(self, one: SimNode, _other: SimNode) -> None:
        if one.members:
            room = self.rng.choice(list(one.members))
            one.leave(room, self.rng.choice(sorted(one.members[room])))

    def send(self, one: SimNode, other: SimNode) -> None:
        if one.streams[other.uid].link is not None:
            one.send_there(other.uid, self._room(), next(self._clients))

    def part(self, one: SimNode, other: SimNode) -> None:
        self.cut(one, other, self.rng.choice([(True, True), (True, False), (False, True), (False, False)]))

    def rejoin(self, one: SimNode, other: SimNode) -> None:
        self.link(one, other)

    def burst(self, one: SimNode, other: SimNode) -> None:
        """What may be more than an outbox holds, perhaps behind a change that has not arrived when the link is cut."""
        if self.rng.random() < 0.7:
            self.enter(one, other)
            one.announce()
            self.cut(one, other, (True, True))
        for _ in range(self.rng.choice([MAX_OUTBOX, self.rng.randint(1, MAX_OUTBOX)])):
            one.streams[other.uid].send("event", {})
        if self.rng.random() < 0.5:
            self.rejoin(one, other)

    def wait(self, _one: SimNode, _other: SimNode) -> None:
        self.clock.advance(self.rng.choice([0.001, 0.01, 0.1, 0.5, 1.0, 3.0]))
        for node in self.nodes:
            node.announced.forget(self.clock.now)


def run_schedule(seed: int, kind: type[SimNode] = SimNode) -> int:
    """Run one random schedule.

    Returns:
        How often a node was left out.

    Raises:
        Violation: a promise was broken.
    """
    simulation = Simulation(seed, kind)
    with mock.patch.object(interest, "MESSAGE_ROOMS", PART_ROOMS):
        for _ in range(simulation.rng.randint(50, 400)):
            simulation.act()
    return sum(node.left_out for node in simulation.nodes)
