"""One mesh of our nodes and the official Socket.IO server of Node.js, through either side's discovery server.

Skipped without Node.js and npm, or where npm cannot install. `nodejs/server.js` says what the servers are made of.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.processes import Fleet, Node, _Controlled, fleet
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "nodejs" / "server.js"
PACKAGES = ("socket.io@4", "socket.io-adapter@2", "ws@8", "@msgpack/msgpack@3")
INSTALL_SECONDS = 90
TOKEN = "a token that is long enough"
LOWEST, HIGHEST = "0000000000000000", "ffffffffffffffff"
"""One dials all of our nodes, the other one is dialled by them."""
NAMESPACES = ("/", "/other")

_serial = itertools.count(1)


class NodejsServer(_Controlled):
    """See `nodejs/server.js`."""

    uid: str
    ws_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def links(self) -> set[str]:
        return set(self.state()["links"])


@pytest.fixture(scope="module")
def modules(pytestconfig: pytest.Config) -> Path:
    """Where npm has installed what the servers need; kept between runs."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    folder: Path = pytestconfig.cache.mkdir("nodejs")
    if not (folder / "complete").exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not install in time")
        if done.returncode:
            pytest.skip(f"npm cannot install: {done.stderr[-300:]}")
        (folder / "complete").touch()
    return folder / "node_modules"


def start(ships: Fleet, modules: Path, **options: Any) -> NodejsServer:
    command = ["node", str(PROGRAM), json.dumps(options)]
    server = ships._add(NodejsServer, f"nodejs-{options.get('uid', 'discovery')}", command, {"NODE_PATH": str(modules)})
    line = server.read_line()
    server.uid, server.ws_port = line.get("uid", ""), line.get("ws_port", 0)
    return server


@dataclass
class Mixed:
    """Two of our nodes and two servers of Node.js, with a client each."""

    ours: list[Node]
    theirs: list[NodejsServer]
    clients: list[Client]

    @property
    def members(self) -> list[Any]:
        return [*self.ours, *self.theirs]


def answer(event: str, *arguments: Any) -> Any:
    """What the clients acknowledge with."""
    return [event, *arguments]


def discovery_of(ships: Fleet, modules: Path, kind: str, token: str = TOKEN) -> str:
    """Start a discovery server, ours or one of Node, and return its URL."""
    if kind == "ours":
        return ships.discovery(token=token).url
    return f"ws://127.0.0.1:{start(ships, modules, role='discovery', token=token).http_port}"


def everywhere(members: Sequence[Any], condition: Callable[[Any], object], seconds: float = 15.0) -> None:
    """Wait until something is so on every member."""
    for member in members:
        eventually(partial(condition, member), seconds)


def mix(ships: Fleet, modules: Path, url: str, token: str = TOKEN, **options: Any) -> Mixed:
    """Start a mesh, and wait until everybody counts everybody."""
    servers = [
        start(ships, modules, discovery=url, uid=uid, token=token, namespaces=NAMESPACES) for uid in (LOWEST, HIGHEST)
    ]
    if token:
        options |= {"auth_token": token, "ws_host": "127.0.0.1"}
    nodes = ships.nodes(2, None, url=url, node_interop=True, **options)
    mixed = Mixed(nodes, servers, [])
    uids = {member.uid for member in mixed.members}
    everywhere(mixed.members, lambda member: member.links() == uids - {member.uid})
    for namespace in NAMESPACES:
        everywhere(mixed.members, lambda member: count(member, namespace) == 4)  # noqa: B023  # called at once
    return mixed


def count(member: Node | NodejsServer, namespace: str = "/") -> int:
    """How many servers a member counts."""
    if isinstance(member, NodejsServer):
        found: int = member.do("serverCount", namespace=namespace)
    else:
        found = member.do("cluster", "server_count", namespace)["value"]
    return found


@pytest.fixture(scope="module", params=["ours", "theirs"], ids=lambda kind: f"discovery is {kind}")
def mesh(request: pytest.FixtureRequest, modules: Path) -> Iterator[Mixed]:
    with fleet() as ships, clients_closed([]) as clients:
        mixed = mix(ships, modules, discovery_of(ships, modules, request.param))
        clients += [Client(member.url, namespaces=NAMESPACES, answer=answer) for member in mixed.members]
        for name, client in enumerate(clients):
            client.enter(f"room {name}")
            client.enter("even" if name % 2 == 0 else "odd")
        mixed.clients = clients
        yield mixed
        for server in mixed.theirs:
            # Nothing that was sent to it has ended it.
            assert server.popen.poll() is None, server.tail()


