"""Discovery that the nodes of a host serve in turn."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gevent_mesh import GeventMeshManager
from tests.paper import PaperNode
from tests.ports import reserved_port
from tests.support import eventually

TOKEN = "a token that is long enough"

Join = Callable[..., PaperNode]


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as reserved:
        yield reserved


@pytest.fixture
def join(port: int) -> Iterator[Join]:
    """Starts nodes without an address."""
    nodes: list[PaperNode] = []

    def start(**options: Any) -> PaperNode:
        nodes.append(PaperNode(GeventMeshManager(embedded_port=port, **options)))
        return nodes[-1]

    yield start
    for node in nodes:
        node.manager.stop(0.1)


def is_serving(node: PaperNode) -> bool:
    embedded = node.manager._node.embedded
    return embedded is not None and embedded.is_serving


def is_registered(node: PaperNode) -> bool:
    mesh = node.manager.mesh
    return mesh is not None and all(client.connected for client in mesh._discovery)


def whole(*nodes: PaperNode) -> None:
    """Wait until these are linked to each other, and registered with the one of them that serves."""
    for node in nodes:
        assert node.manager.wait_for_peers(len(nodes) - 1)
        eventually(lambda node=node: is_registered(node))  # type: ignore[misc]  # bound now
    eventually(lambda: [is_serving(node) for node in nodes].count(True) == 1)


def links_down(node: PaperNode) -> int:
    assert node.manager.mesh is not None
    return node.manager.mesh.counters.links_down


def test_nodes_without_an_address_find_each_other(join: Join) -> None:
    one, two, three = join(), join(), join()
    whole(one, two, three)
    two.connects("e")
    three.server.emit("news", 1)
    two.gets("news")


def test_another_one_takes_over_and_no_link_goes_down(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [join(), join(), join()]
    whole(*nodes)
    with caplog.at_level(logging.INFO):
        serving = next(node for node in nodes if is_serving(node))
        nodes.remove(serving)
        serving.manager.stop()
        whole(*nodes)
        whole(*nodes, join())
    # Only to the one that has left.
    assert [links_down(node) for node in nodes] == [1, 1]
    assert caplog.text.count("serving discovery to the nodes of this host") == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_node_that_stopped_may_start_again(join: Join) -> None:
    one, two = join(), join()
    whole(one, two)
    for _ in range(2):
        one.manager.stop()
        eventually(lambda: is_serving(two))
        one.manager.start()
        whole(one, two)


def test_channels_share_discovery_and_do_not_link(join: Join) -> None:
    nodes = [join(channel=channel) for channel in ("one", "two", "one", "two")]
    for node in nodes:
        assert node.manager.wait_for_peers(1)
        eventually(lambda node=node: is_registered(node))  # type: ignore[misc]  # bound now
        assert len([peer for peer in node.manager.peers if peer.state == "alive"]) == 1
    assert [is_serving(node) for node in nodes].count(True) == 1


def test_an_emitter_without_an_address_finds_the_nodes_and_serves_nothing(
    join: Join, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    emitter = GeventMeshManager(embedded_port=port, write_only=True)
    try:
        emitter.emit("news", 1)
        eventually(lambda: "MESH_DISCOVERY names a discovery service elsewhere" in caplog.text)
        with socket.socket() as other:
            assert other.connect_ex(("127.0.0.1", port)) != 0
        node = join()
        node.connects("e")
        emitter.emit("news", 2)
        assert emitter.flush()
        node.gets("news")
    finally:
        emitter.close(0)


def test_another_program_on_the_port_is_told_and_waited_for(
    join: Join, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        other.setblocking(False)
        node = join()

        def refuse() -> bool:
            with contextlib.suppress(BlockingIOError):
                other.accept()[0].close()
            return "MESH_EMBEDDED_PORT" in caplog.text

        eventually(refuse)
        assert not is_registered(node)
    eventually(lambda: is_serving(node) and is_registered(node))
    whole(node, join())
    told = [record.getMessage() for record in caplog.records if "MESH_EMBEDDED_PORT" in record.getMessage()]
    assert len(told) == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is already in use" in told[0]


def test_nodes_with_another_token_are_refused_and_told_why(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    one, two = join(auth_token=TOKEN), join(auth_token=TOKEN)
    whole(one, two)
    stranger = join(auth_token=f"another {TOKEN}")
    eventually(lambda: "MESH_EMBEDDED_PORT" in caplog.text)
    assert "does not accept our token" in caplog.text
    assert stranger.manager.peers == []
    whole(one, two)


def test_a_node_that_works_alone_opens_no_port(join: Join) -> None:
    node = join(discovery_service_address=[])
    assert node.manager.mesh is not None
    assert (node.manager.mesh.port, node.manager.mesh._discovery, is_serving(node)) == (0, [], False)


def test_a_fork_leaves_discovery_to_its_parent(port: int) -> None:
    """Also the port: it must be free when the parent dies, although the fork lives."""
    code = f"""
        import os, sys, gevent, gevent.os, psutil, socketio
        from gevent_mesh import GeventMeshManager
        managers = [GeventMeshManager(embedded_port={port}) for _ in "ab"]
        for manager in managers:
            socketio.Server(async_mode="gevent", client_manager=manager)
            manager.start()
        assert all(manager.wait_for_peers(1) for manager in managers)
        pid = gevent.os.fork()
        if pid == 0:
            gevent.sleep(0.5)  # the loop of the child
            os._exit(1 if psutil.Process().net_connections() else 0)
        while (ended := gevent.os.waitpid(pid, os.WNOHANG)) == (0, 0):
            gevent.sleep(0.01)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        for manager in managers:
            assert [client.connected for client in manager.mesh._discovery] == [True]
            assert manager.mesh.counters.links_down == 0
            manager.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
