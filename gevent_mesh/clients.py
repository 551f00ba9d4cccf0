"""This node's own clients, as its services see them: who is selected, what is known of each, what can be done to them.

Rules:

- Work on many clients is done in slices (`in_slices`), so that nobody is held up; a client may have gone meanwhile.
- What is told of a client to other nodes is bounded, and what msgpack has no form for is left out.
- What a client sent as `auth` is kept for as long as it is connected, so it is kept only while it is small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any
from urllib.parse import parse_qsl

import gevent
import msgpack
from socketio.manager import Manager

from .fanout import Fanout
from .net.pause import in_slices
from .selection import Selection, members_of

__all__ = ["Clients", "Members", "Pending", "packed_bytes"]

MAX_AUTH_BYTES = 4096
MAX_DATA_BYTES = 32 * 1024
"""The most of a client's session that other nodes are told."""
MAX_NAMESPACES = 60
MAX_NAMESPACE_BYTES = 256
"""The most namespaces that a heartbeat names, and the longest: its decoder takes 64 of anything, of 1 KiB at most.
(Where a server takes any namespace, its clients make them up.)"""


class Members(dict[str, str]):
    """The members of a room, as far as python-socketio looks at them: Engine.IO sids by sids.

    Its own, a `bidict`, has the reverse of it as well, which is needed of the room of everybody only. It takes three
    times the memory, and most rooms are those of single clients.
    """

    __slots__ = ()

    @property
    def _fwdm(self) -> Members:
        return self


class Pending(dict[str, "_Sids"]):
    """Clients that are on their way in or out, by namespace, in place of python-socketio's lists of sids.

    When very many come or go at once, to look for one in a list costs more the more there are.
    """

    __slots__ = ()

    def __setitem__(self, namespace: str, sids: Iterable[str]) -> None:
        super().__setitem__(namespace, _Sids((sid, None) for sid in sids))


class _Sids(dict[str, None]):
    """What python-socketio uses of a list."""

    __slots__ = ()

    def append(self, sid: str) -> None:
        self[sid] = None

    def remove(self, sid: str) -> None:
        del self[sid]


