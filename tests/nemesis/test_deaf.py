"""Nodes that go deaf or mute inside, with their sockets open."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.integration.checker import Report
from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, fleet, linked
from tests.nemesis.faults import HEARTBEATS, counters, time_until
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 500
TIMEOUT_SECONDS: float = HEARTBEATS["heartbeat_timeout"]


class Talk:
    """Two nodes that send numbered events to each other's client.

    Attributes:
        one, other: the nodes; what a test does is done to `one`.
    """

    def __init__(self, ships: Fleet) -> None:
        self.one, self.other = self.nodes = ships.nodes(2, ships.discovery(), log="WARNING", **HEARTBEATS)
        linked(self.nodes)
        self._clients: list[Client] = []
        self._first: dict[str, int] = {}

    def begin(self, clients: list[Client]) -> None:
        """Let new clients hear of what is sent from now on."""
        eventually(lambda: all(node.is_ready for node in self.nodes))
        self._first = {node.boot: node.state()["sent"] + 1 for node in self.nodes}
        self._clients = [Client(node.url) for node in self.nodes]
        clients += self._clients
        # Each node sends to the other one's client only: what counts is what went over a link.
        for client, room in zip(self._clients, ("near", "far"), strict=True):
            client.enter(room)
        self.one.do("start_traffic", RATE, room="far")
        self.other.do("start_traffic", RATE, room="near")
        self.arrives(100)

    def arrives(self, more: int) -> None:
        """Wait until so many more events have come to both sides than were sent until now."""
        for sender, client in self._ways():
            client.wait_for_number(sender.boot, sender.state()["sent"] + more, 3 * TIMEOUT_SECONDS + 10)

    def end(self) -> list[Report]:
        """Returns what came to the client of `one`, and to that of `other`."""
        sent = {node.boot: node.do("stop_traffic") for node in self.nodes}
        reports = []
        for sender, client in self._ways():
            client.wait_for_number(sender.boot, sent[sender.boot], 3 * TIMEOUT_SECONDS + 10)
            assert counters(sender)["sent_lost"] == counters(sender)["received_lost"] == 0
            reports.append(client.checker.report({sender.boot: sent[sender.boot]}, self._first))
        return reports

    def _ways(self) -> list[tuple[Node, Client]]:
        """Each client, and who sends to it."""
        return list(zip((self.other, self.one), self._clients, strict=True))


@pytest.fixture(scope="module")
def talk() -> Iterator[Talk]:
    with fleet() as ships:
        yield Talk(ships)


def downs(node: Node) -> int:
    return counters(node)["links_down"]


@pytest.mark.row("a reader dies by an exception", "told with its traceback, relinked within 2 s, 0 lost, 0 doubled")
def test_reader_that_dies_is_told_and_replaced_and_nothing_is_lost(
    talk: Talk, clients: list[Client], figures: Figures
) -> None:
    talk.begin(clients)
    rounds, slowest, before = 10 if FULL else 3, 0.0, downs(talk.one)
    for round_ in range(1, rounds + 1):
        talk.one.do("deafness", "kill_readers")

        def is_relinked(expected: int = before + round_) -> bool:
            return downs(talk.one) == expected and talk.one.sees(talk.other)

        slowest = max(slowest, time_until(is_relinked, 5))
        talk.arrives(50)
    figures["relinked_seconds"] = slowest
    assert slowest < 2
    assert all(report.is_perfect for report in talk.end())
    assert len(re.findall(r"^RuntimeError: a fault in a reader", talk.one.output, re.MULTILINE)) == rounds


@pytest.mark.row(
    "a handler that blocks",
    "noticed within the heartbeat timeout, told with where it stands, relinked, 0 lost, 0 doubled",
)
def test_blocked_handler_keeps_its_message_and_nobody_else(talk: Talk, clients: list[Client], figures: Figures) -> None:
    talk.begin(clients)
    before = downs(talk.one)
    talk.one.do("deafness", "block_a_handler")
    began = time.monotonic()
    figures["noticed_seconds"] = time_until(lambda: talk.one.do("deafness", "left_behind") == 1, 30)
    assert figures["noticed_seconds"] < TIMEOUT_SECONDS
    talk.arrives(100)
    figures["healed_seconds"] = time.monotonic() - began
    eventually(lambda: talk.one.is_ready)
    # The one that it blocked at comes late, and once.
    talk.one.do("deafness", "release")
    eventually(lambda: talk.one.do("deafness", "left_behind") == 0)
    at_one, at_other = talk.end()
    assert at_other.is_perfect
    assert (at_one.missing, at_one.doubled, at_one.late) == (0, 0, 1)
    assert "self._released.wait()" in talk.one.output
    assert downs(talk.one) == before + 1


@pytest.mark.row(
    "a writer that blocks",
    "noticed within the heartbeat timeout, told with where it stands, relinked, 0 lost, 0 doubled",
)
def test_blocked_writer_is_replaced_and_nothing_is_lost(talk: Talk, clients: list[Client], figures: Figures) -> None:
    talk.begin(clients)
    before = downs(talk.one)
    talk.one.do("deafness", "hang_writers")
    began = time.monotonic()
    figures["noticed_seconds"] = time_until(lambda: downs(talk.one) == before + 1, 30)
    assert figures["noticed_seconds"] < TIMEOUT_SECONDS
    talk.arrives(100)
    figures["healed_seconds"] = time.monotonic() - began
    assert all(report.is_perfect for report in talk.end())
    assert "its writer does not come back" in talk.one.output
    assert "transport.send = lambda" in talk.one.output


@pytest.mark.row(
    "deaf with open sockets: nothing that comes is read",
    "/readyz red within the heartbeat timeout, healed by a new link, 0 lost, 0 doubled",
)
def test_node_that_reads_nothing_is_not_ready_until_it_is_healed(
    talk: Talk, clients: list[Client], figures: Figures
) -> None:
    talk.begin(clients)
    before = downs(talk.one)
    talk.one.do("deafness", "hang_readers")
    began = time.monotonic()
    figures["red_seconds"] = time_until(lambda: not talk.one.is_ready, 30)
    assert figures["red_seconds"] < TIMEOUT_SECONDS
    talk.arrives(100)
    eventually(lambda: talk.one.is_ready and talk.other.is_ready)
    figures["healed_seconds"] = time.monotonic() - began
    assert all(report.is_perfect for report in talk.end())
    assert downs(talk.one) == before + 1
    assert re.search(r"CLOSED> \S+ is stuck: its reader does not come back", talk.one.output)


@pytest.mark.row(
    "deaf with open sockets: no service gets what is read",
    "/readyz red within the heartbeat timeout, green when it is mended; the other node's process stays healthy",
)
def test_node_whose_services_get_nothing_is_not_ready(talk: Talk, clients: list[Client], figures: Figures) -> None:
    # Nobody emits anything.
    talk.one.do("deafness", "lose_services")
    figures["red_seconds"] = time_until(lambda: not talk.one.is_ready, 30)
    assert figures["red_seconds"] < TIMEOUT_SECONDS
    eventually(lambda: talk.one.health()[1]["deaf"] == [talk.other.uid])
    if FULL:
        eventually(lambda: talk.one.health("/healthz")[0] == 503, 60)
    assert talk.other.health("/healthz")[0] == 200
    talk.one.do("deafness", "release")
    figures["green_seconds"] = time_until(lambda: talk.one.is_ready and talk.one.health("/healthz")[0] == 200, 30)
    talk.begin(clients)
    assert all(report.is_perfect for report in talk.end())
