"""What is promised when processes die, stop and come back, when connections break, and when strangers knock.

The figures are printed (`pytest -s`). With ``MESH_FULL=1`` everything is tried at the size that the project promises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import psutil
import pytest

from gevent_mesh.protocol import frames
from gevent_mesh.protocol.frames import Auth, Challenge, Hello, Role, SessionState, decode_frame, encode_frame
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, frame
from tests.integration.clients import Client, clients_closed
from tests.integration.processes import FULL, Fleet, Node, fleet, linked
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

TOKEN = "a token for these tests"
RATE = 1000
HEARTBEATS: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5}
if FULL:
    HEARTBEATS = {"heartbeat_interval": 5.0, "heartbeat_timeout": 10.0}
RESETS = 100 if FULL else 12
DISCOVERY_AWAY_SECONDS = 30.0 if FULL else 3.0
MIB = 1024 * 1024


def say(text: str) -> None:
    print(f"\n    {text}", end="", flush=True)


def wait_for_numbers(clients: list[Client], sent: dict[str, int], seconds: float = 15.0) -> None:
    for client in clients:
        for boot, count in sent.items():
            client.wait_for_number(boot, count, seconds)


def time_until(condition: Callable[[], bool], seconds: float) -> float:
    began = time.monotonic()
    eventually(condition, seconds)
    return time.monotonic() - began


def counters(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.state()["counters"]
    return found


# ---------------------------------------------------------------------- processes that die or stand still


def test_killed_node_is_noticed_and_replaced_and_nobody_else_loses_anything(
    ships: Fleet, clients: list[Client]
) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(4, discovery, **HEARTBEATS)
    linked(nodes)
    *survivors, victim = nodes
    clients += [Client(node.url) for node in survivors]
    for node in nodes:
        node.do("start_traffic", RATE / 4)
    for client in clients:
        for node in nodes:
            client.wait_for_number(node.boot, 50)
    victim.kill()
    killed = time.monotonic()
    for node in survivors:
        eventually(lambda node=node: not node.considers_alive(victim), 5)  # type: ignore[misc]  # bound now
    noticed = time.monotonic() - killed
    say(f"kill -9 at {RATE} events/s: noticed by all within {noticed:.2f} s")
    assert noticed < 1.0

    new = ships.node(discovery, **HEARTBEATS)
    for node in survivors:
        eventually(lambda node=node: node.sees(new), 5)  # type: ignore[misc]  # bound now
    joined = time.monotonic() - new.ready_at
    since_exec = time.monotonic() - new.started_at
    say(f"a new node is linked to all {joined:.2f} s after it serves, {since_exec:.2f} s after exec")
    assert joined < 2.0
    new.do("emit", "from the new one", 1)
    for client in clients:
        client.wait_for("from the new one")

    sent = {node.boot: node.do("stop_traffic") for node in survivors}
    wait_for_numbers(clients, sent)
    for client in clients:
        report = client.checker.report(sent)
        assert report.is_perfect, report
        # What the victim had not sent is gone. What came of it came once and in order.
        of_victim = client.checker.report({victim.boot: client.checker.highest(victim.boot)})
        assert of_victim.is_perfect, of_victim
    for node in survivors:
        assert counters(node)["links_down"] == 1


def test_stopped_node_is_noticed_and_resumes_with_nothing_lost_or_doubled(ships: Fleet, clients: list[Client]) -> None:
    nodes = ships.nodes(3, ships.discovery(), **HEARTBEATS)
    linked(nodes)
    sleeper, *others = nodes
    clients += [Client(node.url) for node in nodes]
    for node in nodes:
        node.do("start_traffic", 200)
    for client in clients:
        for node in nodes:
            client.wait_for_number(node.boot, 20)
    sleeper.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    for node in others:
        eventually(lambda node=node: not node.considers_alive(sleeper), 30)  # type: ignore[misc]  # bound now
    noticed = time.monotonic() - stopped
    say(f"SIGSTOP: noticed within {noticed:.2f} s with heartbeat_timeout={HEARTBEATS['heartbeat_timeout']}")
    assert noticed < HEARTBEATS["heartbeat_timeout"] + 2.0
    before = counters(others[0])["messages_sent"]
    eventually(lambda: counters(others[0])["messages_sent"] > before + 200)
    sleeper.signal(signal.SIGCONT)
    woken = time.monotonic()
    linked(nodes, 20)
    say(f"SIGCONT: all links are up again after {time.monotonic() - woken:.2f} s")
    sent = {node.boot: node.do("stop_traffic") for node in nodes}
    wait_for_numbers(clients, sent)
    for client in clients:
        report = client.checker.report(sent)
        assert report.is_perfect, report
    assert all(counters(node)["sent_lost"] == counters(node)["received_lost"] == 0 for node in nodes)
    # The two that stood beside it never lost each other.
    assert all(counters(node)["links_down"] == 1 for node in others)


# ---------------------------------------------------------------------- connections that break


def test_connection_resets_lose_nothing_double_nothing_and_keep_the_order(ships: Fleet, clients: list[Client]) -> None:
    proxy = ships.proxy()
    nodes = ships.nodes(2, ships.discovery(), proxy=proxy, log="WARNING", **HEARTBEATS)
    linked(nodes)
    clients += [Client(node.url) for node in nodes]
    # Each sends to the other one's client only: what counts is what went over a link.
    for client, room in zip(clients, ("near", "far"), strict=True):
        client.enter(room)
    nodes[0].do("start_traffic", RATE, room="far")
    nodes[1].do("start_traffic", RATE / 4, room="near")
    proxy.do("start_resets", RESETS, 0.05, 0.7, seed=4)
    eventually(lambda: not proxy.state()["resetting"], 240)
    linked(nodes, 20)
    sent = [node.do("stop_traffic") for node in nodes]
    clients[1].wait_for_number(nodes[0].boot, sent[0], 30)
    clients[0].wait_for_number(nodes[1].boot, sent[1], 30)
    reports = [
        clients[1].checker.report({nodes[0].boot: sent[0]}),
        clients[0].checker.report({nodes[1].boot: sent[1]}),
    ]
    downs = counters(nodes[0])["links_down"]
    say(f"{proxy.state()['resets']} connections reset ({downs} links that were up) at {RATE} + {RATE // 4} events/s:")
    for report in reports:
        say(
            f"  {report.received} received, {report.missing} lost, {report.doubled} doubled, {report.late} out of order"
        )
        assert report.is_perfect
    assert proxy.state()["resets"] >= RESETS
    assert downs > RESETS / 3
    for node in nodes:
        assert counters(node)["sent_lost"] == counters(node)["received_lost"] == 0


def test_discovery_may_go_and_come_back(ships: Fleet) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(5, discovery, **HEARTBEATS)
    linked(nodes)
    before = {node.uid: node.links() for node in nodes}
    discovery.kill()
    killed = time.monotonic()
    for node in nodes:
        eventually(lambda node=node: not any(node.state()["discovery"]))  # type: ignore[misc]  # bound now
    eventually(lambda: time.monotonic() > killed + DISCOVERY_AWAY_SECONDS, DISCOVERY_AWAY_SECONDS + 1)
    again = ships.discovery(port=discovery.port)
    restarted = time.monotonic()
    sixth = ships.node(again, **HEARTBEATS)
    linked([*nodes, sixth], 40)
    say(
        f"discovery was away for {restarted - killed:.1f} s; a sixth node was in the mesh "
        f"{time.monotonic() - restarted:.1f} s after its restart; links that went down: "
        f"{sum(counters(node)['links_down'] for node in nodes)}"
    )
    for node in nodes:
        assert counters(node)["links_down"] == 0
        assert node.links() == before[node.uid] | {sixth.uid}
        assert counters(node)["links_up"] == 5


# ---------------------------------------------------------------------- peers that are slow, publishers that are fast


def test_slow_consumer_is_cut_and_the_loss_is_known_exactly_on_both_sides(ships: Fleet, clients: list[Client]) -> None:
    limit = 1 * MIB
    # Heartbeats that would not end the link by themselves while the test runs.
    options: dict[str, Any] = {
        "heartbeat_interval": 10.0,
        "heartbeat_timeout": 60.0,
        "buffered_amount_threshold": limit,
    }
    sender, slow, healthy = nodes = ships.nodes(3, ships.discovery(), **options)
    linked(nodes)
    clients += [Client(node.url) for node in (slow, healthy)]
    for client in clients:
        client.enter("room")
    before = psutil.Process(sender.pid).memory_info().rss
    slow.signal(signal.SIGSTOP)
    # More than the buffers of both kernels and the outbox hold, but no more than a test needs.
    count, padding = 3000, 10_000
    burst = sender.do("burst", count, room="room", padding=padding)
    assert burst["sent"] == count
    state = sender.state()
    grown = state["rss"] - before
    say(f"slow consumer: {count * padding / MIB:.0f} MiB emitted, RSS grew by {grown / MIB:.1f} MiB")
    assert state["counters"]["slow_consumers"] == 1
    assert state["outbox"][slow.uid] <= limit
    assert grown < 20 * MIB
    assert not sender.sees(slow)
    clients[1].wait_for_number(sender.boot, count)
    assert clients[1].checker.report({sender.boot: count}).is_perfect

    slow.signal(signal.SIGCONT)
    linked(nodes, 20)
    sender.do("burst", 1, room="room")
    clients[0].wait_for_number(sender.boot, count + 1)
    report = clients[0].checker.report({sender.boot: count + 1})
    lost = (counters(sender)["sent_lost"], counters(slow)["received_lost"])
    say(f"slow consumer: {report.missing} events did not arrive; the two sides say {lost}")
    assert report.missing > 0
    assert lost == (report.missing, report.missing)
    assert (report.doubled, report.late) == (0, 0)
    assert counters(healthy)["received_lost"] == 0
    assert counters(healthy)["links_down"] == 0


def test_tight_loop_of_emits_cuts_no_healthy_peer(ships: Fleet, clients: list[Client]) -> None:
    count = 50_000
    nodes = ships.nodes(3, ships.discovery(), heartbeat_interval=0.5, heartbeat_timeout=1.5)
    linked(nodes)
    clients += [Client(node.url) for node in nodes[1:]]
    clients[0].enter("room")
    burst = nodes[0].do("burst", count, room="room", padding=100)
    clients[0].wait_for_number(nodes[0].boot, count, 60)
    report = clients[0].checker.report({nodes[0].boot: count})
    say(f"{count} emits in a row: {burst['seconds']:.2f} s, others waited {burst['longest_gap'] * 1000:.0f} ms at most")
    assert report.is_perfect, report
    for node in nodes:
        found = counters(node)
        assert (found["links_down"], found["slow_consumers"], found["sent_lost"]) == (0, 0, 0)
    # Heartbeats went on, or there would have been cuts: half of the timeout is far from that.
    assert burst["longest_gap"] < 0.5


# ---------------------------------------------------------------------- strangers


class Stranger:
    """Somebody who knows a port and our protocol, step by step."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sock = socket.create_connection(("127.0.0.1", node.ws_port), timeout=10)
        self._frames = FrameDecoder(max_payload_bytes=MIB, require_mask=False)

    def upgrade(self, *headers: str, path: str = "/", mesh: bool = True) -> bytes:
        """Ask for the upgrade; returns the head of the answer."""
        extra = [*(["Mesh-Protocol: 1"] if mesh else []), *headers]
        lines = [
            f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", *extra, "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(4096)
            if not data:
                return head
            head += data
        head, _, behind = head.partition(b"\r\n\r\n")
        self._frames.feed(behind)
        return head

    def send(self, payload: bytes) -> None:
        self.sock.sendall(frame(Opcode.BINARY, payload, mask=True))

    def receive(self) -> bytes:
        while (found := self._frames.next_frame()) is None:
            data = self.sock.recv(4096)
            assert data, "closed"
            self._frames.feed(data)
        return found[1]

    def hello(self, uid: str = "00000000000000aa", target: str = "") -> bytes:
        state = SessionState(b"s" * 8, b"", 0)
        # The version, address and so on of an honest node.
        return encode_frame(
            Hello(1, uid, "ws://127.0.0.1:9", target, os.urandom(32), Role.NODE, "socketio", "json", state)
        )

    def authenticate(self, token: str, hello: bytes | None = None) -> tuple[bytes, bytes]:
        """Go through the handshake; returns our two frames."""
        hello = self.hello() if hello is None else hello
        self.send(hello)
        challenge = self.receive()
        assert isinstance(decode_frame(challenge), Challenge)
        auth = encode_frame(Auth(Keys([token]).dialer_proofs(hello, challenge)))
        self.send(auth)
        return hello, auth

    def seconds_until_cut(self) -> float:
        """Wait for the end; what comes before it is dropped."""
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(4096):
                pass
        return time.monotonic() - began


def garbage(stranger: Stranger) -> None:
    stranger.sock.sendall(b"\x16\x03\x01" + b"\xfe\xed" * 2000)


def silence(stranger: Stranger) -> None:
    """Connects, and says nothing."""


def half_a_request(stranger: Stranger) -> None:
    stranger.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")


def endless_headers(stranger: Stranger) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            stranger.sock.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 990 + b"\r\n")


