"""`GeventMeshManager`: the seam between python-socketio and the mesh.

Rules:

- What python-socketio and Flask-SocketIO offer works across nodes exactly as within one.
- An event is encoded once. It goes to this node's clients and, as one bytes object, into every peer's outbox.
- What cannot be encoded, or is too large, raises before anybody has got it.
- What is not about python-socketio is elsewhere: `node` for this node's life and its way to the others, a service for
  each kind of thing that nodes say to each other (see `service`), `cluster.api` for questions to all nodes.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from socketio import packet as sio_packet
from socketio.manager import Manager
from socketio.pubsub_manager import PubSubManager

from . import connections, startup, testclient
from .asking import Asking
from .clients import Clients, Members, Pending
from .cluster.acknowledgements import Acknowledgements, Tally, in_greenlets
from .cluster.api import ClusterApi
from .cluster.events import ServerEvents
from .cluster.queries import Queries
from .cluster.requests import Request, Requests
from .commands import Commands
from .config import MeshConfig
from .emitter import Emitter, EmitterQueries
from .errors import ConfigError, PayloadNotEncodable
from .fanout import Fanout
from .health import Health, HealthService
from .interest import InterestService
from .leaving import Leave
from .limits import ClientLimits
from .net.mesh import FLUSH_SECONDS, Mesh, PeerInfo
from .net.outboxes import Counters
from .net.pause import in_slices
from .node import Node
from .packets import Packets, arguments_of
from .presence import Presence, PresenceService
from .protocol import messages
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .relay import Relay
from .routing import event_receivers, of_node
from .selection import Selection

__all__ = ["GeventMeshManager"]

ENTER_SECONDS = 5.0
"""How long the node of a client may take to put it into a room, where that is waited for."""

_SERVING_HELP = {
    "threading": (
        "pass async_mode='gevent'. It is 'threading' now: the flask command (`flask run`, `flask shell`) chooses that "
        "where nothing is said. Serve with socketio.run(app) or gunicorn"
    ),
    "eventlet": "async_mode is 'eventlet': uninstall eventlet or pass async_mode='gevent'",
    "gevent_uwsgi": "async_mode is 'gevent_uwsgi': uWSGI is not supported; use gunicorn or socketio.run(app)",
}


class GeventMeshManager(ClusterApi, PubSubManager):  # type: ignore[misc]  # python-socketio has no types
    """A client manager that joins Socket.IO servers into a full mesh, without a broker.

    ::

        socketio = SocketIO(app, async_mode="gevent", client_manager=GeventMeshManager())

    The node joins when its process begins to serve. Importing the application opens no socket.

    Args:
        discovery_service_address: URL of the discovery service, or several. Default: ``MESH_DISCOVERY``,
            comma-separated; without that the nodes of this host find each other, with nothing else running. An empty
            list: the node works alone.
        ws_port: the port that peers dial, 0 for any free one. Default: ``MESH_PORT``, else 4000; without a discovery
            service 0.
        ws_host: the address to listen on. Default: 0.0.0.0 with a token and a discovery service, else 127.0.0.1.
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
        write_only: publish and ask from a process that serves no clients.
        logger: where to report; default: the logger ``gevent_mesh``.
        json: like python-socketio's own managers: the JSON module of a write-only manager.
        callback_timeout: seconds after which callbacks of clients on other nodes are freed.
        drain_rate: how many clients are disconnected in a second when this node leaves.
        drain_timeout: seconds after which all of them are, at a higher rate if need be.
        node_interop: form one mesh with Node.js servers that use ``socket.io-mesh-adapter`` 2.x. Their protocol sends
            the token in clear: only for a private network. See docs/nodejs.md.
        ssl_context: listen with TLS. Default: made from the files that ``MESH_TLS_CERT``, ``MESH_TLS_KEY`` and
            ``MESH_TLS_CA`` name, if they do. See docs/tls.md.
        client_ssl_context: dial ``wss://`` with this. Default: made from the same files, else what the system trusts.
        tls_name: the name that every node's certificate is for, instead of the host of its address. Default:
            ``MESH_TLS_NAME``.
        client_queue_bytes: how much may wait for one client that does not keep up, 64 KiB or more; one packet beyond
            that, it is disconnected. None for any amount.
        bounded_reader: refuse WebSocket messages of clients that are larger than the server's `max_http_buffer_size`
            before they are read. False leaves reading to gevent-websocket. See docs/clients.md for both.
        room_interest: send an event for a room only to the nodes that have members of it. `enter_room` and connecting
            then wait until the nodes that publish know, nearly always a round trip. See docs/rooms.md.
        direct_writes: write events straight to the sockets of WebSocket clients where nothing waits before them. False
            sends everything through python-engineio's queues, which costs three times as much.
        embedded_port: the port on 127.0.0.1 where the nodes of this host find each other when no discovery service is
            named. Default: ``MESH_EMBEDDED_PORT``, else one made of the user's id and the channel.

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
        drain_rate: float = 100.0,
        drain_timeout: float = 20.0,
        node_interop: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        client_ssl_context: ssl.SSLContext | None = None,
        tls_name: str | None = None,
        client_queue_bytes: int | None = 64 * 1024 * 1024,
        bounded_reader: bool = True,
        direct_writes: bool = True,
        room_interest: bool = False,
        embedded_port: int | None = None,
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
            drain_rate=drain_rate,
            drain_timeout=drain_timeout,
            node_interop=node_interop,
            ssl_context=ssl_context,
            client_ssl_context=client_ssl_context,
            tls_name=tls_name,
            client_queue_bytes=client_queue_bytes,
            bounded_reader=bounded_reader,
            direct_writes=direct_writes,
            room_interest=room_interest,
            embedded_port=embedded_port,
        )
        super().__init__(channel=channel, write_only=write_only, logger=logger)
        # Of these two, older ones of python-socketio have only the second.
        self.pending_connect, self.pending_disconnect = Pending(), Pending()
        if json is not None:
            # Not every supported python-socketio has a parameter for it.
            self.json = json
        self._mesh_logger = logger or logging.getLogger("gevent_mesh")
        self._packets = Packets(None if json is None else type("Packet", (sio_packet.Packet,), {"json": json}))
        self._emitter = Emitter(self.config, self._mesh_logger) if write_only else None
        self._node = self._emitter or Node(self.config, self._mesh_logger, self._status)
        self._leave: Leave | None = None
        self._limits = ClientLimits(self.config, self._counters, self._mesh_logger)
        self._clients = Clients(self, Fanout(self, self._limits.keep_pace, self._mesh_logger))
        self._requests = Requests()
        self._add_services()
        startup.watch(self)

    def _add_services(self) -> None:
        node, clients, logger = self._node, self._clients, self._mesh_logger

        def packets() -> Packets:
            return self._packets

        self._acknowledgements = Acknowledgements(node, clients, packets, self._requests, self, logger)
        self._queries = self._make_queries()
        self._server_events = ServerEvents(node, self._requests, logger)
        self._presence = PresenceService(node, clients, logger)
        wants_interest = self.config.room_interest and not self.write_only
        self._interest = InterestService(node, self.rooms) if wants_interest else None
        commands = Commands(node, clients, packets, self._acknowledgements, logger, self._interest)
        self._relay = Relay(node, self._requests, self._acknowledgements, logger, self._interest)
        questions = (self._acknowledgements, self._queries, self._server_events)
        self._asking = Asking(node, self, self._server_events, packets, logger)
        self._health = HealthService(node, logger)
        node.add(commands, *questions, self._presence, self._relay, self._asking, self._health)
        if self._interest is not None:
            node.add(self._interest)
            # Before python-socketio connected in two phases, there was but one.
            name = "pre_connect" if hasattr(self, "pre_connect") else "connect"
            setattr(self, name, partial(self._take_in, self._interest, getattr(self, name)))

    def _make_queries(self) -> Queries:
        emitter, clients, requests, logger = self._emitter, self._clients, self._requests, self._mesh_logger
        if emitter is not None:
            return EmitterQueries(emitter, emitter, clients, requests, logger)
        return Queries(self._node, clients, requests, logger)

    # ------------------------------------------------------------------ life

    def set_server(self, server: Any) -> None:
        """Called by python-socketio when a server takes this manager.

        Raises:
            ConfigError: the server does not run on gevent, or this manager has joined for another one.
        """
        mode = server.eio.async_mode
        if mode != "gevent":
            raise ConfigError(f"GeventMeshManager needs a gevent server: {_SERVING_HELP.get(mode, mode)}")
        if self._emitter is not None:
            raise ConfigError("write_only=True is for processes without a server: leave it out here")
        if self._node.mesh is not None:
            raise ConfigError("this GeventMeshManager already serves another server; make one for each")
        super().set_server(server)
        self._packets = Packets(server.packet_class)
        connections.install(server, self._limits, self._clients.fanout.outlets, self._mesh_logger)
        # Behind the limits, and so in front of them: whom a node that leaves refuses is no client to anybody.
        self._clients.watch(server, is_closed=lambda: self._node.is_leaving)
        generate_id = server.eio.generate_id
        server.eio.generate_id = lambda: of_node(generate_id(), self.uid)
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
                "Start with socketio.run(app), or gunicorn -k gevent_mesh.gunicorn.GeventMeshWorker; "
                "not with `flask run`, or another worker class"
            )
        self.serving()

    def serving(self) -> bool:
        """The process begins to serve: join, unless this manager has no server to speak for, or was stopped.

        Returns:
            Whether this node is in the mesh.
        """
        if self.server is not None and not self._node.is_stopped:
            self._end_leave()
            if not self._node.is_stopped:  # meanwhile
                self.start()
        return self._node.mesh is not None

    def forked(self) -> None:
        """The process is a fork: nothing that the parent opened belongs to it."""
        self._node.forked()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave.forget()

    def start(self) -> None:
        """Join the mesh. Does nothing if this node has joined already.

        A write-only manager does it by itself at its first use, except after `stop` or `close`.

        Raises:
            StartError: `ws_port` cannot be bound.
        """
        self._end_leave()
        if self._node.mesh is not None:
            return
        startup.watch(self)
        self._node.read_packet = self._packets.read
        self._node.start(self._packets.codec)
        if self._emitter is not None:
            return
        self._mesh_logger.info("node %s has started%s", self.uid, self._circle())

    def _end_leave(self) -> None:
        """Wait until this node is gone, if it is on its way out."""
        if self._leave is not None:
            self._leave.wait()

    def _circle(self) -> str:
        if self.config.embedded_port:
            return " and looks for others on this host: no discovery service is named"
        return "" if self.config.discovery else " and works alone: its discovery_service_address is empty"

    def stop(self, timeout: float = FLUSH_SECONDS) -> None:
        """Leave the mesh, until `start` is called; a node does so by itself when its server stops.

        New clients are refused, those that are here are disconnected (`drain_rate`, `drain_timeout`) and will connect
        elsewhere, what was emitted goes out, and the other nodes are told.

        Args:
            timeout: seconds that other nodes have to take what was emitted, once the clients are gone.
        """
        self._stop(timeout)

    def _stop(self, timeout: float) -> bool:
        self._node.is_stopped = True
        leave = self._begin_leave(timeout)
        if leave is None:
            return self._node.stop(timeout)
        leave.wait()
        return leave.is_flushed

    def _begin_leave(self, flush_seconds: float) -> Leave | None:
        """Begin to leave, or tell what is on its way already; None for what has not joined, or has no clients."""
        if self._leave is not None and not self._leave.is_over:
            return self._leave
        if self._node.mesh is None:
            return None
        self._leave = Leave(
            self._node,
            self._clients,
            rate=self.config.drain_rate,
            drain_seconds=self.config.drain_timeout,
            flush_seconds=flush_seconds,
            logger=self._mesh_logger,
        )
        return self._leave

    def ending(self) -> Leave | None:
        """The process does not serve any more: leave, as `stop` does. Another server in it brings this node back."""
        return None if self.server is None else self._begin_leave(FLUSH_SECONDS)

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until every node that is there has what was emitted.

        Args:
            timeout: the most seconds to wait.

        Returns:
            Whether they have.
        """
        if self._emitter is not None:
            return self._emitter.flush(timeout)
        mesh = self._node.mesh
        return mesh is None or mesh.outboxes.flush(timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """`stop`, and tell how it went.

        Returns:
            Whether every node that is there has what was emitted.
        """
        return self._stop(timeout)

    def wait_for_peers(self, count: int, timeout: float | None = 10.0) -> bool:
        """Wait until links to at least `count` other nodes are up.

        Args:
            count: not counting this node. A write-only manager needs one node, and waits for no more.
            timeout: seconds; None waits for ever.

        Returns:
            Whether they are. Joins the mesh if this node has not yet; one that leaves or has left stays away until
            `start`.
        """
        if self._emitter is not None:
            return count <= 0 or self._emitter.wait_for_node(timeout)
        if self._node.is_leaving:
            return False
        self.start()
        mesh = self._node.mesh
        return mesh is not None and mesh.wait_for_peers(count, timeout)

    @property
    def uid(self) -> str:
        """This node's uid: 16 hex digits, new at every start."""
        return self._node.uid

    @property
    def host_id(self) -> str:
        """What python-socketio's admin UI calls this node."""
        return self._node.uid

    @host_id.setter
    def host_id(self, _value: str) -> None:
        """python-socketio's own managers choose one; ours is the node's uid."""

    @property
    def address(self) -> str:
        """The URL under which peers reach this node; empty until it is known."""
        return self.config.address if self._node.mesh is None else self._node.mesh.address

    @property
    def mesh(self) -> Mesh | None:
        """The running mesh, None before the start."""
        return self._node.mesh

    @property
    def peers(self) -> list[PeerInfo]:
        """The other nodes (`PeerInfo`), sorted by uid; empty before the start.

        Of a write-only manager, the one that it is linked to.
        """
        if self._emitter is not None:
            node = self._emitter.linked_to
            return [] if node is None else [node]
        return [] if self._node.mesh is None else self._node.mesh.peers

    def presence(self, namespace: str = "/") -> Presence:
        """Who is online in a namespace, on all nodes: users, as the application tells them from each other.

        Raises:
            ConfigError: this manager is write-only: it has no clients, and is told nothing of those of others.
        """
        if self.write_only:
            raise ConfigError("a write-only manager does not know who is online; ask a process that serves clients")
        return self._presence.of(namespace or "/")

    def health(self) -> Health:
        """Whether clients may be sent to this node, and whether its process must be started anew (see `HealthApp`).

        A write-only manager is ready when it is linked to a node.
        """
        if self._emitter is None:
            return self._health.health()
        node = self._emitter.linked_to
        reasons = () if node is not None else ("no node takes what is published",)
        return Health(node is not None, True, reasons, links_expected=1, links_up=int(node is not None))

    def _counters(self) -> Counters | None:
        return None if self._node.mesh is None else self._node.mesh.counters

    def _status(self) -> dict[str, Any]:
        """What heartbeats say of this node."""
        return {"clients": self._clients.count(), "namespaces": self._clients.namespaces()}

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
            EmitterError: this manager is write-only, and closed, or no node takes what waits already; nobody gets it.
        """
        if kwargs.keys() - {"ignore_queue"}:
            # A misspelt room would be everybody.
            raise TypeError(f"emit() has no parameter {next(iter(kwargs.keys() - {'ignore_queue'}))!r}")
        selection = Selection.of(namespace, to or room, skip_sid)
        if kwargs.get("ignore_queue"):
            Manager.emit(self, event, data, selection.namespace, room=to or room, skip_sid=skip_sid, callback=callback)
            return
        if selection.is_empty:
            return
        if self._emitter is not None:
            self._publish_event(self._emitter, event, data, selection, callback)
            return
        if callback is not None:
            tally = Tally(in_greenlets(callback))
            self._ask_clients(event, data, selection, tally, self.config.callback_timeout, callback)
            return
        encoded = self._packets.encode(event, arguments_of(data), selection.namespace)
        mesh = self._mesh_for(selection)
        if mesh is None:
            self._deliver(selection, encoded)
        else:
            self._publish_and_deliver(mesh, selection, encoded)
        self._limits.keep_pace()

    def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether `socketio.Server.disconnect` should disconnect `sid` itself; else its node is told to."""
        if self._clients.is_ours(_sid(sid), namespace):
            return bool(Manager.can_disconnect(self, sid, namespace))
        data = messages.disconnect_sockets(messages.options([sid]))
        self._tell_owner(sid, MessageType.DISCONNECT_SOCKETS, namespace, data)
        return False

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        """Take a client out of this node's tables, or have its node disconnect it."""
        namespace = namespace or "/"
        if kwargs.get("ignore_queue"):
            Manager.disconnect(self, sid, namespace)
        elif self._clients.is_ours(sid, namespace):
            self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
        else:
            self.can_disconnect(sid, namespace)

    def enter_room(self, sid: str, namespace: str, room: Hashable, eio_sid: str | None = None) -> None:
        """Put a client into a room, wherever it is connected."""
        _check_room(room)
        if eio_sid is not None or self._clients.is_ours(_sid(sid), namespace):
            Manager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
            if self._interest is not None:
                self._interest.wait_until_known(namespace or "/", [room])
            return
        if self._interest is not None:
            self._enter_and_wait(self._interest, sid, namespace or "/", room)
            return
        data = messages.sockets_join(messages.options([sid]), [room])
        self._tell_owner(sid, MessageType.SOCKETS_JOIN, namespace, data)

    def _enter_and_wait(self, interest: InterestService, sid: str, namespace: str, room: Hashable) -> None:
        """Put a client of another node into a room, and wait until all nodes know that there is somebody in it."""

        def make_data(request_id: str | None) -> dict[str, Any]:
            return messages.one_client(messages.sockets_join(messages.options([sid]), [room], request_id))

        peers = None if self._node.cluster() is None else self._node.owners([sid])
        if peers is None or not interest.may_wait:
            self._node.publish_to_owner(sid, MessageType.SOCKETS_JOIN, namespace, make_data(None))
        else:
            kind = MessageType.SOCKETS_JOIN
            request = self._queries.ask_some(peers, (), kind, namespace, make_data, _take_any, ENTER_SECONDS)
            self._requests.wait(request)
        interest.drop_leases(peers)

    def leave_room(self, sid: str, namespace: str, room: Hashable) -> None:
        """Take a client out of a room, wherever it is connected."""
        _check_room(room)
        if self._clients.is_ours(_sid(sid), namespace):
            Manager.leave_room(self, sid, namespace, room)
            return
        data = messages.sockets_leave(messages.options([sid]), [room])
        self._tell_owner(sid, MessageType.SOCKETS_LEAVE, namespace, data)

    def close_room(self, room: Hashable, namespace: str | None = None) -> None:
        """Empty a room on all nodes."""
        _check_room(room)
        namespace = namespace or "/"
        if not self._clients.is_ours(room, namespace):
            for sid in in_slices(list(self.rooms.get(namespace, {}).get(room, ()))):
                self.basic_leave_room(sid, namespace, room)
        # Who has come meanwhile; and where the room is a client's own, it is said here that it stays.
        Manager.close_room(self, room, namespace)
        data = messages.sockets_leave(messages.options([room]), [room])
        self._node.publish(MessageType.SOCKETS_LEAVE, namespace, data)

    # ------------------------------------------------------------------ the tables of rooms

    def _take_in(
        self, interest: InterestService, take_in: Callable[[str, str], str | None], eio_sid: str, namespace: str
    ) -> str | None:
        """Take a client into the tables of this node, before it or the application hears of that."""
        sid = take_in(eio_sid, namespace)
        if sid is not None:
            # Whoever goes meanwhile has never been connected: it gets no disconnect handler.
            self.pre_disconnect(sid, namespace)
            try:
                interest.wait_until_known(namespace, [None])
            finally:
                _remove_pending(self.pending_disconnect, sid, namespace)
            if not self._clients.is_ours(sid, namespace):
                return None  # it has gone meanwhile
        return sid

    def basic_enter_room(self, sid: str, namespace: str, room: Hashable, eio_sid: str | None = None) -> None:
        """Put a client into a room of this node.

        Raises:
            ValueError: the room is that of another client.
        """
        if room != sid and self._node.is_elsewhere(room):
            raise ValueError(f"{room!r} is the sid of a client: nobody else can enter its room")
        if room is not None and namespace in self.rooms:
            self.rooms[namespace].setdefault(room, Members())
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        self._clients.entered(sid, namespace, room, eio_sid)
        if self._interest is not None:
            self._interest.entered(namespace, room)

    def basic_leave_room(self, sid: str, namespace: str, room: Hashable) -> None:
        """Take a client out of a room of this node."""
        super().basic_leave_room(sid, namespace, room)
        self._clients.left(sid, namespace, room)
        if self._interest is not None and room not in self.rooms.get(namespace, ()):
            self._interest.left_room(namespace, room)

    def get_rooms(self, sid: str, namespace: str) -> list[Hashable]:
        """The rooms that a client of this node is in. The cost depends on that client's rooms only."""
        known = self.rooms.get(namespace, {}).get(None, {})
        return [sid, *self._clients.rooms_of(sid, namespace)] if sid in known else []

    def basic_disconnect(self, sid: str, namespace: str, **_kwargs: Any) -> None:
        """Take a client out of the tables of this node. The cost depends on that client's rooms only."""
        was_here = sid in self.rooms.get(namespace, {}).get(None, {})
        for room in (*self._clients.rooms_of(sid, namespace), sid, None):
            self.basic_leave_room(sid, namespace, room)
        self.callbacks.pop(sid, None)
        # The first of them came to python-socketio together with the two-phase connect.
        for pending in (getattr(self, "pending_connect", {}), self.pending_disconnect):
            _remove_pending(pending, sid, namespace)
        self._clients.gone(sid)
        if was_here:
            self._node.client_gone(sid, namespace)

    # ------------------------------------------------------------------ outgoing

    def _publish_and_deliver(self, mesh: Mesh, selection: Selection, encoded: list[str | bytes]) -> None:
        # Encoded before anybody gets it: it may turn out to be too large.
        outgoing = self._event_messages(mesh, selection, encoded)
        while not self._publish_in_turn(mesh, selection, encoded, outgoing):
            for peers, message in outgoing:
                mesh.outboxes.keep_pace(peers, len(message))
        for peers, _ in outgoing:
            mesh.outboxes.keep_pace(peers)

    def _publish_in_turn(
        self, mesh: Mesh, selection: Selection, encoded: list[str | bytes], outgoing: list[tuple[list[Peer], bytes]]
    ) -> bool:
        """Who sees an event may answer at once: nothing that is emitted then is to come before it, here or elsewhere.

        Returns:
            False when a peer is to be waited for first: not in the turn, which would hold up everybody.
        """
        with self._clients.fanout.turn():
            for peers, message in outgoing:
                if mesh.outboxes.is_behind(peers, len(message)):
                    return False
            for peers, message in outgoing:
                mesh.outboxes.publish(peers, message, at_once=True)
            self._deliver(selection, encoded)
        return True

    def _deliver(self, selection: Selection, encoded: list[str | bytes]) -> None:
        self._clients.fanout.deliver(selection.namespace, selection.rooms, selection.exclude, encoded)

    def _event_messages(
        self, mesh: Mesh, selection: Selection, encoded: list[str | bytes], request_id: str | None = None
    ) -> list[tuple[list[Peer], bytes]]:
        """Encode an event for the other nodes, nearly always once: peers, and the message that they share."""
        peers = self._node.owners(selection.rooms)
        everybody: Iterable[Peer] = mesh.table
        if peers is None and self._interest is not None and request_id is None:
            everybody = self._interest.choose(mesh, selection.namespace, selection.rooms)
        same, others = event_receivers(everybody if peers is None else peers, self._packets.codec)
        message = self._event_message(selection, encoded, request_id)
        outgoing = [(same, message)]
        if others:
            outgoing.append((others, self._plain_message(selection, encoded, request_id) or message))
        if peers is None:
            mesh.outboxes.keep_for_newcomers(message)
        return outgoing

    def _event_message(self, selection: Selection, encoded: list[str | bytes], request_id: str | None) -> bytes:
        """An event for nodes with the same packet class."""
        namespace, codec = selection.namespace, self._packets.codec
        if request_id is None:
            return self._node.encode_event(namespace, selection.rooms, selection.exclude, encoded, codec)
        data = messages.broadcast(selection.opts, encoded=encoded, codec=codec, request_id=request_id)
        return self._node.encode(MessageType.BROADCAST, namespace, data)

    def _plain_message(self, selection: Selection, encoded: list[str | bytes], request_id: str | None) -> bytes | None:
        """An event for nodes with another packet class; None if they have to read the packet of ours."""
        try:
            data = messages.broadcast(selection.opts, packet=self._packets.plain(encoded), request_id=request_id)
            return self._node.encode(MessageType.BROADCAST, selection.namespace, data)
        except PayloadNotEncodable:
            if not self._packets.is_known:
                raise
            return None

    def _ask_clients(
        self,
        event: str,
        data: Any,
        selection: Selection,
        tally: Tally,
        timeout: float,
        callback: Callable[..., object] | None = None,
    ) -> Request:
        """Every addressed client gets a packet of its own, with a number that its answer carries."""
        arguments = arguments_of(data)
        if self._emitter is not None:
            return self._ask_clients_from_outside(event, arguments, selection, tally, timeout)
        encoded = self._packets.encode(event, arguments, selection.namespace)
        mesh = self._mesh_for(selection)
        publish = None if mesh is None else partial(self._publish_question, mesh, selection, encoded)
        request = self._acknowledgements.ask([event, *arguments], selection, publish, tally, timeout, callback)
        self._limits.keep_pace()
        return request

    def _ask_clients_from_outside(
        self, event: str, arguments: list[Any], selection: Selection, tally: Tally, timeout: float
    ) -> Request:
        try:
            encoded = self._packets.encode(event, arguments, selection.namespace)
        except TypeError as exc:
            raise PayloadNotEncodable(f"the event cannot be sent: {exc}") from exc
        data = partial(messages.broadcast, selection.opts, encoded=encoded, codec=self._packets.codec)
        kind = MessageType.BROADCAST
        return self._queries.ask(
            kind, selection.namespace, lambda request_id: data(request_id=request_id), tally.take, timeout
        )

    def _publish_question(self, mesh: Mesh, selection: Selection, encoded: list[str | bytes], request_id: str) -> None:
        for peers, message in self._event_messages(mesh, selection, encoded, request_id):
            if peers:
                mesh.outboxes.publish(peers, message)

    def _publish_event(
        self,
        emitter: Emitter,
        event: str,
        data: Any,
        selection: Selection,
        callback: Callable[..., object] | None,
    ) -> None:
        """Emit from a process that serves nobody."""
        encoded = self._packets.encode(event, arguments_of(data), selection.namespace)
        request_id = None if callback is None else emitter.expect(callback)
        message = messages.broadcast(selection.opts, encoded=encoded, codec=self._packets.codec, request_id=request_id)
        try:
            emitter.publish(MessageType.BROADCAST, selection.namespace, message)
        except Exception:
            if request_id is not None:
                emitter.expect_no_more(request_id)
            raise

    def _tell_owner(self, sid: str, kind: MessageType, namespace: str | None, data: dict[str, Any]) -> None:
        self._node.publish_to_owner(sid, kind, namespace or "/", messages.one_client(data))

    def _mesh_for(self, selection: Selection) -> Mesh | None:
        """The mesh, unless nobody on another node can be meant."""
        if self._clients.is_only_ours(selection):
            return None
        return self._node.cluster()


def _sid(sid: object) -> str:
    """The sid of a client. None would be taken for everybody: it stands for no room at all."""
    if not isinstance(sid, str):
        raise TypeError(f"a sid is text, not {sid!r}")
    return sid


def _remove_pending(pending: Pending | dict[str, Any], sid: str, namespace: str) -> None:
    """A client is not on its way in, or out, any more."""
    if sid in pending.get(namespace, ()):
        pending[namespace].remove(sid)
        if not pending[namespace]:
            del pending[namespace]


def _take_any(_uid: str, _message: ClusterMessage) -> bool:
    """Take the answer of one node, whatever it says."""
    return True


def _check_room(room: object) -> None:
    if room is None:
        raise ValueError("nobody can enter or leave the room None: it is that of everybody in the namespace")
