"""`GeventMeshManager`: the seam between python-socketio and the mesh.

Rules:

- What python-socketio and Flask-SocketIO offer works across nodes exactly as within one.
- An event is encoded once. It goes to this node's clients and, as one bytes object, into every peer's outbox.
- What cannot be encoded, or is too large, raises before anybody has got it.
- What arrives from peers is acted on in a link's reader, which must not wait: application code (disconnect handlers,
  callbacks) gets greenlets of its own.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import gevent
from socketio import packet as sio_packet
from socketio.manager import Manager
from socketio.msgpack_packet import MsgPackPacket
from socketio.pubsub_manager import PubSubManager

from . import startup, testclient
from .cluster import Requests
from .config import MeshConfig
from .errors import ConfigError, MessageError, PayloadError, PayloadNotEncodable, PayloadTooLarge
from .fanout import Fanout
from .net.mesh import Mesh, PeerInfo
from .protocol import messages
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .routing import event_receivers, receivers

__all__ = ["GeventMeshManager"]

_ANSWERS = (MessageType.BROADCAST_CLIENT_COUNT, MessageType.BROADCAST_ACK)
"""What a manager without a server can act on."""

_SERVING_HELP = {
    "threading": (
        "pass async_mode='gevent'. It is 'threading' now: the flask command (`flask run`, `flask shell`) chooses that "
        "where nothing is said. Serve with socketio.run(app) or gunicorn"
    ),
    "eventlet": "async_mode is 'eventlet': uninstall eventlet or pass async_mode='gevent'",
    "gevent_uwsgi": "async_mode is 'gevent_uwsgi': uWSGI is not supported; use gunicorn or socketio.run(app)",
}


class GeventMeshManager(PubSubManager):  # type: ignore[misc]  # python-socketio has no types
    """A client manager that joins Socket.IO servers into a full mesh, without a broker.

    ::

        socketio = SocketIO(app, async_mode="gevent", client_manager=GeventMeshManager("ws://discovery:8000"))

    The node joins when its process begins to serve. Importing the application opens no socket.

    Args:
        discovery_service_address: URL of the discovery service, or several. Without one (and without
            ``MESH_DISCOVERY``, comma-separated) the node works alone.
        ws_port: the port that peers dial, 0 for any free one. Default: ``MESH_PORT``, else 4000.
        ws_host: the address to listen on. Default: 127.0.0.1 without a token, 0.0.0.0 with one.
        server_address: the URL under which peers reach this node. Default: ``MESH_ADDRESS``, else the address that the
            connection to discovery shows.
        heartbeat_interval: seconds between two heartbeats.
        heartbeat_timeout: seconds of silence after which a peer's link is cut; at least twice the interval.
        buffered_amount_threshold: bytes that may wait for one peer, 64 KiB to 64 MiB. It is also the largest event.
        resume_window: seconds that a peer may be away without losing anything.
        auth_token: the shared secret of nodes and discovery, at least 16 characters, or several for rotation, newest
            first. Default: ``MESH_AUTH_TOKEN``, comma-separated.
        allow_anonymous: listen beyond this machine without a token.
        channel: nodes of different channels do not link.
        write_only: publish from a process that serves no clients.
        logger: where to report; default: the logger ``gevent_mesh``.
        json: like python-socketio's own managers: the JSON module of a write-only manager.
        callback_timeout: seconds after which callbacks of clients on other nodes are freed.

    Raises:
        ConfigError: an option cannot work; the text says what to change.
    """

    name = "gevent-mesh"

    def __init__(
        self,
        discovery_service_address: str | Sequence[str] | None = None,
        *,
        ws_port: int | None = None,
        ws_host: str | None = None,
        server_address: str | None = None,
        heartbeat_interval: float = 5.0,
        heartbeat_timeout: float = 10.0,
        buffered_amount_threshold: int = 16 * 1024 * 1024,
        resume_window: float = 30.0,
        auth_token: str | Sequence[str] | None = None,
        allow_anonymous: bool = False,
        channel: str = "socketio",
        write_only: bool = False,
        logger: logging.Logger | None = None,
        json: Any = None,
        callback_timeout: float = 60.0,
    ) -> None:
        self.config = MeshConfig.from_options(
            discovery_service_address=discovery_service_address,
            ws_port=ws_port,
            ws_host=ws_host,
            server_address=server_address,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            buffered_amount_threshold=buffered_amount_threshold,
            resume_window=resume_window,
            auth_token=auth_token,
            allow_anonymous=allow_anonymous,
            channel=channel,
            write_only=write_only,
            callback_timeout=callback_timeout,
        )
        super().__init__(channel=channel, write_only=write_only, logger=logger)
        if json is not None:
            # Not every supported python-socketio has a parameter for it.
            self.json = json
        self.host_id = _new_uid()
        self._packet_class: Any = self._write_only_packet_class(json)
        self._codec = ""
        self._mesh_logger = logger or logging.getLogger("gevent_mesh")
        self._fanout = Fanout(self)
        self._requests = Requests(callback_timeout)
        self._mesh: Mesh | None = None
        self._was_started = False
        self._is_stopped = False
        self._asked_clients: deque[tuple[float, str, int]] = deque()
        self._warned_unstarted = False
        self._handlers: dict[MessageType, Callable[[Peer, ClusterMessage], None]] = {
            MessageType.BROADCAST: self._on_broadcast,
            MessageType.SOCKETS_JOIN: self._on_join,
            MessageType.SOCKETS_LEAVE: self._on_leave,
            MessageType.DISCONNECT_SOCKETS: self._on_disconnect,
            MessageType.BROADCAST_CLIENT_COUNT: self._on_client_count,
            MessageType.BROADCAST_ACK: self._on_ack,
        }
        startup.watch(self)

    # ------------------------------------------------------------------ life

    def set_server(self, server: Any) -> None:
        """Called by python-socketio when a server takes this manager.

        Raises:
            ConfigError: the server does not run on gevent, or this manager has joined for another one.
        """
        mode = server.eio.async_mode
        if mode != "gevent":
            raise ConfigError(f"GeventMeshManager needs a gevent server: {_SERVING_HELP.get(mode, mode)}")
        if self._mesh is not None:
            raise ConfigError("this GeventMeshManager already serves another server; make one for each")
        super().set_server(server)
        self._packet_class = server.packet_class
        testclient.allow(GeventMeshManager)

    def initialize(self) -> None:
        """Called by python-socketio at the first client: join now if no gevent server has started here.

        Flask-SocketIO's test client calls it too, after it has put itself in the place of the network: then there is
        nothing to join for.
        """
        if "_send_packet" in vars(self.server):
            return
        if not startup.is_served():
            self._mesh_logger.error(
                "a client has come, and no gevent server runs in this process: other nodes may hear nothing of it. "
                "Start with socketio.run(app), or gunicorn -k geventwebsocket.gunicorn.workers.GeventWebSocketWorker; "
                "not with `flask run`, or another worker class"
            )
        self.serving()

    def serving(self) -> bool:
        """The process begins to serve: join, unless this manager has no server to speak for, or was stopped.

        Returns:
            Whether this node is in the mesh.
        """
        if self.server is not None and not self._is_stopped:
            self.start()
        return self._mesh is not None

    def forked(self) -> None:
        """The process is a fork: nothing that the parent opened belongs to it."""
        mesh, self._mesh = self._mesh, None
        self.host_id = _new_uid()
        if mesh is not None:
            mesh.forget()

    def start(self) -> None:
        """Join the mesh. Does nothing if this node has joined already.

        Raises:
            StartError: `ws_port` cannot be bound.
        """
        if self._mesh is not None:
            return
        startup.watch(self)
        self._is_stopped = False
        if self._was_started:
            self.host_id = _new_uid()
        self._was_started = True
        self._codec = _codec_name(self._packet_class)
        mesh = Mesh(
            self.config,
            uid=self.host_id,
            codec=self._codec,
            on_message=self._on_message,
            on_sweep=self._sweep,
            client_count=self._client_count,
            logger=self._mesh_logger,
        )
        # Set before it starts: our own listener is a gevent server too, and asks us to start again.
        self._mesh = mesh
        try:
            mesh.start()
        except BaseException:
            self._mesh = None
            raise
        if self.config.discovery:
            self._mesh_logger.info("node %s has started", self.host_id)
        else:
            self._mesh_logger.warning(
                "no discovery service is named (discovery_service_address, MESH_DISCOVERY): this node works alone"
            )

    def stop(self, timeout: float = 2.0) -> None:
        """Leave the mesh, until `start` is called. What was emitted still goes out, for at most `timeout` seconds."""
        self._is_stopped = True
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            mesh.stop(timeout)

    def wait_for_peers(self, count: int, timeout: float | None = 10.0) -> bool:
        """Wait until links to at least `count` other nodes are up.

        Args:
            count: not counting this node.
            timeout: seconds; None waits for ever.

        Returns:
            Whether they are. Joins the mesh if this node has not yet.
        """
        self.start()
        return self._mesh is not None and self._mesh.wait_for_peers(count, timeout)

    @property
    def uid(self) -> str:
        """This node's uid: 16 hex digits, new at every start."""
        return str(self.host_id)

    @property
    def address(self) -> str:
        """The URL under which peers reach this node; empty until it is known."""
        return self.config.address if self._mesh is None else self._mesh.address

    @property
    def mesh(self) -> Mesh | None:
        """The running mesh, None before the start."""
        return self._mesh

    @property
    def peers(self) -> list[PeerInfo]:
        """The other nodes (`PeerInfo`), sorted by uid; empty before the start."""
        return [] if self._mesh is None else self._mesh.peers

    # ------------------------------------------------------------------ what python-socketio asks for

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: str | list[str] | None = None,
        callback: Callable[..., object] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Emit an event to clients of all nodes. The parameters are those of `socketio.Server.emit`.

        Raises:
            PayloadTooLarge: it is larger than `buffered_amount_threshold`; nobody has got it.
            PayloadNotEncodable: some node has clients with another form of packets, which has no place for a value.
            TypeError: the server's packet class cannot encode it; nobody has got it.
        """
        room = to or room
        namespace = namespace or "/"
        if kwargs.get("ignore_queue"):
            Manager.emit(self, event, data, namespace, room=room, skip_sid=skip_sid, callback=callback)
            return
        rooms = _rooms(room)
        if rooms is None:
            return
        exclude = _sids(skip_sid)
        encoded = self._encode(event, data, namespace)
        if callback is not None:
            self._emit_with_callback(event, data, namespace, rooms, exclude, encoded, callback)
            return
        mesh = self._mesh_for(rooms, namespace)
        if mesh is None:
            self._fanout.deliver(namespace, rooms, exclude, encoded)
            return
        # Encoded before anybody gets it: it may turn out to be too large.
        outgoing = self._event_messages(mesh, namespace, rooms, exclude, encoded)
        self._fanout.deliver(namespace, rooms, exclude, encoded)
        for peers, message in outgoing:
            mesh.outboxes.publish(peers, message)

    def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether `socketio.Server.disconnect` should disconnect `sid` itself; else its node is told to."""
        if self._is_ours(sid, namespace):
            return bool(Manager.can_disconnect(self, sid, namespace))
        self._publish_command(
            MessageType.DISCONNECT_SOCKETS, namespace, messages.disconnect_sockets(messages.options([sid]))
        )
        return False

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        """Take a client out of this node's tables, or have its node disconnect it."""
        namespace = namespace or "/"
        if kwargs.get("ignore_queue"):
            Manager.disconnect(self, sid, namespace)
        elif self._is_ours(sid, namespace):
            self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
        else:
            self.can_disconnect(sid, namespace)

    def enter_room(self, sid: str, namespace: str, room: Hashable, eio_sid: str | None = None) -> None:
        """Put a client into a room, wherever it is connected."""
        if eio_sid is not None or self._is_ours(sid, namespace):
            Manager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
            return
        data = messages.sockets_join(messages.options([sid]), [room])
        self._publish_command(MessageType.SOCKETS_JOIN, namespace, data)

    def leave_room(self, sid: str, namespace: str, room: Hashable) -> None:
        """Take a client out of a room, wherever it is connected."""
        if self._is_ours(sid, namespace):
            Manager.leave_room(self, sid, namespace, room)
            return
        data = messages.sockets_leave(messages.options([sid]), [room])
        self._publish_command(MessageType.SOCKETS_LEAVE, namespace, data)

    def close_room(self, room: Hashable, namespace: str | None = None) -> None:
        """Empty a room on all nodes."""
        namespace = namespace or "/"
        Manager.close_room(self, room, namespace)
        data = messages.sockets_leave(messages.options([room]), [room])
        self._publish_command(MessageType.SOCKETS_LEAVE, namespace, data)

    def _is_ours(self, sid: str, namespace: str) -> bool:
        """Whether the client is connected here, or about to be: inside its connect handler it is not connected yet."""
        if self.is_connected(sid, namespace):
            return True
        # Added to python-socketio together with the two-phase connect; before, the first question was enough.
        is_pre_connected = getattr(self, "is_pre_connected", None)
        return is_pre_connected is not None and bool(is_pre_connected(sid, namespace))

    def _client_count(self) -> int:
        return 0 if self.server is None else len(self.server.eio.sockets)

    # ------------------------------------------------------------------ outgoing

    def _encode(self, event: str, data: Any, namespace: str) -> list[str | bytes]:
        arguments = _arguments(data)
        # The packet class looks for binary in every corner of the data, unless it is told that there is none.
        binary = False if _PLAIN.issuperset(map(type, arguments)) else None
        packet = self._packet_class(sio_packet.EVENT, namespace=namespace, data=[event, *arguments], binary=binary)
        encoded = packet.encode()
        return encoded if isinstance(encoded, list) else [encoded]

    def _plain(self, encoded: Sequence[str | bytes]) -> list[Any]:
        """``[event, *arguments]`` of a packet of ours, as plain values, for nodes whose clients get another form."""
        try:
            return _decode(self._packet_class, encoded)
        except Exception as exc:  # whatever the packet class of an application raises
            raise PayloadNotEncodable(f"the event cannot be sent to nodes with another packet class: {exc}") from exc

    def _event_messages(
        self,
        mesh: Mesh,
        namespace: str,
        rooms: list[Hashable],
        exclude: list[str],
        encoded: list[str | bytes],
        request_id: str | None = None,
    ) -> list[tuple[list[Peer], bytes]]:
        """Encode an event for the other nodes, nearly always once: peers, and the message that they share."""
        opts = messages.options(rooms, exclude)
        same, others = event_receivers(mesh.table, self._codec)
        data = messages.broadcast(opts, encoded=encoded, codec=self._codec, request_id=request_id)
        message = self._message(MessageType.BROADCAST, namespace, data)
        outgoing = [(same, message)]
        if others:
            data = messages.broadcast(opts, packet=self._plain(encoded), request_id=request_id)
            outgoing.append((others, self._message(MessageType.BROADCAST, namespace, data)))
        mesh.outboxes.keep_for_newcomers(message)
        return outgoing

    def _emit_with_callback(
        self,
        event: str,
        data: Any,
        namespace: str,
        rooms: list[Hashable],
        exclude: list[str],
        encoded: list[str | bytes],
        callback: Callable[..., object],
    ) -> None:
        """Every addressed client gets a packet of its own, with a number that its answer carries."""
        mesh = self._mesh_for(rooms, namespace)
        peers = [] if mesh is None else receivers(mesh.table)
        outgoing: list[tuple[list[Peer], bytes]] = []
        if mesh is not None and (peers or mesh.outboxes.awaits_roster):
            uids = [peer.uid for peer in peers]
            request_id = self._requests.expect(callback, uids, may_grow=mesh.outboxes.awaits_roster)
            outgoing = self._event_messages(mesh, namespace, rooms, exclude, encoded, request_id)
        Manager.emit(self, event, data, namespace, room=rooms or None, skip_sid=exclude, callback=callback)
        for addressed, message in outgoing:
            if mesh is not None and addressed:
                mesh.outboxes.publish(addressed, message)

    def _publish_command(self, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        mesh = self._cluster()
        if mesh is not None:
            message = self._message(kind, namespace or "/", data)
            mesh.outboxes.keep_for_newcomers(message)
            mesh.outboxes.publish(receivers(mesh.table), message)

    def _message(self, kind: MessageType, namespace: str, data: dict[str, Any]) -> bytes:
        message = messages.encode(kind, self.uid, namespace, data)
        if len(message) > self.config.outbox_bytes:
            raise PayloadTooLarge(len(message), self.config.outbox_bytes)
        return message

    def _mesh_for(self, rooms: list[Hashable], namespace: str) -> Mesh | None:
        """The mesh, unless the only room is the sid of a client of ours: then no other node has anybody in it."""
        if len(rooms) == 1 and isinstance(rooms[0], str) and self._is_ours(rooms[0], namespace):
            return None
        return self._cluster()

    def _cluster(self) -> Mesh | None:
        """The mesh, or None for a node that works alone. A write-only manager joins here, at its first use."""
        if self._mesh is not None:
            return self._mesh if self.config.discovery else None
        if not self.config.discovery:
            return None
        if self.write_only and not self._is_stopped:
            self.start()
        elif not self._warned_unstarted:
            self._warned_unstarted = True
            state = "after stop()" if self._is_stopped else "before this process serves"
            self._mesh_logger.warning("emitted %s: other nodes do not get it; call start() first if they should", state)
        return self._mesh

    @staticmethod
    def _write_only_packet_class(json: Any) -> Any:
        if json is None:
            return sio_packet.Packet
        return type("Packet", (sio_packet.Packet,), {"json": json})

    # ------------------------------------------------------------------ incoming (in a reader's greenlet)

    def _on_message(self, peer: Peer, message: ClusterMessage) -> None:
        handler = self._handlers.get(message.type)
        if handler is not None and (self.server is not None or message.type in _ANSWERS):
            handler(peer, message)

    def _sweep(self, now: float) -> None:
        """About once a second: free what nobody has answered in time."""
        self._requests.sweep(now)
        while self._asked_clients and self._asked_clients[0][0] <= now:
            _, sid, number = self._asked_clients.popleft()
            self.callbacks.get(sid, {}).pop(number, None)

    def _on_broadcast(self, peer: Peer, message: ClusterMessage) -> None:
        if message.data.get("requestId") is not None:
            self._ask_clients(peer, message)
            return
        opts = message.data["opts"]
        encoded = message.data.get("encoded")
        if encoded is None or message.data.get("codec", peer.codec) != self._codec:
            event, *arguments = self._event(peer, message.data)
            encoded = self._encode(event, tuple(arguments), message.nsp)
        self._fanout.deliver(message.nsp, opts["rooms"], opts["except"], encoded)

    def _event(self, peer: Peer, data: dict[str, Any]) -> list[Any]:
        """``[event, *arguments]`` of a BROADCAST, whatever form it came in."""
        encoded = data.get("encoded")
        if encoded is None:
            event: list[Any] = data["packet"]["data"]
            return event
        codec = data.get("codec", peer.codec)
        packet_class = self._packet_class if codec == self._codec else _CODECS.get(codec)
        if packet_class is None:
            raise MessageError(f"an event in the form {codec!r}, which is not known here")
        return _decode(packet_class, encoded)

    def _ask_clients(self, peer: Peer, message: ClusterMessage) -> None:
        """Deliver an event whose clients are to acknowledge, and tell the asking node how many there are."""
        opts, request_id = message.data["opts"], message.data["requestId"]
        event = self._event(peer, message.data)
        asked = self._fanout.participants(message.nsp, opts["rooms"], opts["except"])
        count = messages.client_count(request_id, len(asked))
        self._answer(peer.uid, MessageType.BROADCAST_CLIENT_COUNT, message.nsp, count)
        deadline = monotonic() + self.config.callback_timeout
        for sid, eio_sid in asked:
            number = self._generate_ack_id(sid, partial(self._return_ack, peer.uid, message.nsp, request_id))
            self._asked_clients.append((deadline, sid, number))
            packet = self._packet_class(sio_packet.EVENT, namespace=message.nsp, data=event, id=number)
            self._fanout.deliver_to(eio_sid, packet)

    def _return_ack(self, uid: str, namespace: str, request_id: str, *arguments: Any) -> None:
        try:
            self._answer(uid, MessageType.BROADCAST_ACK, namespace, messages.broadcast_ack(request_id, list(arguments)))
        except PayloadError as exc:
            # The client's fault: it must not look like an error of the application's.
            self._mesh_logger.warning("a client's acknowledgement cannot be passed on: %s", exc)

    def _answer(self, uid: str, kind: MessageType, namespace: str, data: dict[str, Any]) -> None:
        if self._mesh is not None:
            self._mesh.outboxes.send(uid, self._message(kind, namespace, data))

    def _on_client_count(self, peer: Peer, message: ClusterMessage) -> None:
        self._requests.counted(message.data["requestId"], peer.uid, message.data["clientCount"])

    def _on_ack(self, _peer: Peer, message: ClusterMessage) -> None:
        arguments = messages.acknowledged_arguments(message.data)
        callback = self._requests.answered(message.data["requestId"], arguments)
        if callback is not None:
            gevent.spawn(callback)

    def _on_join(self, peer: Peer, message: ClusterMessage) -> None:
        for sid, _ in self._selected(message):
            for room in message.data["rooms"]:
                try:
                    Manager.enter_room(self, sid, message.nsp, room)
                except ValueError as exc:
                    self._mesh_logger.warning("%s asked to put %s into %r: %s", peer.uid, sid, room, exc)

    def _on_leave(self, peer: Peer, message: ClusterMessage) -> None:
        for sid, _ in self._selected(message):
            for room in message.data["rooms"]:
                if room == sid:
                    # It would not be reached by its sid any more. Its own node would have raised.
                    self._mesh_logger.warning("%s asked to close the room of client %s itself", peer.uid, sid)
                else:
                    Manager.leave_room(self, sid, message.nsp, room)

    def _on_disconnect(self, _peer: Peer, message: ClusterMessage) -> None:
        for sid, _ in self._selected(message):
            gevent.spawn(self.server.disconnect, sid, namespace=message.nsp, ignore_queue=True)
        # They run now, up to the point where a disconnect handler waits: an event that comes behind this message finds
        # the clients gone.
        gevent.sleep(0)

    def _selected(self, message: ClusterMessage) -> list[tuple[str, str]]:
        opts = message.data["opts"]
        return self._fanout.participants(message.nsp, opts["rooms"], opts["except"])


_PLAIN = frozenset((str, int, float, bool, type(None)))
"""Types of arguments in which there can be no binary."""

_CODECS = {"json": sio_packet.Packet, "msgpack": MsgPackPacket}
"""The forms of packets that every node can read."""


def _decode(packet_class: Any, encoded: Sequence[str | bytes]) -> list[Any]:
    """``[event, *arguments]`` of an encoded packet."""
    packet = packet_class(encoded_packet=encoded[0])
    for attachment in encoded[1:]:
        packet.add_attachment(attachment)
    plain: list[Any] = packet.data
    return plain


def _new_uid() -> str:
    return secrets.token_hex(8)


def _codec_name(packet_class: Any) -> str:
    """Names what clients get: nodes whose names are equal exchange encoded packets."""
    if packet_class.encode is sio_packet.Packet.encode:
        return "json"
    if packet_class.encode is MsgPackPacket.encode:
        return "msgpack"
    return f"{packet_class.__module__}.{packet_class.__qualname__}"[:128]


def _arguments(data: Any) -> list[Any]:
    """The arguments of an event, by python-socketio's rule: a tuple is several, None is none, anything else is one."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


def _rooms(room: Any) -> list[Hashable] | None:
    """The rooms to emit to: an empty list is everybody, None is nobody (an empty list of rooms was given)."""
    if room is None:
        return []
    if hasattr(room, "__len__") and not isinstance(room, str):
        return list(room) or None
    return [room]


def _sids(skip_sid: str | Iterable[str] | None) -> list[str]:
    several = [skip_sid] if skip_sid is None or isinstance(skip_sid, str) else list(skip_sid)
    # None is no client, but it is the name of the room of everybody.
    return [sid for sid in several if sid is not None]
