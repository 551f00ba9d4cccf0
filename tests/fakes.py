"""Stand-ins for time and network, so that the rules of the mesh can be tested by the thousand.

`ManualClock` is a heap of things to do at a time. `MemoryNetwork` carries bytes between named nodes like TCP does: in
order, in pieces of any size, late; a connection can be cut after any byte, told to both ends, to one, or to neither.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Protocol

__all__ = ["Connection", "Endpoint", "ManualClock", "MemoryNetwork"]


class ManualClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in a while."""
        self.at(self.now + seconds, action)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end


class Endpoint(Protocol):
    """What sits at one end of a connection."""

    def data(self, connection: Connection, data: bytes, /) -> None:
        """Bytes have arrived."""

    def closed(self, connection: Connection, /) -> None:
        """The other end is gone."""


class Connection:
    """One TCP connection between two nodes. Side 0 dialled."""

    def __init__(self, network: MemoryNetwork, names: tuple[str, str], ends: list[Endpoint]) -> None:
        self.network = network
        self.names = names
        self._ends = ends
        self._open = [True, True]
        self._in_flight = [0, 0]
        self._limit: list[int | None] = [None, None]
        self._tell = [True, True]
        self._arrives = [0.0, 0.0]
        self._held: list[list[bytes]] = [[], []]

    def send(self, side: int, data: bytes) -> None:
        """Side `side` writes; the other side will read it in pieces, later."""
        if not self._open[side] or self._limit[1 - side] is not None:
            return
        rng = self.network.rng
        while data:
            size = len(data) if rng.random() < 0.5 else rng.randint(1, len(data))
            piece, data = data[:size], data[size:]
            self._in_flight[1 - side] += size
            self._deliver_later(1 - side, piece)

    def close(self, side: int) -> None:
        """Side `side` closes: it hears nothing any more, the other side hears of it behind what was sent."""
        if self._open[side]:
            self._open[side] = False
            self._end(1 - side, self._in_flight[1 - side], tell=True)

    def cut(self, *, tell: tuple[bool, bool] = (True, True)) -> None:
        """The connection breaks: each direction loses everything behind a random byte."""
        for side in (0, 1):
            if self._limit[side] is None:
                self._end(side, self.network.rng.randint(0, self._in_flight[side]), tell=tell[side])

    def _end(self, side: int, after_bytes: int, *, tell: bool) -> None:
        if self._limit[side] is None:
            self._limit[side], self._tell[side] = after_bytes, tell
            self._deliver_later(side, b"")

    def _deliver_later(self, side: int, piece: bytes) -> None:
        clock, rng = self.network.clock, self.network.rng
        # In order: no piece overtakes the one before it.
        self._arrives[side] = max(self._arrives[side], clock.now + rng.uniform(0.0005, 0.02))
        clock.at(self._arrives[side], lambda: self._deliver(side, piece))

    def _deliver(self, side: int, piece: bytes) -> None:
        if not self._open[side]:
            return
        if self.network.is_partitioned(*self.names):
            # TCP retransmits until the path is back.
            self._held[side].append(piece)
            return
        self._in_flight[side] -= len(piece)
        limit = self._limit[side]
        if limit is not None:
            piece = piece[:limit]
            self._limit[side] = limit = limit - len(piece)
        if piece:
            self._ends[side].data(self, piece)
        if limit == 0 and self._tell[side] and self._open[side]:
            self._open[side] = False
            self._ends[side].closed(self)

    def release(self) -> None:
        """The path works again: what was held arrives, in order."""
        for side in (0, 1):
            held, self._held[side] = self._held[side], []
            for piece in held:
                self._deliver(side, piece)


class MemoryNetwork:
    """Connects nodes by address."""

    def __init__(self, clock: ManualClock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.connections: list[Connection] = []
        self._listeners: dict[str, Callable[[Connection], Endpoint]] = {}
        self._partitions: set[frozenset[str]] = set()

    def listen(self, address: str, accept: Callable[[Connection], Endpoint]) -> None:
        """Answer dials to `address`; a later listener takes over."""
        self._listeners[address] = accept

    def connect(self, source: str, address: str, make_end: Callable[[Connection], Endpoint]) -> Connection | None:
        """Dial. None when nobody listens there, or the path is cut."""
        accept = self._listeners.get(address)
        if accept is None or self.is_partitioned(source, address):
            return None
        connection = Connection(self, (source, address), [])
        connection._ends += [make_end(connection), accept(connection)]
        self.connections.append(connection)
        return connection

    def partition(self, a: str, b: str) -> None:
        """Nothing gets through between two addresses."""
        self._partitions.add(frozenset((a, b)))

    def heal(self) -> None:
        """All paths work again."""
        self._partitions.clear()
        for connection in self.connections:
            connection.release()

    def is_partitioned(self, a: str, b: str) -> bool:
        """Whether nothing gets through."""
        return frozenset((a, b)) in self._partitions
