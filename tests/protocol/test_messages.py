"""Cluster messages: every shape, good and bad, and the recorded traffic of Node servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import MessageError, PayloadNotEncodable
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.messages import OWN_TYPES_FROM, ClusterMessage, MessageType, encode, parse
from gevent_mesh.protocol.presence_messages import presence_delta, presence_piece, presence_version, presence_wanted
from tests.protocol.recorded import RECORDED

UID = "00000000000000aa"
OPTS = messages.options(["room"], ["sid"])
PACKET = {"type": 2, "data": ["event", 1]}
FRAMES = [
    (entry["name"].removeprefix("mesh/"), entry["frame_hex"])
    for entry in RECORDED
    if entry.get("frame_hex", "").startswith("01")
]


def message(kind: object, data: object = None) -> dict[str, Any]:
    """A message as it comes out of msgpack."""
    value: dict[str, Any] = {"type": kind, "uid": UID, "nsp": "/"}
    if data is not None:
        value["data"] = data
    return value


def test_type_numbers_are_those_of_the_cluster_adapter() -> None:
    assert {kind.name: int(kind) for kind in MessageType if kind < OWN_TYPES_FROM} == {
        "INITIAL_HEARTBEAT": 1,
        "HEARTBEAT": 2,
        "BROADCAST": 3,
        "SOCKETS_JOIN": 4,
        "SOCKETS_LEAVE": 5,
        "DISCONNECT_SOCKETS": 6,
        "FETCH_SOCKETS": 7,
        "FETCH_SOCKETS_RESPONSE": 8,
        "SERVER_SIDE_EMIT": 9,
        "SERVER_SIDE_EMIT_RESPONSE": 10,
        "BROADCAST_CLIENT_COUNT": 11,
        "BROADCAST_ACK": 12,
        "ADAPTER_CLOSE": 13,
    }


def test_our_own_type_numbers_never_change() -> None:
    assert {kind.name: int(kind) for kind in MessageType if kind >= OWN_TYPES_FROM} == {
        "ANSWER": 32,
        "COUNT_SOCKETS": 33,
        "LIST_ROOMS": 34,
        "CLIENTS_GONE": 35,
        "PRESENCE": 36,
        "PRESENCE_WANTED": 37,
        "PUBLISH": 40,
        "RELAY": 41,
        "RELAYED": 42,
        "ASK": 43,
        "TOLD": 44,
        "REPLY": 45,
        "COUNT_SERVERS": 46,
        "NODES_WANTED": 50,
        "NODES": 51,
        "INTEREST_WANTED": 52,
        "INTEREST": 53,
        "INTEREST_KNOWN": 54,
    }


# ---------------------------------------------------------------------- shapes

ROW = ["sid", "ada", b"\x81\xa1a\x01", 1.5, 2.5]
SOCKET = {"id": "a", "handshake": {"address": "127.0.0.1"}, "rooms": ["a", 1], "data": {"k": b"v"}}

VALID: list[tuple[MessageType, Any]] = [
    (MessageType.INITIAL_HEARTBEAT, None),
    (MessageType.INITIAL_HEARTBEAT, {}),
    (MessageType.HEARTBEAT, None),
    (MessageType.HEARTBEAT, "ignored"),
    (MessageType.ADAPTER_CLOSE, None),
    (MessageType.BROADCAST, messages.broadcast(OPTS, packet=["event", 1, b"bin", None])),
    (MessageType.BROADCAST, messages.broadcast(OPTS, packet=["event"])),
    (MessageType.BROADCAST, messages.broadcast(OPTS, packet=["event"], request_id="ab")),
    (MessageType.BROADCAST, messages.broadcast(OPTS, encoded=["2[]", b"bin"])),
    (MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["event"])),
    (MessageType.BROADCAST, {"opts": OPTS, "packet": PACKET, "requestId": None}),
    (MessageType.BROADCAST, {"opts": {"rooms": [], "except": []}, "packet": PACKET}),
    (MessageType.BROADCAST, {"opts": OPTS, "packet": PACKET, "new": 1}),
    (MessageType.SOCKETS_JOIN, messages.sockets_join(OPTS, ["a", "b"])),
    (MessageType.SOCKETS_LEAVE, messages.sockets_leave(OPTS, [])),
    (MessageType.DISCONNECT_SOCKETS, messages.disconnect_sockets(OPTS)),
    (MessageType.DISCONNECT_SOCKETS, messages.disconnect_sockets(OPTS, close=True)),
    (MessageType.DISCONNECT_SOCKETS, {"opts": OPTS}),
    (MessageType.FETCH_SOCKETS, {"opts": OPTS, "requestId": "ab"}),
    (MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": []}),
    (MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": [SOCKET, SOCKET]}),
    (MessageType.COUNT_SOCKETS, messages.fetch_sockets(OPTS, "ab")),
    (MessageType.LIST_ROOMS, messages.fetch_sockets(OPTS, "ab")),
    (MessageType.ANSWER, messages.answer_count("ab", 0)),
    (MessageType.ANSWER, messages.answer_rooms("ab", [])),
    (MessageType.CLIENTS_GONE, messages.clients_gone("ab", 3)),
    (MessageType.SOCKETS_JOIN, messages.sockets_join(OPTS, ["a"], "ab")),
    (MessageType.SOCKETS_LEAVE, messages.sockets_leave(OPTS, ["a"], "ab")),
    (MessageType.SOCKETS_LEAVE, messages.one_client(messages.sockets_leave(messages.options(["sid"]), ["a"]))),
    (MessageType.DISCONNECT_SOCKETS, messages.one_client(messages.disconnect_sockets(messages.options(["sid"])))),
    (MessageType.DISCONNECT_SOCKETS, messages.disconnect_sockets(OPTS, request_id="ab")),
    (MessageType.SERVER_SIDE_EMIT_RESPONSE, messages.server_side_answer("ab", None, "no handler")),
    (MessageType.PRESENCE, presence_version(7)),
    (MessageType.PRESENCE, presence_delta(1, [ROW], ["s2"])),
    (MessageType.PRESENCE, presence_delta(1, [["s", -1, b"\x80", 0, 0]], [])),
    (MessageType.PRESENCE, presence_piece(7, [ROW, ROW], request=1, part=0, more=True)),
    (MessageType.PRESENCE_WANTED, presence_wanted(1, 0)),
    (MessageType.SERVER_SIDE_EMIT, {"packet": ["event"]}),
    (MessageType.SERVER_SIDE_EMIT, {"packet": ["event", 1], "requestId": "ab"}),
    (MessageType.SERVER_SIDE_EMIT, {"packet": ["event", 1], "requestId": None}),
    (MessageType.SERVER_SIDE_EMIT_RESPONSE, {"requestId": "ab", "packet": 1}),
    (MessageType.SERVER_SIDE_EMIT_RESPONSE, {"requestId": "ab"}),
    (MessageType.BROADCAST_CLIENT_COUNT, messages.client_count("ab", 0)),
    (MessageType.BROADCAST_CLIENT_COUNT, messages.client_count("a" * 64, 10**9)),
    (MessageType.BROADCAST_ACK, messages.broadcast_ack("ab", [])),
    (MessageType.BROADCAST_ACK, messages.broadcast_ack("ab", [1])),
    (MessageType.BROADCAST_ACK, messages.broadcast_ack("ab", [1, None])),
    (MessageType.BROADCAST_ACK, {"requestId": "ab"}),
    (MessageType.PUBLISH, messages.publish(1, b"")),
    (MessageType.RELAY, messages.relay(UID, 2**63 - 1, b"message")),
    (MessageType.RELAYED, messages.relayed(1)),
    (MessageType.RELAYED, messages.relayed(3, [1, 3])),
    (MessageType.TOLD, messages.told("ab", 1, [])),
    (MessageType.TOLD, messages.told_all("ab")),
    (MessageType.ASK, messages.ask("ab", 0.5, b"")),
    (MessageType.ASK, messages.ask("ab", 3600, b"message")),
    (MessageType.REPLY, messages.reply("ab", [])),
    (MessageType.REPLY, messages.reply("ab", [b"message", b""])),
    (MessageType.REPLY, messages.replied("ab", [UID], 2, 1)),
    (MessageType.REPLY, messages.reply_error("ab", "why")),
    (MessageType.COUNT_SERVERS, messages.count_servers("ab")),
]

BAD_TIMEOUT: list[Any] = [None, 0, -1.0, 3601, float("nan"), float("inf"), True, "1", []]
BAD_ROOMS: list[Any] = [None, "room", 1, {}, {"room": 1}, [{}], [["a", {}]], [[[[{"b": 1}]]]]]
BAD_OPTS: list[Any] = [
    None, [], "opts", 1, {}, {"rooms": []}, {"except": []},
    *({"rooms": rooms, "except": []} for rooms in BAD_ROOMS),
    *({"rooms": [], "except": rooms} for rooms in BAD_ROOMS),
    {"rooms": [], "except": [], "flags": None}, {"rooms": [], "except": [], "flags": []},
]  # fmt: skip
BAD_ID: list[Any] = [None, "", "a" * 65, 1, b"ab", [], {}]
BAD_NUMBERS: list[Any] = [None, 0, -1, 1.0, True, "1", 2**63]
BAD_NUMBER: list[Any] = [None, -1, 2**63, 1.0, True, "1"]
BAD_SID: list[Any] = [None, 1, b"s", "", "s" * 129, []]
BAD_USER: list[Any] = [None, True, 1.5, b"ada", "u" * 257, [], {}]
# The last two: a map whose key cannot be one in Python, and one that does not end.
BAD_META: list[Any] = [None, {}, "", b"", b"\xc0", b"\x80\x80", b"\x90", b"\x80" * 5000, b"\x81\x90\x01", b"\x81\xa1a"]
BAD_TIME: list[Any] = [None, -1.0, float("nan"), float("inf"), True, "0", 2**63]
BAD_EVENT: list[Any] = [None, [], "event", [1], [None, "event"], [b"event"], {"0": "event"}, 1]


def cases(kind: MessageType, make: Callable[[Any], Any], *values: Any) -> list[tuple[MessageType, Any]]:
    """One message for each value."""
    return [(kind, make(value)) for value in values]


T = MessageType
WITH_DATA = [kind for kind in MessageType if kind not in (T.INITIAL_HEARTBEAT, T.HEARTBEAT, T.ADAPTER_CLOSE)]
BAD_OPTIONAL_ID = [bad for bad in BAD_ID if bad is not None]

NO_DATA: list[Any] = [None, [], "data", 1, b""]

INVALID: list[tuple[MessageType, Any]] = [
    *((kind, bad) for kind in WITH_DATA for bad in NO_DATA),
    *cases(T.BROADCAST, lambda bad: {"opts": bad, "packet": PACKET}, *BAD_OPTS),
    *cases(T.BROADCAST, lambda bad: {"opts": OPTS, "packet": {"type": 2, "data": bad}}, *BAD_EVENT),
    *cases(T.BROADCAST, lambda bad: {"opts": OPTS, "packet": {"type": bad, "data": ["e"]}}, None, 0, 3, 5, "2"),
    *cases(T.BROADCAST, lambda bad: {"opts": OPTS, "packet": bad}, None, [], "2[]", 1, {}, {"type": 2}),
    *cases(T.BROADCAST, lambda bad: {"opts": OPTS, "encoded": bad}, [], "2[]", b"", {}, 1, [1], ["a", None]),
    *cases(T.BROADCAST, lambda bad: {"opts": OPTS, "packet": PACKET, "requestId": bad}, *BAD_OPTIONAL_ID),
    (T.BROADCAST, {"opts": OPTS, "encoded": ["2[]"], "codec": 1}),
    (T.BROADCAST, {"packet": PACKET}),
    *cases(T.SOCKETS_JOIN, lambda bad: {"opts": bad, "rooms": []}, *BAD_OPTS),
    *cases(T.SOCKETS_LEAVE, lambda bad: {"opts": bad, "rooms": []}, *BAD_OPTS),
    *cases(T.SOCKETS_JOIN, lambda bad: {"opts": OPTS, "rooms": bad}, *BAD_ROOMS),
    *cases(T.SOCKETS_LEAVE, lambda bad: {"opts": OPTS, "rooms": bad}, *BAD_ROOMS),
    *cases(T.DISCONNECT_SOCKETS, lambda bad: {"opts": bad, "close": True}, *BAD_OPTS),
    *cases(T.DISCONNECT_SOCKETS, lambda bad: {"opts": OPTS, "close": bad}, None, 1, "true", []),
    *cases(T.FETCH_SOCKETS, lambda bad: {"opts": bad, "requestId": "ab"}, *BAD_OPTS),
    *cases(T.FETCH_SOCKETS, lambda bad: {"opts": OPTS, "requestId": bad}, *BAD_ID),
    *cases(T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": bad, "sockets": []}, *BAD_ID),
    *cases(T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": "ab", "sockets": bad}, None, {}, "", 1, [1], [[]]),
    *cases(T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": "ab", "sockets": [{**SOCKET, "id": bad}]}, None, 1, b""),
    *cases(
        T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": "ab", "sockets": [{**SOCKET, "rooms": bad}]}, *BAD_ROOMS
    ),
    *cases(
        T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": "ab", "sockets": [{**SOCKET, "handshake": bad}]}, None, []
    ),
    *cases(T.FETCH_SOCKETS_RESPONSE, lambda bad: {"requestId": "ab", "sockets": [], "more": bad}, None, 1),
    *cases(
        T.FETCH_SOCKETS_RESPONSE,
        lambda bad: {"requestId": "ab", "packed": bad},
        *(None, {}, 1, [1], ["a"], [b""], [b"\xc1"], [b"\x81"], [b"\x01"], [messages.pack_socket({"id": "a"})]),
    ),
    *cases(T.ANSWER, lambda bad: {"requestId": bad, "count": 1}, *BAD_ID),
    *cases(T.ANSWER, lambda bad: {"requestId": "ab", "count": bad}, None, -1, 1.0, True, "1"),
    *cases(
        T.ANSWER, lambda bad: {"requestId": "ab", "rooms": bad}, None, {}, 1, [1], [[]], [["a"]], [["a", -1]], [[{}, 1]]
    ),
    *cases(T.CLIENTS_GONE, lambda bad: {"requestId": "ab", "count": bad}, None, -1, "1"),
    *cases(T.SOCKETS_JOIN, lambda bad: {"opts": OPTS, "rooms": ["a"], "requestId": bad}, *BAD_OPTIONAL_ID),
    *cases(T.SOCKETS_JOIN, lambda bad: {"opts": OPTS, "rooms": ["a"], "client": bad}, None, 1, "true"),
    *cases(T.DISCONNECT_SOCKETS, lambda bad: {"opts": messages.options(bad), "client": True}, [], ["a", "b"]),
    *cases(T.DISCONNECT_SOCKETS, lambda bad: {"opts": OPTS, "requestId": bad}, *BAD_OPTIONAL_ID),
    *cases(T.SERVER_SIDE_EMIT_RESPONSE, lambda bad: {"requestId": "ab", "packet": 1, "error": bad}, None, 1),
    *cases(T.PRESENCE, lambda bad: {"version": bad}, *BAD_NUMBER),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": bad, "gone": []}, None, {}, "", 1, [1], ["s"], [[]]),
    *cases(
        T.PRESENCE, lambda bad: {"version": 1, "set": [], "gone": bad}, None, {}, "", 1, *([sid] for sid in BAD_SID)
    ),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": [[bad, *ROW[1:]]], "gone": []}, *BAD_SID),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": [["s", bad, *ROW[2:]]], "gone": []}, *BAD_USER),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": [["s", 1, bad, 0, 0]], "gone": []}, *BAD_META),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": [["s", 1, b"\x80", bad, 0]], "gone": []}, *BAD_TIME),
    *cases(T.PRESENCE, lambda bad: {"version": 1, "set": [["s", 1, b"\x80", 0, bad]], "gone": []}, *BAD_TIME),
    *cases(T.PRESENCE, lambda bad: {**presence_piece(1, [], request=1, part=0, more=True), "part": bad}, *BAD_NUMBER),
    *cases(T.PRESENCE, lambda bad: {**presence_piece(1, [], request=1, part=0, more=True), "more": bad}, None, 1, "no"),
    (T.PRESENCE, {"version": 1, "set": []}),
    (T.PRESENCE, {"version": 1, "gone": []}),
    (T.PRESENCE, {"version": 1, "request": 1, "part": 0, "more": False}),
    (T.PRESENCE, {"version": 1, "set": [ROW] * 501, "gone": ["s"] * 500}),
    *cases(T.PRESENCE_WANTED, lambda bad: {"request": bad, "part": 0}, *BAD_NUMBER),
    *cases(T.PRESENCE_WANTED, lambda bad: {"request": 1, "part": bad}, *BAD_NUMBER),
    *cases(T.SERVER_SIDE_EMIT, lambda bad: {"packet": bad}, *BAD_EVENT),
    *cases(T.SERVER_SIDE_EMIT, lambda bad: {"packet": ["e"], "requestId": bad}, *BAD_OPTIONAL_ID),
    *cases(T.SERVER_SIDE_EMIT_RESPONSE, lambda bad: {"requestId": bad, "packet": 1}, *BAD_ID),
    *cases(T.BROADCAST_CLIENT_COUNT, lambda bad: {"requestId": bad, "clientCount": 1}, *BAD_ID),
    *cases(T.BROADCAST_CLIENT_COUNT, lambda bad: {"requestId": "ab", "clientCount": bad}, None, -1, 1.0, True, "1"),
    *cases(T.BROADCAST_ACK, lambda bad: {"requestId": bad, "packet": 1}, *BAD_ID),
    *cases(T.BROADCAST_ACK, lambda bad: {"requestId": "ab", "args": bad}, None, {}, "ab", 1),
    *cases(T.PUBLISH, lambda bad: {"n": bad, "message": b""}, *BAD_NUMBERS),
    *cases(T.PUBLISH, lambda bad: {"n": 1, "message": bad}, None, "", [], {}),
    *cases(T.RELAY, lambda bad: {"from": bad, "n": 1, "message": b""}, None, "", "a" * 15, "A" * 16, b"a" * 16, []),
    *cases(T.RELAY, lambda bad: {"from": UID, "n": bad, "message": b""}, *BAD_NUMBERS),
    *cases(T.RELAY, lambda bad: {"from": UID, "n": 1, "message": bad}, None, "", [], {}),
    *cases(T.RELAYED, lambda bad: {"upto": bad}, *BAD_NUMBERS),
    *cases(T.RELAYED, lambda bad: {"upto": 1, "refused": bad}, None, {}, "1", 1, [1] * 1001),
    *cases(T.RELAYED, lambda bad: {"upto": 1, "refused": [1, bad]}, *BAD_NUMBERS),
    *cases(T.TOLD, lambda bad: {"requestId": bad, "number": 1, "args": []}, *BAD_ID),
    *cases(T.TOLD, lambda bad: {"requestId": "ab", "number": bad, "args": []}, *BAD_NUMBERS),
    *cases(T.TOLD, lambda bad: {"requestId": "ab", "number": 1, "args": bad}, None, {}, "a", 1),
    *cases(T.TOLD, lambda bad: {"requestId": "ab", "done": bad}, None, False, 1, "yes"),
    *cases(T.ASK, lambda bad: {"requestId": bad, "timeout": 1.0, "message": b""}, *BAD_ID),
    *cases(T.ASK, lambda bad: {"requestId": "ab", "timeout": bad, "message": b""}, *BAD_TIMEOUT),
    *cases(T.ASK, lambda bad: {"requestId": "ab", "timeout": 1.0, "message": bad}, None, "", [], {}),
    *cases(T.REPLY, lambda bad: {"requestId": bad, "messages": []}, *BAD_ID),
    *cases(T.REPLY, lambda bad: {"requestId": "ab", "messages": bad}, None, {}, b"", [""], [b"", 1]),
    *cases(T.REPLY, lambda bad: {"requestId": "ab", "error": bad}, None, 1, b""),
    *cases(
        T.REPLY, lambda bad: {"requestId": "ab", "missing": bad, "expected": 1, "received": 1}, None, "", [1], [b""]
    ),
    *cases(T.REPLY, lambda bad: {"requestId": "ab", "missing": [], "expected": bad, "received": 1}, None, -1, 1.0, "1"),
    *cases(T.REPLY, lambda bad: {"requestId": "ab", "missing": [], "expected": 1, "received": bad}, None, -1, 1.0, "1"),
    *cases(T.COUNT_SERVERS, lambda bad: {"requestId": bad}, *BAD_ID),
]


@pytest.mark.parametrize(("kind", "data"), VALID)
def test_valid_shapes_are_taken(kind: MessageType, data: Any) -> None:
    wire = encode(kind, UID, "/chat", data) if data is not None else msgpack.packb(message(int(kind)))
    found = parse(msgpack.unpackb(wire))
    assert (found.type, found.uid) == (kind, UID)
    assert isinstance(found.type, MessageType)
    if isinstance(data, dict):
        assert found.nsp == "/chat"
        assert {key: found.data[key] for key in data} == msgpack.unpackb(msgpack.packb(data))


@pytest.mark.parametrize(("kind", "data"), INVALID)
def test_invalid_shapes_are_refused(kind: MessageType, data: Any) -> None:
    with pytest.raises(MessageError):
        parse(message(int(kind), data))


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        b"bytes",
        [],
        {},
        {"type": 2, "uid": UID},
        {"type": 2, "nsp": "/"},
        {"uid": UID, "nsp": "/"},
        {"type": 2, "uid": 1, "nsp": "/"},
        {"type": 2, "uid": UID.encode(), "nsp": "/"},
        {"type": 2, "uid": UID, "nsp": None},
        *map(message, (0, 14, -1, None, "2", 2.0, True, [2], {})),
    ],
)
def test_what_is_no_message_at_all_is_refused(value: object) -> None:
    with pytest.raises(MessageError):
        parse(value)


def test_keys_of_a_newer_node_are_ignored() -> None:
    found = parse({**message(9, {"packet": ["e"], "new": 1}), "newer": 2})
    assert found == ClusterMessage(MessageType.SERVER_SIDE_EMIT, UID, "/", {"packet": ["e"], "new": 1})


def test_packed_sockets_come_with_their_ids_and_can_be_read() -> None:
    packed = [messages.pack_socket({**SOCKET, "id": name}) for name in "ab"]
    sent = messages.packed_sockets("ab", packed, more=True)
    found = parse(msgpack.unpackb(encode(MessageType.FETCH_SOCKETS_RESPONSE, UID, "/", sent))).data
    assert found == {"requestId": "ab", "packed": [("a", packed[0]), ("b", packed[1])], "more": True}
    assert messages.unpack_socket(packed[0]) == SOCKET


def test_rooms_and_counts_come_as_pairs() -> None:
    sent = messages.answer_rooms("ab", [("room", 2), (7, 1), (("a", 1), 0)], more=True)
    found = parse(msgpack.unpackb(encode(MessageType.ANSWER, UID, "/", sent)))
    assert found.data == {"requestId": "ab", "rooms": [("room", 2), (7, 1), (("a", 1), 0)], "more": True}


def test_an_answer_without_a_value_is_an_answer_of_nothing() -> None:
    assert parse(message(10, {"requestId": "ab"})).data["packet"] is None
    assert parse(message(12, {"requestId": "ab"})).data["packet"] is None


# ---------------------------------------------------------------------- rooms


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (["a", "b"], ["a", "b"]),
        ([("a", 1)], [("a", 1)]),
        ([("a", ("b", ("c",)))], [("a", ("b", ("c",)))]),
        ([1, 1.5, True, b"bin", "a"], [1, 1.5, True, b"bin", "a"]),
        ([()], [()]),
    ],
)
def test_rooms_arrive_as_they_were_sent(sent: list[Any], arrives: list[Any]) -> None:
    data = messages.sockets_join(messages.options(sent, sent), sent)
    found = parse(msgpack.unpackb(encode(MessageType.SOCKETS_JOIN, UID, "/", data))).data
    assert found["rooms"] == found["opts"]["rooms"] == found["opts"]["except"] == arrives
    assert len({*found["rooms"]}) == len({*arrives})


def test_a_list_of_texts_is_not_copied() -> None:
    rooms = ["a", "b"]
    assert parse(message(4, {"opts": {"rooms": [], "except": []}, "rooms": rooms})).data["rooms"] is rooms


@pytest.mark.parametrize("kind", [MessageType.SOCKETS_JOIN, MessageType.SOCKETS_LEAVE])
def test_nobody_enters_or_leaves_the_room_of_everybody(kind: MessageType) -> None:
    with pytest.raises(MessageError, match="None"):
        parse(message(kind.value, {"opts": OPTS, "rooms": ["a", None]}))


@pytest.mark.parametrize("depth", [17, 100, 600, 1000])
def test_a_room_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(MessageError, match="nested"):
        parse(message(4, {"opts": {"rooms": [], "except": []}, "rooms": [_nested(depth)]}))


def test_a_room_may_be_nested_sixteen_levels_deep() -> None:
    found = parse(message(4, {"opts": {"rooms": [], "except": []}, "rooms": [_nested(16)]}))
    assert hash(found.data["rooms"][0])


def _nested(depth: int) -> Any:
    room: Any = "room"
    for _ in range(depth):
        room = [room]
    return room


# ---------------------------------------------------------------------- making messages


def test_only_what_is_meant_is_in_a_broadcast() -> None:
    # A key that is nil counts as a request for Node servers.
    assert messages.broadcast(OPTS, packet=["e", 1]) == {"opts": OPTS, "packet": {"type": 2, "data": ["e", 1]}}
    assert messages.broadcast(OPTS, encoded=["2[]"], codec="json") == {
        "opts": OPTS, "encoded": ["2[]"], "codec": "json",
    }  # fmt: skip
    assert messages.broadcast(OPTS, packet=["e"], request_id="ab")["requestId"] == "ab"


_ROOM = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**63), 2**64 - 1),
    st.booleans(),
    st.floats(),
    st.none(),
    st.binary(max_size=9),
    st.tuples(st.text(max_size=3), st.integers(0, 9)),
)
_ROOMS = st.lists(_ROOM, max_size=4)
_PACKETS = st.lists(st.text(max_size=60) | st.binary(max_size=60), min_size=1, max_size=3)


def _event_encodings(
    nsp: str, rooms: list[Any], exclude: list[Any], encoded: list[str | bytes], codec: str
) -> list[bytes]:
    data = messages.broadcast(messages.options(rooms, exclude), encoded=encoded, codec=codec)
    return [
        messages.encode_event(UID, nsp, rooms, exclude, encoded, codec),
        encode(MessageType.BROADCAST, UID, nsp, data),
    ]


@given(nsp=st.text(max_size=40), rooms=_ROOMS, exclude=_ROOMS, encoded=_PACKETS, codec=st.text(max_size=20))
def test_events_are_encoded_as_any_broadcast(
    nsp: str, rooms: list[Any], exclude: list[Any], encoded: list[str | bytes], codec: str
) -> None:
    ours, whole = _event_encodings(nsp, rooms, exclude, encoded, codec)
    assert ours == whole


@pytest.mark.parametrize("nsp", ["/", "/chat", "\ufffd", "the packet", "rooms\x90except\x90flags\x80"])
@pytest.mark.parametrize("rooms", [[], [1], [True], [1.0], ["a"], [("a", 1)], [b"a"]])
@pytest.mark.parametrize(
    "encoded", [["2[]"], [b"the packet"], ["51-[]", b"\x00" * 300], ["x" * 40_000], ["x" * 70_000]]
)
def test_events_that_look_alike_are_told_from_each_other(
    nsp: str, rooms: list[Any], encoded: list[str | bytes]
) -> None:
    for exclude in ([], ["sid"]):
        ours, whole = _event_encodings(nsp, rooms, exclude, encoded, "json")
        assert ours == whole


@pytest.mark.parametrize(
    ("nsp", "rooms", "encoded"),
    [
        ("/\ud800", [], ["2[]"]),
        ("/", ["\ud800"], ["2[]"]),
        ("/", [], ["\ud800"]),
        ("/", [frozenset()], ["2[]"]),
        ("/", [2**64], ["2[]"]),
        ("/", [str(number) for number in range(40_000)], ["2[]"]),
    ],
)
def test_events_that_cannot_be_encoded_are_refused(nsp: str, rooms: list[Any], encoded: list[str | bytes]) -> None:
    with pytest.raises(PayloadNotEncodable):
        messages.encode_event(UID, nsp, rooms, [], encoded, "json")
    ours, whole = _event_encodings("/", [], [], ["2[]"], "json")
    assert ours == whole


def test_names_of_namespaces_that_somebody_made_long_are_not_kept() -> None:
    messages._event_pieces.cache_clear()
    for nsp in ("/short", "/" + "x" * 1000):
        made = messages.encode_event("0123456789abcdef", nsp, ["room"], [], ['2["event"]'], "json")
        data = messages.broadcast(messages.options(["room"]), encoded=['2["event"]'], codec="json")
        assert made == messages.encode(MessageType.BROADCAST, "0123456789abcdef", nsp, data)
    assert messages._event_pieces.cache_info().currsize == 1


def test_options_always_have_all_three_keys() -> None:
    for made, arrives in (
        (messages.options(), {"rooms": [], "except": [], "flags": {}}),
        (messages.options(("a",), ["b"]), {"rooms": ["a"], "except": ["b"], "flags": {}}),
    ):
        assert msgpack.unpackb(msgpack.packb(made)) == arrives


@pytest.mark.parametrize("arguments", [[], [1], [None], [1, 2], [[1, 2]], ["a", b"b", {}]])
def test_all_acknowledged_arguments_arrive(arguments: list[Any]) -> None:
    wire = encode(MessageType.BROADCAST_ACK, UID, "/", messages.broadcast_ack("ab", arguments))
    assert messages.acknowledged_arguments(parse(msgpack.unpackb(wire)).data) == arguments


def test_the_first_argument_is_where_node_servers_look_for_it() -> None:
    assert messages.broadcast_ack("ab", [7, 8])["packet"] == 7
    assert messages.broadcast_ack("ab", [7]) == {"requestId": "ab", "packet": 7}


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, 1j])
def test_what_msgpack_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises(PayloadNotEncodable):
        encode(MessageType.SERVER_SIDE_EMIT, UID, "/", {"packet": ["e", value]})


def test_a_message_that_cannot_be_encoded_leaves_nothing_in_the_next_one() -> None:
    data = {"packet": ["e", 1]}
    before = encode(MessageType.SERVER_SIDE_EMIT, UID, "/", data)
    with pytest.raises(PayloadNotEncodable):
        encode(MessageType.SERVER_SIDE_EMIT, UID, "/", {"packet": ["e", "x" * 1000, object()]})
    assert encode(MessageType.SERVER_SIDE_EMIT, UID, "/", data) == before


def test_a_structure_without_end_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PayloadNotEncodable):
        encode(MessageType.SERVER_SIDE_EMIT, UID, "/", {"packet": ["e", loop]})


# ---------------------------------------------------------------------- Node servers


@pytest.mark.parametrize(("name", "frame"), FRAMES)
def test_recorded_messages_of_node_servers_are_understood(name: str, frame: str) -> None:
    value = msgpack.unpackb(bytes.fromhex(frame)[1:], strict_map_key=False)
    found = parse(value)
    assert found.type.name == name
    assert (found.uid, found.nsp) == (value["uid"], value["nsp"])


def test_messages_are_written_in_the_key_order_of_node_servers() -> None:
    assert list(msgpack.unpackb(encode(MessageType.SERVER_SIDE_EMIT, UID, "/", {"packet": ["e"]}))) == [
        "type",
        "data",
        "uid",
        "nsp",
    ]


# ---------------------------------------------------------------------- junk

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
junk = st.recursive(
    scalars,
    lambda values: st.lists(values, max_size=6) | st.dictionaries(st.text(max_size=3), values, max_size=4),
    max_leaves=6,
)
shaped = st.dictionaries(
    st.sampled_from(
        ["opts", "rooms", "except", "packet", "encoded", "requestId", "sockets", "clientCount", "args", "set", "gone"]
    ),
    junk | st.dictionaries(st.sampled_from(["rooms", "except", "flags", "type", "data"]), scalars, max_size=4),
    max_size=4,
)


@given(junk)
@settings(max_examples=200)
def test_junk_is_a_message_error(value: object) -> None:
    with pytest.raises(MessageError):
        parse(value)


@given(st.integers(-1, 15), shaped | junk)
@settings(max_examples=200)
def test_shaped_junk_is_a_message_or_a_message_error(kind: int, data: object) -> None:
    try:
        found = parse(message(kind, data))
    except MessageError:
        return
    assert found.type == kind
