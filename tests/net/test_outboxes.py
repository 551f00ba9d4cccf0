"""What publishers, healthy peers, slow peers and stuck peers may expect of each other, over real sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from gevent_mesh.net import outboxes
from gevent_mesh.net.pause import at_work, give_way
from gevent_mesh.protocol.frames import Refusal
from gevent_mesh_discovery import DiscoveryServer
from tests.net.nodes import MIDDLE, NOBODY, HandMade, Join, Member, linked, numbered, pair, uid_above, uid_below
from tests.support import eventually

KIB = 1024
BUFFER_BYTES = 64 * KIB
"""What the kernel may hold for a slow or a stuck peer: by itself it would take several megabytes."""
STEP_BYTES = 16 * KIB


class SlowLink:
    """A way to a node that carries so many bytes a second towards it, and any number back."""

    def __init__(self, target: Member, bytes_per_second: float) -> None:
        self._port = target.mesh.port
        self._bytes_per_second = bytes_per_second
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._greenlets = [gevent.spawn(self._accept)]

    def stop(self) -> None:
        gevent.killall(self._greenlets)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._port))
            self._greenlets.append(gevent.spawn(self._carry, near, far, self._bytes_per_second))
            self._greenlets.append(gevent.spawn(self._carry, far, near, None))

    def _carry(self, source: socket.socket, target: socket.socket, bytes_per_second: float | None) -> None:
        due = time.monotonic()
        try:
            while data := source.recv(STEP_BYTES):
                target.sendall(data)
                if bytes_per_second is not None:
                    due = max(due, time.monotonic() - 0.01) + len(data) / bytes_per_second
                    gevent.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            """The other direction has ended it."""
        finally:
            source.close()
            target.close()


SlowPair = Callable[..., tuple[Member, Member]]


@pytest.fixture
def slow_pair(join: Join) -> Iterator[SlowPair]:
    """Two linked nodes with a slow link from the first to the second."""
    slow_links: list[SlowLink] = []

    def start(bytes_per_second: float, **options: int) -> tuple[Member, Member]:
        one, two = join(uid=uid_below(MIDDLE), **options), join(uid=MIDDLE)
        slow_links.append(SlowLink(two, bytes_per_second))
        one.names(**{two.uid: slow_links[-1].address})
        linked(one, two)
        return one, two

    yield start
    for slow_link in slow_links:
        slow_link.stop()


def stuck_peer(node: Member) -> HandMade:
    """A peer that does not read any more."""
    peer = HandMade(node)
    peer.transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    peer.handshake()
    eventually(lambda: node.link("00000000000000aa"))
    return peer


class TestHealthyPeer:
    @pytest.mark.parametrize("greenlets", [1, 100])
    def test_behind_a_slow_link_it_loses_nothing(self, slow_pair: SlowPair, greenlets: int) -> None:
        one, two = slow_pair(6e6, outbox_bytes=512 * KIB)
        count = 400
        talking = [gevent.spawn(one.say, count // greenlets, 10_000) for _ in range(greenlets)]
        gevent.joinall(talking, timeout=20, raise_error=True)
        assert one.mesh.outboxes.flush(10)
        # What several greenlets publish while they wait has no order between them.
        assert sorted(two.numbers_from(one)) == list(range(1, count + 1))
        assert one.mesh.counters.slow_consumers == one.mesh.counters.links_down == 0

    def test_behind_a_slow_link_it_gets_messages_that_fill_the_outbox(self, slow_pair: SlowPair) -> None:
        """Each of them takes longer than anybody has patience with a peer that does not move."""
        one, two = slow_pair(1.5e6, outbox_bytes=1024 * KIB)
        one.say(3, padding=900 * KIB)
        assert one.mesh.outboxes.flush(10)
        two.hears(one, 3)
        assert one.mesh.counters.slow_consumers == one.mesh.counters.links_down == 0

    @pytest.mark.parametrize(("outbox_kib", "padding", "count"), [(64, 1000, 300), (64, 100, 5000), (96, 40_000, 8)])
    def test_a_tight_loop_and_a_small_outbox_do_not_make_it_slow(
        self, join: Join, outbox_kib: int, padding: int, count: int
    ) -> None:
        one, two = pair(join, outbox_bytes=outbox_kib * KIB)
        one.say(count, padding)
        two.hears(one, count)
        assert one.mesh.counters.slow_consumers == one.mesh.counters.links_down == 0

    def test_a_tight_loop_that_goes_round_many_lets_their_writers_run(self, join: Join) -> None:
        one = join(uid=uid_below(MIDDLE))
        others = [join() for _ in range(5)]
        one.names(*others)
        for other in others:
            eventually(lambda other=other: one.link(other), 10)  # type: ignore[misc]  # bound now
        turns: list[int] = []

        def watch() -> None:
            while True:
                give_way()
                turns.append(1)

        watching = gevent.spawn(watch)
        gevent.sleep(0)
        turns.clear()
        for number in range(1, 51):
            one.mesh.outboxes.publish([one.peer(others[number % 5])], numbered(one.uid, number, 4 * KIB))
        watching.kill(block=False)
        assert len(turns) >= 3, "200 KiB in all, and never 64 for one of them"


class TestStuckPeer:
    def test_a_publisher_that_waits_for_it_has_sent_to_the_others_before(self, join: Join) -> None:
        one, healthy = pair(join, outbox_bytes=1024 * KIB)
        stuck = stuck_peer(one)
        assert one.mesh.outboxes.send("00000000000000aa", b"x" * 600 * KIB)
        talking = gevent.spawn(one.say, 1)
        eventually(lambda: healthy.numbers_from(one) == [1])
        assert not talking.dead
        talking.join(5)
        assert one.mesh.counters.slow_consumers == 0
        stuck.transport.abort()

    def test_it_costs_publishers_little_and_others_nothing(self, join: Join) -> None:
        one, healthy = pair(join, outbox_bytes=1024 * KIB)
        stuck = stuck_peer(one)
        count, greenlets = 400, 20
        began = time.monotonic()
        talking = [gevent.spawn(one.say, count // greenlets, 10_000) for _ in range(greenlets)]
        gevent.joinall(talking, timeout=20, raise_error=True)
        took = time.monotonic() - began
        assert one.mesh.counters.slow_consumers == 1
        eventually(lambda: one.link("00000000000000aa") is None)
        assert one.mesh.outboxes._patience["00000000000000aa"].is_left is False
        # A quarter of a second in all; waiting for it at each message would be a hundred times as much.
        assert took < 2
        eventually(lambda: len(healthy.got) == count)
        assert sorted(healthy.numbers_from(one)) == list(range(1, count + 1))
        assert one.link(healthy) is not None
        stuck.transport.abort()

    def test_publishers_do_not_give_way_at_every_message_to_a_writer_that_cannot_write(
        self, join: Join, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = join(uid=MIDDLE)
        peer = stuck_peer(one)
        one.say(1000, padding=4 * KIB)
        turns: list[None] = []
        monkeypatch.setattr(outboxes, "give_way", lambda: turns.append(None))
        one.say(200, padding=KIB)
        assert 2 <= len(turns) <= 4
        peer.transport.abort()

    def test_nobody_waits_for_it_once_it_is_cut(self, join: Join) -> None:
        node = join(outbox_bytes=64 * KIB)
        stuck = stuck_peer(node)
        with gevent.Timeout(10):
            while not node.mesh.counters.slow_consumers:
                node.say(1, 1000)
        began = time.monotonic()
        node.say(1000, 1000)
        assert time.monotonic() - began < 0.5
        assert node.mesh.counters.slow_consumers == 1
        stuck.transport.abort()

    def test_it_has_to_earn_new_patience_when_it_comes_back(self, join: Join) -> None:
        node = join(outbox_bytes=64 * KIB)
        stuck = stuck_peer(node)
        with gevent.Timeout(10):
            while not node.mesh.counters.slow_consumers:
                node.say(1, 1000)
        before = node.mesh.outboxes._patience["00000000000000aa"]
        assert not before.is_left
        eventually(lambda: node.link("00000000000000aa") is None)
        stuck.transport.abort()
        again = stuck_peer(node)
        assert node.mesh.outboxes._patience["00000000000000aa"] is before
        again.transport.abort()

    def test_goodbye_while_publishers_wait_for_it_is_no_error(self, join: Join) -> None:
        node = join(outbox_bytes=64 * KIB)
        peer = stuck_peer(node)
        talking = [gevent.spawn(node.say, 50, 4000) for _ in range(5)]
        eventually(lambda: node.mesh.outboxes._is_waited_for)
        peer.protocol.refuse(Refusal.LEAVING, "leaving")
        peer.flush()
        gevent.joinall(talking, timeout=5, raise_error=True)
        assert all(greenlet.successful() for greenlet in talking)
        assert node.mesh.table.get("00000000000000aa") is None
        assert node.mesh.counters.slow_consumers == 0
        peer.transport.abort()

    def test_it_recovers_under_steady_traffic(self, slow_pair: SlowPair) -> None:
        """What has piled up takes a while to pass, and until then there is no room for more."""
        one, two = slow_pair(4e6, outbox_bytes=256 * KIB)
        moves = gevent.event.Event()

        def work(_number: int) -> None:
            while not moves.wait(0.05):
                at_work()

        two.on_number = work
        stops = gevent.event.Event()

        def talk() -> None:
            while not stops.wait(0.001):
                one.say(2, padding=1000)

        talking = gevent.spawn(talk)
        eventually(lambda: one.mesh.counters.slow_consumers == 1, 15)
        overflown = one.say()
        eventually(lambda: one.peer(two).session.next_sequence > overflown + 500)
        moves.set()
        linked(one, two)
        back = one.say()
        # More than the outbox holds passes through the new link.
        eventually(lambda: any(number > back + 1000 for number in two.numbers_from(one)), 15)
        stops.set()
        talking.get(timeout=5)
        assert one.mesh.outboxes.flush(5)
        counters = one.mesh.counters
        assert (counters.slow_consumers, counters.links_up, counters.links_down) == (1, 2, 1)
        assert counters.sent_lost == two.mesh.counters.received_lost > 0
        assert len(two.got) + counters.sent_lost == counters.messages_sent


class TestRoom:
    """What somebody expects who rather waits than loses anything."""

    def fills(self, node: Member, peer: str, count: int) -> list[int]:
        """Send numbered messages, each after waiting for room; returns the growing list of those that were sent."""
        sent: list[int] = []

        def send() -> None:
            for number in range(1, count + 1):
                message = numbered(node.uid, number, padding=20 * KIB)
                node.mesh.outboxes.wait_for_room(len(message))
                node.mesh.outboxes.publish([node.peer(peer)], message, at_once=True)
                sent.append(number)

        gevent.spawn(send)
        return sent

    def test_a_peer_whose_link_is_down_for_a_while_loses_nothing(self, join: Join) -> None:
        one, two = pair(join, outbox_bytes=64 * KIB, heartbeat_timeout=20.0)
        link = one.link(two)
        assert link is not None
        # What a link that is up has told outranks what a roster names: the way back is taken away from both by hand.
        one.peer(two).member.address = NOBODY
        two.peer(one).member.address = ""
        link.cut("by the test")
        eventually(lambda: one.link(two) is None)
        sent = self.fills(one, two.uid, 20)
        eventually(lambda: len(sent) == 3)
        gevent.sleep(0.3)
        assert len(sent) == 3
        one.names(two)
        two.hears(one, 20)
        assert one.mesh.counters.sent_lost == 0

    def test_who_takes_nothing_for_too_long_is_waited_for_once(self, join: Join) -> None:
        one = join(outbox_bytes=64 * KIB, heartbeat_timeout=0.5)
        one.names(**{MIDDLE: NOBODY})
        began = time.monotonic()
        sent = self.fills(one, MIDDLE, 20)
        eventually(lambda: len(sent) == 20)
        assert 0.5 <= time.monotonic() - began < 2.0

    @pytest.mark.parametrize("farewell", ["dead", "not named any more", "forgotten"])
    def test_who_will_not_be_back_is_not_waited_for(self, join: Join, farewell: str) -> None:
        one = join(outbox_bytes=64 * KIB, heartbeat_timeout=20.0, resume_window=20.0)
        one.names(**{MIDDLE: NOBODY})
        sent = self.fills(one, MIDDLE, 4)
        eventually(lambda: len(sent) == 3)
        if farewell == "dead":
            one.mesh._report(one.mesh.table.tick(time.monotonic() + 20.0))
        elif farewell == "forgotten":
            one.mesh._report(one.mesh.table.left(MIDDLE))
        else:
            one.names()
        eventually(lambda: len(sent) == 4 or one.mesh.table.get(MIDDLE) is None)
        began = time.monotonic()
        one.mesh.outboxes.wait_for_room(60 * KIB)
        assert time.monotonic() - began < 1.0
        assert one.mesh.outboxes.flush(0.0)


class TestWhileTheMeshForms:
    def test_stop_delivers_what_was_published_before_the_roster(self, join: Join, discovery: DiscoveryServer) -> None:
        node = join(discovery.url)
        eventually(lambda: discovery.registered == 1)
        newcomer = join(discovery.url)
        assert newcomer.mesh.outboxes.awaits_roster
        newcomer.say(20)
        newcomer.mesh.stop(5)
        assert node.numbers_from(newcomer) == list(range(1, 21))

    def test_flush_waits_for_links_that_are_not_up_yet(self, join: Join) -> None:
        one, two = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        one.names(two)
        one.say(20)
        assert two.got == []
        assert one.mesh.outboxes.flush(5)
        assert two.numbers_from(one) == list(range(1, 21))

    def test_flush_ends_at_its_timeout(self, join: Join) -> None:
        node = join()
        assert node.mesh.outboxes.flush(0)
        node.say()
        began = time.monotonic()
        assert not node.mesh.outboxes.flush(0.1)
        node.names(**{uid_above(node.uid): NOBODY})
        assert not node.mesh.outboxes.flush(0.1)
        assert 0.2 <= time.monotonic() - began < 2

    def test_kept_messages_come_once_and_first_while_a_log_handler_waits(self, join: Join) -> None:
        class Waits(logging.Handler):
            """As one that writes to a socket does in a patched process."""

            entered = 0

            def emit(self, record: logging.LogRecord) -> None:
                if "link up" in record.getMessage():
                    self.entered += 1
                    gevent.sleep(0.05)

        one, two = join(uid=MIDDLE), join(uid=uid_below(MIDDLE))
        handler, log = Waits(), logging.getLogger("tests.mesh")
        level = log.level
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        stops = gevent.event.Event()

        def talk() -> None:
            while not stops.wait(0.002):
                one.say()

        try:
            one.say(50)
            talking = gevent.spawn(talk)
            two.names(one)
            linked(one, two)
            eventually(lambda: handler.entered == 2)
            last = one.say() + 20
            eventually(lambda: len(two.numbers_from(one)) >= last)
            stops.set()
            talking.get(timeout=5)
        finally:
            stops.set()
            log.removeHandler(handler)
            log.setLevel(level)
        two.hears(one, one.say())