def outcome(mesh: Mixed, member: Any, operation: Callable[[], object]) -> list[list[Any]]:
    """What came of an operation of one member to each client: up to a marker, for what it sends arrives in order."""
    positions = [client.position for client in mesh.clients]
    operation()
    mark = ("marker", (f"{member.uid} {next(_serial)}",))
    for namespace in NAMESPACES:
        member.do("emit", *mark[0:1], *mark[1], namespace=namespace)

    def is_marked(client: Client, position: int) -> bool:
        return sum(found[1:] == mark for found in client.since(position)) == len(NAMESPACES)

    found = []
    for client, position in zip(mesh.clients, positions, strict=True):
        eventually(partial(is_marked, client, position), 10)
        found.append([event for event in client.since(position) if event[1] != "marker"])
    return found


def emitted(mesh: Mixed, member: Any, *arguments: Any, **options: Any) -> list[list[Any]]:
    """What came of an emit."""
    several = {"several": True} if isinstance(member, Node) else {}
    return outcome(mesh, member, lambda: member.do("emit", *arguments, **options, **several))


def counts(found: list[list[Any]]) -> list[int]:
    return [len(events) for events in found]


# ---------------------------------------------------------------------- events

VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**53 - 1, -(2**53), 0.5, 1e300, "", "größe 日本語 👩‍🚀", [], {},
    [[], {"a": {"b": [None]}}], b"", b"\x00\xff", {"raw": b"\x01", "list": [b"\x02", "x"]},
]  # fmt: skip


def test_events_reach_every_client_once(mesh: Mixed) -> None:
    for member, namespace in product(mesh.members, NAMESPACES):
        found = emitted(mesh, member, "event", *VALUES, namespace=namespace)
        assert found == [[(namespace, "event", tuple(VALUES))]] * 4
        assert emitted(mesh, member, "nothing", namespace=namespace) == [[(namespace, "nothing", ())]] * 4


def test_rooms_and_exceptions_work_across(mesh: Mixed) -> None:
    node, server = mesh.ours[0], mesh.theirs[0]
    assert counts(emitted(mesh, node, "e", room="even")) == [1, 0, 1, 0]
    assert counts(emitted(mesh, node, "e", room=["even", "room 1"])) == [1, 1, 1, 0]
    assert counts(emitted(mesh, node, "e", skip_sid=mesh.clients[2].sid)) == [1, 1, 0, 1]
    assert counts(emitted(mesh, node, "e", room=mesh.clients[3].sid)) == [0, 0, 0, 1]
    assert counts(emitted(mesh, server, "e", rooms=["even"])) == [1, 0, 1, 0]
    assert counts(emitted(mesh, server, "e", rooms=["even", "room 1"], **{"except": ["room 0"]})) == [0, 1, 1, 0]
    assert counts(emitted(mesh, server, "e", rooms=[mesh.clients[1].sid], volatile=True)) == [0, 1, 0, 0]


def test_a_client_reaches_all_others_by_way_of_its_server(mesh: Mixed) -> None:
    for position, (client, member) in enumerate(zip(mesh.clients, mesh.members, strict=True)):

        def relay(client: Client = client) -> None:
            client.io.emit("relay", ("relayed", 1))
            # Behind it on the same connection: when this is answered, that has been done.
            client.enter("somewhere")

        assert counts(outcome(mesh, member, relay)) == [int(other != position) for other in range(4)]


def test_numeric_rooms_are_not_rooms_with_such_a_name(mesh: Mixed) -> None:
    node, server = mesh.ours[0], mesh.theirs[0]
    for room, other in (42, "42"), ("42", 42):
        server.do("socketsJoin", room, rooms=["room 0", "room 2"])
        assert counts(emitted(mesh, server, "e", rooms=[room])) == [1, 0, 1, 0]
        assert counts(emitted(mesh, node, "e", room=room)) == [1, 0, 1, 0]
        assert counts(emitted(mesh, node, "e", room=other)) == [0, 0, 0, 0]
        assert node.do("cluster", "sockets_leave", room, timeout=3.0)["value"] == 4


def test_what_only_javascript_knows(mesh: Mixed) -> None:
    server = mesh.theirs[1]
    found = outcome(mesh, server, lambda: server.do("emitUndefined", "undef"))
    # JSON leaves it out, msgpack keeps the key.
    assert [events[0][2] for events in found] == [(None, {"a": None, "b": 1})] * 3 + [(None, {"b": 1})]
    odd = [{"$date": "2025-01-01T00:00:00.000Z"}, {"$number": "NaN"}, {"$number": "-Infinity"}, {"$map": [[1, 2]]}]
    # Otherwise our clients get what those of the server itself get in JSON.
    expected: Any = ("2025-01-01T00:00:00.000Z", None, None, {})
    assert [events[0][2] for events in emitted(mesh, server, "odd", *odd)] == [expected] * 4
    # Nobody is in the room null; to python-socketio that would be everybody.
    assert counts(emitted(mesh, server, "e", rooms=[None])) == [0, 0, 0, 0]


