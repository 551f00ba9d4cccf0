"""Everything that python-socketio offers, across four nodes with forty real clients.

"Nobody else got it" is never proved by waiting: after each operation its node emits a marker to everybody, and what one
node sends arrives in order.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.processes import ControlError, Discovery, Fleet, Node, fleet, linked
from tests.support import eventually

pytestmark = pytest.mark.integration

NAMESPACES = ("/", "/other")
CLIENTS_PER_NODE = 10
MIB = 1024 * 1024

_serial = itertools.count(1)


def fresh(word: str) -> str:
    """A name that no other test uses."""
    return f"{word} {next(_serial)}"


Event = tuple[str, str, tuple[Any, ...]]


@dataclass
class Mesh:
    """Nodes and their clients: `clients[0]` are those of `nodes[0]`."""

    discovery: Discovery
    nodes: list[Node]
    clients: list[list[Client]]

    @property
    def everybody(self) -> list[Client]:
        return [client for group in self.clients for client in group]

    @property
    def firsts(self) -> list[Client]:
        """One client of each node."""
        return [group[0] for group in self.clients]

    def outcome(self, operation: Callable[[], Any], source: int = 0) -> dict[Client, list[Event]]:
        """What came of an operation on `nodes[source]`: the events of each client that got any."""
        positions = {client: client.position for client in self.everybody}
        operation()
        marker = fresh("marker")
        for namespace in NAMESPACES:
            self.nodes[source].do("emit", marker, namespace=namespace)
        for client in self.everybody:
            for namespace in NAMESPACES:
                client.wait_for(marker, namespace=namespace)
        got = {
            client: [event for event in client.since(position) if event[1] != marker]
            for client, position in positions.items()
        }
        return {client: events for client, events in got.items() if events}

    def emits(self, source: int, *arguments: Any, **options: Any) -> dict[Client, list[Event]]:
        return self.outcome(lambda: self.nodes[source].do("emit", *arguments, **options), source)


def answer(event: str, *arguments: Any) -> Any:
    """What the clients of these tests acknowledge with."""
    if event == "ask for several":
        return ("a", None, {"ü": [1, 2.5]})
    if event == "ask for bytes":
        return {"raw": b"\x00\xff", "list": [b""]}
    if event == "ask for several bytes":
        return (b"\x01", b"\x02")
    if event == "ask for an echo":
        return arguments
    return None


@pytest.fixture(scope="module")
def ships() -> Iterator[Fleet]:
    with fleet() as started:
        yield started


@pytest.fixture(scope="module")
def discovery(ships: Fleet) -> Discovery:
    return ships.discovery()


@pytest.fixture(scope="module")
def mesh(ships: Fleet, discovery: Discovery) -> Iterator[Mesh]:
    nodes = ships.nodes(4, discovery, channel="four")
    linked(nodes)
    kinds: Sequence[Sequence[str]] = [["websocket"]] * (CLIENTS_PER_NODE - 2) + [["polling"], ["polling", "websocket"]]
    with clients_closed([]) as all_clients:
        groups = []
        for node in nodes:
            group = [Client(node.url, namespaces=NAMESPACES, transports=kind, answer=answer) for kind in kinds]
            all_clients += group
            groups.append(group)
        assert len(all_clients) == 40
        yield Mesh(discovery, nodes, groups)


@pytest.fixture
def guests() -> Iterator[list[Client]]:
    """Clients that are put into this list are closed after the test."""
    with clients_closed([]) as clients:
        yield clients


PAYLOADS = {
    "none": (None, ()),
    "text": ("x", ("x",)),
    "empty text": ("", ("",)),
    "number": (0, (0,)),
    "large number": (2**53 - 1, (2**53 - 1,)),
    "fraction": (-0.1, (-0.1,)),
    "false": (False, (False,)),
    "list is one argument": ([1, [2, None]], ([1, [2, None]],)),
    "non-ASCII": ({"größe": "日本語 👩‍🚀", "\u2028": "\x00"}, ({"größe": "日本語 👩‍🚀", "\u2028": "\x00"},)),
    "bytes": (b"\x00\xff", (b"\x00\xff",)),
    "bytes inside": (
        {"a": [b"", {"deep": b"\xde\xad"}], "n": None, "t": "x"},
        ({"a": [b"", {"deep": b"\xde\xad"}], "n": None, "t": "x"},),
    ),
    "1 MiB of text": ("ä" * (MIB // 2), ("ä" * (MIB // 2),)),
    "1 MiB of bytes": (bytes(range(256)) * 4096, (bytes(range(256)) * 4096,)),
}


class TestEmit:
    @pytest.mark.parametrize("name", PAYLOADS)
    def test_to_all(self, mesh: Mesh, name: str) -> None:
        data, wanted = PAYLOADS[name]
        got = mesh.emits(0, "event", data)
        assert got.keys() == set(mesh.everybody)
        assert all(events == [("/", "event", wanted)] for events in got.values())

    @pytest.mark.parametrize(
        "arguments",
        [(), (None,), ("a", None, [1], {"b": b"\x00"}), (b"1", b"2"), ([],)],
        ids=["0", "None", "4", "b", "l"],
    )
    def test_several_arguments(self, mesh: Mesh, arguments: tuple[Any, ...]) -> None:
        got = mesh.emits(1, "event", *arguments, several=True)
        assert got.keys() == set(mesh.everybody)
        assert all(events == [("/", "event", arguments)] for events in got.values())

    @pytest.mark.parametrize("source", range(4))
    def test_from_every_node(self, mesh: Mesh, source: int) -> None:
        got = mesh.emits(source, "event", source)
        assert got.keys() == set(mesh.everybody)
        assert all(events == [("/", "event", (source,))] for events in got.values())

    def test_send(self, mesh: Mesh) -> None:
        got = mesh.outcome(lambda: mesh.nodes[2].do("send", {"text": "grüß"}), 2)
        assert got.keys() == set(mesh.everybody)
        assert all(events == [("/", "message", ({"text": "grüß"},))] for events in got.values())

    def test_to_a_room(self, mesh: Mesh) -> None:
        room = fresh("room")
        members = {mesh.clients[0][0], mesh.clients[1][1], mesh.clients[3][8]}
        for client in members:
            client.enter(room)
        for source in range(4):
            assert mesh.emits(source, "event", 1, room=room).keys() == members
            assert mesh.emits(source, "event", 1, to=room).keys() == members
        assert mesh.emits(0, "event", 1, room=fresh("nobody's")) == {}

    def test_send_to_a_room(self, mesh: Mesh) -> None:
        room = fresh("room")
        mesh.clients[1][0].enter(room)
        got = mesh.outcome(lambda: mesh.nodes[0].do("send", "x", to=room))
        assert got == {mesh.clients[1][0]: [("/", "message", ("x",))]}

    def test_to_several_rooms_once_each(self, mesh: Mesh) -> None:
        one, two = fresh("room"), fresh("room")
        in_one = {mesh.clients[0][0], mesh.clients[1][0], mesh.clients[2][9]}
        in_two = {mesh.clients[1][0], mesh.clients[2][9], mesh.clients[3][0]}
        for room, members in ((one, in_one), (two, in_two)):
            for client in members:
                client.enter(room)
        got = mesh.emits(0, "event", 1, room=[one, two])
        assert got.keys() == in_one | in_two
        assert all(len(events) == 1 for events in got.values())

    def test_to_a_sid_on_any_node(self, mesh: Mesh) -> None:
        for source, target in itertools.product(range(4), range(4)):
            client = mesh.clients[target][5]
            assert mesh.emits(source, "event", b"\x01", to=client.sid) == {client: [("/", "event", (b"\x01",))]}

    def test_skip_sid(self, mesh: Mesh) -> None:
        everybody = set(mesh.everybody)
        near, far = mesh.clients[0][3], mesh.clients[2][3]
        assert mesh.emits(0, "event", 1, skip_sid=far.sid).keys() == everybody - {far}
        assert mesh.emits(0, "event", 1, skip_sid=near.sid).keys() == everybody - {near}
        skipped = [near.sid, far.sid, mesh.clients[3][0].sid]
        assert mesh.emits(0, "event", 1, skip_sid=skipped).keys() == everybody - {near, far, mesh.clients[3][0]}

    def test_skip_sid_in_a_room(self, mesh: Mesh) -> None:
        room = fresh("room")
        members = [mesh.clients[1][0], mesh.clients[1][1], mesh.clients[2][0]]
        for client in members:
            client.enter(room)
        got = mesh.emits(3, "event", 1, room=room, skip_sid=[members[0].sid])
        assert got.keys() == set(members[1:])

    def test_what_a_client_makes_its_server_emit(self, mesh: Mesh) -> None:
        asking = mesh.clients[1][4]
        event = fresh("relayed")
        asking.io.emit("relay", (event, "text", b"\x00", None))
        for client in mesh.everybody:
            if client is not asking:
                assert client.wait_for(event) == [("text", b"\x00", None)]
        assert mesh.emits(1, "event").keys() == set(mesh.everybody)
        assert asking.received(event) == []

    def test_namespaces(self, mesh: Mesh) -> None:
        got = mesh.emits(0, "event", 1, namespace="/other")
        assert got.keys() == set(mesh.everybody)
        assert all(events == [("/other", "event", (1,))] for events in got.values())
        client = mesh.clients[2][0]
        assert client.sids["/"] != client.sids["/other"]
        got = mesh.emits(0, "event", 2, namespace="/other", to=client.sids["/other"])
        assert got == {client: [("/other", "event", (2,))]}
        assert mesh.emits(0, "event", 3, namespace="/other", to=client.sid) == {}

    def test_a_room_is_of_one_namespace(self, mesh: Mesh) -> None:
        room = fresh("room")
        client = mesh.clients[1][0]
        mesh.nodes[0].do("enter_room", client.sids["/other"], room, namespace="/other")
        assert mesh.emits(0, "event", 1, room=room) == {}
        assert mesh.emits(0, "event", 1, room=room, namespace="/other") == {client: [("/other", "event", (1,))]}

    def test_ignore_queue_stays_at_home(self, mesh: Mesh) -> None:
        assert mesh.emits(2, "event", 1, ignore_queue=True).keys() == set(mesh.clients[2])
        far = mesh.clients[0][0]
        assert mesh.emits(2, "event", 1, ignore_queue=True, to=far.sid) == {}

    def test_what_cannot_be_encoded_reaches_nobody(self, mesh: Mesh) -> None:
        def emit() -> None:
            with pytest.raises(ControlError) as caught:
                mesh.nodes[0].do("emit_unusual", "event")
            assert caught.value.kind == "TypeError"

        assert mesh.outcome(emit) == {}


class TestAnswers:
    @pytest.mark.parametrize(
        ("event", "wanted"),
        [
            ("ask for several", ["a", None, {"ü": [1, 2.5]}]),
            ("ask for nothing", []),
            ("ask for bytes", [{"raw": b"\x00\xff", "list": [b""]}]),
            ("ask for several bytes", [b"\x01", b"\x02"]),
        ],
    )
    def test_callback_of_a_remote_client(self, mesh: Mesh, event: str, wanted: list[Any]) -> None:
        for source, target in itertools.permutations(range(4), 2):
            key = mesh.nodes[source].do("ask", event, "x", to=mesh.clients[target][0].sid)
            assert eventually(lambda s=source, k=key: mesh.nodes[s].do("answers", k)) == [wanted]  # type: ignore[misc]  # bound now

    @pytest.mark.parametrize(
        ("event", "wanted"),
        [
            ("ask for several", ["a", None, {"ü": [1, 2.5]}]),
            ("ask for nothing", None),
            ("ask for bytes", {"raw": b"\x00\xff", "list": [b""]}),
        ],
    )
    def test_call_to_a_remote_client(self, mesh: Mesh, event: str, wanted: Any) -> None:
        for source, target in itertools.product(range(4), range(4)):
            sid = mesh.clients[target][0].sid
            assert mesh.nodes[source].do("call", event, "x", to=sid, timeout=5) == {"answer": wanted}

    def test_call_carries_arguments_both_ways(self, mesh: Mesh) -> None:
        sid = mesh.clients[3][0].sids["/other"]
        data = {"raw": b"\x00", "ü": None}
        found = mesh.nodes[0].do("call", "ask for an echo", data, to=sid, namespace="/other", timeout=5)
        assert found == {"answer": data}

    def test_call_to_a_polling_client(self, mesh: Mesh) -> None:
        sid = mesh.clients[1][8].sid
        assert mesh.nodes[0].do("call", "ask for an echo", b"\x00\x01", to=sid, timeout=5) == {"answer": b"\x00\x01"}

    def test_call_to_nobody_times_out(self, mesh: Mesh) -> None:
        with pytest.raises(ControlError) as caught:
            mesh.nodes[0].do("call", "ask for an echo", 1, to="nobody", timeout=0.3)
        assert caught.value.kind == "TimeoutError"

    def test_callback_for_a_room_is_called_once_for_each_client(self, mesh: Mesh) -> None:
        room = fresh("room")
        members = [mesh.clients[0][0], mesh.clients[1][0], mesh.clients[1][1], mesh.clients[3][0]]
        for client in members:
            client.enter(room)
        key = mesh.nodes[0].do("ask", "ask for an echo", 7, room=room)
        assert eventually(lambda: len(found := mesh.nodes[0].do("answers", key)) >= 4 and found) == [[7]] * 4

    def test_answered_requests_are_freed(self, mesh: Mesh) -> None:
        for _ in range(20):
            mesh.nodes[1].do("call", "ask for nothing", 1, to=mesh.clients[2][0].sid, timeout=5)
        # Those that nobody answers stay until their time is over: the one to nobody, of the test above.
        eventually(lambda: mesh.nodes[1].state()["requests"] == 0)


class TestRemoteClients:
    def test_enter_leave_and_close_room(self, mesh: Mesh) -> None:
        for source, target in itertools.permutations(range(4), 2):
            room = fresh("room")
            node, (one, two) = mesh.nodes[source], mesh.clients[target][:2]
            near = mesh.clients[source][0]
            for client in (one, two, near):
                node.do("enter_room", client.sid, room)
            assert mesh.emits(source, "event", 1, room=room).keys() == {one, two, near}
            assert mesh.nodes[target].do("rooms", one.sid).count(room) == 1
            node.do("leave_room", one.sid, room)
            assert mesh.emits(source, "event", 1, room=room).keys() == {two, near}
            node.do("close_room", room)
            assert mesh.emits(source, "event", 1, room=room) == {}
            assert room not in mesh.nodes[target].do("rooms", two.sid)

    def test_room_names_need_not_be_text(self, mesh: Mesh) -> None:
        client = mesh.clients[2][0]
        room = next(_serial) + 10_000
        mesh.nodes[0].do("enter_room", client.sid, room)
        assert mesh.emits(0, "event", 1, room=room).keys() == {client}

    def test_disconnect(self, mesh: Mesh, guests: list[Client]) -> None:
        for source, target in ((0, 1), (1, 0), (2, 3), (3, 2)):
            guest = Client(mesh.nodes[target].url)
            guests.append(guest)
            room = fresh("room")
            mesh.nodes[source].do("enter_room", guest.sid, room)
            mesh.nodes[source].do("disconnect", guest.sid)
            guest.wait_for("(disconnected)")
            eventually(lambda t=target, g=guest: g.sid in mesh.nodes[t].do("disconnected"))  # type: ignore[misc]  # bound now
            assert mesh.nodes[target].do("disconnected").count(guest.sid) == 1
            assert mesh.emits(source, "event", 1, room=room) == {}

    def test_disconnect_from_one_namespace_only(self, mesh: Mesh, guests: list[Client]) -> None:
        guest = Client(mesh.nodes[1].url, namespaces=NAMESPACES)
        guests.append(guest)
        mesh.nodes[0].do("disconnect", guest.sids["/other"], namespace="/other")
        guest.wait_for("(disconnected)", namespace="/other")
        mesh.nodes[0].do("emit", "still there", 1, to=guest.sid)
        assert guest.wait_for("still there") == [(1,)]
        assert guest.received("(disconnected)") == []

    def test_disconnect_here_only(self, mesh: Mesh, guests: list[Client]) -> None:
        guest = Client(mesh.nodes[1].url)
        guests.append(guest)
        mesh.nodes[0].do("disconnect", guest.sid, ignore_queue=True)
        mesh.nodes[0].do("emit", "still there", 1, to=guest.sid)
        assert guest.wait_for("still there") == [(1,)]
        mesh.nodes[1].do("disconnect", guest.sid, ignore_queue=True)
        guest.wait_for("(disconnected)")


class TestApplications:
    def test_class_based_namespace_with_a_session(self, mesh: Mesh, guests: list[Client]) -> None:
        ada, bob, eve = (
            Client(mesh.nodes[at].url, namespaces=["/lobby"], auth={"name": name})
            for at, name in enumerate(("Ada", "Bob", "Eve"))
        )
        guests += [ada, bob, eve]
        for at, guest in enumerate(guests):
            # What the connect handler emits to the newcomer itself, and to its room on all nodes.
            (welcome,) = guest.wait_for("welcome", namespace="/lobby")
            assert welcome == ({"sid": guest.sids["/lobby"], "node": mesh.nodes[at].uid},)
        # From two nodes: in any order.
        assert {name for (name,) in ada.wait_for("joined", namespace="/lobby", count=2)} == {"Bob", "Eve"}
        eventually(lambda: ("Eve",) in bob.received("joined", "/lobby"))
        assert ada.call("say", "hello", namespace="/lobby") == "said hello"
        for guest in (bob, eve):
            assert guest.wait_for("said", namespace="/lobby") == [({"name": "Ada", "text": "hello"},)]
        assert ada.received("said", "/lobby") == []
        ada.io.emit("rename", "Countess", namespace="/lobby")
        ada.call("say", "again", namespace="/lobby")
        assert eve.wait_for("said", namespace="/lobby", count=2)[1] == ({"name": "Countess", "text": "again"},)
        ada.close()
        assert bob.wait_for("left", namespace="/lobby") == [("Countess",)]

    def test_order_of_one_sender_over_all_kinds_of_receivers(self, mesh: Mesh) -> None:
        client = mesh.clients[3][0]
        room = fresh("room")
        client.enter(room)
        event = fresh("numbered")
        ways: list[dict[str, Any]] = [{}, {"room": room}, {"to": client.sid}, {"room": [room, "nobody's"]}]
        for number in range(60):
            padding = "x" * (200_000 if number % 20 == 0 else 0)
            mesh.nodes[0].do("emit", event, number, padding, several=True, **ways[number % len(ways)])
        assert [number for number, _ in client.wait_for(event, count=60)] == list(range(60))

    def test_order_when_all_send_at_once(self, mesh: Mesh) -> None:
        room = fresh("room")
        for client in mesh.firsts:
            client.enter(room)
        before = {node.boot: node.state()["sent"] for node in mesh.nodes}
        for node in mesh.nodes:
            node.do("start_traffic", 500, room=room, count=500)
        sent = {boot: count + 500 for boot, count in before.items()}
        first = {boot: count + 1 for boot, count in before.items()}
        for client in mesh.firsts:
            for boot, count in sent.items():
                client.wait_for_number(boot, count)
            assert client.checker.report(sent, first).is_perfect

    def test_a_write_only_process(self, mesh: Mesh, ships: Fleet) -> None:
        room, event = fresh("room"), fresh("from outside")
        members = mesh.firsts
        for client in members:
            client.enter(room)
        code = f"""
            from gevent_mesh import GeventMeshManager
            manager = GeventMeshManager({mesh.discovery.url!r}, channel="four", write_only=True)
            manager.emit({event!r}, "before any link is up", room={room!r})
            assert manager.wait_for_peers(4)
            manager.emit({event!r}, {{"raw": b"\\x00", "text": "grüß"}}, room={room!r})
            manager.stop()
        """
        emitter = ships.program("emitter", [sys.executable, "-c", textwrap.dedent(code)])
        assert emitter.wait(15) == 0, emitter.tail()
        for client in members:
            found = client.wait_for(event, count=2)
            assert found == [("before any link is up",), ({"raw": b"\x00", "text": "grüß"},)]
        for node in mesh.nodes:
            linked_to = node.state()["links"]
            assert len(linked_to) == 3


@dataclass
class Pair:
    """Two nodes, and a client on each."""

    nodes: list[Node]
    clients: list[Client]


def pair(
    ships: Fleet, discovery: Discovery, guests: list[Client], kinds: Sequence[dict[str, Any]], **manager: Any
) -> Pair:
    """Two nodes of one channel with these options of `socketio.Server`, and a client that suits each."""
    channel = fresh("pair")
    nodes = [ships.node(discovery, server=kind, channel=channel, **manager) for kind in kinds]
    linked(nodes)
    clients = [
        Client(node.url, answer=answer, **({"serializer": kind["serializer"]} if "serializer" in kind else {}))
        for node, kind in zip(nodes, kinds, strict=True)
    ]
    guests += clients
    return Pair(nodes, clients)


class TestOtherSettings:
    def test_a_json_module_of_ones_own(self, ships: Fleet, discovery: Discovery, guests: list[Client]) -> None:
        found = pair(ships, discovery, guests, [{"json": "own"}, {"json": "own"}])
        found.nodes[0].do("emit_unusual", "event")
        for client in found.clients:
            assert client.wait_for("event") == [({"value": {"own": "unusual"}},)]

    def test_msgpack(self, ships: Fleet, discovery: Discovery, guests: list[Client]) -> None:
        found = pair(ships, discovery, guests, [{"serializer": "msgpack"}, {"serializer": "msgpack"}])
        self.check(found)

    @pytest.mark.parametrize("kinds", [({}, {"serializer": "msgpack"}), ({"serializer": "msgpack"}, {})])
    def test_each_node_with_a_serializer_of_its_own(
        self, ships: Fleet, discovery: Discovery, guests: list[Client], kinds: Sequence[dict[str, Any]]
    ) -> None:
        self.check(pair(ships, discovery, guests, kinds))

    def test_one_node_is_monkey_patched_and_the_other_is_not(
        self, ships: Fleet, discovery: Discovery, guests: list[Client]
    ) -> None:
        channel = fresh("patched")
        nodes = [ships.node(discovery, patched=patched, channel=channel) for patched in (True, False)]
        linked(nodes)
        guests += [Client(node.url, answer=answer) for node in nodes]
        self.check(Pair(nodes, guests))

    @staticmethod
    def check(found: Pair) -> None:
        data = {"raw": b"\x00\xff", "text": "grüß", "list": [None, 1.5, b""]}
        for node in found.nodes:
            event = fresh("event")
            node.do("emit", event, data, None, several=True)
            for client in found.clients:
                assert client.wait_for(event) == [(data, None)]
            for client in found.clients:
                answered = node.do("call", "ask for an echo", data, to=client.sid, timeout=5)
                assert answered == {"answer": data}
                room = fresh("room")
                node.do("enter_room", client.sid, room)
                node.do("emit", event, 2, room=room)
                assert client.wait_for(event, count=2)[1:] == [(2,)]

    def test_the_limit_of_one_event(self, ships: Fleet, discovery: Discovery, guests: list[Client]) -> None:
        limit = 2 * MIB
        found = pair(ships, discovery, guests, [{}, {}], buffered_amount_threshold=limit)
        for size in (limit // 2, limit - 512):
            found.nodes[0].do("emit", "large", "x" * size)
        assert [len(text) for (text,) in found.clients[1].wait_for("large", count=2)] == [limit // 2, limit - 512]
        for size in (limit, limit + 1, 4 * limit):
            with pytest.raises(ControlError) as caught:
                found.nodes[0].do("emit", "too large", "x" * size)
            assert caught.value.kind == "PayloadTooLarge"
        found.nodes[0].do("emit", "marker")
        for client in found.clients:
            client.wait_for("marker")
            assert client.received("too large") == []
        counters = found.nodes[0].state()["counters"]
        assert (counters["links_down"], counters["slow_consumers"], counters["sent_lost"]) == (0, 0, 0)


def test_what_is_emitted_while_the_mesh_forms_reaches_whom_the_roster_names(ships: Fleet, guests: list[Client]) -> None:
    """First not even the roster can come, and then no link: every address leads to a proxy that stalls."""
    discovery, proxy = ships.discovery(), ships.proxy()
    old = ships.nodes(2, discovery, proxy=proxy)
    linked(old)
    guests += [Client(node.url) for node in old]
    for node in old:
        proxy.do("stall", node.route)
    gate = proxy.route()
    proxy.do("lead", gate, discovery.port)
    proxy.do("stall", gate)
    new = ships.node(discovery, proxy=proxy, url=f"ws://127.0.0.1:{gate}")
    proxy.do("stall", new.route)
    for number in range(50):
        new.do("emit", "early", number)
    assert new.state()["peers"] == {}
    proxy.do("forward", gate)
    for node in old:
        eventually(lambda node=node: new.uid in node.state()["peers"])  # type: ignore[misc]  # bound now
        assert not node.sees(new)
    for number in range(50, 100):
        new.do("emit", "early", number)
    for node in [*old, new]:
        proxy.do("forward", node.route)
    for guest in guests:
        assert [number for (number,) in guest.wait_for("early", count=100)] == list(range(100))
