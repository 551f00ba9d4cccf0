"""The mesh of one node: owns the table of peers, the links, the listener and the clients of discovery.

Greenlets: the *scheduler* dials what is due and gives up what is overdue; each dial and each accepted connection has
one that becomes its link's reader; each discovery server has one. All state is in `PeerTable`, and nothing here waits
between reading it and writing it.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.pool import Group

from ..config import MeshConfig
from ..errors import DialError, ExhaustedError, HandshakeError, StartError
from ..protocol.address import Address, is_loopback
from ..protocol.discovery import SECRET_BYTES
from ..protocol.frames import NONCE_BYTES, Refusal, Role, is_uid
from ..protocol.gossip import ASK_SECONDS, Gossip, digest, lacking, nodes, nodes_wanted
from ..protocol.handshake import Keys
from ..protocol.link import AnyLinkProtocol, Identity, Left, LinkProtocol, Lost, Phase, Status
from ..protocol.membership import Change, PeerState
from ..protocol.messages import ClusterMessage, MessageType, encode
from ..protocol.nodejs import HELLO_SECONDS, NodejsLinkProtocol, ReadPacket, Translator
from ..protocol.peers import Peer, PeerTable
from .dialer import Turns, dial
from .discovery import DiscoveryClient
from .link import STUCK_SECONDS, Link
from .listener import Listener, StrangerTicket
from .outboxes import Counters, Outboxes
from .transport import Transport
from .watch import Watch

__all__ = ["Mesh", "MeshOwner", "PeerInfo"]

HANDSHAKE_SECONDS = 5.0
SWEEP_SECONDS = 1.0
FLUSH_SECONDS = 2.0
TLS_AT_ONCE = 8
"""TLS handshakes of dials. They cost milliseconds of CPU: were a hundred begun at once, none might be done in time."""
TLS_TURN_SECONDS = 0.5
"""How long one that is not done counts. Longer lets peers that never answer keep others waiting."""
STUCK_READER_SECONDS = STUCK_SECONDS
"""How long a former link's reader is waited for."""
WHY_LOST = "the link was down for longer than the resume window, or more was sent meanwhile than the outbox holds"
_GOSSIP = frozenset((MessageType.NODES_WANTED, MessageType.NODES))
"""Messages that are for the mesh itself."""
SAME_FAILURE_SECONDS = 60.0
"""A peer that keeps failing in the same way is logged this often."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What this node knows of a peer.

    Attributes:
        uid: 16 hex digits, new at every start of that node.
        address: where it listens; empty for an emitter.
        state: ``joining``, ``alive``, ``suspect`` or ``dead``.
        round_trip_seconds: the last measured round trip; None while no link is up.
        clients: clients connected to it, as of its last heartbeat; None before the first.
    """

    uid: str
    address: str
    state: str
    round_trip_seconds: float | None
    clients: int | None


class MeshOwner(Protocol):
    """Who is told what happens in the mesh. Nothing here may wait."""

    def on_message(self, peer: Peer, message: ClusterMessage) -> None:
        """A message came, in a link's reader."""

    def settle(self) -> None:
        """Others are about to run: do now what was put off."""

    def on_linked(self, peer: Peer) -> None:
        """A link to this peer is up, in its reader; nothing that came over it has been handed on yet."""

    def on_lapsed(self, peer: Peer) -> None:
        """This peer is not present any more (see `gevent_mesh.protocol.peers`), until it is linked again."""

    def on_heartbeat(self, peer: Peer) -> None:
        """A heartbeat came, in a link's reader: hand it on as a message (see `gevent_mesh.protocol.hearing`)."""

    def on_sweep(self, now: float) -> None:
        """About once a second, or more often with a short `heartbeat_timeout`; `now` is monotonic."""

    def status(self) -> dict[str, Any]:
        """Small facts about this node for its heartbeats: ``clients``, ``namespaces``."""