def test_what_only_python_knows(mesh: Mixed) -> None:
    big, bigger, proto = 2**64 - 1, 2**70, {"__proto__": 1, "a": 2}
    found = emitted(mesh, mesh.ours[1], "e", big, bigger, proto)
    assert [events[0][2] for events in found[:2]] == [(big, bigger, proto)] * 2
    # Such numbers are rounded, as they are by a browser that reads them in JSON.
    for events in found[2:]:
        assert [float(value) for value in events[0][2][:2]] == [float(big), float(bigger)]
        assert events[0][2][2] == {"a": 2}


def test_large_events(mesh: Mixed) -> None:
    for member in (mesh.ours[0], mesh.theirs[0]):
        found = emitted(mesh, member, "large", "x" * 2_000_000, b"y" * 1_000_000)
        assert [[len(value) for value in events[0][2]] for events in found] == [[2_000_000, 1_000_000]] * 4


def test_many_events_come_once_and_in_order(mesh: Mixed) -> None:
    node = mesh.ours[0]
    sent = node.do("burst", 3000)["sent"]
    for client in mesh.clients:
        client.wait_for_number(node.boot, sent)
        assert client.checker.report({node.boot: sent}).is_perfect


def test_more_than_an_outbox_holds_waits_for_a_healthy_server(mesh: Mixed) -> None:
    node, client = mesh.ours[1], mesh.clients[2]
    sent = node.do("burst", 20_000, room="room 2", padding=1000)["sent"]
    client.wait_for_number(node.boot, sent, 60)
    assert client.checker.report({node.boot: sent}).is_perfect
    counters = node.state()["counters"]
    assert (counters["slow_consumers"], counters["links_down"], counters["not_for_nodejs"]) == (0, 0, 0)


# ---------------------------------------------------------------------- acknowledgements


def has_answers(node: Node, key: str, expected: list[Any]) -> bool:
    return bool(node.do("answers", key) == expected)


def test_every_client_acknowledges_to_whoever_asks(mesh: Mixed) -> None:
    for server in mesh.theirs:
        answers = server.do("emitWithAck", "question", 1, b"\x01")
        assert answers == [["question", 1, b"\x01"]] * 4
        assert server.do("emitWithAck", "question", rooms=["nobody"]) == []
        assert server.do("emitWithAck", "question", rooms=["even"], namespace="/") == [["question"]] * 2
    for node in mesh.ours:
        found = node.do("cluster", "call", "question", {"raw": b"\x02"})
        assert found["value"] == [["question", {"raw": b"\x02"}]] * 4
        assert (found["missing"], found["expected"], found["received"]) == ([], 4, 4)
        assert node.do("cluster", "call", "question", 1, room="nobody")["value"] == []
        key = node.do("ask", "question", 5, room="even")
        eventually(partial(has_answers, node, key, [[["question", 5]]] * 2))
        assert node.state()["requests"] == 0


# ---------------------------------------------------------------------- questions


def test_sockets_are_fetched_from_everywhere(mesh: Mixed) -> None:
    when = {"$date": "2025-01-01T00:00:00.000Z"}
    mesh.theirs[0].do("setData", mesh.clients[2].sid, {"user": 7, "when": when, "raw": b"\x01", "none": None})
    sids = {client.sid for client in mesh.clients}
    for node in mesh.ours:
        found = node.do("cluster", "fetch_sockets")
        assert (found["missing"], found["expected"], found["received"]) == ([], 4, 4)
        sockets = {socket["sid"]: socket for socket in found["value"]}
        assert sockets.keys() == sids
        theirs = sockets[mesh.clients[2].sid]
        assert theirs["node"] == LOWEST
        assert {"room 2", "even"} <= set(theirs["rooms"])
        assert theirs["data"] == {"user": 7, "when": "2025-01-01T00:00:00.000Z", "raw": b"\x01", "none": None}
        assert theirs["address"] == "127.0.0.1"
        assert theirs["query"]["transport"] == "websocket"
        assert theirs["time"] > 1.6e9
    for server in mesh.theirs:
        sockets = {socket["id"]: socket for socket in server.do("fetchSockets")}
        assert sockets.keys() == sids
        ours = sockets[mesh.clients[0].sid]
        assert {mesh.clients[0].sid, "room 0", "even"} <= set(ours["rooms"])
        assert ours["handshake"]["address"] == "127.0.0.1"
        assert ours["handshake"]["query"]["transport"] == "websocket"
        assert set(ours["handshake"]) == {
            "headers", "time", "address", "xdomain", "secure", "issued", "url", "query", "auth",
        }  # fmt: skip
        chosen = server.do("fetchSockets", rooms=["even"], timeout=2000, **{"except": ["room 2"]})
        assert [socket["id"] for socket in chosen] == [mesh.clients[0].sid]
    assert mesh.theirs[0].do("fetchSockets", namespace="/other") != []


