"""A whole mesh in memory: the real rules, driven by a random schedule of faults, and a checker.

Every node publishes numbered events. While it runs, connections are cut after any byte (both ends, one end or neither
hears of it), doubled, partitioned for seconds or for longer than the resume window; nodes restart; discovery forgets.
Afterwards everything heals, and then for every pair of live nodes:

- exactly one link, and both sides mean the same one;
- what arrived is in order, without repeats;
- arrived + declared lost = published, and both sides count the same losses;
- nothing is lost when no outbox overflowed and nobody was away for longer than the window.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from gevent_mesh.errors import HandshakeError, RemoteError
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import NONCE_BYTES, Refusal
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.link import Claimed, Identity, LinkProtocol, Phase, Proven
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.peers import Peer, PeerTable
from tests.fakes import Connection, ManualClock, MemoryNetwork

__all__ = ["Simulation", "Violation", "run_schedule"]

KEYS = Keys(["a token for the simulation"])
STEP_SECONDS = 0.25
RESUME_WINDOW = 10.0
SETTLE_SECONDS = 45.0


class Violation(AssertionError):
    """A promise was broken."""


class SimLink:
    """One end of a connection, with its protocol."""

    def __init__(self, node: SimNode, connection: Connection, side: int, protocol: LinkProtocol) -> None:
        self.node, self.connection, self.side, self.protocol = node, connection, side, protocol
        self.peer: Peer | None = None

    def data(self, _connection: Connection, data: bytes) -> None:
        self.node.on_data(self, data)

    def closed(self, _connection: Connection) -> None:
        self.node.end(self)

    def flush(self) -> None:
        while data := self.protocol.outgoing():
            self.connection.send(self.side, data)
        if self.protocol.phase is Phase.CLOSED:
            self.connection.close(self.side)


@dataclass(eq=False)
class SimNode:
    """One process of a node; a restart makes another one at the same address."""

    simulation: Simulation
    address: str
    uid: str
    outbox_bytes: int
    table: PeerTable = field(init=False)
    links: dict[str, SimLink] = field(default_factory=dict)
    connections: list[SimLink] = field(default_factory=list)
    received: dict[str, list[int]] = field(default_factory=dict)
    published: int = 0
    alive: bool = True

    def __post_init__(self) -> None:
        self.rng = self.simulation.rng
        self.table = PeerTable(self.uid, self.rng, RESUME_WINDOW, self.outbox_bytes)
        self.simulation.network.listen(self.address, self.accept)

    @property
    def now(self) -> float:
        return self.simulation.clock.now

    def kill(self) -> None:
        self.alive = False
        for link in list(self.connections):
            link.connection.close(link.side)

    def publish(self, size: int) -> None:
        self.published += 1
        data = {"packet": ["event", self.published, "x" * size]}
        message = messages.encode(MessageType.SERVER_SIDE_EMIT, self.uid, "/", data)
        for peer in self.table:
            link = self.links.get(peer.uid)
            if not peer.session.fits(len(message)):
                self.simulation.overflowed = True
                if link is not None:
                    self.end(link)
            peer.session.append(message)
            if link is not None and self.rng.random() < 0.7:
                link.flush()

    # -- links, as the mesh does it

    def _protocol(self, **options: object) -> LinkProtocol:
        return LinkProtocol(
            Identity(self.uid, self.address), KEYS, nonce=self.rng.randbytes(NONCE_BYTES), now=self.now,
            secret=self.uid.encode(), heartbeat_interval=2.0, heartbeat_timeout=4.0, **options,  # type: ignore[arg-type]  # passed on
        )  # fmt: skip

    def accept(self, connection: Connection) -> SimLink:
        return self._add(SimLink(self, connection, 1, self._protocol()))

    def _add(self, link: SimLink) -> SimLink:
        self.connections.append(link)
        return link

    def dial(self, peer: Peer) -> None:
        self.table.dial_started(peer, self.now)
        protocol = self._protocol(target=peer.uid, session=peer.session.state())
        self.table.dial_said_hello(peer, protocol)
        connection = self.simulation.network.connect(
            self.address, peer.member.address, lambda connection: self._add(SimLink(self, connection, 0, protocol))
        )
        if connection is None:
            self.table.dial_failed(peer, self.now)
            return
        for link in self.connections:
            if link.connection is connection and link.side == 0:
                link.flush()
        self.simulation.clock.after(5.0, lambda: self._expire(connection))

    def _expire(self, connection: Connection) -> None:
        for link in list(self.connections):
            if link.connection is connection and link.peer is None:
                self.end(link)

    def on_data(self, link: SimLink, data: bytes) -> None:
        if not self.alive:
            return
        try:
            for event in link.protocol.receive(data, self.now):
                self._event(link, event)
        except RemoteError:
            link.flush()
            self.end(link)
            return
        if link.peer is not None and (link.peer.session.owes_ack_now or self.rng.random() < 0.3):
            link.protocol.request_ack()
        link.flush()
        if link.protocol.phase is Phase.CLOSED:
            self.end(link)

    def _event(self, link: SimLink, event: object) -> None:
        try:
            if isinstance(event, ClusterMessage):
                self.received.setdefault(event.uid, []).append(event.data["packet"][1])
            elif isinstance(event, Claimed):
                self.table.check_claim(event.uid)
            elif isinstance(event, Proven):
                self._proven(link, event.peer)
        except HandshakeError as exc:
            link.protocol.refuse(Refusal(exc.code), exc.reason)

    def _proven(self, link: SimLink, identity: Identity) -> None:
        self.table.check_proven(link.protocol, identity.uid)
        old = self.links.get(identity.uid)
        if old is not None:
            self.end(old)
        link.peer, _ = self.table.link_up(link.protocol, identity, self.now)
        self.links[identity.uid] = link
        for other in list(self.connections):
            if other is not link and other.protocol.is_dialer and other.protocol._target == identity.uid:
                self.end(other)

    def end(self, link: SimLink) -> None:
        link.protocol.close()
        link.connection.close(link.side)
        if link in self.connections:
            self.connections.remove(link)
        peer = link.peer
        if peer is not None and self.links.get(peer.uid) is link:
            del self.links[peer.uid]
            self.table.link_down(link.protocol, self.now)
        elif peer is None and link.protocol.is_dialer:
            target = self.table.get(link.protocol._target)
            if target is not None and target.dialing:
                self.table.dial_failed(target, self.now)

    def step(self) -> None:
        """What the scheduler and the heartbeat greenlets do."""
        for change in self.table.tick(self.now):
            self.simulation.gave_up |= change.after is not None and change.after.value == "dead"
        for peer in self.table.due(self.now):
            self.dial(peer)
        for link in list(self.links.values()):
            if link.protocol.next_tick() <= self.now and not link.protocol.tick(self.now, {"clients": 0}):
                self.end(link)
                continue
            link.protocol.request_ack()
            link.flush()


class Simulation:
    """Nodes, a network, a discovery server, and a schedule."""

    def __init__(self, seed: int, *, nodes: int = 3) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock, self.rng)
        self.overflowed = False
        self.gave_up = False
        self.outbox_bytes = self.rng.choice([400, 2_000, 1 << 20])
        self.nodes = [self._node(f"ws://node-{number}:4000") for number in range(nodes)]
        self.tell_roster()

    def _node(self, address: str) -> SimNode:
        return SimNode(self, address, f"{self.rng.getrandbits(64):016x}", self.outbox_bytes)

    def tell_roster(self, *, complete: bool = True) -> None:
        servers = {node.uid: node.address for node in self.nodes}
        for node in self.nodes:
            node.table.roster("discovery", servers, complete, self.clock.now)

    # -- faults

    def act(self) -> None:
        """One random thing happens."""
        rng = self.rng
        action = rng.choices(
            [self.publish, self.cut, self.wait, self.both_dial, self.partition, self.heal, self.forgetful_discovery,
             self.restart],
            [40, 12, 20, 4, 3, 4, 2, 1],
        )[0]  # fmt: skip
        action()

    def publish(self) -> None:
        node = self.rng.choice(self.nodes)
        for _ in range(self.rng.randint(1, 8)):
            node.publish(self.rng.randint(0, 60))

    def cut(self) -> None:
        links = [link for node in self.nodes for link in node.connections]
        if links:
            tell = self.rng.choice([(True, True), (True, True), (True, False), (False, True), (False, False)])
            self.rng.choice(links).connection.cut(tell=tell)

    def wait(self) -> None:
        self.run(self.rng.choice([0.003, 0.01, 0.05, 0.3, 1.0]))

    def both_dial(self) -> None:
        """A pair loses its link, and both sides dial at the same moment."""
        a, b = self.rng.sample(self.nodes, 2)
        for node, other in ((a, b), (b, a)):
            if other.uid in node.links:
                node.end(node.links[other.uid])
        for node, other in ((a, b), (b, a)):
            peer = node.table.get(other.uid)
            if peer is not None and peer.link is None and not peer.dialing:
                node.dial(peer)

    def partition(self) -> None:
        a, b = self.rng.sample([node.address for node in self.nodes], 2)
        self.network.partition(a, b)
        self.run(self.rng.choice([0.1, 2.0, 6.0, 14.0]))

    def heal(self) -> None:
        self.network.heal()

    def forgetful_discovery(self) -> None:
        """Discovery restarts: it names one node, then all."""
        node = self.rng.choice(self.nodes)
        node.table.roster("discovery", {node.uid: node.address}, self.rng.random() < 0.5, self.clock.now)
        self.clock.after(self.rng.uniform(0, 5), self.tell_roster)

    def restart(self) -> None:
        index = self.rng.randrange(len(self.nodes))
        self.nodes[index].kill()
        self.nodes[index] = self._node(self.nodes[index].address)
        self.clock.after(self.rng.uniform(0, 2), self.tell_roster)

    # -- run

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.advance(min(STEP_SECONDS, end - self.clock.now))
            for node in self.nodes:
                node.step()

    def settle(self) -> None:
        """Heal, and run until everybody is linked and has everything."""
        self.network.heal()
        self.tell_roster()
        deadline = self.clock.now + SETTLE_SECONDS
        while self.clock.now < deadline:
            self.run(1.0)
            if self._is_whole():
                # Once more, so that a link that is about to fall (half-open, doubled) has fallen.
                self.run(6.0)
                if self._is_whole():
                    return

    def _pairs(self) -> list[tuple[SimNode, SimNode]]:
        return [(a, b) for a in self.nodes for b in self.nodes if a is not b]

    def _is_whole(self) -> bool:
        return all(
            (peer := a.table.get(b.uid)) is not None and peer.link is not None and not peer.session.outbox()
            for a, b in self._pairs()
        )

    # -- promises

    def check(self) -> None:
        """Raise Violation if a promise is broken."""
        for a, b in self._pairs():
            self._check_link(a, b)
            self._check_stream(a, b)

    def _check_link(self, a: SimNode, b: SimNode) -> None:
        ours, theirs = a.links.get(b.uid), b.links.get(a.uid)
        if ours is None or theirs is None:
            raise Violation(f"seed {self.seed}: {a.uid} and {b.uid} are not linked")
        if ours.connection is not theirs.connection:
            raise Violation(f"seed {self.seed}: {a.uid} and {b.uid} have two links")
        open_links = [link for link in a.connections if link.protocol.phase is Phase.UP and link.peer is not None]
        if sum(link.peer.uid == b.uid for link in open_links if link.peer) != 1:
            raise Violation(f"seed {self.seed}: {a.uid} holds more than one link to {b.uid}")

    def _check_stream(self, a: SimNode, b: SimNode) -> None:
        sender, receiver = a.table.get(b.uid), b.table.get(a.uid)
        if sender is None or receiver is None:
            raise Violation(f"seed {self.seed}: {a.uid} and {b.uid} do not know each other")
        got = b.received.get(a.uid, [])
        if any(later <= earlier for earlier, later in itertools.pairwise(got)):
            raise Violation(f"seed {self.seed}: repeated or out of order: {got}")
        if sender.session.outbox():
            raise Violation(f"seed {self.seed}: {sender.session!r} was not drained")
        sent, lost = sender.session.next_sequence - 1, receiver.session.received_lost
        if len(got) + lost != sent:
            raise Violation(f"seed {self.seed}: {len(got)} arrived + {lost} lost != {sent} sent")
        if sender.session.sent_lost != lost:
            raise Violation(f"seed {self.seed}: the sender counts {sender.session.sent_lost} lost, the receiver {lost}")
        if lost and not self.overflowed and not self.gave_up:
            raise Violation(f"seed {self.seed}: {lost} lost without a reason")


def run_schedule(seed: int) -> Simulation:
    """Run one random schedule and check every promise.

    Raises:
        Violation: a promise was broken; run the same seed to see it again.
    """
    simulation = Simulation(seed)
    for _ in range(simulation.rng.randint(10, 60)):
        simulation.act()
    simulation.settle()
    simulation.check()
    return simulation
