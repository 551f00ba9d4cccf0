"""Meshes in one process, over real loopback sockets."""

from __future__ import annotations

import itertools
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

import gevent

from gevent_mesh.config import MeshConfig
from gevent_mesh.net.dialer import dial
from gevent_mesh.net.link import Link
from gevent_mesh.net.mesh import Mesh
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.address import Address
from gevent_mesh.protocol.frames import Role
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.link import Event, Identity, LinkProtocol, Proven
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.protocol.session import Session
from tests.support import eventually

__all__ = ["MIDDLE", "NOBODY", "HandMade", "Join", "Member", "linked", "numbered", "pair", "uid_above", "uid_below"]

MIDDLE = "8000000000000000"
"""A uid with room on both sides."""

NOBODY = "ws://127.0.0.1:1"
"""Nobody listens there: a discovery that is configured, and does not disturb."""


def numbered(uid: str, number: int, padding: int = 0) -> bytes:
    """A message that carries a number."""
    packet = ["tick", number, "x" * padding]
    return messages.encode(MessageType.BROADCAST, uid, "/", messages.broadcast(messages.options(), packet=packet))


def number_of(message: ClusterMessage) -> int:
    """The number that a message carries, whether `numbered` made it or a manager's ``emit("tick", number)``."""
    encoded = message.data.get("encoded")
    data = message.data["packet"]["data"] if encoded is None else json.loads(encoded[0][1:])
    number: int = data[1]
    return number


def uid_below(uid: str) -> str:
    return f"{int(uid, 16) - 1:016x}"


def uid_above(uid: str) -> str:
    return f"{int(uid, 16) + 1:016x}"


class Member:
    """One node: a `Mesh`, and what it has received.

    Attributes:
        got: (uid, number) of each message, in the order of arrival.
        on_number: called with the number of each message, after it was noted.
        linked, lapsed: uids of the peers that were, in order.
    """

    def __init__(
        self, discovery: str = NOBODY, *, uid: str = "", codec: str = "json", starts: bool = True, **config: Any
    ) -> None:
        self.uid = uid or secrets.token_hex(8)
        self.got: list[tuple[str, int]] = []
        self.clients = 0
        self.on_number: Callable[[int], None] = lambda _number: None
        self.linked: list[str] = []
        self.lapsed: list[str] = []
        self._next = 1
        options = {"heartbeat_interval": 0.2, "heartbeat_timeout": 2.0, "port": 0, **config}
        self.mesh = Mesh(
            MeshConfig(discovery=(discovery,), **options),
            uid=self.uid,
            codec=codec,
            owner=self,
            logger=logging.getLogger("tests.mesh"),
            read_packet=lambda _codec, encoded: json.loads(encoded[0][1:]),
        )
        if starts:
            self.mesh.start()
            # A connection to discovery would have shown it.
            self.mesh.address = self.address

    @property
    def address(self) -> str:
        return str(Address(self.mesh.config.tls.listens, "127.0.0.1", self.mesh.port))

    def names(self, *others: Member, **addresses: str) -> None:
        """Take a roster that names these nodes."""
        servers = {other.uid: other.address for other in others}
        self.mesh._take_roster("test", {**servers, **addresses}, True)

    def link(self, other: Member | str) -> Link | None:
        return self.mesh._links.get(other if isinstance(other, str) else other.uid)

    def peer(self, other: Member | str) -> Peer:
        peer = self.mesh.table.get(other if isinstance(other, str) else other.uid)
        assert peer is not None
        return peer

    def say(self, count: int = 1, padding: int = 0) -> int:
        """Publish numbered messages to all peers; returns the last number."""
        for _ in range(count):
            message = numbered(self.uid, self._next, padding)
            # Publishing may wait, and others may speak meanwhile.
            self._next += 1
            peers = [peer for peer in self.mesh.table if peer.receives_events]
            self.mesh.outboxes.keep_for_newcomers(message)
            self.mesh.outboxes.publish(peers, message)
        return self._next - 1

    def numbers_from(self, other: Member | str) -> list[int]:
        uid = other if isinstance(other, str) else other.uid
        return [number for sender, number in self.got if sender == uid]

    def hears(self, other: Member | str, count: int, seconds: float = 10.0) -> None:
        """Wait for the messages 1 to `count`; they must come once each and in order."""
        eventually(lambda: len(self.numbers_from(other)) >= count, seconds)
        assert self.numbers_from(other) == list(range(1, count + 1))

    # -- MeshOwner

    def on_message(self, peer: Peer, message: ClusterMessage) -> None:
        number = number_of(message)
        self.got.append((peer.uid, number))
        peer.hearing.acted()
        self.on_number(number)

    def settle(self) -> None:
        pass

    def on_linked(self, peer: Peer) -> None:
        self.linked.append(peer.uid)

    def on_heartbeat(self, peer: Peer) -> None:
        peer.hearing.acted()

    def on_lapsed(self, peer: Peer) -> None:
        self.lapsed.append(peer.uid)

    def on_sweep(self, now: float) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"clients": self.clients, "namespaces": ["/"]}


Join = Callable[..., Member]
"""Starts a node, see the fixture `join`."""


def linked(*members: Member) -> None:
    """Wait until all of them are linked."""
    for one, other in itertools.permutations(members, 2):
        eventually(lambda one=one, other=other: one.link(other), 10)  # type: ignore[misc]  # bound now


def pair(join: Join, **options: Any) -> tuple[Member, Member]:
    """Two linked nodes; the first one dials."""
    one, two = join(uid=uid_below(MIDDLE), **options), join(uid=MIDDLE, **options)
    one.names(two)
    linked(one, two)
    return one, two


class HandMade:
    """A peer that a test drives step by step, on the dialling side."""

    def __init__(
        self,
        node: Member,
        *,
        uid: str = "00000000000000aa",
        session: Session | None = None,
        tokens: tuple[str, ...] = (),
        channel: str = "socketio",
        role: Role = Role.NODE,
        target: str | None = None,
        secret: bytes = b"",
    ) -> None:
        self.transport: Transport = dial(node.address)
        self.session = Session(secrets.token_bytes(8), limit_bytes=1 << 20) if session is None else session
        self.protocol = LinkProtocol(
            Identity(uid, "ws://127.0.0.1:9", role, channel),
            Keys(tokens),
            nonce=secrets.token_bytes(32),
            now=0.0,
            target=node.uid if target is None else target,
            session=self.session.state(),
            secret=secret,
        )
        self.events: list[Event] = []

    def flush(self) -> None:
        while data := self.protocol.outgoing():
            self.transport.send(data)

    def step(self) -> bool:
        """Send what is due and take what comes; returns whether the connection still stands."""
        self.flush()
        data = self.transport.recv()
        for event in self.protocol.receive(data, 0.0):
            self.events.append(event)
            if isinstance(event, Proven):
                self.protocol.accept(self.session, 0.0)
        return bool(data)

    def handshake(self) -> HandMade:
        with gevent.Timeout(5):
            while not any(isinstance(event, Proven) for event in self.events):
                assert self.step(), "closed during the handshake"
        self.flush()
        return self

    def until_closed(self, seconds: float = 6.0) -> None:
        with gevent.Timeout(seconds):
            while self.step():
                pass
