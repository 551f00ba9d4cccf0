"""This node's own clients: the tables stay those of python-socketio; who is selected; what is told of a client."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh import GeventMeshManager
from gevent_mesh.protocol import frames
from gevent_mesh.selection import Selection

SIDS = st.sampled_from("abc")
ROOMS = st.sampled_from(["red", "blue", 7, ("pair", 1)])
NAMESPACES = st.sampled_from(["/", "/other"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), SIDS, NAMESPACES),
        st.tuples(st.just("confirm"), SIDS, NAMESPACES),
        st.tuples(st.just("enter"), SIDS, NAMESPACES, ROOMS),
        st.tuples(st.just("leave"), SIDS, NAMESPACES, ROOMS),
        st.tuples(st.just("close"), SIDS, NAMESPACES, ROOMS),
        st.tuples(st.just("leaving"), SIDS, NAMESPACES),
        st.tuples(st.just("disconnect"), SIDS, NAMESPACES),
    ),
    max_size=40,
)


class Tables:
    """A manager, driven as a server does. Clients are called by their Engine.IO sids."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.server = socketio.Server(async_mode="gevent", client_manager=manager)
        if isinstance(manager, GeventMeshManager):
            # It is not to join when some other test begins to serve.
            manager.stop()
        ids = iter(range(10_000))
        self.server.eio.generate_id = lambda: f"sid {next(ids)}"

    def step(self, what: str, eio_sid: str, namespace: str, room: Any = None) -> None:
        manager = self.manager
        sid = manager.sid_from_eio_sid(eio_sid, namespace)
        if what == "connect":
            if sid is None:
                getattr(manager, "pre_connect", manager.connect)(eio_sid, namespace)
        elif sid is None:
            return
        elif what == "confirm" and getattr(manager, "is_pre_connected", lambda *_: False)(sid, namespace):
            manager.connect(sid, namespace)
        elif what == "enter":
            manager.basic_enter_room(sid, namespace, room)
        elif what == "leave":
            manager.basic_leave_room(sid, namespace, room)
        elif what == "close":
            manager.basic_close_room(room, namespace)
        elif what == "leaving" and manager.is_connected(sid, namespace):
            manager.pre_disconnect(sid, namespace)
        elif what == "disconnect":
            manager._generate_ack_id(sid, print)
            manager.basic_disconnect(sid, namespace)

    def look(self) -> Any:
        """All that can be seen from outside."""
        manager = self.manager
        rooms = {
            namespace: {room: dict(members) for room, members in rooms.items()}
            for namespace, rooms in manager.rooms.items()
        }
        of_each = {
            (namespace, sid): set(manager.get_rooms(sid, namespace))
            for namespace, known in rooms.items()
            for sid in known.get(None, ())
        }
        pending = _listed(getattr(manager, "pending_connect", {})), _listed(manager.pending_disconnect)
        return rooms, of_each, pending, list(manager.callbacks)


def _listed(pending: Any) -> dict[str, list[str]]:
    return {namespace: list(sids) for namespace, sids in pending.items()}


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_tables_are_those_of_python_socketio(steps: list[tuple[Any, ...]]) -> None:
    ours, stock = Tables(GeventMeshManager([])), Tables(socketio.Manager())
    for step in steps:
        ours.step(*step)
        stock.step(*step)
        assert ours.look() == stock.look()
    for eio_sid in "abc":
        for namespace in ("/", "/other"):
            ours.step("disconnect", eio_sid, namespace)
    assert not ours.manager._clients._rooms
    assert not ours.manager._clients._arrivals


@pytest.fixture
def tables() -> Tables:
    return Tables(GeventMeshManager([]))


@pytest.fixture
def connect(tables: Tables) -> Callable[..., str]:
    def connect(eio_sid: str, *rooms: Any, namespace: str = "/") -> str:
        tables.step("connect", eio_sid, namespace)
        for room in rooms:
            tables.step("enter", eio_sid, namespace, room)
        return str(tables.manager.sid_from_eio_sid(eio_sid, namespace))

    return connect


def test_selections(tables: Tables, connect: Callable[..., str]) -> None:
    a, b, c = connect("a", "red"), connect("b", "red", "blue"), connect("c", ("pair", 1), 7)
    elsewhere = connect("a", "red", namespace="/other")

    def selected(room: Any = None, exclude: Any = None, namespace: str = "/") -> list[str]:
        return list(tables.manager._clients.select(Selection.of(namespace, room, exclude)))

    assert selected() == [a, b, c]
    assert selected([]) == []
    assert selected("red") == [a, b]
    assert selected(["blue", "red"]) == [b, a], "each once"
    assert selected(7) == selected([("pair", 1)]) == [c]
    assert selected(c) == [c]
    assert selected([a, c, "nobody"]) == [a, c]
    assert selected(exclude="blue") == [a, c]
    assert selected("red", [b, None]) == [a]
    assert selected("red", namespace="/other") == [elsewhere]
    assert selected("nobody") == selected(namespace="/nowhere") == []


