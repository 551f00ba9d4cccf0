"""Very many clients that come, or go, at the same moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, linked
from tests.nemesis.faults import HEARTBEATS, counters
from tests.nemesis.figures import Figures
from tests.nemesis.swarm import Swarm, with_descriptors
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

CLIENTS = 10_000 if FULL else 1000
USERS = CLIENTS // 2
LONGEST_SECONDS = 0.1
"""Of the processor's time: what anybody else may have to wait for, on a machine that is not busy."""


class Bystander:
    """A client that was there before, and asks its node for something all the time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_over = False
        self.longest = 0.0
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._is_over:
            began = time.monotonic()
            self._client.enter("room")
            self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> float:
        """How long the slowest answer took."""
        self._is_over = True
        self._thread.join()
        return self.longest


class Crowded:
    """A node that a crowd comes to and leaves, and another one that is linked to it."""

    def __init__(self, ships: Fleet, clients: list[Client], figures: Figures) -> None:
        self.node, self.other = nodes = ships.nodes(2, ships.discovery(), **HEARTBEATS)
        linked(nodes)
        with_descriptors()
        with_descriptors(self.node.pid)
        self.node.do("freeze_what_stays")
        self.swarm = Swarm(int(self.node.url.rsplit(":", 1)[1]))
        self.client = Client(self.node.url)
        clients.append(self.client)
        self._figures = figures

    @contextmanager
    def served(self, what: str) -> Iterator[None]:
        """While a crowd comes or goes, nobody else is kept waiting."""
        self.node.do("watch_hub")
        bystander = Bystander(self.client)
        try:
            yield
        finally:
            self._figures[f"{what}_slowest_answer_seconds"] = bystander.end()
            self._figures[f"{what}_longest_work_seconds"] = longest = self.node.do("longest_work")
            self._figures[f"{what}_longest_gap_seconds"] = self.node.do("longest_gap")
        assert longest < LONGEST_SECONDS

    def counted_from_elsewhere(self) -> int:
        found: int = self.other.do("cluster", "count_sockets")["value"]
        return found


def told(node: Node, change: str) -> Counter[str]:
    return Counter(user for what, user in node.do("presence_log") if what == change)


@pytest.mark.row("a crowd comes, and all its sockets are reset at once", "no gap of 100 ms; each user told once")
def test_a_crowd_that_comes_and_is_gone_at_once_keeps_nobody_waiting(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    crowded = Crowded(ships, clients, figures)
    came_and_went(crowded, figures, crowded.swarm.reset)
    assert len(crowded.node.do("disconnected")) == CLIENTS


@pytest.mark.row("a crowd comes, and is disconnected by one command", "no gap of 100 ms; each user told once")
def test_a_crowd_that_is_disconnected_keeps_nobody_waiting(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    crowded = Crowded(ships, clients, figures)

    def disconnect() -> None:
        crowded.other.do("cluster", "disconnect_sockets", except_rooms="room", timeout=30.0)

    crowded.client.enter("room")
    came_and_went(crowded, figures, disconnect)
    crowded.swarm.reset()


def came_and_went(crowded: Crowded, figures: Figures, leave: Callable[[], None]) -> None:
    node, other = crowded.node, crowded.other
    with crowded.served("coming"):
        began = time.monotonic()
        crowded.swarm.connect(CLIENTS, USERS)
        figures["connected_seconds"] = time.monotonic() - began
    assert crowded.counted_from_elsewhere() == CLIENTS + 1
    eventually(lambda: told(other, "join") == {f"user {n}": 1 for n in range(USERS)}, 20)
    with crowded.served("going"):
        began = time.monotonic()
        leave()
        eventually(lambda: crowded.counted_from_elsewhere() == 1, 20)
        figures["gone_seconds"] = time.monotonic() - began
    eventually(lambda: told(other, "leave") == {f"user {n}": 1 for n in range(USERS)}, 20)
    assert counters(node)["links_down"] == counters(other)["links_down"] == 0
    assert "Traceback" not in node.output
