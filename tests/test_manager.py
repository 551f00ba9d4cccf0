"""One node by itself: what python-socketio and Flask-SocketIO expect of a client manager."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import flask
import flask_socketio
import gevent
import msgpack
import pytest
import socketio
from gevent import pywsgi
from gevent.event import Event
from geventwebsocket.handler import WebSocketHandler
from socketio.msgpack_packet import MsgPackPacket

from gevent_mesh import ConfigError, EmitterError, GeventMeshManager, PayloadTooLarge, StartError
from gevent_mesh.cluster import queries
from gevent_mesh.errors import MessageError
from gevent_mesh.net import mesh
from gevent_mesh.packets import Packets
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.peers import PeerTable
from gevent_mesh.protocol.unpacking import MAX_VALUES
from gevent_mesh_discovery import DiscoveryServer
from tests.paper import PaperNode, paper_mesh
from tests.support import eventually


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
    made: GeventMeshManager = make_manager([])
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

    def test_opens_no_port_although_there_is_a_discovery_service(self, clustered: GeventMeshManager) -> None:
        app, sio = _flask_app(clustered)
        client = sio.test_client(app)
        client.emit("join", "room")
        client.emit("say", {"room": "room"})
        assert client.is_connected()
        assert clustered.mesh is None

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

    def test_none_among_skipped_clients_skips_nobody(self, manager: GeventMeshManager) -> None:
        sio, sent = self._sent(manager)
        one, _ = self._connect(manager, "one"), self._connect(manager, "two")
        for skipped, expected in (([None], ["one", "two"]), ([None, one], ["two"]), (None, ["one", "two"])):
            sent.clear()
            sio.emit("event", "x", skip_sid=skipped)
            assert [eio_sid for eio_sid, _ in sent] == expected

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

        assert Packets(socketio.packet.Packet).codec == "json"
        assert Packets(MsgPackPacket).codec == "msgpack"
        if hasattr(MsgPackPacket, "configure"):
            assert Packets(MsgPackPacket.configure()).codec == "msgpack"
        assert Packets(Own).codec.endswith("Own")


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

    def test_another_application_that_cannot_bind_does_not_keep_a_server_from_starting(
        self, make_manager: Any, caplog: Any
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            ours, other = make_manager("ws://127.0.0.1:1", ws_port=0), make_manager("ws://127.0.0.1:1", ws_port=port)
            server = self._server(ours)
            self._server(other)
            server.start()
            try:
                assert server.started
                assert ours.mesh is not None
                assert other.mesh is None
                assert str(port) in caplog.text
            finally:
                server.stop()

    def test_the_first_client_after_stop_does_not_bring_a_node_back(self, clustered: GeventMeshManager) -> None:
        sio = socketio.Server(async_mode="gevent", client_manager=clustered)
        clustered.start()
        clustered.stop()
        sio._handle_eio_connect("eio", {})
        assert clustered.mesh is None

    def test_emitting_after_stop_does_not_bring_a_write_only_node_back(self, make_manager: Any, caplog: Any) -> None:
        manager = make_manager("ws://127.0.0.1:1", write_only=True)
        manager.emit("event", 1)
        manager.stop(0)
        assert "1 message may be lost" in caplog.text
        with pytest.raises(EmitterError, match="closed"):
            manager.emit("event", 2)

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


class TestEnding:
    """How processes with clients end is in the integration tests; how a node leaves, in `test_leaving`."""

    @pytest.fixture
    def sio(self, clustered: GeventMeshManager) -> Any:
        return socketio.Server(async_mode="gevent", client_manager=clustered)

    def _serve(self, sio: Any) -> pywsgi.WSGIServer:
        server = pywsgi.WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(sio), log=None)
        server.start()
        return server

    def test_it_leaves_with_the_last_server_of_the_process(self, clustered: GeventMeshManager, sio: Any) -> None:
        one, other = self._serve(sio), self._serve(sio)
        one.stop()
        assert clustered.mesh is not None
        assert not clustered._node.is_leaving
        other.stop()
        assert clustered._node.is_leaving
        assert clustered.mesh is None

    def test_it_is_leaving_as_soon_as_the_server_takes_no_more(self, clustered: GeventMeshManager, sio: Any) -> None:
        server = self._serve(sio)
        server.close()
        assert clustered._node.is_leaving
        eventually(lambda: clustered.mesh is None)

    def test_another_server_brings_it_back_as_another_node(self, clustered: GeventMeshManager, sio: Any) -> None:
        server = self._serve(sio)
        before = clustered.uid
        server.close()
        server = self._serve(sio)
        assert clustered.mesh is not None
        assert not clustered._node.is_leaving
        assert clustered.uid != before
        server.stop()

    def test_waiting_for_peers_does_not_bring_it_back(self, clustered: GeventMeshManager, sio: Any) -> None:
        server = self._serve(sio)
        server.close()
        assert not clustered.wait_for_peers(0)
        server.stop()
        assert not clustered.wait_for_peers(0)
        assert clustered.mesh is None
        clustered.start()
        assert clustered.wait_for_peers(0)

    def test_server_that_waits_for_a_leave_does_not_bring_back_what_is_stopped_meanwhile(
        self, clustered: GeventMeshManager, sio: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop, may_stop = clustered._node.stop, Event()
        monkeypatch.setattr(clustered._node, "stop", lambda timeout: may_stop.wait() and stop(timeout))
        self._serve(sio).close()
        other = gevent.spawn(self._serve, sio)
        gevent.sleep(0)
        stopping = gevent.spawn(clustered.stop)
        gevent.sleep(0)
        assert not other.ready()
        may_stop.set()
        gevent.joinall([other, stopping], timeout=5, raise_error=True)
        assert clustered.mesh is None
        other.get().stop()

    def test_it_takes_no_new_clients_until_it_is_back(self, clustered: GeventMeshManager, sio: Any) -> None:
        def connect() -> str:
            environ = {"REQUEST_METHOD": "GET", "QUERY_STRING": "EIO=4&transport=polling", "PATH_INFO": "/socket.io/"}
            said: list[str] = []
            sio.handle_request(environ, lambda status, _headers: said.append(status))
            return said[0]

        clustered.start()
        assert connect() == "200 OK"
        clustered.stop()
        assert connect() == "401 UNAUTHORIZED"
        assert sio.eio.sockets == {} or all(socket.closed for socket in sio.eio.sockets.values())
        clustered.start()
        assert connect() == "200 OK"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.parametrize(
        ("before", "expected"),
        [
            ("", "handler() not in (None, signal.SIG_DFL, signal.SIG_IGN)"),
            ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "handler() is signal.SIG_IGN"),
            ("signal.signal(signal.SIGTERM, own)", "handler() is own"),
            ("gevent.signal_handler(signal.SIGTERM, own)", "handler() is signal.SIG_DFL"),
            ("manager.stop()", "handler() is signal.SIG_DFL"),
        ],
        ids=["nobody's", "ignored", "Python's", "gevent's", "no node"],
    )
    def test_sigterm_is_handled_only_where_nobody_does(self, before: str, expected: str) -> None:
        code = f"""
            import gevent, os, signal, socketio
            from gevent.pywsgi import WSGIServer
            from gevent_mesh import GeventMeshManager
            own = lambda *_: None
            handler = lambda: signal.getsignal(signal.SIGTERM)
            manager = GeventMeshManager([])
            sio = socketio.Server(async_mode="gevent", client_manager=manager)
            {before}
            WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(sio), log=None).start()
            assert {expected}, handler()
            ours = handler() not in (own, signal.SIG_IGN)
            pid = gevent.os.fork()
            if pid == 0:
                os._exit(0 if not ours or handler() is signal.SIG_DFL else 1)
            assert os.waitpid(pid, 0)[1] == 0
        """
        _run(code)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("server.stop()", "time.sleep(10)"),
            ("server.close(); gevent.sleep(0.2)", "time.sleep(10)"),
            ("", "time.sleep(10)"),
        ],
        ids=["stopped", "closed", "blocked"],
    )
    def test_sigterm_ends_a_process_whose_hub_does_not_run(self, before: str, after: str) -> None:
        began = time.monotonic()
        _run(_SERVED + f"{before}\nos.kill(os.getpid(), signal.SIGTERM)\n{after}", -signal.SIGTERM)
        assert time.monotonic() - began < 8

    def test_sigterm_does_not_cut_short_a_leave_that_has_begun(self) -> None:
        code = """
            class Slow:
                is_over = False
                def wait(self, seconds=None):
                    gevent.sleep(0.5)
                    print("left", flush=True)
            manager.ending = Slow
            startup.BEGIN_SECONDS = 0.2
            os.kill(os.getpid(), signal.SIGTERM)
            gevent.sleep(10)
        """
        assert _run(_SERVED + textwrap.dedent(code), -signal.SIGTERM) == "left\n"

    @pytest.mark.parametrize("handle", ["signal.signal", "gevent.signal_handler"])
    def test_handler_that_came_later_is_there_when_the_node_has_left(self, handle: str) -> None:
        code = f"{handle}(signal.SIGTERM, lambda *_: os._exit(7))\nserver.stop()\n"
        _run(_SERVED + code + "os.kill(os.getpid(), signal.SIGTERM)\ngevent.sleep(10)", 7)


class TestAcrossNodes:
    """One thing that a peer asks for at a time. How nodes work together is in the integration tests."""

    @pytest.fixture
    def nodes(self) -> Iterator[list[PaperNode]]:
        with paper_mesh(2, callback_timeout=0.2, heartbeat_interval=0.1) as nodes:
            yield nodes

    def test_a_peer_cannot_take_a_client_out_of_its_own_room(self, nodes: list[PaperNode], caplog: Any) -> None:
        ours, theirs = nodes
        sid = ours.connects("one")
        ours.manager.enter_room(sid, "/", "room")
        theirs.manager.close_room(sid)
        theirs.manager.leave_room(sid, "/", "room")
        eventually(lambda: ours.manager.get_rooms(sid, "/") == [sid])
        assert sid in caplog.text
        theirs.server.emit("event", "still here", to=sid)
        ours.gets("still here")

    def test_a_peer_cannot_take_a_client_out_of_the_room_of_everybody(self, nodes: list[PaperNode]) -> None:
        ours, theirs = nodes
        sid = ours.connects("one")
        ours.manager.enter_room(sid, "/", "room")
        for opts in (messages.options([sid]), messages.options()):
            theirs.manager._node.publish(MessageType.SOCKETS_LEAVE, "/", messages.sockets_leave(opts, [None]))
        theirs.manager.leave_room(sid, "/", "room")
        eventually(lambda: ours.manager.get_rooms(sid, "/") == [sid])
        assert ours.manager.is_connected(sid, "/")
        theirs.server.emit("event", "still here")
        ours.gets("still here")

    def test_what_is_no_sid_is_nobody(self, nodes: list[PaperNode]) -> None:
        """None is everybody elsewhere, and a room's name everybody in it: here one client is meant."""
        ours, theirs = nodes
        sid = ours.connects("one")
        ours.manager.enter_room(sid, "/", "room")
        managers: tuple[Any, ...] = (ours.manager, theirs.manager)
        for manager in managers:
            with pytest.raises(TypeError, match="sid"):
                manager.disconnect(None, "/")
            with pytest.raises(TypeError, match="sid"):
                manager.enter_room(None, "/", "other")
            with pytest.raises(TypeError, match="sid"):
                manager.leave_room(None, "/", "room")
            with pytest.raises(ValueError, match="None"):
                manager.close_room(None)
            with pytest.raises(ValueError, match="None"):
                manager.leave_room(sid, "/", None)
        theirs.server.disconnect("room")
        theirs.manager.enter_room("room", "/", "other")
        theirs.manager.leave_room("room", "/", "room")
        theirs.server.emit("event", "still here", to="room")
        ours.gets("still here")
        assert set(ours.manager.get_rooms(sid, "/")) == {sid, "room"}

    def test_callbacks_of_clients_that_never_answer_are_dropped(
        self, nodes: list[PaperNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mesh, "SWEEP_SECONDS", 0.05)
        ours, theirs = nodes
        sid = ours.connects("one")
        answers: list[Any] = []
        for number in range(50):
            theirs.server.emit("ask", number, to=sid, callback=answers.append)
        ours.gets('"ask",49')
        numbers = [number for number in ours.manager.callbacks[sid] if number]
        assert len(numbers) == 50
        eventually(lambda: len(ours.manager.callbacks[sid]) <= 1)
        assert not ours.manager._acknowledgements._asked
        eventually(lambda: not len(theirs.manager._requests))
        assert answers == []

    def test_an_acknowledgement_that_cannot_be_encoded_is_logged(self, nodes: list[PaperNode], caplog: Any) -> None:
        ours, theirs = nodes
        sid = ours.connects("one")
        answers: list[Any] = []
        for value in (2**70, 7):
            ours.sent.clear()
            theirs.server.emit("ask", value, to=sid, callback=answers.append)
            ours.gets("ask")
            number = str(ours.sent[0][1]).partition("[")[0].removeprefix("2")
            # As a client's message comes in: an exception here would end its connection.
            ours.server._handle_eio_message("one", f"3{number}[{value}]")
        eventually(lambda: answers == [7])
        assert "acknowledgement cannot be passed on" in caplog.text
        assert "Traceback" not in caplog.text

    def test_an_event_with_a_callback_carries_whatever_the_packet_class_can(self, nodes: list[PaperNode]) -> None:
        ours, theirs = nodes
        sid = ours.connects("one")
        answers: list[Any] = []
        theirs.server.emit("ask", {"large": 2**70}, to=sid, callback=answers.append)
        ours.gets(f'{{"large":{2**70}}}')
        number = str(ours.sent[0][1]).partition("[")[0].removeprefix("2")
        ours.server._handle_eio_message("one", f'3{number}["yes"]')
        eventually(lambda: answers == ["yes"])

    def test_an_event_is_the_same_whether_or_not_a_peer_is_joining(self, make_manager: Any) -> None:
        node = PaperNode(make_manager("ws://127.0.0.1:1", ws_port=0), serializer="msgpack")
        running = node.manager.mesh
        assert running is not None
        node.server.emit("event", {1: "a"})
        joining = "0" * 16
        running._take_roster("test", {joining: "ws://127.0.0.1:1"}, True)
        node.server.emit("event", {1: "a"})
        peer = running.table.get(joining)
        assert peer is not None
        before, after = peer.session.outbox()
        assert before == after
        node.manager.stop(0)


def test_a_node_without_discovery_says_that_it_works_alone(manager: GeventMeshManager, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        manager.start()
    assert "works alone" in caplog.text


def test_being_served_without_gevent_is_said() -> None:
    code = """
        import logging, sys, wsgiref.util
        logging.basicConfig(stream=sys.stdout)
        import socketio
        from gevent_mesh import GeventMeshManager
        sio = socketio.Server(async_mode="gevent", client_manager=GeventMeshManager([]))
        application = socketio.WSGIApp(sio)
        environ = {"QUERY_STRING": "transport=polling&EIO=4", "PATH_INFO": "/socket.io/"}
        wsgiref.util.setup_testing_defaults(environ)
        application(environ, lambda status, headers: None)
        logging.shutdown()
    """
    assert "GeventMeshWorker" in _run(code)


def test_waiting_for_peers_ends_at_its_timeout(clustered: GeventMeshManager) -> None:
    assert clustered.wait_for_peers(0, timeout=0.1)
    assert not clustered.wait_for_peers(1, timeout=0.1)
    assert clustered.peers == []


_SERVED = textwrap.dedent("""
    import os, signal, time
    import gevent, socketio
    from gevent.pywsgi import WSGIServer
    from gevent_mesh import GeventMeshManager, startup
    manager = GeventMeshManager([])
    sio = socketio.Server(async_mode="gevent", client_manager=manager)
    server = WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(sio), log=None)
    server.start()
""")


def _run(code: str, exit_code: int = 0) -> str:
    """Run code in a process of its own, which must end like that, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stdout


def test_an_event_with_more_values_than_a_message_may_hold_reaches_clients_with_another_form_of_packets() -> None:
    discovery = DiscoveryServer(port=0)
    discovery.start()
    options: list[dict[str, Any]] = [{}, {"serializer": "msgpack"}]
    nodes = [PaperNode(GeventMeshManager(discovery.url, ws_port=0), **some) for some in options]
    try:
        for node in nodes:
            assert node.manager.wait_for_peers(1)
            node.manager.basic_enter_room("sid", "/", None, eio_sid="one")
        for ours, theirs in (nodes, nodes[::-1]):
            theirs.sent.clear()
            ours.server.emit("large", [0] * MAX_VALUES)
            eventually(lambda theirs=theirs: theirs.sent)  # type: ignore[misc]  # bound now
    finally:
        for node in nodes:
            node.manager.stop(0.2)
        discovery.stop()


@pytest.mark.parametrize(
    "data",
    [
        messages.broadcast(messages.options(), encoded=["2["], codec="msgpack"),
        messages.broadcast(messages.options(), encoded=[b"\xc1"], codec="msgpack"),
        messages.broadcast(messages.options(), encoded=["2{}"], codec="json", request_id="ab"),
        messages.broadcast(messages.options(), encoded=["2[]"], codec="unheard of"),
        messages.broadcast(messages.options(), packet=["event", msgpack.ExtType(5, b"")]),
        messages.broadcast(messages.options(), packet=["event", msgpack.ExtType(5, b"")], request_id="ab"),
    ],
)
def test_an_event_that_clients_cannot_be_sent_is_malformed(data: dict[str, Any]) -> None:
    node = PaperNode(GeventMeshManager([]))
    peer = PeerTable("f" * 16, random.Random(1))
    peer.roster("test", {"a" * 16: "ws://127.0.0.1:1"}, True, 0.0)
    (sender,) = peer
    try:
        node.connects("one")
        with pytest.raises(MessageError):
            node.manager._node.on_message(sender, ClusterMessage(MessageType.BROADCAST, sender.uid, "/", data))
        assert node.sent == []
    finally:
        node.manager.stop(0)


def test_a_peer_that_asks_too_much_at_a_time_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_ANSWERS", 2)
    node = PaperNode(GeventMeshManager([]))
    peer = PeerTable("f" * 16, random.Random(1))
    peer.roster("test", {"a" * 16: "ws://127.0.0.1:1"}, True, 0.0)
    (sender,) = peer
    question = messages.fetch_sockets(messages.options(), "ab")

    def ask() -> None:
        node.manager._node.on_message(sender, ClusterMessage(MessageType.FETCH_SOCKETS, sender.uid, "/", question))

    try:
        ask()
        ask()
        with pytest.raises(MessageError):
            ask()
        eventually(lambda: not node.manager._queries._answering)
        ask()
    finally:
        node.manager.stop(0)


def test_many_who_emit_at_once_cut_no_healthy_peer() -> None:
    """Each of them sees that there is room, and waits for its turn; by then there is none."""
    with paper_mesh(2, buffered_amount_threshold=1 << 20) as (one, two):
        emitting = [gevent.spawn(one.server.emit, "news", (number, "x" * 300_000)) for number in range(60)]
        gevent.joinall(emitting, timeout=20, raise_error=True)
        assert one.manager.flush(10)
        assert one.manager.mesh is not None
        assert two.manager.mesh is not None
        assert one.manager.mesh.counters.slow_consumers == 0
        assert two.manager.mesh.counters.received_lost == 0
