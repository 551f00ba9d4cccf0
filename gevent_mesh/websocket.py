"""The WebSocket of one client of the application: read within a limit, and written to by one greenlet at a time.

It stands in for gevent-websocket's own, which reads as much as is announced, undoes masks byte by byte, takes unmasked
frames, and lets a PONG go out in the middle of another frame.

Rules:

- A message that is too large is refused on the header that makes it so, before a byte of that frame is read.
- Whoever breaks a rule is told which by a close frame, is given a moment to read it, and is read no further.
- PINGs are answered by the reader: a client that sends them and reads nothing is not read from any more either.
- A reader that never has to wait gives way all the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.lock import Semaphore
from gevent.pywsgi import Input
from geventwebsocket import exceptions
from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD, WebSocket

from .errors import WebSocketError
from .net.pause import SLICE_SECONDS, give_way, slice_behind_read
from .net.transport import Transport
from .protocol.websocket import MessageDecoder, Opcode, close_payload, frame, parse_close

__all__ = ["BoundedWebSocket", "has_no_body"]

_READ_BYTES = 64 * 1024
_CLOSE_SECONDS = 1.0
"""How long a close frame may take on its way, and how long whoever was refused is waited for."""

_NORMAL = 1000
_PROTOCOL_ERROR = 1002
_NEVER_SENT = {1004, 1006, 1015}
_NOT_UTF8 = 1007


def has_no_body(body: Any) -> None:
    """Whatever the request that was upgraded announces: else pywsgi would look for that where the WebSocket was."""
    if isinstance(body, Input):
        body.content_length, body.chunked_input = 0, False


class BoundedWebSocket(WebSocket):  # type: ignore[misc]  # gevent-websocket ships no types
    """A WebSocket that a browser cannot fill memory through. One greenlet receives; any may send and close.

    Args:
        upgraded: gevent-websocket's own, from which nothing has been read yet. It is of no use any more.
        max_message_bytes: the largest message that is taken.

    Attributes:
        transport: its connection.
        refused: what the client did wrong, when that has ended the connection.
    """

    def __init__(self, upgraded: WebSocket, max_message_bytes: int) -> None:
        super().__init__(upgraded.environ, upgraded.stream, upgraded.handler)
        self.closed = False
        # Else it would send a close frame when it is deleted, in the middle of ours.
        upgraded.closed = True
        # And would make a class for that, which is garbage at once, and of a kind that is costly to collect.
        upgraded.handler = None
        has_no_body(self.handler.wsgi_input)
        self.transport = Transport(self.handler.socket, is_client=False)
        self.refused: WebSocketError | None = None
        self._read: Callable[[int], bytes] = self._read_first
        self._decoder = MessageDecoder(max_message_bytes=max_message_bytes)
        self._writing = Semaphore(1)
        self._slice_ends = 0.0

    def __del__(self) -> None:
        """gevent-websocket's would close, and wait for it."""

    @property
    def max_message_bytes(self) -> int:
        """The largest message that is taken."""
        return self._decoder.max_payload_bytes

    @max_message_bytes.setter
    def max_message_bytes(self, value: int) -> None:
        self._decoder.max_payload_bytes = value

    def receive(self) -> str | bytes | None:
        """Wait for a message.

        Returns:
            Text or binary, or None when the connection is over.
        """
        try:
            while (found := self._next_frame()) is not None:
                opcode, payload = found
                if opcode == Opcode.PING:
                    self._answer_ping(payload)
                elif opcode == Opcode.CLOSE:
                    self._answer_close(payload)
                    return None
                elif opcode != Opcode.PONG and not self.closed:
                    return payload if opcode == Opcode.BINARY else _text(payload)
        except WebSocketError as error:
            self._refuse(error)
        return None

    def send(self, message: str | bytes | bytearray, binary: bool | None = None) -> None:
        """Send a message, and wait while the client does not take it.

        Args:
            message: text or binary.
            binary: which of the two to send it as; as what it is, if left out.

        Raises:
            geventwebsocket.WebSocketError: the connection is over.
        """
        is_text = isinstance(message, str) if binary is None else not binary
        payload = message.encode() if isinstance(message, str) else bytes(message)
        self.send_frame(payload, Opcode.TEXT if is_text else Opcode.BINARY)

    def send_frame(self, message: bytes, opcode: int) -> None:
        """`send` for a frame of any kind."""
        with self._writing:
            if self.closed:
                raise exceptions.WebSocketError(MSG_ALREADY_CLOSED)
            try:
                self.raw_write(frame(opcode, message, mask=False))
            except OSError as exc:
                raise exceptions.WebSocketError(MSG_SOCKET_DEAD) from exc

    def close(self, code: int = _NORMAL, message: str | bytes = "") -> None:
        """Say that nothing more will come. Waits a second at most, also for a frame that is on its way.

        Args:
            code: RFC 6455, section 7.4.
            message: for people.
        """
        if self.closed:
            return
        self.closed = True
        reason = message if isinstance(message, str) else message.decode("utf-8", "replace")
        with gevent.Timeout(_CLOSE_SECONDS, False), self._writing, contextlib.suppress(OSError):
            self.raw_write(frame(Opcode.CLOSE, close_payload(code, reason), mask=False))

    def _answer_ping(self, payload: bytes) -> None:
        # That the connection is over is found out by reading.
        with contextlib.suppress(exceptions.WebSocketError):
            self.send_frame(payload, Opcode.PONG)

    def _answer_close(self, payload: bytes) -> None:
        code, _ = parse_close(payload)
        if not 1000 <= code < 5000 or code in _NEVER_SENT:
            raise WebSocketError(_PROTOCOL_ERROR, f"no such close code: {code}")
        self.close(code)

    def _next_frame(self) -> tuple[int, bytes] | None:
        if monotonic() > self._slice_ends:
            self._new_slice()
        while (found := self._decoder.next_frame()) is None:
            data = self._read_some()
            if not data:
                return None
            self._decoder.feed(data)
        return found

    def _read_first(self, _max_bytes: int) -> bytes:
        rfile = self.handler.rfile
        data: bytes = rfile.read1(io.DEFAULT_BUFFER_SIZE)
        # It has nothing more, and is not asked again: whoever waits at the socket itself keeps no buffer meanwhile.
        self._read = self.handler.socket.recv
        rfile.close()
        return data

    def _read_some(self) -> bytes:
        began = monotonic()
        try:
            data: bytes = self._read(_READ_BYTES)
        except (OSError, ValueError):  # ValueError: closed by somebody else
            return b""
        self._slice_ends = slice_behind_read(began, monotonic(), self._slice_ends)
        return data

    def _new_slice(self) -> None:
        give_way()
        self._slice_ends = monotonic() + SLICE_SECONDS

    def _refuse(self, error: WebSocketError) -> None:
        self.refused = error
        self.close(error.code, error.reason)
        # The kernel answers what we have not read by a reset, and that may overtake the close frame.
        deadline = monotonic() + _CLOSE_SECONDS
        with gevent.Timeout(_CLOSE_SECONDS, False), contextlib.suppress(OSError):
            self.handler.socket.shutdown(socket.SHUT_WR)
            while self._read_some() and monotonic() < deadline:
                give_way()


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise WebSocketError(_NOT_UTF8, "text that is not UTF-8") from None
