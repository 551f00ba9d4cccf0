"""The client process: `python -m benchmarks.client PORT delays|counts SECONDS`.

As lean as it can be, so that what is measured is the servers: a blocking socket and no library. It says ``connected``
when the server has let it in, ``warm`` at the event of that name, before which nothing counts, and at the end prints a
`Tally` as JSON. The end is the event that says so; or silence, when that event was lost; or SECONDS after the first
event, when they come more slowly than they are emitted.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field

from .wire import TICK, Sequence, frame, texts

__all__ = ["Tally", "main"]

HOST = "127.0.0.1"
FIRST_EVENT_SECONDS = 30.0
SILENCE_SECONDS = 4.0
SAMPLE_NS = 5_000_000
RECV_BYTES = 256 * 1024

UPGRADE = (
    "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
    f"Host: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@dataclass
class Tally:
    """What the client saw. Times are nanoseconds of the monotonic clock.

    Attributes:
        announced: how many events the end said there were; None when the end never came.
        samples: (time, events received so far), every few milliseconds.
        delays: from emission to reception, of every event in the order of arrival.
        cpu_seconds: this process's own CPU time from the first event on.
    """

    received: int = 0
    doubled: int = 0
    late: int = 0
    announced: int | None = None
    samples: list[tuple[int, int]] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0


class Client:
    """One connection, read until its events end."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._give_up_after(FIRST_EVENT_SECONDS)
        self._rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def connect(self) -> None:
        """Upgrade, and enter the main namespace."""
        self._socket.sendall(UPGRADE.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._recv()
        head, _, self._rest = answer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(f"not upgraded: {head.splitlines()[0].decode()}")
        self._socket.sendall(frame(b"40"))
        while not any(text.startswith(b"40") for text in self._texts()):
            pass

    def tally(self, seconds: float, *, delays: bool) -> Tally:
        """Count the events up to their end."""
        sequence, tally = Sequence(), Tally()
        cpu, sampled, warm, ends = 0.0, 0, False, 0
        try:
            while tally.announced is None:
                some = self._texts()
                now = time.monotonic_ns()
                for text in some:
                    if warm and text.startswith(TICK):
                        _, number, emitted, _ = text.split(b",", 3)
                        # Managers of older python-socketio make one list of several arguments.
                        sequence.add(int(number.lstrip(b"[")))
                        if delays:
                            tally.delays.append(now - int(emitted))
                    elif text == b"2":
                        self._socket.sendall(frame(b"3"))
                    elif warm and text.startswith(b'42["end",'):
                        tally.announced = int(text[9:-1])
                    elif text.startswith(b'42["warm"') and not warm:
                        warm = True
                        _say("warm")
                        cpu = time.process_time()
                if sequence.received and not ends:
                    self._give_up_after(SILENCE_SECONDS)
                    ends = now + int(seconds * 1e9)
                if ends and now > ends:
                    break
                if now - sampled > SAMPLE_NS:
                    sampled = now
                    tally.samples.append((now, sequence.received))
        except OSError:
            pass  # silence, or the server is gone: what is missing is the caller's to say
        tally.samples.append((time.monotonic_ns(), sequence.received))
        tally.cpu_seconds = time.process_time() - cpu
        tally.received, tally.doubled, tally.late = sequence.received, sequence.doubled, sequence.late
        return tally

    def _texts(self) -> list[bytes]:
        """What has come, at least some bytes of it."""
        some, self._rest = texts(self._rest + self._recv())
        return some

    def _give_up_after(self, seconds: float) -> None:
        # Not settimeout(): with that, Python asks poll() before every recv().
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), 0))

    def _recv(self) -> bytes:
        data = self._socket.recv(RECV_BYTES)
        if not data:
            raise ConnectionError("the server is gone")
        return data


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    port, mode, seconds = sys.argv[1:]
    client = Client(int(port))
    client.connect()
    _say("connected")
    _say(json.dumps(asdict(client.tally(float(seconds), delays=mode == "delays"))))


if __name__ == "__main__":
    main()
