"""Node peers: recorded traffic, the table of values, the rules of a link, and junk."""

from __future__ import annotations

import contextlib
import datetime
import math
import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from socketio.packet import EVENT, Packet

from gevent_mesh.errors import FrameError, HandshakeError, MessageError, RemoteError, WebSocketError
from gevent_mesh.protocol import discovery, messages, nodejs
from gevent_mesh.protocol.frames import MAX_STRANGER_FRAME_BYTES, Refusal
from gevent_mesh.protocol.link import Event, Identity, Phase, Proven, Status
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.nodejs import NOBODY, NodejsLinkProtocol, Translator, from_node, to_node
from gevent_mesh.protocol.peers import PeerTable
from gevent_mesh.protocol.session import Session
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, close_payload, frame, parse_close
from tests.protocol.recorded import RECORDED, plain
from tests.protocol.support import HIGH, LOW, OTHER, TOKEN, listener


def named(*prefixes: str) -> list[Any]:
    """The recorded entries of some kinds, as parameters of a test."""
    found = [entry for entry in RECORDED if entry["name"].startswith(prefixes)]
    return [pytest.param(entry, id=f"{entry['name']} {entry['step']} {n}") for n, entry in enumerate(found)]


CLUSTER = [entry for entry in named("mesh/") if "message" in entry.values[0]["decoded"]]


def read_message(payload: bytes) -> ClusterMessage:
    """The message in a payload, as if it were small."""
    message = [found for found in nodejs.read_message(payload) if found is not None][-1]
    if "packed" in message.data:
        message.data["sockets"] = [msgpack.unpackb(packed) for _, packed in message.data.pop("packed")]
    return message


def read_json(codec: str, encoded: list[Any]) -> list[Any]:
    assert codec == "json"
    packet = Packet(encoded_packet=encoded[0])
    for attachment in encoded[1:]:
        packet.add_attachment(attachment)
    event: list[Any] = packet.data
    return event


