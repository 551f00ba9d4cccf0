"""The discovery server on real sockets: both kinds of members, their limits, and its HTTP side."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import msgpack
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import ConfigError, StartError
from gevent_mesh.net.listener import StrangerLimits
from gevent_mesh.protocol.websocket import Opcode, frame_header
from gevent_mesh_discovery import DiscoveryServer, app
from tests.discovery.members import NODE_FRAMES, Closed, NodeMember, OurMember, http_get
from tests.support import eventually

TOKEN = "a token of 26 characters.."

Start = Callable[..., DiscoveryServer]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[DiscoveryServer] = []

    def run(**options: Any) -> DiscoveryServer:
        server = DiscoveryServer("127.0.0.1", 0, **options)
        server.start()
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def server(start: Start) -> DiscoveryServer:
    return start()


#: Members live until the test is over, also those that it does not look at again.
KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def _let_members_go() -> Iterator[None]:
    yield
    KEPT.clear()


def ours(server: DiscoveryServer, name: str, port: int = 1, **options: Any) -> OurMember:
    """A member of our kind, registered."""
    member = OurMember(server.port)
    member.register(name, f"ws://127.0.0.1:{port}", **options)
    member.welcomed()
    KEPT.append(member)
    return member


def nodes(server: DiscoveryServer, name: str, port: int = 1, **extra: Any) -> NodeMember:
    """A member as the Node package's, registered."""
    member = NodeMember(server.port)
    member.register(name, f"ws://127.0.0.1:{port}", **extra)
    KEPT.append(member)
    return member


def receive_roster(member: OurMember, roster: dict[str, str], wanted: set[str]) -> None:
    """Apply deltas until the roster has exactly these names."""
    while set(roster) != wanted:
        delta = member.delta()
        for name in delta.removed:
            roster.pop(name, None)
        roster.update(delta.added)


class TestNodeMembers:
    def test_the_recorded_conversation_byte_for_byte(self, server: DiscoveryServer) -> None:
        first = NodeMember(server.port)
        assert "sec-websocket-accept: aghyciwew3i6scwtmrjew4zld18=" in first.head.decode().lower()
        assert b"extensions" not in first.head.lower()
        assert b"mesh-protocol" not in first.head.lower()
        first.send(bytes.fromhex(NODE_FRAMES["register A"]))
        assert first.receive().hex() == NODE_FRAMES["update A"]
        second = NodeMember(server.port)
        second.send(bytes.fromhex(NODE_FRAMES["register B"]))
        assert first.receive().hex() == NODE_FRAMES["update A B"]
        assert second.receive().hex() == NODE_FRAMES["update A B"]
        second.send_frame(Opcode.CLOSE, bytes.fromhex(NODE_FRAMES["close by client"]))
        second.closing()
        assert second.closed_with.hex() == NODE_FRAMES["close by client"]
        assert first.receive().hex() == NODE_FRAMES["update A"]

    def test_the_recorded_tokens_right_and_wrong(self, start: Start) -> None:
        server = start(tokens=("s3cret",))
        member = NodeMember(server.port)
        member.send(bytes.fromhex(NODE_FRAMES["register with token s3cret"]))
        assert member.receive().hex() == NODE_FRAMES["update after token"]
        stranger = NodeMember(server.port)
        stranger.send(bytes.fromhex(NODE_FRAMES["register with token wrong"]))
        assert stranger.closing() == (4401, "unauthorized")
        assert stranger.closed_with.hex() == NODE_FRAMES["close unauthorized"]
        without = nodes(server, "c")
        assert without.closing() == (4401, "unauthorized")
        assert server.counters.unauthorized == 2
        assert server.registered == 1

    def test_a_connection_that_breaks_is_unregistered(self, server: DiscoveryServer) -> None:
        first, second = nodes(server, "a"), nodes(server, "b", 2)
        eventually(lambda: len(first.servers()) == 2)
        second.leave()
        assert first.servers() == {"a": "ws://127.0.0.1:1"}

    def test_registering_again_is_answered_and_can_change_the_address(self, server: DiscoveryServer) -> None:
        member = nodes(server, "a")
        assert member.servers() == {"a": "ws://127.0.0.1:1"}
        member.register("a", "ws://127.0.0.1:1")
        assert member.servers() == {"a": "ws://127.0.0.1:1"}
        member.register("a", "ws://127.0.0.1:2")
        assert member.servers() == {"a": "ws://127.0.0.1:2"}

    def test_emitters_are_not_shown_to_node_members(self, server: DiscoveryServer) -> None:
        emitter = OurMember(server.port)
        emitter.register("e", "", role="emitter")
        emitter.welcomed()
        assert nodes(server, "a").servers() == {"a": "ws://127.0.0.1:1"}

    def test_a_name_that_is_alive_is_not_given_away(self, server: DiscoveryServer) -> None:
        first = nodes(server, "a")
        first.servers()
        assert nodes(server, "a", 2).closing() == (4409, "taken")
        first.register("a", "ws://127.0.0.1:3")
        assert first.servers() == {"a": "ws://127.0.0.1:3"}


