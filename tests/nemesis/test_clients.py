"""Browsers that cost more than they should: they do not read, never end a frame, or announce what nobody could hold."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from engineio.socket import Socket as Session
from gevent.queue import JoinableQueue
from geventwebsocket.websocket import Stream, WebSocket

from gevent_mesh import GeventMeshManager
from gevent_mesh.protocol.websocket import Opcode
from gevent_mesh.websocket import BoundedWebSocket
from tests.browser import Browser, client_frame, connect, frame_start
from tests.integration.processes import FULL, Fleet, Node, fleet
from tests.nemesis.faults import MIB, counters
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

QUEUE_BYTES = (64 if FULL else 8) * MIB
LARGEST_MESSAGE = 1_000_000
PINGS: dict[str, Any] = {"ping_interval": 0.5, "ping_timeout": 0.5}
"""Those of a short run; the full one takes the defaults."""
if FULL:
    PINGS = {"ping_interval": 25, "ping_timeout": 20}
ENDING_SECONDS = 5.0
"""How long a connection may outlive its session, see `gevent_mesh.limits`."""

PADDING = 10_000
ENOUGH = QUEUE_BYTES // PADDING + 16 * MIB // PADDING
"""Events that fill the queue of a client and the buffers of two kernels."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A server that works alone, whose clients are patient: none is found by a missed ping first."""
    with fleet() as started:
        yield started.node(
            None, url=[], client_queue_bytes=QUEUE_BYTES, server={"max_http_buffer_size": LARGEST_MESSAGE}
        )


def browser(node: Node, **options: Any) -> Browser:
    return connect(node.http_port, socket, **options)


def answered(one: Browser, count: int) -> list[float]:
    """How long a client waits for its acknowledgements, one after the other, in seconds."""
    waited = []
    for _ in range(count):
        began = time.monotonic()
        one.send('420["enter","a room"]')
        while (found := one.receive()[1]) != b'430["a room"]':
            assert found, "cut"
            if found == b"2":
                one.send("3")
        waited.append(time.monotonic() - began)
    return waited


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


@pytest.mark.row("browser that does not read", "cut at the limit; memory bounded by it; nobody else waits")
def test_browser_that_does_not_read_is_cut_at_the_limit(node: Node, figures: Figures) -> None:
    with browser(node, receive_buffer=4096) as slow, browser(node) as good:
        for one in (slow, good):
            one.open()
        slow.send('420["enter","news"]')
        answered(good, 50)
        figures["p99_before_ms"] = p99(answered(good, 300)) * 1000
        before = node.state()
        already = before["counters"]["slow_clients"]
        node.do("start_traffic", 2000, room="news", padding=PADDING, count=ENOUGH)
        waited, peak, cut_after = [], 0, None
        began = time.monotonic()
        while (state := node.state())["traffic"]:
            peak = max(peak, state["rss"] - before["rss"])
            waited += answered(good, 20)
            if cut_after is None and state["counters"]["slow_clients"] > already:
                cut_after = state["sent"] - before["sent"]
        figures["seconds"] = time.monotonic() - began
        figures["cut_after_mib"] = (cut_after or 0) * PADDING / MIB
        figures["limit_mib"] = QUEUE_BYTES / MIB
        figures["memory_grew_mib"] = peak / MIB
        figures["p99_meanwhile_ms"] = p99(waited) * 1000
        assert cut_after is not None
        assert counters(node)["slow_clients"] == already + 1
        # And the few events that were emitted until it was seen.
        assert peak < QUEUE_BYTES * 1.1 + 5 * MIB
        assert p99(waited) < 0.05
        assert slow.seconds_until_cut() < 2
        assert len(node.do("disconnected")) >= 1


