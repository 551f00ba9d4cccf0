"""Connections that break."""

from __future__ import annotations

import datetime
import itertools
import math
import re
import time
from statistics import median

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, linked
from tests.nemesis.faults import HEARTBEATS, counters
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 1000
RESETS = 100 if FULL else 12


@pytest.mark.row("100 resets at 1,000 events/s", "0 lost, 0 doubled, order kept, each relink within 2 s")
def test_connection_resets_lose_nothing_double_nothing_and_keep_the_order(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    proxy = ships.proxy()
    nodes = ships.nodes(2, ships.discovery(), proxy=proxy, **HEARTBEATS)
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
    found = proxy.state()
    figures["resets"] = found["resets"]
    figures["links_down"] = counters(nodes[0])["links_down"]
    relinks = relink_seconds(found["reset_at"], link_ups(nodes[0]))
    figures["relink_median_seconds"], figures["relink_worst_seconds"] = median(relinks), max(relinks)
    for name in ("received", "missing", "doubled", "late"):
        figures[name] = sum(getattr(report, name) for report in reports)
    assert all(report.is_perfect for report in reports)
    assert found["resets"] >= RESETS
    assert figures["links_down"] > RESETS / 3
    assert figures["relink_worst_seconds"] < 2.0
    for node in nodes:
        assert counters(node)["sent_lost"] == counters(node)["received_lost"] == 0


def link_ups(node: Node) -> list[float]:
    """When links of a node came up, by the clock that all processes share."""
    today = datetime.datetime.combine(datetime.date.today(), datetime.time()).timestamp()
    since_midnight = time.time() - today - time.monotonic()
    times = re.findall(r"^(\d\d):(\d\d):(\d\d\.\d+) INFO \S+ link up", node.output, re.MULTILINE)
    return [
        int(hours) * 3600 + int(minutes) * 60 + float(seconds) - since_midnight for hours, minutes, seconds in times
    ]


def relink_seconds(resets: list[float], ups: list[float]) -> list[float]:
    """From each reset that the next one did not come before, to the link that came up next."""
    taken = []
    for at, following in itertools.pairwise([*resets, math.inf]):
        up = min((up for up in ups if up > at), default=math.inf)
        if up < following:
            taken.append(up - at)
    return taken
