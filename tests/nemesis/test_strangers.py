"""Strangers, who never become peers, and do not stay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from gevent_mesh.protocol import frames
from gevent_mesh.protocol.frames import decode_frame, encode_frame
from tests.integration.clients import Client, clients_closed
from tests.integration.processes import FULL, Fleet, Node, fleet, linked
from tests.nemesis.faults import MIB, time_until
from tests.nemesis.figures import Figures
from tests.nemesis.strangers import (
    STRANGERS,
    Stranger,
    garbage,
    half_a_request,
    hello_and_silence,
    silence,
    silence_after_upgrade,
)  # fmt: skip
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

TOKEN = "a token for these tests"


@dataclass
class Served:
    """Two nodes with a token, and events that flow between them all the time."""

    nodes: list[Node]
    client: Client

    def cuts(self, approach: Callable[[Stranger], None]) -> float:
        """Have a stranger approach the first node; returns how long it was there."""
        began = time.monotonic()
        stranger = Stranger(self.nodes[0])
        with stranger.sock:
            with contextlib.suppress(ConnectionError):
                approach(stranger)
            stranger.seconds_until_cut()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fleet() as ships, clients_closed([]) as clients:
        nodes = ships.nodes(2, ships.discovery(token=TOKEN), auth_token=TOKEN, ws_host="127.0.0.1")
        linked(nodes)
        clients.append(Client(nodes[1].url))
        yield Served(nodes, clients[0])


@pytest.mark.row("strangers of all kinds", "none becomes a peer; all are gone in 5.5 s; memory at most +4 MiB")
def test_strangers_never_become_peers_and_are_cut_in_time(served: Served, figures: Figures) -> None:
    node, other = served.nodes
    node.do("start_traffic", 200)
    # All kinds at once, several of each: also to see what they cost together.
    rounds = 3
    served.client.wait_for_number(node.boot, node.state()["sent"])
    for approach in STRANGERS:
        # What is allocated once, by the first of a kind, is not what this is about.
        if approach not in (garbage, silence, half_a_request, silence_after_upgrade, hello_and_silence):
            served.cuts(approach)
    before = node.state()
    seconds: dict[str, list[float]] = {}
    problems: list[Exception] = []

    def run(approach: Callable[[Stranger], None]) -> None:
        try:
            seconds.setdefault(approach.__name__, []).append(served.cuts(approach))
        except Exception as problem:  # noqa: BLE001  # told to the test, in its own thread
            problems.append(problem)

    threads = [threading.Thread(target=run, args=[approach]) for approach in STRANGERS * rounds]
    for thread in threads:
        thread.start()
    peak = before["rss"]
    while any(thread.is_alive() for thread in threads):
        state = node.state()
        peak = max(peak, state["rss"])
        assert state["links"] == [other.uid]
        assert state["peers"].keys() == {other.uid}
        sent = state["sent"]
        served.client.wait_for_number(node.boot, sent, 5)
    assert not problems, problems
    slowest = max(seconds, key=lambda name: max(seconds[name]))
    grown = (peak - before["rss"]) / MIB
    figures["strangers"] = len(threads)
    figures["slowest"] = slowest
    figures["slowest_seconds"] = max(seconds[slowest])
    figures["memory_mib"] = grown
    assert seconds.keys() == {approach.__name__ for approach in STRANGERS}
    assert max(seconds[slowest]) < 5.5
    assert grown < 4
    sent = node.do("stop_traffic")
    served.client.wait_for_number(node.boot, sent)
    state = node.state()
    assert (state["counters"]["links_up"], state["counters"]["links_down"]) == (1, 0)
    first = {node.boot: 1}
    assert served.client.checker.report({node.boot: sent}, first).is_perfect


@pytest.mark.row("replayed handshake", "refused; the honest one stays")
def test_replayed_handshake_is_refused(served: Served) -> None:
    node = served.nodes[0]
    honest = Stranger(node)
    with honest.sock:
        honest.upgrade()
        hello, auth = honest.authenticate(TOKEN)
        welcome = decode_frame(honest.receive())
        assert isinstance(welcome, frames.Welcome)
        uid = "00000000000000aa"
        eventually(lambda: uid in node.links())
        # The token opens the door, so the recorded frames were good once.
        replaying = Stranger(node)
        with replaying.sock:
            replaying.upgrade()
            replaying.send(hello)
            replaying.receive()
            replaying.send(auth)
            refusal = decode_frame(replaying.receive())
            assert isinstance(refusal, frames.Bye)
            assert refusal.code == frames.Refusal.UNAUTHORIZED
            assert replaying.seconds_until_cut() < 5.5
        assert uid in node.links(), "the honest one was replaced"
        honest.send(encode_frame(frames.Bye(frames.Refusal.LEAVING, "thank you")))
        honest.seconds_until_cut()
    eventually(lambda: uid not in node.state()["peers"])


@pytest.mark.row("node with a wrong token", "0 events out, 0 accepted")
def test_node_with_a_wrong_token_stays_outside(ships: Fleet, clients: list[Client]) -> None:
    """Also when a discovery without a token tells both of each other."""
    open_discovery = ships.discovery()
    outsider = ships.node(open_discovery, auth_token="a wrong token for this", ws_host="127.0.0.1")
    insider = ships.node(open_discovery, auth_token=TOKEN, ws_host="127.0.0.1")
    for node in (outsider, insider):
        # The discovery server cannot prove that it knows the token, so its roster is not believed.
        node.wait_for(r"WARNING.*discovery")
        assert node.links() == set()
    clients.append(Client(insider.url))
    outsider.do("emit", "secret", 1)
    insider.do("emit", "marker", 1)
    clients[0].wait_for("marker")
    assert clients[0].received("secret") == []


@pytest.mark.row("an address that somebody else listens at", "no link, no event")
def test_listener_that_does_not_know_the_token_gets_nothing(ships: Fleet) -> None:
    """A discovery server that lies about an address brings nobody behind it the token, or events."""
    discovery = ships.discovery(token=TOKEN)
    node = ships.node(discovery, auth_token=TOKEN, ws_host="127.0.0.1")
    other = ships.node(discovery, auth_token="another token, but valid here", ws_host="127.0.0.1")
    other.wait_for("token")
    time_until(lambda: node.state()["discovery"] == [True], 5)
    assert node.links() == set()
    assert other.links() == set()
