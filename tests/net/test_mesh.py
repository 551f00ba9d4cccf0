"""Nodes over real sockets: how links come up, replace each other, end and resume."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import textwrap
import time
from time import monotonic
from typing import Any

import gevent
import gevent.subprocess
import pytest
from gevent.event import Event

from gevent_mesh.errors import HandshakeError
from gevent_mesh.net import link as link_module
from gevent_mesh.net import mesh as module
from gevent_mesh.net.listener import Listener
from gevent_mesh.net.pause import give_way
from gevent_mesh.protocol import membership
from gevent_mesh.protocol.frames import Refusal
from gevent_mesh.protocol.link import Left, Phase
from gevent_mesh.protocol.session import Session
from gevent_mesh_discovery import DiscoveryServer
from tests.net.nodes import MIDDLE, HandMade, Join, Member, linked, numbered, pair, uid_above, uid_below
from tests.support import eventually


class TestForming:
    def test_nodes_find_each_other_through_discovery(self, join: Join, discovery: DiscoveryServer) -> None:
        members = [join(discovery.url) for _ in range(5)]
        linked(*members)
        for member in members:
            assert member.mesh.wait_for_peers(4, timeout=0)
            assert member.mesh.counters.links_up == 4
            member.say(100)
        for one, other in itertools.permutations(members, 2):
            one.hears(other, 100)

    def test_what_is_published_before_the_link_is_up_arrives(self, join: Join) -> None:
        one, two = join(), join()
        one.names(two)
        two.names(one)
        one.say(50)
        two.say(50)
        one.hears(two, 50)
        two.hears(one, 50)

    def test_both_dial_at_once_and_one_link_remains(self, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "FALLBACK_SECONDS", 0.0)
        for _ in range(15):
            one, two = join(), join()
            one.names(two)
            two.names(one)
            one.say(10)
            two.say(10)
            linked(one, two)
            one.hears(two, 10)
            two.hears(one, 10)
            near, far = one.link(two), two.link(one)
            assert near is not None
            assert far is not None
            assert {near.protocol.is_dialer, far.protocol.is_dialer} == {True, False}
            eventually(lambda one=one, two=two: len(one.mesh._connections) == len(two.mesh._connections) == 1)  # type: ignore[misc]  # bound now
            assert one.mesh.counters.links_down == two.mesh.counters.links_down == 0

    def test_larger_uid_dials_when_the_smaller_one_cannot(self, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "FALLBACK_SECONDS", 0.2)
        small, large = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        # The smaller one is told a wrong address.
        small.names(**{large.uid: "ws://127.0.0.1:1"})
        large.names(small)
        linked(small, large)
        link = large.link(small)
        assert link is not None
        assert link.protocol.is_dialer

    def test_wrong_peer_at_an_address(self, join: Join, caplog: pytest.LogCaptureFixture) -> None:
        one, two = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        other = uid_above(MIDDLE)
        one.names(**{other: two.address})
        eventually(lambda: "found " + two.uid in caplog.text or "not " + other in caplog.text)
        assert one.mesh.table.alive() == []
        assert two.mesh.table.alive() == []
        one.names(two, **{other: two.address})
        linked(one, two)
        assert one.link(other) is None

    def test_uid_that_an_address_no_longer_belongs_to_is_forgotten_once_nobody_names_it(self, join: Join) -> None:
        one, two = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        other = uid_above(MIDDLE)
        one.names(**{other: two.address})
        eventually(lambda: other in one.mesh._last_failure)
        assert one.mesh.table.get(other) is not None
        one.names()
        eventually(lambda: one.mesh.table.get(other) is None, 10)
        assert one.mesh.peers == []
        assert other not in one.mesh._last_failure

    def test_channels_do_not_mix(self, join: Join, caplog: pytest.LogCaptureFixture) -> None:
        one, two = join(channel="one"), join(channel="two")
        one.names(two)
        two.names(one)
        eventually(lambda: "channel" in caplog.text)
        assert one.mesh.table.alive() == two.mesh.table.alive() == []

    def test_tokens_differ(self, join: Join, caplog: pytest.LogCaptureFixture) -> None:
        one, two = join(tokens=("a" * 16,)), join(tokens=("b" * 16,))
        one.names(two)
        two.names(one)
        eventually(lambda: "token" in caplog.text)
        assert one.mesh.table.alive() == two.mesh.table.alive() == []

    def test_strangers_without_the_token_are_counted(self, join: Join, caplog: pytest.LogCaptureFixture) -> None:
        node = join(tokens=("a" * 16,))
        assert node.mesh._listener is not None
        for number in range(1, 4):
            with pytest.raises(HandshakeError):
                HandMade(node, tokens=("b" * 16,)).until_closed()
            eventually(lambda number=number: node.mesh._listener.strangers_cut.total() == number)  # type: ignore[misc]  # bound now
        assert "the tokens differ" in caplog.text

    def test_whatever_strangers_say_they_are_counted_by_few_reasons(self, join: Join) -> None:
        node = join()
        assert node.mesh._listener is not None
        for number in range(10):
            with pytest.raises(HandshakeError):
                HandMade(node, target=f"{number:016x}").until_closed()
        eventually(lambda: node.mesh._listener.strangers_cut.total() == 10)  # type: ignore[union-attr]  # it listens
        assert len(node.mesh._listener.strangers_cut) == 1

    def test_tokens_are_rotated(self, join: Join) -> None:
        old, both, new = join(tokens=("a" * 16,)), join(tokens=("b" * 16, "a" * 16)), join(tokens=("b" * 16,))
        both.names(old, new)
        old.names(both)
        new.names(both)
        linked(old, both)
        linked(both, new)

    def test_waiting_for_peers(self, join: Join) -> None:
        one, two = join(), join()
        assert one.mesh.wait_for_peers(0, timeout=0)
        assert not one.mesh.wait_for_peers(1, timeout=0.05)
        waiting = gevent.spawn(one.mesh.wait_for_peers, 1, timeout=10)
        one.names(two)
        two.names(one)
        assert waiting.get(timeout=10)

    def test_what_is_known_of_peers(self, join: Join) -> None:
        one, two = pair(join, heartbeat_interval=0.05)
        two.clients = 7
        eventually(lambda: one.mesh.peers[0].clients == 7)
        eventually(lambda: one.peer(two).link is not None)
        (info,) = one.mesh.peers
        assert (info.uid, info.address, info.state) == (two.uid, two.address, "alive")
        assert info.round_trip_seconds is not None
        assert 0 <= info.round_trip_seconds < 1
        two.mesh.stop()
        eventually(lambda: one.mesh.peers == [])

    def test_a_silent_listener_costs_a_dialer_its_deadline_and_no_more(
        self, join: Join, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.3)
        seen: list[float] = []

        def silence(transport: Any, _ticket: Any) -> None:
            began = time.monotonic()
            while transport.recv():
                pass
            seen.append(time.monotonic() - began)

        listener = Listener("127.0.0.1", 0, on_websocket=silence, require_mesh_header=True)
        listener.start()
        try:
            one = join(uid=uid_below(MIDDLE))
            one.names(**{MIDDLE: f"ws://127.0.0.1:{listener.port}"})
            eventually(lambda: len(seen) >= 2, 10)
        finally:
            listener.stop()
        assert 0.2 < seen[0] < 2
        assert one.mesh.table.alive() == []


class TestResuming:
    def test_cut_links_resume_with_nothing_lost_or_doubled(self, join: Join) -> None:
        one, two = pair(join)
        stop = Event()

        def talk(member: Member) -> None:
            while not stop.is_set():
                member.say(20, padding=200)
                gevent.sleep(0.002)

        talking = [gevent.spawn(talk, member) for member in (one, two)]
        for round_ in range(8):
            victim, other = ((one, two), (two, one))[round_ % 2]
            heard = len(victim.got)
            eventually(lambda victim=victim, heard=heard: len(victim.got) > heard + 100, 10)  # type: ignore[misc]  # bound now
            link = victim.link(other)
            assert link is not None
            link.cut("by the test")
            eventually(lambda victim=victim, other=other, link=link: victim.link(other) not in (None, link), 10)  # type: ignore[misc]  # bound now
        stop.set()
        gevent.joinall(talking, raise_error=True)
        one.hears(two, two.say())
        two.hears(one, one.say())
        assert one.mesh.counters.links_down == two.mesh.counters.links_down == 8
        assert one.mesh.counters.sent_lost == two.mesh.counters.sent_lost == 0

    def test_overflow_while_away_is_counted_exactly(self, join: Join) -> None:
        one, two = join(uid=uid_below(MIDDLE), outbox_bytes=64 * 1024), join(uid=MIDDLE, outbox_bytes=64 * 1024)
        session = Session(b"s" * 8, limit_bytes=1 << 20)
        del two
        first = HandMade(one, session=session).handshake()
        one.say(5)
        while len(first.events) < 6:
            first.step()
        first.transport.abort()
        first.session.detach()
        eventually(lambda: one.link("00000000000000aa") is None)
        last = one.say(200, padding=1000)
        again = HandMade(one, session=session).handshake()
        one.say()
        while session.received < last + 1:
            again.step()
        lost = session.received_lost
        assert lost > 100
        assert one.mesh.counters.sent_lost == lost
        received = [event for event in [*first.events, *again.events] if hasattr(event, "data")]
        assert len(received) == last + 1 - lost
        again.transport.abort()

    def test_new_process_at_an_address_inherits_nothing(self, join: Join) -> None:
        one = join(uid=uid_below(MIDDLE))
        gone = HandMade(one, uid="00000000000000aa").handshake()
        gone.transport.abort()
        eventually(lambda: one.link("00000000000000aa") is None)
        one.say(10)
        assert one.peer("00000000000000aa").session.outbox_messages == 10
        successor = HandMade(one, uid="00000000000000bb").handshake()
        assert one.mesh.table.get("00000000000000aa") is None
        one.say(1)
        while len(successor.events) < 2:
            successor.step()
        successor.transport.abort()

    def test_proven_newcomer_replaces_a_link_that_only_we_believe_in(self, join: Join) -> None:
        node = join()
        session = Session(b"s" * 8, limit_bytes=1 << 20)
        # The first connection stays open, as a half-open one would.
        stale = HandMade(node, session=session).handshake()
        eventually(lambda: node.link("00000000000000aa"))
        before = node.link("00000000000000aa")
        session.detach()
        newcomer = HandMade(node, session=session).handshake()
        eventually(lambda: node.link("00000000000000aa") not in (None, before))
        assert stale.transport.recv(1) == b"" or not stale.step()
        assert len(node.mesh.table.alive()) == 1
        assert node.mesh.counters.links_up == 2
        newcomer.transport.abort()

    def test_unproven_newcomer_replaces_nothing(self, join: Join) -> None:
        node = join(tokens=("a" * 16,))
        honest = HandMade(node, tokens=("a" * 16,)).handshake()
        eventually(lambda: node.link("00000000000000aa"))
        link = node.link("00000000000000aa")
        impostor = HandMade(node, tokens=("b" * 16,))
        with pytest.raises(HandshakeError) as caught:
            impostor.until_closed()
        assert caught.value.code == Refusal.UNAUTHORIZED
        assert node.link("00000000000000aa") is link
        honest.transport.abort()

    def test_reader_that_hangs_is_killed_for_a_newcomer(
        self, join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "STUCK_READER_SECONDS", 0.2)
        monkeypatch.setattr(link_module, "STUCK_SECONDS", 0.1)
        monkeypatch.setattr(membership, "FALLBACK_SECONDS", 0.2)
        for hangs_at_dialer in (True, False):
            one, two = pair(join)
            hanging, other = (one, two) if hangs_at_dialer else (two, one)
            entered = Event()

            def hang(number: int, entered: Event = entered) -> None:
                if number == 3:
                    entered.set()
                    Event().wait()

            hanging.on_number = hang
            other.say(10)
            assert entered.wait(5)
            link = other.link(hanging)
            assert link is not None
            link.cut("by the test")
            # The message that hung counts as received; the others come over the next link.
            hanging.hears(other, 10)
            assert "stuck" in caplog.text
            for member in (one, two):
                member.mesh.stop(0)
            caplog.clear()
        assert "error of ours" not in caplog.text

    def test_newcomer_that_gives_up_while_a_hung_reader_is_waited_for(
        self, join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "STUCK_READER_SECONDS", 1.0)
        monkeypatch.setattr(link_module, "STUCK_SECONDS", 0.1)
        monkeypatch.setattr(membership, "FALLBACK_SECONDS", 0.2)
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.3)
        one, two = pair(join)
        entered = Event()

        def hang(number: int) -> None:
            if number == 3:
                entered.set()
                Event().wait()

        one.on_number = hang
        two.say(10)
        assert entered.wait(5)
        link = two.link(one)
        assert link is not None
        link.cut("by the test")
        one.hears(two, 10)
        linked(one, two)
        assert "error of ours" not in caplog.text


class TestLeaving:
    def test_stop_sends_what_waits_and_says_goodbye(self, join: Join) -> None:
        one, two = pair(join)
        last = one.say(2000, padding=500)
        one.mesh.stop()
        assert two.numbers_from(one) == list(range(1, last + 1))
        eventually(lambda: two.mesh.peers == [])
        assert two.mesh.counters.links_down == 1

    def test_goodbye_says_that_we_leave(self, join: Join) -> None:
        node = join()
        peer = HandMade(node).handshake()
        stopping = gevent.spawn(node.mesh.stop)
        peer.until_closed()
        stopping.get(timeout=5)
        assert [event.code for event in peer.events if isinstance(event, Left)] == [Refusal.LEAVING]

    def test_stop_is_bounded_when_a_peer_does_not_read(self, join: Join) -> None:
        node = join()
        peer = HandMade(node).handshake()
        node.say(50, padding=200_000)
        began = time.monotonic()
        node.mesh.stop(0.5)
        assert time.monotonic() - began < 3
        peer.transport.abort()

    def test_stop_while_start_is_still_binding_leaves_nothing_behind(
        self, join: Join, discovery: DiscoveryServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binding, goes_on = Event(), Event()

        class Hesitates(Listener):
            def start(self) -> None:
                binding.set()
                goes_on.wait()
                super().start()

        monkeypatch.setattr(module, "Listener", Hesitates)
        node = join(discovery.url, starts=False)
        starting = gevent.spawn(node.mesh.start)
        assert binding.wait(5)
        node.mesh.stop(0)
        goes_on.set()
        starting.get(timeout=5)
        assert node.mesh._discovery == []
        assert node.mesh._scheduler is None
        assert node.mesh._listener is not None
        assert node.mesh._listener._server is None
        assert discovery.counters.registrations == discovery.registered == 0

    def test_links_stay_when_discovery_goes(self, join: Join, discovery: DiscoveryServer) -> None:
        members = [join(discovery.url) for _ in range(3)]
        linked(*members)
        discovery.stop()
        for member in members:
            eventually(lambda member=member: not member.mesh._discovery[0].connected)  # type: ignore[misc]  # bound now
            member.say(10)
        for one, other in itertools.permutations(members, 2):
            one.hears(other, 10)
        assert all(member.mesh.counters.links_down == 0 for member in members)


class TestBehaviour:
    def test_handler_that_raises_is_logged_and_costs_one_message(
        self, join: Join, caplog: pytest.LogCaptureFixture
    ) -> None:
        one, two = pair(join)

        def fail(number: int) -> None:
            if number == 3:
                raise ValueError("a bug of the application")

        two.on_number = fail
        one.say(10)
        two.hears(one, 10)
        assert "a bug of the application" in caplog.text
        assert two.mesh.counters.links_down == 0

    def test_reader_gives_way_during_a_flood(self, join: Join) -> None:
        one, two = pair(join)
        turns = Ticker()
        handled: list[int] = []

        def work(_number: int) -> None:
            began = time.perf_counter()
            while time.perf_counter() - began < 50e-6:
                pass
            handled.append(turns.count)

        two.on_number = work
        with turns:
            last = one.say(20_000)
            two.hears(one, last, 30)
        # At 50 us and more for each, 20,000 take longer than a second: a timer of 5 ms must have had its turns.
        # Between two turns lies no more than a slice of 5 ms, about a hundred messages; a thousand would be 50 ms.
        longest = max(len(list(run)) for _, run in itertools.groupby(handled))
        assert longest < 1000

    def test_message_under_a_foreign_uid_is_dropped_and_counted(self, join: Join) -> None:
        node = join()
        peer = HandMade(node).handshake()
        peer.session.append(numbered("00000000000000bb", 1))
        peer.session.append(numbered("00000000000000aa", 1))
        peer.flush()
        node.hears("00000000000000aa", 1)
        assert node.numbers_from("00000000000000bb") == []
        peer.transport.abort()
        eventually(lambda: node.mesh.counters.spoofed == 1)

    def test_silent_peer_is_cut_and_stays_a_suspect(self, join: Join) -> None:
        node = join(heartbeat_interval=0.1, heartbeat_timeout=0.4)
        began = time.monotonic()
        peer = HandMade(node).handshake()
        # It takes what it is sent, and says nothing.
        while peer.transport.recv():
            pass
        assert 0.3 < time.monotonic() - began < 2.4
        eventually(lambda: node.mesh.peers[0].state == "suspect")
        assert peer.protocol.phase is Phase.UP


class Ticker:
    """Counts how often a timer of 5 ms has had its turn."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self._greenlet = gevent.spawn(self._tick)

    def __exit__(self, *_: object) -> None:
        self._greenlet.kill()

    def _tick(self) -> None:
        while True:
            gevent.sleep(0.005)
            self.count += 1


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "monkey-patched"])
def test_it_works_whether_or_not_the_process_is_monkey_patched(patched: bool) -> None:
    code = f"""
        from gevent import monkey
        {"monkey.patch_all()" if patched else ""}
        import itertools
        from gevent_mesh_discovery import DiscoveryServer
        from tests.net.nodes import Member, linked
        server = DiscoveryServer(port=0)
        server.start()
        members = [Member(server.url) for _ in range(3)]
        linked(*members)
        for member in members:
            member.say(500, padding=1000)
        for one, other in itertools.permutations(members, 2):
            one.hears(other, 500)
        for member in members:
            member.mesh.stop()
        server.stop()
        assert monkey.is_module_patched("socket") is {patched}
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_of_a_running_node_leaves_its_links_and_its_registration_alone(
    join: Join, discovery: DiscoveryServer
) -> None:
    """The fork runs its event loop, as a worker of a pool does, and does not serve."""
    code = f"""
        import os, gevent, gevent.os, socketio
        from gevent_mesh import GeventMeshManager
        manager = GeventMeshManager({discovery.url!r}, ws_port=0, heartbeat_interval=0.1, heartbeat_timeout=1.0)
        server = socketio.Server(async_mode="gevent", client_manager=manager)
        manager.start()
        assert manager.wait_for_peers(1)
        uid = manager.uid
        pid = gevent.os.fork()
        if pid == 0:
            gevent.sleep(1.0)  # the loop of the child
            os._exit(0 if manager.mesh is None and manager.uid != uid else 1)
        number = 0
        while (ended := gevent.os.waitpid(pid, os.WNOHANG)) == (0, 0):
            number += 1
            server.emit("tick", number)
            gevent.sleep(0.01)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert manager.uid == uid and manager.mesh.counters.links_up == 1 and manager.mesh.counters.links_down == 0
        assert manager.mesh.counters.messages_received > 0
        server.emit("tick", number + 1)
        manager.stop()
        print(uid, number + 1)
    """
    node = join(discovery.url, heartbeat_interval=0.1, heartbeat_timeout=1.0)
    registered: list[int] = []

    def answer(_number: int) -> None:
        registered.append(discovery.registered)
        gevent.spawn(node.say)

    node.on_number = answer
    done = gevent.subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    uid, last = done.stdout.split()
    node.hears(uid, int(last))
    assert set(registered) == {2}
    assert discovery.counters.registrations == 2
    # It went down once: at the goodbye.
    eventually(lambda: node.mesh.peers == [])
    assert (node.mesh.counters.links_up, node.mesh.counters.links_down) == (1, 1)


def test_a_small_mesh_is_quiet(join: Join, discovery: DiscoveryServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    members = [join(discovery.url) for _ in range(3)]
    linked(*members)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    # One line for each link, at each of its ends.
    assert len([record for record in caplog.records if "link up" in record.getMessage()]) == 6


def at_work_for(seconds: float) -> None:
    """Work like a command for many clients: long, and giving way all the time."""
    ends = monotonic() + seconds
    while monotonic() < ends:
        give_way()


def test_a_reader_that_is_at_work_does_not_take_its_peer_for_silent(join: Join) -> None:
    one, two = pair(join, heartbeat_interval=0.1, heartbeat_timeout=0.3)
    two.on_number = lambda number: at_work_for(1.0) if number == 1 else None
    one.say(3)
    two.hears(one, 3)
    assert two.mesh.counters.links_down == one.mesh.counters.links_down == 0


def test_a_reader_that_is_at_work_is_not_killed_for_a_newer_link(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_READER_SECONDS", 0.1)
    one, two = pair(join)
    finished: list[int] = []

    def work(number: int) -> None:
        if number == 1:
            at_work_for(1.0)
        finished.append(number)

    two.on_number = work
    one.say(3)
    eventually(lambda: two.got)
    link = one.link(two)
    assert link is not None
    link.cut("as if the network had")
    two.hears(one, 3)
    eventually(lambda: finished == [1, 2, 3])
