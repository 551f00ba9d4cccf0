"""Peers that are slow, and publishers that are fast."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil
import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, linked
from tests.nemesis.faults import HEARTBEATS, LATENCY_FLOOR_SECONDS, MIB, counters, judge, lost, p99, until
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]


@pytest.mark.row("stopped reader", "cut at the limit, no overshoot; the loss known exactly on both sides")
def test_slow_consumer_is_cut_and_the_loss_is_known_exactly_on_both_sides(
    ships: Fleet, clients: list[Client], figures: Figures
) -> None:
    limit = (16 if FULL else 1) * MIB
    # Heartbeats that would not end the link by themselves while the test runs.
    options: dict[str, Any] = {
        "heartbeat_interval": 10.0,
        "heartbeat_timeout": 60.0,
        "buffered_amount_threshold": limit,
    }
    sender, slow, healthy = nodes = ships.nodes(3, ships.discovery(), **options)
    linked(nodes)
    clients += [Client(node.url) for node in (slow, healthy)]
    for client in clients:
        client.enter("room")
    before = psutil.Process(sender.pid).memory_info().rss
    slow.signal(signal.SIGSTOP)
    # More than the buffers of both kernels and the outbox hold, but no more than a test needs.
    count, padding = 3000, 10_000
    burst = sender.do("burst", count, room="room", padding=padding)
    assert burst["sent"] == count
    state = sender.state()
    grown = state["rss"] - before
    figures["grown_mib"] = grown / MIB
    assert state["counters"]["slow_consumers"] == 1
    assert state["outbox"][slow.uid] <= limit
    assert grown < 20 * MIB
    assert not sender.sees(slow)
    clients[1].wait_for_number(sender.boot, count)
    assert clients[1].checker.report({sender.boot: count}).is_perfect

    slow.signal(signal.SIGCONT)
    linked(nodes, 20)
    sender.do("burst", 1, room="room")
    clients[0].wait_for_number(sender.boot, count + 1)
    report = clients[0].checker.report({sender.boot: count + 1})
    declared = (counters(sender)["sent_lost"], counters(slow)["received_lost"])
    figures["missing"], figures["sender_says"], figures["receiver_says"] = report.missing, *declared
    assert report.missing > 0
    assert declared == (report.missing, report.missing)
    assert (report.doubled, report.late) == (0, 0)
    assert counters(healthy)["received_lost"] == 0
    assert counters(healthy)["links_down"] == 0


@pytest.mark.row(
    "slow reader (4 KiB receive buffer)",
    "cut at 16 MiB, no overshoot; other links' p99 at most 1.5 times; descriptors back within 1 s",
)
def test_slow_reader_is_cut_at_the_limit_and_slows_nobody_else(ships: Fleet, figures: Figures) -> None:
    limit, rate, seconds = (16 * MIB, 300, 10.0) if FULL else (1 * MIB, 200, 0.7)
    proxy = ships.proxy()
    options = {**HEARTBEATS, "buffered_amount_threshold": limit}
    nodes = ships.nodes(4 if FULL else 3, ships.discovery(), proxy=proxy, ear=True, **options)
    linked(nodes)
    # The smaller uid dials: what the sender sends to the slow one comes through the slow one's route, into that buffer.
    sender, *others, slow = sorted(nodes, key=lambda node: node.uid)
    proxy.do("narrow", slow.route, 4096)
    proxy.do("reset", slow.route)
    linked(nodes)
    sender.do("start_traffic", rate, padding=10_000)
    began = time.monotonic()
    until(began + seconds)
    figures["p99_before_seconds"] = p99(others, began, [sender])
    before = sender.state()

    proxy.do("fault", [sender.uid], [slow.uid], bytes_per_second=8192)
    slowed = time.monotonic()
    largest, state = 0, before
    while state["counters"]["slow_consumers"] == 0:
        state = sender.state()
        largest = max(largest, state["outbox"][slow.uid])
        assert time.monotonic() < slowed + 60
    cut = time.monotonic()
    eventually(lambda: sender.state()["descriptors"] <= before["descriptors"], 10)
    figures["descriptors_back_seconds"] = time.monotonic() - cut
    until(cut + seconds)
    figures["p99_during_seconds"] = p99(others, slowed, [sender])
    figures["largest_outbox_mib"] = max(largest, sender.state()["outbox"][slow.uid]) / MIB
    figures["grown_mib"] = (sender.state()["rss"] - before["rss"]) / MIB
    figures["cuts"] = counters(sender)["slow_consumers"]

    proxy.do("repair")
    linked(nodes, 20)
    figures["lost"] = lost(judge(nodes))
    assert figures["lost"] == counters(sender)["sent_lost"] == counters(slow)["received_lost"] > 0
    assert figures["largest_outbox_mib"] <= limit / MIB
    assert figures["descriptors_back_seconds"] < 1.0
    assert figures["p99_during_seconds"] <= max(1.5 * figures["p99_before_seconds"], LATENCY_FLOOR_SECONDS)
    assert all(counters(node)["links_down"] <= 1 for node in others)


@pytest.mark.row("emits in a tight loop", "no healthy peer is cut")
def test_tight_loop_of_emits_cuts_no_healthy_peer(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    count = 50_000
    nodes = ships.nodes(3, ships.discovery(), heartbeat_interval=0.5, heartbeat_timeout=1.5)
    linked(nodes)
    clients += [Client(node.url) for node in nodes[1:]]
    clients[0].enter("room")
    burst = nodes[0].do("burst", count, room="room", padding=100)
    clients[0].wait_for_number(nodes[0].boot, count, 60)
    report = clients[0].checker.report({nodes[0].boot: count})
    figures["emits"] = count
    figures["emit_seconds"], figures["longest_gap_seconds"] = burst["seconds"], burst["longest_gap"]
    assert report.is_perfect, report
    for node in nodes:
        found = counters(node)
        assert (found["links_down"], found["slow_consumers"], found["sent_lost"]) == (0, 0, 0)
    # Heartbeats went on, or there would have been cuts: half of the timeout is far from that.
    assert burst["longest_gap"] < 0.5
