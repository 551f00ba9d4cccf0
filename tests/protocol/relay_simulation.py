"""An emitter and its relays in memory, driven by a random schedule of faults, and a checker.

The emitter publishes numbered messages while its link breaks, relays die, and links between nodes blink. Messages
travel one at a time, each way at its own pace. Afterwards everything heals, and then:

- every node that lived throughout has delivered every message once, and in order;
- the emitter retains nothing.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gevent_mesh.protocol.membership import Backoff, Member, PeerState
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.protocol.relay import Delivered, Receipt, Retained
from gevent_mesh.protocol.session import Session

__all__ = ["Rules", "Violation", "run_schedule"]

NODES = 5
SURVIVORS = 3
LIMIT_BYTES = 1 << 20


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Rules:
    """The rules; a test breaks one of them to see that it is needed."""

    relays_repeats: bool = True
    awaits_peers: bool = True
    awaits_lapsed: bool = True
    sends_retained_again: bool = True
    drops_repeats: bool = True


@dataclass(eq=False)
class SimNode:
    uid: str
    rng: random.Random
    delivered: Delivered = field(default_factory=Delivered)
    got: list[int] = field(default_factory=list)
    peers: dict[str, Peer] = field(default_factory=dict)
    alive: bool = True

    def meet(self, other: str) -> None:
        session = Session(self.rng.randbytes(8), limit_bytes=LIMIT_BYTES)
        self.peers[other] = Peer(other, Member(other, "", PeerState.ALIVE, 0.0), session, Backoff(self.rng))

    def deliver(self, number: int, rules: Rules) -> bool:
        is_new = self.delivered.is_new("e", number, 0.0)
        if is_new or not rules.drops_repeats:
            self.got.append(number)
        return is_new


class SimLink:
    """A link between two nodes that are in a session: what is under way, in each direction."""

    def __init__(self, one: SimNode, other: SimNode) -> None:
        self.ends = (one, other)
        self.under_way: tuple[deque[tuple[int, int]], deque[tuple[int, int]]] = (deque(), deque())
        self.up = False
        self.mend()

    def session(self, side: int) -> Session:
        """The session as the node on this side sees it."""
        return self.peer(side).session

    def peer(self, side: int) -> Peer:
        """The other node as the node on this side sees it."""
        return self.ends[side].peers[self.ends[1 - side].uid]

    def cut(self) -> None:
        self.up = False
        for side in (0, 1):
            self.under_way[side].clear()
            self.session(side).detach()

    def mend(self) -> None:
        if self.up or not all(node.alive for node in self.ends):
            return
        states = [self.session(side).state() for side in (0, 1)]
        for side in (0, 1):
            gap = self.session(side).attach(states[1 - side])
            if gap is not None:
                self.session(1 - side).skip(gap)
        self.up = True
        for side in (0, 1):
            self.peer(side).present = True

    def lapse(self) -> None:
        """One side has not heard of the other for too long, though both live."""
        if not self.up:
            self.peer(0).present = self.peer(1).present = False

    def send(self, side: int) -> None:
        if self.up:
            first, messages = self.session(side).take(64)
            self.under_way[side].extend(zip(itertools.count(first), map(int, messages)))

    def receive(self, side: int, rules: Rules) -> None:
        """The node on the other side takes one message."""
        if self.up and self.under_way[side]:
            sequence, number = self.under_way[side].popleft()
            self.session(1 - side).received = sequence
            self.ends[1 - side].deliver(number, rules)

    def acknowledge(self, side: int) -> None:
        if self.up:
            self.session(side).acknowledge(self.session(1 - side).received)


class Simulation:
    """One schedule.

    Args:
        seed: of everything random in it.
        rules: see there.
    """

    def __init__(self, seed: int, rules: Rules) -> None:
        self.rng = random.Random(seed)
        self.rules = rules
        self.nodes = [SimNode(f"n{number}", self.rng) for number in range(NODES)]
        for one, other in itertools.permutations(self.nodes, 2):
            one.meet(other.uid)
        self.links = [SimLink(one, other) for one, other in itertools.combinations(self.nodes, 2)]
        self.retained = Retained(LIMIT_BYTES)
        self.relay: SimNode | None = None
        self.receipt = Receipt()
        self.published: deque[int] = deque()
        self.answered: deque[int] = deque()
        self.count = 0

    # -- the emitter

    def emit(self) -> None:
        self.count += 1
        assert self.retained.next_number == self.count
        self.retained.append(b"%d" % self.count)

    def pump(self) -> None:
        if self.relay is not None:
            self.published.extend(map(int, self.retained.take()))

    def hear(self) -> None:
        if self.answered:
            self.retained.relayed(self.answered.popleft())

    def lose_link(self) -> None:
        self.relay = None
        self.published.clear()
        self.answered.clear()

    def link(self) -> None:
        if self.relay is None:
            self.relay = self.rng.choice([node for node in self.nodes if node.alive])
            self.receipt = Receipt()
            if self.rules.sends_retained_again:
                self.retained.rewind()

    # -- the relay

    def take_published(self) -> None:
        if self.relay is None or not self.published:
            return
        number = self.published.popleft()
        is_new = self.relay.deliver(number, self.rules)
        if is_new or self.rules.relays_repeats:
            for peer in self.relay.peers.values():
                peer.session.append(b"%d" % number)
        self.receipt.taken = number

    def settle(self) -> None:
        if self.relay is not None:
            owed = {
                peer
                for peer in self.relay.peers.values()
                if peer.member.state is not PeerState.DEAD and (peer.present or self.rules.awaits_lapsed)
            }
            upto = self.receipt.settle(owed if self.rules.awaits_peers else ())
            if upto is not None:
                self.answered.append(upto)

    # -- faults

    def kill(self) -> None:
        """The relay dies, or any other node that is not to survive."""
        mortal = [node for node in self.nodes[SURVIVORS:] if node.alive]
        if not mortal:
            return
        victim = self.relay if self.relay in mortal else self.rng.choice(mortal)
        assert victim is not None
        victim.alive = False
        if self.relay is victim:
            self.lose_link()
        for link in self.links:
            if victim in link.ends and link.up:
                link.cut()
        for node in self.nodes:
            if node is not victim:
                node.peers[victim.uid].member.state = PeerState.DEAD

    # -- running

    def step(self) -> None:
        link, side = self.rng.choice(self.links), self.rng.randrange(2)
        actions: list[tuple[float, Callable[[], None]]] = [
            (4, self.emit),
            (30, self.pump),
            (60, self.take_published),
            (30, self.settle),
            (20, self.hear),
            (20, self.link),
            (100, lambda: link.send(side)),
            (200, lambda: link.receive(side, self.rules)),
            (100, lambda: link.acknowledge(side)),
            (60, link.mend),
            (1, link.cut),
            (20, link.lapse),
            (0.4, self.lose_link),
            (0.2, self.kill),
        ]
        weights = [weight for weight, _ in actions]
        self.rng.choices([action for _, action in actions], weights)[0]()

    def heal(self) -> None:
        """Everything that is alive works again, and all that is under way arrives."""
        for _ in range(self.count + 10):
            self.link()
            for action in (self.pump, self.take_published, self.settle, self.hear):
                action()
            while self.published:
                self.take_published()
            for link in self.links:
                link.mend()
                for side in (0, 1):
                    link.send(side)
                    while link.under_way[side]:
                        link.receive(side, self.rules)
                    link.acknowledge(side)

    def check(self) -> None:
        for node in self.nodes[:SURVIVORS]:
            if node.got != list(range(1, self.count + 1)):
                raise Violation(f"{node.uid} got {node.got} of {self.count}")
        if len(self.retained):
            raise Violation(f"{len(self.retained)} messages are retained")


def run_schedule(seed: int, steps: int = 8000, rules: Rules = Rules()) -> None:
    """Run one schedule.

    Raises:
        Violation: a promise was broken.
    """
    simulation = Simulation(seed, rules)
    for _ in range(steps):
        simulation.step()
    simulation.heal()
    simulation.check()
