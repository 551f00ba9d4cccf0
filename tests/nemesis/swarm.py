"""Very many clients in one process: bare sockets that connect, and then read nothing."""

from __future__ import annotations

import json
import resource
import select
import socket
import struct

from gevent_mesh.protocol.websocket import Opcode, frame

__all__ = ["Swarm", "with_descriptors"]

AT_A_TIME = 200
_RESET = struct.pack("ii", 1, 0)
_REQUEST = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def with_descriptors(pid: int = 0) -> None:
    """Let a process, this one if none is named, have as many descriptors as the machine allows."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


class Swarm:
    """Clients of one server.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._socks: list[socket.socket] = []

    def connect(self, count: int, users: int) -> None:
        """So many more clients, which belong to so many users; returns when all are in their namespace."""
        coming: dict[int, tuple[socket.socket, bytes]] = {}
        left = count
        with select.epoll() as poll:
            while left or coming:
                while left and len(coming) < AT_A_TIME:
                    left -= 1
                    sock = socket.create_connection(("127.0.0.1", self._port), timeout=30)
                    auth = json.dumps({"user": f"user {left % users}"})
                    sock.sendall(_REQUEST + frame(Opcode.TEXT, b"40" + auth.encode(), mask=True))
                    coming[sock.fileno()] = (sock, b"")
                    poll.register(sock, select.EPOLLIN)
                for number, _ in poll.poll(30):
                    sock, data = coming[number]
                    more = sock.recv(65536)
                    assert more, data
                    coming[number] = (sock, data + more)
                    if b'40{"sid"' in data + more:
                        poll.unregister(number)
                        del coming[number]
                        self._socks.append(sock)

    def reset(self) -> None:
        """All end at once, as when a load balancer dies."""
        for sock in self._socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        self._socks.clear()
