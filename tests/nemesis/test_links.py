"""Connections that break."""

from __future__ import annotations

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, linked
from tests.nemesis.faults import HEARTBEATS, counters
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 1000
RESETS = 100 if FULL else 12


def say(text: str) -> None:
    print(f"\n    {text}", end="", flush=True)


@pytest.mark.row("resets at 1,000 events/s", "0 lost, 0 doubled, order kept")
def test_connection_resets_lose_nothing_double_nothing_and_keep_the_order(ships: Fleet, clients: list[Client]) -> None:
    proxy = ships.proxy()
    nodes = ships.nodes(2, ships.discovery(), proxy=proxy, log="WARNING", **HEARTBEATS)
    linked(nodes)
    clients += [Client(node.url) for node in nodes]
    # Each sends to the other one's client only: what counts is what went over a link.
    for client, room in zip(clients, ("near", "far"), strict=True):
        client.enter(room)
    nodes[0].do("start_traffic", RATE, room="far")
    nodes[1].do("start_traffic", RATE / 4, room="near")
    proxy.do("start_resets", RESETS, 0.05, 0.7, seed=4)
    eventually(lambda: not proxy.state()["resetting"], 240)
    linked(nodes, 20)
    sent = [node.do("stop_traffic") for node in nodes]
    clients[1].wait_for_number(nodes[0].boot, sent[0], 30)
    clients[0].wait_for_number(nodes[1].boot, sent[1], 30)
    reports = [
        clients[1].checker.report({nodes[0].boot: sent[0]}),
        clients[0].checker.report({nodes[1].boot: sent[1]}),
    ]
    downs = counters(nodes[0])["links_down"]
    say(f"{proxy.state()['resets']} connections reset ({downs} links that were up) at {RATE} + {RATE // 4} events/s:")
    for report in reports:
        say(
            f"  {report.received} received, {report.missing} lost, {report.doubled} doubled, {report.late} out of order"
        )
        assert report.is_perfect
    assert proxy.state()["resets"] >= RESETS
    assert downs > RESETS / 3
    for node in nodes:
        assert counters(node)["sent_lost"] == counters(node)["received_lost"] == 0
