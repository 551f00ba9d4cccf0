"""The table of peers: one link for each pair, whoever dials when."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gevent_mesh.errors import FrameError, HandshakeError, RemoteError
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import NONCE_BYTES, Refusal, Role, SessionState
from gevent_mesh.protocol.link import Claimed, Identity, LinkProtocol, Phase, Proven
from gevent_mesh.protocol.membership import (
    FALLBACK_SECONDS,
    FORGET_SECONDS,
    STOP_DIALLING_SECONDS,
    Change,
    PeerState,
)
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.peers import MAX_DIALS, MAX_UNNAMED, REDIAL_SECONDS, Peer, PeerTable
from tests.protocol.support import HIGH, KEYS, LOW, OTHER

ADDRESS = "ws://other:1"


def peer_of(table: PeerTable, uid: str) -> Peer:
    """A peer that must be there."""
    peer = table.get(uid)
    assert peer is not None
    return peer


def named(our_uid: str = LOW, *, uid: str = OTHER, now: float = 0.0, **options: Any) -> tuple[PeerTable, Peer]:
    """A table with one peer that discovery has named."""
    table = PeerTable(our_uid, random.Random(1), **options)
    table.roster("d", {uid: ADDRESS}, True, now)
    return table, peer_of(table, uid)


class StubLink(LinkProtocol):
    """A link whose handshake is over: only the table's part is looked at."""

    def __init__(self, our_uid: str, uid: str, now: float, *, is_dialer: bool = False) -> None:
        state = SessionState(bytes(8), b"", 0) if is_dialer else None
        super().__init__(Identity(our_uid), KEYS, nonce=bytes(NONCE_BYTES), now=now, target=uid, session=state)
        self.peer = Identity(uid, ADDRESS)
        self.phase = Phase.PROVEN
        self._proofs = ()
        self._their_state = SessionState(b"st" + uid[-6:].encode(), b"", 0)

    def _welcome_proof(self, ours: SessionState, claim: bytes) -> bytes:  # noqa: ARG002
        return bytes(32)


def bring_up(table: PeerTable, uid: str, now: float, *, is_dialer: bool = False, **identity: Any) -> StubLink:
    """A proven peer gets a link."""
    link = StubLink(table.uid, uid, now, is_dialer=is_dialer)
    table.check_proven(link, uid)
    table.link_up(link, Identity(uid, **({"address": ADDRESS} | identity)), now)
    return link


# ---------------------------------------------------------------------- both dial at once


class Node:
    """A node that is driven by hand: a table and the ends of its connections."""

    def __init__(self, uid: str, clock: itertools.count[int]) -> None:
        self.uid = uid
        self.clock = clock
        self.table = PeerTable(uid, random.Random(uid))
        self.ends: list[End] = []
        self.received: list[int] = []

    def protocol(self, **options: Any) -> LinkProtocol:
        """A link of ours."""
        us, nonce = Identity(self.uid, f"ws://{self.uid}:1"), bytes([len(self.ends)]) * NONCE_BYTES
        return LinkProtocol(us, KEYS, nonce=nonce, now=next(self.clock), **options)

    def dial(self, other: Node) -> End:
        """Connect to another node and say HELLO."""
        peer = peer_of(self.table, other.uid)
        self.table.dial_started(peer, next(self.clock))
        protocol = self.protocol(target=other.uid, session=peer.session.state())
        self.table.dial_said_hello(peer, protocol)
        ours, theirs = End(self, protocol), End(other, other.protocol())
        ours.other, theirs.other = theirs, ours
        ours.flush()
        return ours