def test_what_is_told_of_a_client_that_is_just_coming(tables: Tables, connect: Callable[..., str]) -> None:
    sid = connect("a", "red")
    told = tables.manager._clients.describe(sid, "/")
    assert told["id"] == sid
    assert told["rooms"] == [sid, "red"]
    assert told["data"] == {}
    assert told["handshake"]["auth"] is None


def test_a_session_that_is_no_dictionary_is_left_out(tables: Tables, connect: Callable[..., str]) -> None:
    sid = connect("a")
    tables.server.eio.sockets["a"] = SimpleNamespace(session={"/": ["not", "a", "dict"]})
    assert tables.manager._clients.describe(sid, "/")["data"] == {}


def test_namespaces_are_those_that_are_served(tables: Tables, connect: Callable[..., str]) -> None:
    tables.server.on("event", print, namespace="/handled")
    tables.server.on("event", print, namespace="*")
    tables.server.register_namespace(socketio.Namespace("/class"))
    connect("a")
    assert set(tables.manager._clients.namespaces()) == {"/", "/handled", "/class"}


def test_auth_is_what_the_client_sent(tables: Tables) -> None:
    server = tables.server
    server.on("connect", lambda *_: None)
    server._send_packet = lambda *_: None
    server.environ["a"] = {}
    server._handle_eio_message("a", '0{"token":"x","deep":[1,{"a":null}]}')
    sid = tables.manager.sid_from_eio_sid("a", "/")
    assert tables.manager._clients.describe(sid, "/")["handshake"]["auth"] == {"token": "x", "deep": [1, {"a": None}]}
    assert not tables.manager._clients._offered


def test_a_disconnect_costs_what_the_clients_own_rooms_cost(tables: Tables, connect: Callable[..., str]) -> None:
    """Counted, not timed: no table of all rooms is looked through."""
    for n in range(200):
        connect(f"other {n}", "red")
    sid = connect("a", "red", "blue")
    touched: list[Any] = []
    leave = tables.manager.basic_leave_room

    def note(sid: str, namespace: str, room: Any) -> None:
        touched.append(room)
        leave(sid, namespace, room)

    tables.manager.basic_leave_room = note
    tables.manager.basic_disconnect(sid, "/")
    assert touched == ["red", "blue", sid, None]


class TestHandlersThatFail:
    """A client that is not there does not stay in the tables, and so not online."""

    @pytest.fixture
    def server(self, tables: Tables) -> Any:
        tables.server._send_packet = lambda *_: None
        tables.server.environ["a"] = {}
        return tables.server

    def fail(self, *_: Any) -> None:
        raise RuntimeError("of the application")

    def test_connect(self, tables: Tables, server: Any) -> None:
        presence = tables.manager.presence()

        def connect(sid: str, _environ: Any) -> None:
            presence.track(sid, "user")
            self.fail()

        server.on("connect", connect)
        with pytest.raises(RuntimeError, match="application"):
            server._handle_eio_message("a", "0")
        assert "user" not in presence
        assert tables.manager.rooms == {}
        assert not tables.manager._clients._arrivals

    def test_disconnect(self, tables: Tables, server: Any) -> None:
        presence = tables.manager.presence("/other")
        server.on("connect", lambda *_: None)
        server.on("connect", lambda sid, _environ: presence.track(sid, "user"), namespace="/other")
        server.on("disconnect", self.fail)
        server._handle_eio_message("a", "0")
        server._handle_eio_message("a", "0/other,")
        assert "user" in presence
        with pytest.raises(RuntimeError, match="application"):
            server.eio.handlers["disconnect"]("a", "transport close")
        assert "user" not in presence
        assert tables.manager.rooms == {}


def test_namespaces_that_clients_make_up_fit_into_a_heartbeat(tables: Tables, connect: Callable[..., str]) -> None:
    for n in range(100):
        connect("a", namespace=f"/{n}")
    connect("a", namespace="/" + "x" * 900_000)
    connect("a", namespace="/" + "ü" * 200)
    beat = frames.encode_frame(frames.Heartbeat(0, tables.manager._status()))
    assert len(beat) < 16 * 1024
    assert isinstance(frames.decode_frame(beat), frames.Heartbeat)
