"""The listener: who gets in, who is turned away and how, and what strangers can cost."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import psutil
import pytest
from gevent import socket

from gevent_mesh.errors import DialError, StartError
from gevent_mesh.net.dialer import dial
from gevent_mesh.net.listener import Listener, StrangerLimits, Strangers, StrangerTicket
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol.websocket import FrameDecoder, frame_header
from tests.support import eventually

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "Host": "x",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Mesh-Protocol": "1",
}


class Owner:
    """What a mesh does with connections, as small as possible: the word "friend" admits, everything is echoed."""

    def __init__(self) -> None:
        self.tickets: list[StrangerTicket] = []
        self.open = 0

    def __call__(self, transport: Transport, ticket: StrangerTicket) -> None:
        self.tickets.append(ticket)
        self.open += 1
        try:
            while data := transport.recv():
                if data == b"friend":
                    ticket.admitted()
                if data == b"crash":
                    raise RuntimeError("a bug of the owner")
                transport.send(data)
        finally:
            self.open -= 1


Start = Callable[..., Listener]


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def start(owner: Owner) -> Iterator[Start]:
    listeners: list[Listener] = []

    def run(host: str = "127.0.0.1", port: int = 0, **options: Any) -> Listener:
        listener = Listener(host, port, **{"on_websocket": owner, "require_mesh_header": True, **options})
        listener.start()
        listeners.append(listener)
        return listener

    yield run
    for listener in listeners:
        listener.stop()


def url(listener: Listener) -> str:
    return f"ws://127.0.0.1:{listener.port}"


def befriend(listener: Listener) -> Transport:
    """A legitimate node: dials, proves itself, and is served."""
    transport = dial(url(listener))
    transport.send(b"friend")
    assert transport.recv() == b"friend"
    return transport


def connect(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), timeout=8)


def request_bytes(headers: dict[str, str], line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")


def read_all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received


def ask(listener: Listener, request: bytes) -> str:
    """Send a request; the answer's status line and headers, in lower case. Waits for the connection's end."""
    with connect(listener) as sock:
        sock.sendall(request)
        return read_all(sock).decode("latin-1").lower()


def is_over(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        return not sock.recv(1)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def drip(sock: socket.socket, data: bytes) -> int:
    """Send a byte every few milliseconds; the number that could be sent."""
    for at, byte in enumerate(data):
        try:
            sock.sendall(bytes((byte,)))
        except ConnectionError:
            return at
        gevent.sleep(0.01)
    return len(data)


class TestUpgrade:
    def test_a_node_gets_in(self, start: Start, owner: Owner) -> None:
        transport = befriend(start())
        assert owner.tickets[0].speaks_mesh
        assert owner.tickets[0].host == "127.0.0.1"
        transport.abort()
        eventually(lambda: owner.open == 0)

    def test_the_answer_names_the_protocol_only_to_those_who_did(self, start: Start) -> None:
        listener = start(require_mesh_header=False)
        for headers, speaks in ((UPGRADE, True), ({**UPGRADE, "Mesh-Protocol": "2"}, False)):
            with connect(listener) as sock:
                sock.sendall(request_bytes(headers))
                answer = sock.recv(65536).decode().lower()
            assert answer.startswith("http/1.1 101")
            assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in answer
            assert ("mesh-protocol: 1" in answer) is speaks
            assert "sec-websocket-extensions" not in answer

    def test_without_the_mesh_header_when_it_is_not_required(self, start: Start, owner: Owner) -> None:
        listener = start(require_mesh_header=False)
        with connect(listener) as sock:
            sock.sendall(request_bytes({name: value for name, value in UPGRADE.items() if name != "Mesh-Protocol"}))
            sock.recv(65536)
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
        assert not owner.tickets[0].speaks_mesh

    def test_bytes_that_came_with_the_request_are_not_lost(self, start: Start) -> None:
        with connect(start()) as sock:
            sock.sendall(request_bytes(UPGRADE) + b"early")
            received = b""
            while not received.endswith(b"early"):
                piece = sock.recv(65536)
                assert piece
                received += piece

    def test_several_connection_tokens_and_other_cases_are_fine(self, start: Start) -> None:
        headers = {**UPGRADE, "Connection": "keep-alive, UPGRADE", "Upgrade": "WebSocket"}
        with connect(start()) as sock:
            sock.sendall(request_bytes(headers))
            assert sock.recv(65536).startswith(b"HTTP/1.1 101")

    @pytest.mark.parametrize(
        ("change", "line", "status"),
        [
            ({"Origin": "http://evil.example"}, None, "403"),
            ({"Origin": "null"}, None, "403"),
            ({}, "GET /other HTTP/1.1", "404"),
            ({}, "GET /?x=1 HTTP/1.1", "404"),
            ({}, "GET //evil HTTP/1.1", "404"),
            ({"Mesh-Protocol": None}, None, "426"),
            ({"Mesh-Protocol": "2"}, None, "426"),
            ({"Sec-WebSocket-Version": "8"}, None, "426"),
            ({"Sec-WebSocket-Version": None}, None, "426"),
            ({"Sec-WebSocket-Key": None}, None, "400"),
            ({"Sec-WebSocket-Key": "!!!"}, None, "400"),
            ({"Sec-WebSocket-Key": "YQ=="}, None, "400"),
            ({"Connection": "close"}, None, "400"),
            ({"Host": None}, None, "400"),
            ({"Content-Length": "5"}, None, "400"),
            ({"Transfer-Encoding": "chunked"}, None, "400"),
            ({}, "POST / HTTP/1.1", "400"),
            ({}, "GET / HTTP/1.0", "400"),
        ],
    )
    def test_other_upgrades_are_refused_and_closed(
        self, start: Start, owner: Owner, change: dict[str, str | None], line: str | None, status: str
    ) -> None:
        headers = {name: value for name, value in {**UPGRADE, **change}.items() if value is not None}
        listener = start()
        answer = ask(listener, request_bytes(headers, line or "GET / HTTP/1.1"))
        assert answer.startswith(f"http/1.1 {status} ")
        assert "connection: close" in answer
        assert not owner.tickets
        assert sum(listener.strangers_cut.values()) == 1
        assert not len(listener._strangers)

    def test_nothing_of_the_request_is_in_the_answer(self, start: Start) -> None:
        answer = ask(start(), request_bytes({**UPGRADE, "Origin": "needle"}, "GET /needle HTTP/1.1"))
        assert "needle" not in answer

    def test_the_websocket_object_of_the_library_never_sends(self, start: Start) -> None:
        listener = start()
        transport = befriend(listener)
        gc.collect()
        transport.send(b"x")
        assert transport.recv() == b"x"
        transport.abort()


class TestHttp:
    @staticmethod
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/crash":
            raise RuntimeError("a bug of the app")
        start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "keep-alive")])
        return [environ["PATH_INFO"].encode()]

    def test_plain_requests_are_404_without_an_app(self, start: Start) -> None:
        answer = ask(start(), request_bytes({"Host": "x"}, "GET /healthz HTTP/1.1"))
        assert answer.startswith("http/1.1 404 ")

    def test_plain_requests_go_to_the_app_and_every_answer_closes(self, start: Start) -> None:
        listener = start(http_app=self.app)
        answer = ask(listener, request_bytes({"Host": "x"}, "GET /a HTTP/1.1") * 3)
        assert answer.startswith("http/1.1 200 ")
        assert answer.endswith("/a")
        assert answer.count("http/1.1") == 1
        assert answer.count("connection:") == 1
        assert not listener.strangers_cut

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "needle"])
    def test_only_get_and_head_are_served(self, start: Start, method: str) -> None:
        answer = ask(start(http_app=self.app), request_bytes({"Content-Length": "9"}, f"{method} / HTTP/1.1"))
        assert answer.startswith("http/1.1 405 ")
        assert "needle" not in answer

    def test_a_crash_of_the_app_is_one_500(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        listener = start(http_app=self.app)
        assert ask(listener, request_bytes({}, "GET /crash HTTP/1.1")).startswith("http/1.1 500 ")
        assert "a bug of the app" in caplog.text
        assert ask(listener, request_bytes({}, "GET /b HTTP/1.1")).endswith("/b")

    def test_an_upgrade_to_something_else_is_plain_http(self, start: Start) -> None:
        headers = {"Upgrade": "h2c", "Connection": "Upgrade"}
        assert ask(start(http_app=self.app), request_bytes(headers)).startswith("http/1.1 200 ")

    @pytest.mark.parametrize(
        "head",
        [
            b"\r\n\r\n",
            b"\xff\xff\xff\r\n\r\n",
            b"GET / HTTP/1\r\n\r\n",
            b"GET / HTTP/x.y\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
            b"GET\r\n\r\n",
        ],
    )
    def test_malformed_requests_are_400_and_print_nothing(
        self, start: Start, head: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        listener = start(http_app=self.app)
        assert ask(listener, head).startswith("http/1.1 400 ")
        assert listener.strangers_cut == {"malformed HTTP": 1}
        assert capfd.readouterr() == ("", "")

    def test_random_heads_never_crash_a_handler(self, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
        listener = start(http_app=self.app)
        rng = random.Random(1)
        good = request_bytes(UPGRADE)
        for _ in range(150):
            head = bytearray(good)
            for _ in range(rng.randint(1, 6)):
                head[rng.randrange(len(head))] = rng.randrange(256)
            with connect(listener) as sock:
                sock.sendall(bytes(head) + b"\r\n\r\n")
                sock.recv(1000)
        assert "crashed" not in listener.strangers_cut
        assert capfd.readouterr() == ("", "")


class TestStrangers:
    """Who has to go. No sockets."""

    def tickets(self, count: int) -> list[Any]:
        return [object() for _ in range(count)]

    def test_at_the_limit_the_oldest_goes(self) -> None:
        strangers = Strangers(StrangerLimits(total=2))
        first, second, third, fourth = self.tickets(4)
        assert strangers.arrive(first, "10.0.0.1") is None
        assert strangers.arrive(second, "10.0.0.2") is None
        assert strangers.arrive(third, "10.0.0.3") == (first, "too many")
        strangers.leave(second)
        assert strangers.arrive(fourth, "10.0.0.4") is None
        assert list(strangers) == [third, fourth]

    def test_one_address_has_its_own_limit_and_pays_for_it_itself(self) -> None:
        strangers = Strangers(StrangerLimits(total=10, per_address=2))
        other, *loud = self.tickets(4)
        strangers.arrive(other, "10.0.0.9")
        assert strangers.arrive(loud[0], "10.0.0.1") is None
        assert strangers.arrive(loud[1], "10.0.0.1") is None
        assert strangers.arrive(loud[2], "10.0.0.1") == (loud[0], "too many from one address")
        assert list(strangers) == [other, loud[1], loud[2]]

    def test_loopback_is_bound_by_the_total_only(self) -> None:
        strangers = Strangers(StrangerLimits(total=4, per_address=2))
        found = [strangers.arrive(ticket, "127.0.0.1") for ticket in self.tickets(5)]
        assert [victim and victim[1] for victim in found] == [None] * 4 + ["too many"]

    def test_leaving_twice_is_harmless(self) -> None:
        strangers = Strangers(StrangerLimits())
        (ticket,) = self.tickets(1)
        strangers.arrive(ticket, "10.0.0.1")
        assert strangers.leave(ticket)
        assert not strangers.leave(ticket)
        assert not len(strangers)
        assert not strangers._by_address


class TestLimits:
    def test_a_silent_socket_is_cut_at_the_deadline(self, start: Start) -> None:
        listener = start(limits=StrangerLimits(seconds=0.3))
        began = time.monotonic()
        with connect(listener) as sock:
            assert read_all(sock) == b""
        assert 0.2 < time.monotonic() - began < 1.0
        assert listener.strangers_cut == {"too slow": 1}

    def test_dripping_headers_do_not_move_the_deadline(self, start: Start) -> None:
        listener = start(limits=StrangerLimits(seconds=0.3))
        began = time.monotonic()
        with connect(listener) as sock:
            assert drip(sock, request_bytes(UPGRADE)) < len(request_bytes(UPGRADE))
        assert time.monotonic() - began < 1.0

    def test_an_upgrade_alone_does_not_lift_the_deadline(self, start: Start, owner: Owner) -> None:
        listener = start(limits=StrangerLimits(seconds=0.3))
        transport = dial(url(listener))
        with contextlib.suppress(ConnectionError):
            while True:
                transport.send(b"x")
                gevent.sleep(0.01)
        transport.abort()
        assert listener.strangers_cut == {"too slow": 1}
        eventually(lambda: owner.open == 0)

    def test_who_was_admitted_stays(self, start: Start) -> None:
        listener = start(limits=StrangerLimits(seconds=0.1))
        transport = befriend(listener)
        gevent.sleep(0.2)
        transport.send(b"still here")
        assert transport.recv() == b"still here"
        assert not len(listener._strangers)
        transport.abort()

    def test_a_huge_head_is_cut_before_it_is_parsed(self, start: Start) -> None:
        listener = start()
        with connect(listener) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
            assert read_all(sock) == b""
        assert listener.strangers_cut == {"HTTP head too large": 1}

    def test_a_head_of_exactly_the_limit_is_served(self, start: Start) -> None:
        listener = start()
        for extra, status in ((0, b"HTTP/1.1 404"), (1, b"")):
            head = request_bytes({"X": "y"}, "GET /x HTTP/1.1")
            head = head.replace(b"y", b"y" * (8192 - len(head) + 1 + extra))
            with connect(listener) as sock:
                sock.sendall(head)
                assert read_all(sock)[:12] == status

    def test_300_silent_sockets_do_not_keep_a_node_out(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        listener = start(limits=StrangerLimits(seconds=1.5))
        caplog.set_level(logging.WARNING)
        silent = [connect(listener) for _ in range(300)]
        befriend(listener).abort()
        assert listener.strangers_cut["too many"] >= 300 - 128
        assert len(listener._strangers) <= 128
        eventually(lambda: sum(listener.strangers_cut.values()) >= 300, 4)
        assert len(listener._strangers) == 0
        assert len(caplog.records) <= 4
        assert "more since" in caplog.text
        for sock in silent:
            assert is_over(sock)
            sock.close()

    def test_nodes_join_while_strangers_keep_coming(self, start: Start) -> None:
        listener = start()
        silent: list[socket.socket] = []

        def flood() -> None:
            while True:
                silent.append(connect(listener))
                gevent.sleep(0)

        flooding = gevent.spawn(flood)
        for _ in range(20):
            befriend(listener).abort()
        flooding.kill()
        assert len(silent) > 20
        for sock in silent:
            sock.close()

    def test_admitted_connections_do_not_count(self, start: Start) -> None:
        listener = start(limits=StrangerLimits(total=3))
        friends = [befriend(listener) for _ in range(10)]
        strangers = [connect(listener) for _ in range(3)]
        eventually(lambda: len(listener._strangers) == 3)
        assert not listener.strangers_cut
        for friend in friends:
            friend.send(b"x")
            assert friend.recv() == b"x"
            friend.abort()
        for sock in strangers:
            sock.close()

    def test_port_checks_leave_no_trace(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        listener = start()
        for _ in range(5):
            connect(listener).close()
        befriend(listener).abort()
        eventually(lambda: len(listener._strangers) == 0)
        assert not listener.strangers_cut
        assert not caplog.records

    def test_memory_stays_flat_under_every_kind_of_abuse(self, start: Start) -> None:
        listener = start(on_websocket=bounded_reader, limits=StrangerLimits(seconds=5.0))
        process = psutil.Process()
        abuse(listener, 1)
        gc.collect()
        before = process.memory_info().rss
        abuse(listener, 12)
        gc.collect()
        assert process.memory_info().rss - before < 8 << 20
        eventually(lambda: len(listener._strangers) == 0)

    def test_a_crash_ends_one_connection_only(
        self, start: Start, owner: Owner, caplog: pytest.LogCaptureFixture
    ) -> None:
        listener = start()
        friend, victim = befriend(listener), dial(url(listener))
        victim.send(b"crash")
        assert victim.recv() == b""
        victim.abort()
        assert "a bug of the owner" in caplog.text
        friend.send(b"x")
        assert friend.recv() == b"x"
        friend.abort()
        eventually(lambda: owner.open == 0)


def bounded_reader(transport: Transport, _ticket: StrangerTicket) -> None:
    """An owner as it should be: reads frames under a limit and leaves when they are wrong."""
    frames = FrameDecoder(max_payload_bytes=1024, require_mask=True)
    while data := transport.recv():
        frames.feed(data)
        try:
            while frames.next_frame() is not None:
                pass
        except Exception:  # noqa: BLE001  # whatever it is, this connection is over
            return


def abuse(listener: Listener, rounds: int) -> None:
    """Garbage, huge heads, announcements of 2^40 bytes with megabytes behind them."""
    announcement = frame_header(2, 2**40, mask=True)
    for _ in range(rounds):
        for head in (os.urandom(64_000), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"A" * 200_000):
            with connect(listener) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(head)
                read_all(sock)
        for _ in range(4):
            try:
                transport = dial(url(listener))
                transport.send(announcement + bytes(1 << 20))
            except (ConnectionError, DialError):
                continue
            assert transport.recv() == b""
            transport.abort()


class TestStartAndStop:
    def test_the_real_port_is_known_after_start(self, start: Start) -> None:
        assert start().port > 0

    def test_a_taken_port_is_a_clear_error(self, start: Start) -> None:
        port = start().port
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}: the port is already in use"):
            start(port=port)

    def test_a_foreign_address_is_a_clear_error(self, start: Start) -> None:
        with pytest.raises(StartError, match="not an address of this machine"):
            start(host="203.0.113.7")

    def test_an_unknown_name_is_a_clear_error(self, start: Start) -> None:
        with pytest.raises(StartError, match="the host name is not known here"):
            start(host="no-such-host.invalid")

    def test_an_impossible_port_is_a_clear_error(self, start: Start) -> None:
        with pytest.raises(StartError, match="cannot listen on"):
            start(port=70000)

    def test_ipv6_is_served(self, start: Start) -> None:
        try:
            listener = start(host="::1")
        except StartError:
            pytest.skip("no IPv6 here")
        transport = dial(f"ws://[::1]:{listener.port}")
        assert transport.local_host == "::1"
        transport.abort()

    def test_stop_aborts_strangers_and_leaves_the_admitted_to_their_owner(self, start: Start) -> None:
        listener = start()
        friend = befriend(listener)
        upgraded, silent = dial(url(listener)), connect(listener)
        eventually(lambda: len(listener._strangers) == 2)
        listener.stop()
        listener.stop()
        assert upgraded.recv() == b""
        assert read_all(silent) == b""
        upgraded.abort()
        silent.close()
        friend.send(b"x")
        assert friend.recv() == b"x"
        friend.abort()
        with pytest.raises(DialError, match="refused"):
            dial(url(listener))

    def test_the_port_is_free_again_after_stop(self, start: Start) -> None:
        listener = start()
        before = befriend(listener)
        listener.stop()
        again = start(port=listener.port)
        befriend(again).abort()
        before.abort()