class TestOurMembers:
    def test_a_roster_at_once_and_deltas_after_that(self, server: DiscoveryServer) -> None:
        first = OurMember(server.port)
        first.register("a", "ws://127.0.0.1:1")
        roster = first.welcomed()
        assert roster.servers == {"a": "ws://127.0.0.1:1"}
        assert roster.instance == server.instance
        assert not roster.complete
        second = ours(server, "b", 2)
        receive_roster(first, roster.servers, {"a", "b"})
        assert roster.servers["b"] == "ws://127.0.0.1:2"
        second.leave()
        receive_roster(first, roster.servers, {"a"})

    def test_both_kinds_see_each_other(self, server: DiscoveryServer) -> None:
        our = OurMember(server.port)
        our.register("a", "ws://127.0.0.1:1")
        roster = our.welcomed().servers
        node = nodes(server, "b", 2)
        assert node.servers() == {"a": "ws://127.0.0.1:1", "b": "ws://127.0.0.1:2"}
        receive_roster(our, roster, {"a", "b"})

    def test_an_emitter_watches_and_is_not_listed(self, server: DiscoveryServer) -> None:
        emitter = OurMember(server.port)
        emitter.register("e", "", role="emitter")
        roster = emitter.welcomed()
        assert roster.servers == {}
        ours(server, "a")
        receive_roster(emitter, roster.servers, {"a"})
        assert server.registered == 1

    @pytest.mark.parametrize("tokens", [(), ("wrong" * 5,)])
    def test_without_the_token_nobody_gets_in(self, start: Start, tokens: tuple[str, ...]) -> None:
        server = start(tokens=(TOKEN,))
        member = OurMember(server.port, tokens)
        member.register("a", "ws://127.0.0.1:1")
        assert member.closing() == (4401, "unauthorized")
        assert server.registered == 0

    def test_any_of_several_tokens_is_enough(self, start: Start) -> None:
        server = start(tokens=("new" * 9, TOKEN))
        member = OurMember(server.port, ("other" * 5, TOKEN))
        member.register("a", "ws://127.0.0.1:1")
        assert set(member.welcomed().servers) == {"a"}

    def test_a_proof_of_one_connection_is_worth_nothing_on_another(self, start: Start) -> None:
        server = start(tokens=(TOKEN,))
        first, second = OurMember(server.port, (TOKEN,)), OurMember(server.port, (TOKEN,))
        first.register("a", "ws://127.0.0.1:1")
        first.welcomed()
        assert first.sent is not None
        second.send_frame(Opcode.BINARY, first.sent.encode())
        assert second.closing() == (4401, "unauthorized")

    def test_a_token_instead_of_a_proof_is_refused_by_our_protocol(self, start: Start) -> None:
        server = start(tokens=(TOKEN,))
        member = OurMember(server.port, (TOKEN,))
        message = {"type": "register", "serverId": "a", "address": "ws://h:1", "token": TOKEN}
        member.send_frame(Opcode.BINARY, msgpack.packb(message))
        assert member.closing()[0] == 4400

    def test_the_owner_of_a_name_takes_it_back_and_nobody_else(self, server: DiscoveryServer) -> None:
        first = ours(server, "a")
        thief = OurMember(server.port)
        thief.register("a", "ws://127.0.0.1:6", secret=b"t" * 16)
        assert thief.closing() == (4409, "taken")
        assert nodes(server, "a", 7).closing() == (4409, "taken")
        assert server.counters.taken == 2
        again = ours(server, "a", 2)
        assert first.closing() == (4408, "replaced")
        assert json.loads(http_get(server.port, "/roster")[2])["servers"] == [
            {"serverId": "a", "address": "ws://127.0.0.1:2"}
        ]
        again.leave()
        eventually(lambda: server.registered == 0)

    def test_one_name_for_each_connection(self, server: DiscoveryServer) -> None:
        member = ours(server, "a")
        member.register("b", "ws://127.0.0.1:2")
        assert member.closing()[0] == 4400
        eventually(lambda: server.registered == 0)

    def test_changes_close_together_travel_together(self, server: DiscoveryServer) -> None:
        watcher = ours(server, "w")
        members = [OurMember(server.port) for _ in range(30)]
        for at, member in enumerate(members):
            member.register(f"n{at}", f"ws://127.0.0.1:{at + 1}")
            gevent.sleep(0.005)  # each of them alone in its turn of the loop
        names: set[str] = set()
        deltas = 0
        while len(names) < 31:
            names |= set(watcher.delta().added)
            deltas += 1
        assert deltas <= 6

    def test_a_server_that_is_as_old_as_a_lease_says_that_its_roster_is_complete(self, start: Start) -> None:
        server = start(lease_seconds=0.6, ping_seconds=0.2)
        member = OurMember(server.port)
        member.register("a", "ws://127.0.0.1:1")
        assert not member.welcomed().complete
        while True:
            delta = member.delta()
            if delta.complete:
                break
        assert json.loads(http_get(server.port, "/roster")[2])["complete"]


