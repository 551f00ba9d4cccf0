"""A Node peer and the Node package's discovery server, written by hand against recorded traffic, with threads.

They speak as recorded, down to the upgrade request, mask with random keys as `ws` does, and note as a *fault* whatever
a real Node process would lose, close the link for, or die of.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from gevent_mesh.protocol.address import parse_address
from tests.protocol.recorded import RECORDED

__all__ = ["Connection", "NodejsDiscovery", "NodejsPeer"]

HEARTBEAT_SECONDS = 0.5
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
RESPONSES = (8, 10, 11, 12)
KEYS = {
    1: [], 2: [], 13: [],
    3: [["packet", "opts"], ["packet", "requestId", "opts"]],
    4: [["opts", "rooms"]], 5: [["opts", "rooms"]], 6: [["opts", "close"]], 7: [["opts", "requestId"]],
    8: [["requestId", "sockets"]], 9: [["packet"], ["requestId", "packet"]], 10: [["requestId", "packet"]],
    11: [["requestId", "clientCount"]], 12: [["requestId", "packet"]],
}  # fmt: skip
"""The keys of `data` in their order, by type."""


def _upgrade(name: str, direction: str) -> str:
    (text,) = (e["http"] for e in RECORDED if e["name"] == name and e["direction"] == direction)
    return str(text)


def _accept_key(head: str) -> str:
    key = re.search(r"Sec-WebSocket-Key: (\S+)", head, re.IGNORECASE)
    assert key is not None
    digest = hashlib.sha1((key[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class Connection:
    """One WebSocket; frames are whole messages."""

    def __init__(self, sock: socket.socket, *, is_client: bool, fault: Callable[[str], None]) -> None:
        self.is_client = is_client
        self.closed_with: tuple[int, str] | None = None
        self.pongs = 0
        self._socket = sock
        self._fault = fault
        self._buffer = b""
        self._lock = threading.Lock()

    @classmethod
    def dial(cls, address: str, kind: str, fault: Callable[[str], None]) -> Connection:
        """Connect with the recorded request."""
        target = parse_address(address)
        sock = socket.create_connection((target.host, target.port), timeout=10)
        sock.settimeout(None)
        connection = cls(sock, is_client=True, fault=fault)
        request = re.sub(r"Host: \S+", f"Host: {target.netloc}", _upgrade(f"ws-upgrade/{kind}", "client->server"))
        sock.sendall(request.encode())
        answer = connection._head()
        expected = _upgrade(f"ws-upgrade/{kind}", "server->client")
        if not answer.startswith("HTTP/1.1 101 ") or _header(answer, "Sec-WebSocket-Accept") != _header(
            expected, "Sec-WebSocket-Accept"
        ):
            raise ConnectionError(answer)
        if _header(answer, "Sec-WebSocket-Extensions"):
            fault("an extension was accepted")
        return connection

    @classmethod
    def accept(cls, sock: socket.socket, kind: str, fault: Callable[[str], None]) -> Connection:
        """Answer with the recorded response."""
        connection = cls(sock, is_client=False, fault=fault)
        accept = _accept_key(connection._head())
        answer = re.sub(r"Accept: \S+", f"Accept: {accept}", _upgrade(f"ws-upgrade/{kind}", "server->client"))
        sock.sendall(answer.encode())
        return connection

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        size = len(payload)
        bit = 0x80 if self.is_client else 0
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, bit | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, bit | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, size)
        if self.is_client:
            key = os.urandom(4)
            head += key
            payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(head + payload)

    def messages(self) -> Iterator[bytes]:
        """The payloads that come, until the end."""
        with contextlib.suppress(OSError):
            while True:
                opcode, payload = self._frame()
                if opcode == BINARY:
                    yield payload
                elif opcode == PING:
                    self.send(payload, PONG)
                elif opcode == PONG:
                    self.pongs += 1
                elif opcode == CLOSE:
                    self.closed_with = (struct.unpack("!H", payload[:2])[0], payload[2:].decode())
                    self.send(payload, CLOSE)
                    return
                else:
                    self._fault(f"opcode {opcode}")

    def close(self, code: int = 1000, reason: str = "transport-closed") -> None:
        self.send(struct.pack("!H", code) + reason.encode(), CLOSE)
        self.cut()

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._read(2)
        if not first & 0x80 or first & 0x70:
            self._fault("a fragment, or reserved bits")
        if bool(second & 0x80) is self.is_client:
            self._fault("masked by the acceptor, or not masked by the dialler")
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._read(8))
        key = self._read(4) if second & 0x80 else b""
        payload = self._read(size)
        if any(key):
            payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
        return first & 0x0F, payload

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the end")
            self._buffer += data
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _head(self) -> str:
        while b"\r\n\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("no answer")
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head.decode()


def _header(head: str, name: str) -> str:
    found = re.search(rf"^{name}: (\S+)\r?$", head, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


class _Listening:
    """What listens, and its threads."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.stopped = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def in_thread(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=self._run, args=(target, *arguments), daemon=True).start()

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        try:
            target(*arguments)
        except OSError:
            pass
        except Exception as exc:  # noqa: BLE001  # what a test looks at
            self.faults.append(f"{type(exc).__name__}: {exc}")

    def accept(self, serve: Callable[[socket.socket], None]) -> None:
        while not self.stopped:
            sock, _ = self._listener.accept()
            self.in_thread(serve, sock)

    def stop(self) -> None:
        self.stopped = True
        self._listener.close()


