"""Members of a discovery server for tests: one as the Node package makes them, byte for byte, and one of our own."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import gevent
import msgpack
from gevent import socket

from gevent_mesh.net.dialer import dial
from gevent_mesh.protocol import discovery as wire
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, frame, frame_header, parse_close

__all__ = ["NODE_FRAMES", "Closed", "NodeMember", "OurMember", "http_get"]

#: Recorded from socket.io-mesh-adapter 2.0.0 with ws 8.20.0; the port in Host is the only thing put in.
NODE_UPGRADE = (
    "GET / HTTP/1.1\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: /i6W1WNfvxe/3UY7h6nu9A==\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nHost: 127.0.0.1:{port}\r\n\r\n"
)
NODE_ACCEPT = b"sec-websocket-accept: aghyciwew3i6scwtmrjew4zld18="

_REGISTER = "a474797065a87265676973746572a87365727665724964b0"
_UPDATE = "82a474797065a6757064617465a77365727665727391"
NODE_FRAMES = {
    "register A": f"83{_REGISTER}37313262323531346133303339383532a761646472657373"
    "b377733a2f2f3132372e302e302e313a34323130",
    "register B": f"83{_REGISTER}65346264663231363961393164303831a761646472657373"
    "b377733a2f2f3132372e302e302e313a34323131",
    "update A": f"{_UPDATE}82a87365727665724964b037313262323531346133303339383532a761646472657373"
    "b377733a2f2f3132372e302e302e313a34323130",
    "update A B": f"{_UPDATE[:-1]}282a87365727665724964b037313262323531346133303339383532a761646472657373"
    "b377733a2f2f3132372e302e302e313a3432313082a87365727665724964b065346264663231363961393164303831"
    "a761646472657373b377733a2f2f3132372e302e302e313a34323131",
    "register with token s3cret": f"84{_REGISTER}61613339323537666363356566333065a761646472657373"
    "b377733a2f2f3132372e302e302e313a34323330a5746f6b656ea6733363726574",
    "update after token": f"{_UPDATE}82a87365727665724964b061613339323537666363356566333065a761646472657373"
    "b377733a2f2f3132372e302e302e313a34323330",
    "register with token wrong": f"84{_REGISTER}62326237613631353632383937356437a761646472657373"
    "b377733a2f2f3132372e302e302e313a34313332a5746f6b656ea577726f6e67",
    "close unauthorized": "1131756e617574686f72697a6564",
    "close by client": "03e8636c69656e742d636c6f73696e67",
}

_SECONDS = 5.0


class Closed(Exception):
    """The server closed; holds its code and reason, (1006, "") when it closed without a word."""


class _Member:
    """What both kinds have in common: frames under a deadline."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._frames = FrameDecoder(max_payload_bytes=1 << 24, require_mask=False)
        self.pings = 0
        self.closed_with = b""

    def __del__(self) -> None:
        # Many tests look at a member only while it is there.
        with contextlib.suppress(AttributeError):
            self._sock.close()

    def receive(self, seconds: float = _SECONDS) -> bytes:
        """The next binary message. PINGs are answered."""
        with gevent.Timeout(seconds, AssertionError(f"no message within {seconds} s")):
            while True:
                item = self._frames.next_frame()
                if item is None:
                    self._frames.feed(self._more())
                    continue
                opcode, payload = item
                if opcode == Opcode.BINARY:
                    return payload
                if opcode == Opcode.PING:
                    self.pings += 1
                    with contextlib.suppress(ConnectionError):
                        self.send_frame(Opcode.PONG, payload)
                if opcode == Opcode.CLOSE:
                    self.closed_with = payload
                    raise Closed(*parse_close(payload))

    def receive_map(self, seconds: float = _SECONDS) -> dict[str, Any]:
        message: dict[str, Any] = msgpack.unpackb(self.receive(seconds))
        return message

    def closing(self, seconds: float = _SECONDS) -> tuple[int, str]:
        """Wait for the end; messages before it are dropped."""
        try:
            with gevent.Timeout(seconds, AssertionError(f"not closed within {seconds} s")):
                while True:
                    self.receive(seconds)
        except Closed as closed:
            return closed.args[0], closed.args[1]

    def answer_pings(self) -> gevent.Greenlet:
        """Stay a healthy member in the background."""
        return gevent.spawn(self.closing, 60.0)

    def send_frame(self, opcode: int, payload: bytes) -> None:
        raise NotImplementedError

    def _more(self) -> bytes:
        raise NotImplementedError


class NodeMember(_Member):
    """A client as the Node package's: plain upgrade, random masks, no challenge."""

    def __init__(self, port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS)
        super().__init__(sock)
        sock.sendall(NODE_UPGRADE.format(port=port).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(4096)
            if not data:
                raise Closed(1006, "")
            head += data
        self.head, _, behind = head.partition(b"\r\n\r\n")
        self._frames.feed(behind)

    def send_frame(self, opcode: int, payload: bytes) -> None:
        key = os.urandom(4)
        masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
        self.send_raw(frame_header(opcode, len(payload), mask=True)[:-4] + key + masked)

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def send(self, payload: bytes) -> None:
        self.send_frame(Opcode.BINARY, payload)

    def register(self, server_id: str, address: str, **extra: Any) -> None:
        self.send(msgpack.packb({"type": "register", "serverId": server_id, "address": address, **extra}))

    def servers(self, seconds: float = _SECONDS) -> dict[str, str]:
        """The roster of the next update."""
        update = self.receive_map(seconds)
        assert list(update) == ["type", "servers"]
        assert update["type"] == "update"
        return {server["serverId"]: server["address"] for server in update["servers"]}

    def leave(self) -> None:
        self._sock.close()

    def _more(self) -> bytes:
        try:
            data: bytes = self._sock.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise Closed(1006, "")
        return data


class OurMember(_Member):
    """A client of our own kind, step by step, so that each step can be wrong."""

    def __init__(self, port: int, tokens: tuple[str, ...] = ()) -> None:
        super().__init__(dial(f"ws://127.0.0.1:{port}"))
        self.challenge = wire.parse_challenge(self.receive_map())
        self.keys = wire.DiscoveryKeys(tokens)
        self.sent: wire.Register | None = None

    def send_frame(self, opcode: int, payload: bytes) -> None:
        self.send_raw(frame(opcode, payload, mask=True))

    def send_raw(self, data: bytes) -> None:
        self._sock.send(data)

    def register(self, server_id: str, address: str, *, role: Any = "node", secret: bytes = b"s" * 16) -> None:
        nonce = os.urandom(32)
        proofs = self.keys.client_proofs(self.challenge, nonce, server_id, address)
        self.sent = wire.Register(server_id, address, role, nonce, proofs, secret)
        self.send_frame(Opcode.BINARY, self.sent.encode())

    def welcomed(self) -> wire.Roster:
        """Take the welcome, check it, and take the roster."""
        assert self.sent is not None
        welcome = wire.parse_welcome(self.receive_map())
        assert self.keys.is_server(self.challenge, self.sent, welcome)
        return self.roster()

    def roster(self) -> wire.Roster:
        return wire.parse_roster(self.receive_map())

    def delta(self, seconds: float = _SECONDS) -> wire.Delta:
        return wire.parse_delta(self.receive_map(seconds))

    def leave(self) -> None:
        self._sock.abort()

    def _more(self) -> bytes:
        data: bytes = self._sock.recv()
        if not data:
            raise Closed(1006, "")
        return data


def http_get(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str, str]:
    """One request; the status, the head in lower case, and the body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), head.lower(), body
