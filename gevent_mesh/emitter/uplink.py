"""The network side of an emitter: finds a node, keeps a link to it, and takes another one when it goes.

Rules:

- Everything here runs in one thread, the emitter's own.
- One link at a time. When a connection breaks, the node that it was to is tried first, for it may have answers for us;
  one that says goodbye, is silent or refuses comes last, after a while of its own (full-jitter backoff).
- Each link has a new session. What is not known to be everywhere is sent again over it, whatever the session before it
  had delivered: nodes drop what they have had (`gevent_mesh.protocol.relay`).
"""

from __future__ import annotations

import hmac
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..config import MeshConfig
from ..errors import DialError, HandshakeError
from ..net.dialer import dial
from ..net.discovery import DiscoveryClient
from ..net.link import Link
from ..net.transport import Transport
from ..protocol import messages
from ..protocol.discovery import SECRET_BYTES
from ..protocol.frames import NONCE_BYTES, STREAM_BYTES, Refusal, Role, is_uid
from ..protocol.handshake import Keys
from ..protocol.link import Identity, Left, LinkProtocol, Lost, Status
from ..protocol.membership import Backoff, Member, PeerState
from ..protocol.messages import ClusterMessage, MessageType
from ..protocol.peers import Peer
from ..protocol.session import Session

__all__ = ["Candidates", "Store", "Uplink"]

HANDSHAKE_SECONDS = 5.0
HEALTHY_SECONDS = 1.0
"""A node whose link did not last for as long as this is not tried again at once."""
MAX_BOOT_KEYS = 1024
"""Nodes whose boot keys are kept, those of the last ones that it met."""
SAME_FAILURE_SECONDS = 60.0
"""A node that keeps failing in the same way is logged this often."""


class Store(Protocol):
    """Where an uplink gets what it sends, and leaves what it hears. Nothing here waits."""

    def rewind(self) -> None:
        """There is a new link: `take` begins with the oldest message again."""

    def take(self) -> list[bytes]:
        """The encoded messages that this link has not been given, in order."""

    def relayed(self, upto: int, refused: Iterable[int]) -> None:
        """Everything up to this number is everywhere, but for what was refused."""

    def told(self, data: dict[str, Any]) -> None:
        """An answer to one of our requests (the data of a TOLD)."""

    def ask(self, send: Callable[[dict[str, Any]], bool]) -> None:
        """Send the questions whose turn it is: the data of ASKs, for as long as `send` says that there is room."""

    def replied(self, data: dict[str, Any]) -> None:
        """A piece of the answer to a question (the data of a REPLY)."""

    def unlinked(self) -> None:
        """The link is down."""


