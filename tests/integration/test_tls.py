"""A whole mesh over TLS, as the environment says: discovery, nodes, an emitter, a shell; and certificates renewed."""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.certificates import Authority, Files
from tests.integration.clients import Client
from tests.integration.processes import Fleet, Node, linked

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(ships: Fleet, authority: Authority, tmp_path: Path) -> Files:
    """What all processes use."""
    files = authority.files(tmp_path / "tls")
    ships.variables |= files.environment
    return files


@pytest.mark.usefixtures("files")
def test_nodes_and_emitters_share_everything(ships: Fleet, clients: list[Client]) -> None:
    discovery = ships.discovery(token="a token of 26 characters..")
    ships.variables |= {"MESH_AUTH_TOKEN": "a token of 26 characters..", "MESH_DISCOVERY": discovery.url}
    assert discovery.url.startswith("wss://")
    nodes = ships.nodes(2, discovery)
    linked(nodes)
    one, two = nodes
    assert one.state()["peers"][two.uid]["address"] == f"wss://127.0.0.1:{two.ws_port}"
    clients += [Client(node.url) for node in nodes]
    one.do("burst", 2000, padding=2000)
    clients[1].wait_for_number(one.boot, 2000)
    options = json.dumps({"discovery": discovery.url, "threads": 2, "count": 500})
    emitter = ships.program("emitting", [sys.executable, "-m", "tests.integration.emitting", options])
    emitter.wait_for(r"^done$", 30)
    assert '"flushed": true' in emitter.output
    shell = ships.program("shell", [sys.executable, "-m", "gevent_mesh.cli", "emit", "news", '"hello"'])
    assert shell.wait(20) == 0, shell.tail()
    for client in clients:
        assert client.wait_for("news") == [("hello",)]
        # The node, and the threads of the emitter: everything came before the last event, once and in order.
        assert client.checker.report({one.boot: 2000, "thread 0": 500, "thread 1": 500}).is_perfect


@pytest.mark.usefixtures("files")
def test_nodes_of_one_host_need_no_discovery_service(ships: Fleet) -> None:
    nodes = ships.nodes(2, None)
    linked(nodes)
    assert all(info["address"].startswith("wss://") for info in nodes[0].state()["peers"].values())


def test_probes_and_scrapers_need_no_certificate(ships: Fleet, files: Files) -> None:
    ships.variables |= {"METRICS_PORT": "0"}
    discovery = ships.discovery()
    metrics = discovery.wait_for(r"^metrics on (https://\S+)$")[1]
    trusting = ssl.create_default_context(cafile=str(files.ca))
    with urlopen(f"https://127.0.0.1:{discovery.port}/healthz", timeout=10, context=trusting) as answer:
        assert answer.read() == b"ok\n"
    with urlopen(metrics, timeout=10, context=trusting) as answer:
        assert b"servers_registered" in answer.read()


def test_certificates_are_renewed_under_running_processes(ships: Fleet, files: Files) -> None:
    """Even the CA is another one, and no link goes down; who comes later has never seen the former one."""
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery)
    linked(nodes)
    new = Authority()
    files.write(new.issue("127.0.0.1", "localhost"), new)
    later: Node = ships.node(discovery)
    linked([*nodes, later])
    assert [node.state()["counters"]["links_down"] for node in nodes] == [0, 0]


def test_who_has_no_certificate_is_told_so_and_stays_out(ships: Fleet, files: Files) -> None:
    discovery = ships.discovery()
    for name in files.environment:
        del ships.variables[name]
    node = ships.node(discovery)
    node.wait_for(r"discovery wss://.*its certificate is not signed by a CA that is trusted here \(MESH_TLS_CA\)")
    discovery.wait_for("TLS failed: 'it does not take our certificate: it does not trust our CA'")