class End:
    """One end of a connection."""

    other: End

    def __init__(self, node: Node, protocol: LinkProtocol) -> None:
        self.node = node
        self.protocol = protocol
        self.inbox: deque[bytes | None] = deque()
        self.open = True
        node.ends.append(self)

    def flush(self) -> None:
        """Write."""
        if self.open and self.protocol.has_outgoing:
            self.other.inbox.append(self.protocol.outgoing())

    def deliver(self) -> None:
        """Read once."""
        data = self.inbox.popleft()
        if not self.open:
            return
        if data is None:
            self.end()
            return
        try:
            for event in self.protocol.receive(data, next(self.node.clock)):
                self._event(event)
        except RemoteError:
            self.flush()
            self.end()
            return
        self.flush()
        if self.protocol.phase is Phase.CLOSED:
            self.end()

    def _event(self, event: object) -> None:
        table = self.node.table
        try:
            if isinstance(event, Claimed):
                table.check_claim(event.uid)
            elif isinstance(event, Proven):
                table.check_proven(self.protocol, event.peer.uid)
                self._proven(event.peer)
            elif isinstance(event, ClusterMessage):
                self.node.received.append(event.data["packet"][1])
        except HandshakeError as exc:
            self.protocol.refuse(Refusal(exc.code), exc.reason)

    def _proven(self, identity: Identity) -> None:
        node, peer = self.node, self.node.table.get(identity.uid)
        old = None if peer is None else peer.link
        for end in list(node.ends):
            if old is not None and end.protocol is old:
                end.end()
        node.table.link_up(self.protocol, identity, next(node.clock))
        for end in list(node.ends):
            if end.open and end.protocol.phase is Phase.CLOSED:
                end.end()

    def end(self) -> None:
        """The connection is over on this side; the other hears of it behind what was written."""
        if not self.open:
            return
        self.open = False
        self.protocol.close()
        self.other.inbox.append(None)
        now = next(self.node.clock)
        self.node.table.link_down(self.protocol, now)
        for peer in self.node.table:
            if peer.dial is self.protocol:
                self.node.table.dial_failed(peer, now)


def two_nodes() -> tuple[Node, Node]:
    """Two nodes that know of each other."""
    clock = itertools.count(1)
    a, b = Node(LOW, clock), Node(HIGH, clock)
    roster = {node.uid: f"ws://{node.uid}:1" for node in (a, b)}
    for node in (a, b):
        node.table.roster("d", roster, True, 0.0)
    return a, b


def play(nodes: tuple[Node, Node], choices: list[int]) -> list[int]:
    """Deliver until nothing is under way, in the order that the choices say. Returns how many choices there were."""
    widths: list[int] = []
    for step in itertools.count():
        waiting = [end for node in nodes for end in node.ends if end.inbox]
        if not waiting:
            return widths
        widths.append(len(waiting))
        waiting[choices[step] if step < len(choices) else 0].deliver()
    raise AssertionError("unreachable")


def every_order(setup: Callable[[], tuple[Node, Node]]) -> Iterator[tuple[Node, Node]]:
    """Play every order in which the bytes can arrive."""
    choices: list[int] = []
    while True:
        nodes = setup()
        widths = play(nodes, choices)
        yield nodes
        choices += [0] * (len(widths) - len(choices))
        while choices and choices[-1] + 1 >= widths[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


def assert_one_link(a: Node, b: Node) -> None:
    """Exactly one connection is left, and both tables hold its ends."""
    (ours,) = [end for end in a.ends if end.open]
    (theirs,) = [end for end in b.ends if end.open]
    assert ours.other is theirs
    for node, end, other in ((a, ours, b), (b, theirs, a)):
        peer = peer_of(node.table, other.uid)
        assert peer.link is end.protocol
        assert peer.link.phase is Phase.UP
        assert peer.session.attached
        assert not peer.dialing
        assert peer.dial is None
        assert peer.member.state is PeerState.ALIVE


def test_both_dial_at_once_and_exactly_one_link_survives_in_every_order() -> None:
    def setup() -> tuple[Node, Node]:
        a, b = two_nodes()
        for node, other in ((a, b), (b, a)):
            peer = peer_of(node.table, other.uid)
            message = {"packet": ["event", 1]}
            peer.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, node.uid, "/", message))
            node.dial(other)
        return a, b

    orders = 0
    for a, b in every_order(setup):
        orders += 1
        assert_one_link(a, b)
        (survivor,) = [end for end in a.ends if end.open]
        assert survivor.protocol.is_dialer, "the smaller uid's link wins"
        assert (a.received, b.received) == ([1], [1])
        assert peer_of(a.table, HIGH).session.repeats == 0
    assert orders > 50