class TestLeases:
    def test_members_are_pinged_and_may_ping(self, start: Start) -> None:
        server = start(ping_seconds=0.1, lease_seconds=5.0)
        member = ours(server, "a")
        healthy = member.answer_pings()
        eventually(lambda: member.pings >= 2)
        healthy.kill()
        member.send_frame(Opcode.PING, b"hello")
        seen = []

        def pong() -> bool:
            member._frames.feed(member._more())
            while (item := member._frames.next_frame()) is not None:
                seen.append(item)
            return (Opcode.PONG, b"hello") in seen

        assert eventually(pong)

    def test_a_silent_member_is_cut_after_its_lease_and_a_healthy_one_stays(self, start: Start) -> None:
        server = start(ping_seconds=0.1, lease_seconds=0.5)
        healthy, silent = ours(server, "a"), ours(server, "b", 2)
        answering = healthy.answer_pings()
        assert server.registered == 2
        eventually(lambda: server.registered == 1, 3)
        with pytest.raises(AssertionError):
            eventually(lambda: server.registered == 0, 0.7)
        assert silent.closing() == (1006, "")
        answering.kill()

    def test_a_quiet_node_member_can_be_replaced(self, start: Start) -> None:
        server = start(ping_seconds=0.1, lease_seconds=10.0)
        first = nodes(server, "a")
        eventually(lambda: server.registered == 1)
        gevent.sleep(0.2)
        second = nodes(server, "a", 2)
        assert second.servers() == {"a": "ws://127.0.0.1:2"}
        assert first.closing() == (4408, "replaced")


MALFORMED = [
    b"\xc0",
    b"",
    b"\xff" * 100,
    b"\x93\x01\x02\x03",
    msgpack.packb({"type": "register"}),
    msgpack.packb({"type": "register", "serverId": "x", "address": "javascript:alert(1)"}),
    msgpack.packb({"type": "register", "serverId": "x" * 65, "address": "ws://h:1"}),
    msgpack.packb({"type": "register", "serverId": 5, "address": "ws://h:1"}),
    msgpack.packb({"type": "unregister", "serverId": "x"}),
    msgpack.packb({1: 2}),
    b"\xdd\x00\x01\x00\x00" * 200,
]


