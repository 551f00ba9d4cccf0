"""Our nodes and a Node peer that speaks byte for byte as recorded, in both dialling directions, through both kinds of
discovery server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.nodejs_peer import Connection, NodejsDiscovery, NodejsPeer
from tests.integration.processes import Fleet, Node, fleet
from tests.protocol.recorded import RECORDED, cluster_message, recorded
from tests.support import eventually

pytestmark = pytest.mark.integration

RECORDED_UID = b"712b2514a3039852"
LOW, HIGH = "0" * 15 + "1", "f" * 16
TOKEN = "a token that is long enough"
REQUEST_ID = re.compile(rb"\xa9requestId\xb0([0-9a-f]{16})")


class Pair:
    """One node of ours with a client, and one Node peer."""

    def __init__(self, node: Node, peer: NodejsPeer, client: Client) -> None:
        self.node, self.peer, self.client = node, peer, client

    def as_recorded(self, name: str, step: str) -> bytes:
        """What was recorded, as if the node had sent it."""
        return recorded(name, step).replace(RECORDED_UID, self.node.uid.encode())

    def replay(self, name: str, step: str) -> None:
        """Let the peer send what was recorded."""
        self.peer.send_raw(recorded(name, step).replace(RECORDED_UID, self.peer.uid.encode()))


@pytest.fixture(scope="module", params=["our discovery", "the discovery of Node"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Fleet, str]]:
    with fleet() as ships:
        if request.param == "our discovery":
            yield ships, ships.discovery(token=TOKEN).url
        else:
            server = NodejsDiscovery(TOKEN)
            yield ships, server.address
            server.stop()
            assert server.faults == []


@pytest.fixture(scope="module", params=[LOW, HIGH], ids=["it dials", "we dial"])
def pair(request: pytest.FixtureRequest, place: tuple[Fleet, str]) -> Iterator[Pair]:
    ships, url = place
    # To a Node peer it makes no difference which rooms have members.
    has_interest = request.param == HIGH
    node = ships.node(
        None, url=url, node_interop=True, auth_token=TOKEN, ws_host="127.0.0.1", room_interest=has_interest
    )
    with clients_closed([Client(node.url, namespaces=["/", "/other"], answer=answer)]) as clients:
        peer = NodejsPeer(url, request.param, token=TOKEN)
        eventually(lambda: node.uid in peer.links and peer.uid in node.links())
        eventually(lambda: node.do("cluster", "server_count")["value"] == 2)
        yield Pair(node, peer, clients[0])
        peer.leave()
        assert peer.faults == []
        eventually(lambda: node.do("cluster", "server_count")["value"] == 1)
        node.do("stop")


def answer(event: str, *_arguments: Any) -> Any:
    if event == "q-multi":
        return ("ack1", "more")
    return None if event == "q-none" else "ack1"


def test_links_are_made_as_recorded(pair: Pair) -> None:
    if pair.peer.uid == HIGH:
        (hello,) = pair.peer.hellos
        assert hello["uid"] == pair.node.uid
        assert hello["token"] == TOKEN
        assert hello["address"] == f"ws://127.0.0.1:{pair.node.ws_port}"
    # For each namespace that we serve, and for no other.
    for namespace in ("/", "/other", "/lobby"):
        eventually(lambda namespace=namespace: pair.peer.received(1, namespace))  # type: ignore[misc]  # bound now
    assert not pair.peer.received(2, "/unknown")
    assert pair.node.do("cluster", "server_count", "/other")["value"] == 1


EVENTS = [
    entry["step"]
    for entry in RECORDED
    if entry["name"] == "mesh/BROADCAST" and b"requestId" not in bytes.fromhex(entry["frame_hex"])
]
REACHES_NOBODY = {
    "to-room",
    "to-rooms",
    "to-except",
    "volatile-compress-room",
    "numeric-room",
    "socket-to",
    "remote-emit",
}
ELSEWHERE = {"nsp-chat", "nsp-late"}


@pytest.mark.parametrize("step", EVENTS)
def test_recorded_events_reach_our_clients(pair: Pair, step: str) -> None:
    position = pair.client.position
    pair.replay("mesh/BROADCAST", step)
    mark = f"after {step}"
    opts: dict[str, Any] = {"rooms": [], "except": [], "flags": {}}
    pair.peer.send(3, {"packet": {"type": 2, "data": [mark]}, "opts": opts})
    pair.client.wait_for(mark)
    pair.client._events[-1:] = []
    found = [event[1:] for event in pair.client.since(position)]
    event, *arguments = cluster_message("mesh/BROADCAST", step)["data"]["packet"]["data"]
    if step == "emit-float-special":
        arguments[:3] = [None] * 3
    assert found == ([] if step in REACHES_NOBODY | ELSEWHERE else [(event, tuple(arguments))])


SAME = {
    "emit-scalars": None, "emit-no-args": None, "emit-nested": None, "emit-numeric-keys": None, "emit-binary": None,
    "emit-arraybuffer": None, "emit-map-set-toJSON": None, "emit-multi-args": None, "send": None,
    "emit-undefined": None, "to-room": {"room": "r1"}, "to-rooms": {"room": ["r1", "r2", "r3"]},
    "except": {"skip_sid": ["r1"]}, "to-except": {"room": "r1", "skip_sid": ["r2", "r3"]}, "numeric-room": {"room": 42},
    "socket-broadcast": {"skip_sid": "NNX2H3HuwIzhcy3LAAAB"}, "nsp-chat": {"namespace": "/chat"},
}  # fmt: skip


@pytest.mark.parametrize("step", SAME)
def test_our_events_have_the_recorded_bytes(pair: Pair, step: str) -> None:
    packet = cluster_message("mesh/BROADCAST", step)["data"]["packet"]["data"]
    pair.node.do("emit", *packet, several=True, **(SAME[step] or {}))
    expected = pair.as_recorded("mesh/BROADCAST", step)
    eventually(lambda: expected in pair.peer.payloads(3))


def test_what_is_said_in_a_namespace_that_we_do_not_serve_is_taken_back(pair: Pair) -> None:
    pair.node.do("emit", "x", 1, namespace="/chat")
    eventually(lambda: pair.peer.received(13, "/chat"))


COMMANDS: list[tuple[str, str, int, tuple[Any, ...], dict[str, Any]]] = [
    ("mesh/SOCKETS_JOIN", "join-all", 4, ("sockets_join", "r1"), {}),
    ("mesh/SOCKETS_JOIN", "join-in", 4, ("sockets_join", ["r2", "r3"]), {"room": "r1", "except_rooms": "zz"}),
    ("mesh/SOCKETS_LEAVE", "leave", 5, ("sockets_leave", "r3"), {"room": "r1"}),
    ("mesh/DISCONNECT_SOCKETS", "disconnect-room", 6, ("disconnect_sockets",), {"room": "nobody"}),
    ("mesh/DISCONNECT_SOCKETS", "disconnect-chat", 6, ("disconnect_sockets",), {"namespace": "/chat", "close": True}),
    ("mesh/SERVER_SIDE_EMIT", "sse", 9, ("server_side_emit", "sse", 1, {"a": 2}, b"\x03"), {}),
    ("mesh/SERVER_SIDE_EMIT", "sse-noargs", 9, ("server_side_emit", "sse"), {}),
]


@pytest.mark.parametrize(("name", "step", "kind", "call", "options"), COMMANDS, ids=[case[1] for case in COMMANDS])
def test_our_commands_have_the_recorded_bytes(
    pair: Pair, name: str, step: str, kind: int, call: tuple[Any, ...], options: dict[str, Any]
) -> None:
    pair.node.do("cluster", *call, **options)
    expected = pair.as_recorded(name, step)
    eventually(lambda: expected in pair.peer.payloads(kind))


def without_id(payload: bytes) -> bytes:
    return REQUEST_ID.sub(b"\xa9requestId\xb0" + b"0" * 16, payload)


def test_our_questions_have_the_recorded_bytes_and_are_answered(pair: Pair) -> None:
    sockets = cluster_message("mesh/FETCH_SOCKETS_RESPONSE", "fetch-all")["data"]["sockets"]
    pair.peer.sockets = sockets
    found = pair.node.do("cluster", "fetch_sockets")
    assert (found["missing"], found["expected"]) == ([], 2)
    assert {socket["sid"] for socket in found["value"]} == {pair.client.sid, *(socket["id"] for socket in sockets)}
    assert without_id(pair.as_recorded("mesh/FETCH_SOCKETS", "fetch-all")) in map(without_id, pair.peer.payloads(7))
    assert pair.node.do("cluster", "count_sockets")["value"] == 1 + len(sockets)
    assert pair.node.do("cluster", "sockets_join", "r1", timeout=3.0)["value"] == 1 + len(sockets)
    assert pair.as_recorded("mesh/SOCKETS_JOIN", "join-all") in pair.peer.payloads(4)
    pair.node.do("cluster", "sockets_leave", "r1")

    found = pair.node.do("cluster", "server_side_call", "sse-ack", "arg")
    assert found["value"] == {pair.peer.uid: {"of": pair.peer.uid}}
    expected = without_id(pair.as_recorded("mesh/SERVER_SIDE_EMIT", "sse-ack"))
    assert expected in map(without_id, pair.peer.payloads(9))

    pair.peer.clients = ["one", None, b"\x01"]
    found = pair.node.do("cluster", "call", "q")
    assert sorted(found["value"], key=repr) == sorted(["ack1", "one", None, b"\x01"], key=repr)
    assert (found["missing"], found["expected"]) == ([], 4)
    assert pair.node.state()["requests"] == 0


@pytest.mark.parametrize(("step", "value"), [("ack-all", "ack1"), ("ack-none", None), ("ack-multi", "ack1")])
def test_our_clients_acknowledge_with_the_recorded_bytes(pair: Pair, step: str, value: Any) -> None:
    asked = recorded("mesh/BROADCAST", step)
    request_id = REQUEST_ID.search(asked)
    assert request_id is not None
    pair.replay("mesh/BROADCAST", step)
    name = {"uid": pair.node.uid, "nsp": "/"}
    identity = request_id[1].decode()
    count = {"type": 11, "data": {"requestId": identity, "clientCount": 1}, **name}
    acknowledged = {"type": 12, "data": {"requestId": identity, "packet": value}, **name}
    eventually(lambda: b"\x01" + msgpack.packb(acknowledged) in pair.peer.payloads(12))
    assert pair.peer.payloads(11).count(b"\x01" + msgpack.packb(count)) == 1
    assert pair.peer.payloads(12).count(b"\x01" + msgpack.packb(acknowledged)) == 1


def test_an_empty_room_is_counted_and_fetched_as_recorded(pair: Pair) -> None:
    pair.replay("mesh/BROADCAST", "ack-room-empty")
    pair.replay("mesh/FETCH_SOCKETS", "fetch-empty")
    count = recorded("mesh/BROADCAST_CLIENT_COUNT", "ack-room-empty").replace(
        b"9d555366ca94b1a5", pair.node.uid.encode()
    )
    fetched = recorded("mesh/FETCH_SOCKETS_RESPONSE", "fetch-empty").replace(
        b"e4bdf2169a91d081", pair.node.uid.encode()
    )
    eventually(lambda: count in pair.peer.payloads(11) and fetched in pair.peer.payloads(8))


def test_our_sockets_are_told_in_one_message_of_the_recorded_shape(pair: Pair) -> None:
    def shape(value: Any) -> Any:
        return {key: type(item) for key, item in value.items()}

    before = len(pair.peer.received(8))
    pair.replay("mesh/FETCH_SOCKETS", "fetch-all")
    eventually(lambda: len(pair.peer.received(8)) > before)
    (socket,) = pair.peer.received(8)[-1]["data"]["sockets"]
    expected = cluster_message("mesh/FETCH_SOCKETS_RESPONSE", "fetch-all")["data"]["sockets"][0]
    assert list(socket) == list(expected)
    assert {**shape(socket["handshake"]), "auth": dict} == shape(expected["handshake"])
    assert socket["id"] in socket["rooms"]


def test_server_side_questions_are_answered_once(pair: Pair) -> None:
    pair.replay("mesh/SERVER_SIDE_EMIT", "sse-ack-none")
    expected = recorded("mesh/SERVER_SIDE_EMIT_RESPONSE", "sse-ack-none").replace(
        b"e4bdf2169a91d081", pair.node.uid.encode()
    )
    eventually(lambda: expected in pair.peer.payloads(10))
    pair.peer.send(9, {"requestId": "a" * 16, "packet": ["add", 2, 3]})
    eventually(lambda: {"requestId": "a" * 16, "packet": 5} in [m["data"] for m in pair.peer.received(10)])
    assert pair.peer.payloads(10).count(expected) == 1


def test_nothing_is_answered_in_a_namespace_that_we_do_not_serve(pair: Pair) -> None:
    opts: dict[str, Any] = {"rooms": [], "except": [], "flags": {}}
    pair.peer.send(7, {"opts": opts, "requestId": "b" * 16}, nsp="/elsewhere")
    pair.peer.send(9, {"requestId": "b" * 16, "packet": ["add", 1, 1]}, nsp="/elsewhere")
    pair.peer.send(7, {"opts": opts, "requestId": "c" * 16})
    eventually(lambda: "c" * 16 in [message["data"]["requestId"] for message in pair.peer.received(8)])
    assert not [message for _, _, message in pair.peer.got if message["nsp"] == "/elsewhere"]


def test_malformed_messages_cost_nothing_but_themselves(pair: Pair) -> None:
    connection = pair.peer.links[pair.node.uid]
    for payload in (
        b"",
        b"\x07",
        b"\x01",
        b"\x01\xc1",
        b"\x01\xc0",
        b"\x01" + b"\x91" * 600,
        b"\x01\xdf\xff\xff\xff\xff",
    ):
        pair.peer.send_raw(payload)
    data: Any
    for data in (None, {}, {"opts": {"rooms": 7, "except": [], "flags": {}}, "packet": {"type": 2, "data": ["e"]}}):
        pair.peer.send_raw(b"\x01" + msgpack.packb({"type": 3, "data": data, "uid": pair.peer.uid, "nsp": "/"}))
    pair.peer.send(3, {"packet": {"type": 2, "data": ["fine"]}, "opts": {"rooms": [], "except": [], "flags": {}}})
    pair.client.wait_for("fine")
    assert pair.peer.links[pair.node.uid] is connection


def test_a_broken_frame_ends_that_link_and_a_new_one_is_made(pair: Pair) -> None:
    connection = pair.peer.links[pair.node.uid]
    connection.send(b"{}", opcode=1)
    eventually(lambda: pair.peer.ended.get(pair.node.uid) is connection)
    if pair.peer.uid == LOW:
        pair.peer.in_thread(pair.peer._dial, pair.node.uid, f"ws://127.0.0.1:{pair.node.ws_port}")
    eventually(lambda: pair.node.uid in pair.peer.links and pair.peer.uid in pair.node.links(), 10)
    pair.node.do("emit", "again", 1)
    eventually(lambda: b"again" in b"".join(pair.peer.payloads(3)))


# ---------------------------------------------------------------------- alone


def test_leaving_is_said_for_each_namespace(place: tuple[Fleet, str]) -> None:
    ships, url = place
    node = ships.node(None, url=url, node_interop=True, auth_token=TOKEN, ws_host="127.0.0.1")
    peer = NodejsPeer(url, HIGH, token=TOKEN)
    eventually(lambda: node.uid in peer.links and peer.uid in node.links())
    connection = peer.links[node.uid]
    node.do("emit", "last words", 1)
    node.do("stop")
    eventually(lambda: node.uid in peer.ended)
    assert connection.closed_with == (1000, "leaving")
    theirs = [message for uid, _, message in peer.got if uid == node.uid]
    assert {message["nsp"] for message in theirs if message["type"] == 13} >= {"/", "/other", "/lobby"}
    assert [message["type"] for message in theirs if message["nsp"] == "/"][-2:] == [3, 13]
    assert peer.faults == []
    peer.leave()


def test_nothing_comes_twice_or_out_of_order_when_links_break_under_load() -> None:
    with fleet() as ships:
        url = ships.discovery().url
        node = ships.node(None, url=url, node_interop=True)
        peer = NodejsPeer(url, HIGH)
        eventually(lambda: node.uid in peer.links and peer.uid in node.links())

        def numbers() -> list[int]:
            return [message["data"]["packet"]["data"][2] for message in peer.received(3)]

        node.do("start_traffic", 2000.0)
        for breaks in range(1, 6):
            reached = len(numbers())
            eventually(lambda reached=reached: len(numbers()) > reached + 200)  # type: ignore[misc]  # bound now
            node.do("break_links")
            eventually(lambda breaks=breaks: node.state()["counters"]["links_up"] > breaks, 15)  # type: ignore[misc]
        sent = node.do("stop_traffic")
        eventually(lambda: numbers()[-1] == sent, 15)
        found = numbers()
        assert found == sorted(set(found))
        # What was on its way is lost; what was emitted while a link was down is not.
        assert len(found) > sent - 500
        peer.leave()


HELLO = {"uid": LOW, "address": "ws://127.0.0.1:9"}
STRANGERS: dict[str, tuple[bytes, int]] = {
    "no token": (b"\x00" + msgpack.packb(HELLO), 4401),
    "a wrong token": (b"\x00" + msgpack.packb({**HELLO, "token": TOKEN[1:]}), 4401),
    "a message before HELLO": (b"\x01" + msgpack.packb({"type": 2, "uid": LOW, "nsp": "/"}), 1002),
    "no HELLO": (b"\x00\xc0", 1002),
    "too much": (b"\x00" + bytes(2000), 0),
    "no address": (b"\x00" + msgpack.packb({"uid": LOW, "token": TOKEN}), 1002),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_strangers_are_shown_the_door(pair: Pair, case: str) -> None:
    payload, code = STRANGERS[case]
    faults: list[str] = []
    connection = Connection.dial(f"ws://127.0.0.1:{pair.node.ws_port}", "mesh", faults.append)
    connection.send(payload)
    assert list(connection.messages()) == []
    assert code in (0, (connection.closed_with or (0, ""))[0])
    assert pair.node.links() == {pair.peer.uid}


def test_without_interop_a_node_peer_is_refused() -> None:
    with fleet() as ships:
        node = ships.node(ships.discovery())
        with pytest.raises(ConnectionError, match="426"):
            Connection.dial(f"ws://127.0.0.1:{node.ws_port}", "mesh", pytest.fail)


def test_pings_of_the_discovery_of_node_are_answered_and_a_wrong_token_is_told() -> None:
    with fleet() as ships:
        server = NodejsDiscovery(TOKEN, ping_seconds=0.1)
        node = ships.node(None, url=server.address, node_interop=True, auth_token=TOKEN, ws_host="127.0.0.1")
        eventually(lambda: node.state()["discovery"] == [True])
        expected = {
            "type": "register", "serverId": node.uid, "address": f"ws://127.0.0.1:{node.ws_port}", "token": TOKEN,
        }  # fmt: skip
        assert server.registered == [msgpack.packb(expected)]
        eventually(lambda: server.pongs >= 3)
        wrong = ships.node(
            None, url=server.address, node_interop=True, auth_token="another token, too", ws_host="127.0.0.1"
        )
        wrong.wait_for("it does not accept our token")
        ours_only = ships.node(None, url=server.address, auth_token=TOKEN, ws_host="127.0.0.1")
        ours_only.wait_for("not a node of this mesh")
        node.do("stop")
        eventually(lambda: not server.members)
        server.stop()
        assert server.faults == []