def test_a_redial_while_the_old_link_hangs_replaces_it_in_every_order() -> None:
    def setup() -> tuple[Node, Node]:
        a, b = two_nodes()
        old = a.dial(b)
        play((a, b), [])
        # The dialer has lost the link and B has not heard of it; A publishes, and dials again.
        old.open = False
        old.protocol.close()
        a.table.link_down(old.protocol, next(a.clock))
        peer = peer_of(a.table, HIGH)
        message = {"packet": ["event", 1]}
        peer.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, a.uid, "/", message))
        a.dial(b)
        return a, b

    for a, b in every_order(setup):
        assert_one_link(a, b)
        assert b.received == [1]
        assert peer_of(b.table, LOW).session.resumed == 1


def test_the_larger_uids_dial_is_refused_while_the_smaller_ones_is_under_way() -> None:
    a, b = two_nodes()
    a.dial(b)
    b.dial(a)
    listening = a.ends[1]
    listening.deliver()
    assert listening.protocol.phase is Phase.CLOSED
    assert not listening.open


# ---------------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("our_uid", "said_hello", "refused"),
    [
        (LOW, True, True),
        (LOW, False, False),  # It hangs before HELLO: an address that cannot be reached refuses nothing.
        (HIGH, True, False),
        (HIGH, False, False),
    ],
)
def test_only_the_smaller_uids_hello_refuses_the_others_dial(our_uid: str, said_hello: bool, refused: bool) -> None:
    table, peer = named(our_uid)
    table.dial_started(peer, 1.0)
    if said_hello:
        table.dial_said_hello(peer, StubLink(our_uid, OTHER, 1.0, is_dialer=True))
    incoming = StubLink(our_uid, OTHER, 2.0)
    checks: list[Callable[[], None]] = [
        lambda: table.check_claim(OTHER),
        lambda: table.check_proven(incoming, OTHER),
    ]
    for check in checks:
        if refused:
            with pytest.raises(HandshakeError) as caught:
                check()
            assert caught.value.code == Refusal.DUPLICATE
        else:
            check()


def test_a_stranger_may_claim_to_be_new() -> None:
    table, _ = named()
    table.check_claim(HIGH)
    table.check_proven(StubLink(LOW, HIGH, 1.0), HIGH)
    assert table.get(HIGH) is None or table.alive() == []


def test_a_dial_that_failed_refuses_nothing_any_more() -> None:
    table, peer = named()
    table.dial_started(peer, 1.0)
    table.dial_said_hello(peer, StubLink(LOW, OTHER, 1.0, is_dialer=True))
    table.dial_failed(peer, 2.0)
    table.check_claim(OTHER)


@pytest.mark.parametrize(("hello_at", "refused"), [(4.0, True), (5.0, True), (5.1, False)])
def test_a_hello_from_before_the_last_link_is_refused(hello_at: float, refused: bool) -> None:
    table, _ = named()
    incoming = StubLink(LOW, OTHER, hello_at)
    bring_up(table, OTHER, 5.0, is_dialer=True)
    if refused:
        with pytest.raises(HandshakeError, match="meanwhile"):
            table.check_proven(incoming, OTHER)
    else:
        table.check_proven(incoming, OTHER)


def test_it_is_refused_even_if_that_link_is_down_again() -> None:
    table, _ = named()
    incoming = StubLink(LOW, OTHER, 4.0)
    link = bring_up(table, OTHER, 5.0)
    table.link_down(link, 6.0)
    with pytest.raises(HandshakeError):
        table.check_proven(incoming, OTHER)


def test_our_own_dial_is_never_refused_by_us() -> None:
    table, peer = named()
    table.dial_started(peer, 1.0)
    dial = StubLink(LOW, OTHER, 1.0, is_dialer=True)
    table.dial_said_hello(peer, dial)
    table.check_proven(dial, OTHER)


