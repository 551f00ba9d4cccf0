"""Readers and writers that die or do not come back: they are noticed, told with where they stand, and cost nothing."""

from __future__ import annotations

import logging
import time

import gevent
import pytest
from gevent.event import Event

from gevent_mesh.net import watch as module
from gevent_mesh.net.link import Link
from gevent_mesh.net.pause import at_work
from gevent_mesh.protocol.peers import PeerTable
from tests.net.nodes import MIDDLE, Join, Member, linked, pair, uid_below
from tests.support import eventually

TIMES = {"heartbeat_interval": 0.2, "heartbeat_timeout": 0.8}


def link_of(member: Member, other: Member) -> Link:
    link = member.link(other)
    assert link is not None
    return link


class Block:
    """Blocks whoever handles one number."""

    def __init__(self, member: Member, *numbers: int) -> None:
        self.entered = Event()
        self.released = Event()
        self.finished: list[int] = []
        self._numbers = numbers
        self._member = member
        member.on_number = self._on_number

    def _on_number(self, number: int) -> None:
        if number in self._numbers:
            self.entered.set()
            self.released.wait()
        self.finished.append(number)


@pytest.mark.parametrize("at_dialer", [True, False])
def test_reader_that_is_blocked_is_left_behind_and_what_comes_behind_its_message_arrives(
    join: Join, caplog: pytest.LogCaptureFixture, at_dialer: bool
) -> None:
    one, two = pair(join, **TIMES)
    deaf, other = (one, two) if at_dialer else (two, one)
    block = Block(deaf, 3)
    other.say(5)
    assert block.entered.wait(5)
    began = time.monotonic()
    eventually(lambda: block.finished == [1, 2, 4, 5], 5)
    assert time.monotonic() - began < TIMES["heartbeat_timeout"] + 1
    # Where it stands.
    assert "its reader does not come back" in caplog.text
    assert "self.released.wait()" in caplog.text
    other.say(5)
    eventually(lambda: block.finished == [1, 2, *range(4, 11)])
    assert deaf.mesh.watch.left_behind == 1
    # It does come back: its message is finished, once, and nothing else happens.
    link = link_of(deaf, other)
    block.released.set()
    eventually(lambda: block.finished == [1, 2, *range(4, 11), 3])
    eventually(lambda: deaf.mesh.watch.left_behind == 0)
    other.say(1)
    eventually(lambda: deaf.numbers_from(other) == list(range(1, 12)))
    assert link_of(deaf, other) is link
    assert deaf.mesh.counters.received_lost == other.mesh.counters.sent_lost == 0


