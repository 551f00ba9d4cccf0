"""Random faults of all kinds, several at a time, in an order that a seed gives."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.integration.processes import Discovery, Fleet, Node, Proxy
from tests.nemesis.faults import until

__all__ = ["Schedule"]

RATE, PADDING = 60, 500


class Schedule:
    """Does things to a mesh. Everything random comes from the seed, in the same order each time.

    Args:
        rng: of the seed.
        ships: where processes are started.
        count: how many nodes there are.
        options: of their managers.
        spared: how many of them are never killed, the first ones.
    """

    def __init__(
        self, rng: random.Random, ships: Fleet, count: int, options: dict[str, Any], *, spared: int = 0
    ) -> None:
        self.rng = rng
        self.options = options
        self.ships = ships
        self.spared = spared
        self.discovery: Discovery = ships.discovery()
        self.proxy: Proxy = ships.proxy()
        self.nodes: list[Node] = ships.nodes(count, self.discovery, proxy=self.proxy, ear=True, **options)
        self.done: list[str] = []
        self._pending: list[tuple[float, Callable[[], None]]] = []

    def start_traffic(self) -> None:
        for node in self.nodes:
            node.do("start_traffic", RATE, padding=PADDING)

    def run(self, seconds: float) -> None:
        """Do one thing after the other, for so long."""
        ends_at = time.monotonic() + seconds
        faults = [self.part, self.slow, self.reset, self.half_open, self.truncate, self.stop, self.kill, self.forget]
        while time.monotonic() < ends_at:
            self.rng.choices(faults, [8, 4, 6, 4, 4, 4, 1, 1])[0]()
            until(time.monotonic() + self.rng.uniform(0.05, 0.6))
            self._do_pending(time.monotonic())

    def repair(self) -> None:
        """Nothing is wrong any more, except what the nodes have made of it."""
        self._do_pending(float("inf"))
        self.proxy.do("repair")

    def _do_pending(self, now: float) -> None:
        due = [step for at, step in self._pending if at <= now]
        self._pending = [(at, step) for at, step in self._pending if at > now]
        for step in due:
            step()

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        self._pending.append((time.monotonic() + seconds, step))

    def _note(self, text: str) -> None:
        self.done.append(text)
        print(f"\n    {text}", end="", flush=True)

    def _split(self) -> tuple[list[str], list[str]]:
        uids = [node.uid for node in self.rng.sample(self.nodes, len(self.nodes))]
        middle = self.rng.randrange(1, len(uids))
        return uids[:middle], uids[middle:]

    # -- the network

    def part(self) -> None:
        ones, others = self._split()
        kind = self.rng.choice(["holds", "swallows"])
        one_way = self.rng.random() < 0.3
        seconds = self.rng.uniform(0.1, 4.0)
        self._note(f"{len(ones)}:{len(others)} {kind}{' one way' if one_way else ''} for {seconds:.1f} s")
        self.proxy.do("fault", ones, others, **{kind: True})
        if not one_way:
            self.proxy.do("fault", others, ones, **{kind: True})
        self._later(seconds, lambda: self.proxy.do("repair"))

    def slow(self) -> None:
        ones, others = self._split()
        delay, pace = self.rng.choice([0.0, 0.05, 0.3]), self.rng.choice([0, 10_000, 40_000])
        self._note(f"{len(ones)}:{len(others)} {delay} s later, {pace} bytes/s")
        self.proxy.do("fault", ones, others, delay_seconds=delay, bytes_per_second=pace)

    def reset(self) -> None:
        self._note("a reset")
        self.proxy.do("reset", self.rng.choice(self.nodes).route)

    def half_open(self) -> None:
        dialer_knows = self.rng.random() < 0.5
        self._note(f"half-open; {'the dialer' if dialer_knows else 'the listener'} knows")
        self.proxy.do("half_open", self.rng.choice(self.nodes).route, dialer_knows=dialer_knows)

    def truncate(self) -> None:
        # A handshake has about 1,500 bytes; behind it come events.
        size, reset = self.rng.randrange(1, 6000), self.rng.random() < 0.5
        self._note(f"the next one {'reset' if reset else 'truncated'} after {size} bytes")
        route = self.rng.choice(self.nodes).route
        self.proxy.do("cut_next", route, size, reset=reset)
        self.proxy.do("reset", route)

    # -- processes

    def stop(self) -> None:
        node, seconds = self.rng.choice(self.nodes), self.rng.uniform(0.2, 4.0)
        self._note(f"{node.uid} stopped for {seconds:.1f} s")
        node.signal(signal.SIGSTOP)
        self._later(seconds, lambda: node.signal(signal.SIGCONT))

    def kill(self) -> None:
        victim = self.nodes.pop(self.rng.randrange(self.spared, len(self.nodes)))
        self._note(f"{victim.uid} killed")
        # What was to be done to it is done: signals to the dead go nowhere.
        victim.kill()
        node = self.ships.node(self.discovery, proxy=self.proxy, ear=True, **self.options)
        node.do("start_traffic", RATE, padding=PADDING)
        self.nodes.append(node)

    def forget(self) -> None:
        self._note("discovery killed")
        self.discovery.kill()
        until(time.monotonic() + self.rng.uniform(0.0, 1.0))
        self.discovery = self.ships.discovery(port=self.discovery.port)