def test_an_incoming_link_ends_our_own_dial() -> None:
    # The dial's HELLO told the state of before this link.
    table, peer = named(HIGH)
    table.dial_started(peer, 1.0)
    dial = StubLink(HIGH, OTHER, 1.0, is_dialer=True)
    table.dial_said_hello(peer, dial)
    link = bring_up(table, OTHER, 2.0)
    assert dial.phase is Phase.CLOSED
    assert link.phase is Phase.UP
    assert (peer.dialing, peer.dial, peer.link) == (False, None, link)


def test_our_own_dial_is_not_ended_by_its_success() -> None:
    table, peer = named()
    table.dial_started(peer, 1.0)
    dial = StubLink(LOW, OTHER, 1.0, is_dialer=True)
    table.dial_said_hello(peer, dial)
    table.link_up(dial, Identity(OTHER, ADDRESS), 2.0)
    assert dial.phase is Phase.UP
    assert (peer.dialing, peer.dial, peer.link) == (False, None, dial)


# ---------------------------------------------------------------------- takeovers


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (b"k" * 16, b"k" * 16, False),
        (b"k" * 16, b"x" * 16, True),
        (b"k" * 16, b"", True),
        # Who has shown none has nothing to be told apart by.
        (b"", b"k" * 16, False),
        (b"", b"", False),
    ],
)
@pytest.mark.parametrize("is_down", [True, False])
@pytest.mark.parametrize("is_dialer", [True, False])
def test_a_uid_belongs_to_the_process_that_was_linked_first(
    first: bytes, second: bytes, refused: bool, is_down: bool, is_dialer: bool
) -> None:
    table, peer = named()
    link = StubLink(LOW, OTHER, 1.0)
    link.boot_key = first
    table.link_up(link, Identity(OTHER, ADDRESS), 1.0)
    if is_down:
        table.link_down(link, 2.0)
    newcomer = StubLink(LOW, OTHER, 3.0, is_dialer=is_dialer)
    newcomer.boot_key = second
    if refused:
        with pytest.raises(HandshakeError) as caught:
            table.check_proven(newcomer, OTHER)
        assert caught.value.code == Refusal.TAKEN
    else:
        table.check_proven(newcomer, OTHER)
    assert peer.boot_key == first


# ---------------------------------------------------------------------- links


def test_a_link_makes_a_stranger_a_peer() -> None:
    table = PeerTable(LOW, random.Random(1))
    link = StubLink(LOW, OTHER, 1.0)
    peer, changes = table.link_up(link, Identity(OTHER, ADDRESS, codec="x"), 1.0)
    assert changes == [Change(OTHER, None, PeerState.ALIVE)]
    assert (peer.codec, peer.receives_events, peer.linked_at) == ("x", True, 1.0)
    assert table.alive() == [peer]
    assert peer.link is link
    assert len(table) == 1


def test_a_peer_has_one_link() -> None:
    table, _ = named()
    bring_up(table, OTHER, 1.0)
    with pytest.raises(RuntimeError, match="still has a link"):
        table.link_up(StubLink(LOW, OTHER, 2.0), Identity(OTHER, ADDRESS), 2.0)


def test_the_end_of_a_link_that_was_replaced_changes_nothing() -> None:
    table, peer = named()
    old = bring_up(table, OTHER, 1.0)
    assert table.link_down(old, 2.0) == [Change(OTHER, PeerState.ALIVE, PeerState.SUSPECT)]
    new = bring_up(table, OTHER, 3.0)
    assert table.link_down(old, 4.0) == []
    assert table.alive() == [peer]
    assert peer.link is new
    assert table.link_down(new, 5.0) == [Change(OTHER, PeerState.ALIVE, PeerState.SUSPECT)]
    assert not peer.session.attached
    assert table.alive() == []


def test_the_end_of_a_link_that_never_was_changes_nothing() -> None:
    table, _ = named()
    assert table.link_down(StubLink(LOW, OTHER, 1.0), 1.0) == []
    assert table.link_down(StubLink(LOW, HIGH, 1.0), 1.0) == []
    nameless = LinkProtocol(Identity(LOW), KEYS, nonce=bytes(32), now=0.0)
    assert table.link_down(nameless, 1.0) == []


