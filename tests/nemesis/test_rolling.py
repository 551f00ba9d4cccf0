"""Deploys: every node is replaced, one after the other, while all of them work."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence

import pytest

from tests.integration.clients import Client
from tests.integration.processes import FULL, Fleet, Node, Proxy, linked
from tests.nemesis.faults import time_until, wait_for_numbers
from tests.nemesis.figures import Figures

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

NODES = 10 if FULL else 3
CLIENTS = 100 if FULL else 12
RATE = 300
DRAIN_RATE = 50
ROOM = "witnesses"


class Balancer:
    """The one address that clients know: it leads to one node after the other."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._port = proxy.route()
        self.url = f"http://127.0.0.1:{self._port}"

    def lead_to(self, node: Node) -> None:
        self._proxy.do("lead", self._port, node.http_port)


class Witness:
    """A client that stays at one node: it hears what that node hears, from now on until that leaves.

    Args:
        node: where it is.
        elders: the other nodes that emit already.
    """

    def __init__(self, node: Node, elders: Sequence[Node]) -> None:
        self.node = node
        self.client = Client(node.url)
        self.client.enter(ROOM)
        self._elders = {elder.boot for elder in elders}
        for elder in elders:
            self.client.wait_for_number(elder.boot, 1)

    def missing(self, boot: str, last: int) -> int:
        """How many events of a node did not come, up to the last one, from the first one that could."""
        checker = self.client.checker
        first = checker.lowest(boot) if boot in self._elders else 1
        report = checker.report({boot: last}, {boot: first})
        assert (report.doubled, report.late) == (0, 0)
        return report.missing


def counts_right(nodes: Sequence[Node]) -> bool:
    return all(node.do("cluster", "server_count")["value"] == len(nodes) for node in nodes)


@pytest.mark.row(
    "rolling restart of all nodes under load, clients reconnecting",
    "0 lost between live nodes; counts right within 1 s of each link",
)
def test_rolling_restart_under_load_loses_nothing(ships: Fleet, clients: list[Client], figures: Figures) -> None:
    discovery, balancer = ships.discovery(), Balancer(ships.proxy())
    nodes = ships.nodes(NODES, discovery, drain_rate=DRAIN_RATE)
    living = list(nodes)
    linked(nodes)
    for number in range(CLIENTS):
        balancer.lead_to(nodes[number % NODES])
        clients.append(Client(balancer.url, reconnection=True, reconnection_delay=0.2, auth={"user": number}))
    roaming = list(clients)
    witnesses = {node.boot: Witness(node, []) for node in nodes}
    clients += [witness.client for witness in witnesses.values()]
    for node in nodes:
        node.do("start_traffic", RATE / NODES, ROOM)

    sent: dict[str, int] = {}
    lost, linked_seconds, left_seconds, leaving_seconds = 0, [0.0], [0.0], [0.0]
    for old in nodes:
        new = ships.node(discovery, drain_rate=DRAIN_RATE)
        linked([*living, new])
        linked_seconds.append(time_until(lambda: counts_right([*living, new]), 10))  # noqa: B023  # called now
        witnesses[new.boot] = Witness(new, living)
        clients.append(witnesses[new.boot].client)
        new.do("start_traffic", RATE / NODES, ROOM)
        living.append(new)

        balancer.lead_to(new)
        living.remove(old)
        began = time.monotonic()
        old.signal(signal.SIGTERM)
        assert old.wait(20) == -signal.SIGTERM
        leaving_seconds.append(time.monotonic() - began)
        left_seconds.append(time_until(lambda: counts_right(living), 10))

        sent[old.boot] = json.loads(old.wait_for(r'^\{"left".*\}$')[0])["left"]
        for node in living:
            witnesses[node.boot].client.wait_for_number(old.boot, sent[old.boot])
            lost += witnesses[node.boot].missing(old.boot, sent[old.boot])
        # Of the others it is not known how far they had got; there is no gap in what the one that left has heard.
        leaver = witnesses[old.boot]
        lost += sum(leaver.missing(node.boot, leaver.client.checker.highest(node.boot)) for node in living)

    back = time_until(lambda: all(client.io.connected for client in roaming), 20)
    wanted = CLIENTS + NODES
    counted = time_until(lambda: all(node.do("cluster", "count_sockets")["value"] == wanted for node in living), 10)
    listed = time_until(lambda: all(len(node.do("present")) == CLIENTS for node in living), 10)
    final = {node.boot: node.do("stop_traffic") for node in living}
    for node in living:
        wait_for_numbers([witnesses[node.boot].client], final)
        lost += sum(witnesses[node.boot].missing(boot, count) for boot, count in final.items())
    sent |= final
    figures["events"] = sum(sent.values())
    figures["lost"] = lost
    figures["counts_after_link_seconds"] = max(linked_seconds)
    figures["counts_after_leave_seconds"] = max(left_seconds)
    figures["longest_leave_seconds"] = max(leaving_seconds)
    figures["last_client_back_after_seconds"] = back
    figures["clients_counted_after_seconds"] = counted
    figures["users_listed_after_seconds"] = listed
    assert lost == 0
    assert max(linked_seconds) < 1
    assert max(left_seconds) < 1
    assert max(counted, listed) < 1
