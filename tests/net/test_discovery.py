"""The client of discovery: registers, follows the roster, comes back, and believes nobody without a proof."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from gevent_mesh.net import discovery as module
from gevent_mesh.net.discovery import DiscoveryClient
from gevent_mesh.net.listener import Listener, StrangerTicket
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol import discovery as wire
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, close_payload, frame
from gevent_mesh_discovery import DiscoveryServer
from tests.support import eventually

TOKEN = "a token of 26 characters.."


class Node:
    """A client and what it was told."""

    def __init__(self, url: str, uid: str, *, tokens: tuple[str, ...] = (), role: str = "node") -> None:
        self.calls: list[tuple[str, dict[str, str], bool, tuple[str, ...]]] = []
        self.local_hosts: list[str] = []
        self.lost: list[str] = []
        self.client = DiscoveryClient(
            url,
            uid=uid,
            secret=uid.encode()[:1] * 16,
            role=role,
            tokens=tokens,
            address_for=self._address,
            on_roster=lambda *call: self.calls.append(call),
            on_away=self.lost.append,
            rng=random.Random(1),
        )
        self.client.start()

    @property
    def roster(self) -> dict[str, str]:
        return self.calls[-1][1] if self.calls else {}

    def _address(self, local_host: str) -> str:
        self.local_hosts.append(local_host)
        return f"ws://{local_host}:4000"


Join = Callable[..., Node]


@pytest.fixture
def join() -> Iterator[Join]:
    nodes: list[Node] = []

    def run(url: str, uid: str = "a" * 16, **options: Any) -> Node:
        nodes.append(Node(url, uid, **options))
        return nodes[-1]

    yield run
    for node in nodes:
        node.client.stop()


@pytest.fixture
def server() -> Iterator[DiscoveryServer]:
    server = DiscoveryServer("127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fake() -> Iterator[Callable[[Callable[[Transport, wire.Challenge, wire.Register], None]], str]]:
    """A discovery server that does what the test says, after a challenge and a register."""
    listeners: list[Listener] = []

    def start(then: Callable[[Transport, wire.Challenge, wire.Register], None]) -> str:
        def serve(transport: Transport, ticket: StrangerTicket) -> None:
            challenge = wire.Challenge(os.urandom(32), "0" * 16)
            transport.send(frame(Opcode.BINARY, challenge.encode(), mask=False))
            frames = FrameDecoder(max_payload_bytes=4096, require_mask=True)
            while (item := frames.next_frame()) is None:
                data = transport.recv()
                if not data:
                    return
                frames.feed(data)
            ticket.admitted()
            then(transport, challenge, wire.parse_register(wire.decode(item[1])))
            while transport.recv():
                pass

        listener = Listener("127.0.0.1", 0, on_websocket=serve, require_mesh_header=True)
        listener.start()
        listeners.append(listener)
        return f"ws://127.0.0.1:{listener.port}"

    yield start
    for listener in listeners:
        listener.stop()


Fake = Callable[[Callable[[Transport, wire.Challenge, wire.Register], None]], str]


def say(transport: Transport, *messages: bytes) -> None:
    transport.send(b"".join(frame(Opcode.BINARY, message, mask=False) for message in messages))


def welcome(challenge: wire.Challenge, register: wire.Register, tokens: tuple[str, ...] = ()) -> bytes:
    proof = wire.DiscoveryKeys(tokens).server_proof(challenge, register)
    assert proof is not None
    return wire.Welcome(proof, 30.0, challenge.instance).encode()


def test_a_node_registers_and_is_told_the_roster(server: DiscoveryServer, join: Join) -> None:
    node = join(server.url)
    assert node.client.roster_seen.wait(5)
    assert node.client.connected
    assert node.client.last_error is None
    assert node.calls[0] == (server.url, {"a" * 16: "ws://127.0.0.1:4000"}, False, ())
    assert node.local_hosts == ["127.0.0.1"]
    assert "connected" in repr(node.client)


def test_others_come_and_go(server: DiscoveryServer, join: Join) -> None:
    first = join(server.url, "a" * 16)
    second = join(server.url, "b" * 16)
    eventually(lambda: set(first.roster) == set(second.roster) == {"a" * 16, "b" * 16})
    began = time.monotonic()
    second.client.stop()
    eventually(lambda: set(first.roster) == {"a" * 16})
    assert time.monotonic() - began < 1.0
    assert not second.client.connected


def test_every_call_gets_a_roster_of_its_own(server: DiscoveryServer, join: Join) -> None:
    node = join(server.url)
    eventually(lambda: node.roster)
    node.roster.clear()
    join(server.url, "b" * 16)
    eventually(lambda: len(node.roster) == 2)


def test_an_emitter_registers_without_an_address(server: DiscoveryServer, join: Join) -> None:
    emitter = join(server.url, "e" * 16, role="emitter")
    join(server.url)
    eventually(lambda: set(emitter.roster) == {"a" * 16})
    assert emitter.local_hosts == []
    assert server.registered == 1


def test_a_server_that_is_not_there_yet_is_found_when_it_is(server: DiscoveryServer, join: Join) -> None:
    port = server.port
    server.stop()
    node = join(f"ws://127.0.0.1:{port}")
    eventually(lambda: node.client.last_error is not None)
    assert not node.client.roster_seen.is_set()
    later = DiscoveryServer("127.0.0.1", port)
    later.start()
    eventually(lambda: node.client.connected)
    assert node.client.last_error is None
    later.stop()


def test_who_is_seen_to_go_is_named_at_once(server: DiscoveryServer, join: Join) -> None:
    node, leaving = join(server.url, "a" * 16), join(server.url, "b" * 16)
    eventually(lambda: len(node.roster) == 2)
    leaving.client.stop()
    eventually(lambda: len(node.roster) == 1)
    assert node.calls[-1][2:] == (False, ("b" * 16,)), "the server is too young to know everybody"


def test_a_restart_of_the_server_takes_nothing_away(server: DiscoveryServer, join: Join) -> None:
    nodes = [join(server.url, uid * 16) for uid in "abc"]
    eventually(lambda: all(len(node.roster) == 3 for node in nodes))
    server.stop()
    eventually(lambda: not any(node.client.connected for node in nodes))
    calls = [len(node.calls) for node in nodes]
    again = DiscoveryServer("127.0.0.1", server.port)
    again.start()
    eventually(lambda: all(node.client.connected and len(node.roster) == 3 for node in nodes), 10)
    for node, before in zip(nodes, calls, strict=True):
        assert all(not complete for _, _, complete, _ in node.calls[before:])
    again.stop()


def test_both_sides_prove_the_token(join: Join) -> None:
    server = DiscoveryServer("127.0.0.1", 0, tokens=(TOKEN,))
    server.start()
    node = join(server.url, tokens=("new" * 10, TOKEN))
    eventually(lambda: node.client.connected)
    server.stop()


def test_a_wrong_token_is_said_once_with_advice(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = DiscoveryServer("127.0.0.1", 0, tokens=(TOKEN,))
    server.start()
    node = join(server.url, tokens=("wrong" * 5,))
    eventually(lambda: server.counters.unauthorized >= 3)
    assert "MESH_AUTH_TOKEN" in (node.client.last_error or "")
    said = [record for record in caplog.records if "token" in record.getMessage()]
    assert len(said) == 1
    assert TOKEN not in caplog.text
    assert not node.client.roster_seen.is_set()
    server.stop()


def test_trouble_is_said_again_after_a_minute(
    join: Join, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TELL_AGAIN_SECONDS", 0.0)
    node = join("ws://127.0.0.1:1")
    eventually(lambda: len(caplog.records) >= 3)
    assert node.client.last_error == "Connection refused"


def test_a_server_without_the_token_is_not_believed(fake: Fake, join: Join) -> None:
    def forge(transport: Transport, challenge: wire.Challenge, _register: wire.Register) -> None:
        proof = wire.Welcome(os.urandom(32), 30.0, challenge.instance).encode()
        say(transport, proof, wire.roster(challenge.instance, 1, True, {"evil": "ws://evil:1"}))

    node = join(fake(forge), tokens=(TOKEN,))
    eventually(lambda: node.client.last_error)
    assert "does not know our token" in (node.client.last_error or "")
    assert node.calls == []


def test_the_token_never_leaves(fake: Fake, join: Join) -> None:
    seen: list[wire.Register] = []
    node = join(fake(lambda _transport, _challenge, register: seen.append(register)), tokens=(TOKEN,))
    eventually(lambda: seen)
    assert seen[0].token == ""
    assert TOKEN.encode() not in seen[0].encode()
    assert len(seen[0].proofs) == 1
    assert node.calls == []


def test_malformed_entries_are_skipped_and_said_once(fake: Fake, join: Join, caplog: pytest.LogCaptureFixture) -> None:
    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        bad = {"a": "ws://h:1", "b": "http://h:1"}
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, bad))
        for version in range(2, 5):
            say(transport, wire.delta(challenge.instance, version, True, {"c": "ws://h:3", "d": ""}, []))

    node = join(fake(serve))
    eventually(lambda: len(node.calls) == 4)
    assert node.roster == {"a": "ws://h:1", "c": "ws://h:3"}
    assert len([record for record in caplog.records if "malformed" in record.getMessage()]) == 1


@pytest.mark.parametrize("by_delta", [False, True])
def test_a_roster_has_a_limit(fake: Fake, join: Join, monkeypatch: pytest.MonkeyPatch, by_delta: bool) -> None:
    monkeypatch.setattr(wire, "MAX_ROSTER_ENTRIES", 3)
    many = {f"n{at}": "ws://h:1" for at in range(5)}

    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        first = {} if by_delta else many
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, first))
        say(transport, wire.delta(challenge.instance, 2, True, many, []))

    node = join(fake(serve))
    eventually(lambda: len(node.calls) == 2)
    assert set(node.roster) == {"n0", "n1", "n2"}


@pytest.mark.parametrize(
    "garbage",
    [
        frame(Opcode.BINARY, b"\xc0", mask=False),
        frame(Opcode.TEXT, b"hello", mask=False),
        b"\x82\xff\x00\x00\x01\x00\x00\x00\x00\x00",
        b"\x82\x7f\x00\x00\x01\x00\x00\x00\x00\x00",
        frame(Opcode.BINARY, wire.roster("0" * 16, 1, True, {"evil": "ws://evil:1"}), mask=False),
        frame(Opcode.CLOSE, close_payload(4409, "taken"), mask=False),
        b"",
    ],
)
def test_garbage_ends_one_connection_and_the_client_tries_again(fake: Fake, join: Join, garbage: bytes) -> None:
    tries: list[int] = []

    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        tries.append(1)
        if len(tries) == 1:
            transport.send(garbage)
            transport.close()
        else:
            say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {"a": "ws://h:1"}))

    node = join(fake(serve))
    eventually(lambda: node.client.connected)
    assert node.roster == {"a": "ws://h:1"}


def test_the_backoff_is_reset_by_a_roster_only(fake: Fake, join: Join) -> None:
    node = join(fake(lambda transport, _challenge, _register: transport.close()))
    eventually(lambda: node.client._backoff._failures >= 3)
    assert not node.client.roster_seen.is_set()


def test_a_silent_server_is_left(fake: Fake, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REGISTER_SECONDS", 0.2)
    node = join(fake(lambda _transport, _challenge, _register: None))
    eventually(lambda: node.client.last_error == "it was silent for too long")


def test_a_server_that_goes_silent_later_is_left_after_two_pings(
    fake: Fake, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PING_SECONDS", 0.1)
    pings: list[bytes] = []

    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {}))
        while data := transport.recv():
            pings.append(data)

    node = join(fake(serve))
    eventually(lambda: node.client.connected)
    eventually(lambda: node.client.last_error == "it was silent for too long")
    assert pings[0].startswith(b"\x89\x80")


def test_who_has_a_silent_connection_is_registered_again_within_a_lease() -> None:
    noticing = module._SILENT_PINGS * wire.PING_SECONDS
    assert noticing + module._PAUSES["cap_seconds"] < wire.LEASE_SECONDS


def test_it_is_told_when_a_server_is_lost_that_was_there(fake: Fake, join: Join) -> None:
    tries: list[int] = []

    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        tries.append(1)
        if len(tries) == 1:
            say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {"a": "ws://h:1"}))
            gevent.sleep(0.01)
        transport.close()

    node = join(fake(serve))
    eventually(lambda: len(tries) >= 3)
    assert node.lost == [node.client.url]
    assert node.roster == {"a": "ws://h:1"}


def test_each_server_is_shown_a_secret_of_its_own_and_always_the_same(fake: Fake, join: Join) -> None:
    shown: list[list[bytes]] = [[], []]

    def serve(to: list[bytes]) -> Callable[[Transport, wire.Challenge, wire.Register], None]:
        def note(transport: Transport, _challenge: wire.Challenge, register: wire.Register) -> None:
            to.append(register.secret)
            transport.close()

        return note

    for to in shown:
        join(fake(serve(to)))
    eventually(lambda: min(map(len, shown)) >= 2)
    (one,), (other,) = map(set, shown)
    assert one != other
    assert len(one) == len(other) == wire.SECRET_BYTES


def test_a_server_that_floods_pings_and_reads_nothing_is_left(fake: Fake, join: Join) -> None:
    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {}))
        flood = frame(Opcode.PING, bytes(125), mask=False) * 500
        try:
            while True:
                transport.send(flood)
        except ConnectionError:
            pass

    node = join(fake(serve))
    eventually(lambda: node.client.last_error == "it does not read what we send", 10)


def test_a_crash_in_the_callback_does_not_end_the_client(
    server: DiscoveryServer, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    node = join(server.url)
    eventually(lambda: node.client.connected)
    broken: list[Any] = []

    def crash(*call: Any) -> None:
        broken.append(call)
        if len(broken) == 1:
            raise RuntimeError("a bug in the callback")

    node.client._on_roster = crash
    join(server.url, "b" * 16)
    eventually(lambda: len(broken) > 1)
    assert "a bug in the callback" in caplog.text


@pytest.mark.parametrize("moment", ["before start", "dialling", "connected", "twice"])
def test_stop_works_at_any_moment(server: DiscoveryServer, moment: str, caplog: pytest.LogCaptureFixture) -> None:
    client = DiscoveryClient(
        server.url, uid="a" * 16, secret=bytes(16), role="node", tokens=(),
        address_for=lambda host: f"ws://{host}:1", on_roster=lambda *_call: None,
    )  # fmt: skip
    if moment != "before start":
        client.start()
    gevent.sleep(0)
    if moment in ("connected", "twice"):
        assert client.roster_seen.wait(5)
    began = time.monotonic()
    client.stop()
    if moment == "twice":
        client.stop()
    assert time.monotonic() - began < 1.5
    eventually(lambda: server.registered == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_stop_says_goodbye(fake: Fake, join: Join) -> None:
    last_words: list[bytes] = []

    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {}))
        while data := transport.recv():
            last_words.append(data)

    node = join(fake(serve))
    eventually(lambda: node.client.connected)
    node.client.stop()
    goodbye = frame(Opcode.CLOSE, close_payload(1000, "leaving"), mask=True)
    eventually(lambda: last_words == [goodbye])


def test_stop_does_not_wait_for_a_server_that_does_not_read(fake: Fake, join: Join) -> None:
    def serve(transport: Transport, challenge: wire.Challenge, register: wire.Register) -> None:
        say(transport, welcome(challenge, register), wire.roster(challenge.instance, 1, True, {}))
        gevent.sleep(30)

    node = join(fake(serve))
    eventually(lambda: node.client.connected)
    began = time.monotonic()
    node.client.stop()
    assert time.monotonic() - began < 1.5


def test_forget_says_nothing_to_the_server(server: DiscoveryServer, join: Join) -> None:
    node = join(server.url)
    eventually(lambda: node.client.connected)
    # A second descriptor stands for the one that the parent of a fork keeps.
    connection = node.client._connection
    assert connection is not None
    copy = os.dup(connection.transport._socket.fileno())
    node.client.forget()
    with pytest.raises(AssertionError):
        eventually(lambda: server.registered == 0, 0.3)
    os.close(copy)
    eventually(lambda: server.registered == 0)
