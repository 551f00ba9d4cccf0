"""Processes that die, and processes that stand still and come back."""

from __future__ import annotations

import signal
import time

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, linked
from tests.nemesis.faults import HEARTBEATS, counters, wait_for_numbers
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

RATE = 1000


def say(text: str) -> None:
    print(f"\n    {text}", end="", flush=True)


@pytest.mark.row("kill -9 a node", "others know within 1 s; 0 lost among survivors")
def test_killed_node_is_noticed_and_replaced_and_nobody_else_loses_anything(
    ships: Fleet, clients: list[Client]
) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(4, discovery, **HEARTBEATS)
    linked(nodes)
    *survivors, victim = nodes
    clients += [Client(node.url) for node in survivors]
    for node in nodes:
        node.do("start_traffic", RATE / 4)
    for client in clients:
        for node in nodes:
            client.wait_for_number(node.boot, 50)
    victim.kill()
    killed = time.monotonic()
    for node in survivors:
        eventually(lambda node=node: not node.considers_alive(victim), 5)  # type: ignore[misc]  # bound now
    noticed = time.monotonic() - killed
    say(f"kill -9 at {RATE} events/s: noticed by all within {noticed:.2f} s")
    assert noticed < 1.0

    new = ships.node(discovery, **HEARTBEATS)
    for node in survivors:
        eventually(lambda node=node: node.sees(new), 5)  # type: ignore[misc]  # bound now
    joined = time.monotonic() - new.ready_at
    since_exec = time.monotonic() - new.started_at
    say(f"a new node is linked to all {joined:.2f} s after it serves, {since_exec:.2f} s after exec")
    assert joined < 2.0
    new.do("emit", "from the new one", 1)
    for client in clients:
        client.wait_for("from the new one")

    sent = {node.boot: node.do("stop_traffic") for node in survivors}
    wait_for_numbers(clients, sent)
    for client in clients:
        report = client.checker.report(sent)
        assert report.is_perfect, report
        # What the victim had not sent is gone. What came of it came once and in order.
        of_victim = client.checker.report({victim.boot: client.checker.highest(victim.boot)})
        assert of_victim.is_perfect, of_victim
    for node in survivors:
        assert counters(node)["links_down"] == 1


@pytest.mark.row("SIGSTOP, then SIGCONT", "dead within the timeout and 2 s; after CONT 0 lost, 0 doubled")
def test_stopped_node_is_noticed_and_resumes_with_nothing_lost_or_doubled(ships: Fleet, clients: list[Client]) -> None:
    nodes = ships.nodes(3, ships.discovery(), **HEARTBEATS)
    linked(nodes)
    sleeper, *others = nodes
    clients += [Client(node.url) for node in nodes]
    for node in nodes:
        node.do("start_traffic", 200)
    for client in clients:
        for node in nodes:
            client.wait_for_number(node.boot, 20)
    sleeper.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    for node in others:
        eventually(lambda node=node: not node.considers_alive(sleeper), 30)  # type: ignore[misc]  # bound now
    noticed = time.monotonic() - stopped
    say(f"SIGSTOP: noticed within {noticed:.2f} s with heartbeat_timeout={HEARTBEATS['heartbeat_timeout']}")
    assert noticed < HEARTBEATS["heartbeat_timeout"] + 2.0
    before = counters(others[0])["messages_sent"]
    eventually(lambda: counters(others[0])["messages_sent"] > before + 200)
    sleeper.signal(signal.SIGCONT)
    woken = time.monotonic()
    linked(nodes, 20)
    say(f"SIGCONT: all links are up again after {time.monotonic() - woken:.2f} s")
    sent = {node.boot: node.do("stop_traffic") for node in nodes}
    wait_for_numbers(clients, sent)
    for client in clients:
        report = client.checker.report(sent)
        assert report.is_perfect, report
    assert all(counters(node)["sent_lost"] == counters(node)["received_lost"] == 0 for node in nodes)
    # The two that stood beside it never lost each other.
    assert all(counters(node)["links_down"] == 1 for node in others)