class Clients:
    """The clients of one server.

    Args:
        manager: the client manager that knows the rooms.
        fanout: delivers to them.
    """

    def __init__(self, manager: Manager, fanout: Fanout) -> None:
        self._manager = manager
        self.fanout = fanout
        self._arrivals: dict[str, tuple[float, bytes]] = {}
        self._offered: dict[tuple[str, str], Any] = {}
        self._rooms: dict[tuple[str, str], dict[Hashable, None]] = {}

    # ------------------------------------------------------------------ what python-socketio does (see the manager)

    def watch(self, server: Any, is_closed: Callable[[], bool]) -> None:
        """See clients of this server come and go; refuse them while it is closed.

        What they send as `auth` is remembered; python-socketio only passes it to the application. And a client whose
        connect or disconnect handler has failed does not stay in the tables, as it would: it is not there.
        """
        connect, disconnect = server._handle_connect, server._handle_eio_disconnect

        def handle_connect(eio_sid: str, namespace: str | None, data: Any) -> None:
            key = (eio_sid, namespace or "/")
            self._offered[key] = data
            try:
                connect(eio_sid, namespace, data)
            except BaseException:
                self._drop(eio_sid, key[1])
                raise
            finally:
                self._offered.pop(key, None)

        def handle_disconnect(eio_sid: str, *reason: Any) -> None:
            try:
                disconnect(eio_sid, *reason)
            finally:
                for namespace in list(self._manager.rooms):
                    self._drop(eio_sid, namespace)

        def handle_eio_connect(eio_sid: str, environ: dict[str, Any]) -> Any:
            # Refused by HTTP, so that a client tries again elsewhere: CONNECT_ERROR would tell it not to.
            return False if is_closed() else server._handle_eio_connect(eio_sid, environ)

        server._handle_connect = handle_connect
        server._handle_eio_disconnect = handle_disconnect
        server.eio.on("connect", handle_eio_connect)
        server.eio.on("disconnect", handle_disconnect)

    def _drop(self, eio_sid: str, namespace: str) -> None:
        sid = self._manager.sid_from_eio_sid(eio_sid, namespace)
        if sid is not None:
            self._manager.basic_disconnect(sid, namespace)

    def entered(self, sid: str, namespace: str, room: Hashable, eio_sid: str | None) -> None:
        """A client is in one more room; None is the room that it enters first."""
        if room is None:
            auth = _packed(self._offered.pop((eio_sid or "", namespace), None), MAX_AUTH_BYTES)
            self._arrivals[sid] = (time.time(), auth)
        elif room != sid:
            self._rooms.setdefault((namespace, sid), {})[room] = None

    def left(self, sid: str, namespace: str, room: Hashable) -> None:
        """A client is in one room less."""
        rooms = self._rooms.get((namespace, sid))
        if rooms is not None:
            rooms.pop(room, None)
            if not rooms:
                del self._rooms[namespace, sid]

    def gone(self, sid: str) -> None:
        """A client is not connected any more."""
        self._arrivals.pop(sid, None)

    # ------------------------------------------------------------------ who

    @property
    def is_served(self) -> bool:
        """Whether there is a server that could have clients."""
        return self._manager.server is not None

    def is_ours(self, sid: Hashable, namespace: str) -> bool:
        """Whether the client is connected here, or about to be: inside its connect handler it is not connected yet."""
        if self._manager.is_connected(sid, namespace):
            return True
        # Added to python-socketio together with the two-phase connect; before, the first question was enough.
        is_pre_connected = getattr(self._manager, "is_pre_connected", None)
        return is_pre_connected is not None and bool(is_pre_connected(sid, namespace))

    def is_only_ours(self, selection: Selection) -> bool:
        """Whether nobody else can have any of the selected clients: the only room is the sid of one of ours."""
        return len(selection.rooms) == 1 and self.is_ours(selection.rooms[0], selection.namespace)

    def select(self, selection: Selection) -> list[str]:
        """The sids of the selected clients that are connected here, each once."""
        known = self._manager.rooms.get(selection.namespace)
        if selection.is_empty or not known:
            return []
        return list(members_of(known, selection.rooms, selection.exclude))

    def eio_sid(self, sid: str, namespace: str) -> str:
        """The Engine.IO sid of a client; empty when it has gone."""
        return self._manager.rooms.get(namespace, {}).get(None, {}).get(sid) or ""

    def count(self) -> int:
        """Connections of clients, whatever their namespaces."""
        return len(self._manager.server.eio.sockets) if self.is_served else 0

    def connections(self) -> list[Any]:
        """The Engine.IO sockets of all clients that are not on their way out already."""
        if not self.is_served:
            return []
        sockets = list(self._manager.server.eio.sockets.values())
        return [socket for socket in sockets if not (socket.closing or socket.closed)]

    def serves(self, namespace: str) -> bool:
        """Whether a namespace is served here."""
        return namespace in self._all_namespaces()

    def namespaces(self) -> list[str]:
        """The namespaces that are served here, those that are not too many and too long to be told of."""
        found = self._all_namespaces()
        told = [name for name in found if name != "*" and len(name.encode("utf-8", "replace")) <= MAX_NAMESPACE_BYTES]
        return told[:MAX_NAMESPACES]

    def _all_namespaces(self) -> dict[str, None]:
        server = self._manager.server
        if server is None:
            return {}
        named = server.namespaces if isinstance(server.namespaces, (list, tuple)) else ()
        return dict.fromkeys([*server.handlers, *server.namespace_handlers, *named, *self._manager.rooms])

    def rooms_of(self, sid: str, namespace: str) -> list[Hashable]:
        """The rooms that a client is in, apart from its own."""
        return list(self._rooms.get((namespace, sid), ()))

    def describe(self, sid: str, namespace: str) -> dict[str, Any]:
        """What other nodes are told of a client: ``{id, handshake, rooms, data}``."""
        eio_sid = self.eio_sid(sid, namespace)
        return {
            "id": sid,
            "handshake": self._handshake(sid, eio_sid),
            "rooms": [sid, *(room for room in self.rooms_of(sid, namespace) if packed_bytes(room) is not None)],
            "data": _encodable(self._session(eio_sid, namespace), MAX_DATA_BYTES),
        }

    def _handshake(self, sid: str, eio_sid: str) -> dict[str, Any]:
        environ = self._manager.server.environ.get(eio_sid, {})
        arrived_at, auth = self._arrivals.get(sid, (0.0, _NOTHING))
        return {
            "address": environ.get("REMOTE_ADDR", ""),
            "query": dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
            "issued": round(arrived_at * 1000),
            "auth": msgpack.unpackb(auth, strict_map_key=False),
        }

    def _session(self, eio_sid: str, namespace: str) -> dict[str, Any]:
        """The session of python-socketio, above the one of Flask that Flask-SocketIO's handlers see."""
        server = self._manager.server
        flask_session = server.environ.get(eio_sid, {}).get("saved_session") or {}
        socket = server.eio.sockets.get(eio_sid)
        own = socket.session.get(namespace, {}) if socket is not None else {}
        return {**flask_session, **own} if isinstance(own, dict) else dict(flask_session)

    # ------------------------------------------------------------------ what can be done to them

    def check_enterable(self, namespace: str, rooms: Iterable[Hashable]) -> None:
        """Refuse rooms that are clients' own.

        Raises:
            ValueError: a room is the sid of a client of this node.
        """
        for room in rooms:
            if self.is_ours(room, namespace):
                raise ValueError(f"{room!r} is the sid of a client: nobody else can enter its room")

    def enter(self, sids: Iterable[str], namespace: str, rooms: Iterable[Hashable]) -> int:
        """Put clients into rooms.

        Returns:
            How many of them were still there.

        Raises:
            ValueError: a room is the sid of some other client.
        """
        rooms = list(rooms)

        def enter(sid: str) -> None:
            for room in rooms:
                Manager.enter_room(self._manager, sid, namespace, room)

        return self._each(sids, namespace, enter)

    def leave(self, sids: Iterable[str], namespace: str, rooms: Iterable[Hashable]) -> int:
        """Take clients out of rooms; out of their own they do not go, they would not be reached by their sid any more.

        Returns:
            How many of them were still there.
        """
        rooms = list(rooms)

        def leave(sid: str) -> None:
            for room in rooms:
                if room != sid:
                    Manager.leave_room(self._manager, sid, namespace, room)

        return self._each(sids, namespace, leave)

    def _each(self, sids: Iterable[str], namespace: str, do: Callable[[str], None]) -> int:
        """Do something to each client that is still there; how many there were."""
        count = 0
        for sid in in_slices(sids):
            if self.is_ours(sid, namespace):
                count += 1
                do(sid)
        return count

    def disconnect(self, sids: Iterable[str], namespace: str, *, close: bool = False) -> int:
        """Disconnect clients from the namespace.

        Their disconnect handlers begin before this returns, in greenlets of their own: an event that comes after it
        finds the clients gone.

        Args:
            close: end their connections, and so all of their namespaces.

        Returns:
            How many there were.
        """
        count = 0
        for sid in in_slices(sids):
            if not self.is_ours(sid, namespace):
                continue
            count += 1
            if close:
                gevent.spawn(self._manager.server.eio.disconnect, self.eio_sid(sid, namespace))
            else:
                gevent.spawn(self._manager.server.disconnect, sid, namespace=namespace, ignore_queue=True)
            # It runs now, up to the point where a handler waits. (In the hub, which must not wait, it runs next.)
            if gevent.getcurrent() is not gevent.get_hub():
                gevent.sleep(0)
        return count

    def end_connection(self, connection: Any) -> None:
        """End one of `connections`, behind what waits for the client: to it the transport closes, and it will be back.

        Returns when the disconnect handlers have.
        """
        connection.close(wait=False, abort=True, reason=self._manager.server.eio.reason.SERVER_DISCONNECT)


_NOTHING = msgpack.packb(None)
_packer = msgpack.Packer(use_bin_type=True)


def _packed(value: Any, limit_bytes: int) -> bytes:
    """A value in msgpack, or None in its place if it has no form there, or too large a one."""
    try:
        packed: bytes = _packer.pack(value)
    except (TypeError, ValueError, OverflowError):
        return bytes(_NOTHING)
    return packed if len(packed) <= limit_bytes else bytes(_NOTHING)


def _encodable(session: dict[Any, Any], limit_bytes: int) -> dict[str, Any]:
    """What other nodes can be told of a session."""
    told = {}
    for key, value in session.items():
        size = packed_bytes([key, value])
        if isinstance(key, str) and size is not None and size <= limit_bytes:
            told[key] = value
            limit_bytes -= size
    return told


def packed_bytes(value: Any) -> int | None:
    """The size of a value in msgpack, None if it has no form there."""
    try:
        return len(_packer.pack(value))
    except (TypeError, ValueError, OverflowError):
        return None
