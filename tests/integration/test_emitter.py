"""Emitters as real processes: whatever becomes of nodes, every event arrives once."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.integration.clients import Client
from tests.integration.processes import Discovery, Fleet, Node, Process, linked
from tests.support import eventually

QUICK: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}

pytestmark = pytest.mark.integration


def last_report(emitter: Process) -> dict[str, Any]:
    """What the program has printed last (see `tests.integration.emitting`)."""
    reports = [line for line in emitter.output.split("\n")[:-1] if line.startswith('{"relay"')]
    found: dict[str, Any] = json.loads(reports[-1]) if reports else {"relay": [], "returned": {}, "total": 0}
    return found


def start_emitting(ships: Fleet, discovery: Discovery, *flags: str, **options: Any) -> Process:
    command = [sys.executable, "-m", "tests.integration.emitting", json.dumps({"discovery": discovery.url, **options})]
    return ships.program("emitting", [*command, *flags])


class TestKilledNodes:
    @pytest.mark.parametrize("flags", [(), ("--patched",)], ids=["plain threads", "monkey-patched"])
    def test_every_event_arrives_once_while_its_node_is_killed_twice(
        self, ships: Fleet, clients: list[Client], flags: tuple[str, ...]
    ) -> None:
        discovery = ships.discovery()
        nodes = ships.nodes(4, discovery, **QUICK)
        linked(nodes)
        clients += [Client(node.url) for node in nodes]
        client_of = dict(zip([node.uid for node in nodes], clients, strict=True))
        threads, count = 8, 1250
        emitter = start_emitting(ships, discovery, *flags, threads=threads, count=count)
        living = {node.uid: node for node in nodes}
        for after in (2000, 5000):
            relay = eventually(
                lambda after=after: relay_past(emitter, after, living),  # type: ignore[misc]  # bound now
                20,
            )
            assert relay is not None
            living.pop(relay).kill()
        emitter.wait_for(r"^done$", 60)
        outcome = json.loads(emitter.wait_for(r'^\{"flushed".*$')[0])
        assert outcome == {"flushed": True, "errors": []}
        sent = last_report(emitter)["returned"]
        assert sent == {f"thread {number}": count for number in range(threads)}
        for uid in living:
            client = client_of[uid]
            for name in sent:
                client.wait_for_number(name, count, 30)
            report = client.checker.report(sent)
            assert report.is_perfect, report
            assert report.received == threads * count


def relay_past(emitter: Process, total: int, living: dict[str, Node]) -> str | None:
    """The uid of the node that it is linked to, once it has emitted so many events."""
    report = last_report(emitter)
    relay: list[str] = report["relay"]
    return relay[0] if report["total"] >= total and relay and relay[0] in living else None
