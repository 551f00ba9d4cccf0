"""Presence in one process: what applications may call and get, and two nodes over a real link."""

from __future__ import annotations

import gc
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import flask
import flask_socketio
import gevent
import pytest
import socketio
from gevent.event import Event

from gevent_mesh import ConfigError, GeventMeshManager, Presence, PresentUser
from gevent_mesh import presence as presence_module
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.presence_messages import presence_delta
from gevent_mesh_discovery import DiscoveryServer
from tests.support import eventually

STALL_SECONDS = 0.02
"""What counts as a stall; the median of several, for what others on this machine take now and then is not ours."""

Make = Callable[..., GeventMeshManager]

_serial = itertools.count(1)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes managers that have a server, and stops them."""
    made: list[GeventMeshManager] = []

    def manager(*args: Any, **options: Any) -> GeventMeshManager:
        made.append(GeventMeshManager(*args, **{"ws_port": 0, **options}))
        socketio.Server(async_mode="gevent", client_manager=made[-1], namespaces=["/", "/other"])
        return made[-1]

    yield manager
    for one in made:
        one.stop(0.1)


@pytest.fixture
def alone(make: Make) -> GeventMeshManager:
    """A node that works alone."""
    return make([])


@pytest.fixture
def discovery() -> Iterator[str]:
    server = DiscoveryServer("127.0.0.1", 0)
    server.start()
    yield server.url
    server.stop()


def client(manager: GeventMeshManager, namespace: str = "/") -> str:
    """A client that is connected as far as the tables of python-socketio know. Returns its sid."""
    sid: str = manager.connect(f"eio {next(_serial)}", namespace)
    return sid


def gone(manager: GeventMeshManager, sid: str, namespace: str = "/") -> None:
    manager.disconnect(sid, namespace, ignore_queue=True)


def sees(presence: Presence, *users: Any) -> bool:
    return set(presence.users()) == set(users)


# ---------------------------------------------------------------------- what applications call


def test_one_namespace_has_one_presence(alone: GeventMeshManager) -> None:
    assert alone.presence() is alone.presence("/")
    assert alone.presence("/other") is not alone.presence()
    assert alone.presence("/other").namespace == "/other"


def test_a_tracked_client_makes_its_user_online_here_too(alone: GeventMeshManager) -> None:
    presence, sid = alone.presence(), client(alone)
    presence.track(sid, "ada", {"name": "Ada"})
    user = presence.get("ada")
    assert user is not None
    assert (user.id, user.meta, user.sids, user.nodes) == ("ada", {"name": "Ada"}, (sid,), (alone.uid,))
    assert "ada" in presence
    assert len(presence) == 1
    assert presence.users() == {"ada": user}
    presence.untrack(sid)
    assert presence.get("ada") is None


def test_a_client_that_disconnects_is_untracked(alone: GeventMeshManager) -> None:
    presence, sid = alone.presence(), client(alone)
    presence.track(sid, "ada")
    gone(alone, sid)
    assert len(presence) == 0


def test_namespaces_know_nothing_of_each_other(alone: GeventMeshManager) -> None:
    sid = client(alone, "/other")
    alone.presence("/other").track(sid, "ada")
    assert "ada" not in alone.presence()
    with pytest.raises(ValueError, match="'/' on this node"):
        alone.presence().track(sid, "ada")


def test_a_client_that_is_not_here_cannot_be_tracked(alone: GeventMeshManager) -> None:
    with pytest.raises(ValueError, match="in its connect handler"):
        alone.presence().track("somebody", "ada")
    alone.presence().untrack("somebody")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, "ada"), TypeError),
        (("sid", None), TypeError),
        (("sid", True), TypeError),
        (("sid", 1, []), TypeError),
        (("sid", ""), ValueError),
        (("sid", "x" * 257), ValueError),
        (("sid", 2**64), ValueError),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    alone: GeventMeshManager, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        alone.presence().track(*arguments)
    assert len(alone.presence()) == 0


def test_a_missing_user_id_is_called_so(alone: GeventMeshManager) -> None:
    with pytest.raises(ValueError, match="is the user's id missing"):
        alone.presence().track(client(alone), "")


@pytest.mark.parametrize("follow", ["on_join", "on_leave", "on_update"])
def test_only_functions_can_follow(alone: GeventMeshManager, follow: str) -> None:
    presence = alone.presence()
    with pytest.raises(TypeError, match="must be a function, not int"):
        getattr(presence, follow)(5)
    assert not any(presence._followers.values())


def test_a_namespace_must_be_a_text(alone: GeventMeshManager) -> None:
    nonsense: Any = 4
    with pytest.raises(TypeError, match="must be a str, not int"):
        alone.presence(nonsense)
    assert not alone._presence._spaces


def test_a_write_only_manager_has_no_presence() -> None:
    with pytest.raises(ConfigError, match="write-only"):
        GeventMeshManager("ws://127.0.0.1:1", write_only=True).presence()


def test_connect_handlers_may_track_and_refused_clients_leave_nothing() -> None:
    manager = GeventMeshManager([])
    app = flask.Flask(__name__)
    sio = flask_socketio.SocketIO(app, async_mode="gevent", client_manager=manager)
    presence = manager.presence()
    seen: list[int] = []

    def connect(auth: Any) -> bool:
        presence.track(getattr(flask.request, "sid"), auth["user"])  # noqa: B009 - Flask-SocketIO adds it
        seen.append(len(presence))
        return bool(auth["user"] != "refused")

    sio.on_event("connect", connect)
    one = sio.test_client(app, auth={"user": "ada"})
    sio.test_client(app, auth={"user": "refused"})
    assert seen == [1, 2]
    assert sees(presence, "ada")
    one.disconnect()
    assert sees(presence)
    manager.stop()


# ---------------------------------------------------------------------- functions that follow


def test_functions_are_called_once_for_a_user_and_not_for_each_tab(alone: GeventMeshManager) -> None:
    presence, events = alone.presence(), []

    @presence.on_join
    def joined(user: PresentUser) -> None:
        events.append(("join", user.id, user.meta))

    presence.on_leave(lambda user: events.append(("leave", user.id, user.meta)))
    presence.on_update(lambda user: events.append(("update", user.id, user.meta)))
    one, two = client(alone), client(alone)
    presence.track(one, "ada", {"tab": 1})
    presence.track(two, "ada", {"tab": 2})
    eventually(lambda: events == [("join", "ada", {"tab": 2})])
    gone(alone, two)
    eventually(lambda: events[1:] == [("update", "ada", {"tab": 1})])
    gone(alone, one)
    eventually(lambda: events[2:] == [("leave", "ada", {"tab": 1})])
    assert callable(joined)


def test_a_function_that_fails_stops_neither_the_others_nor_the_next_call(
    alone: GeventMeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    presence, events = alone.presence(), []

    @presence.on_join
    def fails(_user: PresentUser) -> None:
        raise RuntimeError("on purpose")

    presence.on_join(lambda user: events.append(user.id))
    for user in ("ada", "bob"):
        presence.track(client(alone), user)
    eventually(lambda: events == ["ada", "bob"])
    assert caplog.text.count("RuntimeError: on purpose") == 2
    assert "for user 'ada'" in caplog.text


def test_a_function_that_runs_out_of_time_stops_nobody_either(
    alone: GeventMeshManager, caplog: pytest.LogCaptureFixture
) -> None:
    presence, events = alone.presence(), []

    @presence.on_join
    def waits(_user: PresentUser) -> None:
        with gevent.Timeout(0.01):
            Event().wait()

    presence.on_join(lambda user: events.append(user.id))
    for user in ("ada", "bob"):
        presence.track(client(alone), user)
    # At once, and not when the next sweep finds that something was left undone.
    eventually(lambda: events == ["ada", "bob"], 0.5)
    assert caplog.text.count("gevent.timeout.Timeout: 0.01 seconds") == 2


def test_a_slow_function_is_not_told_what_was_undone_meanwhile(alone: GeventMeshManager) -> None:
    presence, events, goes_on = alone.presence(), [], Event()

    @presence.on_join
    def slow(user: PresentUser) -> None:
        events.append(("join", user.id))
        goes_on.wait()

    presence.on_leave(lambda user: events.append(("leave", user.id)))
    presence.track(client(alone), "first")
    eventually(lambda: events == [("join", "first")])
    sid = client(alone)
    for number in range(1000):
        presence.track(sid, f"user {number}")
        gevent.sleep(0) if number % 100 == 0 else None
    presence.track(sid, "last")
    goes_on.set()
    eventually(lambda: len(events) > 1)
    eventually(lambda: not presence._table.has_notice)
    assert events == [("join", "first"), ("join", "last")]


def test_a_thousand_calls_let_others_run(alone: GeventMeshManager, request: pytest.FixtureRequest) -> None:
    presence, called = alone.presence(), []

    @presence.on_join
    def joined(user: PresentUser) -> None:
        called.append(user.id)
        ends = monotonic() + 0.0001
        while monotonic() < ends:
            pass

    gc.disable()
    request.addfinalizer(gc.enable)
    longest = []
    for _ in range(5):
        sids = [client(alone) for _ in range(1000)]
        stalls = Stalls()
        for sid in sids:
            presence.track(sid, sid)
        eventually(lambda: not presence._table.has_notice)
        longest.append(stalls.end())
    assert len(called) == 5000
    print(f"\n    longest stalls {[round(seconds * 1000, 1) for seconds in longest]} ms")
    assert statistics.median(longest) < STALL_SECONDS


# ---------------------------------------------------------------------- two nodes


def pair(make: Make, discovery: str, **options: Any) -> tuple[GeventMeshManager, GeventMeshManager]:
    one, other = make(discovery, **options), make(discovery, **options)
    one.start()
    assert other.wait_for_peers(1)
    assert one.wait_for_peers(1)
    return one, other


def test_many_changes_of_one_moment_share_a_message(make: Make, discovery: str) -> None:
    one, other = pair(make, discovery)
    assert one.mesh is not None
    before = one.mesh.counters.messages_sent
    for number in range(100):
        one.presence().track(client(one), number)
    eventually(lambda: len(other.presence()) == 100)
    assert one.mesh.counters.messages_sent - before == 1


def test_who_is_online_is_known_before_the_application_asks(make: Make, discovery: str) -> None:
    one, other = pair(make, discovery)
    one.presence("/other").track(client(one, "/other"), "ada")
    eventually(lambda: "/other" in other._presence._spaces)
    assert "ada" in other.presence("/other")


def test_a_node_that_stops_takes_its_users_along_and_comes_back_as_another_node(make: Make, discovery: str) -> None:
    one, other = pair(make, discovery)
    one.presence().track(client(one), "ada")
    other.presence().track(client(other), "bob")
    for manager in (one, other):
        eventually(lambda manager=manager: sees(manager.presence(), "ada", "bob"))  # type: ignore[misc]  # bound now
    one.stop()
    eventually(lambda: sees(other.presence(), "bob"))
    eventually(lambda: sees(one.presence(), "ada"))
    one.start()
    for manager in (one, other):
        eventually(lambda manager=manager: sees(manager.presence(), "ada", "bob"))  # type: ignore[misc]  # bound now
        user = manager.presence().get("ada")
        assert user is not None
        assert user.nodes == (one.uid,)


def test_a_new_node_takes_thousands_of_clients_without_a_stall(
    make: Make, discovery: str, request: pytest.FixtureRequest
) -> None:
    one = make(discovery)
    one.start()
    count, metadata = 20_000, {"name": "somebody", "avatar": "https://example.org/a.png"}
    for number in range(count):
        one.presence().track(client(one), f"user {number}", metadata)
    eventually(lambda: not one.presence()._table.has_delta)
    # Collections of garbage are not ours to shorten: they grow with all that a process holds.
    gc.disable()
    request.addfinalizer(gc.enable)
    coming, going = [], []
    for _ in range(5):
        other = make(discovery)
        presence = other.presence()
        stalls, began = Stalls(), monotonic()
        other.start()
        eventually(lambda presence=presence: len(presence) == count, 30)  # type: ignore[misc]  # bound now
        taken = monotonic() - began
        coming.append(stalls.end())
        assert presence.get("user 7") == one.presence().get("user 7")
        stalls = Stalls()
        other.stop(0.1)
        eventually(lambda presence=presence: len(presence) == 0, 30)  # type: ignore[misc]  # bound now
        going.append(stalls.end())
    print(f"\n    {count} clients in {taken:.2f} s, longest stalls of both nodes in one process, in ms")
    for what, longest in (("coming", coming), ("going", going)):
        print(f"    {what}: {[round(seconds * 1000, 1) for seconds in longest]}")
        assert statistics.median(longest) < STALL_SECONDS


class Stalls:
    """A greenlet that ticks, and how long it was kept from it."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._ticking = gevent.spawn(self._tick)
        gevent.sleep(0.01)

    def _tick(self) -> None:
        last = monotonic()
        while True:
            gevent.sleep(0.001)
            self._longest = max(self._longest, monotonic() - last - 0.001)
            last = monotonic()

    def end(self) -> float:
        self._ticking.kill()
        return self._longest


