"""This process as a member of the mesh: its life, its way to the other nodes, and the services that it consists of.

Rules:

- It joins and leaves as often as it is told to, each time under a new uid: to the others that is another node.
- What is published goes to every peer that serves clients, and is kept for those that discovery is about to name.
- A message that is too large raises before anybody has got it.
- A service that fails at what it is told keeps it from no other service.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from .config import MeshConfig
from .embedded import EmbeddedDiscovery
from .errors import PayloadTooLarge
from .net.mesh import Mesh
from .protocol import messages
from .protocol.messages import ClusterMessage, MessageType
from .protocol.nodejs import ReadPacket
from .protocol.peers import Peer
from .routing import owner_of, owners, receivers
from .service import Handler, Service

__all__ = ["Node", "new_uid"]


class Node:
    """A member of the mesh, or what may become one.

    Args:
        config: valid options.
        logger: where to report.
        status: what heartbeats say of this node.

    Attributes:
        uid: 16 hex digits, new at every start.
        mesh: the running mesh; None before the start.
        embedded: this node's part in the discovery of its host, if there is that.
        is_stopped: it was stopped, and is not to join by itself.
        is_leaving: it is on its way out, or has left (see `gevent_mesh.leaving`): it takes no new client.
        read_packet: reads encoded packets of clients for Node peers; set before the start, where there may be some.
    """

    def __init__(self, config: MeshConfig, logger: logging.Logger, status: Callable[[], dict[str, Any]]) -> None:
        self.config = config
        self.uid = new_uid()
        self.mesh: Mesh | None = None
        self.embedded: EmbeddedDiscovery | None = None
        self.is_stopped = False
        self.is_leaving = False
        self.status = status
        self.read_packet: ReadPacket | None = None
        self._logger = logger
        self._was_started = False
        self._warned_unstarted = False
        self._services: list[Service] = []
        self._settling: list[Service] = []
        self._handlers: dict[MessageType, Handler] = {}

    def add(self, *services: Service) -> None:
        """Let these services take part."""
        self._services += services
        for service in services:
            self._handlers.update(service.handlers)
        # Asked at every read of a link: most have nothing to do then.
        self._settling += [service for service in services if type(service).settle is not Service.settle]

    # ------------------------------------------------------------------ life

    def start(self, codec: str) -> None:
        """Join the mesh. Does nothing if this node has joined already.

        Args:
            codec: names the form of the packets that clients get here.

        Raises:
            StartError: the mesh's port cannot be bound.
        """
        if self.mesh is not None:
            return
        self.is_stopped = self.is_leaving = False
        if self._was_started:
            self.uid = new_uid()
            self._was_started = False
        port, tokens = self.config.embedded_port, self.config.tokens
        self.embedded = EmbeddedDiscovery(port, tokens) if port else None
        mesh = Mesh(
            self.config,
            uid=self.uid,
            codec=codec,
            owner=self,
            logger=self._logger,
            read_packet=self.read_packet,
            serve_discovery=self.embedded.serve if self.embedded else None,
        )
        # Set before it starts: our own listener is a gevent server too, and asks us to start again.
        self.mesh = mesh
        try:
            mesh.start()
        except BaseException:
            # Nobody has heard of this uid, and sids may name it already: the next start keeps it.
            self.mesh = None
            raise
        self._was_started = True

    def stop(self, timeout: float) -> bool:
        """Leave the mesh. What was published still goes out, for at most `timeout` seconds.

        Returns:
            Whether every node that is there has it.
        """
        # Nothing more is published from now on: under load the outboxes would never be empty.
        mesh, self.mesh = self.mesh, None
        if mesh is None:
            return True
        is_flushed = mesh.stop(timeout)
        if self.embedded is not None:
            self.embedded.stop()
        self._left()
        return is_flushed

    def forked(self) -> None:
        """The process is a fork: nothing that the parent opened belongs to it."""
        mesh, self.mesh = self.mesh, None
        self.is_leaving = self._was_started = False
        self.uid = new_uid()
        if mesh is not None:
            mesh.forget()
            if self.embedded is not None:
                self.embedded.forget()
            self._left()

    def _left(self) -> None:
        self._tell("left", lambda service: service.left())

    def _tell(self, what: str, tell: Callable[[Service], None], services: Iterable[Service] | None = None) -> None:
        """Have services hear something, all of them if none are named, also behind one that fails."""
        for service in self._services if services is None else services:
            try:
                tell(service)
            except Exception:
                self._logger.exception("%s failed at %s()", type(service).__name__, what)

    # ------------------------------------------------------------------ the way out

    def cluster(self) -> Mesh | None:
        """The mesh, or None for a node that works alone or has not joined, which it says once."""
        if not self.config.discovery:
            return None
        if self.mesh is None and not self._warned_unstarted:
            self._warned_unstarted = True
            is_over = self.is_stopped or self.is_leaving
            state = "after this node was stopped" if is_over else "before this process serves"
            self._logger.warning("used %s: other nodes take no part in it; call start() first if they should", state)
        return self.mesh

    @property
    def knows_nodes(self) -> bool:
        """Whether it is known which other nodes there are: discovery has said so, or none is to be asked."""
        if not self.config.discovery:
            return True
        return self.mesh is not None and not self.mesh.outboxes.awaits_roster

    def encode(self, kind: MessageType, namespace: str, data: dict[str, Any]) -> bytes:
        """Encode a message of this node.

        Raises:
            PayloadTooLarge: no outbox has room for it, ever.
            PayloadNotEncodable: msgpack has no form for a value.
        """
        return self._sized(messages.encode(kind, self.uid, namespace, data))

    def encode_event(
        self,
        namespace: str,
        rooms: Sequence[Hashable],
        exclude: Sequence[Hashable],
        encoded: list[str | bytes],
        codec: str,
    ) -> bytes:
        """`encode` for a BROADCAST of a packet of ours that nobody is to acknowledge."""
        return self._sized(messages.encode_event(self.uid, namespace, rooms, exclude, encoded, codec))

    def _sized(self, message: bytes) -> bytes:
        if len(message) > self.config.outbox_bytes:
            raise PayloadTooLarge(len(message), self.config.outbox_bytes)
        return message

    def publish(self, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        """Send a message to all nodes, those included that are about to be named. May wait for slow peers."""
        if self.cluster() is not None:
            self.publish_encoded(self.encode(kind, namespace, data))

    def publish_to_owner(self, sid: str, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        """Send what is about one client to its node; to all nodes if the sid does not tell which one that is."""
        peers = None if self.cluster() is None else self.owners([sid])
        if peers is None:
            self.publish(kind, namespace, data)
        else:
            self.publish_to(peers, kind, namespace, data)

    def owners(self, rooms: Sequence[Hashable]) -> list[Peer] | None:
        """The peers that alone can have members of these rooms, when all of them are sids; None if any node may."""
        return None if self.mesh is None else owners(self.mesh.table, self.uid, rooms)

    def is_elsewhere(self, room: Hashable) -> bool:
        """Whether this is the sid of a client of another node that is there."""
        uid = owner_of(room)
        peer = self.mesh.table.get(uid) if uid and self.mesh is not None else None
        return peer is not None and peer.present

    def publish_encoded(self, message: bytes, *, to_nodejs: bool = True, patiently: bool = False) -> None:
        """`publish` for a message of ours that is encoded.

        Args:
            to_nodejs: to Node.js servers as well.
            patiently: wait also for peers whose link is down, before anything is lost (see `Outboxes.wait_for_room`).
        """
        mesh = self.mesh
        if mesh is not None:
            if patiently:
                mesh.outboxes.wait_for_room(len(message))
            mesh.outboxes.keep_for_newcomers(message)
            peers = [peer for peer in receivers(mesh.table) if to_nodejs or not peer.is_nodejs]
            mesh.outboxes.publish(peers, message, at_once=patiently)

    def publish_to(self, peers: Sequence[Peer], kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        """Send a message to some peers. May wait for slow ones."""
        if self.mesh is not None and peers:
            self.mesh.outboxes.publish(peers, self.encode(kind, namespace, data))

    def publish_encoded_to(self, peers: Sequence[Peer], message: bytes) -> None:
        """Send what is encoded already to some peers. May wait for slow ones.

        Raises:
            PayloadTooLarge: no outbox has room for it, ever.
        """
        if self.mesh is not None and peers:
            self.mesh.outboxes.publish(peers, self._sized(message))

    def send(self, uid: str, kind: MessageType, namespace: str, data: dict[str, Any]) -> bool:
        """Send a message to one peer. Never waits.

        Returns:
            False when there is no such peer.
        """
        return self.send_encoded(uid, self.encode(kind, namespace, data))

    def send_encoded(self, uid: str, message: bytes) -> bool:
        """`send` for what is encoded already."""
        return self.mesh is not None and self.mesh.outboxes.send(uid, message)

    @property
    def peers(self) -> Iterable[Peer]:
        """The other members that are known; none before the start."""
        return () if self.mesh is None else list(self.mesh.table)

    def client_gone(self, sid: str, namespace: str) -> None:
        """A client of this node is not connected to this namespace any more."""
        self._tell("client_gone", lambda service: service.client_gone(sid, namespace))

    # ------------------------------------------------------------------ what the mesh says (MeshOwner)

    def on_message(self, peer: Peer, message: ClusterMessage) -> None:
        if peer.is_emitter and message.type not in (MessageType.PUBLISH, MessageType.ASK):
            if self.mesh is not None:
                self.mesh.counters.spoofed += 1
            return
        self.hand_on(peer, message)

    def hand_on(self, peer: Peer, message: ClusterMessage) -> None:
        """Have the service that a message is for act on it, in the present greenlet."""
        handler = self._handlers.get(message.type)
        if handler is None:
            if message.type is not MessageType.HEARTBEAT:
                peer.hearing.acted()  # nobody here would act on it: that says nothing of those who act on others
            return
        try:
            handler(peer, message)
        finally:
            # It has come through, whatever has become of it.
            peer.hearing.acted()

    def settle(self) -> None:
        """Have services do what they have put off (see `gevent_mesh.service`)."""
        self._tell("settle", lambda service: service.settle(), self._settling)

    def on_linked(self, peer: Peer) -> None:
        self._tell("linked", lambda service: service.linked(peer))

    def on_heartbeat(self, peer: Peer) -> None:
        self.hand_on(peer, ClusterMessage(MessageType.HEARTBEAT, peer.uid, "/", {}))

    def on_lapsed(self, peer: Peer) -> None:
        self._tell("lapsed", lambda service: service.lapsed(peer))

    def on_sweep(self, now: float) -> None:
        self._tell("sweep", lambda service: service.sweep(now))


def new_uid() -> str:
    """16 random hex digits."""
    return secrets.token_hex(8)
