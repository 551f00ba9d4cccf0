"""The table of peers: their sessions, and exactly one link for each pair.

Rules:

- A proven newcomer replaces the link that its peer had: the peer would not have made a new one otherwise.
- When both sides dial at once, the smaller uid's link wins: it refuses the other's as long as its own dial has got as
  far as HELLO. A dial that hangs before that (an address that cannot be reached from this side) refuses nothing. The
  larger uid gives up its own dial when the smaller one's link is proven.
- What a dialer said in HELLO about the session is out of date once another link of the pair has come up. Such a dial is
  given up by the dialer, and refused by a listener that it reaches all the same: otherwise losses would be miscounted.
- From one dial of a peer to the next it is at most `REDIAL_SECONDS`, or as long as a dial takes: however long a network
  was away, it is soon noticed when it heals.
- A uid belongs to the process that was linked under it first: only who shows the same boot key may have
  a link again.
- A peer that is named but not linked yet has a session and an outbox: what is sent while the mesh forms is kept.
- A peer is *present* from the moment a roster names it, or a link to it is up. Who is only told of by another peer may
  have left a moment ago, which nobody would tell us: it has an outbox, and nobody waits for it.
- A peer *lapses* when it leaves or is given up, when its link is down and no roster names it any more (its process has
  died), or when its link is down and nothing has been heard of it for `silence_seconds`. A link that blinks is no
  lapse; a new link makes a lapsed peer present again. Requests wait for present peers, and only their clients count as
  online.
- No method waits, so nothing can come between reading the table and writing it.
"""

from __future__ import annotations

import hmac
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import HandshakeError
from .frames import STREAM_BYTES, Refusal, Role
from .hearing import Hearing
from .link import AnyLinkProtocol, Identity
from .membership import EXHAUSTED_SECONDS, Backoff, Change, Member, Membership, PeerState, dials
from .session import Session

__all__ = ["MAX_DIALS", "MAX_UNNAMED", "REDIAL_SECONDS", "Peer", "PeerTable"]

REDIAL_SECONDS = 4.0
"""The most from the beginning of a dial to the next one. A dial that nobody answers takes five seconds by itself; after
a partition of a minute, the usual 15 s on top of that kept a mesh of ten apart for eight seconds more."""

MAX_DIALS = 256
"""Dials that are under way at a time. Each takes a descriptor, and a roster may name thousands that do not answer."""

MAX_UNNAMED = 1024
"""Peers that no roster names: emitters, nodes that discovery does not know yet, and those that went away inside the
resume window. Whoever has the token can be as many nodes as it likes, and each is sent to and kept for a while."""


@dataclass(slots=True, eq=False)
class Peer:
    """One other node.

    Attributes:
        member: its state and address.
        receives_events: False for an emitter, which serves no clients.
        is_nodejs: it is a Node.js server, as of its last link (see `gevent_mesh.protocol.nodejs`).
        codec: the form of the packets that its clients get; empty until it has been linked.
        link: the link that is up, if any.
        linked_at: when the last link came up.
        boot_key: what it has shown; no other process can take its place. Empty for one that shows nothing.
        dialing: whether a dial of ours is under way.
        dial: the link of that dial, once it has said HELLO.
        dialled_at: when our last dial began.
        attempt: counts the dials.
        dial_not_before: the backoff's word on when to try next.
        clients: clients that it serves, as of its last heartbeat.
        namespaces: Socket.IO namespaces that it serves, as of its last heartbeat.
        present: see the module's rules.
        heard_at: while its link is down: when something was heard last, a roster's first word included.
        sent_lost_reported: how many of the session's losses the log and the counters know of.
        answered_at: when it was named nodes last, because it had asked.
        hearing: whether what it sends gets through to the services of this node.
    """

    uid: str
    member: Member
    session: Session
    backoff: Backoff
    receives_events: bool = True
    is_nodejs: bool = False
    codec: str = ""
    link: AnyLinkProtocol | None = None
    linked_at: float = -math.inf
    boot_key: bytes = b""
    dialing: bool = False
    dial: AnyLinkProtocol | None = None
    dialled_at: float = 0.0
    attempt: int = 0
    dial_not_before: float = 0.0
    clients: int | None = None
    namespaces: frozenset[str] = frozenset()
    present: bool = True
    heard_at: float = -math.inf
    sent_lost_reported: int = 0
    answered_at: float = -math.inf
    hearing: Hearing = field(default_factory=Hearing)

    @property
    def has_been_linked(self) -> bool:
        """Whether it has ever had a link. Until then it is a name that somebody has told."""
        return self.linked_at > -math.inf

    @property
    def has_proved_itself(self) -> bool:
        """Whether it has been linked as a node of ours. Then it never is a Node peer, whoever says so."""
        return self.has_been_linked and not self.is_nodejs

    def answers(self, namespace: str) -> bool:
        """Whether it answers questions about a namespace. A Node peer is silent about those that it does not serve."""
        return not self.is_nodejs or namespace in self.namespaces

    @property
    def is_emitter(self) -> bool:
        """Whether it publishes only. No roster names an emitter."""
        return not self.receives_events