def silence_after_upgrade(stranger: Stranger) -> None:
    assert b" 101 " in stranger.upgrade()


def endless_pings(stranger: Stranger) -> None:
    stranger.upgrade()
    with contextlib.suppress(OSError):
        for _ in range(500):
            stranger.sock.sendall(frame(Opcode.PING, b"x" * 100, mask=True))


def hello_and_silence(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(stranger.hello())
    stranger.receive()


def huge_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(b"\x82\xff" + struct.pack("!Q", 1 << 40) + b"\0\0\0\0" + b"x" * 1000)


def random_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(os.urandom(500))


def junk_in_hello(stranger: Stranger) -> None:
    stranger.upgrade()
    # An array of 2^32 - 1 elements, announced in five bytes.
    stranger.send(b"\x10\xdd\xff\xff\xff\xff")


def wrong_types_in_hello(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(b"\x10" + msgpack.packb([1, None, 7, {}, "x", -1, [], b"", [[[]]]]))


def deep_nesting_in_hello(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(b"\x10" + b"\x91" * 900)


def wrong_token(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.authenticate("another token for it")


def no_token(stranger: Stranger) -> None:
    stranger.upgrade()
    hello = stranger.hello()
    stranger.send(hello)
    stranger.send(encode_frame(Auth(Keys([]).dialer_proofs(hello, stranger.receive()))))


def batch_without_handshake(stranger: Stranger) -> None:
    stranger.upgrade()
    message = msgpack.packb({"type": 3, "uid": "00000000000000aa", "nsp": "/", "data": {"packet": {}}})
    stranger.send(frames.batch_header(1, 0) + message)


def wrong_target(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(stranger.hello(target="00000000000000bb"))


def its_own_uid(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(stranger.hello(uid=stranger.node.uid))


def origin(stranger: Stranger) -> None:
    assert b" 403 " in stranger.upgrade("Origin: http://127.0.0.1")


def wrong_path(stranger: Stranger) -> None:
    assert b" 404 " in stranger.upgrade(path="/socket.io/")


def no_mesh_header(stranger: Stranger) -> None:
    assert b" 426 " in stranger.upgrade(mesh=False)


def text_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(frame(Opcode.TEXT, b"hello", mask=True))


STRANGERS: list[Callable[[Stranger], None]] = [
    garbage, silence, half_a_request, endless_headers, silence_after_upgrade, endless_pings, hello_and_silence,
    huge_frame, random_frame, junk_in_hello, wrong_types_in_hello, deep_nesting_in_hello, wrong_token, no_token,
    batch_without_handshake, wrong_target, its_own_uid, origin, wrong_path, no_mesh_header, text_frame,
]  # fmt: skip


@dataclass
class Served:
    """Two nodes with a token, and events that flow between them all the time."""

    nodes: list[Node]
    client: Client

    def cuts(self, approach: Callable[[Stranger], None]) -> float:
        """Have a stranger approach the first node; returns how long it was there."""
        began = time.monotonic()
        stranger = Stranger(self.nodes[0])
        with stranger.sock:
            with contextlib.suppress(ConnectionError):
                approach(stranger)
            stranger.seconds_until_cut()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fleet() as ships, clients_closed([]) as clients:
        nodes = ships.nodes(2, ships.discovery(token=TOKEN), auth_token=TOKEN, ws_host="127.0.0.1")
        linked(nodes)
        clients.append(Client(nodes[1].url))
        yield Served(nodes, clients[0])


def test_strangers_never_become_peers_and_are_cut_in_time(served: Served) -> None:
    node, other = served.nodes
    node.do("start_traffic", 200)
    # All kinds at once, several of each: also to see what they cost together.
    rounds = 3
    served.client.wait_for_number(node.boot, node.state()["sent"])
    for approach in STRANGERS:
        # What is allocated once, by the first of a kind, is not what this is about.
        if approach not in (garbage, silence, half_a_request, silence_after_upgrade, hello_and_silence):
            served.cuts(approach)
    before = node.state()
    seconds: dict[str, list[float]] = {}
    problems: list[Exception] = []

    def run(approach: Callable[[Stranger], None]) -> None:
        try:
            seconds.setdefault(approach.__name__, []).append(served.cuts(approach))
        except Exception as problem:  # noqa: BLE001  # told to the test, in its own thread
            problems.append(problem)

    threads = [threading.Thread(target=run, args=[approach]) for approach in STRANGERS * rounds]
    for thread in threads:
        thread.start()
    peak = before["rss"]
    while any(thread.is_alive() for thread in threads):
        state = node.state()
        peak = max(peak, state["rss"])
        assert state["links"] == [other.uid]
        assert state["peers"].keys() == {other.uid}
        sent = state["sent"]
        served.client.wait_for_number(node.boot, sent, 5)
    assert not problems, problems
    slowest = max(seconds, key=lambda name: max(seconds[name]))
    grown = (peak - before["rss"]) / MIB
    say(
        f"{len(threads)} strangers: the slowest ({slowest}) stayed {max(seconds[slowest]):.2f} s, RSS + {grown:.1f} MiB"
    )
    assert seconds.keys() == {approach.__name__ for approach in STRANGERS}
    assert max(seconds[slowest]) < 5.5
    assert grown < 4
    sent = node.do("stop_traffic")
    served.client.wait_for_number(node.boot, sent)
    state = node.state()
    assert (state["counters"]["links_up"], state["counters"]["links_down"]) == (1, 0)
    first = {node.boot: 1}
    assert served.client.checker.report({node.boot: sent}, first).is_perfect


def test_replayed_handshake_is_refused(served: Served) -> None:
    node = served.nodes[0]
    honest = Stranger(node)
    with honest.sock:
        honest.upgrade()
        hello, auth = honest.authenticate(TOKEN)
        welcome = decode_frame(honest.receive())
        assert isinstance(welcome, frames.Welcome)
        uid = "00000000000000aa"
        eventually(lambda: uid in node.links())
        # The token opens the door, so the recorded frames were good once.
        replaying = Stranger(node)
        with replaying.sock:
            replaying.upgrade()
            replaying.send(hello)
            replaying.receive()
            replaying.send(auth)
            refusal = decode_frame(replaying.receive())
            assert isinstance(refusal, frames.Bye)
            assert refusal.code == frames.Refusal.UNAUTHORIZED
            assert replaying.seconds_until_cut() < 5.5
        assert uid in node.links(), "the honest one was replaced"
        honest.send(encode_frame(frames.Bye(frames.Refusal.LEAVING, "thank you")))
        honest.seconds_until_cut()
    eventually(lambda: uid not in node.state()["peers"])


def test_node_with_a_wrong_token_stays_outside(ships: Fleet, clients: list[Client]) -> None:
    """Also when a discovery without a token tells both of each other."""
    open_discovery = ships.discovery()
    outsider = ships.node(open_discovery, auth_token="a wrong token for this", ws_host="127.0.0.1")
    insider = ships.node(open_discovery, auth_token=TOKEN, ws_host="127.0.0.1")
    for node in (outsider, insider):
        # The discovery server cannot prove that it knows the token, so its roster is not believed.
        node.wait_for(r"WARNING.*discovery")
        assert node.links() == set()
    clients.append(Client(insider.url))
    outsider.do("emit", "secret", 1)
    insider.do("emit", "marker", 1)
    clients[0].wait_for("marker")
    assert clients[0].received("secret") == []


def test_listener_that_does_not_know_the_token_gets_nothing(ships: Fleet) -> None:
    """A discovery server that lies about an address brings nobody behind it the token, or events."""
    discovery = ships.discovery(token=TOKEN)
    node = ships.node(discovery, auth_token=TOKEN, ws_host="127.0.0.1")
    other = ships.node(discovery, auth_token="another token, but valid here", ws_host="127.0.0.1")
    other.wait_for("token")
    time_until(lambda: node.state()["discovery"] == [True], 5)
    assert node.links() == set()
    assert other.links() == set()
