"""Delivery to this node's own clients: straight to their sockets where that is the same as through their queues."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import requests
import socketio
from gevent import select, socket
from gevent.event import Event
from gevent.pywsgi import WSGIHandler, WSGIServer
from gevent.queue import JoinableQueue
from geventwebsocket.handler import WebSocketHandler
from socketio import packet

from gevent_mesh import GeventMeshManager, connections
from gevent_mesh.fanout import GATHERED_BYTES, MANY, Fanout, Turn
from gevent_mesh.net.pause import give_way
from gevent_mesh.outlets import Outlet
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.websocket import Opcode, frame
from tests.support import eventually
from tests.test_routing import peer

HANDLERS = {"gevent-websocket": WebSocketHandler, "simple-websocket": WSGIHandler}


class Browser:
    """A client that is read step by step, over a small buffer if that is wished.

    Attributes:
        numbers: of the events "tick" that came.
        others: frames that were no such event.
    """

    def __init__(self, port: int, *, buffer_bytes: int = 0, path: str = "", header: str = "X: y") -> None:
        self.numbers: list[int] = []
        self.others: list[tuple[int, bytes]] = []
        self._data = b""
        self.sock = socket.socket()
        if buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.sock.connect(("127.0.0.1", port))
        lines = [
            f"GET {path or '/socket.io/?EIO=4&transport=websocket'} HTTP/1.1", "Host: x", "Upgrade: websocket",
            "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13",
            header, "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.sock.recv(1)
        if path:
            return
        self.send(b"40")
        while not self.others or not self.others[-1][1].startswith(b"40"):
            self.read()
        self.sid: str = json.loads(self.others[-1][1][2:])["sid"]
        self.others.clear()

    def send(self, payload: bytes, opcode: int = Opcode.TEXT) -> None:
        self.sock.sendall(frame(opcode, payload, mask=True))

    def read(self) -> None:
        data = self.sock.recv(65536)
        assert data, "closed"
        self._data += data
        while (found := self._next_frame()) is not None:
            opcode, payload = found
            if opcode == Opcode.TEXT and payload.startswith(b'42["tick"'):
                self.numbers.append(json.loads(payload[2:])[1])
            else:
                self.others.append((opcode, payload))

    def _next_frame(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        extra = {126: 2, 127: 8}.get(data[1], 0)
        length = int.from_bytes(data[2 : 2 + extra], "big") if extra else data[1]
        end = 2 + extra + length
        if len(data) < 2 + extra or len(data) < end:
            return None
        # Whole in itself, not masked, nothing compressed: what got inside of another frame would not be.
        assert data[0] in (0x81, 0x82, 0x88, 0x89, 0x8A), data[:20]
        self._data = data[end:]
        return data[0] & 0x0F, data[2 + extra : end]

    def read_on(self) -> Browser:
        """Read from now on, in the background."""

        def read() -> None:
            while True:
                try:
                    self.read()
                except (OSError, AssertionError):
                    return

        gevent.spawn(read)
        return self


class Served:
    """A server with clients of its own."""

    def __init__(
        self,
        handler: str = "gevent-websocket",
        *,
        direct_writes: bool = True,
        client_queue_bytes: int | None = None,
        **options: Any,
    ) -> None:
        self.handler = handler
        self.manager = GeventMeshManager(
            [], ws_port=0, direct_writes=direct_writes, client_queue_bytes=client_queue_bytes
        )
        self.sio = socketio.Server(async_mode="gevent", client_manager=self.manager, namespaces=["/"], **options)
        self.server = WSGIServer(
            ("127.0.0.1", 0), socketio.WSGIApp(self.sio), handler_class=HANDLERS[handler], log=None, spawn=1000
        )
        self.server.start()
        self.browsers: list[Browser] = []
        self._numbers = itertools.count(1)

    @property
    def fanout(self) -> Fanout:
        return self.manager._clients.fanout

    def browser(self, **options: Any) -> Browser:
        self.browsers.append(Browser(self.server.server_port, **options))
        return self.browsers[-1]

    def number(self) -> int:
        return next(self._numbers)

    def tick(self, count: int = 1, padding: int = 0) -> int:
        """Emit numbered events; returns the last number."""
        for _ in range(count):
            number = self.number()
            self.sio.emit("tick", (number, "x" * padding))
        return number

    def gather(self, count: int, padding: int = 0) -> int:
        """The same events, as a peer has sent them."""
        for _ in range(count):
            number = self.number()
            self.fanout.gather("/", [], [], [f'2["tick",{number},"{"x" * padding}"]'])
        return number

    def stop(self) -> None:
        for browser in self.browsers:
            browser.sock.close()
        self.manager.stop()
        self.server.stop(1)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(*args: Any, **options: Any) -> Served:
        made.append(Served(*args, **options))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.fixture(params=sorted(HANDLERS))
def served(request: pytest.FixtureRequest, serve: Callable[..., Served]) -> Served:
    return serve(request.param)


def test_events_go_straight_to_websockets_in_order(served: Served) -> None:
    browsers = [served.browser().read_on() for _ in range(3)]
    served.tick(50)
    for browser in browsers:
        eventually(lambda browser=browser: browser.numbers == list(range(1, 51)))  # type: ignore[misc]  # bound now
    assert (served.fanout.direct, served.fanout.queued) == (150, 0)


def test_binary_events_arrive_whole(served: Served) -> None:
    browser = served.browser().read_on()
    served.sio.emit("file", b"\x00\xff" * 40_000)
    eventually(lambda: len(browser.others) == 2)
    (head, attachment) = browser.others
    assert head == (Opcode.TEXT, b'451-["file",{"_placeholder":true,"num":0}]')
    assert attachment == (Opcode.BINARY, b"\x00\xff" * 40_000)
    assert served.fanout.direct == 1


def test_half_written_frames_are_completed_first_and_nothing_gets_between(served: Served) -> None:
    """Not even what the server answers to pings."""
    slow = served.browser(buffer_bytes=4096)
    for step in range(40):
        served.tick(padding=150_000)
        slow.send(b"ping %d" % step, Opcode.PING)
        gevent.sleep(0)
    assert served.fanout.direct > 0, "nothing was half written"
    assert served.fanout.queued > 0, "it took everything at once"
    slow.read_on()
    eventually(lambda: len(slow.numbers) == 40, 20)
    assert slow.numbers == list(range(1, 41))
    eventually(lambda: len(slow.others) == 40)
    assert slow.others == [(Opcode.PONG, b"ping %d" % step) for step in range(40)]


def test_a_client_that_does_not_read_delays_nobody(served: Served) -> None:
    served.browser(buffer_bytes=4096)
    quick = served.browser().read_on()
    last = served.tick(200, padding=100_000)
    eventually(lambda: quick.numbers == list(range(1, last + 1)), 20)


def test_what_is_queued_stays_in_front(served: Served) -> None:
    browser = served.browser()
    client = next(iter(served.sio.eio.sockets.values()))
    served.sio.eio.send(client.sid, '2["tick",0,""]')
    served.tick(3)
    assert served.fanout.queued == 3
    browser.read_on()
    eventually(lambda: browser.numbers == [0, 1, 2, 3])


def test_clients_on_polling_and_on_websocket_share_events(served: Served) -> None:
    browser = served.browser().read_on()
    polling = socketio.SimpleClient()
    got: list[Any] = []
    with gevent.Timeout(10):
        pool = gevent.get_hub().threadpool
        url = f"http://127.0.0.1:{served.server.server_port}"
        pool.apply(lambda: polling.connect(url, transports=["polling"]))
        served.tick(3)
        got += [pool.apply(polling.receive, kwds={"timeout": 5}) for _ in range(3)]
        pool.apply(polling.disconnect)
    assert got == [["tick", number, ""] for number in (1, 2, 3)]
    eventually(lambda: browser.numbers == [1, 2, 3])
    assert (served.fanout.direct, served.fanout.queued) == (3, 3)


def test_nothing_overtakes_what_the_writer_holds_while_a_ping_is_answered(serve: Callable[..., Served]) -> None:
    served = serve()
    browser = served.browser()
    client = next(iter(served.sio.eio.sockets.values()))
    (connection,) = client.queue.connections
    with connection._sock._writing:  # as whoever answers a ping has it, to a client that is behind
        served.sio.eio.send(client.sid, '2["tick",0,""]')
        eventually(client.queue.empty)
        served.tick()
    browser.read_on()
    eventually(lambda: len(browser.numbers) == 2)
    assert browser.numbers == [0, 1]


def test_a_connection_that_only_probes_gets_no_events(served: Served) -> None:
    """A proxy that tries an upgrade twice."""
    path = "/socket.io/?EIO=4&transport=polling"
    root = f"http://127.0.0.1:{served.server.server_port}"
    pool = gevent.get_hub().threadpool

    def ask(method: str, body: str = "") -> str:
        text: str = pool.apply(lambda: requests.request(method, root + path, data=body, timeout=5).text)
        return text

    path += "&sid=" + json.loads(ask("GET")[1:])["sid"]
    ask("POST", "40")
    ask("GET")
    upgrade = path.replace("polling", "websocket")
    used, other = (Browser(served.server.server_port, path=upgrade) for _ in range(2))
    for browser in (used, other):
        browser.send(b"2probe")
    used.send(b"5")
    eventually(lambda: served.fanout.outlets)
    other.read_on()
    served.tick(3)
    used.read_on()
    eventually(lambda: used.numbers == [1, 2, 3])
    assert other.numbers == []


def test_behind_half_a_frame_nothing_is_written() -> None:
    near, far = socket.socketpair()
    outlet = Outlet(SimpleNamespace(queue=JoinableQueue()), near)
    assert outlet.take(b"x" * 3_000_000)
    near.settimeout(0.05)
    with pytest.raises(OSError, match="timed out"):
        outlet.write(b"")
    while far.recv(1 << 20):
        if not select.select([far], [], [], 0)[0]:
            break
    assert not outlet.take(b"torn")


def test_what_comes_behind_a_websocket_is_no_request(served: Served) -> None:
    browser = served.browser()
    browser.send(b"\x03\xe8", Opcode.CLOSE)
    browser.sock.sendall(b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
    got = b""
    with gevent.Timeout(5), contextlib.suppress(ConnectionError):
        while data := browser.sock.recv(4096):
            got += data
    assert b"HTTP" not in got


@pytest.mark.parametrize("header", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_an_upgrade_that_announces_a_body_is_served_as_any_other(
    served: Served, header: str, capfd: pytest.CaptureFixture[str]
) -> None:
    browser = served.browser(header=header).read_on()
    served.tick()
    eventually(lambda: browser.numbers == [1])
    browser.sock.close()
    eventually(lambda: not served.sio.eio.sockets)
    gevent.sleep(0.05)
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_that_kills_its_greenlets_leaves_no_traceback(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    browser = served.browser()
    pool = served.server.pool
    assert pool is not None
    pool.kill(timeout=5)
    served.tick()
    with gevent.Timeout(5), contextlib.suppress(OSError, AssertionError):
        while True:
            browser.read()
    gevent.sleep(0.05)
    assert "Traceback" not in capfd.readouterr().err


def test_outlets_go_with_their_clients(served: Served) -> None:
    browser = served.browser()
    assert len(served.fanout.outlets) == 1
    browser.sock.close()
    eventually(lambda: not served.fanout.outlets)
    served.tick()


def test_who_replaces_the_way_out_sees_every_packet(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = served.browser().read_on()
    seen: list[Any] = []
    send = served.sio._send_eio_packet

    def note(sid: str, packet: Any) -> None:
        seen.append(packet)
        send(sid, packet)

    monkeypatch.setattr(served.sio, "_send_eio_packet", note)
    served.tick(2)
    assert len(seen) == 2
    eventually(lambda: browser.numbers == [1, 2])


def test_the_log_of_engineio_has_every_packet(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    engineio_logger = logging.getLogger("test.engineio")
    engineio_logger.setLevel(logging.INFO)
    served = serve(engineio_logger=engineio_logger)
    browser = served.browser().read_on()
    served.tick()
    eventually(lambda: browser.numbers == [1])
    assert any('Sending packet MESSAGE data 2["tick"' in message for message in caplog.messages)


def test_admin_ui_counts_every_packet(serve: Callable[..., Served]) -> None:
    served = serve()
    admin = served.sio.instrument(auth=False, mode="development", server_stats_interval=0.5)
    try:
        browser = served.browser().read_on()
        served.tick(3)
        eventually(lambda: browser.numbers == [1, 2, 3])
        assert (served.fanout.direct, served.fanout.queued) == (0, 3)
        counted = {event["type"]: event["count"] for event in admin.event_buffer.get_and_clear() if "count" in event}
        assert counted["packetsOut"] >= 3
    finally:
        admin.uninstrument()
        admin.shutdown()


@pytest.mark.parametrize("options", [{"direct_writes": False}, {"monitor_clients": False}])
def test_without_outlets_all_goes_through_the_queues(serve: Callable[..., Served], options: dict[str, Any]) -> None:
    served = serve(**options)
    browser = served.browser().read_on()
    served.tick(3)
    eventually(lambda: browser.numbers == [1, 2, 3])
    assert (served.fanout.direct, served.fanout.queued) == (0, 3)


def test_an_unknown_engineio_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    manager = GeventMeshManager([])
    server = socketio.Server(async_mode="gevent")
    server.eio._async = object()
    connections.install(server, manager._limits, {}, logging.getLogger("test"))
    assert caplog.messages == [
        "this python-engineio is not known: clients have no limits, and events go through its queues"
    ]


class _Plate:
    """An outlet that takes its time."""

    def __init__(self, log: list[tuple[int, bytes]], number: int) -> None:
        self._log = log
        self._number = number

    def take(self, frames: bytes) -> bool:
        ends = time.perf_counter() + 20e-6
        while time.perf_counter() < ends:
            pass
        self._log.append((self._number, frames))
        return True


def test_large_fan_outs_hold_nobody_up_and_nothing_overtakes_them(serve: Callable[..., Served]) -> None:
    served = serve()
    log: list[tuple[int, bytes]] = []
    for number in range(10_000):
        eio_sid = f"eio {number}"
        served.manager.basic_enter_room(f"sid {number}", "/", None, eio_sid=eio_sid)
        served.fanout.outlets[eio_sid] = _Plate(log, number)  # type: ignore[assignment]  # all that is asked of one
    gaps: list[float] = []

    def watch() -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    def answer() -> None:
        """Emit as soon as the first has been seen."""
        eventually(lambda: log)
        served.tick()

    watching, answering = gevent.spawn(watch), gevent.spawn(answer)
    gevent.sleep(0.01)
    gaps.clear()
    served.tick()
    answering.get(timeout=20)
    watching.kill()
    frames = [frame for _, frame in log]
    assert len(log) == 20_000
    assert frames == sorted(frames)
    assert len(set(log)) == 20_000
    # 0.4 s of work: somebody who wants to run again at once has done so at least every 20 ms.
    assert len(gaps) > 20


class TestTurn:
    def test_others_wait_until_it_is_given_back_as_often_as_it_was_taken(self) -> None:
        turn = Turn()
        log: list[str] = []

        def other() -> None:
            with turn:
                log.append("other")

        with turn:
            waiting = gevent.spawn(other)
            with turn:
                gevent.sleep(0)
            gevent.sleep(0)
            log.append("first")
        waiting.get(timeout=5)
        assert log == ["first", "other"]

    def test_hub_goes_past_and_takes_it_from_nobody(self) -> None:
        turn = Turn()
        log: list[str] = []

        def in_hub() -> None:
            with turn, turn:
                log.append("hub")

        def other() -> None:
            with turn:
                log.append("other")

        with turn:
            gevent.get_hub().loop.run_callback(in_hub)
            waiting = gevent.spawn(other)
            eventually(lambda: log)
            assert log == ["hub"]
        waiting.get(timeout=5)
        assert log == ["hub", "other"]

    def test_it_is_free_again_behind_who_fails_or_is_killed(self) -> None:
        turn = Turn()

        def work() -> None:
            with turn:
                gevent.sleep(10)

        working = gevent.spawn(work)
        waiting = gevent.spawn(work)
        gevent.sleep(0)
        waiting.kill()
        working.kill()
        with gevent.Timeout(5), contextlib.suppress(ValueError), turn:
            raise ValueError
        with gevent.Timeout(5), turn:
            assert working.dead


# ---------------------------------------------------------------------- what one read of a link has brought


def writes_of(outlet: Outlet) -> list[int]:
    """Note the sizes of what it gives to the kernel from now on."""
    sizes: list[int] = []
    send = outlet._send

    def note(data: bytes) -> int:
        sizes.append(len(data))
        return send(data)

    outlet._send = note
    return sizes


def test_gathered_events_cost_each_client_one_write_in_order(served: Served) -> None:
    browsers = [served.browser().read_on() for _ in range(3)]
    writes = [writes_of(outlet) for outlet in served.fanout.outlets.values()]
    for _ in range(2):
        served.gather(50)
        assert not served.fanout.direct % 150
        served.fanout.flush()
    for browser in browsers:
        eventually(lambda browser=browser: browser.numbers == list(range(1, 101)))  # type: ignore[misc]  # bound now
    assert [len(sizes) for sizes in writes] == [2, 2, 2]
    assert (served.fanout.direct, served.fanout.queued) == (300, 0)


def test_nothing_that_is_sent_later_overtakes_what_is_gathered(served: Served) -> None:
    browser = served.browser().read_on()
    served.gather(2)
    served.tick()
    served.gather(2)
    served.fanout.deliver_to(next(iter(served.sio.eio.sockets)), packet.Packet(data=["tick", served.number()]))
    served.gather(1)
    served.fanout.flush()
    eventually(lambda: len(browser.numbers) == 7)
    assert browser.numbers == list(range(1, 8))


def test_gathered_events_stay_behind_what_is_queued(served: Served) -> None:
    browser = served.browser()
    client = next(iter(served.sio.eio.sockets.values()))
    served.sio.eio.send(client.sid, '2["tick",0,""]')
    served.gather(3)
    served.fanout.flush()
    assert (served.fanout.direct, served.fanout.queued) == (0, 3)
    browser.read_on()
    eventually(lambda: browser.numbers == [0, 1, 2, 3])


def test_what_a_socket_does_not_take_of_gathered_events_is_queued_in_order(served: Served) -> None:
    slow = served.browser(buffer_bytes=4096)
    (outlet,) = served.fanout.outlets.values()
    while not served.fanout.queued:
        served.gather(12, padding=5000)
        served.fanout.flush()
    assert served.fanout.direct > 0
    assert len(outlet._rest) < 5100, "more than the frame that is half written"
    last = served.gather(12, padding=5000)
    served.fanout.flush()
    slow.send(b"ping", Opcode.PING)
    slow.read_on()
    eventually(lambda: len(slow.numbers) == last, 20)
    assert slow.numbers == list(range(1, last + 1))
    eventually(lambda: slow.others == [(Opcode.PONG, b"ping")])


@pytest.mark.parametrize("written", [1, 9, 10, 11, 25, 30, 39, 40])
def test_an_outlet_keeps_half_a_frame_and_leaves_the_rest_to_the_queue(written: int) -> None:
    near, far = socket.socketpair()
    queue = JoinableQueue()
    outlet = Outlet(SimpleNamespace(queue=queue), near)
    frames = [bytes((65 + number,)) * 10 for number in range(4)]
    send = outlet._send
    outlet._send = lambda data: send(data[:written])
    taken = outlet.take_some(frames)
    assert taken == -(-written // 10)
    assert queue.empty() == (written == 40)
    assert outlet.take(b"x") == (written == 40)
    outlet.write(b"")
    near.close()
    whole = b"".join(frames[:taken]) + b"x" * (written == 40)
    assert far.recv(100) == whole


def test_a_client_that_has_gone_keeps_gathered_events_from_nobody(served: Served) -> None:
    gone, other = served.browser(), served.browser().read_on()
    left, *_ = served.sio.eio.sockets.values()
    gone.sock.close()
    for _ in range(3):
        served.gather(5)
        served.fanout.flush()
    left.closed = True
    last = served.gather(5)
    served.fanout.flush()
    eventually(lambda: other.numbers == list(range(1, last + 1)))
    eventually(lambda: len(served.fanout.outlets) == 1)


def test_clients_on_polling_get_gathered_events_as_well(served: Served) -> None:
    browser = served.browser().read_on()
    polling = socketio.SimpleClient()
    with gevent.Timeout(10):
        pool = gevent.get_hub().threadpool
        url = f"http://127.0.0.1:{served.server.server_port}"
        pool.apply(lambda: polling.connect(url, transports=["polling"]))
        served.gather(3)
        served.fanout.flush()
        got = [pool.apply(polling.receive, kwds={"timeout": 5}) for _ in range(3)]
        pool.apply(polling.disconnect)
    assert got == [["tick", number, ""] for number in (1, 2, 3)]
    eventually(lambda: browser.numbers == [1, 2, 3])
    assert (served.fanout.direct, served.fanout.queued) == (3, 3)


def test_who_sees_every_packet_sees_it_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.browser()
    seen: list[Any] = []
    monkeypatch.setattr(served.sio, "_send_eio_packet", lambda _sid, packet: seen.append(packet.data))
    served.gather(2)
    assert seen == ['2["tick",1,""]', '2["tick",2,""]']


def test_nothing_is_gathered_while_somebody_delivers(served: Served) -> None:
    browser = served.browser().read_on()
    done = Event()

    def deliver() -> None:
        with served.fanout.turn():
            done.wait()
            served.tick()

    first, second = gevent.spawn(deliver), gevent.spawn(served.gather, 1)
    gevent.sleep(0.01)
    assert not second.dead, "to flush would be to wait, with what has come before in hand"
    assert not served.fanout.direct
    done.set()
    gevent.joinall([first, second], timeout=5, raise_error=True)
    eventually(lambda: browser.numbers == [2, 1])


def test_what_is_gathered_is_bounded(served: Served) -> None:
    browser = served.browser().read_on()
    served.gather(30, padding=10_000)
    assert served.fanout.direct == GATHERED_BYTES // 10_000 + 1
    served.fanout.flush()
    eventually(lambda: browser.numbers == list(range(1, 31)))


def test_for_many_clients_at_once_nothing_is_gathered(serve: Callable[..., Served]) -> None:
    served = serve()
    log: list[tuple[int, bytes]] = []
    for number in range(MANY + 1):
        served.manager.basic_enter_room(f"sid {number}", "/", None, eio_sid=f"eio {number}")
        served.fanout.outlets[f"eio {number}"] = _Plate(log, number)  # type: ignore[assignment]  # all that is asked of one
    served.gather(1)
    assert len(log) == MANY + 1


@pytest.fixture
def turns() -> Iterator[Callable[[], int]]:
    """How often somebody who wants to run again at once has done so."""
    count = 0

    def watch() -> None:
        nonlocal count
        while True:
            give_way()
            count += 1

    watching = gevent.spawn(watch)
    gevent.sleep(0)
    yield lambda: count
    watching.kill()


def test_gathered_events_for_a_socket_that_is_full_hold_nobody_up(served: Served, turns: Callable[[], int]) -> None:
    slow = served.browser(buffer_bytes=4096)
    (outlet,) = served.fanout.outlets.values()
    while outlet.is_free:
        served.gather(1, padding=100_000)
        served.fanout.flush()
    before = turns()
    for _ in range(5):
        last = served.gather(4000)
        served.fanout.flush()
    # 20,000 packets for a queue are 40 ms of work and more, with a look at the others every 2 ms.
    assert turns() - before >= 5
    slow.read_on()
    eventually(lambda: len(slow.numbers) == last, 20)
    assert slow.numbers == list(range(1, last + 1))


@pytest.mark.parametrize("event_bytes", [10, 1000, 40_000])
def test_events_of_peers_cut_no_client_without_an_outlet_that_keeps_up(
    serve: Callable[..., Served], event_bytes: int
) -> None:
    served = serve(direct_writes=False, client_queue_bytes=64 * 1024)
    browser = served.browser().read_on()
    for _ in range(300):  # reads of a link, whose reader does not have to wait for the next one
        last = served.gather(min(10, 65_536 // event_bytes), padding=event_bytes)
        served.fanout.flush()
    eventually(lambda: len(browser.numbers) == last, 20)
    assert served.sio.eio.sockets


def test_events_of_peers_cut_no_client_whose_socket_was_full_for_a_moment(serve: Callable[..., Served]) -> None:
    served = serve(client_queue_bytes=64 * 1024)
    browser = served.browser()
    (outlet,) = served.fanout.outlets.values()
    outlet._send = lambda data: outlet_send(data[:10])
    outlet_send = socket.socket.send.__get__(outlet._sendall.__self__)
    browser.read_on()
    for _ in range(300):
        last = served.gather(10, padding=1000)
        served.fanout.flush()
    eventually(lambda: len(browser.numbers) == last, 20)
    assert browser.numbers == list(range(1, last + 1))


def test_clients_share_the_frame_of_a_large_event_also_behind_a_small_one(serve: Callable[..., Served]) -> None:
    served = serve()
    for _ in range(10):
        served.browser(buffer_bytes=4096)
    tracemalloc.start()
    try:
        served.gather(1)
        served.gather(1, padding=8_000_000)
        served.fanout.flush()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert served.fanout.direct == 20
    # The event, its bytes, and the frame; a copy for each client would be 80 MB.
    assert most < 40_000_000


def test_of_gathered_events_no_more_is_kept_than_what_is_half_written(served: Served) -> None:
    served.browser(buffer_bytes=4096)
    (outlet,) = served.fanout.outlets.values()
    while outlet.is_free:
        served.gather(20, padding=10_000)
        served.fanout.flush()
    assert memoryview(outlet._rest.obj).nbytes <= 10_100


def test_events_for_a_busy_client_are_not_joined(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.browser()
    (outlet,) = served.fanout.outlets.values()
    outlet.in_hand = 1
    monkeypatch.setattr(Outlet, "take_some", lambda *_: pytest.fail("joined for nothing"))
    served.gather(2)
    served.fanout.flush()
    assert served.fanout.queued == 2
    outlet.in_hand = 0


def test_a_client_that_fails_costs_no_other_what_is_gathered(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.browser()
    other = served.browser().read_on()
    first, _ = served.fanout.outlets.values()

    def fail(_data: bytes) -> int:
        raise ValueError("no such luck")

    first._send = fail
    for _ in range(2):
        last = served.gather(2)
        served.fanout.flush()
    eventually(lambda: other.numbers == list(range(1, last + 1)))
    assert [record.getMessage() for record in caplog.records] == ["events for a client could not be delivered"]


def test_events_of_peers_are_gathered_until_their_reader_pauses(serve: Callable[..., Served]) -> None:
    served = serve()
    browser = served.browser().read_on()
    node, sender = served.manager._node, peer("a")
    (writes,) = [writes_of(outlet) for outlet in served.fanout.outlets.values()]
    for number in (1, 2):
        data = messages.broadcast(messages.options(), encoded=[f'2["tick",{number},""]'], codec="json")
        node.on_message(sender, ClusterMessage(MessageType.BROADCAST, sender.uid, "/", data))
    assert writes == []
    node.settle()
    assert len(writes) == 1
    eventually(lambda: browser.numbers == [1, 2])