def test_a_peer_that_claims_too_much_gets_no_link() -> None:
    table, peer = named()
    link = StubLink(LOW, OTHER, 1.0)
    link._their_state = SessionState(b"stream-1", peer.session.state().stream, 7)
    with pytest.raises(FrameError):
        table.link_up(link, Identity(OTHER, ADDRESS), 1.0)
    assert peer.link is None
    assert peer.member.state is PeerState.SUSPECT
    assert not peer.session.attached


def test_sessions_of_different_peers_have_different_streams() -> None:
    table = PeerTable(LOW, random.Random(1))
    table.roster("d", {OTHER: "ws://o:1", HIGH: "ws://h:1"}, True, 0.0)
    streams = {peer.session.state().stream for peer in table}
    assert len(streams) == 2
    assert {len(stream) for stream in streams} == {8}


def test_who_is_named_has_an_outbox_before_its_first_link() -> None:
    table, peer = named(outbox_bytes=10)
    peer.session.append(b"1234567890")
    assert not peer.session.fits(1)
    bring_up(table, OTHER, 1.0)
    assert peer.session.take(100) == (1, [b"1234567890"])


# ---------------------------------------------------------------------- dialling


@pytest.mark.parametrize(("our_uid", "wait"), [(LOW, 0.0), (HIGH, FALLBACK_SECONDS)])
def test_a_named_peer_is_due_when_it_is_our_turn(our_uid: str, wait: float) -> None:
    table, peer = named(our_uid, now=100.0)
    assert table.next_due(100.0) == 100.0 + wait
    assert table.due(99.9 + wait) == []
    assert table.due(100.0 + wait) == [peer]


def test_a_peer_is_dialled_once_at_a_time() -> None:
    table, peer = named()
    table.dial_started(peer, 1.0)
    assert table.due(10.0) == []
    assert table.next_due(10.0) is None
    table.dial_said_hello(peer, StubLink(LOW, OTHER, 1.0, is_dialer=True))
    assert table.due(10.0) == []


def test_a_failed_dial_waits_for_its_backoff() -> None:
    table, peer = named()
    bounds = [0.5, 1.0, 2.0, REDIAL_SECONDS, REDIAL_SECONDS, REDIAL_SECONDS]
    now = 0.0
    for bound in bounds:
        table.dial_started(peer, now)
        table.dial_failed(peer, now)
        due = table.next_due(now)
        assert due is not None
        assert now <= due <= now + bound
        assert table.due(due) == [peer]
        now = due


def test_the_time_that_a_dial_took_counts_as_waiting() -> None:
    table, peer = named()
    for _ in range(8):
        table.dial_started(peer, 10.0)
        table.dial_failed(peer, 10.0 + REDIAL_SECONDS)
        assert table.next_due(10.0 + REDIAL_SECONDS) == 10.0 + REDIAL_SECONDS


def test_only_a_link_that_is_up_resets_the_backoff() -> None:
    table, peer = named()
    for _ in range(8):
        table.dial_started(peer, 1.0)
        table.dial_said_hello(peer, StubLink(LOW, OTHER, 1.0, is_dialer=True))
        table.dial_failed(peer, 1.0)
    assert peer.backoff._failures == 8
    bring_up(table, OTHER, 100.0)
    assert peer.backoff._failures == 0


def test_a_link_that_falls_at_once_is_redialled_with_backoff() -> None:
    table, peer = named()
    link = bring_up(table, OTHER, 100.0)
    table.link_down(link, 200.0)
    assert 200.0 <= peer.dial_not_before <= 200.5
    assert peer.dial_not_before > 200.0
    assert table.due(200.0) == []


def test_linked_peers_are_not_dialled() -> None:
    table, _ = named()
    bring_up(table, OTHER, 1.0)
    assert table.due(1000.0) == []
    assert table.next_due(1000.0) is None


