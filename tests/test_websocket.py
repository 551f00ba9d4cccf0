"""The WebSockets of clients: what is read is bounded, what is sent is whole, and every end frees who waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.pywsgi import WSGIServer

from gevent_mesh.handler import GeventMeshHandler
from gevent_mesh.protocol.websocket import Opcode, close_payload
from gevent_mesh.websocket import BoundedWebSocket
from tests.browser import Browser, client_frame, connect, frame_start
from tests.support import eventually

LIMIT = 100_000


class Handler(GeventMeshHandler):
    max_message_bytes = LIMIT


class Echo:
    """A server that sends back what it receives, and remembers its WebSockets."""

    def __init__(self) -> None:
        self.websockets: list[BoundedWebSocket] = []
        self.received: list[Any] = []
        self.server = WSGIServer(("127.0.0.1", 0), self, handler_class=Handler, log=None)
        self.serve: Callable[[BoundedWebSocket], None] = self._echo
        self.server.start()

    def __call__(self, environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        websocket = environ["wsgi.websocket"]
        self.websockets.append(websocket)
        self.serve(websocket)
        return []

    def _echo(self, websocket: BoundedWebSocket) -> None:
        while (message := websocket.receive()) is not None:
            self.received.append(message)
            websocket.send(message)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.server.stop()


@pytest.fixture
def browser(echo: Echo) -> Iterator[Browser]:
    with connect(echo.server.server_port, socket) as browser:
        assert b" 101 " in browser.upgrade("/")
        yield browser


@pytest.mark.parametrize("size", [0, 1, 125, 126, 5000, 65_535, 65_536, LIMIT])
def test_messages_of_all_sizes_come_through(browser: Browser, size: int) -> None:
    data = os.urandom(size)
    browser.sock.sendall(client_frame(Opcode.BINARY, data))
    assert browser.receive() == (Opcode.BINARY, data)
    browser.send("ä" * (size // 2))
    assert browser.receive() == (Opcode.TEXT, ("ä" * (size // 2)).encode())


def test_fragments_with_a_ping_between_them_are_one_message(browser: Browser, echo: Echo) -> None:
    for opcode, payload, final in [(1, b"he", False), (9, b"?", True), (0, b"ll", False), (0, b"o", True)]:
        browser.sock.sendall(client_frame(opcode, payload, final=final))
    assert browser.receive() == (Opcode.PONG, b"?")
    assert browser.receive() == (Opcode.TEXT, b"hello")
    assert echo.received == ["hello"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame_start(Opcode.TEXT, 1 << 30), 1009),
        (frame_start(Opcode.TEXT, LIMIT + 1), 1009),
        (client_frame(Opcode.TEXT, b"x" * LIMIT, final=False) + client_frame(0, b"x", final=False), 1009),
        (client_frame(Opcode.TEXT, b"x", mask=False), 1002),
        (client_frame(Opcode.CONTINUATION, b"x"), 1002),
        (client_frame(Opcode.PING, b"x", final=False), 1002),
        (client_frame(Opcode.CLOSE, b"x"), 1002),
        (client_frame(Opcode.CLOSE, close_payload(1006)), 1002),
        (client_frame(Opcode.TEXT, b"\xff"), 1007),
        (b"\xc1\x80", 1002),
    ],
    ids=["1 GiB", "limit", "fragments", "unmasked", "nothing", "ping", "half a code", "code", "text", "reserved"],
)
def test_what_breaks_a_rule_is_refused_with_its_code(browser: Browser, echo: Echo, sent: bytes, code: int) -> None:
    browser.sock.sendall(sent)
    assert browser.close_code() == code
    refused = echo.websockets[0].refused
    assert refused is not None
    assert refused.code == code
    assert echo.received == []


def test_a_close_frame_is_read_also_by_who_has_sent_much_more(browser: Browser) -> None:
    """What was not read must not turn into a reset that overtakes it."""
    browser.sock.sendall(frame_start(Opcode.BINARY, 4_000_000) + b"mask" + b"x" * 4_000_000)
    assert browser.close_code() == 1009


@pytest.mark.parametrize("payload", [b"", close_payload(1000), close_payload(4001, "bye")])
def test_a_close_frame_is_answered_by_the_same(browser: Browser, payload: bytes) -> None:
    browser.sock.sendall(client_frame(Opcode.CLOSE, payload))
    assert browser.receive() == (Opcode.CLOSE, payload[:2])
    assert browser.receive() == (0, b"")


def test_pings_do_not_go_out_inside_of_a_message(browser: Browser, echo: Echo) -> None:
    large = os.urandom(8_000_000)
    sending = gevent.spawn(echo.websockets[0].send, large)
    browser.sock.sendall(client_frame(Opcode.PING, b"?") * 20)
    frames = [browser.receive() for _ in range(21)]
    assert frames.count((Opcode.PONG, b"?")) == 20
    assert (Opcode.BINARY, large) in frames
    sending.join(5)
    assert sending.successful()


@pytest.mark.usefixtures("browser")
def test_closing_does_not_wait_for_a_client_that_does_not_read(echo: Echo) -> None:
    websocket = echo.websockets[0]
    stuck = gevent.spawn(websocket.send, b"x" * 30_000_000)
    eventually(lambda: websocket._writing.locked())
    with gevent.Timeout(3):
        websocket.close(1001, "leaving")
    websocket.transport.abort()
    stuck.join(1)
    assert not stuck.successful()


def test_a_flood_of_messages_lets_others_run(echo: Echo) -> None:
    """A reader that finds something every time never waits."""
    turns = 0

    def serve(websocket: BoundedWebSocket) -> None:
        while (message := websocket.receive()) is not None:
            echo.received.append(message)

    def tick() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.001)
            turns += 1

    echo.serve = serve
    with connect(echo.server.server_port, socket) as flooding:
        flooding.upgrade("/")
        ticking = gevent.spawn(tick)
        flooding.sock.sendall(client_frame(Opcode.TEXT, b"x") * 20_000)
        eventually(lambda: len(echo.received) == 20_000)
        ticking.kill()
    assert turns >= 5


@pytest.mark.parametrize("version", ["7", "8"])
def test_drafts_of_the_protocol_are_not_spoken(echo: Echo, version: str) -> None:
    with connect(echo.server.server_port, socket) as old:
        assert b" 400 " in old.upgrade("/", version=version)


def test_clients_of_a_unix_socket_do_not_get_in_each_others_way(tmp_path: Any) -> None:
    """They all have the same address."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    echo = Echo()
    server = WSGIServer(listener, echo, handler_class=Handler, log=None)
    server.start()
    browsers = []
    for _ in range(2):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(str(tmp_path / "socket"))
        browsers.append(Browser(sock))
        browsers[-1].upgrade("/")
    for browser in browsers:
        with browser:
            browser.send("hello")
            assert browser.receive() == (Opcode.TEXT, b"hello")
            browser.sock.sendall(client_frame(Opcode.CLOSE, b""))
            assert browser.receive() == (Opcode.CLOSE, b"")
    server.stop()
    echo.server.stop()