class Translating:
    """A translator, and what it could not translate."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.translate = Translator(LOW, read_json, self.reasons.append)

    def __call__(self, kind: MessageType, data: dict[str, Any], uid: str = LOW, nsp: str = "/") -> Any:
        translated = self.translate(messages.encode(kind, uid, nsp, data))
        return msgpack.unpackb(translated[-1].body, strict_map_key=False) if translated else None


def as_sent(native: bytes) -> bytes:
    """The WebSocket message that a Node peer gets of a message of ours."""
    uid = msgpack.unpackb(native, strict_map_key=False)["uid"]
    (translated,) = Translator(uid, read_json, pytest.fail)(native)
    return b"\x01" + translated.body


# ---------------------------------------------------------------------- recorded traffic


def test_everything_recorded_is_covered() -> None:
    groups = ("ws-upgrade/", "discovery/", "mesh/", "ws-ping/", "ws-pong/", "ws-close/")
    assert len(RECORDED) == 140 == sum(len(named(group)) for group in groups)


@pytest.mark.parametrize("entry", named("discovery/", "mesh/"))
def test_recorded_frames_are_encoded_again_byte_for_byte(entry: dict[str, Any]) -> None:
    recorded = bytes.fromhex(entry["frame_hex"])
    kind, body = (recorded[:1], recorded[1:]) if entry["name"].startswith("mesh/") else (b"", recorded)
    assert kind + msgpack.packb(msgpack.unpackb(body, strict_map_key=False)) == recorded


@pytest.mark.parametrize("entry", CLUSTER)
def test_recorded_messages_are_read(entry: dict[str, Any]) -> None:
    expected = plain(entry["decoded"]["message"])
    found = read_message(bytes.fromhex(entry["frame_hex"])[1:])
    assert (found.type, found.uid, found.nsp) == (expected["type"], expected["uid"], expected["nsp"])
    if entry["step"] == "emit-float-special":
        expected["data"]["packet"]["data"][1:4] = [None, None, None]
    assert found.data == expected.get("data", {})


@pytest.mark.parametrize("entry", CLUSTER)
def test_what_we_send_in_the_same_situation_has_the_same_bytes(entry: dict[str, Any]) -> None:
    expected = plain(entry["decoded"]["message"], dates_as_text=False)
    if "data" not in expected:
        pytest.skip("heartbeats and goodbyes are the link's own")
    data = expected["data"]
    if expected["type"] == MessageType.BROADCAST:
        data = messages.broadcast(data["opts"], packet=data["packet"]["data"], request_id=data.get("requestId"))
    # As our own nodes send it, with keys that Node does not know and in another order.
    data = dict(reversed({**data, "ours": True}.items()))
    native = messages.encode(MessageType(expected["type"]), expected["uid"], expected["nsp"], data)
    assert as_sent(native) == bytes.fromhex(entry["frame_hex"])


NOT_IN_JSON = {"emit-float-special", "emit-date"}
"""What JSON writes in another way than msgpack does."""


@pytest.mark.parametrize("entry", [entry for entry in CLUSTER if entry.values[0]["name"] == "mesh/BROADCAST"])
def test_an_event_that_is_encoded_for_our_own_peers_has_the_same_bytes(entry: dict[str, Any]) -> None:
    if entry["step"] in NOT_IN_JSON:
        pytest.skip("JSON has another form for it")
    expected = plain(entry["decoded"]["message"])
    data, opts = expected["data"], expected["data"]["opts"]
    encoded = Packet(EVENT, data=data["packet"]["data"], namespace=expected["nsp"]).encode()
    parts = encoded if isinstance(encoded, list) else [encoded]
    ours = messages.broadcast(opts, encoded=parts, codec="json", request_id=data.get("requestId"))
    native = messages.encode(MessageType.BROADCAST, expected["uid"], expected["nsp"], ours)
    assert as_sent(native) == bytes.fromhex(entry["frame_hex"])


@pytest.mark.parametrize("entry", named("mesh/HELLO"))
def test_hello_has_the_recorded_bytes_and_is_taken(entry: dict[str, Any]) -> None:
    payload = entry["decoded"]["payload"]
    tokens = [payload["token"]] if "token" in payload else []
    recorded = bytes.fromhex(entry["frame_hex"])
    ours = link(payload["uid"], target=HIGH, address=payload["address"], tokens=tokens, namespaces=[])
    assert ours.outgoing() == frame(Opcode.BINARY, recorded, mask=True)
    node = Driven(link(HIGH, tokens=tokens))
    node.receive(frame(Opcode.BINARY, recorded, mask=True))
    assert node.protocol.peer == Identity(payload["uid"], payload["address"], is_nodejs=True)


@pytest.mark.parametrize("entry", named("discovery/register"))
def test_register_has_the_recorded_bytes(entry: dict[str, Any]) -> None:
    decoded = entry["decoded"]
    tokens = [decoded["token"]] if "token" in decoded else []
    recorded = bytes.fromhex(entry["frame_hex"])
    assert nodejs.register(decoded["serverId"], decoded["address"], tokens) == recorded
    found = discovery.parse_register(discovery.decode(recorded))
    assert (found.server_id, found.address, found.token) == (
        decoded["serverId"], decoded["address"], decoded.get("token", ""),
    )  # fmt: skip


@pytest.mark.parametrize("entry", named("discovery/update"))
def test_updates_are_read(entry: dict[str, Any]) -> None:
    roster = nodejs.read_update(discovery.decode(bytes.fromhex(entry["frame_hex"]), max_entries=100))
    assert roster.complete
    assert roster.servers == {server["serverId"]: server["address"] for server in entry["decoded"]["servers"]}


@pytest.mark.parametrize("entry", named("ws-close/"))
def test_recorded_close_frames_are_read(entry: dict[str, Any]) -> None:
    code, reason = entry["decoded"]["code"], entry["decoded"]["reason"]
    assert parse_close(bytes.fromhex(entry["frame_hex"])) == (code, reason)
    assert close_payload(code, reason) == bytes.fromhex(entry["frame_hex"])


@pytest.mark.parametrize("step", ["heartbeat", "INITIAL_HEARTBEAT-late-nsp", "ADAPTER_CLOSE-C"])
def test_heartbeats_and_goodbyes_have_the_recorded_bytes(step: str) -> None:
    for entry in RECORDED:
        if entry["step"] != step or "message" not in entry["decoded"]:
            continue
        message = entry["decoded"]["message"]
        node = linked(message["uid"], namespaces=[message["nsp"]])
        assert (b"\x01" + msgpack.packb({**message, "type": 1}, use_bin_type=True)) in node.said
        if message["type"] == MessageType.HEARTBEAT:
            node.tick(5.0)
        elif message["type"] == MessageType.ADAPTER_CLOSE:
            node.protocol.refuse(Refusal.LEAVING, "leaving")
        node.flush()
        assert bytes.fromhex(entry["frame_hex"]) in node.said


# ---------------------------------------------------------------------- values

FROM_NODE: list[tuple[str, Any, Any]] = [
    ("undefined is nil", None, None),
    ("text", "héllo € 😀", "héllo € 😀"),
    ("the largest safe integer", 2**53 - 1, 2**53 - 1),
    ("an integer of 64 bits", 2**64 - 1, 2**64 - 1),
    ("a float", 0.1, 0.1),
    ("infinity", math.inf, math.inf),
    ("a Buffer", b"\0\xff", b"\0\xff"),
    ("a Map, a Set, an ArrayBuffer", {}, {}),
    ("integer keys", {1: "a", -2: "b"}, {"1": "a", "-2": "b"}),
    ("a date of 32 bits", msgpack.Timestamp(1735689600), "2025-01-01T00:00:00.000Z"),
    ("a date of 64 bits", msgpack.Timestamp(1700000000, 123_000_000), "2023-11-14T22:13:20.123Z"),
    ("a date of 96 bits", msgpack.Timestamp(-1), "1969-12-31T23:59:59.000Z"),
    ("just before 1970", msgpack.Timestamp(-1, 999_000_000), "1969-12-31T23:59:59.999Z"),
    ("a leap day", msgpack.Timestamp(1709164800), "2024-02-29T00:00:00.000Z"),
    ("the first year", msgpack.Timestamp(-62167219200), "0000-01-01T00:00:00.000Z"),
    ("before the first year", msgpack.Timestamp(-62167219201), "-000001-12-31T23:59:59.000Z"),
    ("the first date of JavaScript", msgpack.Timestamp(-8_640_000_000_000), "-271821-04-20T00:00:00.000Z"),
    ("its last date", msgpack.Timestamp(8_640_000_000_000), "+275760-09-13T00:00:00.000Z"),
    ("no date", msgpack.Timestamp(8_640_000_000_001), None),
    ("an unknown extension", msgpack.ExtType(5, b"x"), {"type": 5, "data": b"x"}),
    ("all of it inside", [{"a": [msgpack.Timestamp(0)]}], [{"a": ["1970-01-01T00:00:00.000Z"]}]),
]


@pytest.mark.parametrize(("value", "expected"), [case[1:] for case in FROM_NODE], ids=[case[0] for case in FROM_NODE])
def test_values_from_node(value: Any, expected: Any) -> None:
    travelled = msgpack.unpackb(msgpack.packb(value), strict_map_key=False)
    assert from_node(travelled) == expected


@given(st.datetimes())
def test_dates_are_written_as_python_knows_them(date: datetime.datetime) -> None:
    since = date - datetime.datetime(1970, 1, 1)
    seconds = since.days * 86_400 + since.seconds
    ms = date.microsecond // 1000 * 1000
    whole = nodejs.date_text(seconds, ms * 1000)
    assert whole == date.replace(microsecond=ms).isoformat(timespec="milliseconds") + "Z"


def test_not_a_number_is_null_in_events_and_stays_elsewhere() -> None:
    opts: dict[str, Any] = {"rooms": [], "except": [], "flags": {}}
    packet = {"type": 2, "data": ["e", math.nan, [math.inf], {"a": -math.inf}, 1.5]}
    event = read_message(wire(MessageType.BROADCAST, {"opts": opts, "packet": packet}))
    assert event.data["packet"]["data"] == ["e", None, [None], {"a": None}, 1.5]
    answer = read_message(wire(MessageType.BROADCAST_ACK, {"requestId": "ab", "packet": math.nan}))
    assert math.isnan(answer.data["packet"])


@pytest.mark.parametrize("key", [True, None, b"key", 1.5])
def test_keys_that_no_javascript_object_has_are_refused(key: Any) -> None:
    with pytest.raises(MessageError):
        from_node({key: 1})


def test_half_of_a_surrogate_pair_becomes_the_replacement_character() -> None:
    packed = msgpack.packb({"requestId": "ab", "packet": "XXX"})
    whole = wire(MessageType.SERVER_SIDE_EMIT_RESPONSE, msgpack.unpackb(packed)).replace(b"XXX", b"\xed\xa0\x80")
    assert set(read_message(whole).data["packet"]) == {"\ufffd"}


TO_NODE: list[tuple[str, Any, Any]] = [
    ("plain values", [None, True, 1, 1.5, "a", b"b"], [None, True, 1, 1.5, "a", b"b"]),
    ("a tuple", (1, (2,)), [1, [2]]),
    ("unsafe integers as they are", 2**53 + 1, 2**53 + 1),
    ("64 bits", [2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
    ("more than 64 bits", [2**64, -(2**63) - 1], [float(2**64), float(-(2**63))]),
    ("more than a float holds", 10**400, math.inf),
    ("keys as in JSON", {1: 1, 1.5: 2, None: 4, "a": 5, b"b": 6}, {"1": 1, "1.5": 2, "null": 4, "a": 5, "b": 6}),
    ("booleans as keys", {True: 1, False: 2}, {"true": 1, "false": 2}),
    ("__proto__", {"__proto__": 1, "a": [{"__proto__": {}}]}, {"a": [{}]}),
    ("an extension", msgpack.ExtType(5, b"x"), {"type": 5, "data": b"x"}),
    ("a time of msgpack", msgpack.Timestamp(0), msgpack.Timestamp(0)),
]


@pytest.mark.parametrize(("value", "expected"), [case[1:] for case in TO_NODE], ids=[case[0] for case in TO_NODE])
def test_values_to_node(value: Any, expected: Any) -> None:
    assert to_node(value) == expected
    msgpack.packb(to_node(value))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_deep_values_are_refused_in_both_directions() -> None:
    assert from_node(nested(100)) == to_node(nested(100)) == nested(100)
    for convert in (from_node, to_node):
        with pytest.raises(MessageError):
            convert(nested(101))


# ---------------------------------------------------------------------- messages

OPTS = messages.options(["room"], ["sid"])


def wire(kind: int, data: Any, uid: str = LOW, nsp: str = "/") -> bytes:
    """A cluster message as a Node peer sends it, without its kind."""
    packed: bytes = msgpack.packb({"type": int(kind), "data": data, "uid": uid, "nsp": nsp})
    return packed


def test_rooms_mean_what_they_mean_in_node() -> None:
    def read(rooms: Any, exclude: Any) -> Any:
        data = {"opts": {"rooms": rooms, "except": exclude, "flags": {}}, "packet": {"type": 2, "data": ["e"]}}
        return read_message(wire(MessageType.BROADCAST, data)).data["opts"]

    assert read([42, "42"], [7])["rooms"] == [42, "42"]
    # One text is one room, not its letters.
    assert read("room", "other") == {"rooms": ["room"], "except": ["other"], "flags": {}}
    # null is a room that nobody is in; to python-socketio None would be everybody.
    assert read([None], []) == {"rooms": [NOBODY], "except": [], "flags": {}}
    assert read([None, "a"], [None, "b"]) == {"rooms": [NOBODY, "a"], "except": ["b"], "flags": {}}
    joined = read_message(wire(MessageType.SOCKETS_JOIN, {"opts": OPTS, "rooms": "room"}))
    assert joined.data["rooms"] == ["room"]


def test_our_room_of_everybody_is_no_room_to_node() -> None:
    translate = Translating()
    found = translate(MessageType.BROADCAST, messages.broadcast(messages.options([None, "a"]), packet=["e"]))
    assert found["data"]["opts"]["rooms"] == []
    assert translate(MessageType.BROADCAST, messages.broadcast(messages.options([], [None]), packet=["e"])) is None
    assert translate.reasons == ["BROADCAST: nobody is addressed"]


def test_what_node_cannot_count_is_fetched_and_counted_here() -> None:
    translate = Translating().translate
    question = messages.fetch_sockets(OPTS, "ab")
    for kind in (MessageType.COUNT_SOCKETS, MessageType.LIST_ROOMS):
        (found,) = translate(messages.encode(kind, LOW, "/", question))
        assert found.body == wire(MessageType.FETCH_SOCKETS, question)
    counted, plainly = (messages.sockets_join(OPTS, ["a"], request_id) for request_id in ("ab", None))
    bodies = [part.body for part in translate(messages.encode(MessageType.SOCKETS_JOIN, LOW, "/", counted))]
    assert bodies == [wire(MessageType.FETCH_SOCKETS, question), wire(MessageType.SOCKETS_JOIN, plainly)]

    sockets = [{"id": sid, "handshake": {}, "rooms": [sid, *rooms]} for sid, rooms in (("x", [1, "a"]), ("y", ["a"]))]
    answered = wire(MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": sockets})
    (answer,) = nodejs.read_message(answered)
    assert answer is not None
    assert nodejs.as_answer(MessageType.FETCH_SOCKETS, answer) is answer
    for kind in (MessageType.COUNT_SOCKETS, MessageType.SOCKETS_JOIN):
        assert nodejs.as_answer(kind, answer).data == messages.answer_count("ab", 2)
    assert dict(nodejs.as_answer(MessageType.LIST_ROOMS, answer).data["rooms"]) == {1: 1, "a": 2}


def test_messages_between_our_own_nodes_are_not_for_node() -> None:
    native = msgpack.packb({"type": MessageType.ANSWER.value, "data": {}, "uid": LOW, "nsp": "/"})
    translating = Translating()
    assert translating.translate(native) == []
    assert translating.reasons == []


def test_an_event_in_an_unknown_form_is_dropped_and_told() -> None:
    reasons: list[str] = []

    def read(codec: str, _encoded: list[Any]) -> list[Any]:
        raise ValueError(f"what is {codec}?")

    translate = Translator(LOW, read, reasons.append)
    data = messages.broadcast(OPTS, encoded=["2[]"], codec="own")
    assert translate(messages.encode(MessageType.BROADCAST, LOW, "/", data)) == []
    assert (translate.dropped, reasons) == (1, ["BROADCAST: what is own?"])


def test_a_message_for_many_node_peers_is_translated_once() -> None:
    reads = []

    def read(_codec: str, encoded: list[Any]) -> list[Any]:
        reads.append(encoded)
        return ["e"]

    translate = Translator(LOW, read, lambda _reason: None)
    message = messages.encode(MessageType.BROADCAST, LOW, "/", messages.broadcast(OPTS, encoded=["2[]"], codec="x"))
    assert translate(message) == translate(message)
    assert len(reads) == 1


def test_sockets_have_all_that_programs_on_node_expect() -> None:
    sockets = [{"id": "sid", "handshake": {"address": "::1", "query": {"a": "b"}}, "rooms": ["sid", 1], "ours": 1}]
    found = Translating()(MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": sockets, "last": True})
    (socket,) = found["data"]["sockets"]
    assert list(found["data"]) == ["requestId", "sockets"]
    assert list(socket) == ["id", "handshake", "rooms", "data"]
    assert list(socket["handshake"]) == [
        "headers", "time", "address", "xdomain", "secure", "issued", "url", "query", "auth",
    ]  # fmt: skip
    assert (socket["handshake"]["address"], socket["handshake"]["query"], socket["data"]) == ("::1", {"a": "b"}, {})


def kills_node(value: Any) -> bool:
    """Whether a message would end a Node process, or be lost there."""
    data = value.get("data")
    if value["type"] == MessageType.BROADCAST:
        return not (
            isinstance(data.get("opts"), dict)
            and isinstance(data["opts"].get("rooms"), list)
            and isinstance(data["opts"].get("except"), list)
            and isinstance(data["opts"].get("flags"), dict)
            and isinstance(data.get("packet"), dict)
            and isinstance(data["packet"].get("data"), list)
            and data.get("requestId", "") is not None
        )
    if value["type"] == MessageType.FETCH_SOCKETS_RESPONSE:
        return not (isinstance(data, dict) and isinstance(data.get("sockets"), list))
    if value["type"] == MessageType.SERVER_SIDE_EMIT:
        return not isinstance(data.get("packet"), list)
    return False


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
keys = st.text(max_size=3) | st.integers(-9, 9) | st.booleans() | st.none() | st.binary(max_size=2)
junk = st.recursive(
    scalars,
    lambda values: st.lists(values, max_size=6) | st.dictionaries(keys, values, max_size=4),
    max_leaves=8,
)
datas = st.fixed_dictionaries(
    {},
    optional={
        "opts": st.fixed_dictionaries(
            {"rooms": st.lists(scalars, max_size=3) | junk, "except": st.lists(scalars, max_size=3) | junk},
            optional={"flags": junk},
        )
        | junk,
        "rooms": junk,
        "packet": st.fixed_dictionaries({"type": st.just(2), "data": st.lists(junk, max_size=3)}) | junk,
        "encoded": st.lists(st.text(), max_size=2) | junk,
        "requestId": st.text(max_size=5) | junk,
        "sockets": st.lists(junk, max_size=2) | junk,
        "close": junk,
        "clientCount": junk,
    },
)


@given(st.sampled_from(list(MessageType)), datas)
def test_what_is_sent_never_harms_a_node_process(kind: MessageType, data: dict[str, Any]) -> None:
    found = Translating()(kind, data)
    if found is not None:
        assert not kills_node(found)
        read_back = msgpack.packb(found["data"], use_bin_type=True)
        assert b"__proto__" not in read_back or "__proto__" not in str(found)


@given(st.integers(0, 50) | junk, datas | junk)
def test_whatever_a_node_peer_sends_is_read_or_refused(kind: Any, data: Any) -> None:
    packed = msgpack.packb({"type": kind, "data": data, "uid": LOW, "nsp": "/"}, use_bin_type=True)
    try:
        found = read_message(packed)
    except MessageError:
        return
    assert isinstance(found, ClusterMessage)


def test_a_large_answer_of_node_is_read_in_small_steps() -> None:
    sockets = [{"id": f"s{n}", "handshake": {}, "rooms": [], "data": {"at": msgpack.Timestamp(n)}} for n in range(1000)]
    payload = wire(MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": sockets})
    *steps, message = nodejs.read_message(payload)
    assert steps == [None] * 50
    assert message is not None
    assert [sid for sid, _ in message.data["packed"]] == [f"s{n}" for n in range(1000)]
    assert messages.unpack_socket(message.data["packed"][1][1])["data"] == {"at": "1970-01-01T00:00:01.000Z"}


SOCKET = {"id": "s", "handshake": {}, "rooms": []}
BAD_SOCKETS: list[Any] = [None, 7, {}, [7], [{}], [{**SOCKET, "id": 7}], [SOCKET, None]]
BAD_ANSWERS: list[Any] = [
    None, 7, {}, {"requestId": "ab"}, {"sockets": []}, {"requestId": 7, "sockets": []},
    *({"requestId": "ab", "sockets": bad} for bad in BAD_SOCKETS),
    {"requestId": "ab", "sockets": [{**SOCKET, "rooms": 7}]}, {"requestId": "ab", "sockets": [{**SOCKET, True: 7}]},
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_ANSWERS)
def test_malformed_answers_of_node_are_refused(data: Any) -> None:
    payload = wire(MessageType.FETCH_SOCKETS_RESPONSE, data)
    with pytest.raises(MessageError):
        read_message(payload)


@given(st.integers(0, 200), st.binary(max_size=3))
def test_a_mangled_answer_of_node_is_read_or_refused(at: int, junk: bytes) -> None:
    whole = wire(MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": [SOCKET, SOCKET]})
    with contextlib.suppress(MessageError):
        read_message(whole[:at] + junk + whole[at + len(junk) :])
    with contextlib.suppress(MessageError):
        read_message(whole[:at] + junk)


def test_a_large_answer_to_node_is_put_together_of_pieces() -> None:
    sockets = [{**SOCKET, "id": f"s{n}", "data": {"__proto__": 1, "n": n}} for n in range(300)]
    packed = [nodejs.repack_socket(messages.pack_socket(socket)) for socket in sockets]
    (found,) = Translating().translate(nodejs.fetched_sockets(LOW, "/chat", "ab", packed))
    expected = Translating()(MessageType.FETCH_SOCKETS_RESPONSE, {"requestId": "ab", "sockets": sockets}, nsp="/chat")
    assert found.body == msgpack.packb(expected)
    assert not found.shows


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        read_message(data)


# ---------------------------------------------------------------------- the link


def link(
    uid: str = HIGH,
    *,
    target: str | None = None,
    address: str = "ws://127.0.0.1:4000",
    tokens: Any = (),
    namespaces: Any = ("/",),
    **options: Any,
) -> NodejsLinkProtocol:
    """A dialer if it has a target."""
    served = namespaces if callable(namespaces) else lambda: namespaces
    translate = Translator(uid, read_json, pytest.fail)
    return NodejsLinkProtocol(
        Identity(uid, address), tokens, translate, namespaces=served, now=0.0, target=target, **options
    )


class Driven:
    """A link whose owner takes every peer, and what came and went on it."""

    def __init__(self, protocol: NodejsLinkProtocol, session: Session | None = None) -> None:
        self.protocol = protocol
        self.session = session or Session(b"sessions", limit_bytes=1 << 20)
        self.events: list[Event] = []
        self.said: list[bytes] = []
        self.control: list[tuple[int, bytes]] = []
        self._sent = FrameDecoder(max_payload_bytes=1 << 27, require_mask=protocol.is_dialer)

    def receive(self, data: bytes, now: float = 0.0) -> None:
        for event in self.protocol.receive(data, now):
            self.events.append(event)
            if isinstance(event, Proven):
                self.protocol.accept(self.session, now)

    def hears(self, payload: bytes, now: float = 0.0) -> None:
        """One WebSocket message comes."""
        self.receive(frame(Opcode.BINARY, payload, mask=not self.protocol.is_dialer), now)

    def hears_message(self, kind: int, data: Any = None, uid: str = LOW, nsp: str = "/", now: float = 0.0) -> None:
        value = {"type": int(kind), "uid": uid, "nsp": nsp}
        self.hears(b"\1" + msgpack.packb(value if data is None else {**value, "data": data}), now)

    def tick(self, now: float) -> bool:
        self.protocol.next_tick()
        return self.protocol.tick(now, {})

    def flush(self) -> list[Any]:
        """Write all; returns the cluster messages in it."""
        written = []
        while data := self.protocol.outgoing():
            self._sent.feed(data)
            while (found := self._sent.next_frame()) is not None:
                if found[0] != Opcode.BINARY:
                    self.control.append((found[0], found[1]))
                    continue
                self.said.append(found[1])
                if found[1][0] == 1:
                    written.append(msgpack.unpackb(found[1][1:], strict_map_key=False))
        return written

    def kinds(self) -> list[tuple[int, str]]:
        return [(message["type"], message["nsp"]) for message in self.flush()]

    def received(self) -> list[ClusterMessage]:
        return [event for event in self.events if isinstance(event, ClusterMessage)]

    def namespaces(self) -> Any:
        """What the peer serves, as last told."""
        return [event.facts["namespaces"] for event in self.events if isinstance(event, Status)][-1]


HELLO = {"uid": LOW, "address": "ws://127.0.0.1:4001"}


def hello(**changes: Any) -> bytes:
    packed: bytes = b"\0" + msgpack.packb({key: item for key, item in {**HELLO, **changes}.items() if item != ()})
    return packed


def linked(uid: str = HIGH, *, session: Session | None = None, **options: Any) -> Driven:
    """A listener that a Node peer has dialled."""
    node = Driven(link(uid, **options), session)
    node.hears(hello(uid=LOW if uid != LOW else OTHER))
    node.flush()
    return node


def dialled(*, session: Session | None = None, **options: Any) -> Driven:
    """A dialer that its Node peer has answered."""
    node = Driven(link(LOW, target=HIGH, **options), session)
    node.flush()
    node.hears_message(MessageType.HEARTBEAT, uid=HIGH)
    return node


def test_two_ends_find_each_other_and_exchange_messages() -> None:
    one, two = Driven(link(LOW, target=HIGH)), Driven(link(HIGH))
    for session in (one.session, two.session):
        session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, LOW if session is one.session else HIGH, "/",
                                       {"packet": ["e", 1]}))  # fmt: skip
    while one.protocol.has_outgoing or two.protocol.has_outgoing:
        two.receive(one.protocol.outgoing())
        one.receive(two.protocol.outgoing())
    assert one.protocol.outgoing() == two.protocol.outgoing() == b""
    assert one.protocol.phase is two.protocol.phase is Phase.UP
    assert [event.data["packet"] for event in (*one.received(), *two.received())] == [["e", 1], ["e", 1]]
    assert one.namespaces() == two.namespaces() == ["/"]
    assert not one.session.has_outbox
    assert one.protocol.peer == Identity(HIGH, is_nodejs=True)


def test_dialer_says_nothing_of_worth_before_the_peer_has_spoken() -> None:
    node = Driven(link(LOW, target=HIGH, namespaces=["/", "/chat"]))
    node.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, LOW, "/", {"packet": ["secret"]}))
    assert node.kinds() == [(1, "/"), (1, "/chat")]
    assert node.protocol.phase is Phase.HELLO_SENT
    node.hears_message(MessageType.HEARTBEAT, uid=HIGH)
    assert node.kinds() == [(9, "/")]


def test_dialer_that_finds_another_peer_gives_up() -> None:
    node = Driven(link(LOW, target=HIGH))
    with pytest.raises(HandshakeError) as caught:
        node.hears_message(MessageType.HEARTBEAT, uid=OTHER)
    assert caught.value.code == Refusal.WRONG_PEER
    assert node.events == []


def test_acceptor_does_not_answer_hello_but_tells_its_namespaces() -> None:
    node = Driven(link(namespaces=["/", "/chat"]))
    node.hears(hello())
    assert node.kinds() == [(1, "/"), (1, "/chat")]
    assert node.protocol.peer == Identity(LOW, HELLO["address"], is_nodejs=True)


BAD_HELLOS: list[tuple[bytes, Refusal]] = [
    (b"", Refusal.PROTOCOL),
    (b"\0", Refusal.PROTOCOL),
    (b"\0\xc0", Refusal.PROTOCOL),
    (b"\2", Refusal.PROTOCOL),
    (b"\1" + msgpack.packb({"type": 2, "uid": LOW, "nsp": "/"}), Refusal.PROTOCOL),
    (hello(uid=()), Refusal.PROTOCOL),
    (hello(uid=7), Refusal.PROTOCOL),
    (hello(uid="emitter"), Refusal.PROTOCOL),
    (hello(uid=HIGH, token=TOKEN), Refusal.PROTOCOL),
    (hello(address=()), Refusal.PROTOCOL),
    (hello(address="http://a"), Refusal.PROTOCOL),
    (hello(address="ws://" + "a" * 300), Refusal.PROTOCOL),
    (hello(token=7), Refusal.PROTOCOL),
    (hello(token="x" * 600), Refusal.PROTOCOL),
    (hello(), Refusal.UNAUTHORIZED),
    (hello(token=TOKEN + "x"), Refusal.UNAUTHORIZED),
    (hello(token=TOKEN[:-1]), Refusal.UNAUTHORIZED),
]


@pytest.mark.parametrize(("payload", "code"), BAD_HELLOS)
def test_whoever_says_hello_in_the_wrong_way_is_refused(payload: bytes, code: Refusal) -> None:
    node = Driven(link(HIGH, tokens=[TOKEN, "an older token, also fine"]))
    with pytest.raises(HandshakeError) as caught:
        node.hears(payload)
    assert caught.value.code == code
    node.flush()
    status = 4401 if code is Refusal.UNAUTHORIZED else 1002
    assert [parse_close(payload)[0] for opcode, payload in node.control if opcode == Opcode.CLOSE] == [status]
    assert node.events == []


@pytest.mark.parametrize("token", [TOKEN, "an older token, also fine"])
def test_any_of_our_tokens_is_accepted_and_the_newest_is_sent(token: str) -> None:
    tokens = [TOKEN, "an older token, also fine"]
    node = Driven(link(HIGH, tokens=tokens))
    node.hears(hello(token=token))
    assert node.protocol.phase is Phase.UP
    dialer = Driven(link(LOW, target=HIGH, tokens=tokens))
    dialer.flush()
    assert msgpack.unpackb(dialer.said[0][1:])["token"] == TOKEN


def test_strangers_may_send_little() -> None:
    with pytest.raises(WebSocketError):
        Driven(link()).hears(hello(fill="x" * MAX_STRANGER_FRAME_BYTES))
    node = linked()
    node.hears_message(MessageType.SERVER_SIDE_EMIT, {"packet": ["e", "x" * 100_000]})
    assert len(node.received()) == 1


def test_each_message_is_a_websocket_message_of_its_own() -> None:
    node = linked()
    for number in range(2000):
        node.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e", number]}))
    found = node.flush()
    assert [message["data"]["packet"][1] for message in found] == list(range(2000))
    assert not node.session.has_outbox


def test_what_cannot_go_to_node_holds_up_nothing() -> None:
    node = linked()
    ours = msgpack.packb({"type": MessageType.ANSWER.value, "data": {"x": "y" * 1000}, "uid": HIGH, "nsp": "/"})
    for _ in range(100):
        node.session.append(ours)
    node.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e"]}))
    assert [message["type"] for message in node.flush()] == [9]
    node.session.append(ours)
    assert node.protocol.has_outgoing
    assert node.protocol.outgoing() == b""
    assert not node.session.has_outbox


def test_what_was_written_is_never_sent_again_and_what_waits_is() -> None:
    session = Session(b"sessions", limit_bytes=1 << 20)
    first = linked(session=session)
    for number in range(3):
        session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e", number]}))
    assert first.protocol.outgoing()
    assert session.has_outbox  # not before the kernel has it
    session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e", 3]}))
    first.protocol.close()
    session.detach()
    session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e", 4]}))
    second = Driven(link(HIGH), session)
    second.hears(hello())
    sent = [message["data"]["packet"][1] for message in second.flush() if message["type"] == 9]
    assert sent == [3, 4]
    assert (session.sent_lost, session.replayed, session.has_outbox) == (0, 0, False)


def test_losses_while_away_are_counted() -> None:
    session = Session(b"sessions", limit_bytes=1000)
    linked(session=session).protocol.close()
    session.detach()
    message = messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/", {"packet": ["e"]})
    for _ in range(100):
        session.append(message)
    linked(session=session)
    # An eighth is free again.
    assert session.sent_lost == 100 - 875 // len(message)


# -- heartbeats


def test_heartbeats_are_sent_for_each_namespace_in_time() -> None:
    served = ["/"]
    node = linked(namespaces=lambda: served, heartbeat_interval=60.0)
    assert node.protocol.next_tick() == 5.0
    assert node.tick(4.9)
    assert node.kinds() == []
    served.append("/new")
    assert node.tick(5.0)
    assert node.kinds() == [(1, "/new"), (2, "/")]
    assert (Opcode.PING, b"") in node.control
    node.receive(frame(Opcode.PONG, b"", mask=True), 6.0)
    served.remove("/")
    assert node.tick(10.0)
    assert node.kinds() == [(13, "/"), (2, "/new")]


def test_nobody_waits_for_us_in_a_namespace_that_we_do_not_serve() -> None:
    served = ["/"]
    node = linked(namespaces=lambda: served)
    questions: list[tuple[int, Any]] = [
        (MessageType.FETCH_SOCKETS, {"opts": OPTS, "requestId": "ab"}),
        (MessageType.SERVER_SIDE_EMIT, {"packet": ["e"], "requestId": "ab"}),
        (MessageType.BROADCAST, messages.broadcast(OPTS, packet=["e"], request_id="ab")),
    ]
    for kind, data in questions:
        node.hears_message(kind, data, nsp="/x")
    node.hears_message(MessageType.SERVER_SIDE_EMIT, {"packet": ["e"]}, nsp="/x")
    assert [message.type for message in node.received()] == [MessageType.SERVER_SIDE_EMIT]
    # What we say there makes Node count us in: it is taken back at once.
    node.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, HIGH, "/x", {"packet": ["e"]}))
    node.session.append(messages.encode(MessageType.BROADCAST_CLIENT_COUNT, HIGH, "/x", messages.client_count("a", 0)))
    assert node.kinds() == [(9, "/x"), (13, "/x"), (11, "/x")]
    served.append("/x")
    node.hears_message(*questions[0], nsp="/x")
    assert len(node.received()) == 2
    assert node.kinds() == [(1, "/x")]


def test_what_an_emitter_says_by_way_of_us_is_ours_to_node() -> None:
    inner = messages.encode(MessageType.SERVER_SIDE_EMIT, OTHER, "/chat", {"packet": ["e"]})
    relayed = msgpack.packb({"type": 41, "data": {"from": OTHER, "n": 1, "message": inner}, "uid": LOW, "nsp": "/chat"})
    (found,) = Translating().translate(relayed)
    assert found.body == wire(MessageType.SERVER_SIDE_EMIT, {"packet": ["e"]}, nsp="/chat")


def test_an_initial_heartbeat_is_answered_for_our_own_namespaces_once() -> None:
    node = linked(namespaces=["/"])
    for _ in range(100):
        node.hears_message(MessageType.INITIAL_HEARTBEAT, nsp="/")
        node.hears_message(MessageType.INITIAL_HEARTBEAT, nsp="/unknown")
    assert node.kinds() == [(2, "/")]


def test_namespaces_of_the_peer_come_and_go() -> None:
    node = linked()
    node.hears_message(MessageType.HEARTBEAT, nsp="/")
    node.hears_message(MessageType.SOCKETS_JOIN, {"opts": OPTS, "rooms": []}, nsp="/chat", now=4.0)
    assert node.namespaces() == ["/", "/chat"]
    node.hears_message(MessageType.BROADCAST_CLIENT_COUNT, {"requestId": "a", "clientCount": 0}, nsp="/x", now=5.0)
    assert node.namespaces() == ["/", "/chat"]
    # Anything that comes, even a PONG, is an occasion to see what was not heard of for too long.
    node.receive(frame(Opcode.PONG, b"", mask=True), 10.1)
    assert node.namespaces() == ["/chat"]
    node.hears_message(MessageType.ADAPTER_CLOSE, nsp="/chat", now=11.0)
    assert node.namespaces() == []
    node.hears_message(MessageType.HEARTBEAT, nsp="/chat", now=12.0)
    assert node.namespaces() == ["/chat"]


def test_the_namespaces_of_a_peer_are_bounded() -> None:
    node = linked()
    for number in range(3000):
        node.hears_message(MessageType.HEARTBEAT, nsp=f"/{number}")
    node.hears_message(MessageType.HEARTBEAT, nsp="/" + "x" * 1000)
    assert len(node.namespaces()) == 1024


def test_a_silent_peer_is_given_up_and_one_that_answers_pings_is_not() -> None:
    node = linked(heartbeat_timeout=10.0)
    node.tick(5.0)
    node.receive(frame(Opcode.PONG, b"", mask=True), 5.1)
    assert node.tick(10.0)
    assert node.tick(15.0)
    assert not node.tick(15.2)


def test_own_standstill_is_not_taken_for_the_peers() -> None:
    node = linked()
    node.protocol.next_tick()
    assert node.protocol.tick(60.0, {})


def test_a_peer_that_never_reads_costs_a_bounded_amount() -> None:
    node = linked()
    for second in range(0, 5000, 5):
        node.hears_message(MessageType.INITIAL_HEARTBEAT, now=float(second))
        assert node.tick(float(second))
    assert len(node.protocol.outgoing()) < 1000
    with pytest.raises(FrameError):
        node.receive(frame(Opcode.PING, b"", mask=True) * 100, 0.0)


# -- what is wrong


def test_malformed_messages_are_dropped_and_counted() -> None:
    node = linked()
    malformed = [
        b"", b"\x02", b"\x01", b"\x01\xc1", b"\x01\xc0", b"\x01\x80",
        b"\x01" + wire(3, None), b"\x01" + wire(3, {}), b"\x01" + wire(99, {}), b"\x01" + wire(40, {}),
        b"\x01" + wire(8, None), b"\x01" + wire(9, {"packet": None}), b"\x01" + wire(2, None) * 2,
        b"\x01" + wire(3, {"opts": {"rooms": 7, "except": [], "flags": {}}, "packet": {"type": 2, "data": ["e"]}}),
    ]  # fmt: skip
    for payload in malformed:
        node.hears(payload)
    assert node.protocol.undecodable == len(malformed)
    node.hears_message(MessageType.SERVER_SIDE_EMIT, {"packet": ["e"]}, uid=OTHER)
    assert node.protocol.spoofed == 1
    node.hears(hello())
    node.hears_message(MessageType.SERVER_SIDE_EMIT, {"packet": ["e"]})
    assert len(node.received()) == 1


def test_the_driver_hears_of_a_flood_of_malformed_messages() -> None:
    node = linked()
    node.receive(frame(Opcode.BINARY, b"\x01\xc1", mask=True) * 640)
    assert sum(type(event).__name__ == "Dropped" for event in node.events) == 10


@pytest.mark.parametrize("data", [b"\x82\x05ab", frame(Opcode.TEXT, b"{}", mask=True), b"\xc2\x85" + b"\0" * 9])
def test_what_is_no_frame_ends_the_link(data: bytes) -> None:
    with pytest.raises(WebSocketError):
        linked().receive(data)


def test_close_is_answered() -> None:
    node = dialled()
    payload = close_payload(1000, "transport-closed")
    node.receive(frame(Opcode.CLOSE, payload, mask=False))
    assert node.protocol.phase is Phase.CLOSED
    node.flush()
    assert node.control == [(Opcode.CLOSE, payload)]


def test_leaving_is_told_for_each_namespace() -> None:
    node = dialled(namespaces=["/", "/chat"])
    node.flush()
    node.protocol.refuse(Refusal.LEAVING, "leaving")
    assert node.kinds() == [(13, "/"), (13, "/chat")]
    assert node.control[-1] == (Opcode.CLOSE, close_payload(1000, "leaving"))
    node.protocol.refuse(Refusal.LEAVING, "leaving")
    assert node.protocol.outgoing() == b""


def test_owner_must_decide() -> None:
    protocol = link()
    with pytest.raises(RuntimeError):
        list(protocol.receive(frame(Opcode.BINARY, hello(), mask=True), 0.0))
    with pytest.raises(RuntimeError):
        link().accept(Session(b"sessions", limit_bytes=1), 0.0)
    assert repr(protocol) == f"<NodejsLinkProtocol {HIGH} <- {LOW} PROVEN>"


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=5), st.lists(st.integers(0, 50), max_size=5), st.booleans())
def test_only_declared_errors_come_out(payloads: list[bytes], sizes: list[int], is_up: bool) -> None:
    node = linked() if is_up else Driven(link())
    data = b"".join(frame(Opcode.BINARY, payload, mask=True) for payload in payloads) + b"".join(payloads)
    try:
        for piece in pieces(data, sizes):
            node.receive(piece)
    except RemoteError:
        node.protocol.outgoing()


# ---------------------------------------------------------------------- among other peers


def table_with(uid: str, *, is_nodejs: bool) -> PeerTable:
    """A table with one peer, which is linked."""
    table = PeerTable(HIGH, random.Random(1))
    table.roster("d", {uid: "ws://127.0.0.1:1"}, True, 0.0)
    protocol = link(HIGH) if is_nodejs else listener(HIGH).protocol
    protocol.peer = Identity(uid, is_nodejs=is_nodejs)
    protocol.phase = Phase.PROVEN
    if not isinstance(protocol, NodejsLinkProtocol):
        protocol._their_state = Session(b"sessions", limit_bytes=1).state()
        protocol.is_dialer = True
    table.link_up(protocol, protocol.peer, 1.0)
    return table


def test_a_node_peer_is_asked_about_what_it_serves_and_ours_about_everything() -> None:
    for is_nodejs in (False, True):
        table = table_with(LOW, is_nodejs=is_nodejs)
        (peer,) = table
        peer.namespaces = frozenset(["/"])
        assert table.reachable("/") == table.reachable() == table.serving("/") == [peer]
        assert table.reachable("/x") == ([] if is_nodejs else [peer])
        assert table.serving("/x") == []


def test_only_who_proves_it_takes_the_place_of_a_node_of_ours() -> None:
    claim = link(HIGH)
    claim.peer, claim.hello_at = Identity(LOW, is_nodejs=True), 5.0
    with pytest.raises(HandshakeError):
        table_with(LOW, is_nodejs=False).check_proven(claim, LOW)
    table_with(LOW, is_nodejs=True).check_proven(claim, LOW)