class Mesh:
    """A node's place in the mesh.

    Args:
        config: valid options.
        uid: this node's.
        codec: the form of the packets that clients get here.
        owner: who is told what happens.
        logger: where to report.
        read_packet: reads encoded packets of clients for Node peers, who get plain values.
        serve_discovery: has this process serve discovery, if nobody does (see `DiscoveryClient`).
    """

    def __init__(
        self,
        config: MeshConfig,
        *,
        uid: str,
        codec: str,
        owner: MeshOwner,
        logger: logging.Logger,
        read_packet: ReadPacket | None = None,
        serve_discovery: Callable[[], str] | None = None,
    ) -> None:
        self.config = config
        self.uid = uid
        self.address = config.address
        self.codec = codec
        self.counters = Counters()
        rng = random.Random(secrets.randbits(64))
        self.table = PeerTable(
            uid,
            rng,
            config.resume_window,
            config.outbox_bytes,
            silence_seconds=config.heartbeat_timeout,
        )
        self._owner = owner
        self._logger = logger
        self._serve_discovery = serve_discovery
        self._keys = Keys(config.tokens)
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._told_not_for_nodejs = -math.inf
        self._translator: Translator | None = None
        if config.node_interop and read_packet is not None:
            self._translator = Translator(uid, read_packet, self._not_for_nodejs)
        self._links: dict[str, Link] = {}
        self.outboxes = Outboxes(self.table, self._links, config, self.counters, logger)
        self.swept_at = monotonic()
        self._sweep_seconds = min(SWEEP_SECONDS, config.heartbeat_timeout / 8)
        stuck_seconds = min(STUCK_SECONDS, config.heartbeat_timeout / 2)
        self.watch = Watch(math.ceil(stuck_seconds / self._sweep_seconds) + 1, logger)
        self._dialled: dict[str, Link] = {}
        self._connections: set[Link] = set()
        self._gossip = Gossip()
        self._digest: bytes | None = None
        self._last_failure: dict[str, tuple[str, float]] = {}
        self._kick = Event()
        self._changed = Event()
        self._dials = Group()
        self._tls_turns = Turns(TLS_AT_ONCE, TLS_TURN_SECONDS)
        self._scheduler: gevent.Greenlet | None = None
        self._listener: Listener | None = None
        self._discovery: list[DiscoveryClient] = []
        self._stopping = self._forgotten = False

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Listen, register, and begin to link.

        Raises:
            StartError: the port cannot be bound.
        """
        if self.config.discovery:
            self._listener = Listener(
                self.config.host,
                self.config.port,
                on_websocket=self._accept,
                require_mesh_header=self._translator is None,
                tls=self.config.tls,
            )
            try:
                self._listener.start()
            except StartError as exc:
                raise StartError(f"{exc} (several nodes on one host: ws_port=0, or MESH_PORT=0)") from None
        if self._stopping:
            # Binding may wait, and somebody may have stopped us meanwhile.
            self._end()
            return
        self._discovery = [
            DiscoveryClient(
                url,
                uid=self.uid,
                secret=self._secret,
                role="node",
                tokens=self.config.tokens,
                address_for=self._address_for,
                on_roster=self._take_roster,
                on_away=self._roster_away,
                # Nobody but nodes of ours serves embedded discovery: nobody else is to get the token.
                accept_nodejs=self._translator is not None and self._serve_discovery is None,
                tls=self.config.tls,
                serve=self._serve_discovery,
            )
            for url in self.config.discovery
        ]
        for client in self._discovery:
            client.start()
        self._scheduler = gevent.spawn(self._schedule)

    def stop(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Leave the mesh: say so, after what was published has gone out.

        Args:
            timeout: the most seconds to wait until peers, also those that are not linked yet, have what is theirs.

        Returns:
            Whether they have.
        """
        is_flushed = self.outboxes.flush(timeout)
        self._stopping = True
        self._end()
        return is_flushed

    def _end(self) -> None:
        if self._listener is not None:
            self._listener.stop()
        if self._scheduler is not None:
            self._scheduler.kill()
        # At the same time, for peers should not wait for our goodbye while discovery does not answer.
        partings = [gevent.spawn(link.leave, Refusal.LEAVING, "leaving") for link in list(self._connections)]
        gevent.joinall([*partings, *(gevent.spawn(client.stop) for client in self._discovery)])
        self.watch.end()
        self._dials.kill()

    def forget(self) -> None:
        """In a forked child: give up everything that belongs to the parent, without a word to anybody."""
        self._stopping = self._forgotten = True
        for client in self._discovery:
            client.forget()
        if self._listener is not None:
            self._listener.forget()
        if self._scheduler is not None:
            self._scheduler.kill(block=False)
        for link in list(self._connections):
            link.forget()
        self._dials.kill(block=False)

    def _address_for(self, local_host: str) -> str:
        """The address to register: as configured, else where the connection to discovery shows us to be reachable."""
        if self.config.address:
            return self.config.address
        wildcard = self.config.host in ("", "0.0.0.0", "::")
        host = local_host if wildcard else self.config.host
        address = str(Address(self.config.tls.listens, host, self.port))
        # With several discovery servers, what other machines can use is worth more than loopback.
        if not self.address or not is_loopback(host):
            self.address = address
        return address

    @property
    def port(self) -> int:
        """The port that peers dial; 0 for one that does not listen."""
        return 0 if self._listener is None else self._listener.port

    # ------------------------------------------------------------------ membership

    @property
    def peers(self) -> list[PeerInfo]:
        """All peers, sorted by uid."""
        infos = []
        for peer in self.table:
            link = peer.link
            infos.append(
                PeerInfo(
                    uid=peer.uid,
                    address=peer.member.address,
                    state=peer.member.state.value,
                    round_trip_seconds=None if link is None else link.round_trip_seconds,
                    clients=peer.clients,
                )
            )
        return sorted(infos, key=lambda info: info.uid)

    def wait_for_peers(self, count: int, timeout: float | None) -> bool:
        """Wait until links to at least `count` other nodes are up.

        Returns:
            Whether they are.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while sum(peer.receives_events for peer in self.table.alive()) < count:
            self._changed.clear()
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            self._changed.wait(left)
        return True

    def _take_roster(self, source: str, servers: dict[str, str], complete: bool, removed: tuple[str, ...] = ()) -> None:
        # Others than ours have names of another form; what is not a node of this kind cannot be linked.
        nodes = {uid: address for uid, address in servers.items() if is_uid(uid)}
        self._report(self.table.roster(source, nodes, complete, monotonic(), removed))
        self.outboxes.roster_came(complete, monotonic())
        self._tell_lapsed()
        self._kick.set()

    def _roster_away(self, source: str) -> None:
        self.table.members.roster_away(source, monotonic())

    def _report(self, changes: list[Change]) -> None:
        self.outboxes.take_changes(changes)
        for change in changes:
            before = change.before.value if change.before else "unknown"
            after = change.after.value if change.after else "gone"
            if change.after is PeerState.DEAD and self._is_missed(change.uid):
                self._logger.warning(
                    "peer %s has been away for %.0f s: what it misses from now on is lost, and counted",
                    change.uid,
                    self.config.resume_window,
                )
            else:
                self._logger.debug("peer %s: %s -> %s", change.uid, before, after)
            if change.after is None:
                self._last_failure.pop(change.uid, None)
        if changes:
            self._changed.set()

    def _is_missed(self, uid: str) -> bool:
        """Whether a peer that is given up should be there: it serves clients, and discovery has not seen it go."""
        peer = self.table.get(uid)
        return peer is not None and not peer.is_emitter and not self.table.members.is_delisted(uid)

    def _tell_lapsed(self) -> None:
        for peer in self.table.take_lapsed(monotonic()):
            self._logger.debug("peer %s has lapsed", peer.uid)
            self._tell("that a peer has lapsed", self._owner.on_lapsed, peer)

    def _tell(self, what: str, tell: Callable[[Any], None], about: Any) -> None:
        """Tell the owner something. An error of its own must not take down a link, or the scheduler."""
        try:
            tell(about)
        except Exception:
            self._logger.exception("hearing %s failed", what)

    # ------------------------------------------------------------------ scheduler

    def _schedule(self) -> None:
        while True:
            try:
                self._attend()
            except (Exception, gevent.Timeout):
                self._logger.exception("the scheduler failed because of an error of ours; it goes on")
                gevent.sleep(self._sweep_seconds)

    def _attend(self) -> None:
        now = monotonic()
        if now - self.swept_at >= self._sweep_seconds:
            self.swept_at = now
            self._sweep(now)
        for peer in self.table.due(now):
            self.table.dial_started(peer, now)
            self._dials.spawn(self._dial, peer)
        self._tell_lapsed()
        due = min(self.table.next_due(now) or math.inf, self.table.next_lapse() or math.inf)
        self._kick.wait(min(self._sweep_seconds, max(0.0, due - now)))
        self._kick.clear()

    def _sweep(self, now: float) -> None:
        self.watch.look(list(self._links.values()))
        if self._listener is not None:
            self._listener.revive()
        self._report(self.table.tick(now))
        self.outboxes.tick(now)
        self._tell("of the sweep", self._owner.on_sweep, now)

    # ------------------------------------------------------------------ dialling and accepting

    def _identity(self) -> Identity:
        return Identity(self.uid, self.address, Role.NODE, self.config.channel, self.codec)

    def _protocol(self, **options: Any) -> LinkProtocol:
        return LinkProtocol(
            self._identity(),
            self._keys,
            nonce=secrets.token_bytes(NONCE_BYTES),
            now=monotonic(),
            secret=self._secret,
            known_key=self.table.boot_key,
            heartbeat_interval=self.config.heartbeat_interval,
            heartbeat_timeout=self.config.heartbeat_timeout,
            **options,
        )

    def _nodejs_protocol(self, translator: Translator, target: str | None = None) -> NodejsLinkProtocol:
        return NodejsLinkProtocol(
            self._identity(),
            self.config.tokens,
            translator,
            namespaces=lambda: self._owner.status().get("namespaces", ()),
            now=monotonic(),
            target=target,
            heartbeat_interval=self.config.heartbeat_interval,
            heartbeat_timeout=self.config.heartbeat_timeout,
        )

    def _not_for_nodejs(self, reason: str) -> None:
        self.counters.not_for_nodejs += 1
        now = monotonic()
        if now - self._told_not_for_nodejs > SAME_FAILURE_SECONDS:
            self._told_not_for_nodejs = now
            self._logger.warning("a message cannot go to Node.js peers: %s", reason)

    def _dial(self, peer: Peer) -> None:
        attempt = peer.attempt
        error: Exception | None = None
        try:
            error = self._dial_and_run(peer)
        except (Exception, gevent.Timeout) as exc:
            self._logger.exception("dialling %s failed because of an error of ours", peer.uid)
            error = DialError(repr(exc))
        # Another dial may be under way when the reader of a link that was up comes back late.
        if peer.dialing and peer.attempt == attempt:
            self.table.dial_failed(peer, monotonic(), exhausted=isinstance(error, ExhaustedError))
            self._dial_failed(peer, error)
        self._kick.set()

    def _dial_and_run(self, peer: Peer) -> Exception | None:
        """Dial, and be the reader of the link. Returns why there was none."""
        # A Node peer is sent the token: never whoever has come to the address of a node that needs none.
        require_mesh = self._translator is None or peer.has_proved_itself or bool(peer.member.told_by)
        try:
            transport = dial(
                peer.member.address,
                timeout_seconds=HANDSHAKE_SECONDS,
                require_mesh=require_mesh,
                tls=self.config.tls,
                is_peer=True,
                turns=self._tls_turns.turn(),
            )
        except DialError as exc:
            return exc
        if self._still_wanted(peer):
            return self._run_dialled(peer, transport)
        transport.abort()
        return None

    def _still_wanted(self, peer: Peer) -> bool:
        return not self._stopping and peer.dialing and peer.link is None and self.table.get(peer.uid) is peer

    def _run_dialled(self, peer: Peer, transport: Transport) -> Exception | None:
        protocol: AnyLinkProtocol
        seconds = HANDSHAKE_SECONDS
        if transport.speaks_mesh or self._translator is None:
            protocol = self._protocol(target=peer.uid, session=peer.session.state())
        else:
            protocol, seconds = self._nodejs_protocol(self._translator, peer.uid), HELLO_SECONDS
        self.table.dial_said_hello(peer, protocol)
        link = Link(transport, protocol, self)
        self._dialled[peer.uid] = link
        deadline = gevent.spawn_later(seconds, self._expire, link, seconds)
        try:
            self._run(link)
        finally:
            deadline.kill(block=False)
            if self._dialled.get(peer.uid) is link:
                del self._dialled[peer.uid]
        if link.error is None and link.peer is None and not transport.speaks_mesh:
            # Node peers do not say why they refuse somebody.
            return DialError(f"a Node.js server that does not take us ({link.reason}): is the auth token the same?")
        return link.error

    def _expire(self, link: Link, seconds: float) -> None:
        if link.peer is None:
            link.cut(f"no handshake within {seconds:.0f} s")

    def _accept(self, transport: Transport, ticket: StrangerTicket) -> None:
        protocol: AnyLinkProtocol
        if ticket.speaks_mesh or self._translator is None:
            protocol = self._protocol()
        else:
            protocol = self._nodejs_protocol(self._translator)
        link = Link(transport, protocol, self)
        link.ticket = ticket
        self._run(link)
        if link.peer is None and link.error is not None:
            ticket.refused("no peer", str(link.error))

    def _run(self, link: Link) -> None:
        self._connections.add(link)
        try:
            link.run()
        finally:
            self._connections.discard(link)

    def _dial_failed(self, peer: Peer, error: Exception | None) -> None:
        if error is None or self.table.get(peer.uid) is not peer:
            return
        code = error.code if isinstance(error, HandshakeError) else None
        if code == Refusal.WRONG_PEER and not self.table.members.is_listed(peer.uid):
            # Somebody else lives at its address, and nobody knows another one.
            self._report(self.table.forget(peer.uid))
        elif isinstance(error, ExhaustedError):
            # Once for all peers: it has nothing to do with them.
            self._log_failure("", "cannot dial: this process has no descriptor left")
        elif code != Refusal.DUPLICATE:
            self._log_failure(peer.uid, f"no link to {peer.uid} at {peer.member.address}: {error}")

    def _log_failure(self, uid: str, text: str) -> None:
        now = monotonic()
        last, at = self._last_failure.get(uid, ("", 0.0))
        if text != last or now - at > SAME_FAILURE_SECONDS:
            self._last_failure[uid] = (text, now)
            self._logger.warning("%s", text)

    # ------------------------------------------------------------------ what links say (LinkOwner)

    def link_claimed(self, uid: str) -> None:
        self.table.check_claim(uid)

    def link_proven(self, link: Link, identity: Identity) -> Peer:
        if self._stopping:
            raise HandshakeError(Refusal.BUSY, "this node is about to stop")
        if link.ticket is not None:
            self._check_name(link.transport, identity)
        self._check_proven(link, identity.uid)
        while (old := self._links.get(identity.uid)) is not None:
            self._replace(old)
            # That may have waited: another link of the pair may have come first, and this one may be gone.
            if link.protocol.phase is not Phase.PROVEN:
                raise HandshakeError(Refusal.BUSY, "the link has ended meanwhile")
            self._check_proven(link, identity.uid)
        peer, changes = self.table.link_up(link.protocol, identity, monotonic())
        # Both, before anything that may fail or wait: from here on the link must be taken down when it ends.
        self._links[peer.uid], link.peer = link, peer
        self._digest = None
        # Before anything that may let others run, such as logging: what was kept for a newcomer comes first.
        self._report(changes)
        dialled = self._dialled.pop(peer.uid, link)
        if dialled is not link:
            dialled.cut("the other side was first")
        self._note_lost(peer)
        if link.ticket is not None:
            link.ticket.admitted()
        self.counters.links_up += 1
        self._last_failure.pop(peer.uid, None)
        self._tell("that a peer is linked", self._owner.on_linked, peer)
        self._logger.info("link up: %s (%s)", peer.uid, peer.member.address or "emitter")
        return peer

    def _check_name(self, transport: Transport, identity: Identity) -> None:
        address = None if identity.role is Role.EMITTER else identity.address
        problem = self.config.tls.name_problem(transport.certificate, address)
        if problem:
            raise HandshakeError(Refusal.UNAUTHORIZED, problem)

    def _check_proven(self, link: Link, uid: str) -> None:
        try:
            self.table.check_proven(link.protocol, uid)
        except HandshakeError as exc:
            self.counters.takeovers_refused += exc.code == Refusal.TAKEN
            raise

    def _note_lost(self, peer: Peer) -> None:
        lost = peer.session.sent_lost - peer.sent_lost_reported
        if lost:
            peer.sent_lost_reported += lost
            self.counters.sent_lost += lost
            self._logger.error("%d messages to %s were lost: %s", lost, peer.uid, WHY_LOST)

    def _replace(self, old: Link) -> None:
        old.cut("replaced by a newer link")
        if not old.ended.wait(STUCK_READER_SECONDS):
            if old.is_at_work:
                # Half of a command would be done, and counted as done.
                raise HandshakeError(Refusal.BUSY, "the pair's former link is still at work on a message")
            self._logger.error("%r is stuck: its reader does not come back.\n%s", old, old.stacks())
            self.watch.keep(old)
            old.leave_behind("stuck")
        # It has been, unless something went wrong: who asks again would be told so for ever, without a pause.
        self._take_down(old)

    def link_event(self, link: Link, event: Status | Lost | Left) -> None:
        peer = link.peer
        if peer is None:
            return
        if isinstance(event, Status):
            self._take_status(link, peer, event.facts)
            self._compare(peer, event.facts.get("nodes"))
        elif isinstance(event, Lost):
            self.counters.received_lost += event.count
            # A peer has reason to say so once for each link.
            if link.lines.next(monotonic()) is not None:
                self._logger.error("%d messages from %s were lost: %s", event.count, peer.uid, WHY_LOST)
        elif event.code == Refusal.LEAVING:
            self._report(self.table.left(peer.uid))
            self._tell_lapsed()

    def _take_status(self, link: Link, peer: Peer, facts: dict[str, Any]) -> None:
        """What a heartbeat says of its sender; it may be of any type."""
        if peer.is_emitter:
            return
        clients, namespaces = facts.get("clients"), facts.get("namespaces")
        peer.clients = clients if type(clients) is int else None
        if type(namespaces) is list:
            peer.namespaces = frozenset(namespace for namespace in namespaces if type(namespace) is str)
        peer.hearing.heartbeat()
        self._tell("of a heartbeat", self._owner.on_heartbeat, peer)
        if peer.hearing.judge(monotonic()):
            self._logger.error("deaf to %s: it is read, and no service acts on what it sends; it is relinked", peer.uid)
            link.cut("nothing that came was acted on")

    def link_message(self, peer: Peer, message: ClusterMessage) -> None:
        self.counters.messages_received += 1
        peer.hearing.came()
        if message.type in _GOSSIP:
            peer.hearing.acted()
            self._take_gossip(peer, message)
        else:
            self._owner.on_message(peer, message)

    def link_pauses(self) -> None:
        self._owner.settle()

    def link_relieved(self) -> None:
        self.outboxes.relieved()

    def link_ended(self, link: Link, reason: str) -> None:
        self.counters.spoofed += link.protocol.spoofed
        self.counters.undecodable += link.protocol.undecodable
        peer = self._take_down(link)
        if peer is not None:
            # Last, for a handler of the application's may wait, or fail.
            self._logger.info("link down: %s (%s)", peer.uid, reason)

    def _take_down(self, link: Link) -> Peer | None:
        """Forget a link that has ended; returns whose it was, if it still was."""
        peer = link.peer
        if peer is None or self._forgotten or self._links.get(peer.uid) is not link:
            return None
        del self._links[peer.uid]
        self.counters.links_down += 1
        changes = self.table.link_down(link.protocol, monotonic())
        self._digest = None
        self._changed.set()
        self.outboxes.relieved()
        self._kick.set()
        self._report(changes)
        return peer

    def status(self) -> dict[str, Any]:
        return {**self._owner.status(), "nodes": self._digest_of_links()}

    # ------------------------------------------------------------------ gossip

    def _digest_of_links(self) -> bytes:
        if self._digest is None:
            self._digest = digest([self.uid, *self.table.linked()])
        return self._digest

    def _compare(self, peer: Peer, theirs: object) -> None:
        """A peer told the digest of its links: ask it, if it may know somebody whom we do not."""
        now = monotonic()
        if not peer.is_emitter and self._gossip.asks(peer.uid, theirs, self._digest_of_links(), now):
            self._say(peer, MessageType.NODES_WANTED, nodes_wanted(self.table.sought(now)))

    def _take_gossip(self, peer: Peer, message: ClusterMessage) -> None:
        if peer.is_emitter:
            self.counters.spoofed += 1
        elif message.type is MessageType.NODES_WANTED:
            self._answer(peer, message.data["known"])
        elif self._gossip.takes(peer.uid):
            self._report(self.table.told(peer.uid, message.data["nodes"], monotonic()))
            self._kick.set()

    def _answer(self, peer: Peer, known: bytes) -> None:
        now = monotonic()
        # Nobody has reason to ask more often.
        if now - peer.answered_at >= ASK_SECONDS:
            peer.answered_at = now
            self._say(peer, MessageType.NODES, nodes(lacking(self.table.linked(), known)))

    def _say(self, peer: Peer, kind: MessageType, data: dict[str, Any]) -> None:
        self.outboxes.send(peer.uid, encode(kind, self.uid, "/", data))