def test_reader_that_comes_back_late_is_not_taken_for_the_dial_that_is_under_way(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair(join, **TIMES)
    block = Block(one, 1)
    two.say()
    eventually(lambda: one.mesh.watch.left_behind == 1)
    linked(one, two)
    # The next dial takes its time.
    monkeypatch.setattr("gevent_mesh.net.mesh.dial", lambda *_arguments, **_options: Event().wait())
    monkeypatch.setattr("gevent_mesh.protocol.membership.FALLBACK_SECONDS", 60.0)
    link_of(one, two).cut("by the test")
    eventually(lambda: one.peer(two).dialing)
    block.released.set()
    eventually(lambda: one.mesh.watch.left_behind == 0)
    assert one.peer(two).dialing


def test_readers_that_are_left_behind_are_not_kept_without_end(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_LEFT_BEHIND", 2)
    one, two = pair(join, **TIMES)
    block = Block(one, 1, 2, 3)
    two.say(4)
    eventually(lambda: block.finished == [4], 10)
    assert one.mesh.watch.left_behind == 2
    assert "is killed, in its message" in caplog.text
    block.released.set()
    eventually(lambda: block.finished == [4, 2, 3])


def test_reader_whose_connection_does_not_wake_it_is_left_behind(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair(join, **TIMES)
    link = link_of(one, two)
    # What comes stays in the kernel, and heartbeats go out: the other side sees nothing wrong.
    monkeypatch.setattr(link.transport, "recv", lambda _size=None: Event().wait())
    two.say(3)
    eventually(lambda: link.ended.is_set(), 5)
    assert "nothing was heard" in link.reason
    one.hears(two, 3)
    assert "does not come back" in caplog.text
    linked(one, two)


def test_writer_that_is_blocked_while_its_socket_would_take_more_is_replaced(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair(join, **TIMES)
    monkeypatch.setattr(link_of(one, two).transport, "send", lambda _data: Event().wait())
    one.say(3)
    two.hears(one, 3)
    assert "its writer does not come back" in caplog.text
    linked(one, two)


def test_writer_whose_peer_does_not_read_is_no_fault_of_ours(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    one, two = pair(join, **TIMES)
    released = Event()

    def work(_number: int) -> None:
        while not released.wait(0.05):
            at_work()

    two.on_number = work
    one.say(12, padding=1 << 20)
    link = link_of(one, two)
    eventually(lambda: not link._idle and not link.transport.is_writable)
    gevent.wait([link.ended], timeout=1.5 * TIMES["heartbeat_timeout"])
    released.set()
    two.hears(one, 12)
    assert link_of(one, two) is link
    assert "stuck" not in caplog.text


@pytest.mark.parametrize(
    ("who", "error"),
    [
        ("reader", RuntimeError("boom")),
        ("reader", gevent.Timeout(1)),
        ("reader", gevent.GreenletExit()),
        ("_writer", gevent.Timeout(1)),
        ("_writer", gevent.GreenletExit()),
        ("_heart", gevent.GreenletExit()),
    ],
)
def test_greenlet_of_a_link_that_dies_is_told_and_replaced(
    join: Join, caplog: pytest.LogCaptureFixture, who: str, error: BaseException
) -> None:
    one, two = pair(join, heartbeat_interval=5.0, heartbeat_timeout=10.0)
    link = link_of(one, two)
    getattr(link, who).kill(error, block=False)
    assert link.ended.wait(1)
    linked(one, two)
    for member in (one, two):
        member.say(10)
    one.hears(two, 10)
    two.hears(one, 10)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]


class Disturbs(logging.Handler):
    """An application's handler that waits, or fails, at the first line that has these words."""

    def __init__(self, words: str, *, waits: bool) -> None:
        super().__init__()
        self.released, self.was_hit = Event(), False
        self._words, self._waits = words, waits

    def emit(self, record: logging.LogRecord) -> None:
        if self._words not in record.getMessage() or self.was_hit:
            return
        self.was_hit = True
        if not self._waits:
            raise RuntimeError("the handler is broken")
        self.released.wait()


@pytest.mark.parametrize("words", ["link up", "link down"])
@pytest.mark.parametrize("waits", [True, False])
def test_log_handler_that_waits_or_fails_costs_one_link_and_not_the_next(join: Join, words: str, waits: bool) -> None:
    one, two = join(uid=uid_below(MIDDLE), **TIMES), join(uid=MIDDLE, **TIMES)
    handler = Disturbs(words, waits=waits)
    one.mesh._logger = logging.Logger("application", logging.INFO)
    one.mesh._logger.addHandler(handler)
    one.names(two)
    if words == "link down":
        linked(one, two)
        link_of(one, two).cut("by the test")
    eventually(lambda: handler.was_hit)
    two.say(3)
    one.hears(two, 3)
    linked(one, two)
    handler.released.set()


def test_reader_that_is_killed_while_it_waits_for_the_last_words_ends_its_link_all_the_same(join: Join) -> None:
    one, two = pair(join)
    link = link_of(one, two)

    def parts() -> None:
        link.reader.kill(block=False)  # type: ignore[union-attr]  # it is up
        gevent.sleep(5)

    link._part = parts  # type: ignore[method-assign]
    link.cut("by the test")
    assert link.ended.wait(2)
    eventually(lambda: one.link(two) not in (None, link))


def test_one_failure_ends_neither_the_scheduler_nor_a_dial_for_good(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair(join)
    calls = []

    def fail(*_arguments: object, **_options: object) -> None:
        calls.append(1)
        raise RuntimeError("boom")

    with monkeypatch.context() as patched:
        patched.setattr(PeerTable, "due", fail)
        eventually(lambda: len(calls) > 2)
    with monkeypatch.context() as patched:
        patched.setattr("gevent_mesh.net.mesh.dial", fail)
        link_of(one, two).cut("by the test")
        eventually(lambda: "dialling" in caplog.text)
    linked(one, two)
    assert "the scheduler failed" in caplog.text


def test_port_that_was_closed_from_below_is_opened_again(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    one = join(uid=MIDDLE, **TIMES)
    assert one.mesh._listener is not None
    server, port = one.mesh._listener._server, one.mesh.port
    assert server is not None
    server.close()
    eventually(lambda: one.mesh._listener is not None and one.mesh._listener._server is not server)
    assert one.mesh.port == port
    two = join(uid=uid_below(MIDDLE), **TIMES)
    two.names(one)
    linked(one, two)
    assert "it does again" in caplog.text


def test_node_whose_services_get_nothing_is_deaf_until_they_do(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair(join, **TIMES)
    link, hearing = link_of(one, two), one.peer(two).hearing
    with monkeypatch.context() as patched:
        patched.setattr(one, "on_message", lambda _peer, _message: None)
        two.say()
        eventually(lambda: hearing.deaf_since is not None)
        assert link.ended.wait(1)
        assert "deaf to" in caplog.text
        linked(one, two)
        assert hearing.deaf_since is not None
    two.say()
    eventually(lambda: hearing.deaf_since is None)
    assert not two.peer(one).hearing.deaf_since
