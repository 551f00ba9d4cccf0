"""One link over a real connection: reader, writer and heartbeat, and all the ways in which it ends."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event as GeventEvent

from gevent_mesh.errors import HandshakeError
from gevent_mesh.net import link, pause
from gevent_mesh.net.link import ACK_SECONDS, PARTING_SECONDS, Link
from gevent_mesh.net.pause import SLICE_SECONDS, give_way
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol.frames import MAX_FRAME_BYTES, Refusal, batch_header
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.link import Identity, Left, LinkProtocol, Lost, Phase, Status
from gevent_mesh.protocol.membership import Backoff, Member, PeerState
from gevent_mesh.protocol.messages import ClusterMessage
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.protocol.session import Session
from gevent_mesh.protocol.websocket import Opcode, frame, frame_header
from tests.net.nodes import number_of, numbered
from tests.support import eventually

UIDS = ("00000000000000aa", "00000000000000bb")


class Side:
    """One end of a link, and its owner in one: takes every peer."""

    def __init__(self, sock: socket.socket, *, dials: bool, session: Session | None = None, **options: Any) -> None:
        self.uid, self.other = UIDS if dials else UIDS[::-1]
        self.session = Session(secrets.token_bytes(8), limit_bytes=64 << 20) if session is None else session
        self.got: list[int] = []
        self.events: list[Status | Lost | Left] = []
        self.ended: list[str] = []
        self.on_message: Callable[[int], None] = lambda _number: None
        self.put_off = 0
        self.refuses = False
        times: dict[str, Any] = {"heartbeat_interval": 0.2, "heartbeat_timeout": 5.0, **options}
        protocol = LinkProtocol(
            Identity(self.uid),
            Keys(()),
            nonce=secrets.token_bytes(32),
            now=time.monotonic(),
            target=self.other if dials else None,
            session=self.session.state() if dials else None,
            **times,
        )
        self.link = Link(Transport(sock, is_client=dials), protocol, self)
        self.greenlet = gevent.spawn(self.link.run)

    @property
    def is_up(self) -> bool:
        return self.link.protocol.phase is Phase.UP

    def say(self, first: int, count: int = 1, padding: int = 0) -> None:
        for number in range(first, first + count):
            self.session.append(numbered(self.uid, number, padding))
        self.link.wake()

    def hears(self, count: int, seconds: float = 10.0) -> None:
        eventually(lambda: len(self.got) >= count, seconds)
        assert self.got == list(range(1, count + 1))

    def ends(self, seconds: float = 2.0) -> str:
        """Wait for the end; returns the reason."""
        self.greenlet.join(seconds)
        assert self.greenlet.dead, f"{self.link!r} is still there after {seconds} s"
        assert self.link.ended.is_set()
        assert len(self.ended) == 1
        eventually(lambda: self.link._writer is None or self.link._writer.dead)
        eventually(lambda: self.link._heart is None or self.link._heart.dead)
        return self.ended[0]

    # -- LinkOwner

    def link_claimed(self, uid: str) -> None:
        if self.refuses:
            raise HandshakeError(Refusal.DUPLICATE, f"{uid} is not wanted")

    def link_proven(self, link: Link, identity: Identity) -> Peer:
        link.protocol.accept(self.session, time.monotonic())
        member = Member(identity.uid, identity.address, PeerState.ALIVE, 0.0)
        return Peer(identity.uid, member, self.session, Backoff(random.Random(1)), link=link.protocol)

    def link_event(self, _link: Link, event: Status | Lost | Left) -> None:
        assert not self.put_off
        self.events.append(event)

    def link_message(self, _peer: Peer, message: ClusterMessage) -> None:
        number = number_of(message)
        self.got.append(number)
        self.put_off += 1
        self.on_message(number)

    def link_pauses(self) -> None:
        self.put_off = 0

    def link_relieved(self) -> None:
        """Nobody waits."""

    def link_ended(self, _link: Link, reason: str) -> None:
        self.ended.append(reason)
        self.session.detach()

    def status(self) -> dict[str, Any]:
        return {"clients": 3}


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


Connect = Callable[..., tuple[Side, Side]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    sides: list[Side] = []

    def start(*, sessions: tuple[Session, Session] | None = None, **options: Any) -> tuple[Side, Side]:
        near, far = connection()
        ours, theirs = sessions or (None, None)
        dialer, listener = Side(near, dials=True, session=ours, **options), Side(
            far, dials=False, session=theirs, **options
        )  # fmt: skip
        sides.extend((dialer, listener))
        eventually(lambda: dialer.is_up and listener.is_up)
        return dialer, listener

    yield start
    for side in sides:
        side.link.cut("the test is over")
        side.greenlet.kill(block=False)
    gevent.joinall([side.greenlet for side in sides], timeout=5)


@pytest.fixture
def lone() -> Iterator[tuple[Side, socket.socket]]:
    """A listener, and the bare socket that leads to it."""
    near, far = connection()
    near.settimeout(5)
    side = Side(far, dials=False)
    yield side, near
    side.link.cut("the test is over")
    side.greenlet.kill(block=False)
    near.close()
    side.greenlet.join(5)


def test_messages_flow_both_ways_in_order(connect: Connect) -> None:
    dialer, listener = connect()
    for first in range(1, 1001, 10):
        dialer.say(first, 10)
        listener.say(first, 10, padding=5000)
        gevent.sleep(0)
    dialer.hears(1000)
    listener.hears(1000)
    eventually(lambda: dialer.session.outbox_messages == listener.session.outbox_messages == 0)


def test_without_load_a_message_leaves_at_once_and_is_acknowledged_soon(connect: Connect) -> None:
    dialer, listener = connect(heartbeat_interval=30.0, heartbeat_timeout=60.0)
    began = time.monotonic()
    dialer.say(1)
    listener.hears(1)
    assert time.monotonic() - began < 0.15
    eventually(lambda: dialer.session.outbox_messages == 0)
    assert time.monotonic() - began < 1.5


def test_heartbeats_tell_status_and_round_trip(connect: Connect) -> None:
    dialer, listener = connect(heartbeat_interval=0.05)
    for side in (dialer, listener):
        eventually(lambda side=side: sum(isinstance(event, Status) for event in side.events) >= 3)  # type: ignore[misc]  # bound now
        facts = next(event.facts for event in side.events if isinstance(event, Status))
        assert facts["clients"] == 3
        assert side.link.protocol.round_trip_seconds is not None
        assert side.link.protocol.round_trip_seconds < 1


def test_one_large_message_and_many_small_ones(connect: Connect) -> None:
    dialer, listener = connect()
    dialer.say(1, padding=20 << 20)
    dialer.say(2, 100)
    listener.hears(101, 30)


def test_nobody_runs_while_a_handler_may_have_put_something_off(connect: Connect) -> None:
    dialer, listener = connect(heartbeat_interval=0.02)
    seen: list[int] = []

    def watch() -> None:
        while len(listener.got) < 4000:
            seen.append(listener.put_off)
            gevent.sleep(0)

    def work(number: int) -> None:
        if number % 100 == 0:
            ends = time.monotonic() + SLICE_SECONDS
            while time.monotonic() < ends:
                pass
        if number % 1000 == 0:
            raise RuntimeError("on purpose")

    listener.on_message = work
    watching = gevent.spawn(watch)
    dialer.say(1, 4000)
    listener.hears(4000)
    watching.get(timeout=5)
    assert len(seen) > 40
    assert not any(seen)


def test_what_is_no_event_finds_done_what_was_put_off(connect: Connect) -> None:
    _, listener = connect()
    listener.put_off = 1
    listener.link._handle(Status({}))
    assert isinstance(listener.events[-1], Status)
    assert listener.put_off == 0


def test_what_was_put_off_is_done_when_a_malformed_message_ends_the_link(connect: Connect) -> None:
    dialer, listener = connect()
    dialer.session.append(numbered(dialer.uid, 1))
    dialer.session.append(b"\xc1")
    dialer.link.wake()
    listener.ends()
    assert listener.got == [1]
    assert listener.put_off == 0


def test_handler_that_raises_costs_nothing_but_a_log_entry(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    dialer, listener = connect()

    def fail(number: int) -> None:
        if number == 2:
            raise KeyError("a bug of the handler")

    listener.on_message = fail
    dialer.say(1, 5)
    listener.hears(5)
    assert "a bug of the handler" in caplog.text
    assert "Traceback" in caplog.text
    assert listener.is_up


def test_reader_gives_way_during_a_flood(connect: Connect) -> None:
    dialer, listener = connect()
    turns = [0]

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            turns[0] += 1

    handled: list[int] = []

    def work(_number: int) -> None:
        end = time.perf_counter() + 1e-4
        while time.perf_counter() < end:
            pass
        handled.append(turns[0])

    listener.on_message = work
    ticking = gevent.spawn(tick)
    dialer.say(1, 5000)
    listener.hears(5000, 30)
    ticking.kill()
    # A slice of 5 ms has at most 50 of them; 500 would be 50 ms without a turn for anybody else.
    assert max(len(list(run)) for _, run in itertools.groupby(handled)) < 500


def test_acknowledgement_without_traffic_waits_each_time(connect: Connect) -> None:
    dialer, listener = connect(heartbeat_interval=30.0, heartbeat_timeout=60.0)
    for number in range(1, 4):
        dialer.say(number)
        listener.hears(number)
        heard_at = time.monotonic()
        eventually(lambda: not dialer.session.has_outbox)
        assert ACK_SECONDS / 2 < time.monotonic() - heard_at < ACK_SECONDS + 1


def test_acknowledgements_are_few_when_messages_come_one_by_one(connect: Connect) -> None:
    dialer, listener = connect(heartbeat_interval=30.0, heartbeat_timeout=60.0)
    frames = [0]
    send = listener.link.transport.send

    def count(data: bytes) -> None:
        frames[0] += 1
        send(data)

    listener.link.transport.send = count  # type: ignore[method-assign]  # watched
    for number in range(1, 101):
        dialer.say(number)
        gevent.sleep(0.01)  # their pace
    listener.hears(100)
    eventually(lambda: not dialer.session.has_outbox)
    assert 2 <= frames[0] < 20


@pytest.mark.parametrize("repeated", [False, True], ids=["junk", "repeated"])
def test_batch_of_nothing_but_worthless_messages_keeps_nobody_from_running(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    count = 50_000
    dialer, listener = connect()
    protocol, session = listener.link.protocol, listener.session
    junk = b"\xc0"

    def dropped() -> int:
        return session.repeats if repeated else protocol.undecodable

    seen: list[int] = []

    def watch() -> None:
        while not seen or seen[-1] < count:
            give_way()
            seen.append(dropped())

    # The reader gives way whenever it looks up: what counts is how often it does, not how fast this machine is.
    for module in (link, pause):
        monkeypatch.setattr(module, "SLICE_SECONDS", -1.0)
    watching = gevent.spawn(watch)
    for _ in range(count):
        dialer.session.append(junk)
    dialer.link.wake()
    if repeated:
        eventually(lambda: not dialer.session.has_outbox, 20)
        dialer.link.transport.send(frame(Opcode.BINARY, batch_header(1, 0) + junk * count, mask=True))
    watching.get(timeout=20)
    assert dropped() == count
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 1000
    dialer.say(count + 1)
    eventually(lambda: listener.got == [count + 1])


def test_cut_ends_both_sides_at_once(connect: Connect) -> None:
    dialer, listener = connect()
    listener.link.cut("enough")
    assert listener.ends() == "enough"
    assert dialer.ends() in ("the connection was closed",)
    listener.link.cut("again")
    assert listener.ended == ["enough"]


def test_cut_frees_a_writer_whose_peer_does_not_read(connect: Connect) -> None:
    dialer, listener = connect()
    stuck = GeventEvent()
    listener.on_message = lambda _number: stuck.wait() and None
    dialer.say(1, 40, padding=1 << 20)
    eventually(lambda: listener.got == [1])
    eventually(lambda: not dialer.link._idle and dialer.session.has_waiting)
    began = time.monotonic()
    dialer.link.cut("enough")
    assert dialer.ends() == "enough"
    assert time.monotonic() - began < 1
    stuck.set()
    listener.ends()


def test_silent_peer_is_cut(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    dialer, listener = connect(heartbeat_interval=0.1, heartbeat_timeout=0.4)
    # Stops saying anything, without closing.
    monkeypatch.setattr(dialer.link.protocol, "next_tick", lambda: time.monotonic() + 60)
    began = time.monotonic()
    reason = listener.ends(4)
    assert "nothing was heard" in reason
    assert time.monotonic() - began > 0.2
    dialer.ends()


def test_leave_says_goodbye_behind_what_waits(connect: Connect) -> None:
    dialer, listener = connect()
    dialer.say(1, 200, padding=1000)
    eventually(lambda: not dialer.session.has_waiting)
    dialer.link.leave(Refusal.LEAVING, "leaving")
    assert "goodbye" in listener.ends()
    listener.hears(200)
    assert [event.code for event in listener.events if isinstance(event, Left)] == [Refusal.LEAVING]
    dialer.ends()


def test_leave_is_bounded_when_the_peer_does_not_read(connect: Connect) -> None:
    dialer, listener = connect()
    stuck = GeventEvent()
    listener.on_message = lambda _number: stuck.wait() and None
    dialer.say(1, 40, padding=1 << 20)
    eventually(lambda: listener.got == [1])
    began = time.monotonic()
    dialer.link.leave(Refusal.LEAVING, "leaving")
    assert time.monotonic() - began < 2 * PARTING_SECONDS + 1
    dialer.ends()
    stuck.set()
    listener.ends()


def test_refused_claim_is_told_to_the_dialer() -> None:
    near, far = connection()
    listener = Side(far, dials=False)
    listener.refuses = True
    dialer = Side(near, dials=True)
    assert "not wanted" in dialer.ends()
    assert isinstance(dialer.link.error, HandshakeError)
    assert dialer.link.error.code == Refusal.DUPLICATE
    assert "not wanted" in listener.ends()
    assert dialer.link.peer is None


def test_reader_that_stops_in_the_middle_of_a_batch_gets_the_rest_over_the_next_link(connect: Connect) -> None:
    sessions = Session(b"a" * 8, limit_bytes=64 << 20), Session(b"b" * 8, limit_bytes=64 << 20)
    received: list[int] = []
    for round_ in range(5):
        dialer, listener = connect(sessions=sessions)

        def stop(number: int, link: Link = listener.link, last: int = round_ * 40 + 25) -> None:
            if number == last:
                link.cut("in the middle")

        listener.on_message = stop
        dialer.say(round_ * 40 + 1, 40, padding=3000)
        listener.ends()
        dialer.ends()
        received += listener.got
    dialer, listener = connect(sessions=sessions)
    eventually(lambda: not sessions[0].has_outbox)
    assert [*received, *listener.got] == list(range(1, 201))
    assert sessions[0].resumed == 5
    assert sessions[1].repeats == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(Opcode.BINARY, b"\x99junk", mask=True), "unknown frame kind"),
        (frame(Opcode.BINARY, b"", mask=True), "empty"),
        (frame(Opcode.BINARY, b"\x14" + b"\0" * 16, mask=True), "BATCH"),
        (frame(Opcode.TEXT, b"hello", mask=True), "1003"),
        (frame(Opcode.BINARY, b"\x10\x90", mask=False), "1002"),
        (frame_header(Opcode.BINARY, 1 << 40, mask=True), "1009"),
        (b"\xff" * 100, "1002"),
        (frame(Opcode.BINARY, b"\x10" + b"\x91" * 1000, mask=True), ""),
        (b"".join(frame(Opcode.PING, b"x", mask=True) for _ in range(1000)), "pings"),
    ],
)
def test_what_a_stranger_sends_ends_the_link_and_is_no_error_of_ours(
    lone: tuple[Side, socket.socket], caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    side, sock = lone
    sock.sendall(data)
    assert reason in side.ends()
    assert side.link.error is not None
    assert "Traceback" not in caplog.text
    assert side.link.peer is None


def test_frames_may_be_large_only_after_the_handshake(connect: Connect) -> None:
    dialer, listener = connect()
    for side in (dialer, listener):
        assert isinstance(side.link.protocol, LinkProtocol)
        assert side.link.protocol._decoder.max_payload_bytes == MAX_FRAME_BYTES
    dialer.link.transport.send(frame_header(Opcode.BINARY, MAX_FRAME_BYTES + 1, mask=True))
    assert "1009" in listener.ends()


def test_error_of_ours_in_the_writer_ends_the_link_and_is_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    dialer, listener = connect()
    dialer.session.append("text")  # type: ignore[arg-type]  # a bug, as it were
    dialer.link.wake()
    assert dialer.ends() == "internal error"
    assert "error of ours" in caplog.text
    listener.ends()


def test_sending_to_a_peer_that_is_gone_ends_the_link(connect: Connect) -> None:
    dialer, listener = connect()
    listener.link.transport.abort()
    dialer.say(1, 100, padding=100_000)
    assert dialer.ends()
    assert dialer.session.outbox_messages == 100
    listener.ends()