@pytest.mark.row("browser that announces 1 GiB", "refused with 1009 before it is read; memory at most +5 MiB")
def test_browser_that_announces_a_gibibyte_is_refused(node: Node, figures: Figures) -> None:
    with ExitStack() as stack:
        good = stack.enter_context(browser(node))
        good.open()
        hostile = [stack.enter_context(browser(node)) for _ in range(20)]
        for one in hostile:
            one.open()
        before, refused = node.state()["rss"], counters(node)["refused_clients"]
        began = time.monotonic()
        for one in hostile:
            one.sock.sendall(frame_start(Opcode.BINARY, 1 << 30) + b"mask" + b"x" * 100_000)
        assert [one.close_code() for one in hostile] == [1009] * len(hostile)
        figures["browsers"] = len(hostile)
        figures["all_refused_seconds"] = time.monotonic() - began
        figures["memory_grew_mib"] = (node.state()["rss"] - before) / MIB
        assert figures["memory_grew_mib"] < 5
        assert p99(answered(good, 20)) < 0.5
        eventually(lambda: counters(node)["refused_clients"] == refused + len(hostile))


BROKEN = {
    "unmasked": (client_frame(Opcode.TEXT, b"2", mask=False), 1002),
    "fragment of nothing": (client_frame(Opcode.CONTINUATION, b"2"), 1002),
    "reserved bits": (b"\xf1\x80mask", 1002),
    "unknown kind": (b"\x83\x80mask", 1002),
    "large ping": (b"\x89\xfe\x01\x00mask", 1002),
    "too long a length": (b"\x81\xfe\x00\x01mask", 1002),
    "not UTF-8": (client_frame(Opcode.TEXT, b"4\xff"), 1007),
    "one byte too many": (frame_start(Opcode.TEXT, LARGEST_MESSAGE + 1), 1009),
}


@pytest.mark.row("frames that break the rules, unmasked and others", "refused by a close frame that says which")
def test_frames_that_break_the_rules_are_refused(node: Node, figures: Figures) -> None:
    already = counters(node)["refused_clients"]
    for name, (sent, code) in BROKEN.items():
        with browser(node) as hostile:
            hostile.open()
            hostile.sock.sendall(sent)
            assert hostile.close_code() == code, name
    eventually(lambda: counters(node)["refused_clients"] == already + len(BROKEN))
    figures["kinds"] = len(BROKEN)
    assert "Traceback" not in node.output


@pytest.mark.row("fragments without end", "refused when their sum is the limit; memory at most +5 MiB")
def test_fragments_without_end_are_refused(node: Node, figures: Figures) -> None:
    with browser(node) as hostile:
        hostile.open()
        before, refused = node.state()["rss"], counters(node)["refused_clients"]
        sent = 0
        hostile.sock.sendall(client_frame(Opcode.TEXT, b"4", final=False))
        with contextlib.suppress(ConnectionError):
            while sent < 100 * MIB:
                hostile.sock.sendall(client_frame(Opcode.CONTINUATION, b"x" * 10_000, final=False))
                sent += 10_000
        # What is sent after the close frame is read away for a moment; it may be a reset that ends this.
        assert hostile.close_code() in (1009, 0)
        figures["sent_mib"] = sent / MIB
        figures["memory_grew_mib"] = (node.state()["rss"] - before) / MIB
        assert figures["memory_grew_mib"] < 5
    eventually(lambda: counters(node)["refused_clients"] == refused + 1)


@pytest.mark.row("frames that never end", "cut when a ping is not answered; sockets and greenlets are free again")
def test_frames_that_never_end_keep_no_socket(ships: Fleet, figures: Figures) -> None:
    node = ships.node(None, server=PINGS)
    with ExitStack() as stack:
        slow = [stack.enter_context(browser(node)) for _ in range(10)]
        for one in slow:
            one.open()
            one.sock.sendall(frame_start(Opcode.TEXT, 100_000) + b"mask")
        began = time.monotonic()
        # Engine.IO looks at all of its clients once in a ping_timeout, or in two while they become more.
        longest = PINGS["ping_interval"] + 3 * PINGS["ping_timeout"] + ENDING_SECONDS + 2
        left = list(slow)
        while left and time.monotonic() - began < longest:
            left = [one for one in left if not is_cut(one)]
        figures["browsers"] = len(slow)
        figures["all_gone_seconds"] = time.monotonic() - began
        assert left == []


