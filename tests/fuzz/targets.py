"""All that reads bytes of the network: one function for each, and the errors that may come out of it.

A target takes any bytes and raises nothing but what it declares. Where a part has states (a link before and after the
handshake), the first byte of the input says which one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import msgpack
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request

from gevent_mesh.errors import DialError, FrameError, HandshakeError, MeshError, MessageError, WebSocketError
from gevent_mesh.net.dialer import _answer, _check
from gevent_mesh.net.listener import Listener, _bind, _Handler, _Server
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol import discovery, frames, messages, nodejs
from gevent_mesh.protocol.address import parse_address
from gevent_mesh.protocol.frames import Auth, Heartbeat, Hello, batch_header, decode_frame, encode_frame
from gevent_mesh.protocol.link import Identity, Proven
from gevent_mesh.protocol.messages import ClusterMessage, MessageType, parse
from gevent_mesh.protocol.nodejs import NodejsLinkProtocol, Translator
from gevent_mesh.protocol.presence import PresenceTable
from gevent_mesh.protocol.presence_messages import check_presence
from gevent_mesh.protocol.relay import open_answer, open_message, open_question
from gevent_mesh.protocol.session import Session
from gevent_mesh.protocol.unpacking import DECODE, TOO_MANY_VALUES, read, read_all
from gevent_mesh.protocol.websocket import FrameDecoder, MessageDecoder, Opcode, frame, parse_close
from tests.fuzz.acting import act
from tests.protocol.support import HIGH, LOW, Side, connected, dialer, listener, wire
from tests.protocol.test_frames import EXAMPLES
from tests.protocol.test_messages import VALID

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One reader of bytes.

    Attributes:
        run: reads them.
        errors: what it may raise.
        seeds: makes inputs that are valid, or nearly so.
    """

    run: Callable[[bytes], object]
    errors: tuple[type[MeshError], ...]
    seeds: Callable[[], Iterator[bytes]]

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(*self.errors):
            self.run(data)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """As a connection may deliver them."""
    return (data[at : at + size] for at in range(0, len(data), size))


def split(data: bytes) -> Iterator[bytes]:
    """Several payloads in one input, each behind its length."""
    while len(data) > 2:
        end = 2 + int.from_bytes(data[:2], "big")
        yield data[2:end]
        data = data[end:]


def joined(*payloads: bytes) -> bytes:
    return b"".join(len(payload).to_bytes(2, "big") + payload for payload in payloads)


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def cluster_messages() -> Iterator[bytes]:
    for kind, data in VALID:
        yield pack({"type": int(kind), "uid": LOW, "nsp": "/", "data": data})


# ---------------------------------------------------------------------- frames


def websocket(data: bytes) -> None:
    """Frames of links and of discovery."""
    _decode(data, lambda: FrameDecoder(max_payload_bytes=1024, require_mask=data[:1] > b"\x7f"))


def browser(data: bytes) -> None:
    """Messages of the application's clients."""
    _decode(data, lambda: MessageDecoder(max_message_bytes=1024))


def _decode(data: bytes, decoder: Callable[[], FrameDecoder]) -> None:
    """It must make no difference how the bytes are cut into pieces."""
    size = 1 + data[0] % 16 if data else 1
    found, error = _messages(decoder(), pieces(data[1:], size))
    again, same_error = _messages(decoder(), [data[1:]])
    assert (found, str(error)) == (again, str(same_error))
    if error is not None:
        raise error
    for opcode, payload in found:
        assert len(payload) <= 1024
        if opcode == Opcode.CLOSE:
            parse_close(payload)


def _messages(decoder: FrameDecoder, parts: Iterable[bytes]) -> tuple[list[tuple[int, bytes]], WebSocketError | None]:
    messages = []
    try:
        for part in parts:
            decoder.feed(part)
            while (found := decoder.next_frame()) is not None:
                messages.append(found)
    except WebSocketError as error:
        return messages, error
    return messages, None


def websocket_seeds() -> Iterator[bytes]:
    for mask in (False, True):
        for payload in (b"", b"x" * 125, b"x" * 126, b"\x03\xe8why"):
            yield bytes((0x80 * mask + 3,)) + frame(Opcode.BINARY, payload, mask=mask)
        yield bytes((0x80 * mask,)) + frame(Opcode.CLOSE, b"\x03\xe8", mask=mask) + frame(Opcode.PING, b"p", mask=mask)
    yield b"\xff\x82\x84\x01\x02\x03\x04abcd"