class NodejsDiscovery(_Listening):
    """The discovery server of the Node package: the whole roster to everybody, at every change.

    Attributes:
        registered: each registration as it came.
        pongs: answers to pings.
    """

    def __init__(self, token: str = "", ping_seconds: float = 0.5) -> None:
        super().__init__()
        self.registered: list[bytes] = []
        self.members: dict[Connection, dict[str, str]] = {}
        self._token = token
        self._ping_seconds = ping_seconds
        self.in_thread(self.accept, self._serve)
        self.in_thread(self._ping)

    @property
    def pongs(self) -> int:
        return sum(connection.pongs for connection in list(self.members))

    def _serve(self, sock: socket.socket) -> None:
        connection = Connection.accept(sock, "discovery", self.faults.append)
        try:
            for payload in connection.messages():
                self.registered.append(payload)
                message = msgpack.unpackb(payload)
                if self._token and message.get("token") != self._token:
                    connection.close(4401, "unauthorized")
                    return
                self.members[connection] = {key: message[key] for key in ("serverId", "address")}
                self._tell()
        finally:
            if self.members.pop(connection, None):
                self._tell()

    def _tell(self) -> None:
        update = msgpack.packb({"type": "update", "servers": list(self.members.values())})
        for connection in list(self.members):
            connection.send(update)

    def _ping(self) -> None:
        while not self.stopped:
            time.sleep(self._ping_seconds)
            for connection in list(self.members):
                connection.send(b"", PING)

    def stop(self) -> None:
        super().stop()
        for connection in list(self.members):
            connection.cut()