class TestStrangers:
    @pytest.mark.parametrize("data", MALFORMED, ids=lambda data: data[:12].hex() or "empty")
    def test_malformed_messages_end_one_connection_only(self, server: DiscoveryServer, data: bytes) -> None:
        member = ours(server, "a")
        for kind in (NodeMember, OurMember):
            stranger = kind(server.port)
            stranger.send_frame(Opcode.BINARY, data)
            assert stranger.closing() == (4400, "malformed")
        member.send_frame(Opcode.BINARY, data)
        assert member.closing() == (4400, "malformed")
        assert server.counters.malformed == 3
        eventually(lambda: server.registered == 0)
        ours(server, "b")

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"\x81\x82\x00\x00\x00\x00hi", 1003),
            (b"\x82\x02hi", 1002),
            (b"\xc2\x80\x00\x00\x00\x00", 1002),
            (frame_header(2, 2**40, mask=True), 1009),
            (frame_header(2, 1025, mask=True), 1009),
        ],
    )
    def test_broken_frames_end_one_connection_only(self, server: DiscoveryServer, data: bytes, code: int) -> None:
        stranger = NodeMember(server.port)
        stranger.send_raw(data)
        assert stranger.closing()[0] == code
        ours(server, "b")

    def test_a_member_may_send_more_than_a_stranger_but_not_much(self, server: DiscoveryServer) -> None:
        member = nodes(server, "a")
        member.servers()
        member.register("a", "ws://127.0.0.1:2", padding="x" * 2000)
        assert member.servers() == {"a": "ws://127.0.0.1:2"}
        member.send_raw(frame_header(2, 4097, mask=True))
        assert member.closing()[0] == 1009

    def test_who_does_not_register_is_cut(self, start: Start) -> None:
        server = start(limits=StrangerLimits(seconds=0.3), ping_seconds=10.0)
        for kind in (NodeMember, OurMember):
            stranger = kind(server.port)
            stranger.send_frame(Opcode.PING, b"")
            assert stranger.closing(2.0)[0] == 1006

    def test_registered_members_are_not_strangers_any_more(self, start: Start) -> None:
        server = start(limits=StrangerLimits(seconds=0.3, total=2))
        members = [ours(server, f"n{at}") for at in range(6)]
        gevent.sleep(0.4)
        assert server.registered == 6
        for member in members:
            member.leave()

    def test_there_is_a_limit_of_members(self, start: Start) -> None:
        server = start(max_members=2)
        kept = [ours(server, "a"), ours(server, "b")]
        third = OurMember(server.port)
        third.register("c", "ws://127.0.0.1:3")
        assert third.closing() == (4503, "full")
        kept[0].leave()
        eventually(lambda: server.registered == 1)
        ours(server, "c")

    def test_a_member_that_does_not_read_is_cut(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "MAX_QUEUED_BYTES", 50_000)
        server = start()
        lazy, other = ours(server, "lazy"), ours(server, "other")
        reading = other.answer_pings()

        def push() -> bool:
            for member in list(server._members):
                if not member.closing and member.transport.peer_address.endswith(f":{lazy_port}"):
                    member.queue(bytes(20_000))
            return server.counters.slow > 0

        lazy_port = lazy._sock._socket.getsockname()[1]
        eventually(push)
        eventually(lambda: server.registered == 1)
        assert server.counters.slow == 1
        reading.kill()

    @given(st.lists(st.binary(max_size=60), max_size=4))
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_random_messages_never_crash_the_server(
        self, server: DiscoveryServer, caplog: pytest.LogCaptureFixture, messages: list[bytes]
    ) -> None:
        caplog.set_level(logging.ERROR)
        stranger = NodeMember(server.port)
        for message in messages:
            try:
                stranger.send(message)
            except ConnectionError:
                break
        stranger.leave()
        gevent.sleep(0)
        assert not caplog.records
        assert server.registered == 0

    def test_ghosts_cannot_be_registered_over_one_connection(self, server: DiscoveryServer) -> None:
        member = nodes(server, "n0")
        for at in range(1, 20):
            try:
                member.register(f"n{at}", "ws://127.0.0.1:1")
            except ConnectionError:
                break
        assert member.closing()[0] == 4400
        eventually(lambda: server.registered == 0)

    def test_memory_is_flat_when_members_come_and_go(self, server: DiscoveryServer) -> None:
        process = psutil.Process()

        def churn(rounds: int) -> None:
            for at in range(rounds):
                ours(server, f"n{at}").leave()
                KEPT.clear()
                stranger = NodeMember(server.port)
                stranger.send(b"\xc0")
                stranger.closing()

        churn(60)
        gc.collect()
        before = process.memory_info().rss
        churn(150)
        gc.collect()
        assert process.memory_info().rss - before < 6 << 20
        eventually(lambda: server.registered == 0)