def browser_seeds() -> Iterator[bytes]:
    key = b"\x01\x02\x03\x04"
    yield b"\x03" + frame(Opcode.TEXT, b"2[]", mask=True)
    yield b"\x03\x01\x82" + key + b"ab" + b"\x89\x80" + key + b"\x00\x81" + key + b"c" + b"\x80\x80" + key
    yield from websocket_seeds()


def link_frame(data: bytes) -> None:
    decoded = decode_frame(data)
    assert len(encode_frame(decoded)) <= len(data) + 4096


# ---------------------------------------------------------------------- upgrades


def answer(data: bytes) -> None:
    """What somebody answers to our upgrade request."""
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    handshake = WSConnection(ConnectionType.CLIENT)
    handshake.send(Request(host="127.0.0.1", target="/"))
    target = parse_address("ws://127.0.0.1:4000")
    _check(_answer(handshake, head, target), target, True)


def answer_seeds() -> Iterator[bytes]:
    lines = [
        b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade", b"Mesh-Protocol: 1",
        b"Sec-WebSocket-Accept: AgHyCiWEw3I6scwtmRJEw4ZLd18=", b"Content-Length: 5",
    ]  # fmt: skip
    yield b"\r\n".join(lines)
    yield from (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0", b"HTTP/1.0 200", b"HTTP/1.1 100 Continue", b"")


class _Deaf:
    """A transport whose other end is not interested."""

    def sendall(self, data: bytes) -> None:
        pass


@cache
def _server() -> _Server:
    listener = Listener("127.0.0.1", 0, on_websocket=lambda *_: None, require_mesh_header=True)
    return _Server(_bind("127.0.0.1", 0), listener, listener._http_app)


def request(data: bytes) -> None:
    """What somebody asks a listener for."""
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    handler = _Handler(cast(Transport, _Deaf()), ("127.0.0.1", 1), _server(), io.BytesIO(head))
    handler.handle()
    assert handler.refused != "crashed"


def request_seeds() -> Iterator[bytes]:
    lines = [
        b"GET / HTTP/1.1", b"Host: x", b"Upgrade: websocket", b"Connection: keep-alive, Upgrade", b"Mesh-Protocol: 1",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    yield b"\r\n".join(lines)
    yield b"\r\n".join([*lines, b"Origin: http://x", b"Expect: 100-continue", b"Transfer-Encoding: chunked"])
    yield b"\r\n".join([*lines[:-1], b"Sec-WebSocket-Version: 8", b"Content-Length: -5"])
    yield from (
        b"GET /healthz HTTP/1.1\r\nHost: x",
        b"HEAD /x?y HTTP/1.0",
        b"POST * HTTP/1.1",
        b"GET http://[ HTTP/9.9",
    )


# ---------------------------------------------------------------------- links


def link(data: bytes) -> None:
    """A link of ours, as a stranger meets it from either side, or as a peer does."""
    state, data = data[:1], data[1:]
    if state < b"\x40":
        side = listener()
    elif state < b"\x80":
        side = dialer()
        side.protocol.outgoing()
    else:
        side = connected()[1]
    _feed(side, data, masks=not side.protocol.is_dialer)


def _feed(side: Side, data: bytes, *, masks: bool) -> None:
    for payload in split(data):
        side.receive(frame(Opcode.BINARY, payload, mask=masks), 1.0)
        side.protocol.outgoing()
    side.protocol.tick(2.0, {"clients": 1})
    side.protocol.outgoing()
    if side.error is not None:
        raise side.error


def link_seeds() -> Iterator[bytes]:
    hello = next(found for found, _ in EXAMPLES if isinstance(found, Hello))
    for state in (b"\x00", b"\x40", b"\x80"):
        for found, _ in EXAMPLES:
            yield state + joined(encode_frame(found))
    yield b"\x00" + joined(encode_frame(hello), encode_frame(Auth((b"p" * 32,))))
    beat = {"clients": 1, "namespaces": ["/"], "sent_at": 5, "echo": 4, "held": 1}
    yield b"\x80" + joined(encode_frame(Heartbeat(0, beat)), encode_frame(frames.Gap(3, 2)))


def batch(data: bytes) -> None:
    """What a peer sends in a BATCH."""
    side = connected()[1]
    side.receive(wire(frames.Batch(1, 0, data), mask=True))
    if side.error is not None:
        raise side.error
    for found in side.of_type(ClusterMessage):
        # What a handler of ours would do with it.
        assert type(found.type) is MessageType
        assert found.uid == LOW


def batch_seeds() -> Iterator[bytes]:
    yield from cluster_messages()
    yield b"".join(cluster_messages())


# ---------------------------------------------------------------------- messages


def message(data: bytes) -> None:
    parse(read(data, **DECODE))


def values(data: bytes) -> None:
    """Two ways to read the same: they must agree."""
    found = list(read_all(data))
    if len(found) == 1 and found[0] is not TOO_MANY_VALUES:
        assert repr(read(data, **DECODE)) == repr(found[0])


def emitter(data: bytes) -> None:
    opening = (lambda packed: open_message(packed, LOW), lambda packed: open_question(packed, LOW), open_answer)
    opening[data[0] % 3 if data else 0](data[1:])


def emitter_seeds() -> Iterator[bytes]:
    for number in range(3):
        for packed in cluster_messages():
            yield bytes((number,)) + packed


def socket(data: bytes) -> None:
    messages.unpack_socket(data)


def socket_seeds() -> Iterator[bytes]:
    yield pack({"id": "a", "handshake": {"address": "127.0.0.1"}, "rooms": ["a", 1, ["b", 2]], "data": {"k": b"v"}})


def presence(data: bytes) -> None:
    """What nodes say of who is online: checked, and taken."""
    table = PresenceTable(HIGH)
    for payload in split(data):
        found = read(payload, **DECODE)
        if type(found) is not dict:
            raise MessageError("not a map")
        check_presence(found)
        table.take(LOW, found, 1.0)
        table.settle(1000)
        assert len(table) == len(table.users())


def presence_seeds() -> Iterator[bytes]:
    told = [data for kind, data in VALID if kind is MessageType.PRESENCE]
    for data in told:
        yield joined(pack(data))
    yield joined(*map(pack, told))


# ---------------------------------------------------------------------- discovery


def discovery_message(data: bytes) -> None:
    """What a discovery server reads of strangers, or a client of a server."""
    limit = discovery.MAX_MESSAGE_ENTRIES if data[:1] > b"\x7f" else 4
    found = discovery.decode(data[1:], max_entries=limit)
    readers: dict[str, Callable[[Any], object]] = {
        "register": discovery.parse_register,
        "challenge": discovery.parse_challenge,
        "welcome": discovery.parse_welcome,
        "roster": discovery.parse_roster,
        "delta": discovery.parse_delta,
        "update": nodejs.read_update,
    }
    if found["type"] in readers:
        readers[found["type"]](found)


def discovery_seeds() -> Iterator[bytes]:
    servers = {"0" * 16: "ws://10.0.0.1:4000", "name": "wss://[::1]:1/x"}
    challenge = discovery.Challenge(b"n" * 32, "i" * 16)
    keys = discovery.DiscoveryKeys(["a token that is long enough"])
    proofs = keys.client_proofs(challenge, b"c" * 32, "0" * 16, "ws://10.0.0.1:4000")
    register = discovery.Register(
        "0" * 16, "ws://10.0.0.1:4000", nonce=b"c" * 32, proofs=proofs, secret=b"s" * discovery.SECRET_BYTES
    )
    for found in (
        register.encode(),
        nodejs.register("0" * 16, "ws://10.0.0.1:4000", ["token"]),
        challenge.encode(),
        discovery.Welcome(b"p" * 32, 30.0, "i" * 16).encode(),
        discovery.roster("i" * 16, 7, True, servers),
        discovery.delta("i" * 16, 8, False, servers, ["gone"]),
        discovery.update(servers),
    ):
        yield b"\x00" + found
        yield b"\xff" + found


def address(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_address(data.decode("utf-8", "surrogateescape"))


def address_seeds() -> Iterator[bytes]:
    yield from (b"ws://10.0.0.1:4000", b"wss://[::1]:1/a?b", b"ws://user@host:0", b"ws://a:99999", b"http://a")


# ---------------------------------------------------------------------- Node peers


def nodejs_link(data: bytes) -> None:
    """A link to a Node peer, from either side."""

    def no_packet(_codec: str, encoded: list[Any]) -> list[Any]:
        return encoded

    protocol = NodejsLinkProtocol(
        Identity(HIGH, f"ws://{HIGH}:4000"),
        ("a token that is long enough",),
        Translator(HIGH, no_packet, lambda _reason: None),
        namespaces=lambda: ["/"],
        now=0.0,
        target=LOW if data[:1] > b"\x7f" else None,
    )
    session = Session(b"nodejsno", limit_bytes=1 << 20)
    for payload in split(data[1:]):
        for found in protocol.receive(frame(Opcode.BINARY, payload, mask=not protocol.is_dialer), 1.0):
            if isinstance(found, Proven):
                protocol.accept(session, 1.0)
        protocol.outgoing()


def nodejs_seeds() -> Iterator[bytes]:
    hello = b"\x00" + pack({"uid": LOW, "address": "ws://10.0.0.1:4000", "token": "a token that is long enough"})
    for packed in cluster_messages():
        yield b"\xff" + joined(b"\x01" + packed)
        yield b"\x00" + joined(hello, b"\x01" + packed)
    sockets = {"requestId": "ab", "sockets": [{"id": "a", "handshake": {}, "rooms": ["a"], "data": None}]}
    yield b"\xff" + joined(b"\x01" + pack({"type": 8, "data": sockets, "uid": LOW, "nsp": "/"}))


def acting(data: bytes) -> None:
    """A node with clients, which acts on what a peer, or an emitter, says."""
    act(data[1:], is_emitter=data[:1] > b"\x7f")


def converted() -> Iterator[bytes]:
    """Events in another form than that of the node's clients."""
    event = {"type": 2, "nsp": "/", "data": ["event", 1, {"_placeholder": True, "num": 0}], "id": 1}
    opts = messages.options()
    for data in (
        messages.broadcast(opts, encoded=[pack(event)], codec="msgpack"),
        messages.broadcast(opts, encoded=[pack(event)], codec="msgpack", request_id="ab"),
        messages.broadcast(opts, encoded=['51-["event",{"_placeholder":true,"num":0}]', b"bin"], request_id="ab"),
        messages.broadcast(opts, encoded=["2[]"], codec="own"),
    ):
        yield pack({"type": int(MessageType.BROADCAST), "uid": LOW, "nsp": "/", "data": data})


def acting_seeds() -> Iterator[bytes]:
    for packed in (*cluster_messages(), *converted()):
        yield b"\x00" + packed
    for packed in cluster_messages():
        inner = {"n": 1, "message": packed}
        yield b"\xff" + pack({"type": int(MessageType.PUBLISH), "uid": LOW, "nsp": "/", "data": inner})
        inner = {"requestId": "ab", "timeout": 1, "message": packed}
        yield b"\xff" + pack({"type": int(MessageType.ASK), "uid": LOW, "nsp": "/", "data": inner})
        inner = {"from": "0" * 16, "n": 1, "message": packed.replace(LOW.encode(), b"0" * 16)}
        yield b"\x00" + pack({"type": int(MessageType.RELAY), "uid": LOW, "nsp": "/", "data": inner})


def frame_seeds() -> Iterator[bytes]:
    yield from (encode_frame(found) for found, _ in EXAMPLES)
    yield batch_header(1, 0)


TARGETS: dict[str, Target] = {
    "websocket": Target(websocket, (WebSocketError,), websocket_seeds),
    "browser": Target(browser, (WebSocketError,), browser_seeds),
    "frame": Target(link_frame, (FrameError,), frame_seeds),
    "answer": Target(answer, (DialError,), answer_seeds),
    "request": Target(request, (), request_seeds),
    "link": Target(link, (FrameError, HandshakeError, WebSocketError), link_seeds),
    "batch": Target(batch, (FrameError,), batch_seeds),
    "message": Target(message, (MessageError,), cluster_messages),
    "values": Target(values, (FrameError,), batch_seeds),
    "emitter": Target(emitter, (MessageError,), emitter_seeds),
    "socket": Target(socket, (MessageError,), socket_seeds),
    "presence": Target(presence, (MessageError,), presence_seeds),
    "discovery": Target(discovery_message, (MessageError,), discovery_seeds),
    "address": Target(address, (), address_seeds),
    "nodejs": Target(nodejs_link, (FrameError, HandshakeError, WebSocketError), nodejs_seeds),
    "acting": Target(acting, (FrameError,), acting_seeds),
}