class NodejsPeer(_Listening):
    """A server of Node.

    Attributes:
        links: connections by the other side's uid.
        hellos: each HELLO that came, without its kind.
        got: (uid of the link, payload, message) of each cluster message, in order.
        sockets: what it answers to FETCH_SOCKETS.
        clients: what its clients acknowledge.
    """

    def __init__(self, discovery: str, uid: str, *, token: str = "", namespaces: tuple[str, ...] = ("/",)) -> None:
        super().__init__()
        self.uid = uid
        self.links: dict[str, Connection] = {}
        self.ended: dict[str, Connection] = {}
        self.hellos: list[dict[str, Any]] = []
        self.got: list[tuple[str, bytes, dict[str, Any]]] = []
        self.sockets: list[dict[str, Any]] = []
        self.clients: list[Any] = []
        self.heartbeats = True
        self.namespaces = namespaces
        self._token = {"token": token} if token else {}
        self._roster: dict[str, str] = {}
        self.in_thread(self.accept, self._serve)
        self._discovery = Connection.dial(discovery, "discovery", self.faults.append)
        said = {"type": "register", "serverId": uid, "address": self.address, **self._token}
        self._discovery.send(msgpack.packb(said))
        self.in_thread(self._watch)
        self.in_thread(self._beat)

    # -- what a test does

    def send(self, kind: int, data: Any = None, nsp: str = "/") -> None:
        """Send a cluster message to everybody."""
        message = {"type": kind, "data": data, "uid": self.uid, "nsp": nsp}
        if data is None:
            del message["data"]
        self.send_raw(b"\x01" + msgpack.packb(message))

    def send_raw(self, payload: bytes) -> None:
        for connection in list(self.links.values()):
            connection.send(payload)

    def received(self, kind: int, nsp: str = "/") -> list[dict[str, Any]]:
        return [message for _, _, message in list(self.got) if (message["type"], message["nsp"]) == (kind, nsp)]

    def payloads(self, kind: int) -> list[bytes]:
        return [payload for _, payload, message in list(self.got) if message["type"] == kind]

    def leave(self) -> None:
        for namespace in self.namespaces:
            self.send(13, nsp=namespace)
        self.stop()

    def stop(self) -> None:
        super().stop()
        self._discovery.close(1000, "client-closing")
        for connection in list(self.links.values()):
            connection.close()

    # -- what it does by itself

    def _watch(self) -> None:
        for payload in self._discovery.messages():
            message = msgpack.unpackb(payload)
            assert message["type"] == "update", message
            self._roster = {server["serverId"]: server["address"] for server in message["servers"]}
            for uid, address in self._roster.items():
                if uid > self.uid and uid not in self.links:
                    self.in_thread(self._dial, uid, address)

    def _dial(self, uid: str, address: str) -> None:
        connection = Connection.dial(address, "mesh", self.faults.append)
        connection.send(b"\x00" + msgpack.packb({"uid": self.uid, "address": self.address, **self._token}))
        self._read(connection, uid)

    def _serve(self, sock: socket.socket) -> None:
        connection = Connection.accept(sock, "mesh", self.faults.append)
        for payload in connection.messages():
            hello = msgpack.unpackb(payload[1:])
            if (
                payload[0] != 0
                or hello["uid"] in (self.uid, *self.links)
                or hello.get("token") != self._token.get("token")
            ):
                connection.close(1002, "no")
                return
            if list(hello) != ["uid", "address", *self._token]:
                self.faults.append(f"HELLO has {list(hello)}")
            self.hellos.append(hello)
            self._read(connection, hello["uid"])
            return

    def _read(self, connection: Connection, uid: str) -> None:
        self.links[uid] = connection
        try:
            for payload in connection.messages():
                if payload[0] != 1:
                    self.faults.append(f"a message of kind {payload[0]}")
                    continue
                message = msgpack.unpackb(payload[1:], strict_map_key=False)
                self._judge(message, uid)
                self.got.append((uid, payload, message))
                if message["nsp"] in self.namespaces:
                    self._answer(connection, message)
        finally:
            self.ended[uid] = connection
            if self.links.get(uid) is connection:
                del self.links[uid]

    def _judge(self, message: dict[str, Any], uid: str) -> None:
        """Note whatever Node would not like."""
        kind, data = message["type"], message.get("data")
        keys = ["type", "uid", "nsp"] if kind in (1, 2, 13) else ["type", "data", "uid", "nsp"]
        if list(message) != keys or kind not in KEYS or message["uid"] != uid:
            self.faults.append(f"{message} from {uid}")
        elif data is not None and list(data) not in KEYS[kind]:
            self.faults.append(f"type {kind} has {list(data)}")
        elif data is not None and "opts" in data:
            opts = data["opts"]
            if list(opts) != ["rooms", "except", "flags"] or not all(
                isinstance(value, kind) for value, kind in zip(opts.values(), (list, list, dict), strict=True)
            ):
                self.faults.append(f"type {kind} has opts {opts}")

    def _answer(self, connection: Connection, message: dict[str, Any]) -> None:
        kind, data, nsp = message["type"], message.get("data", {}), message["nsp"]

        def say(answer: int, **values: Any) -> None:
            filled = {"requestId": data["requestId"], **values}
            connection.send(
                b"\x01"
                + msgpack.packb({"type": answer, "data": filled, "uid": self.uid, "nsp": nsp}, use_bin_type=True)
            )

        if kind == 1:
            self.send(2, nsp=nsp)
        elif kind == 3 and "requestId" in data:
            say(11, clientCount=len(self.clients))
            for value in self.clients:
                say(12, packet=value)
        elif kind == 7:
            say(8, sockets=self.sockets)
        elif kind == 9 and "requestId" in data:
            say(10, packet={"of": self.uid})

    def _beat(self) -> None:
        while not self.stopped:
            time.sleep(HEARTBEAT_SECONDS)
            for namespace in self.namespaces if self.heartbeats else ():
                self.send(2, nsp=namespace)
