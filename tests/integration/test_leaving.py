"""Servers that end: their clients come back elsewhere, what they say last goes out, the other nodes know at once."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import psutil
import pytest

from gevent_mesh import GeventMeshManager
from tests.integration.clients import Client
from tests.integration.processes import FULL, Discovery, Fleet, Node, fleet, linked
from tests.integration.programs import gone
from tests.integration.test_gunicorn import APP, WORKER, Server, gunicorn
from tests.support import eventually

pytestmark = pytest.mark.integration

OUR_WORKER = "gevent_mesh.gunicorn.GeventMeshWorker"
CLIENTS = 10
EVENTS = 1500
ENOUGH_TIME = ("--graceful-timeout", "5")
"""gunicorn's workers look once a second whether they should end, and are killed when this is over."""


class Ending:
    """What is seen when an application server ends: by clients of it, and from another node.

    Args:
        clients: where to put what is to be closed.
        server: it.
        witness: the other node.
        peers: how many nodes the server is.
        transports: those that clients use, in turn.
        options: for `Client`.
    """

    def __init__(
        self,
        clients: list[Client],
        server: Server,
        witness: Node,
        *,
        peers: int = 1,
        transports: Sequence[str] = ("websocket", "polling"),
        **options: Any,
    ) -> None:
        self.server = server
        self._witness = witness
        eventually(lambda: len(witness.links()) == peers, 20)
        self.uids = witness.links()
        ways = [transports[number % len(transports)] for number in range(CLIENTS)]
        self.clients = [Client(server.url, transports=[way], **options) for way in ways]
        self._sids = sorted(client.sid for client in self.clients)
        self._observer = Client(witness.url)
        clients += [*self.clients, self._observer]

    def check(self, *, are_back: bool = False) -> None:
        """All clients were let go, their disconnect handlers were heard elsewhere, and the nodes have said goodbye."""
        gone = [sid for (sid,) in self._observer.wait_for("gone", count=CLIENTS)]
        assert sorted(gone) == self._sids
        eventually(lambda: not self.uids & set(self._witness.state()["peers"]))
        for uid in self.uids:
            assert f"link down: {uid} (the peer said goodbye: leaving)" in self._witness.output
        for client in self.clients:
            client.wait_for("(disconnected)")
            eventually(lambda client=client: client.io.connected == are_back, 10)  # type: ignore[misc]  # bound now


@pytest.fixture(scope="module")
def lasting() -> Iterator[Fleet]:
    """What all tests of this module share."""
    with fleet() as started:
        yield started


@pytest.fixture(scope="module")
def discovery(lasting: Fleet) -> Discovery:
    return lasting.discovery()


@pytest.fixture(scope="module")
def witness(lasting: Fleet, discovery: Discovery) -> Node:
    return lasting.node(discovery, heartbeat_interval=1.0, heartbeat_timeout=3.0)


SERVER = """
import gevent, signal
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler
from tests.integration.flask_app import app, manager
server = WSGIServer(("127.0.0.1", 0), app, handler_class=WebSocketHandler, log=None)
"""
START = "server.start(); print('port', server.server_port, flush=True)"
HANDLE = "gevent.signal_handler(signal.SIGTERM, server.stop)"
SERVE = "server.serve_forever(); print('done', manager.mesh)"


def serve(ships: Fleet, discovery: Discovery, *code: str, **variables: str) -> Server:
    command = [sys.executable, "-c", "\n".join([SERVER, *code])]
    variables = {"MESH_DISCOVERY": discovery.url, "MESH_PORT": "0", **variables}
    return Server(ships.program("server", command, **variables), r"^port (\d+)")


WAYS: dict[str, tuple[list[str], int, int]] = {
    "nobody handles SIGTERM": ([START, SERVE], signal.SIGTERM, -signal.SIGTERM),
    "handled by gevent": ([HANDLE, START, SERVE], signal.SIGTERM, 0),
    "Ctrl-C": ([START, SERVE], signal.SIGINT, -signal.SIGINT),
}
if FULL:
    by_python = "signal.signal(signal.SIGTERM, lambda *_: server.close())"
    WAYS |= {
        "nobody waits": ([START, "gevent.sleep(60)"], signal.SIGTERM, -signal.SIGTERM),
        "handled later": ([START, HANDLE, SERVE], signal.SIGTERM, 0),
        "handled by Python": ([by_python, START, SERVE], signal.SIGTERM, 0),
        "handled by Python later": ([START, by_python, SERVE], signal.SIGTERM, 0),
    }


