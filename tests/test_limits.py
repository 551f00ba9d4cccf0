"""What a client may cost: a server in this process, and browsers that do not read, do not answer, or send too much."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import requests
import socketio
from engineio.packet import MESSAGE, Packet
from gevent import socket
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from gevent.queue import Empty
from geventwebsocket.handler import WebSocketHandler

from gevent_mesh import GeventMeshManager, connections, limits
from gevent_mesh.handler import GeventMeshHandler
from gevent_mesh.net.outboxes import Counters
from gevent_mesh.protocol.websocket import Opcode
from tests.browser import Browser, client_frame, connect, frame_start
from tests.support import eventually

LIMIT = 200_000
TEXT = "x" * 10_000
SMALL_BUFFER = 4096


class Served:
    """A server of one node, which works alone."""

    def __init__(self, handler: type = WebSocketHandler, server: dict[str, Any] | None = None, **options: Any) -> None:
        self.gone: dict[str, str] = {}
        self.received: list[Any] = []
        self.mesh = GeventMeshManager([], **{"ws_port": 0, "client_queue_bytes": LIMIT, **options})
        self.sio = socketio.Server(async_mode="gevent", client_manager=self.mesh, **(server or {}))
        self.sio.on("disconnect", self._gone)
        self.sio.on("say", lambda _sid, text: self.received.append(text))
        self._pool = Pool()
        self.http = WSGIServer(
            ("127.0.0.1", 0), socketio.WSGIApp(self.sio), handler_class=handler, log=None, spawn=self._pool
        )
        self.http.start()
        self.port = self.http.server_port

    def _gone(self, sid: str, reason: str) -> None:
        self.gone[self.sio.manager.eio_sid_from_sid(sid, "/")] = reason

    @property
    def counters(self) -> Counters:
        assert self.mesh.mesh is not None
        return self.mesh.mesh.counters

    @property
    def connections(self) -> int:
        return len(self._pool)

    def emit_until_gone(self, sid: str) -> int:
        """Returns how many events it took."""
        for number in range(2000):
            if sid in self.gone:
                return number
            self.sio.emit("news", TEXT)
            gevent.sleep(0)
        raise AssertionError("nobody was cut")

    def stop(self) -> None:
        self.mesh.stop(0)
        self.http.stop(timeout=0.1)
        self.sio.eio.shutdown()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Served] = []

    def start(*arguments: Any, **options: Any) -> Served:
        started.append(Served(*arguments, **options))
        return started[-1]

    yield start
    for served in started:
        served.stop()


def polling_session(browser: Browser) -> str:
    """Open an Engine.IO session by an HTTP request; returns its sid."""
    browser.sock.sendall(b"GET /socket.io/?EIO=4&transport=polling HTTP/1.0\r\n\r\n")
    packet: bytes = browser._file.read()
    return packet.split(b'"sid":"')[1].split(b'"')[0].decode()


@pytest.mark.parametrize("options", [{}, {"bounded_reader": False}])
@pytest.mark.parametrize("handler", [WebSocketHandler, GeventMeshHandler])
def test_browser_that_does_not_read_is_cut_and_nobody_else(
    serve: Serve, handler: type, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(handler, **options)
    with connect(served.port, socket, SMALL_BUFFER) as slow, connect(served.port, socket) as good:
        slow_sid, good_sid = slow.open(), good.open()
        reading = gevent.spawn(good.close_code)
        session = served.sio.eio.sockets[slow_sid]
        events = served.emit_until_gone(slow_sid)
        assert served.gone == {slow_sid: limits.SLOW_CONSUMER}
        # What the kernels hold is not ours.
        assert events > LIMIT / len(TEXT)
        assert session.queue.qsize() * len(TEXT) <= LIMIT + 2 * len(TEXT)
        assert slow.seconds_until_cut() < 2
        assert served.counters.slow_clients == 1
        assert slow_sid not in served.sio.eio.sockets
        assert "a client from 127.0.0.1 was cut" in caplog.text
        assert not reading.dead
        assert good_sid in served.sio.eio.sockets
        reading.kill()


def test_client_that_does_not_poll_is_cut(serve: Serve) -> None:
    served = serve()
    url = f"http://127.0.0.1:{served.port}/socket.io/?EIO=4&transport=polling"
    http = requests.Session()
    http.trust_env = False
    pool = gevent.get_hub().threadpool
    packet = pool.apply(lambda: http.get(url, timeout=5).text)
    sid = packet.split('"sid":"')[1].split('"')[0]
    assert pool.apply(lambda: http.post(f"{url}&sid={sid}", "40", timeout=5).text) == "OK"
    assert pool.apply(lambda: http.get(f"{url}&sid={sid}", timeout=5).text).startswith("40")
    assert served.emit_until_gone(sid) <= LIMIT / len(TEXT) + 2
    assert served.gone[sid] == limits.SLOW_CONSUMER
    assert pool.apply(lambda: http.get(f"{url}&sid={sid}", timeout=5).status_code) == 400


def test_no_client_that_keeps_up_is_cut_by_a_loop_of_emits(serve: Serve) -> None:
    """The loop never gives way by itself, and emits forty times the limit."""
    served = serve()
    with connect(served.port, socket) as browser:
        sid = browser.open()
        received: list[bytes] = []

        def read() -> None:
            while (found := browser.receive())[0]:
                received.append(found[1])

        reading = gevent.spawn(read)
        for number in range(800):
            served.sio.emit("news", (number, TEXT))
        eventually(lambda: len(received) == 800)
        assert [int(packet.split(b",")[1]) for packet in received] == list(range(800))
        assert sid in served.sio.eio.sockets
        assert served.counters.slow_clients == 0
        reading.kill()


def test_an_event_that_is_larger_than_the_limit_cuts_nobody_who_keeps_up(serve: Serve) -> None:
    served = serve()
    with connect(served.port, socket) as browser:
        browser.open()
        for _ in range(3):
            served.sio.emit("news", "x" * (4 * LIMIT))
            assert len(browser.receive()[1]) > 4 * LIMIT
    assert served.counters.slow_clients == 0


def test_limits_hold_when_the_admin_ui_watches(serve: Serve) -> None:
    """It puts itself between Engine.IO and the connections."""
    served = serve()
    admin = served.sio.instrument(auth=False, mode="development")
    try:
        with connect(served.port, socket, SMALL_BUFFER) as slow, connect(served.port, socket) as large:
            slow_sid, large_sid = slow.open(), large.open()
            large.sock.sendall(frame_start(Opcode.TEXT, 1 << 30))
            assert large.close_code() == 1009
            eventually(lambda: served.gone == {large_sid: "transport error"})
            served.emit_until_gone(slow_sid)
            assert slow.seconds_until_cut() < 2
            assert served.gone[slow_sid] == limits.SLOW_CONSUMER
    finally:
        admin.uninstrument()


def test_what_the_writer_has_taken_and_not_sent_counts_as_waiting(serve: Serve) -> None:
    """It would take all that there is, and leave room for as much again."""
    queue = serve().sio.eio.create_queue()
    packets = [Packet(MESSAGE, number * "x") for number in range(99_990, 100_000)]
    for packet in packets[:2]:
        queue.put(packet)
    assert [queue.get(), queue.get(block=False)] == packets[:2]
    assert queue.empty()
    assert queue._waiting_bytes > 199_000
    with pytest.raises(Empty):
        queue.get(timeout=0)
    assert queue._waiting_bytes == 0
    # And it takes a part at a time, so that what it has sent is noticed in time.
    queue = serve(client_queue_bytes=None).sio.eio.create_queue()
    for packet in packets:
        queue.put(packet)
    taken: list[Packet] = []
    while len(taken) < len(packets):
        round_ = [queue.get()]
        with contextlib.suppress(Empty):
            while True:
                round_.append(queue.get(block=False))
        assert len(round_) <= 3
        taken += round_
    assert taken == packets


def test_without_a_limit_nobody_is_cut(serve: Serve) -> None:
    served = serve(client_queue_bytes=None)
    with connect(served.port, socket, SMALL_BUFFER) as slow:
        sid = slow.open()
        with pytest.raises(AssertionError, match="nobody"):
            served.emit_until_gone(sid)


def test_message_that_is_too_large_is_refused_before_it_is_read(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(server={"max_http_buffer_size": 1000})
    with connect(served.port, socket) as browser:
        sid = browser.open()
        browser.emit("say", "x" * 980)
        eventually(lambda: served.received == ["x" * 980])
        browser.sock.sendall(frame_start(Opcode.TEXT, 1001) + b"mask")
        assert browser.close_code() == 1009
    eventually(lambda: served.gone == {sid: "transport error"})
    assert served.counters.refused_clients == 1
    assert "a client from 127.0.0.1 was refused: a message of 1001 bytes or more, the limit is 1000" in caplog.text


def test_of_clients_that_are_cut_no_more_than_a_line_a_second_is_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    served = serve()
    for _ in range(20):
        with connect(served.port, socket) as browser:
            browser.open()
            browser.sock.sendall(client_frame(Opcode.TEXT, b"x", mask=False))
            assert browser.close_code() == 1002
    eventually(lambda: served.counters.refused_clients == 20)
    assert caplog.text.count("was refused") < 5


def test_reading_can_be_left_to_gevent_websocket(serve: Serve) -> None:
    served = serve(bounded_reader=False)
    with connect(served.port, socket) as browser:
        browser.open()
        browser.sock.sendall(client_frame(Opcode.TEXT, b'42["say","unmasked"]', mask=False))
        eventually(lambda: served.received == ["unmasked"])


class TestEnds:
    """When a session ends, so do its connections, whatever the client does."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "ENDING_SECONDS", 0.3)

    def test_of_a_client_that_does_not_read(self, serve: Serve) -> None:
        served = serve(client_queue_bytes=None)
        with connect(served.port, socket, SMALL_BUFFER) as slow:
            sid = slow.open()
            for _ in range(1000):
                served.sio.emit("news", TEXT)
            disconnecting = gevent.spawn(served.sio.eio.disconnect, sid)
            eventually(lambda: served.connections == 0)
            assert served.gone == {sid: "server disconnect"}
            disconnecting.join(5)
            assert disconnecting.successful()

    def test_of_a_client_that_answers_no_ping(self, serve: Serve) -> None:
        served = serve(server={"ping_interval": 0.2, "ping_timeout": 0.2})
        with connect(served.port, socket) as silent:
            sid = silent.open()
            # Half a frame, and then a byte now and then, would keep the reader at it for ever.
            silent.sock.sendall(frame_start(Opcode.TEXT, 1000) + b"mask")
            eventually(lambda: served.connections == 0)
            assert served.gone == {sid: "ping timeout"}

    def test_of_a_client_that_never_finishes_an_upgrade(self, serve: Serve) -> None:
        served = serve(server={"ping_interval": 0.2, "ping_timeout": 0.2})
        browsers = [connect(served.port, socket) for _ in range(3)]
        polling, *upgrading = browsers
        sid = polling_session(polling)
        for browser in upgrading:
            assert b" 101 " in browser.upgrade(f"/socket.io/?EIO=4&transport=websocket&sid={sid}")
        assert served.connections == 2
        eventually(lambda: served.connections == 0)
        for browser in browsers:
            browser.__exit__()

    def test_of_a_request_that_is_refused(self, serve: Serve) -> None:
        """Engine.IO ends the session of a client whose request is bad, and waits until it has taken that."""
        served = serve(server={"max_http_buffer_size": 1000})
        with connect(served.port, socket) as polling, connect(served.port, socket) as posting:
            sid = polling_session(polling)
            path = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
            posting.sock.sendall(f"POST {path} HTTP/1.0\r\nContent-Length: 2000\r\n\r\n".encode() + b"x" * 2000)
            assert b" 400 " in posting._file.readline()
            eventually(lambda: served.connections == 0)

    def test_in_good_order_for_a_client_that_reads(self, serve: Serve) -> None:
        served = serve()
        with connect(served.port, socket) as browser:
            sid = browser.open()
            for number in range(100):
                served.sio.emit("news", number)
            gevent.spawn(served.sio.eio.disconnect, sid)
            packets = [browser.receive()[1] for _ in range(101)]
            assert packets == [*(f'42["news",{number}]'.encode() for number in range(100)), b"1"]
            assert browser.receive() == (Opcode.CLOSE, b"\x03\xe8")
            browser.sock.sendall(client_frame(Opcode.CLOSE, b"\x03\xe8"))
            assert browser.receive() == (0, b"")
        eventually(lambda: served.connections == 0)


def test_a_server_keeps_its_limits_to_itself(serve: Serve) -> None:
    served = serve()
    other = socketio.Server(async_mode="gevent")
    assert isinstance(served.sio.eio.create_queue(), limits.ClientQueue)
    assert not isinstance(other.eio.create_queue(), limits.ClientQueue)
