"""Dialling: what comes back from all kinds of servers, within the deadline, and no socket left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gevent
import psutil
import pytest
from gevent import socket
from wsproto.utilities import generate_accept_token

from gevent_mesh.errors import DialError
from gevent_mesh.net.dialer import Turns, dial

Serve = Callable[[Callable[[socket.socket, bytes], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that reads one request and then does what the test says; gives its address."""
    sockets: list[socket.socket] = []
    greenlets: list[gevent.Greenlet] = []

    def start(answer: Callable[[socket.socket, bytes], None]) -> str:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        sockets.append(listening)

        def run() -> None:
            conn, _ = listening.accept()
            sockets.append(conn)
            request = b""
            while b"\r\n\r\n" not in request:
                request += conn.recv(4096)
            answer(conn, request)

        greenlets.append(gevent.spawn(run))
        return f"ws://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    gevent.killall(greenlets)
    for sock in sockets:
        sock.close()


@pytest.fixture(autouse=True)
def no_descriptor_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happened, the dialer holds no socket to anybody."""
    yield
    remote = request.node.stash.get(DIALLED, None)
    if remote is not None:
        port = int(remote.rpartition(":")[2])
        open_ones = [conn for conn in psutil.Process().net_connections("tcp") if conn.raddr and conn.raddr.port == port]
        assert not open_ones


DIALLED = pytest.StashKey[str]()


def accept_headers(request: bytes, *extra: bytes) -> bytes:
    key = next(
        line.split(b":", 1)[1].strip()
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + generate_accept_token(key),
        *extra,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


MESH = b"Mesh-Protocol: 1"


def refused(address: str, **options: float) -> str:
    with pytest.raises(DialError) as caught:
        dial(address, **options)  # type: ignore[arg-type]  # only timeout_seconds is ever given
    return str(caught.value)


def test_a_mesh_server_is_reached_and_early_bytes_are_kept(serve: Serve) -> None:
    seen: list[bytes] = []

    def answer(conn: socket.socket, request: bytes) -> None:
        seen.append(request)
        conn.sendall(accept_headers(request, MESH) + b"\x82\x01a")
        conn.sendall(b"\x82\x01b")

    transport = dial(serve(answer), headers={"X-Test": "yes"})
    received = b""
    while len(received) < 6:
        received += transport.recv()
    assert received == b"\x82\x01a\x82\x01b"
    assert transport.is_client
    lines = seen[0].decode().lower().split("\r\n")
    assert lines[0] == "get / http/1.1"
    assert "mesh-protocol: 1" in lines
    assert "x-test: yes" in lines
    assert not [line for line in lines if line.startswith(("origin", "sec-websocket-extensions"))]
    transport.abort()


def test_an_answer_in_single_bytes_is_read(serve: Serve) -> None:
    def answer(conn: socket.socket, request: bytes) -> None:
        for byte in accept_headers(request, MESH):
            conn.sendall(bytes((byte,)))

    dial(serve(answer)).abort()


def test_a_server_without_the_mesh_header_is_refused_unless_allowed(serve: Serve) -> None:
    def answer(conn: socket.socket, request: bytes) -> None:
        conn.sendall(accept_headers(request))

    assert "not a node of this mesh" in refused(serve(answer))
    dial(serve(answer), require_mesh=False).abort()


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP status 200"),
        (b"HTTP/1.1 302 Found\r\nLocation: ws://evil:1/\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "HTTP status 100"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         b"Sec-WebSocket-Accept: AAAA\r\nMesh-Protocol: 1\r\n\r\n", "Bad accept token"),
        (b"HTTP/1.1 101 Switching Protocols\r\nMesh-Protocol: 1\r\n\r\n", "not a WebSocket answer"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "not a WebSocket answer"),
        (b"\xff\x00\xfe\r\n\r\n", "not a WebSocket answer"),
        (b"\r\n\r\n", "not a WebSocket answer"),
        (b"HTTP/1.1 101\r\n\xff: \xff\r\n\r\n", "not a WebSocket answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "more than 8192 bytes"),
        (b"", "closed before the upgrade"),
        (b"HTTP/1.1 101", "closed before the upgrade"),
    ],
)  # fmt: skip
def test_other_answers_are_a_dial_error(serve: Serve, response: bytes, says: str) -> None:
    def answer(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(response)
        conn.close()

    assert says in refused(serve(answer))


@pytest.mark.parametrize("drip", [b"", b"H"])
def test_a_silent_or_dripping_server_costs_the_deadline_and_no_more(serve: Serve, drip: bytes) -> None:
    def answer(conn: socket.socket, _request: bytes) -> None:
        while True:
            conn.sendall(drip)
            gevent.sleep(0.02)

    began = time.monotonic()
    assert "within 0.3 s" in refused(serve(answer), timeout_seconds=0.3)
    assert time.monotonic() - began < 1.0


def test_nobody_listens(request: pytest.FixtureRequest) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ws://127.0.0.1:{free.getsockname()[1]}"
        request.node.stash[DIALLED] = address
        assert "Connection refused" in refused(address)


def test_a_failed_dial_leaves_no_socket(serve: Serve, request: pytest.FixtureRequest) -> None:
    address = serve(lambda _conn, _request: gevent.sleep(10))
    request.node.stash[DIALLED] = address
    refused(address, timeout_seconds=0.1)


def test_a_killed_dial_leaves_no_socket(serve: Serve, request: pytest.FixtureRequest) -> None:
    address = serve(lambda _conn, _request: gevent.sleep(10))
    request.node.stash[DIALLED] = address
    dialling = gevent.spawn(dial, address)
    gevent.sleep(0.05)
    dialling.kill()


def test_somebody_elses_timeout_is_not_taken_for_ours(serve: Serve) -> None:
    address = serve(lambda _conn, _request: gevent.sleep(10))
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        dial(address)


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:1", "ws://127.0.0.1", "ws://127.0.0.1:1/x"])
def test_a_bad_address_is_a_dial_error(address: str) -> None:
    assert refused(address)


def test_an_unknown_name_is_a_dial_error() -> None:
    assert "no-such-host.invalid" in refused("ws://no-such-host.invalid:1", timeout_seconds=3)


def test_a_turn_is_held_until_it_is_done_and_for_a_short_while_at_most() -> None:
    turns, order = Turns(1, 0.2), []

    def take(name: str, seconds: float) -> None:
        with turns.turn():
            order.append(name)
            gevent.sleep(seconds)
            order.append(f"{name} is done")

    takers = [gevent.spawn(take, *what) for what in (("short", 0.05), ("long", 0.6), ("last", 0.05), ("late", 0.0))]
    gevent.joinall(takers, timeout=5, raise_error=True)
    assert order == ["short", "short is done", "long", "last", "last is done", "late", "late is done", "long is done"]
    # None was given back twice.
    with turns.turn():
        assert turns._free.locked()