class Candidates:
    """Which node to try next. Pure.

    Args:
        rng: chooses, and spreads what many emitters do at once.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rosters: dict[str, dict[str, str]] = {}
        self._failures: dict[str, tuple[Backoff, float]] = {}
        self._preferred = ""

    def roster(self, source: str, servers: dict[str, str], complete: bool, removed: Sequence[str] = ()) -> None:
        """A discovery server told its roster; the union of all counts (see `Membership.roster`)."""
        known = {uid: address for uid, address in self._rosters.get(source, {}).items() if uid not in removed}
        # Others than ours have names of another form; what is not a node of this kind cannot be linked.
        nodes = {uid: address for uid, address in servers.items() if is_uid(uid) and address}
        self._rosters[source] = nodes if complete else {**known, **nodes}
        named = self._union()
        self._failures = {uid: failure for uid, failure in self._failures.items() if uid in named}

    def linked(self, uid: str) -> None:
        """A link to this node is up."""
        self._failures.pop(uid, None)
        self._preferred = uid

    def failed(self, uid: str, now: float) -> None:
        """This node cannot be had, or is not to be had again at once."""
        backoff, _ = self._failures.get(uid, (Backoff(self._rng), 0.0))
        self._failures[uid] = (backoff, now + backoff.next_delay())

    def next(self, now: float) -> tuple[str, str] | None:
        """The uid and address of the node to try, if one is due."""
        due = {uid: address for uid, address in self._union().items() if self._due_at(uid) <= now}
        if self._preferred in due and self._preferred not in self._failures:
            return self._preferred, due[self._preferred]
        fresh = sorted(uid for uid in due if uid not in self._failures) or sorted(due)
        if not fresh:
            return None
        uid = self._rng.choice(fresh)
        return uid, due[uid]

    def next_due(self) -> float | None:
        """When `next` will have something to say, as far as is known now."""
        return min((self._due_at(uid) for uid in self._union()), default=None)

    def _due_at(self, uid: str) -> float:
        failure = self._failures.get(uid)
        return 0.0 if failure is None else failure[1]

    def _union(self) -> dict[str, str]:
        return {uid: address for roster in self._rosters.values() for uid, address in roster.items()}


class Uplink:
    """The link of one emitter. Is a `LinkOwner`.

    Args:
        config: valid options.
        uid: the emitter's.
        store: what is sent, and where answers go.
        logger: where to report.

    Attributes:
        link: the link that is up, if any.
        last_error: why there is none, for people; empty before the first try.
    """

    def __init__(self, config: MeshConfig, uid: str, *, store: Store, logger: logging.Logger) -> None:
        self.link: Link | None = None
        self.last_error = ""
        self._config = config
        self._uid = uid
        self._store = store
        self._logger = logger
        self._keys = Keys(config.tokens)
        self._candidates = Candidates(random.Random(secrets.randbits(64)))
        self._changed = Event()
        self._current: Link | None = None
        self._session: Session | None = None
        self._stopping = False
        self._told_failure: dict[str, tuple[str, float]] = {}
        self._greenlet: gevent.Greenlet | None = None
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._boot_keys: dict[str, bytes] = {}
        self._discovery = [
            DiscoveryClient(
                url,
                uid=uid,
                secret=self._secret,
                role="emitter",
                tokens=config.tokens,
                address_for=lambda _host: "",
                on_roster=self._take_roster,
                tls=config.tls,
                serve=_leave_it_to_nodes if config.embedded_port else None,
            )
            for url in config.discovery
        ]

    def start(self) -> None:
        """Begin; returns at once."""
        for client in self._discovery:
            client.start()
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Say goodbye to everybody. Takes a second or two at most."""
        self._stopping = True
        if self._current is not None:
            self._current.leave(Refusal.LEAVING, "leaving")
        gevent.joinall([gevent.spawn(client.stop) for client in self._discovery])
        if self._greenlet is not None:
            self._greenlet.kill()

    def pump(self) -> None:
        """Hand what is new to the link. Never waits."""
        link, session = self.link, self._session
        if link is None or session is None:
            return
        for message in self._store.take():
            session.append(message)
        # Behind all that was published before: a question finds it done.
        self._store.ask(self._send_question)
        link.wake()

    def _send_question(self, data: dict[str, Any]) -> bool:
        session = self._session
        message = messages.encode_anywhere(MessageType.ASK, self._uid, "/", data)
        if session is None or not session.fits(len(message)):
            return False
        # Whoever asks may have published since `pump` began.
        for published in self._store.take():
            session.append(published)
        session.append(message)
        return True

    def transports(self) -> list[Transport]:
        """The connections that are open, for a forked child to give up its copies of."""
        links = [] if self._current is None else [self._current.transport]
        return links + [transport for client in self._discovery if (transport := client.transport) is not None]

    @property
    def trouble(self) -> str:
        """Why there is no link, for people; empty while there is one."""
        if self.link is not None:
            return ""
        unregistered = [f"discovery {client.url}: {client.last_error or 'no answer'}"
                        for client in self._discovery if not client.connected]  # fmt: skip
        if self.last_error or not unregistered:
            return self.last_error or "discovery knows no node"
        return "; ".join(unregistered)

    # ------------------------------------------------------------------ finding a node

    def _take_roster(self, source: str, servers: dict[str, str], complete: bool, removed: tuple[str, ...]) -> None:
        self._candidates.roster(source, servers, complete, removed)
        self._changed.set()

    def _run(self) -> None:
        while not self._stopping:
            now = monotonic()
            found = self._candidates.next(now)
            if found is not None:
                self._try_safely(*found)
                continue
            due = self._candidates.next_due()
            self._changed.wait(None if due is None else max(0.0, due - now))
            self._changed.clear()

    def _try_safely(self, uid: str, address: str) -> None:
        try:
            self._try(uid, address)
        except Exception as exc:
            self._logger.exception("the link to %s failed because of an error of ours; the emitter goes on", uid)
            self._failed(uid, address, repr(exc))

    def _try(self, uid: str, address: str) -> None:
        """The whole life of one link."""
        try:
            transport = dial(address, timeout_seconds=HANDSHAKE_SECONDS, tls=self._config.tls, is_peer=True)
        except DialError as exc:
            self._failed(uid, address, str(exc))
            return
        session = Session(secrets.token_bytes(STREAM_BYTES), limit_bytes=2 * self._config.outbox_bytes)
        protocol = LinkProtocol(
            Identity(self._uid, "", Role.EMITTER, self._config.channel),
            self._keys,
            nonce=secrets.token_bytes(NONCE_BYTES),
            now=monotonic(),
            target=uid,
            session=session.state(),
            secret=self._secret,
            known_key=self._known_key,
            heartbeat_interval=self._config.heartbeat_interval,
            heartbeat_timeout=self._config.heartbeat_timeout,
        )
        link = self._current = Link(transport, protocol, self)
        self._session = session
        deadline = gevent.spawn_later(HANDSHAKE_SECONDS, self._expire, link)
        try:
            link.run()
        finally:
            deadline.kill(block=False)
            self._current = None
        if link.peer is None:
            self._failed(uid, address, str(link.error or "the connection was closed"))

    def _known_key(self, uid: str) -> bytes:
        return self._boot_keys.get(uid, b"")

    def _check_boot_key(self, uid: str, boot_key: bytes) -> None:
        """A uid belongs to the process that was linked under it first, as for nodes."""
        known = self._known_key(uid)
        if known and not hmac.compare_digest(known, boot_key):
            raise HandshakeError(Refusal.TAKEN, "this uid belongs to another process")
        self._boot_keys[uid] = boot_key
        if len(self._boot_keys) > MAX_BOOT_KEYS:
            del self._boot_keys[next(iter(self._boot_keys))]

    def _expire(self, link: Link) -> None:
        if link.peer is None:
            link.cut(f"no handshake within {HANDSHAKE_SECONDS:.0f} s")

    def _failed(self, uid: str, address: str, text: str) -> None:
        now = monotonic()
        self._candidates.failed(uid, now)
        self.last_error = text
        last, at = self._told_failure.get(uid, ("", 0.0))
        if text != last or now - at > SAME_FAILURE_SECONDS:
            self._told_failure = {one: told for one, told in self._told_failure.items() if now - told[1] < 60.0}
            self._told_failure[uid] = (text, now)
            self._logger.warning("no link to %s at %s: %s", uid, address, text)

    # ------------------------------------------------------------------ what the link says (LinkOwner)

    def link_claimed(self, uid: str) -> None:
        raise HandshakeError(Refusal.PROTOCOL, f"{uid} dials an emitter")

    def link_proven(self, link: Link, identity: Identity) -> Peer:
        session = self._session
        if identity.role is not Role.NODE or session is None:
            raise HandshakeError(Refusal.PROTOCOL, "it is no node")
        self._check_boot_key(identity.uid, link.protocol.boot_key)
        now = monotonic()
        member = Member(identity.uid, identity.address, PeerState.ALIVE, now)
        peer = Peer(identity.uid, member, session, Backoff(random.Random(0)), linked_at=now)
        link.protocol.accept(session, now)
        self._store.rewind()
        self._candidates.linked(identity.uid)
        self.link, link.peer, self.last_error = link, peer, ""
        self.pump()
        self._logger.info("linked to node %s (%s)", identity.uid, identity.address)
        return peer

    def link_event(self, link: Link, event: Status | Lost | Left) -> None:
        if isinstance(event, Left) and link.peer is not None:
            self._candidates.failed(link.peer.uid, monotonic())

    def link_message(self, _peer: Peer, message: ClusterMessage) -> None:
        if message.type is MessageType.RELAYED:
            self._store.relayed(message.data["upto"], message.data.get("refused", ()))
        elif message.type is MessageType.TOLD:
            self._store.told(message.data)
        elif message.type is MessageType.REPLY:
            self._store.replied(message.data)
            # Another one may have its turn now.
            self.pump()

    def link_pauses(self) -> None:
        pass

    def link_relieved(self) -> None:
        """Acknowledgements mean little here: what counts is RELAYED."""

    def link_ended(self, link: Link, reason: str) -> None:
        if self.link is not link or link.peer is None:
            return
        self.link = None
        self._store.unlinked()
        self.last_error = f"the link to {link.peer.uid} is down: {reason}"
        self._logger.info("link down: %s (%s)", link.peer.uid, reason)
        now = monotonic()
        is_silent = now - link.protocol.heard_at >= self._config.heartbeat_timeout
        if is_silent or now - link.peer.linked_at < HEALTHY_SECONDS:
            self._candidates.failed(link.peer.uid, now)

    def status(self) -> dict[str, Any]:
        return {}


def _leave_it_to_nodes() -> str:
    """Why an emitter does not serve discovery."""
    return (
        "nodes of this host would serve there (see embedded_port); MESH_DISCOVERY names a discovery service elsewhere"
    )