def test_a_peer_that_no_roster_names_is_dialled_for_a_minute() -> None:
    table, peer = named()
    table.link_down(bring_up(table, OTHER, 1.0), 100.0)
    table.roster("d", {}, True, 101.0)
    assert table.due(99.0 + STOP_DIALLING_SECONDS) == [peer]
    assert table.due(100.0 + STOP_DIALLING_SECONDS) == []


def test_emitters_are_not_dialled() -> None:
    table, peer = named()
    link = bring_up(table, OTHER, 1.0, role=Role.EMITTER)
    assert not peer.receives_events
    table.link_down(link, 2.0)
    assert table.due(1000.0) == []
    assert table.next_due(2.0) is None


# ---------------------------------------------------------------------- the end of a session


def test_the_dead_are_abandoned() -> None:
    table, peer = named(resume_window=30.0)
    peer.session.append(b"message")
    assert table.tick(29.9) == []
    assert peer.session.outbox_messages == 1
    assert table.tick(30.0) == [Change(OTHER, PeerState.JOINING, PeerState.DEAD)]
    assert peer.session.outbox_messages == 0
    assert peer.session.undelivered == 1
    assert table.abandoned == 0, "it may still come back"


def test_what_a_peer_that_leaves_never_got_is_counted() -> None:
    table, peer = named(outbox_bytes=10)
    for _ in range(4):
        peer.session.append(b"12345")
    # Two were evicted, two wait.
    assert table.left(OTHER) == [Change(OTHER, PeerState.JOINING, None)]
    assert table.abandoned == 4
    assert table.get(OTHER) is None
    assert table.left(OTHER) == []
    assert table.abandoned == 4


def test_what_a_peer_that_leaves_has_acknowledged_is_not_counted() -> None:
    table, peer = named()
    link = bring_up(table, OTHER, 1.0)
    for _ in range(3):
        peer.session.append(b"12345")
    peer.session.take(100)
    peer.session.acknowledge(2)
    table.link_down(link, 2.0)
    table.left(OTHER)
    assert table.abandoned == 1


def test_losses_that_were_settled_are_not_counted_again() -> None:
    table, peer = named(outbox_bytes=12)
    for _ in range(4):
        peer.session.append(b"12345")
    bring_up(table, OTHER, 1.0)
    assert peer.session.sent_lost == 2
    peer.session.take(100)
    peer.session.acknowledge(4)
    table.left(OTHER)
    assert table.abandoned == 0


def test_what_a_succeeded_peer_never_got_is_counted() -> None:
    table, peer = named()
    peer.session.append(b"12345")
    changes = table.roster("d", {HIGH: ADDRESS}, True, 1.0)
    assert changes == [Change(OTHER, PeerState.JOINING, None), Change(HIGH, None, PeerState.JOINING)]
    assert table.abandoned == 1
    assert table.get(OTHER) is None
    assert peer_of(table, HIGH).session.next_sequence == 1


def test_what_the_dead_never_got_is_counted_when_they_are_forgotten() -> None:
    table, peer = named()
    link = bring_up(table, OTHER, 1.0)
    table.roster("d", {}, True, 1.0)
    table.link_down(link, 1.0)
    peer.session.append(b"12345")
    table.tick(31.0)
    peer.session.append(b"12345")
    table.tick(1.0 + FORGET_SECONDS)
    assert table.get(OTHER) is None
    assert table.abandoned == 2


def test_a_peer_that_comes_back_from_the_dead_is_told_what_it_missed() -> None:
    table, peer = named()
    first = bring_up(table, OTHER, 1.0)
    table.link_down(first, 1.0)
    peer.session.append(b"12345")
    table.tick(31.0)
    bring_up(table, OTHER, 40.0)
    assert peer.member.state is PeerState.ALIVE
    assert peer.session.sent_lost == 1
    peer.session.append(b"12345")
    assert peer.session.take(100) == (2, [b"12345"])


# ---------------------------------------------------------------------- who is present


def lapsed(table: PeerTable, now: float) -> list[str]:
    return [peer.uid for peer in table.take_lapsed(now)]


