"""A process that holds many clients: `python -m benchmarks.swarm ADDRESS`, told what to do on its standard input.

Raw WebSockets in one epoll loop, no library, so that many of them cost little beside the servers. ADDRESS is the local
one they come from, one of 127.0.0.0/8: each has its own 28,000 or so ephemeral ports.

It takes one command a line, and says when it is done:

- ``connect PORT COUNT``: so many more; ``connected TOTAL`` when all are in the main namespace.
- ``close COUNT``: so many hang up, spread evenly over all; ``closed TOTAL``.
- ``churn RATE SECONDS``: so many a second hang up, oldest first, and others take their place; ``churned COUNT``
  says how many it were.
- ``await NUMBER``: ``has NUMBER`` when every client has had that event, or came after it.
- ``tally``: what they had since the last time, as JSON (`Audience.tally`).

It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any

from .client import UPGRADE
from .planning import raise_descriptor_limit
from .wire import PART, TICK, Audience, Member, frame, texts

__all__ = ["main"]

OPENING = 64
"""So many are on their way in at once: no listener's backlog overflows, and none waits for long in it."""
RECV_BYTES = 64 * 1024
IP_BIND_ADDRESS_NO_PORT = 24
BUSY_SECONDS = 0.005
IDLE_SECONDS = 1.0
PING, PONG = b"2", frame(b"3")
ENTER = frame(b"40")


class _Client:
    """One connection. Its socket is in the epoll loop as long as it lives."""

    __slots__ = ("is_upgraded", "member", "port", "rest", "socket")

    def __init__(self, address: str, port: int) -> None:
        self.port = port
        self.rest = b""
        self.is_upgraded = False
        self.member: Member | None = None
        self.socket = socket.socket()
        if sys.platform == "linux":
            # The port is chosen by connect(), among those that are not in use to this server. bind() looks for one that
            # is not in use at all, and with half of them gone that takes most of the time.
            self.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.socket.sendall(UPGRADE.encode())

    def texts(self) -> list[bytes]:
        """What has come.

        Raises:
            ConnectionError: the server has hung up, or does not let us in.
        """
        data = self.socket.recv(RECV_BYTES)
        if not data:
            raise ConnectionError("the server is gone")
        data = self.rest + data
        if not self.is_upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = head
                return []
            if b" 101 " not in head.split(b"\r\n")[0]:
                raise ConnectionError(f"not upgraded: {head.splitlines()[0].decode()}")
            self.is_upgraded = True
            self.socket.sendall(ENTER)
        found, self.rest = texts(data)
        return found


class Swarm:
    """All clients of this process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._epoll = select.epoll()
        self._epoll.register(0, select.EPOLLIN)
        self._commands = b""
        self._clients: dict[int, _Client] = {}
        self._live: dict[int, _Client] = {}
        self._to_open: deque[int] = deque()
        self._audience = Audience()
        self._awaited: int | None = None
        self._announce = ""
        self._replaced = 0
        self._churn: _Churn | None = None

    def run(self) -> None:
        """Until the standard input ends."""
        while True:
            for fd, _ in self._epoll.poll(BUSY_SECONDS if self._churn else IDLE_SECONDS):
                if fd:
                    self._read(fd)
                elif not self._listen():
                    return
            self._proceed()

    # ------------------------------------------------------------------ commands

    def _listen(self) -> bool:
        data = os.read(0, RECV_BYTES)
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            name, *arguments = line.decode().split()
            getattr(self, f"_do_{name}")(*map(float, arguments))
        return bool(data)

    def _do_connect(self, port: float, count: float) -> None:
        self._to_open.extend([int(port)] * int(count))
        self._announce = "connected"

    def _do_close(self, count: float) -> None:
        fds = list(self._live)
        for turn in range(int(count)):
            self._hang_up(fds[turn * len(fds) // int(count)])
        _say(f"closed {len(self._live)}")

    def _do_churn(self, rate: float, seconds: float) -> None:
        self._churn = _Churn(rate, seconds)
        self._replaced = 0
        self._announce = "churned"

    def _do_await(self, number: float) -> None:
        self._awaited = int(number)

    def _do_tally(self) -> None:
        members = [client.member for client in self._live.values() if client.member]
        _say(json.dumps(self._audience.tally(members)))

    # ------------------------------------------------------------------ what goes on meanwhile

    def _proceed(self) -> None:
        if self._churn:
            for _ in range(min(self._churn.due(), len(self._live))):
                oldest = next(iter(self._live))
                self._to_open.append(self._live[oldest].port)
                self._hang_up(oldest)
                self._replaced += 1
            self._churn = self._churn if self._churn.goes_on() else None
        while self._to_open and len(self._clients) - len(self._live) < OPENING:
            try:
                client = _Client(self._address, self._to_open.popleft())
            except OSError as error:
                raise SystemExit(f"a client could not connect: {error}") from error
            self._clients[client.socket.fileno()] = client
            self._epoll.register(client.socket.fileno(), select.EPOLLIN)
        if self._announce and not self._churn and not self._to_open and len(self._clients) == len(self._live):
            _say(f"{self._announce} {self._replaced if self._announce == 'churned' else len(self._live)}")
            self._announce = ""
        if self._awaited is not None and self._audience.have(self._awaited, len(self._live)):
            members = [client.member for client in self._live.values() if client.member]
            if self._audience.all_have(self._awaited, members):
                _say(f"has {self._awaited}")
                self._awaited = None

    def _read(self, fd: int) -> None:
        client = self._clients.get(fd)
        if client is None:
            return  # hung up in this very turn
        try:
            found = client.texts()
            now = time.monotonic_ns()
            for text in found:
                if client.member is not None and text.startswith((TICK, PART)):
                    _, number, emitted, _ = text.split(b",", 3)
                    self._audience.add(client.member, int(number), int(emitted), now)
                elif text == PING:
                    client.socket.sendall(PONG)
                elif text.startswith(b"40") and client.member is None:
                    client.member = Member(now)
                    self._live[fd] = client
        except OSError as error:
            if client.member is None:
                raise SystemExit(f"a client was not let in: {error}") from error
            self._audience.dropped += 1
            self._hang_up(fd)

    def _hang_up(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._live.pop(fd, None)
        self._epoll.unregister(fd)
        client.socket.close()


class _Churn:
    """How many are due to be replaced."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._began = time.monotonic()
        self._rate = rate
        self._seconds = seconds
        self._done = 0

    def due(self) -> int:
        """How many since the last time."""
        total = int(min(time.monotonic() - self._began, self._seconds) * self._rate)
        due, self._done = total - self._done, total
        return due

    def goes_on(self) -> bool:
        return time.monotonic() - self._began < self._seconds


def _say(line: Any) -> None:
    print(line, flush=True)


def main() -> None:
    raise_descriptor_limit()
    Swarm(sys.argv[1]).run()


if __name__ == "__main__":
    main()
