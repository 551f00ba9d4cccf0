"""When a node may be sent clients, when its process must be started anew, and the application that tells."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import gevent
import pytest

from gevent_mesh import GeventMeshManager, Health, HealthApp, startup
from gevent_mesh.config import MeshConfig
from gevent_mesh.health import HealthService
from gevent_mesh.net.watch import MAX_LEFT_BEHIND
from gevent_mesh.node import Node
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.membership import PeerState
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.peers import Peer, PeerTable
from tests.net.nodes import NOBODY
from tests.support import eventually

LOGGER = logging.getLogger("tests.health")
UID = "00000000000000ff"
OTHERS = [f"00000000000000{n:02x}" for n in range(9)]


class Fake:
    """A node whose peers are as a test says."""

    def __init__(self, *named: str) -> None:
        self.table = PeerTable(UID, random.Random(1))
        self.mesh = SimpleNamespace(
            table=self.table,
            config=SimpleNamespace(heartbeat_timeout=10.0),
            watch=SimpleNamespace(left_behind=0),
            swept_at=time.monotonic(),
        )
        self.is_leaving = False
        self.knows_nodes = True
        self.service = HealthService(self, LOGGER)  # type: ignore[arg-type]  # what it looks at
        self.name(*named)

    def name(self, *uids: str) -> None:
        """Take a roster that names these nodes."""
        self.table.roster("test", {uid: f"ws://127.0.0.1:{n + 1}" for n, uid in enumerate(uids)}, True, 0.0)

    def peer(self, uid: str) -> Peer:
        peer = self.table.get(uid)
        assert peer is not None
        return peer

    def link(self, *uids: str) -> None:
        for uid in uids:
            peer = self.peer(uid)
            link: Any = SimpleNamespace(heard_at=time.monotonic())
            peer.link, peer.member.state, peer.linked_at = link, PeerState.ALIVE, link.heard_at

    def lose(self, *uids: str, state: PeerState = PeerState.SUSPECT) -> None:
        for uid in uids:
            peer = self.peer(uid)
            peer.link, peer.member.state, peer.present = None, state, False

    def formed(self, count: int) -> Fake:
        self.name(*OTHERS[:count])
        self.link(*OTHERS[:count])
        assert self.health.is_ready
        return self

    @property
    def health(self) -> Health:
        return self.service.health()


def test_node_that_has_not_joined_is_not_ready_and_well() -> None:
    manager = GeventMeshManager(NOBODY)
    health = manager.health()
    assert (health.is_ready, health.is_healthy) == (False, True)
    assert "not joined" in health.reasons[0]


def test_node_without_a_roster_is_not_ready() -> None:
    fake = Fake()
    fake.knows_nodes = False
    assert not fake.health.is_ready
    assert "discovery" in fake.health.reasons[0]


def test_first_node_is_ready() -> None:
    assert Fake().health == Health(True, True, roster_seen=True)


def test_new_node_waits_for_links_to_all_that_are_named() -> None:
    fake = Fake(*OTHERS[:3])
    fake.link(*OTHERS[:2])
    health = fake.health
    assert not health.is_ready
    assert (health.links_expected, health.links_up, health.missing) == (3, 2, (OTHERS[2],))
    fake.link(OTHERS[2])
    assert fake.health.is_ready


def test_name_that_nobody_can_reach_keeps_a_new_node_waiting_until_it_is_given_up() -> None:
    fake = Fake(*OTHERS[:2])
    fake.link(OTHERS[0])
    fake.table.tick(29.0)
    assert not fake.health.is_ready
    fake.table.tick(31.0)
    assert fake.health.is_ready


def test_newcomers_do_not_make_old_nodes_wait() -> None:
    fake = Fake().formed(3)
    fake.name(*OTHERS[:5])
    assert fake.health.is_ready
    assert fake.health.links_expected == 3


@pytest.mark.parametrize("count", [0, 3])
def test_newcomers_that_nobody_can_reach_make_nobody_unready(count: int) -> None:
    fake = Fake().formed(count)
    fake.name(*OTHERS)
    health = fake.health
    assert (health.is_ready, health.links_expected, health.missing) == (True, count, ())


def test_newcomer_counts_once_it_has_been_linked() -> None:
    fake = Fake().formed(0)
    fake.name(OTHERS[0])
    fake.link(OTHERS[0])
    assert fake.health.is_ready
    fake.lose(OTHERS[0])
    assert not fake.health.is_ready


@pytest.mark.parametrize(("others", "lost", "is_ready"), [(1, 1, False), (2, 1, True), (3, 1, True), (3, 2, True),
                                                          (3, 3, False), (9, 5, True), (9, 6, False)])  # fmt: skip
def test_node_on_the_smaller_side_of_a_partition_is_not_ready(others: int, lost: int, is_ready: bool) -> None:
    fake = Fake().formed(others)
    fake.lose(*OTHERS[:lost])
    assert fake.health.is_ready is is_ready
    assert fake.health.is_healthy
    assert fake.health.missing == tuple(OTHERS[:lost])


def test_node_that_hears_nothing_is_not_ready_before_its_links_are_cut() -> None:
    fake = Fake().formed(3)
    for uid in OTHERS[:3]:
        fake.peer(uid).link.heard_at -= 9.5  # type: ignore[union-attr,misc]  # what `link` made
    assert not fake.health.is_ready
    assert fake.health.links_up == 0


def test_link_that_has_just_broken_counts() -> None:
    fake = Fake().formed(9)
    fake.lose(OTHERS[0])
    assert fake.health.is_ready
    peer = fake.peer(OTHERS[0])
    peer.present, peer.linked_at, peer.heard_at = True, 100.0, 110.0
    assert not fake.health.is_ready
    fake.link(OTHERS[0])
    assert fake.health.is_ready


def test_link_that_comes_and_goes_all_the_time_does_not() -> None:
    fake = Fake().formed(9)
    fake.lose(OTHERS[0])
    peer = fake.peer(OTHERS[0])
    peer.present, peer.linked_at, peer.heard_at = True, 100.0, 109.0
    assert fake.health.is_ready


def test_dead_and_delisted_nodes_are_not_waited_for() -> None:
    fake = Fake().formed(2)
    fake.lose(OTHERS[0], state=PeerState.DEAD)
    fake.lose(OTHERS[1])
    fake.name(OTHERS[0])
    assert fake.health.is_ready
    assert fake.health.links_expected == 0


def test_linked_node_counts_though_discovery_has_forgotten_it() -> None:
    fake = Fake().formed(3)
    fake.name()
    assert fake.health.links_expected == fake.health.links_up == 3


def test_node_that_is_deaf_to_somebody_is_not_ready() -> None:
    fake = Fake().formed(4)
    fake.peer(OTHERS[1]).hearing.deaf_since = time.monotonic()
    health = fake.health
    assert (health.is_ready, health.is_healthy, health.deaf) == (False, True, (OTHERS[1],))
    assert OTHERS[1] in health.reasons[0]
    fake.peer(OTHERS[1]).hearing.deaf_since = None
    assert fake.health.is_ready


@pytest.mark.parametrize(("others", "deaf", "is_healthy"), [(1, 1, False), (2, 1, True), (4, 1, True), (2, 2, False),
                                                            (4, 2, False)])  # fmt: skip
def test_deafness_that_does_not_heal_wants_a_new_process(others: int, deaf: int, is_healthy: bool) -> None:
    fake = Fake().formed(others)
    for uid in OTHERS[:deaf]:
        fake.peer(uid).hearing.deaf_since = time.monotonic() - 31
    health = fake.health
    assert (health.is_ready, health.is_healthy) == (False, is_healthy)
    assert ("not healed" in health.reasons[-1]) is not is_healthy


def test_messages_that_hang_in_numbers_want_a_new_process() -> None:
    fake = Fake().formed(1)
    fake.mesh.watch.left_behind = MAX_LEFT_BEHIND - 1
    assert fake.health.is_ready
    fake.mesh.watch.left_behind = MAX_LEFT_BEHIND
    assert (fake.health.is_ready, fake.health.is_healthy) == (False, False)


def test_scheduler_that_stands_still_wants_a_new_process() -> None:
    fake = Fake()
    fake.mesh.swept_at -= 31
    assert not fake.health.is_healthy


def test_leaving_node_is_not_ready_and_well() -> None:
    fake = Fake().formed(1)
    fake.is_leaving = True
    health = fake.health
    assert (health.is_ready, health.is_healthy, health.is_leaving) == (False, True, True)
    assert health.reasons == ("it is leaving the mesh",)


def test_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fake = Fake().formed(1)
    for _ in range(3):
        fake.service.sweep(0.0)
    fake.lose(OTHERS[0])
    for _ in range(3):
        fake.service.sweep(0.0)
    told = [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    assert told == ["ready", "not ready: it hears 0 of 1 other nodes"]


def test_node_that_joins_anew_waits_again() -> None:
    fake = Fake().formed(3)
    fake.lose(OTHERS[0])
    assert fake.health.is_ready
    fake.service.left()
    assert not fake.health.is_ready


# ---------------------------------------------------------------------- over real links


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes that know of each other."""
    config = MeshConfig(discovery=(NOBODY,), port=0, heartbeat_interval=0.2, heartbeat_timeout=0.8)
    nodes = [Node(config, LOGGER, dict) for _ in "ab"]
    for node in nodes:
        node.add(HealthService(node, LOGGER))
        node.start("json")
    addresses = {node.uid: f"ws://127.0.0.1:{node.mesh.port}" for node in nodes if node.mesh}
    for node in nodes:
        assert node.mesh is not None
        node.mesh._take_roster("test", addresses, True)
    eventually(lambda: all(health_of(node).is_ready for node in nodes))
    yield nodes
    gevent.joinall([gevent.spawn(node.stop, 0.2) for node in nodes], timeout=10)


