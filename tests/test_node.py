"""Node: what its services are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from gevent_mesh.config import MeshConfig
from gevent_mesh.node import Node
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.service import Service
from tests.test_routing import peer


class Hearing(Service):
    """Notes what it is told, and fails at it if it should."""

    def __init__(self, *, fails: bool = False) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._fails = fails

    def _hear(self, what: str, told: Any) -> None:
        if self._fails:
            raise RuntimeError("on purpose")
        self.heard.append((what, told))

    def linked(self, peer: Peer) -> None:
        self._hear("linked", peer.uid)

    def lapsed(self, peer: Peer) -> None:
        self._hear("lapsed", peer.uid)

    def left(self) -> None:
        self._hear("left", None)

    def client_gone(self, sid: str, namespace: str) -> None:
        self._hear("client_gone", (sid, namespace))

    def sweep(self, now: float) -> None:
        self._hear("sweep", now)

    def settle(self) -> None:
        self._hear("settle", None)


@pytest.mark.parametrize(
    ("tell", "heard"),
    [
        (lambda node: node.on_linked(peer("a")), ("linked", "a")),
        (lambda node: node.on_lapsed(peer("a")), ("lapsed", "a")),
        (lambda node: node._left(), ("left", None)),
        (lambda node: node.client_gone("s", "/"), ("client_gone", ("s", "/"))),
        (lambda node: node.on_sweep(1.0), ("sweep", 1.0)),
        (lambda node: node.settle(), ("settle", None)),
    ],
)
def test_a_service_that_fails_silences_no_other(
    tell: Callable[[Node], None], heard: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    node, hearing = Node(MeshConfig(), logging.getLogger("gevent_mesh"), dict), Hearing()
    node.add(Hearing(fails=True), hearing, Hearing(fails=True))
    tell(node)
    assert hearing.heard == [heard]
    assert caplog.text.count(f"Hearing failed at {heard[0]}()") == 2
    assert "RuntimeError: on purpose" in caplog.text
