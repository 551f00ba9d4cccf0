"""One node by itself: what python-socketio and Flask-SocketIO expect of a client manager."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import flask
import flask_socketio
import pytest
import socketio
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler
from socketio.msgpack_packet import MsgPackPacket

from gevent_mesh import ConfigError, GeventMeshManager, PayloadTooLarge, StartError
from gevent_mesh.manager import _codec_name


@pytest.fixture
def make_manager() -> Any:
    """Makes managers and stops them: one that is left waits for a server to start, for as long as it lives."""
    made: list[GeventMeshManager] = []

    def make(*args: Any, **options: Any) -> GeventMeshManager:
        made.append(GeventMeshManager(*args, **options))
        return made[-1]

    yield make
    for manager in made:
        manager.stop()


@pytest.fixture
def manager(make_manager: Any) -> GeventMeshManager:
    """A node that works alone."""
    made: GeventMeshManager = make_manager()
    return made


@pytest.fixture
def clustered(make_manager: Any) -> GeventMeshManager:
    """A node whose discovery service does not answer."""
    made: GeventMeshManager = make_manager("ws://127.0.0.1:1", ws_port=0)
    return made


def _flask_app(manager: GeventMeshManager, **options: Any) -> tuple[flask.Flask, flask_socketio.SocketIO]:
    app = flask.Flask(__name__)
    sio = flask_socketio.SocketIO(app, async_mode="gevent", client_manager=manager, **options)

    def say(data: Any) -> None:
        flask_socketio.emit("said", data, room=data["room"], include_self=False)

    sio.on_event("join", flask_socketio.join_room)
    sio.on_event("say", say)
    sio.on_event("ask", lambda value: value + 1)
    return app, sio


class TestFlaskTestClient:
    def test_works_with_the_manager(self, manager: GeventMeshManager) -> None:
        app, sio = _flask_app(manager)
        one, two = sio.test_client(app), sio.test_client(app)
        one.emit("join", "room")
        two.emit("join", "room")
        one.emit("say", {"room": "room", "text": "grüß", "raw": b"\x00\xff"})
        assert one.get_received() == []
        assert two.get_received() == [
            {"name": "said", "args": [{"room": "room", "text": "grüß", "raw": b"\x00\xff"}], "namespace": "/"}
        ]
        assert one.emit("ask", 1, callback=True) == 2
        two.disconnect()
        assert not two.is_connected()

    def test_still_refuses_managers_that_need_a_broker(self, manager: GeventMeshManager) -> None:
        _flask_app(manager)
        app = flask.Flask(__name__)
        sio = flask_socketio.SocketIO(app, async_mode="gevent", client_manager=socketio.PubSubManager())
        with pytest.raises(RuntimeError, match="message queue"):
            sio.test_client(app)


class TestServer:
    @pytest.mark.parametrize("mode", ["threading", "gevent_uwsgi", "eventlet"])
    def test_other_async_modes_are_refused_with_a_mend(self, manager: GeventMeshManager, mode: str) -> None:
        class Server:
            class eio:  # the attribute of a server
                async_mode = mode

        with pytest.raises(ConfigError, match="gevent"):
            manager.set_server(Server())

    def test_flask_run_is_named_as_the_cause(self, manager: GeventMeshManager, monkeypatch: Any) -> None:
        monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
        with pytest.raises(ConfigError, match="flask run"):
            flask_socketio.SocketIO(flask.Flask(__name__), client_manager=manager)

    def test_a_running_manager_cannot_serve_a_second_server(self, manager: GeventMeshManager) -> None:
        socketio.Server(async_mode="gevent", client_manager=manager)
        manager.start()
        with pytest.raises(ConfigError, match="one for each"):
            socketio.Server(async_mode="gevent", client_manager=manager)

    def test_it_is_a_pubsub_manager(self, manager: GeventMeshManager) -> None:
        assert isinstance(manager, socketio.PubSubManager)
        assert len(manager.host_id) == 16

    def test_the_admin_ui_can_be_switched_on(self, manager: GeventMeshManager) -> None:
        sio = socketio.Server(async_mode="gevent", client_manager=manager)
        admin = sio.instrument(auth=False, mode="development")
        try:
            assert admin.server_id == manager.host_id
            sid = manager.connect("eio", "/") if not hasattr(manager, "pre_connect") else None
            if sid is None:
                sid = manager.connect(manager.pre_connect("eio", "/"), "/")
            sio.enter_room(sid, "room")
            sio.emit("event", {"a": 1}, room="room")
            assert "room" in manager.get_rooms(sid, "/")
        finally:
            admin.uninstrument()


class TestEmit:
    def _sent(self, manager: GeventMeshManager, **options: Any) -> tuple[Any, list[tuple[str, Any]]]:
        sio = socketio.Server(async_mode="gevent", client_manager=manager, **options)
        sent: list[tuple[str, Any]] = []
        sio._send_eio_packet = lambda eio_sid, packet: sent.append((eio_sid, packet.data))
        return sio, sent

    def _connect(self, manager: GeventMeshManager, eio_sid: str, namespace: str = "/") -> str:
        if hasattr(manager, "pre_connect"):
            return str(manager.connect(manager.pre_connect(eio_sid, namespace), namespace))
        return str(manager.connect(eio_sid, namespace))

    def test_rooms_skip_sid_and_namespaces(self, manager: GeventMeshManager) -> None:
        sio, sent = self._sent(manager)
        one, two, three = (self._connect(manager, eio) for eio in ("one", "two", "three"))
        self._connect(manager, "four", "/other")
        sio.enter_room(one, "a")
        sio.enter_room(two, "a")
        sio.enter_room(two, "b")
        sio.enter_room(three, "b")

        def receivers(**options: Any) -> set[str]:
            sent.clear()
            sio.emit("event", "x", **options)
            assert len(sent) == len({eio for eio, _ in sent}), "somebody got it twice"
            return {eio for eio, _ in sent}

        assert receivers() == {"one", "two", "three"}
        assert receivers(room="a") == {"one", "two"}
        assert receivers(to=["a", "b"]) == {"one", "two", "three"}
        assert receivers(room=("a", "b"), skip_sid=[two]) == {"one", "three"}
        assert receivers(room="a", skip_sid=one) == {"two"}
        assert receivers(to=three) == {"three"}
        assert receivers(namespace="/other") == {"four"}
        assert receivers(room=[]) == set()
        assert receivers(room="nobody") == set()
        assert receivers(ignore_queue=True, room="b") == {"two", "three"}

    @pytest.mark.parametrize(
        ("data", "encoded"),
        [
            (None, '2["event"]'),
            ("x", '2["event","x"]'),
            (("a", None, [1]), '2["event","a",null,[1]]'),
            ({"ü": "日本"}, None),
        ],
    )
    def test_arguments(self, manager: GeventMeshManager, data: Any, encoded: str | None) -> None:
        sio, sent = self._sent(manager)
        self._connect(manager, "one")
        sio.emit("event", data)
        assert len(sent) == 1
        if encoded is not None:
            assert sent[0][1] == encoded
        else:
            assert json.loads(sent[0][1][1:]) == ["event", data]

    def test_binary_is_sent_as_attachments(self, manager: GeventMeshManager) -> None:
        sio, sent = self._sent(manager)
        self._connect(manager, "one")
        sio.emit("event", {"raw": b"\x00\x01"})
        assert sent == [("one", '51-["event",{"raw":{"_placeholder":true,"num":0}}]'), ("one", b"\x00\x01")]

    def test_what_cannot_be_encoded_reaches_nobody(self, manager: GeventMeshManager) -> None:
        sio, sent = self._sent(manager)
        self._connect(manager, "one")
        with pytest.raises(TypeError):
            sio.emit("event", object())
        assert sent == []

    def test_what_is_too_large_reaches_nobody(self, make_manager: Any) -> None:
        manager = make_manager("ws://127.0.0.1:1", ws_port=0, buffered_amount_threshold=64 * 1024)
        sio, sent = self._sent(manager)
        self._connect(manager, "one")
        manager.start()
        with pytest.raises(PayloadTooLarge, match="buffered_amount_threshold"):
            sio.emit("event", "x" * 70_000)
        assert sent == []

    def test_codec_names(self) -> None:
        class Own(socketio.packet.Packet):  # type: ignore[misc]  # python-socketio has no types
            def encode(self) -> str:
                return "own"

        assert _codec_name(socketio.packet.Packet) == "json"
        assert _codec_name(MsgPackPacket) == "msgpack"
        if hasattr(MsgPackPacket, "configure"):
            assert _codec_name(MsgPackPacket.configure()) == "msgpack"
        assert _codec_name(Own).endswith("Own")


class TestJoining:
    def test_importing_an_application_opens_no_socket(self) -> None:
        code = """
            import gevent, os
            from gevent_mesh import GeventMeshManager
            import socketio
            manager = GeventMeshManager("ws://127.0.0.1:1", ws_port=0)
            sio = socketio.Server(async_mode="gevent", client_manager=manager)
            gevent.sleep(0.05)
            import psutil
            assert not psutil.Process().net_connections(), psutil.Process().net_connections()
            assert manager.mesh is None
        """
        _run(code)

    def _server(self, manager: GeventMeshManager) -> Any:
        sio = socketio.Server(async_mode="gevent", client_manager=manager)
        return pywsgi.WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(sio), handler_class=WebSocketHandler, log=None)

    def test_it_joins_when_the_server_starts(self, clustered: GeventMeshManager) -> None:
        server = self._server(clustered)
        assert clustered.mesh is None
        server.start()
        try:
            assert clustered.mesh is not None
            assert clustered.mesh.port > 0
        finally:
            server.stop()

    def test_clients_do_not_wait_for_delayed_acknowledgements(self, manager: GeventMeshManager) -> None:
        server = self._server(manager)
        server.start()
        try:
            assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            server.stop()

    def test_a_stopped_node_stays_out_until_it_is_started(self, clustered: GeventMeshManager) -> None:
        server = self._server(clustered)
        clustered.stop()
        server.start()
        try:
            assert clustered.mesh is None
            clustered.start()
            assert clustered.mesh is not None
        finally:
            server.stop()

    def test_a_port_in_use_keeps_the_server_from_starting(self, make_manager: Any) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            manager = make_manager("ws://127.0.0.1:1", ws_port=port)
            with pytest.raises(StartError, match=str(port)):
                self._server(manager).start()
            assert manager.mesh is None

    def test_every_start_is_another_node(self, clustered: GeventMeshManager) -> None:
        clustered.start()
        first = clustered.uid
        clustered.stop()
        clustered.start()
        assert clustered.uid != first

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_fork_is_another_node_and_leaves_the_parent_alone(self) -> None:
        code = """
            import gevent, os, socketio
            from gevent_mesh import GeventMeshManager
            manager = GeventMeshManager("ws://127.0.0.1:1", ws_port=0)
            sio = socketio.Server(async_mode="gevent", client_manager=manager)
            manager.start()
            port, uid = manager.mesh.port, manager.uid
            pid = gevent.os.fork()
            if pid == 0:
                import psutil
                assert manager.mesh is None and manager.uid != uid
                assert not [c for c in psutil.Process().net_connections() if c.status == "LISTEN"]
                manager.start()
                assert manager.mesh.port not in (0, port)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            with gevent.socket.create_connection(("127.0.0.1", port), 2):
                pass
            assert manager.uid == uid
            manager.stop()
        """
        _run(code)

    def test_emitting_before_serving_is_said_once(self, clustered: GeventMeshManager, caplog: Any) -> None:
        sio = socketio.Server(async_mode="gevent", client_manager=clustered)
        sio.emit("event", 1)
        sio.emit("event", 2)
        assert caplog.text.count("start()") == 1


def test_waiting_for_peers_ends_at_its_timeout(clustered: GeventMeshManager) -> None:
    assert clustered.wait_for_peers(0, timeout=0.1)
    assert not clustered.wait_for_peers(1, timeout=0.1)
    assert clustered.peers == []


def _run(code: str) -> None:
    """Run code in a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
