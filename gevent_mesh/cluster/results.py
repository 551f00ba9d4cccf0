"""What the questions to a cluster are answered with, and how much of the answer is missing.

Rules:

- Every answer is an ordinary value (a list, a number, a dictionary) that also says how complete it is. Whoever does not
  care need not look; whoever does asks `is_complete` and `missing_nodes`.
- An answer that is not complete is no error: a node may die at any moment.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

from ..protocol import messages

__all__ = [
    "ClientAnswers",
    "ClientCount",
    "Handshake",
    "NodeAnswers",
    "Outcome",
    "RemoteSocket",
    "RoomCounts",
    "SocketList",
]


class Outcome:
    """How much of an answer is there.

    Attributes:
        missing_nodes: uids of the nodes whose part is missing or not whole: they died, lapsed, failed, or did not
            answer in time.
        expected: how many answers there should be: of nodes, this one included where it has a part; for `call`, of
            clients, as far as nodes have said how many they asked.
        received: how many there are.
    """

    missing_nodes: tuple[str, ...] = ()
    expected: int = 0
    received: int = 0
    _knows_nodes: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing. Nobody can tell before discovery has said who is there: False then."""
        return self._knows_nodes and not self.missing_nodes and self.received >= self.expected

    def note(self, missing_nodes: Iterable[str], expected: int, received: int, *, knows_nodes: bool = True) -> None:
        """Say how much of the answer is there.

        Args:
            knows_nodes: whether discovery had said which nodes there are.
        """
        self.missing_nodes = tuple(sorted(missing_nodes))
        self.expected, self.received, self._knows_nodes = expected, received, knows_nodes


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a client connected.

    Attributes:
        address: its IP address, as its node saw it (behind a proxy, the proxy's).
        query: the parameters of the request; of one that is given twice, the last.
        time: when, in seconds since 1970 by its node's clock; 0 if that is not known.
        auth: what it sent as `auth`; None if that was larger than 4 KiB, or has no form in msgpack.
    """

    address: str
    query: dict[str, str]
    time: float
    auth: Any

    @classmethod
    def of(cls, told: dict[str, Any]) -> Handshake:
        """Read what a node tells; a Node server may tell anything."""
        address, query, issued = told.get("address"), told.get("query"), told.get("issued")
        return cls(
            address if isinstance(address, str) else "",
            query if isinstance(query, dict) else {},
            issued / 1000 if isinstance(issued, (int, float)) and not isinstance(issued, bool) else 0.0,
            told.get("auth"),
        )


class _Mesh(Protocol):
    """What a `RemoteSocket` acts through."""

    def emit(self, event: str, data: Any, namespace: str | None = None, room: Any = None) -> None: ...

    def sockets_join(self, rooms: Any, room: Any = None, *, namespace: str = "/") -> object: ...

    def sockets_leave(self, rooms: Any, room: Any = None, *, namespace: str = "/") -> object: ...

    def disconnect_sockets(self, room: Any = None, *, namespace: str = "/", close: bool = False) -> object: ...


class RemoteSocket:
    """A client of any node, as it was when it was fetched. Equal to another one that stands for the same client.

    Attributes:
        sid: its id in the namespace.
        namespace: the Socket.IO namespace.
        node: the uid of its node.
    """

    __slots__ = ("_mesh", "_packed", "_told", "namespace", "node", "sid")

    def __init__(self, mesh: _Mesh, sid: str, namespace: str, node: str, packed: bytes) -> None:
        self.sid = sid
        self.namespace = namespace
        self.node = node
        self._mesh = mesh
        self._packed = packed
        self._told: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<RemoteSocket {self.sid} in {self.namespace} at {self.node}>"

    @property
    def rooms(self) -> tuple[Hashable, ...]:
        """The rooms that it is in, its own (the sid) included."""
        return tuple(self._read()["rooms"])

    @property
    def handshake(self) -> Handshake:
        """How it connected."""
        return Handshake.of(self._read()["handshake"])

    @property
    def data(self) -> dict[str, Any]:
        """Its session: what `save_session` has put there, and with Flask-SocketIO `flask.session` as handlers see it.

        Only what msgpack has a form for, and at most 32 KiB of it.
        """
        data = self._read().get("data")
        return data if isinstance(data, dict) else {}

    def _read(self) -> dict[str, Any]:
        if self._told is None:
            self._told = messages.unpack_socket(self._packed)
        return self._told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteSocket) and (self.sid, self.namespace) == (other.sid, other.namespace)

    def __hash__(self) -> int:
        return hash((self.sid, self.namespace))

    def emit(self, event: str, data: Any = None) -> None:
        """Emit an event to this client. Cost: one message to every node, unless it is a client of this one."""
        self._mesh.emit(event, data, namespace=self.namespace, room=self.sid)

    def join(self, rooms: Any) -> None:
        """Put this client into a room, or several. Cost: as `emit`."""
        self._mesh.sockets_join(rooms, room=self.sid, namespace=self.namespace)

    def leave(self, rooms: Any) -> None:
        """Take this client out of a room, or several. Cost: as `emit`."""
        self._mesh.sockets_leave(rooms, room=self.sid, namespace=self.namespace)

    def disconnect(self, *, close: bool = False) -> None:
        """Disconnect this client from the namespace; with `close` altogether. Cost: as `emit`."""
        self._mesh.disconnect_sockets(room=self.sid, namespace=self.namespace, close=close)


class SocketList(Sequence[RemoteSocket], Outcome):
    """Clients of the cluster: reads like a list of `RemoteSocket`. Also an `Outcome`, which counts nodes.

    It makes each `RemoteSocket` when it is looked at. What it keeps until then are plain tuples of text and binary,
    which the garbage collector does not look after: as many objects would make it stop everybody for tens of
    milliseconds.
    """

    def __init__(self, mesh: _Mesh, namespace: str) -> None:
        self._mesh = mesh
        self._namespace = namespace
        self._told: list[tuple[str, str, bytes]] = []

    def add(self, sid: str, node: str, packed: bytes) -> None:
        """One more client, as its node has told of it (`messages.pack_socket`)."""
        self._told.append((sid, node, packed))

    @property
    def told(self) -> Sequence[tuple[str, str, bytes]]:
        """(sid, node, what was told) of each client."""
        return self._told

    def _socket(self, told: tuple[str, str, bytes]) -> RemoteSocket:
        sid, node, packed = told
        return RemoteSocket(self._mesh, sid, self._namespace, node, packed)

    def __len__(self) -> int:
        return len(self._told)

    def __iter__(self) -> Iterator[RemoteSocket]:
        return map(self._socket, self._told)

    @overload
    def __getitem__(self, index: int) -> RemoteSocket: ...
    @overload
    def __getitem__(self, index: slice) -> list[RemoteSocket]: ...
    def __getitem__(self, index: int | slice) -> RemoteSocket | list[RemoteSocket]:
        if isinstance(index, slice):
            return [self._socket(told) for told in self._told[index]]
        return self._socket(self._told[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return repr(list(self))


class ClientCount(int, Outcome):
    """How many clients. Also an `Outcome`, which counts nodes."""


class RoomCounts(dict[Hashable, int], Outcome):
    """How many clients are in each room. Also an `Outcome`, which counts nodes."""


class NodeAnswers(dict[str, Any], Outcome):
    """What each node answered, by uid. Also an `Outcome`, which counts nodes.

    Attributes:
        errors: why nodes that are missing did not answer, where they said so, by uid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}


class ClientAnswers(list[Any], Outcome):
    """What each client answered, as `call` of python-socketio returns it: None, one value, or a tuple of several.

    Also an `Outcome`, which counts clients: `expected` are those that were asked and did not disconnect meanwhile.
    """
