"""Questions from a plain threaded process, with real nodes and clients, against a known truth."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.node import dumps
from tests.integration.processes import Discovery, Fleet, fleet, linked
from tests.integration.test_cluster import CLIENTS, Cluster, start, whole
from tests.support import eventually

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}


class Outside:
    """The program that asks (see `tests.integration.asking`)."""

    def __init__(self, ships: Fleet, url: str, **manager: Any) -> None:
        options = json.dumps({"discovery": url, "manager": manager})
        self._program = ships.program("asking", [sys.executable, "-m", "tests.integration.asking", options])
        self._ids = itertools.count()
        self._pool = ThreadPoolExecutor(16)

    def begin(self, method: str, *arguments: Any, brief: bool = False, **options: Any) -> Future[dict[str, Any]]:
        """Ask; the answer comes later."""
        number = next(self._ids)
        asked = {"id": number, "method": method, "arguments": arguments, "options": options, "brief": brief}
        stdin = self._program.popen.stdin
        assert stdin is not None
        stdin.write(dumps(asked).encode() + b"\n")
        stdin.flush()
        return self._pool.submit(self._answer, number)

    def ask(self, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        return self.begin(method, *arguments, **options).result()

    def _answer(self, number: int) -> dict[str, Any]:
        found = self._program.wait_for(rf'^\{{"id": {number}, .*\}}$', 30)
        told: dict[str, Any] = json.loads(found[0])
        return told

    def node(self) -> str:
        """The uid of the node that it is linked to."""
        return str(eventually(lambda: self.ask("node")["value"])[0])


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Cluster, Outside]]:
    """A cluster of three nodes, and somebody outside who asks."""
    with clients_closed([]) as opened, fleet() as ships:
        cluster = start(ships, opened, CLIENTS // 3)
        yield cluster, Outside(ships, cluster.url)


class TestAgainstTheTruth:
    def test_sockets_counts_and_rooms(self, world: tuple[Cluster, Outside]) -> None:
        cluster, outside = world
        for selection in cluster.selections():
            if selection.get("room") == []:
                continue
            known = cluster.select(**{"namespace": "/", **selection})
            told = outside.ask("fetch_sockets", **selection)
            # A question about one client of the asked node goes no further.
            fetched = whole(told, 1 if told["expected"] == 1 and len(known) == 1 else 3)
            assert len(fetched) == len(known)
            for socket in fetched:
                truth = known[socket["sid"]]
                assert socket["node"] == truth.node
                assert set(socket["rooms"]) == {socket["sid"], *truth.rooms}
                assert socket["address"] == "127.0.0.1"
                if selection.get("namespace") == "/lobby":
                    assert socket["data"] == {"name": socket["auth"]["name"]}
            count = outside.ask("count_sockets", **selection)
            assert (count["value"], count["missing"]) == (len(known), [])
            rooms = Counter(room for truth in known.values() for room in truth.rooms)
            assert dict(outside.ask("list_rooms", **selection)["value"]) == rooms

    def test_servers(self, world: tuple[Cluster, Outside]) -> None:
        cluster, outside = world
        uids = {node.uid: node.uid for node in cluster.nodes}
        assert whole(outside.ask("server_side_call", "who")) == uids
        assert whole(outside.ask("server_side_call", "add", 1, 2)) == dict.fromkeys(uids, 3)
        failed = outside.ask("server_side_call", "fail", namespace="/other")
        assert (failed["value"], set(failed["missing"])) == ({}, set(uids))
        eventually(lambda: outside.ask("server_count", "/lobby")["value"] == 3, 10)

    def test_what_clients_answer(self, world: tuple[Cluster, Outside]) -> None:
        cluster, outside = world
        numbers = {truth.client: n for n, truth in enumerate(cluster.truth["/"].values())}
        known = cluster.select("/", "third 1", "fifth 2")
        told = outside.ask("call", "number", room="third 1", except_rooms="fifth 2", timeout=10)
        assert sorted(told["value"]) == sorted(numbers[truth.client] for truth in known.values())
        assert (told["missing"], told["expected"], told["received"]) == ([], len(known), len(known))

    def test_commands(self, world: tuple[Cluster, Outside]) -> None:
        cluster, outside = world
        known = cluster.select("/other", "third 1", "fifth 3")
        where = {"namespace": "/other", "timeout": 10}
        assert whole(outside.ask("sockets_join", "joined", "third 1", "fifth 3", **where)) == len(known)
        for node in cluster.nodes:
            fetched = node.do("cluster", "fetch_sockets", "joined", namespace="/other")["value"]
            assert {socket["sid"] for socket in fetched} == known.keys()
        assert whole(outside.ask("sockets_leave", "joined", "joined", **where)) == len(known)
        assert whole(outside.ask("count_sockets", "joined", **where)) == 0

    def test_many_threads_at_once(self, world: tuple[Cluster, Outside]) -> None:
        cluster, outside = world
        asked = [outside.begin("count_sockets", namespace="/other") for _ in range(200)]
        count = len(cluster.truth["/other"])
        assert [whole(future.result()) for future in asked] == [count] * 200
        for node in cluster.nodes:
            assert node.state()["requests"] == 0


class TestFaults:
    @pytest.fixture
    def discovery(self, ships: Fleet) -> Discovery:
        return ships.discovery()

    def test_a_stopped_node_is_missing(self, ships: Fleet, discovery: Discovery, clients: list[Client]) -> None:
        nodes = ships.nodes(3, discovery)
        linked(nodes)
        clients += [Client(node.url, answer=lambda *_: 1) for node in nodes]
        outside = Outside(ships, discovery.url)
        assert whole(outside.ask("count_sockets")) == 3
        asked = outside.node()
        stopped = next(node for node in nodes if node.uid != asked)
        stopped.signal(signal.SIGSTOP)
        for method, arguments in (
            ("fetch_sockets", []), ("count_sockets", []), ("list_rooms", []), ("server_side_call", ["who"]),
            ("call", ["number"]), ("sockets_join", ["room"]),
        ):  # fmt: skip
            told = outside.ask(method, *arguments, timeout=1)
            assert told["missing"] == [stopped.uid], method
            assert told["received"] == 2
            assert told["seconds"] < 1.2
            assert len(told["value"]) == 2 if isinstance(told["value"], list) and method != "list_rooms" else True
        stopped.signal(signal.SIGCONT)

    def test_a_node_that_is_killed_in_the_middle(
        self, ships: Fleet, discovery: Discovery, clients: list[Client]
    ) -> None:
        nodes = ships.nodes(3, discovery, **QUICK)
        linked(nodes)
        clients += [Client(node.url) for node in nodes]
        outside = Outside(ships, discovery.url)
        assert whole(outside.ask("sockets_join", "room", timeout=5)) == 3
        asked = outside.node()
        dying = next(node for node in nodes if node.uid == asked)
        # So that it has the questions, and does not answer.
        dying.signal(signal.SIGSTOP)
        methods = ("fetch_sockets", "count_sockets", "list_rooms")
        questions = [outside.begin(method, timeout=20) for method in methods]
        commands = [
            outside.begin("server_side_call", "who", timeout=20),
            outside.begin("call", "number", timeout=20),
            outside.begin("sockets_leave", "another room", timeout=20),
        ]
        dying.kill()
        living = {node.uid for node in nodes if node is not dying}
        fetched, count, rooms = (future.result() for future in questions)
        assert {socket["node"] for socket in fetched["value"]} == living
        assert (count["value"], rooms["value"]) == (2, [["room", 2]])
        for told in (fetched, count, rooms):
            # The next node may be asked before it knows of the death.
            assert (told["missing"], told["received"]) in (([dying.uid], 2), ([], 2))
        for future in commands:
            told = future.result()
            assert told["seconds"] < 10
            # Those that had not been asked yet when it was killed are asked elsewhere; the others are not repeated.
            if told["expected"] == 1:
                assert (not told["value"], told["missing"], told["received"]) == (True, [], 0)
        assert outside.node() in living

    def test_with_no_node_it_ends_in_time(self, ships: Fleet, discovery: Discovery) -> None:
        outside = Outside(ships, discovery.url)
        told = outside.ask("fetch_sockets", timeout=0.5)
        assert (told["value"], told["missing"], told["expected"], told["received"]) == ([], [], 1, 0)
        assert told["seconds"] < 1


class TestLarge:
    def test_twenty_thousand_sockets_do_not_stop_a_node(self, ships: Fleet) -> None:
        discovery = ships.discovery()
        nodes = ships.nodes(2, discovery)
        linked(nodes)
        for node in nodes:
            node.do("populate", 10_000)
        outside = Outside(ships, discovery.url)
        gaps = []
        for _ in range(3):
            for node in nodes:
                node.do("watch_hub")
            told = outside.ask("fetch_sockets", timeout=20, brief=True)
            gaps.append(max(node.do("longest_gap") for node in nodes))
            assert whole(told, 2) == 20_000
        print(f"20,000 sockets: {told['seconds']:.2f} s, gaps {[round(gap * 1e3, 1) for gap in gaps]} ms")
        # The best of three: others are at work on this machine, and what they take is not ours.
        assert min(gaps) < 0.02
