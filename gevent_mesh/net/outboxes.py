"""Sending: from a published message to the outboxes of peers, at a pace that everybody can keep up with.

Rules:

- A message is one bytes object, shared by all outboxes.
- A loop that publishes without a pause starves nobody: it gives way to the writers now and then, and waits for
  peers that are behind as long as they keep moving (`Patience`): before a message for which there is no room, else
  behind it, so that the other peers have it by then.
- An outbox that would overflow while its link is up belongs to a slow consumer: the link is cut. From then on the
  oldest messages make room, and are counted when the link is back.
- Who can hold back the source of what it publishes waits longer (`wait_for_room`): for peers without a link as well, so
  that nothing makes room.
- What is published before the first roster has come is kept for whoever becomes known until then. Is that roster not
  complete, for its server has just started, then the nodes that it does not name yet come from peers, or are back in a
  moment: for them what is published is kept for another `KEEP_SECONDS`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import gevent
from gevent.event import Event

from ..config import MeshConfig
from ..protocol.flow import Patience
from ..protocol.membership import Change, PeerState
from ..protocol.peers import Peer, PeerTable
from .link import Link
from .pause import at_work, give_way

__all__ = ["Counters", "Outboxes"]

WAY_BYTES = 64 * 1024
"""Each time that so much has been published, the publisher lets the writers run before it goes on."""
RELIEF_SECONDS = 0.05
"""How long a publisher waits for an acknowledgement before it looks again whom to wait for."""

KEEP_SECONDS = 10.0
"""How long old nodes may take to become known behind a roster that is not complete: twice the longest pause between two
tries of a client of discovery. Longer lets a node that is really new hear more of what was said before its time."""

MAX_SERVED = 4096
"""How many uids that were linked while messages are kept are remembered, those of the last links."""

ROOM_SECONDS = 60.0
"""How long one message waits for room at the most, however much the peers keep moving."""


@dataclass(slots=True)
class Counters:
    """What happened since the start. Messages are counted for each peer."""

    links_up: int = 0
    links_down: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    sent_lost: int = 0
    received_lost: int = 0
    slow_consumers: int = 0
    spoofed: int = 0
    undecodable: int = 0
    takeovers_refused: int = 0
    before_roster_dropped: int = 0
    not_for_nodejs: int = 0
    slow_clients: int = 0
    refused_clients: int = 0
    events_spared: int = 0


class Outboxes:
    """The outboxes of all peers of one node.

    Args:
        table: the peers, with their sessions.
        links: links that are up, by uid; kept by the mesh.
        config: the limit of an outbox, and whether there is a roster to wait for.
        counters: where to count.
        logger: where to report.

    Attributes:
        awaits_roster: no discovery server has told its roster yet, so that most peers are not known.
    """

    def __init__(
        self,
        table: PeerTable,
        links: Mapping[str, Link],
        config: MeshConfig,
        counters: Counters,
        logger: logging.Logger,
    ) -> None:
        self._table = table
        self._links = links
        self._limit_bytes = config.outbox_bytes
        self._silence_seconds = config.heartbeat_timeout
        self._half_bytes = config.outbox_bytes // 2
        self._way_bytes = min(WAY_BYTES, config.outbox_bytes // 4)
        # Published since the writers were let run: one whose socket is full has no use of it at every message.
        self._since_way_bytes = 0
        self._counters = counters
        self._logger = logger
        self._patience: dict[str, Patience] = {}
        # What a peer without room had taken when it was seen to move last, and when that was.
        self._moved: dict[str, tuple[int, float]] = {}
        self._relief = Event()
        self._is_waited_for = False
        self.awaits_roster = bool(config.discovery)
        self._kept: deque[bytes] | None = deque() if config.discovery else None
        self._kept_bytes = 0
        self._served: deque[str] = deque(maxlen=MAX_SERVED)
        self._dropped = 0
        self._keeps_until = math.inf

    # ------------------------------------------------------------------ publishing

    def publish(self, peers: Sequence[Peer], message: bytes, *, at_once: bool = False) -> None:
        """Put one encoded message into the outboxes of some peers. May let other greenlets run, and wait.

        Args:
            at_once: somebody has waited already (see `keep_pace` and `wait_for_room`).
        """
        if not at_once:
            self.keep_pace(peers, len(message))
        unsent = 0
        for peer in peers:
            unsent = self._append(peer, message) or unsent
        # Not only where so much waits for one: a loop may go round many peers.
        self._since_way_bytes += len(message) if unsent else 0
        if self._since_way_bytes > self._way_bytes and gevent.getcurrent() is not gevent.get_hub():
            self._since_way_bytes = 0
            give_way()
        if not at_once:
            self.keep_pace(peers)

    def send(self, uid: str, message: bytes) -> bool:
        """Put a message into one peer's outbox. Never waits.

        Returns:
            False when there is no such peer.
        """
        peer = self._table.get(uid)
        if peer is None:
            return False
        self._append(peer, message)
        return True

    def _append(self, peer: Peer, message: bytes) -> int:
        """Append, and return how many bytes wait for the link to take them."""
        session = peer.session
        link = self._links.get(peer.uid)
        if link is not None and session.is_crowded(len(message)):
            self._cut_slow(peer, link)
        unsent = session.append(message)
        self._counters.messages_sent += 1
        if link is not None and unsent:
            link.wake()
        return unsent

    def _cut_slow(self, peer: Peer, link: Link) -> None:
        self._counters.slow_consumers += 1
        text = "%s is too slow: %d bytes wait for it; its connection is cut and will be resumed"
        # Who sends must not wait, and the application's logging may.
        gevent.spawn(self._logger.warning, text, peer.uid, peer.session.outbox_bytes)
        link.cut("slow consumer")
        # The reader takes the rest down; the outbox must be free to drop its oldest messages now.
        peer.session.detach()

    # ------------------------------------------------------------------ pace

    def keep_pace(self, peers: Sequence[Peer], room: int = 0) -> None:
        """Wait for those of these peers that are behind and keep moving.

        Args:
            room: bytes that are to fit into their outboxes; half of all, if left out.
        """
        room = room or self._half_bytes
        if _is_any_crowded(peers, room):
            self._wait_for_relief_of(peers, room)

    def is_behind(self, peers: Sequence[Peer], size: int) -> bool:
        """Whether `keep_pace` would wait before a message of this size."""
        if not _is_any_crowded(peers, size) or gevent.getcurrent() is gevent.get_hub():
            return False
        return bool(self._worth_waiting_for(peers, size))

    def wait_for_room(self, size: int) -> None:
        """Wait until a message fits into the outboxes of all peers that may still get it.

        Not for those that have taken nothing for `heartbeat_timeout`: their oldest messages make room, as always. What
        has been seen holds until the caller lets others run.
        """
        self.keep_pace(self._table.owed(), max(size, self._half_bytes))
        ends_at = monotonic() + ROOM_SECONDS
        while (now := monotonic()) < ends_at and self._may_any_get_room(size, now):
            self._wait_for_relief(RELIEF_SECONDS)

    def _may_any_get_room(self, size: int, now: float) -> bool:
        # Each of them is looked at: they stand still since they were first seen to.
        return any([self._may_get_room(peer, size, now) for peer in self._table.owed()])  # noqa: C419

    def _may_get_room(self, peer: Peer, size: int, now: float) -> bool:
        """Whether this peer has no room, and has not stood still for too long."""
        if peer.session.fits(size):
            return False
        link = self._links.get(peer.uid)
        taken = peer.session.acked_bytes + (0 if link is None else link.transport.delivered_bytes)
        last, since = self._moved.get(peer.uid, (-1, now))
        if taken != last:
            since = now
        self._moved[peer.uid] = (taken, since)
        return now - since < self._silence_seconds

    def _wait_for_relief_of(self, peers: Sequence[Peer], room: int) -> None:
        if gevent.getcurrent() is gevent.get_hub():
            return
        give_way()
        while waited_for := self._worth_waiting_for(peers, room):
            since = monotonic()
            self._wait_for_relief(RELIEF_SECONDS)
            now = monotonic()
            for patience in waited_for:
                patience.spend(since, now)

    def _worth_waiting_for(self, peers: Sequence[Peer], room: int) -> list[Patience]:
        """The patience with each peer that has not so much room and keeps moving."""
        found = []
        for peer in peers:
            link = self._links.get(peer.uid)
            if link is not None and peer.session.is_crowded(room):
                patience = self._patience.setdefault(peer.uid, Patience())
                # Not only what is acknowledged counts: a large message is when all of it is there.
                patience.earn(peer.session.acked_bytes + link.transport.delivered_bytes)
                if patience.is_left:
                    found.append(patience)
        return found

    def flush(self, timeout: float) -> bool:
        """Wait until all that was published is acknowledged, by peers that are there or on their way (see
        `PeerTable.is_owed`).

        Returns:
            Whether it is.
        """
        deadline = monotonic() + timeout
        while (self.awaits_roster and self._kept) or any(self._is_owed(peer) for peer in self._table):
            left = deadline - monotonic()
            if left <= 0:
                return False
            self._wait_for_relief(min(left, RELIEF_SECONDS))
        return True

    def _is_owed(self, peer: Peer) -> bool:
        return peer.session.has_outbox and self._table.is_owed(peer)

    def _wait_for_relief(self, seconds: float) -> None:
        self._is_waited_for = True
        at_work()
        self._relief.clear()
        self._relief.wait(seconds)

    def relieved(self) -> None:
        """A peer has acknowledged something, or its link is gone. Called often: cheap while nobody waits."""
        if self._is_waited_for:
            self._is_waited_for = False
            self._relief.set()

    # ------------------------------------------------------------------ while the mesh forms

    def keep_for_newcomers(self, message: bytes) -> None:
        """Keep a message for peers that become known while the mesh forms, the oldest first to go."""
        kept = self._kept
        if kept is None:
            return
        kept.append(message)
        self._kept_bytes += len(message)
        while self._kept_bytes > self._limit_bytes:
            self._kept_bytes -= len(kept.popleft())
            if self.awaits_roster:
                self._dropped += 1
                self._counters.before_roster_dropped += 1

    def take_changes(self, changes: Iterable[Change]) -> None:
        """Peers have come or gone: newcomers get what was kept for them, before anything else is sent to them."""
        for change in changes:
            peer = self._table.get(change.uid)
            if change.after in (None, PeerState.ALIVE):
                self._moved.pop(change.uid, None)
                if peer is None or not peer.session.overflowed:
                    # Gone, or back: patience begins anew. Whoever was too slow has to earn it.
                    self._patience.pop(change.uid, None)
            if change.before is None and peer is not None and peer.receives_events:
                self._give_kept(peer)
            if change.after is PeerState.ALIVE and self._kept is not None:
                self._served.append(change.uid)

    def _give_kept(self, peer: Peer) -> None:
        # Who was linked, and was forgotten since, has had it.
        if peer.uid not in self._served:
            for message in self._kept or ():
                self._append(peer, message)

    def roster_came(self, complete: bool, now: float) -> None:
        """A roster has been taken. When it was complete, whoever comes from now on is new to the mesh."""
        if self._dropped:
            self._logger.error(
                "%d messages that were emitted before discovery answered are lost: more than the outbox holds",
                self._dropped,
            )
            self._dropped = 0
        self.awaits_roster = False
        self._keeps_until = min(self._keeps_until, now if complete else now + KEEP_SECONDS)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Keep nothing for longer than it is needed."""
        if now >= self._keeps_until:
            self._kept = None
            self._served.clear()


def _is_any_crowded(peers: Sequence[Peer], room: int) -> bool:
    """Whether one of these peers has not so much room, and might be waited for."""
    for peer in peers:  # noqa: SIM110 (a generator costs more than all of the calls)
        if peer.session.is_crowded(room):
            return True
    return False