# ---------------------------------------------------------------------- what peers may not do


class FakePeer:
    """As much of a peer as the service looks at."""

    def __init__(self, *, is_emitter: bool = False, present: bool = True) -> None:
        self.uid = "e" * 16
        self.is_emitter = is_emitter
        self.present = present


def told(namespace: str = "/") -> ClusterMessage:
    data = presence_delta(1, [["s1", "eve", b"\x80", 1.0, 1.0]], [])
    return ClusterMessage(MessageType.PRESENCE, "e" * 16, namespace, data)


@pytest.mark.parametrize("peer", [FakePeer(is_emitter=True), FakePeer(present=False)])
def test_emitters_and_peers_that_have_lapsed_say_nothing(alone: GeventMeshManager, peer: Any) -> None:
    alone._presence._on_presence(peer, told())
    assert len(alone.presence()) == 0


def test_peers_cannot_make_us_keep_namespaces_without_end(
    alone: GeventMeshManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(presence_module, "MAX_NAMESPACES", 10)
    peer: Any = FakePeer()
    with caplog.at_level(logging.ERROR):
        for name in ["/" + "x" * 300, *(f"/{number}" for number in range(50))]:
            alone._presence._on_presence(peer, told(name))
    assert len(alone._presence._spaces) == 10
    assert caplog.text.count("is ignored") == 1
    assert "eve" in alone.presence("/3")