def test_counts_and_rooms_include_the_clients_of_node(mesh: Mixed) -> None:
    node = mesh.ours[0]
    for selection, expected in ({}, 4), ({"room": "even"}, 2), ({"room": "room 3"}, 1), ({"room": "nobody"}, 0):
        found = node.do("cluster", "count_sockets", **selection)
        assert (found["value"], found["missing"]) == (expected, [])
    rooms = dict(node.do("cluster", "list_rooms", except_rooms="room 0")["value"])
    assert (rooms["even"], rooms["odd"], rooms["room 2"], rooms["room 3"]) == (1, 2, 1, 1)
    assert "room 0" not in rooms
    assert not rooms.keys() & {client.sid for client in mesh.clients}


def test_a_namespace_that_node_does_not_serve_is_asked_of_our_own_only(mesh: Mixed) -> None:
    found = mesh.ours[0].do("cluster", "fetch_sockets", namespace="/lobby")
    assert (found["value"], found["missing"], found["expected"]) == ([], [], 2)
    assert count(mesh.ours[0], "/lobby") == 2


def test_sockets_of_others_can_be_used(mesh: Mixed) -> None:
    for server in mesh.theirs:
        server.do("useSockets", rooms=["room 1"])
        mesh.clients[1].wait_for("used")
    eventually(lambda: "used" in mesh.ours[1].do("rooms", mesh.clients[1].sid))
    mesh.ours[0].do("cluster", "sockets_leave", "used")
    eventually(lambda: "used" not in mesh.ours[1].do("rooms", mesh.clients[1].sid))


# ---------------------------------------------------------------------- commands


def test_clients_are_moved_from_both_sides(mesh: Mixed) -> None:
    ours, theirs = mesh.ours[0], mesh.theirs[1]

    def members(room: str) -> set[str]:
        return {socket["sid"] for socket in ours.do("cluster", "fetch_sockets", room=room)["value"]}

    evens = {mesh.clients[0].sid, mesh.clients[2].sid}
    theirs.do("socketsJoin", ["a", "b"], rooms=["even"])
    eventually(lambda: members("a") == members("b") == evens)
    theirs.do("socketsLeave", "b", rooms=["room 0"])
    eventually(lambda: members("b") == {mesh.clients[2].sid})
    found = ours.do("cluster", "sockets_join", ["c"], room="even", timeout=3.0)
    assert (found["value"], found["missing"]) == (2, [])
    assert members("c") == evens
    found = ours.do("cluster", "sockets_leave", ["a", "b", "c"], timeout=3.0)
    assert (found["value"], found["missing"]) == (4, [])
    eventually(lambda: not members("a") and not members("b") and not members("c"))
    # What python-socketio itself offers for a client that is elsewhere.
    ours.do("enter_room", mesh.clients[3].sid, "d")
    eventually(lambda: members("d") == {mesh.clients[3].sid})
    ours.do("close_room", "d")
    eventually(lambda: not members("d"))


def test_clients_are_disconnected_from_both_sides(mesh: Mixed) -> None:
    with clients_closed([]) as guests:
        for member in mesh.members:
            guests += [Client(member.url, namespaces=NAMESPACES) for _ in range(2)]
        for guest in guests[0::2]:
            guest.enter("leaving by ours")
        for guest in guests[1::2]:
            guest.enter("leaving by theirs")
        mesh.theirs[0].do("disconnectSockets", True, rooms=["leaving by theirs"])
        for guest in guests[1::2]:
            guest.wait_for("(disconnected)")
            guest.wait_for("(disconnected)", namespace="/other")
        found = mesh.ours[0].do("cluster", "disconnect_sockets", room="leaving by ours", timeout=3.0)
        assert (found["value"], found["missing"]) == (4, [])
        for guest in guests[0::2]:
            guest.wait_for("(disconnected)")
            assert not guest.received("(disconnected)", "/other")