@dataclass(slots=True, eq=False)
class PeerTable:
    """All peers of one node.

    Args:
        uid: our own.
        rng: jitter, and the names of streams.
        resume_window: seconds that a session survives without a link.
        outbox_bytes: the limit of each outbox.
        silence_seconds: how long a peer whose link is down still counts as present.
    """

    uid: str
    rng: random.Random
    resume_window: float = 30.0
    outbox_bytes: int = 16 * 1024 * 1024
    silence_seconds: float = 10.0
    abandoned: int = 0
    """Messages for peers that left, or were given up for good, that nobody will ever acknowledge."""
    members: Membership = field(init=False)
    _peers: dict[str, Peer] = field(default_factory=dict)
    _lapsed: list[Peer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = Membership(self.uid, self.resume_window)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, uid: str) -> Peer | None:
        """The peer with this uid."""
        return self._peers.get(uid)

    def boot_key(self, uid: str) -> bytes:
        """What a peer with this uid has shown when it was linked first."""
        peer = self._peers.get(uid)
        return b"" if peer is None else peer.boot_key

    def alive(self) -> list[Peer]:
        """Peers whose link is up."""
        return [peer for peer in self._peers.values() if peer.link is not None]

    # ------------------------------------------------------------------ membership

    def roster(
        self, source: str, servers: Mapping[str, str], complete: bool, now: float, removed: Iterable[str] = ()
    ) -> list[Change]:
        """Take a discovery server's roster (see `Membership.roster`)."""
        told = [peer for peer in self._peers.values() if peer.member.told_by]
        changes = self._apply(self.members.roster(source, servers, complete, now, removed))
        for peer in told:
            if not peer.member.told_by:
                peer.present, peer.heard_at = True, now
        return changes

    def told(self, teller: str, nodes: Mapping[str, str], now: float) -> list[Change]:
        """A peer named nodes that it is linked to (see `gevent_mesh.protocol.gossip`)."""
        return self._apply(self.members.told(teller, nodes, now))

    def tick(self, now: float) -> list[Change]:
        """Give up peers that have been away for too long."""
        return self._apply(self.members.tick(now))

    def left(self, uid: str) -> list[Change]:
        """A peer said that it leaves: forget its session."""
        return self._apply(self.members.left(uid))

    def forget(self, uid: str) -> list[Change]:
        """A peer is not where it was said to be, and nobody says more."""
        return self._apply(self.members.forget(uid))

    def _apply(self, changes: list[Change]) -> list[Change]:
        for change in changes:
            if change.after is None:
                self._forget(change.uid)
                continue
            if change.before is None:
                self._add(self.members[change.uid])
            elif change.after is PeerState.DEAD:
                self._peers[change.uid].session.abandon()
        return changes

    def _add(self, member: Member) -> None:
        stream = self.rng.getrandbits(8 * STREAM_BYTES).to_bytes(STREAM_BYTES, "big")
        session = Session(stream, limit_bytes=self.outbox_bytes)
        backoff = Backoff(self.rng, cap_seconds=REDIAL_SECONDS)
        present = not member.told_by
        self._peers[member.uid] = Peer(member.uid, member, session, backoff, present=present, heard_at=member.since)

    def _forget(self, uid: str) -> None:
        peer = self._peers.pop(uid, None)
        if peer is not None:
            self.abandoned += peer.session.outbox_messages + peer.session.undelivered
            self._lapse(peer)

    # ------------------------------------------------------------------ presence

    def reachable(self, namespace: str | None = None) -> list[Peer]:
        """The present peers that serve clients: those that a request about a namespace goes to, and waits for."""
        return [
            peer
            for peer in self._peers.values()
            if peer.present and peer.receives_events and (namespace is None or peer.answers(namespace))
        ]

    def serving(self, namespace: str) -> list[Peer]:
        """The present peers whose last heartbeat names a namespace."""
        return [peer for peer in self._peers.values() if peer.present and namespace in peer.namespaces]

    def owed(self) -> list[Peer]:
        """The peers that serve clients and may still get what is sent to them (see `is_owed`)."""
        return [peer for peer in self._peers.values() if peer.receives_events and self.is_owed(peer)]

    def is_owed(self, peer: Peer) -> bool:
        """Whether it is worth waiting until a peer has what is sent to it: present or not, it will be back unless it is
        dead, or not named any more with its link down. Whom no link ever stood to, and no roster names, may be gone."""
        if peer.link is not None:
            return True
        member = peer.member
        return member.state is not PeerState.DEAD and not member.told_by and not self.members.is_delisted(peer.uid)

    def live(self) -> list[Peer]:
        """The peers that serve clients and are linked, or named and not given up: those that should be heard."""
        return [
            peer
            for peer in self._peers.values()
            if peer.receives_events
            and (
                peer.link is not None or (peer.member.state is not PeerState.DEAD and self.members.is_listed(peer.uid))
            )
        ]

    def unreachable(self) -> list[Peer]:
        """Peers that some roster names and that are not present: part of the cluster, and no use to wait for."""
        return [peer for peer in self._peers.values() if not peer.present and self.members.is_listed(peer.uid)]

    def take_lapsed(self, now: float) -> list[Peer]:
        """The peers that have lapsed since the last call (see the module's rules)."""
        for peer in self._peers.values():
            if peer.present and peer.link is None and self._lapses_at(peer) <= now:
                self._lapse(peer)
        lapsed, self._lapsed = self._lapsed, []
        return lapsed

    def next_lapse(self) -> float | None:
        """When `take_lapsed` will next have something to say, if nothing else happens."""
        if self._lapsed:
            return -math.inf
        times = [self._lapses_at(peer) for peer in self._peers.values() if peer.present and peer.link is None]
        return min(times, default=None)

    def _lapses_at(self, peer: Peer) -> float:
        if peer.member.state is PeerState.DEAD or self.members.is_delisted(peer.uid):
            return -math.inf
        return peer.heard_at + self.silence_seconds

    def _lapse(self, peer: Peer) -> None:
        if peer.present:
            peer.present = False
            self._lapsed.append(peer)

    # ------------------------------------------------------------------ gossip

    def linked(self) -> dict[str, str]:
        """Addresses, by uid, of the nodes of our kind that a link is up to."""
        return {
            peer.uid: peer.member.address
            for peer in self._peers.values()
            if peer.link is not None and peer.receives_events and not peer.is_nodejs
        }

    def sought(self, now: float) -> list[str]:
        """The uids of those that we are linked to or try to reach, ourselves included: whom nobody need name to us."""
        wanted = (peer.uid for peer in self._peers.values() if peer.link or self.members.wants_dial(peer.uid, now))
        return [self.uid, *wanted]

    # ------------------------------------------------------------------ dialling

    def due(self, now: float) -> list[Peer]:
        """Peers that we should dial now, those first that have been due for longest."""
        due = [peer for peer in self._peers.values() if self._may_dial(peer, now) and self._dial_at(peer) <= now]
        return sorted(due, key=self._dial_at)[: self._free_dials()]

    def next_due(self, now: float) -> float | None:
        """When `due` will next have something to say, as far as is known now."""
        if not self._free_dials():
            return None
        times = [self._dial_at(peer) for peer in self._peers.values() if self._may_dial(peer, now)]
        return min(times, default=None)

    def _free_dials(self) -> int:
        return max(0, MAX_DIALS - sum(peer.dialing for peer in self._peers.values()))

    def _may_dial(self, peer: Peer, now: float) -> bool:
        return (
            peer.link is None and not peer.dialing and peer.receives_events and self.members.wants_dial(peer.uid, now)
        )

    def _dial_at(self, peer: Peer) -> float:
        return max(self.members.dial_at(peer.uid), peer.dial_not_before)

    def dial_started(self, peer: Peer, now: float) -> None:
        """We are going to connect to this peer's address."""
        peer.dialing, peer.dial, peer.dialled_at = True, None, now
        peer.attempt += 1

    def dial_said_hello(self, peer: Peer, link: AnyLinkProtocol) -> None:
        """The connection stands and our HELLO is on its way."""
        peer.dial = link

    def dial_failed(self, peer: Peer, now: float, *, exhausted: bool = False) -> None:
        """Our dial came to nothing.

        Args:
            exhausted: for a reason that has nothing to do with the peer, and may be gone at any moment.
        """
        peer.dialing, peer.dial = False, None
        pause = EXHAUSTED_SECONDS if exhausted else max(0.0, peer.dialled_at + peer.backoff.next_delay() - now)
        peer.dial_not_before = now + pause

    # ------------------------------------------------------------------ links

    def check_claim(self, uid: str) -> None:
        """A dialer says that it is `uid`.

        Raises:
            HandshakeError: our own dial to it comes first.
        """
        peer = self._peers.get(uid)
        if peer is not None and peer.dial is not None and dials(self.uid, uid):
            raise HandshakeError(Refusal.DUPLICATE, "this pair is being linked from the other side")

    def check_proven(self, link: AnyLinkProtocol, uid: str) -> None:
        """The other side of `link` has proved to be `uid`.

        Raises:
            HandshakeError: another link of the pair comes first, or has come up since the dialer's HELLO; or there are
                too many peers that nobody names; or an
                emitter pretends to be a node; or it says that it is a Node peer, which proves little, and we know it
                for a node of ours; or it is another process than the one that we know under this uid.
        """
        peer = self._peers.get(uid)
        self._check_role(link, peer)
        if peer is not None and peer.boot_key and not hmac.compare_digest(peer.boot_key, link.boot_key):
            raise HandshakeError(Refusal.TAKEN, "this uid belongs to another process")
        if link.is_dialer:
            return
        self.check_claim(uid)
        if peer is not None and peer.linked_at >= link.hello_at:
            raise HandshakeError(Refusal.DUPLICATE, "this pair has been linked meanwhile")
        if peer is None and self._unnamed() >= MAX_UNNAMED:
            raise HandshakeError(Refusal.BUSY, "this node knows too many others that discovery does not name")

    def _unnamed(self) -> int:
        members = (peer.member for peer in self._peers.values())
        return sum(member.state is not PeerState.DEAD and not self.members.is_listed(member.uid) for member in members)

    def _check_role(self, link: AnyLinkProtocol, peer: Peer | None) -> None:
        """An emitter is dialled by nobody, and cannot have the uid of a node that we know of."""
        if link.peer is None:
            return
        if peer is not None and peer.has_proved_itself and link.peer.is_nodejs:
            raise HandshakeError(Refusal.PROTOCOL, "this uid belongs to a node that is no Node.js server")
        is_emitter = link.peer.role is Role.EMITTER
        if is_emitter and (link.is_dialer or (peer is not None and not peer.is_emitter)):
            raise HandshakeError(Refusal.PROTOCOL, "an emitter cannot take the place of a node")

    def link_up(self, link: AnyLinkProtocol, identity: Identity, now: float) -> tuple[Peer, list[Change]]:
        """A proven peer has a link; the former one, if any, has been taken down.

        Raises:
            FrameError: the two sides' ideas of the session cannot both be true.
        """
        changes = self._apply(self.members.link_up(identity.uid, identity.address, now))
        peer = self._peers[identity.uid]
        if peer.link is not None:
            raise RuntimeError(f"{identity.uid} still has a link")
        peer.receives_events, peer.codec = identity.role is Role.NODE, identity.codec
        peer.is_nodejs, peer.boot_key = identity.is_nodejs, link.boot_key
        try:
            link.accept(peer.session, now)
        except Exception:
            self._apply(self.members.link_down(identity.uid, now))
            raise
        peer.link, peer.linked_at, peer.present = link, now, True
        peer.hearing.begin()
        if peer.dial is not None and peer.dial is not link:
            peer.dial.close()
        peer.dialing, peer.dial = False, None
        peer.backoff.reset()
        return peer, changes

    def link_down(self, link: AnyLinkProtocol, now: float) -> list[Change]:
        """A link's reader has ended. Nothing happens if the link was not, or is no longer, the peer's."""
        peer = None if link.peer is None else self._peers.get(link.peer.uid)
        if peer is None or peer.link is not link:
            return []
        peer.link, peer.heard_at = None, link.heard_at
        peer.session.detach()
        peer.dial_not_before = now + peer.backoff.next_delay()
        return self._apply(self.members.link_down(peer.uid, now))