def test_a_named_peer_is_present_until_it_has_been_silent_for_too_long() -> None:
    table, peer = named(silence_seconds=10.0)
    assert table.reachable() == [peer]
    assert table.next_lapse() == 10.0
    assert lapsed(table, 9.9) == []
    assert lapsed(table, 10.0) == [OTHER]
    assert lapsed(table, 10.0) == [], "told once"
    assert table.reachable() == []
    assert table.unreachable() == [peer]


def test_a_linked_peer_never_lapses() -> None:
    table, peer = named()
    bring_up(table, OTHER, 1.0)
    assert table.next_lapse() is None
    assert lapsed(table, 1e6) == []
    assert table.reachable() == [peer]


def test_a_link_that_blinks_is_no_lapse() -> None:
    table, _ = named(silence_seconds=10.0)
    link = bring_up(table, OTHER, 1.0)
    table.link_down(link, 5.0)
    assert lapsed(table, 10.9) == [], "it was heard at 1.0"
    bring_up(table, OTHER, 10.95)
    assert lapsed(table, 1e6) == []


def test_a_peer_whose_link_is_down_lapses_after_silence_and_is_present_again_with_a_link() -> None:
    table, peer = named(silence_seconds=10.0)
    link = bring_up(table, OTHER, 1.0)
    table.link_down(link, 5.0)
    assert lapsed(table, 11.0) == [OTHER]
    assert table.unreachable() == [peer], "discovery still names it"
    bring_up(table, OTHER, 12.0)
    assert peer.present
    assert table.unreachable() == []


def test_a_peer_whose_link_is_down_and_that_no_roster_names_lapses_at_once() -> None:
    table, _ = named()
    link = bring_up(table, OTHER, 1.0)
    table.roster("d", {}, True, 2.0)
    assert lapsed(table, 2.0) == [], "its link is up"
    table.link_down(link, 3.0)
    assert lapsed(table, 3.0) == [OTHER]
    assert table.unreachable() == [], "no part of the cluster any more"


def test_a_peer_that_no_roster_has_named_yet_does_not_lapse_at_once() -> None:
    table = PeerTable(LOW, random.Random(1), silence_seconds=10.0)
    link = bring_up(table, OTHER, 1.0)
    table.link_down(link, 2.0)
    assert lapsed(table, 10.9) == []
    table.roster("d", {OTHER: ADDRESS}, True, 10.9)
    table.roster("d", {}, True, 10.95)
    assert lapsed(table, 10.95) == [OTHER]


def test_a_peer_that_leaves_or_is_given_up_lapses() -> None:
    table, _ = named()
    bring_up(table, OTHER, 1.0)
    table.left(OTHER)
    assert table.next_lapse() == -math.inf
    assert lapsed(table, 1.0) == [OTHER]
    table, _ = named(resume_window=5.0, silence_seconds=10.0)
    link = bring_up(table, OTHER, 1.0)
    table.link_down(link, 2.0)
    table.tick(7.0)
    assert lapsed(table, 7.0) == [OTHER]


def test_an_emitter_is_named_by_no_roster_and_does_not_lapse_at_once() -> None:
    table = PeerTable(LOW, random.Random(1), silence_seconds=10.0)
    link = bring_up(table, OTHER, 1.0, role=Role.EMITTER, address="")
    table.link_down(link, 2.0)
    assert lapsed(table, 10.9) == []
    assert table.reachable() == [], "nobody asks it"
    assert lapsed(table, 11.0) == [OTHER]


def test_who_is_only_told_of_is_kept_for_and_waited_for_by_nobody_until_a_roster_or_a_link_shows_it() -> None:
    for is_linked in (True, False):
        table = PeerTable(LOW, random.Random(1), silence_seconds=10.0)
        table.told("a teller", {OTHER: ADDRESS}, 1.0)
        peer = table.get(OTHER)
        assert peer is not None
        peer.session.append(b"kept for it")
        assert table.reachable() == table.owed() == table.unreachable() == []
        assert not table.is_owed(peer)
        assert table.next_lapse() is None
        if is_linked:
            bring_up(table, OTHER, 20.0)
        else:
            table.roster("d", {OTHER: ADDRESS}, True, 20.0)
            assert table.next_lapse() == 30.0
        assert table.reachable() == table.owed() == [peer]
        assert peer.session.has_outbox


