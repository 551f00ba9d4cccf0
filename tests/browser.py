"""A browser that can misbehave: WebSocket and Engine.IO by hand, on a socket that somebody else has connected."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from typing import Any

from gevent_mesh.protocol.websocket import Opcode, parse_close

__all__ = ["Browser", "client_frame", "connect", "frame_start"]


def client_frame(opcode: int, payload: bytes, *, final: bool = True, mask: bool = True) -> bytes:
    """A frame as browsers send it."""
    header = frame_start(opcode, len(payload), final=final, mask=mask)
    if not mask:
        return header + payload
    key = os.urandom(4)
    size = len(payload)
    pad = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return header + key + (int.from_bytes(payload, "big") ^ pad).to_bytes(size, "big")


def frame_start(opcode: int, length: int, *, final: bool = True, mask: bool = True) -> bytes:
    """The header of a frame, as far as the length."""
    first, bit = opcode | (0x80 if final else 0), 0x80 if mask else 0
    if length < 126:
        return bytes([first, bit | length])
    if length < 0x10000:
        return bytes([first, bit | 126]) + struct.pack("!H", length)
    return bytes([first, bit | 127]) + struct.pack("!Q", length)


class Browser:
    """One connection.

    Args:
        sock: a connected socket, of Python or of gevent; it is closed with the block of a ``with``.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def upgrade(self, path: str = "/socket.io/?EIO=4&transport=websocket", version: str = "13") -> bytes:
        """Ask for the upgrade; returns the head of the answer."""
        lines = [
            f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Sec-WebSocket-Version: {version}", "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())
        head = b""
        while (line := self._file.readline()) not in (b"\r\n", b""):
            head += line
        return head

    def open(self) -> str:
        """Become a Socket.IO client; returns the sid of its Engine.IO session."""
        assert b" 101 " in self.upgrade()
        _, packet = self.receive()
        self.send("40")
        assert self.receive()[1].startswith(b"40")
        sid: str = json.loads(packet[1:])["sid"]
        return sid

    def emit(self, event: str, *arguments: Any) -> None:
        self.send("42" + json.dumps([event, *arguments]))

    def send(self, text: str) -> None:
        self.sock.sendall(client_frame(Opcode.TEXT, text.encode()))

    def receive(self) -> tuple[int, bytes]:
        """The next frame; (0, b"") when the connection is over."""
        try:
            head = self._file.read(2)
            if len(head) < 2:
                return 0, b""
            length = head[1]
            if length > 125:
                size = 2 if length == 126 else 8
                length = int.from_bytes(self._file.read(size), "big")
            return head[0] & 15, self._file.read(length)
        except ConnectionError:
            return 0, b""

    def close_code(self) -> int:
        """Read until the end; the code of the close frame, 0 if there was none."""
        code = 0
        while (found := self.receive()) != (0, b""):
            if found[0] == Opcode.CLOSE:
                code, _ = parse_close(found[1])
        return code

    def seconds_until_cut(self) -> float:
        """Wait for the end, without an answer to anything."""
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while self._file.read1(65536):
                pass
        return time.monotonic() - began


def connect(port: int, sockets: Any, receive_buffer: int = 0, seconds: float = 10.0) -> Browser:
    """Connect to a server of this machine.

    Args:
        sockets: the module `socket`, or gevent's.
        receive_buffer: the kernel's, in bytes; 0 leaves it as it is.
    """
    sock = sockets.socket()
    if receive_buffer:
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_buffer)
    sock.settimeout(seconds)
    sock.connect(("127.0.0.1", port))
    return Browser(sock)