def health_of(node: Node) -> Health:
    (service,) = [service for service in node._services if isinstance(service, HealthService)]
    return service.health()


def test_node_whose_services_hear_nothing_is_not_ready_within_the_heartbeat_timeout(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf, other = nodes
    assert deaf.mesh is not None
    with monkeypatch.context() as patched:
        # Nobody emits anything: heartbeats alone show it.
        patched.setattr(deaf, "_handlers", {})
        began = time.monotonic()
        eventually(lambda: not health_of(deaf).is_ready)
        assert time.monotonic() - began < 0.8
        eventually(lambda: health_of(deaf).deaf == (other.uid,))
        # It stays so over new links.
        eventually(lambda: deaf.mesh and deaf.mesh.counters.links_up > 2)
        assert not health_of(deaf).is_ready
    eventually(lambda: health_of(deaf).is_ready)
    assert health_of(deaf).is_healthy


def test_node_that_hears_heartbeats_and_no_messages_is_deaf(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    deaf, other = nodes
    monkeypatch.setattr(deaf, "on_message", lambda _peer, _message: None)
    other.publish(MessageType.SERVER_SIDE_EMIT, "/", messages.server_side_emit(["note"]))
    eventually(lambda: not health_of(deaf).is_ready)
    assert health_of(other).is_healthy


def test_message_that_no_service_is_there_for_is_no_deafness(nodes: list[Node]) -> None:
    one, other = nodes
    assert one.mesh is not None
    assert MessageType.ADAPTER_CLOSE not in one._handlers
    judged = one.mesh.table.get(other.uid)
    assert judged is not None
    received = judged.session.received
    other.publish(MessageType.ADAPTER_CLOSE, "/", {})
    eventually(lambda: judged.session.received > received and not judged.hearing._came)
    assert health_of(one).is_ready
    assert one.mesh.counters.links_down == 0


def test_message_that_cannot_be_handled_is_no_deafness(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    one, other = nodes
    assert one.mesh is not None

    def fail(_peer: Peer, _message: object) -> None:
        raise RuntimeError("boom")

    one._handlers[MessageType.SERVER_SIDE_EMIT] = fail
    other.publish(MessageType.SERVER_SIDE_EMIT, "/", messages.server_side_emit(["note"]))
    eventually(lambda: "could not be handled" in caplog.text)
    judged = one.mesh.table.get(other.uid)
    assert judged is not None
    eventually(lambda: not judged.hearing._came)  # there was a heartbeat
    assert health_of(one).is_ready
    assert one.mesh.counters.links_down == 0


# ---------------------------------------------------------------------- over HTTP


class Ill:
    """What is asked."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def health(self) -> Health:
        return self._health


def ask(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    def asking() -> tuple[int, Any]:
        try:
            with urlopen(Request(f"http://127.0.0.1:{port}{path}", method=method), timeout=5) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    # The server is a greenlet of this thread.
    answer: tuple[int, Any] = gevent.get_hub().threadpool.apply(asking)
    return answer


@pytest.mark.parametrize(
    ("health", "codes"),
    [(Health(True, True), (200, 200)), (Health(False, True), (200, 503)), (Health(False, False), (503, 503))],
)
def test_status_says_whether_it_is_well_and_ready(health: Health, codes: tuple[int, int]) -> None:
    server = HealthApp(Ill(health)).serve(0)
    try:
        found = [ask(server.server_port, path) for path in ("/healthz", "/readyz")]
        assert tuple(code for code, _ in found) == codes
        assert {json.loads(body)["is_ready"] for _, body in found} == {health.is_ready}
        assert ask(server.server_port, "/readyz", "HEAD") == (codes[1], b"")
        assert ask(server.server_port, "/elsewhere")[0] == 404
    finally:
        server.stop()


def test_port_of_its_own_is_no_reason_to_join() -> None:
    was_served = startup.is_served()
    server = HealthApp(Ill(Health(True, True))).serve(0)
    server.stop()
    assert startup.is_served() == was_served


def test_other_paths_go_to_the_application_behind_it() -> None:
    def behind(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    app = HealthApp(Ill(Health(True, True)), behind)
    assert app({"PATH_INFO": "/elsewhere"}, lambda *_: None) == [b"/elsewhere"]
    assert b"is_ready" in b"".join(app({"PATH_INFO": "/readyz"}, lambda *_: None))


def test_body_tells_no_secret() -> None:
    manager = GeventMeshManager(NOBODY, auth_token="a secret of 24 characters")
    body = b"".join(HealthApp(manager)({"PATH_INFO": "/healthz"}, lambda *_: None))
    assert b"secret" not in body
    assert b"ws://" not in body


def test_write_only_manager_is_ready_when_it_has_a_node() -> None:
    manager = GeventMeshManager(NOBODY, write_only=True)
    assert (manager.health().is_ready, manager.health().is_healthy) == (False, True)