def test_who_was_only_told_of_does_not_lapse_when_it_is_forgotten() -> None:
    table = PeerTable(LOW, random.Random(1), resume_window=5.0)
    table.told("a teller", {OTHER: ADDRESS}, 1.0)
    table.tick(6.0)
    assert table.get(OTHER) is None
    assert lapsed(table, 6.0) == []


# ---------------------------------------------------------------------- who is owed what is sent


def test_a_peer_is_owed_what_is_sent_to_it_also_when_it_has_lapsed_until_it_is_given_up() -> None:
    table, peer = named(resume_window=30.0, silence_seconds=10.0)
    assert table.owed() == [peer]
    link = bring_up(table, OTHER, 1.0)
    table.link_down(link, 5.0)
    assert lapsed(table, 20.0) == [OTHER]
    assert table.owed() == [peer]
    table.tick(35.0)
    assert table.owed() == []
    bring_up(table, OTHER, 40.0)
    assert table.owed() == [peer]


def test_nothing_is_owed_to_a_peer_whose_link_is_down_and_that_no_roster_names() -> None:
    table, peer = named()
    link = bring_up(table, OTHER, 1.0)
    table.roster("d", {}, True, 2.0)
    assert table.owed() == [peer], "its link is up"
    table.link_down(link, 3.0)
    assert table.owed() == []


def test_nothing_is_owed_to_an_emitter_or_to_who_has_left() -> None:
    table, _ = named()
    bring_up(table, OTHER, 1.0)
    table.left(OTHER)
    assert table.owed() == []
    bring_up(table, OTHER, 1.0, role=Role.EMITTER, address="")
    assert table.owed() == []


# ---------------------------------------------------------------------- how many there may be


def uids(count: int) -> list[str]:
    return [f"f00d{number:012x}" for number in range(count)]


def test_a_token_holder_cannot_be_any_number_of_nodes() -> None:
    table = PeerTable(HIGH, random.Random(1))
    for uid in uids(MAX_UNNAMED):
        bring_up(table, uid, 1.0)
    table.roster("d", {OTHER: ADDRESS}, True, 1.0)
    with pytest.raises(HandshakeError) as refused:
        bring_up(table, LOW, 1.0)
    assert refused.value.code == Refusal.BUSY
    # Whom discovery names, and who is known, is taken all the same.
    bring_up(table, OTHER, 1.0)
    table.link_down(peer_of(table, uids(1)[0]).link, 1.0)  # type: ignore[arg-type]  # it is up
    bring_up(table, uids(1)[0], 2.0)


def test_peers_that_are_dead_make_room_and_few_of_them_are_kept() -> None:
    table = PeerTable(HIGH, random.Random(1), resume_window=30.0)
    for at in (0.0, 100.0, 200.0):
        for uid in uids(MAX_UNNAMED):
            table.link_down(bring_up(table, uid, at), at)
        table.tick(at + 31.0)
    assert len(table) <= MAX_UNNAMED
    bring_up(table, LOW, 300.0)


def test_so_many_peers_are_dialled_at_a_time_and_no_more() -> None:
    table = PeerTable(LOW, random.Random(1))
    table.roster("d", dict.fromkeys(uids(MAX_DIALS + 1), ADDRESS), True, 0.0)
    for peer in (first := table.due(1.0)):
        table.dial_started(peer, 1.0)
    assert len(first) == MAX_DIALS
    assert (table.due(1.0), table.next_due(1.0)) == ([], None)
    table.dial_failed(first[0], 1.0)
    (last,) = table.due(1.0)
    assert last not in first, "who has waited for longest comes first"


def test_a_dial_that_failed_for_a_reason_of_our_own_is_soon_repeated() -> None:
    table, peer = named()
    for _ in range(10):
        table.dial_started(peer, 1.0)
        table.dial_failed(peer, 10.0, exhausted=True)
    assert peer.dial_not_before == 11.0