# ---------------------------------------------------------------------- between servers


def test_servers_talk_to_each_other(mesh: Mixed) -> None:
    for server in mesh.theirs:
        assert server.do("serverSideEmitWithAck", "add", 2, 3) == [5, 5, 5]
        server.do("serverSideEmit", "note", server.uid, {"raw": b"\x01"})
    for node in mesh.ours:
        found = node.do("cluster", "server_side_call", "add", 2, 3)
        assert list(found["value"].values()) == [5, 5, 5]
        assert (found["missing"], found["expected"]) == ([], 3)
        node.do("cluster", "server_side_emit", "note", node.uid, [1, None])
    said: list[Any] = [[server.uid, {"raw": b"\x01"}] for server in mesh.theirs]
    said += [[node.uid, [1, None]] for node in mesh.ours]

    def has_heard(member: Node | NodejsServer) -> bool:
        heard = member.do("heardEvents" if isinstance(member, NodejsServer) else "server_events")
        return all(heard.count(note) == (note[0] != member.uid) for note in said)

    everywhere(mesh.members, has_heard)


def test_answers_of_node_are_values_of_python(mesh: Mixed) -> None:
    # Ours have no handler for it, and say so at once.
    answers = mesh.ours[0].do("cluster", "server_side_call", "when", timeout=3.0)
    assert set(answers["value"]) == {LOWEST, HIGHEST}
    assert answers["missing"] == [mesh.ours[1].uid]
    for found in answers["value"].values():
        assert (found["at"], found["raw"]) == ("1970-01-01T00:00:00.000Z", b"\x01\x02")
        assert math.isnan(found["nan"])


# ---------------------------------------------------------------------- coming and going

QUICK = {"heartbeat_interval": 0.5, "heartbeat_timeout": 1.5}


def test_members_come_and_go(modules: Path) -> None:
    with fleet() as ships:
        url = discovery_of(ships, modules, "ours", token="")
        mixed = mix(ships, modules, url, token="", **QUICK)
        low, high = mixed.theirs
        one, two = mixed.ours

        # Its adapters are closed: it serves nothing any more, and its process, which only answers pings, stays linked.
        low.do("closeAdapters")
        for namespace in NAMESPACES:
            everywhere(mixed.ours, lambda node: count(node, namespace) == 3)  # noqa: B023  # called at once
        assert one.do("cluster", "fetch_sockets")["expected"] == 3
        pings = low.state()["pings"]
        eventually(lambda: low.state()["pings"] >= pings + 10, 10)
        assert [node.state()["counters"]["links_down"] for node in mixed.ours] == [0, 0]

        # One of ours leaves in good order: Node does not wait until its heartbeats are missed.
        two.do("stop")
        eventually(lambda: count(high) == 2, 3)
        assert high.do("fetchSockets", timeout=1000) == []
        eventually(lambda: count(one) == 2, 3)

        # Servers of Node die, and another one comes. (Closed adapters would answer it.)
        low.kill()
        high.kill()
        eventually(lambda: count(one) == 1, 5)
        found = one.do("cluster", "fetch_sockets", timeout=60.0)
        assert found["value"] == []
        assert set(found["missing"]) <= {LOWEST, HIGHEST}
        newcomer = start(ships, modules, discovery=url, uid="8" * 16, namespaces=NAMESPACES)
        eventually(lambda: count(one) == count(newcomer) == 2, 15)
        assert newcomer.do("serverSideEmitWithAck", "add", 1, 1) == [2]


def test_what_waits_is_sent_when_the_link_is_back(modules: Path) -> None:
    with fleet() as ships, clients_closed([]) as clients:
        mixed = mix(ships, modules, discovery_of(ships, modules, "ours", token=""), token="")
        clients += [Client(server.url) for server in mixed.theirs]
        node = mixed.ours[0]
        node.do("break_links")
        node.do("emit", "late", 1)
        for client in clients:
            client.wait_for("late")
        everywhere(mixed.theirs, lambda server: node.uid in server.links())
        node.do("emit", "later", 2)
        for client in clients:
            client.wait_for("later")
            assert client.received("late") == [(1,)]


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_wrong_token_keeps_a_server_out(modules: Path, kind: str) -> None:
    with fleet() as ships:
        url = discovery_of(ships, modules, kind)
        mixed = mix(ships, modules, url)
        wrong = start(ships, modules, discovery=url, uid="8" * 16, token="another token", namespaces=["/"])
        eventually(lambda: wrong.state()["refused"] >= 2, 10)
        assert wrong.links() == set()
        assert count(mixed.ours[0]) == 4