def is_cut(one: Browser) -> bool:
    """Sends one byte more, and reads nothing."""
    one.sock.settimeout(0.02)
    try:
        one.sock.sendall(b"x")
    except ConnectionError:
        return True
    with contextlib.suppress(TimeoutError):
        # What the server says counts as nothing; what counts is its end.
        return not one.sock.recv(65536)
    return False


@pytest.mark.row("reading what browsers send", "masks undone much faster than by gevent-websocket, in the same run")
def test_reading_is_much_faster_than_gevent_websockets_own(figures: Figures) -> None:
    for name, opcode, size, count in [("1_kb", Opcode.TEXT, 1000, 200), ("1_mib", Opcode.BINARY, MIB, 1)]:
        theirs, ours = ({seconds_to_read(kind, opcode, size, count) for _ in range(3)} for kind in (WebSocket, None))
        figures[f"gevent_websocket_{name}_us"] = min(theirs) / count * 1e6
        figures[f"bounded_{name}_us"] = min(ours) / count * 1e6
        assert min(ours) * 5 < min(theirs)


class _Arrived:
    """A socket with data that are there already."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self._sock = sock
        self.recv = io.BytesIO(data).read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def seconds_to_read(kind: type | None, opcode: int, size: int, count: int) -> float:
    """Read messages that are there already. None is our own kind."""
    stream = client_frame(opcode, b"x" * size) * count
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # Ours reads from the socket itself, once the buffer of the request is empty.
        buffered = len(stream) if kind else io.DEFAULT_BUFFER_SIZE
        rfile = io.BufferedReader(io.BytesIO(stream[:buffered]))
        handler = SimpleNamespace(rfile=rfile, socket=_Arrived(ours, stream[buffered:]), wsgi_input=SimpleNamespace())
        websocket = WebSocket({}, Stream(handler), handler)
        if kind is None:
            websocket = BoundedWebSocket(websocket, 2 * MIB)
        began = time.perf_counter()
        for _ in range(count):
            assert len(websocket.receive()) == size
        seconds = time.perf_counter() - began
        websocket.closed = True
    return seconds


@pytest.mark.row("fan-out with a cap for each client", "costs little of a delivery")
def test_the_cap_costs_little_of_a_delivery(figures: Figures) -> None:
    kinds = {"without_cap": JoinableQueue, "with_cap": None}
    found = {name: min(seconds_to_deliver(kind) for _ in range(5)) * 1e6 for name, kind in kinds.items()}
    for name, microseconds in found.items():
        figures[f"{name}_us"] = microseconds
    # A delivery is 10 us and more, with the system call that sends it.
    assert found["with_cap"] < found["without_cap"] + 3


def seconds_to_deliver(queue: type | None, clients: int = 50, events: int = 100) -> float:
    """Put events into the queues of clients and take them out again, as Engine.IO does. None is our own queue."""
    manager = GeventMeshManager([], ws_port=0)
    server = socketio.Server(async_mode="gevent", client_manager=manager)
    # It is not to join when some other test begins to serve.
    manager.stop()
    if queue is not None:
        server.eio._async["queue"] = queue
    for n in range(clients):
        session = server.eio.sockets[f"e{n}"] = Session(server.eio, f"e{n}")
        manager.basic_enter_room(f"s{n}", "/", None, eio_sid=session.sid)
    began = time.process_time()
    for n in range(events):
        manager._clients.fanout.deliver("/", [], [], [f'2["news",{n}]'])
    for session in server.eio.sockets.values():
        assert len(session.poll()) == events
    return (time.process_time() - began) / clients / events
