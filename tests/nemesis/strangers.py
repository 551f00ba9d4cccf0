"""Strangers who knock at a node's door: each kind is a function that is given a connection."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import TypeVar

import msgpack

from gevent_mesh.protocol import discovery as wire
from gevent_mesh.protocol import frames
from gevent_mesh.protocol.frames import Auth, Challenge, Hello, Role, SessionState, decode_frame, encode_frame
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, frame
from tests.integration.processes import Discovery, Node
from tests.nemesis.faults import MIB

T = TypeVar("T", bound="Stranger")

__all__ = [
    "STRANGERS",
    "Mirror",
    "Stranger",
    "garbage",
    "half_a_request",
    "hello_and_silence",
    "register",
    "silence",
    "silence_after_upgrade",
]


class Stranger:
    """Somebody who knows a port and our protocol, step by step."""

    def __init__(self, node: Node | Discovery) -> None:
        self.uid = node.uid if isinstance(node, Node) else ""
        port = node.ws_port if isinstance(node, Node) else node.port
        self._take(socket.create_connection(("127.0.0.1", port), timeout=10), is_client=True)

    def _take(self, sock: socket.socket, *, is_client: bool) -> None:
        self.sock = sock
        self.heard = b""
        self._is_client = is_client
        self._frames = FrameDecoder(max_payload_bytes=MIB, require_mask=not is_client)

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def upgrade(self, *headers: str, path: str = "/", mesh: bool = True) -> bytes:
        """Ask for the upgrade; returns the head of the answer."""
        extra = [*(["Mesh-Protocol: 1"] if mesh else []), *headers]
        lines = [
            f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", *extra, "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())
        return self._read_head()

    def _read_head(self) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._recv()
            if not data:
                return head
            head += data
        head, _, behind = head.partition(b"\r\n\r\n")
        self._frames.feed(behind)
        return head

    def _recv(self) -> bytes:
        data = self.sock.recv(4096)
        self.heard += data
        return data

    def send(self, payload: bytes) -> None:
        self.sock.sendall(frame(Opcode.BINARY, payload, mask=self._is_client))

    def receive(self) -> bytes:
        while (found := self._frames.next_frame()) is None:
            data = self._recv()
            assert data, "closed"
            self._frames.feed(data)
        return found[1]

    def hello(self, uid: str = "00000000000000aa", target: str = "", role: Role = Role.NODE) -> bytes:
        state = SessionState(b"s" * 8, b"", 0)
        # The version, address and so on of an honest node.
        return encode_frame(Hello(1, uid, "ws://127.0.0.1:9", target, os.urandom(32), role, "socketio", "json", state))

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
            while self._recv():
                pass
        return time.monotonic() - began


class Mirror(Stranger):
    """A listener that nodes are led to."""

    def __init__(self) -> None:
        self.uid = ""
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.settimeout(10)
        self.address = f"ws://127.0.0.1:{self.sock.getsockname()[1]}"

    def accept(self) -> None:
        """Take one connection, and listen no more."""
        with self.sock as listening:
            self._take(listening.accept()[0], is_client=False)
        self.sock.settimeout(10)
        key = re.findall(rb"(?i)sec-websocket-key: *(\S+)", self._read_head())[0]
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        lines = [
            "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", "Mesh-Protocol: 1",
            f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}", "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())


def register(stranger: Stranger, uid: str, address: str, token: str) -> None:
    """Have a discovery server name an address."""
    stranger.upgrade()
    challenge = wire.parse_challenge(wire.decode(stranger.receive()))
    nonce = os.urandom(wire.NONCE_BYTES)
    proofs = wire.DiscoveryKeys([token]).client_proofs(challenge, nonce, uid, address)
    secret = os.urandom(wire.SECRET_BYTES)
    stranger.send(wire.Register(uid, address, nonce=nonce, proofs=proofs, secret=secret).encode())
    wire.parse_welcome(wire.decode(stranger.receive()))


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
    stranger.send(stranger.hello(uid=stranger.uid))


def origin(stranger: Stranger) -> None:
    assert b" 403 " in stranger.upgrade("Origin: http://127.0.0.1")


def wrong_path(stranger: Stranger) -> None:
    assert b" 404 " in stranger.upgrade(path="/socket.io/")


def no_mesh_header(stranger: Stranger) -> None:
    assert b" 426 " in stranger.upgrade(mesh=False)


def text_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(frame(Opcode.TEXT, b"hello", mask=True))


def fragment(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(b"\x02\x84\0\0\0\0abcd" + b"\x80\x84\0\0\0\0abcd")


def unmasked_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(frame(Opcode.BINARY, stranger.hello(), mask=False))


def reserved_bits(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.sock.sendall(b"\xf2" + frame(Opcode.BINARY, stranger.hello(), mask=True)[1:])


def half_a_frame(stranger: Stranger) -> None:
    stranger.upgrade()
    hello = frame(Opcode.BINARY, stranger.hello(), mask=True)
    stranger.sock.sendall(hello[: len(hello) // 2])
    stranger.sock.shutdown(socket.SHUT_WR)


STRANGERS: list[Callable[[Stranger], None]] = [
    garbage, silence, half_a_request, endless_headers, silence_after_upgrade, endless_pings, hello_and_silence,
    huge_frame, random_frame, junk_in_hello, wrong_types_in_hello, deep_nesting_in_hello, wrong_token, no_token,
    batch_without_handshake, wrong_target, its_own_uid, origin, wrong_path, no_mesh_header, text_frame, fragment,
    unmasked_frame, reserved_bits, half_a_frame,
]  # fmt: skip