class TestHttp:
    def test_health(self, start: Start) -> None:
        server = start(tokens=(TOKEN,))
        assert http_get(server.port, "/healthz")[::2] == (200, "ok\n")
        status, head, body = http_get(server.port, "/healthz", method="HEAD")
        assert (status, body) == (200, "")
        assert "content-length: 3" in head

    def test_the_roster_as_json(self, server: DiscoveryServer) -> None:
        ours(server, "a")
        status, head, body = http_get(server.port, "/roster")
        assert status == 200
        assert "content-type: application/json" in head
        assert json.loads(body) == {
            "instance": server.instance,
            "version": 1,
            "complete": False,
            "servers": [{"serverId": "a", "address": "ws://127.0.0.1:1"}],
        }

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (f"Bearer {TOKEN}", 200),
            (f"bearer {TOKEN}", 200),
            ("Bearer wrong", 401),
            ("Bearer ", 401),
            (TOKEN, 401),
            (f"Basic {TOKEN}", 401),
            (None, 401),
        ],
    )
    def test_the_roster_needs_the_token(self, start: Start, header: str | None, status: int) -> None:
        server = start(tokens=("old" * 10, TOKEN))
        answer = http_get(server.port, "/roster", {} if header is None else {"Authorization": header})
        assert answer[0] == status
        assert ("www-authenticate: bearer" in answer[1]) is (status == 401)
        assert ("instance" in answer[2]) is (status == 200)

    def test_anything_else_is_not_found(self, server: DiscoveryServer) -> None:
        for path in ("/", "/metrics", "/roster/", "/healthz/x"):
            assert http_get(server.port, path)[0] == 404


class TestStartAndStop:
    def test_beyond_loopback_a_token_is_needed(self) -> None:
        with pytest.raises(ConfigError, match="MESH_AUTH_TOKEN"):
            DiscoveryServer("0.0.0.0", 0)
        with pytest.raises(ConfigError, match="MESH_AUTH_TOKEN"):
            DiscoveryServer("", 0)
        DiscoveryServer("0.0.0.0", 0, allow_anonymous=True)
        DiscoveryServer("0.0.0.0", 0, tokens=(TOKEN,))
        DiscoveryServer("localhost", 0)

    def test_a_taken_port_is_a_start_error(self, server: DiscoveryServer) -> None:
        with pytest.raises(StartError, match="already in use"):
            DiscoveryServer("127.0.0.1", server.port).start()

    def test_members_are_told_when_it_stops(self, server: DiscoveryServer) -> None:
        members = [ours(server, "a"), nodes(server, "b")]
        eventually(lambda: server.registered == 2)
        server.stop()
        for member in members:
            assert member.closing() == (1001, "going away")
        with pytest.raises((Closed, ConnectionError)):
            NodeMember(server.port)

    def test_the_url_is_what_nodes_are_given(self, server: DiscoveryServer) -> None:
        assert server.url == f"ws://127.0.0.1:{server.port}"

    def test_one_failure_ends_neither_the_roster_nor_the_watch_over_members(
        self, server: DiscoveryServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_now: float) -> None:
            raise RuntimeError("boom")

        watcher = OurMember(server.port)
        watcher.register("a", "ws://127.0.0.1:1")
        roster = watcher.welcomed().servers
        with monkeypatch.context() as patched:
            patched.setattr(type(server._registry), "overdue", fail)
            patched.setattr(server, "_tell", fail)
            leaver = ours(server, "b")
            eventually(lambda: caplog.text.count("it goes on") >= 2)
            leaver.leave()
        ours(server, "c")
        eventually(lambda: server.registered == 2)
        receive_roster(watcher, roster, {"a", "c"})