@pytest.mark.parametrize(("code", "number", "exit_code"), WAYS.values(), ids=WAYS)
def test_a_server_of_ones_own(
    ships: Fleet,
    clients: list[Client],
    discovery: Discovery,
    witness: Node,
    code: list[str],
    number: int,
    exit_code: int,
) -> None:
    ending = Ending(clients, serve(ships, discovery, *code), witness)
    began = time.monotonic()
    ending.server.process.signal(number)
    assert ending.server.process.wait(10) == exit_code
    assert time.monotonic() - began < 2
    ending.check()
    assert ("done None" in ending.server.process.output) == (exit_code == 0)


def test_socketio_run(ships: Fleet, clients: list[Client], discovery: Discovery, witness: Node) -> None:
    command = [sys.executable, "-m", APP]
    process = ships.program("run", command, MESH_DISCOVERY=discovery.url, MESH_PORT="0")
    ending = Ending(clients, Server(process, r'^\{"http_port": (\d+)\}'), witness)
    process.signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    ending.check()


def test_a_second_sigterm_ends_at_once(
    ships: Fleet, clients: list[Client], discovery: Discovery, witness: Node
) -> None:
    server = serve(ships, discovery, START, SERVE, DRAIN_RATE="0.5")
    ending = Ending(clients, server, witness)
    server.process.signal(signal.SIGTERM)
    server.process.wait_for("clients are disconnected")
    server.process.signal(signal.SIGTERM)
    assert server.process.wait(2) == -signal.SIGTERM
    eventually(lambda: not ending.uids & witness.links())


@pytest.mark.parametrize("worker", [OUR_WORKER, WORKER] if FULL else [OUR_WORKER])
def test_gunicorn_ends(ships: Fleet, clients: list[Client], discovery: Discovery, witness: Node, worker: str) -> None:
    server = gunicorn(ships, discovery, "-w", "2", *ENOUGH_TIME, worker=worker)
    ending = Ending(clients, server, witness, peers=2, transports=["websocket"])
    ending.server.process.signal(signal.SIGTERM)
    assert ending.server.process.wait(10) == 0
    ending.check()
    assert "Traceback" not in ending.server.process.output


def test_gunicorns_workers_without_clients_say_goodbye(ships: Fleet, discovery: Discovery, witness: Node) -> None:
    server = gunicorn(ships, discovery, "-w", "2", *ENOUGH_TIME, worker=OUR_WORKER)
    eventually(lambda: len(witness.links()) == 2, 20)
    uids = witness.links()
    server.process.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    eventually(lambda: not uids & set(witness.state()["peers"]))
    for uid in uids:
        assert f"link down: {uid} (the peer said goodbye: leaving)" in witness.output


@pytest.mark.skipif(not FULL, reason="much the same as the other worker")
def test_gunicorn_of_the_plain_worker_ends(
    ships: Fleet, clients: list[Client], discovery: Discovery, witness: Node
) -> None:
    """It has long polling only."""
    server = gunicorn(ships, discovery, "-w", "1", *ENOUGH_TIME, worker="gevent")
    ending = Ending(clients, server, witness, transports=["polling"])
    server.process.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    ending.check()


@pytest.mark.parametrize("rate", ["2", "100"] if FULL else ["2"])
def test_gunicorn_reloads(ships: Fleet, clients: list[Client], discovery: Discovery, witness: Node, rate: str) -> None:
    """The clients come back to the new workers; the time that gunicorn gives is enough for those that take longer."""
    server = gunicorn(ships, discovery, "-w", "2", DRAIN_RATE=rate)
    ending = Ending(clients, server, witness, peers=2, transports=["websocket"], reconnection=True)
    master = psutil.Process(server.process.pid)
    before = master.children()
    server.process.signal(signal.SIGHUP)
    eventually(lambda: gone(before), 20)
    ending.check(are_back=True)
    eventually(lambda: len(witness.links()) == 2, 10)
    witness.do("emit", "again", 1)
    for client in ending.clients:
        client.wait_for("again")


def test_an_emitter_moves_to_another_node_and_loses_nothing(ships: Fleet, clients: list[Client]) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery)
    linked(nodes)
    emitter = GeventMeshManager(discovery.url, write_only=True)
    try:
        assert emitter.wait_for_peers(1)
        (taken,) = [node for node in nodes if node.uid == emitter.peers[0].uid]
        (other,) = [node for node in nodes if node is not taken]
        clients += [Client(taken.url), Client(other.url)]
        for number in range(1, EVENTS + 1):
            emitter.emit("tick", ("emitter", number))
            if number == EVENTS // 3:
                clients[1].wait_for_number("emitter", 1)
                taken.signal(signal.SIGTERM)
            gevent.sleep(0.0005)
        assert emitter.close()
        assert emitter.peers == []
    finally:
        emitter.stop(0)
    # By the signal, unless its main program has come to its end before that.
    assert taken.wait() in (0, -signal.SIGTERM)
    clients[1].wait_for_number("emitter", EVENTS)
    assert clients[1].checker.report({"emitter": EVENTS}).is_perfect
