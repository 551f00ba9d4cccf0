"""Sessions: numbers, outbox, resume, and losses that are counted exactly once."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gevent_mesh.errors import FrameError
from gevent_mesh.protocol.frames import Gap, SessionState
from gevent_mesh.protocol.session import ACK_EVERY_BYTES, ACK_EVERY_MESSAGES, Session

STREAM, THEIRS = b"our-strm", b"their-st"
STRANGER = SessionState(THEIRS, b"", 0)


def make(limit_bytes: int = 100, *messages: bytes) -> Session:
    """A session with some messages in it, never linked."""
    session = Session(STREAM, limit_bytes=limit_bytes)
    for message in messages:
        session.append(message)
    return session


def attached(*messages: bytes, limit_bytes: int = 100) -> Session:
    """A session whose link is up and has taken all messages."""
    session = make(limit_bytes, *messages)
    assert session.attach(STRANGER) is None
    session.take(10_000)
    return session


def knows(received: int, *, stream: bytes = THEIRS) -> SessionState:
    """The state of a peer that knows our stream."""
    return SessionState(stream, STREAM, received)


# ---------------------------------------------------------------------- sending


def test_messages_are_numbered_from_one() -> None:
    session = make()
    assert session.next_sequence == 1
    session.append(b"a")
    session.append(b"b")
    assert session.next_sequence == 3
    session.attach(STRANGER)
    assert session.take(10_000) == (1, [b"a", b"b"])
    session.append(b"c")
    assert session.take(10_000) == (3, [b"c"])
    assert session.take(10_000) == (4, [])


def test_bytes_objects_are_shared_never_copied() -> None:
    message = bytes(bytearray(b"a message"))
    one, other = make(100, message), make(100, message)
    for session in (one, other):
        session.attach(STRANGER)
        assert session.take(10_000)[1][0] is message
        session.detach()
        session.attach(knows(0))
        assert session.take(10_000)[1][0] is message


@pytest.mark.parametrize(
    ("limit", "taken"),
    [(0, 1), (1, 1), (9, 1), (10, 2), (14, 2), (15, 3), (16, 3), (1000, 3)],
)
def test_a_link_takes_as_much_as_fits_and_at_least_one_message(limit: int, taken: int) -> None:
    session = make(1000, b"five5", b"five5", b"five5")
    session.attach(STRANGER)
    first, messages = session.take(limit)
    assert (first, len(messages)) == (1, taken)
    assert session.waiting_bytes == 15 - 5 * taken
    assert session.has_waiting is (taken < 3)
    assert session.outbox_bytes == 15
    assert session.take(1000) == (1 + taken, [b"five5"] * (3 - taken))


def test_what_is_taken_stays_in_the_outbox_until_it_is_acknowledged() -> None:
    session = attached(b"a", b"bb", b"ccc")
    assert (session.outbox_messages, session.outbox_bytes) == (3, 6)
    session.acknowledge(2)
    assert (session.outbox(), session.outbox_bytes, session.acked_bytes) == ([b"ccc"], 3, 3)
    session.acknowledge(3)
    assert (session.outbox_messages, session.outbox_bytes, session.acked_bytes) == (0, 0, 6)
    assert session.next_sequence == 4


@pytest.mark.parametrize("upto", [0, 1, 2])
def test_an_old_acknowledgement_changes_nothing(upto: int) -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(2)
    session.acknowledge(upto)
    assert session.outbox() == [b"c"]


@pytest.mark.parametrize("upto", [3, 4, 2**64 - 1])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_link(upto: int) -> None:
    session = attached(b"a", b"b")
    session.append(b"waits")
    with pytest.raises(FrameError, match="never sent"):
        session.acknowledge(upto)
    assert session.outbox_messages == 3


def test_what_was_sent_on_an_earlier_link_cannot_be_acknowledged_before_it_is_sent_again() -> None:
    session = attached(b"a")
    session.detach()
    session.attach(knows(0))
    with pytest.raises(FrameError):
        session.acknowledge(1)


# ---------------------------------------------------------------------- overflow


def test_without_a_link_the_oldest_messages_make_room() -> None:
    session = make(10, b"1111", b"2222", b"3333", b"4444")
    assert session.outbox() == [b"3333", b"4444"]
    assert session.next_sequence == 5
    assert session.outbox_bytes == 8


def test_the_newest_message_is_kept_even_if_it_is_too_large() -> None:
    session = make(10, b"1111", b"x" * 50)
    assert session.outbox() == [b"x" * 50]


def test_a_message_that_fills_the_outbox_exactly_pushes_nothing_out() -> None:
    session = make(8, b"1111", b"2222")
    assert session.outbox_messages == 2
    session.append(b"")
    assert session.outbox_messages == 3


def test_messages_that_were_sent_make_room_once_the_link_is_gone() -> None:
    session = attached(b"1111", b"2222", limit_bytes=10)
    session.detach()
    session.append(b"3333")
    assert session.outbox() == [b"2222", b"3333"]


def test_a_peer_that_comes_back_to_an_overflowed_outbox_finds_an_eighth_of_it_free() -> None:
    session = make(80, *[b"1234567890"] * 9)
    assert (session.outbox_messages, session.overflowed) == (8, True)
    gap = session.attach(SessionState(b"", b"", 0))
    assert gap == Gap(upto=2, count=2)
    assert session.outbox_messages == 7
    assert session.sent_lost == 2


def test_a_peer_that_comes_back_to_a_full_outbox_has_lost_nothing() -> None:
    session = make(80, *[b"1234567890"] * 8)
    assert session.attach(SessionState(b"", b"", 0)) is None
    assert (session.outbox_messages, session.overflowed, session.sent_lost) == (8, False, 0)


def test_an_overflow_is_forgotten_when_the_next_link_is_gone() -> None:
    session = make(10, b"1111", b"2222", b"3333")
    session.attach(SessionState(b"", b"", 0))
    assert session.overflowed
    session.detach()
    assert not session.overflowed
    session.append(b"4444")
    session.append(b"5555")
    session.detach()
    assert session.overflowed


def test_with_a_link_nothing_goes() -> None:
    session = attached(b"1111", limit_bytes=10)
    for _ in range(10):
        session.append(b"2222")
    assert session.outbox_messages == 11
    assert not session.sent_lost


@pytest.mark.parametrize(("size", "fits"), [(0, True), (2, True), (3, False)])
def test_what_fits_counts_sent_and_waiting_messages(size: int, fits: bool) -> None:
    session = attached(b"1111", limit_bytes=10)
    session.append(b"2222")
    assert session.fits(size) is fits


def test_an_abandoned_session_only_counts() -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(1)
    session.detach()
    session.append(b"d")
    assert session.abandon() == 3
    assert (session.outbox_messages, session.outbox_bytes, session.waiting_bytes) == (0, 0, 0)
    session.append(b"e")
    assert session.outbox_messages == 0
    assert session.next_sequence == 6
    assert session.undelivered == 4
    assert session.abandon() == 0


def test_an_abandoned_session_comes_back_and_the_loss_is_exact() -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(1)
    session.detach()
    session.abandon()
    session.append(b"d")
    # It had got "b" without our hearing of it.
    assert session.attach(knows(2)) == Gap(upto=4, count=2)
    assert (session.sent_lost, session.undelivered) == (2, 0)
    session.append(b"e")
    assert session.take(100) == (5, [b"e"])


# ---------------------------------------------------------------------- links


def test_a_first_link_sends_all_that_was_kept() -> None:
    session = make(100, b"a", b"b")
    assert session.attach(STRANGER) is None
    assert session.attached
    assert session.take(100) == (1, [b"a", b"b"])
    assert (session.resumed, session.replayed, session.sent_lost) == (0, 0, 0)


def test_a_new_link_sends_what_the_peer_does_not_have() -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(1)
    session.detach()
    assert not session.attached
    session.append(b"d")
    assert session.attach(knows(2)) is None
    assert session.take(100) == (3, [b"c", b"d"])
    assert (session.resumed, session.replayed, session.sent_lost) == (1, 1, 0)


def test_a_link_that_replaces_a_living_one_sends_again_too() -> None:
    session = attached(b"a", b"b")
    session.append(b"c")
    assert session.attach(knows(1)) is None
    assert session.take(100) == (2, [b"b", b"c"])


def test_a_peer_that_has_everything_gets_nothing_again() -> None:
    session = attached(b"a", b"b")
    session.detach()
    assert session.attach(knows(2)) is None
    assert (session.outbox(), session.outbox_bytes, session.replayed) == ([], 0, 0)
    assert session.next_sequence == 3


@pytest.mark.parametrize("received", [3, 2**64 - 1])
def test_a_peer_cannot_have_what_was_never_sent(received: int) -> None:
    session = attached(b"a", b"b")
    session.detach()
    with pytest.raises(FrameError, match="claims"):
        session.attach(knows(received))
    assert not session.attached
    assert session.outbox() == [b"a", b"b"]


def test_evicted_messages_are_declared_lost() -> None:
    session = attached(b"1111", b"2222", limit_bytes=10)
    session.detach()
    session.append(b"3333")
    session.append(b"4444")
    assert session.sent_lost == 0, "nobody knows yet what had arrived"
    assert session.attach(knows(0)) == Gap(upto=2, count=2)
    assert session.sent_lost == 2
    assert session.take(100) == (3, [b"3333", b"4444"])


def test_evicted_messages_that_had_arrived_are_not_lost() -> None:
    session = attached(b"1111", b"2222", limit_bytes=10)
    session.detach()
    session.append(b"3333")
    session.append(b"4444")
    assert session.attach(knows(2)) is None
    assert session.sent_lost == 0


def test_a_first_link_declares_what_was_evicted_before_it() -> None:
    session = make(10, b"1111", b"2222", b"3333")
    assert session.attach(STRANGER) == Gap(upto=1, count=1)
    assert session.sent_lost == 1


def test_a_gap_that_was_lost_is_told_again_and_counted_once() -> None:
    session = make(10, b"1111", b"2222", b"3333")
    assert session.attach(STRANGER) == Gap(upto=1, count=1)
    session.detach()
    assert session.attach(knows(0)) == Gap(upto=1, count=1)
    session.detach()
    session.append(b"4444")
    assert session.attach(knows(0)) == Gap(upto=2, count=2)
    assert session.sent_lost == 2
    session.detach()
    assert session.attach(knows(2)) is None
    assert session.sent_lost == 2


def test_a_gap_that_was_lost_is_told_to_a_peer_that_never_heard_of_us() -> None:
    # Link 1 broke before anything arrived: the peer does not even know the stream.
    session = make(10, b"1111", b"2222", b"3333")
    assert session.attach(STRANGER) == Gap(upto=1, count=1)
    session.detach()
    assert session.attach(STRANGER) == Gap(upto=1, count=1)
    assert session.sent_lost == 1


def test_a_peer_that_forgot_us_gets_everything_that_it_has_not_acknowledged() -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(2)
    session.detach()
    assert session.attach(STRANGER) == Gap(upto=2, count=0)
    assert session.take(100) == (3, [b"c"])
    assert (session.sent_lost, session.resumed) == (0, 0)


def test_what_a_peer_said_it_has_counts_even_if_it_forgets_us_afterwards() -> None:
    session = attached(b"a", b"b", b"c")
    session.detach()
    session.attach(knows(2))
    session.detach()
    assert session.attach(STRANGER) == Gap(upto=2, count=0)
    assert session.sent_lost == 0


def test_a_peer_that_forgot_us_and_missed_the_gap_is_not_told_of_losses_that_never_were() -> None:
    session = attached(b"a", b"b", b"c")
    session.acknowledge(2)
    session.detach()
    assert session.attach(STRANGER) == Gap(upto=2, count=0)
    session.detach()
    # It knows our stream again now, but not that it begins at 3.
    assert session.attach(knows(0)) == Gap(upto=2, count=0)
    assert session.sent_lost == 0


def test_a_peer_that_forgot_us_is_told_what_was_evicted() -> None:
    session = attached(b"1111", b"2222", limit_bytes=10)
    session.acknowledge(1)
    session.detach()
    for _ in range(3):
        session.append(b"3333")
    assert session.outbox() == [b"3333", b"3333"]
    assert session.attach(STRANGER) == Gap(upto=3, count=2)
    assert session.sent_lost == 2


def test_a_peer_with_a_new_stream_is_received_from_the_beginning() -> None:
    session = attached()
    session.received = 7
    session.detach()
    session.attach(knows(0))
    assert session.received == 7
    session.detach()
    session.attach(knows(0, stream=b"a-new-st"))
    assert session.received == 0
    assert session.state() == SessionState(STREAM, b"a-new-st", 0)


def test_the_state_says_what_was_received() -> None:
    session = make()
    assert session.state() == SessionState(STREAM, b"", 0)
    session.attach(STRANGER)
    session.received = 3
    assert session.state() == SessionState(STREAM, THEIRS, 3)


# ---------------------------------------------------------------------- receiving


def test_a_gap_moves_what_was_received() -> None:
    session = attached()
    session.received = 3
    assert session.skip(Gap(upto=9, count=4)) == 4
    assert (session.received, session.received_lost) == (9, 4)


@pytest.mark.parametrize("upto", [0, 2, 3])
def test_a_gap_behind_us_is_a_repeat(upto: int) -> None:
    session = attached()
    session.received = 3
    assert session.skip(Gap(upto=upto, count=99)) == 0
    assert (session.received, session.received_lost) == (3, 0)


def test_a_gap_cannot_count_more_than_its_numbers_allow() -> None:
    session = attached()
    session.received = 3
    assert session.skip(Gap(upto=5, count=2)) == 2
    with pytest.raises(FrameError, match="declared lost"):
        session.skip(Gap(upto=7, count=3))
    assert (session.received, session.received_lost) == (5, 2)


def owed(session: Session) -> tuple[bool, bool]:
    """Whether an acknowledgement is owed at all, and at once."""
    return session.owes_ack, session.owes_ack_now


def test_an_acknowledgement_is_owed_for_what_was_received() -> None:
    session = attached()
    assert owed(session) == (False, False)
    session.received += 1
    assert owed(session) == (True, False)
    assert session.acknowledgement() == 1
    assert owed(session) == (False, False)


def test_it_is_owed_at_once_after_many_messages() -> None:
    session = attached()
    session.received = ACK_EVERY_MESSAGES - 1
    assert not owed(session)[1]
    session.received += 1
    assert owed(session) == (True, True)
    session.acknowledgement()
    assert not owed(session)[1]


def test_it_is_owed_at_once_after_many_bytes() -> None:
    session = attached()
    session.note_received(ACK_EVERY_BYTES)
    assert owed(session) == (False, False), "nothing new came"
    session.received += 1
    assert owed(session) == (True, True)
    session.acknowledgement()
    session.received += 1
    session.note_received(ACK_EVERY_BYTES - 1)
    assert not owed(session)[1]
    session.note_received(1)
    assert owed(session) == (True, True)


def test_the_state_that_makes_a_link_is_an_acknowledgement_too() -> None:
    session = attached()
    session.received = 5
    session.note_received(ACK_EVERY_BYTES)
    session.detach()
    session.attach(knows(0))
    assert owed(session) == (False, False)
    session.received += 1
    assert not owed(session)[1]


def test_acknowledgements_come_often_enough() -> None:
    assert ACK_EVERY_MESSAGES == 64
    assert ACK_EVERY_BYTES == 256 * 1024


def test_a_session_reports_its_state() -> None:
    session = attached(b"abc")
    assert repr(session) == (f"<Session {STREAM.hex()} attached next=2 outbox=1 (3 bytes) received=0 lost=0/0>")
    session.detach()
    assert " detached " in repr(session)
    session.abandon()
    assert " abandoned " in repr(session)


# ---------------------------------------------------------------------- against a model


class TwoSessions(RuleBasedStateMachine):
    """Two sessions back to back, with a link that breaks anywhere, against a model of what must have arrived.

    A message is its own number. The model knows one thing: `delivered`, what each side has handed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up = False
        self.streams = 0
        self.wire: list[deque[Any]] = [deque(), deque()]
        self.delivered: list[list[int]] = [[], []]
        self.published = [0, 0]
        self.outbox_overflowed = [False, False]

    @initialize(limit=st.sampled_from([12, 60, 10_000]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.sides = [Session(f"stream-{side}".encode(), limit_bytes=limit) for side in (0, 1)]

    def _publish(self, side: int) -> None:
        self.published[side] += 1
        message = self.published[side].to_bytes(4, "big")
        if self.up and not self.sides[side].fits(len(message)):
            self._cut(0, 0)
        if not self.up and not self.sides[side].fits(len(message)):
            self.outbox_overflowed[side] = True
        self.sides[side].append(message)

    @rule(side=st.sampled_from([0, 1]), count=st.integers(1, 5))
    def publish(self, side: int, count: int) -> None:
        for _ in range(count):
            self._publish(side)

    @precondition(lambda self: not self.up)
    @rule()
    def link(self) -> None:
        states = [side.state() for side in self.sides]
        for side in (0, 1):
            gap = self.sides[side].attach(states[1 - side])
            if gap is not None:
                self.wire[side].append(gap)
        self.up = True

    @precondition(lambda self: self.up)
    @rule(side=st.sampled_from([0, 1]), max_bytes=st.sampled_from([1, 8, 1000]))
    def send(self, side: int, max_bytes: int) -> None:
        session = self.sides[side]
        first, messages = session.take(max_bytes)
        self.wire[side].append((first, session.acknowledgement(), messages))

    @precondition(lambda self: self.up)
    @rule(side=st.sampled_from([0, 1]))
    def arrive(self, side: int) -> None:
        self._arrive(side)

    def _arrive(self, side: int) -> None:
        if not self.wire[side]:
            return
        found, receiver = self.wire[side].popleft(), self.sides[1 - side]
        if isinstance(found, Gap):
            receiver.skip(found)
            return
        first, acknowledged, messages = found
        receiver.acknowledge(acknowledged)
        assert first <= receiver.received + 1, "a hole"
        for number, message in enumerate(messages, first):
            if number <= receiver.received:
                receiver.repeats += 1
                continue
            receiver.received = number
            self.delivered[side].append(int.from_bytes(message, "big"))
            assert int.from_bytes(message, "big") == number

    @precondition(lambda self: self.up)
    @rule(forth=st.integers(0, 5), back=st.integers(0, 5))
    def cut(self, forth: int, back: int) -> None:
        self._cut(forth, back)

    def _cut(self, forth: int, back: int) -> None:
        """The link breaks; some of what was under way still arrives."""
        for side, count in ((0, forth), (1, back)):
            for _ in range(count):
                self._arrive(side)
            self.wire[side].clear()
        self.up = False
        for session in self.sides:
            session.detach()

    @precondition(lambda self: not self.up)
    @rule(side=st.sampled_from([0, 1]))
    def abandon(self, side: int) -> None:
        if self.sides[side].has_outbox:
            self.outbox_overflowed[side] = True
        self.sides[side].abandon()
        # From now on it only counts.
        self.outbox_overflowed[side] = True

    @invariant()
    def in_order_and_once(self) -> None:
        for numbers in self.delivered:
            assert numbers == sorted(set(numbers))

    @invariant()
    def everything_is_numbered(self) -> None:
        for side, session in enumerate(getattr(self, "sides", [])):
            assert session.next_sequence == self.published[side] + 1
            assert session.outbox_bytes == sum(map(len, session.outbox()))
            assert session.outbox_bytes <= self.limit

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        if self.up:
            self._cut(0, 0)
        self.link()
        for side in (0, 1):
            self.send(side, 1 << 20)
            while self.wire[side]:
                self._arrive(side)
        for side in (0, 1):
            sender, receiver = self.sides[side], self.sides[1 - side]
            assert len(self.delivered[side]) + receiver.received_lost == self.published[side]
            assert sender.sent_lost == receiver.received_lost
            assert receiver.received == self.published[side]
            if not self.outbox_overflowed[side]:
                assert sender.sent_lost == 0
                assert self.delivered[side] == list(range(1, self.published[side] + 1))


TwoSessions.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestTwoSessions = TwoSessions.TestCase
