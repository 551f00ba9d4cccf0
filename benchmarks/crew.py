"""Several nodes in one process, with nothing to do: `python -m benchmarks.crew URL NODES PEERS SETTLE IDLE`.

It says ``ready`` when the nodes are made; at SIGUSR1 they all join. ``whole {...}`` comes when each has so many PEERS,
and ``idle {...}`` with what was used in IDLE seconds, SETTLE seconds later. Bytes are the kernel's count for each open
connection (Linux).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import gevent
import socketio
from gevent.event import Event

from gevent_mesh import GeventMeshManager

__all__ = ["main", "sent_and_received"]

WHOLE_SECONDS = 120.0
# struct tcp_info of <linux/tcp.h>: tcpi_bytes_acked, tcpi_bytes_received.
_TCP_INFO_BYTES = 136
_ACKED, _RECEIVED = 120, 128


def sent_and_received(sock: socket.socket) -> tuple[int, int]:
    """Bytes that the other end of a TCP connection has taken and given. Needs Linux."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return struct.unpack_from("=Q", info, _ACKED)[0], struct.unpack_from("=Q", info, _RECEIVED)[0]


def _connections() -> Iterator[socket.socket]:
    """All connected TCP sockets of this process, one at a time."""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                sock.getpeername()
                yield sock
        except OSError:
            continue  # a file, a listener, or the folder's own descriptor


class Crew:
    """The nodes of this process."""

    def __init__(self, url: str, nodes: int) -> None:
        self._discovery_port = urlsplit(url).port
        self._gossip_bytes = 0
        self._managers = [GeventMeshManager(url, ws_port=0) for _ in range(nodes)]
        for manager in self._managers:
            socketio.Server(async_mode="gevent", client_manager=manager)

    def join(self, peers: int) -> dict[str, float]:
        """All at once. Returns when that began, when each had so many peers, and what it took."""
        began = time.monotonic()
        for manager in self._managers:
            manager.start()
            self._count_bytes(manager.mesh)
        waiting = [gevent.spawn(manager.wait_for_peers, peers, WHOLE_SECONDS) for manager in self._managers]
        if not all(greenlet.get() for greenlet in waiting):
            raise SystemExit(f"not whole after {WHOLE_SECONDS:.0f} s")
        return {"began": began, "whole": time.monotonic(), **self._used()}

    def _count_bytes(self, mesh: Any) -> None:
        """Count what is said to single peers, which is all of it while there are neither clients nor events."""
        send = mesh.outboxes.send

        def counted(uid: str, message: bytes) -> bool:
            self._gossip_bytes += len(message)
            return bool(send(uid, message))

        mesh.outboxes.send = counted

    def idle(self, seconds: float) -> dict[str, float]:
        """What a time without events costs."""
        before = self._used()
        gevent.sleep(seconds)
        return {name: value - before[name] for name, value in self._used().items()}

    def _used(self) -> dict[str, float]:
        cpu_seconds = time.process_time()
        roster = links = 0
        for sock in _connections():
            sent, received = sent_and_received(sock)
            if sock.getpeername()[1] == self._discovery_port:
                roster += sent + received
            else:
                links += sent
        counters: list[Any] = [manager.mesh.counters for manager in self._managers if manager.mesh is not None]
        return {
            "cpu_seconds": cpu_seconds,
            "roster_bytes": roster,
            "link_bytes": links,
            "gossip_bytes": self._gossip_bytes,
            "messages": sum(each.messages_sent for each in counters),
        }


def _say(word: str, facts: dict[str, float]) -> None:
    print(word, json.dumps(facts), flush=True)


def main() -> None:
    url, nodes, peers, settle_seconds, idle_seconds = sys.argv[1:]
    crew, told = Crew(url, int(nodes)), Event()
    gevent.signal_handler(signal.SIGUSR1, told.set)
    print("ready", flush=True)
    while not told.wait(60.0):
        pass  # without a timer, gevent believes that nothing can come any more
    _say("whole", crew.join(int(peers)))
    gevent.sleep(float(settle_seconds))
    _say("idle", crew.idle(float(idle_seconds)))
    Event().wait()


if __name__ == "__main__":
    main()
