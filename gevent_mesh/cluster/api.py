"""The methods of `GeventMeshManager` that ask and command the whole cluster.

Rules:

- Whom they are about is said in one way: `room` (one or several; a sid is a room; everybody when it is left out),
  `except_rooms`, `namespace`.
- They wait for the nodes that are present and for at most `timeout` seconds, and never raise because a node died: what
  comes back says what is missing (`Outcome`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from time import monotonic
from typing import Any, TypeVar, overload

from ..clients import Clients
from ..interest import InterestService
from ..node import Node
from ..protocol import messages
from ..protocol.interest import LEASE_SECONDS
from ..protocol.messages import ClusterMessage, MessageType
from ..selection import Selection
from .acknowledgements import Acknowledgements, Tally
from .events import ServerEvents
from .queries import MakeData, Queries, take_count
from .requests import Request, Requests
from .results import (
    ClientAnswers,
    ClientCount,
    NodeAnswers,
    Outcome,
    RoomCounts,
    SocketList,
)

__all__ = ["ClusterApi"]

DEFAULT_TIMEOUT_SECONDS = 5.0

H = TypeVar("H", bound=Callable[..., Any])


class ClusterApi:
    """Asks and commands all nodes. A base class of `GeventMeshManager`, which provides the attributes."""

    _node: Node
    _clients: Clients
    _requests: Requests
    _queries: Queries
    _acknowledgements: Acknowledgements
    _server_events: ServerEvents
    _interest: InterestService | None

    # ------------------------------------------------------------------ questions

    def fetch_sockets(
        self,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> SocketList:
        """The clients of all nodes, with what is known of each.

        Cost: one message to every node, and from each about 300 bytes a client plus its rooms and session.

        Args:
            room: members of this room, or of any of several; everybody when left out.
            except_rooms: but not the members of these.
            timeout: the most seconds to wait.

        Returns:
            A sequence of `RemoteSocket`, in no particular order, which is also an `Outcome`.
        """
        selection = Selection.of(namespace, room, except_rooms)
        sockets = SocketList(self, selection.namespace)

        def take(uid: str, message: ClusterMessage) -> bool:
            for sid, packed in message.data.get("packed", ()):
                sockets.add(sid, uid, packed)
            for told in message.data.get("sockets", ()):
                sockets.add(told["id"], uid, messages.pack_socket(told))
            return not message.data.get("more")

        def own(sids: list[str]) -> None:
            for sid, packed in self._queries.describe(sids, selection.namespace):
                sockets.add(sid, self._node.uid, packed)

        request = self._ask_about(MessageType.FETCH_SOCKETS, selection, take, own, timeout)
        return _noted(sockets, request)

    def count_sockets(
        self,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> ClientCount:
        """How many clients there are on all nodes. Parameters as for `fetch_sockets`.

        Cost: one small message to every node and back.

        Returns:
            A number, which is also an `Outcome`.
        """
        selection = Selection.of(namespace, room, except_rooms)
        counts: list[int] = []
        request = self._ask_about(
            MessageType.COUNT_SOCKETS,
            selection,
            partial(take_count, counts),
            lambda sids: counts.append(len(sids)),
            timeout,
        )
        return _noted(ClientCount(sum(counts)), request)

    def list_rooms(
        self,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> RoomCounts:
        """The rooms that the selected clients are in, and how many of them in each. Parameters as for `fetch_sockets`.

        The rooms that are clients' sids are left out. Cost: one message to every node, and from each about 20 bytes a
        room plus its name.

        Returns:
            A dictionary of numbers by room, which is also an `Outcome`.
        """
        selection = Selection.of(namespace, room, except_rooms)
        rooms = RoomCounts()

        def add(counts: Iterable[tuple[Hashable, int]]) -> None:
            for name, count in counts:
                rooms[name] = rooms.get(name, 0) + count

        def take(_uid: str, message: ClusterMessage) -> bool:
            add(message.data.get("rooms", ()))
            return not message.data.get("more")

        def own(sids: list[str]) -> None:
            add(self._queries.count_rooms(sids, selection.namespace).items())

        request = self._ask_about(MessageType.LIST_ROOMS, selection, take, own, timeout)
        return _noted(rooms, request)

    def server_count(self, namespace: str = "/") -> int:
        """How many nodes serve a namespace, this one and Node.js servers included, as their last heartbeats say.

        Cost: nothing is sent. A write-only manager asks its node; 0 is also its answer when none can be reached.
        """
        return self._queries.count_servers(namespace, DEFAULT_TIMEOUT_SECONDS)

    # ------------------------------------------------------------------ commands

    @overload
    def sockets_join(
        self, rooms: Any, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., timeout: None = ...
    ) -> None: ...
    @overload
    def sockets_join(
        self, rooms: Any, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., *, timeout: float
    ) -> ClientCount: ...
    def sockets_join(
        self,
        rooms: Any,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float | None = None,
    ) -> ClientCount | None:
        """Put the selected clients of all nodes into a room, or into several.

        Cost: one message to every node; with `timeout` a small one back.

        Args:
            rooms: the room to enter, or several.
            room: which clients: as for `fetch_sockets`.
            except_rooms: and not these.
            timeout: wait for at most so many seconds until it is done everywhere; None does not wait. With
                `room_interest`, 2 s more: until the nodes that publish know of it (see docs/rooms.md).

        Returns:
            None without `timeout`, else how many clients it was done to, which is also an `Outcome`.

        Raises:
            ValueError: `rooms` has None, or the sid of a client of this node.
        """
        entered, selection = _rooms_to_change(rooms), Selection.of(namespace, room, except_rooms)
        self._clients.check_enterable(selection.namespace, entered)
        if timeout is not None:
            _check_timeout(timeout)
            timeout += self.settle_seconds
        deadline = None if timeout is None else monotonic() + timeout
        is_sent = self._is_for_others(selection)
        count = self._command(
            MessageType.SOCKETS_JOIN,
            selection,
            lambda opts, request_id: messages.sockets_join(opts, entered, request_id),
            lambda sids: self._clients.enter(sids, selection.namespace, entered),
            timeout,
        )
        if self._interest is not None:
            if is_sent:
                self._interest.drop_leases()
            if deadline is not None:
                self._interest.wait_until_known(selection.namespace, entered, deadline)
        return count

    @property
    def settle_seconds(self) -> float:
        """How much longer than its `timeout` a `sockets_join` may take."""
        return 0.0 if self._interest is None else LEASE_SECONDS

    def _is_for_others(self, selection: Selection) -> bool:
        """Whether clients of other nodes may be selected."""
        return not (selection.is_empty or self._clients.is_only_ours(selection))

    @overload
    def sockets_leave(
        self, rooms: Any, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., timeout: None = ...
    ) -> None: ...
    @overload
    def sockets_leave(
        self, rooms: Any, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., *, timeout: float
    ) -> ClientCount: ...
    def sockets_leave(
        self,
        rooms: Any,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float | None = None,
    ) -> ClientCount | None:
        """Take the selected clients of all nodes out of a room, or out of several. As `sockets_join`."""
        left, selection = _rooms_to_change(rooms), Selection.of(namespace, room, except_rooms)
        return self._command(
            MessageType.SOCKETS_LEAVE,
            selection,
            lambda opts, request_id: messages.sockets_leave(opts, left, request_id),
            lambda sids: self._clients.leave(sids, selection.namespace, left),
            timeout,
        )

    @overload
    def disconnect_sockets(
        self, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., timeout: None = ..., *, close: bool = ...
    ) -> None: ...
    @overload
    def disconnect_sockets(
        self, room: Any = ..., except_rooms: Any = ..., namespace: str = ..., *, timeout: float, close: bool = ...
    ) -> ClientCount: ...
    def disconnect_sockets(
        self,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float | None = None,
        *,
        close: bool = False,
    ) -> ClientCount | None:
        """Disconnect the selected clients of all nodes from the namespace. As `sockets_join`.

        Args:
            close: end their connections, and so all of their namespaces.
        """
        selection = Selection.of(namespace, room, except_rooms)
        return self._command(
            MessageType.DISCONNECT_SOCKETS,
            selection,
            lambda opts, request_id: messages.disconnect_sockets(opts, close=close, request_id=request_id),
            lambda sids: self._clients.disconnect(sids, selection.namespace, close=close),
            timeout,
        )

    # ------------------------------------------------------------------ between servers

    @overload
    def on(self, event: str, handler: None = None, *, namespace: str = "/") -> Callable[[H], H]: ...
    @overload
    def on(self, event: str, handler: H, *, namespace: str = "/") -> H: ...
    def on(self, event: str, handler: H | None = None, *, namespace: str = "/") -> H | Callable[[H], H]:
        """Handle an event that another node sends with `server_side_emit` or `server_side_call`.

        ::

            @mesh.on("reload")
            def reload(what):
                return cache.reload(what)

        The handler is called with the event's arguments, in a greenlet of its own, and may wait. What it returns is
        this node's answer to `server_side_call`. There is one handler for each event and namespace; a later one
        replaces it.

        Args:
            event: its name.
            handler: the function; without it, a decorator is returned.
            namespace: only events of this namespace.

        Raises:
            TypeError: the name is no text, or the handler no function.
        """
        if not isinstance(event, str):
            raise TypeError(f"an event's name must be text, not {event!r}: write @mesh.on('name') above the handler")

        def register(function: H) -> H:
            self._server_events.handle(event, namespace or "/", function)
            return function

        return register if handler is None else register(handler)

    def server_side_emit(self, event: str, *args: Any, namespace: str = "/") -> None:
        """Send an event to every other node, for the handlers that `on` has registered there.

        Cost: one message to every node.

        Raises:
            PayloadError: an argument has no form in msgpack, or it is too large; nobody has got it.
        """
        packet = _server_side_packet(event, args)
        self._node.publish(MessageType.SERVER_SIDE_EMIT, namespace or "/", messages.server_side_emit(packet))

    def server_side_call(
        self, event: str, *args: Any, namespace: str = "/", timeout: float = DEFAULT_TIMEOUT_SECONDS
    ) -> NodeAnswers:
        """Send an event to every other node, and wait for what its handlers return.

        Cost: one message to every node and back.

        Args:
            timeout: the most seconds to wait.

        Returns:
            The answers by uid, which are also an `Outcome`. A node without a handler, or whose handler failed, is
            missing, and `errors` says why.

        Raises:
            PayloadError: an argument has no form in msgpack, or it is too large; nobody has got it.
        """
        answers = NodeAnswers()

        def take(uid: str, message: ClusterMessage) -> bool:
            error = message.data.get("error")
            if error:
                answers.errors[uid] = error
            else:
                answers[uid] = message.data["packet"]
            return True

        _check_timeout(timeout)
        data = partial(messages.server_side_emit, _server_side_packet(event, args))
        request = self._queries.ask(MessageType.SERVER_SIDE_EMIT, namespace or "/", data, take, timeout)
        self._requests.wait(request)
        request.missing |= answers.errors.keys()
        request.note(answers, request.expected_nodes, len(answers))
        return answers

    # ------------------------------------------------------------------ events that clients acknowledge

    def call(
        self,
        event: str,
        data: Any = None,
        room: Any = None,
        except_rooms: Any = None,
        namespace: str = "/",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> ClientAnswers:
        """Emit an event, and wait for the acknowledgement of every client that gets it, on all nodes.

        Cost: as `emit`, and from every node a small message plus one for each client.

        Args:
            event: its name.
            data: as for `emit`.
            room: which clients: as for `fetch_sockets`.
            except_rooms: and not these.
            timeout: the most seconds to wait. Clients that disconnect meanwhile are not waited for.

        Returns:
            The answers in the order of arrival, which are also an `Outcome`.

        Raises:
            PayloadError: it cannot be sent; nobody has got it.
        """
        _check_timeout(timeout)
        answers = ClientAnswers()
        tally = Tally(lambda arguments: answers.append(_one_value(arguments)))
        selection = Selection.of(namespace, room, except_rooms)
        if selection.is_empty:
            return answers
        request = self._ask_clients(event, data, selection, tally, timeout)
        self._requests.wait(request)
        request.note(answers, sum(tally.promised.values()), len(answers))
        return answers

    # ------------------------------------------------------------------ shared

    def emit(self, event: str, data: Any, namespace: str | None = None, room: Any = None) -> None:
        """Emit an event to clients of all nodes."""
        raise NotImplementedError

    def _ask_clients(self, event: str, data: Any, selection: Selection, tally: Tally, timeout: float) -> Request:
        raise NotImplementedError

    def _ask_about(
        self,
        kind: MessageType,
        selection: Selection,
        take: Callable[[str, ClusterMessage], bool],
        own: Callable[[list[str]], object],
        timeout: float,
    ) -> Request:
        """Ask all nodes about the selected clients, this one included, and wait."""
        make_data = partial(messages.fetch_sockets, selection.opts)
        return self._everywhere(kind, selection, make_data, take, own, timeout)

    def _everywhere(
        self,
        kind: MessageType,
        selection: Selection,
        make_data: MakeData,
        take: Callable[[str, ClusterMessage], bool],
        own: Callable[[list[str]], object],
        timeout: float,
    ) -> Request:
        _check_timeout(timeout)
        sids = self._clients.select(selection)
        if self._is_for_others(selection):
            request = self._queries.ask(kind, selection.namespace, make_data, take, timeout)
        else:
            request = Request((), (), take, 0.0)
        # Our own part while the others are at theirs.
        if sids:
            own(sids)
        self._requests.wait(request)
        return request

    def _command(
        self,
        kind: MessageType,
        selection: Selection,
        make_data: Callable[[dict[str, Any], str | None], dict[str, Any]],
        own: Callable[[list[str]], int],
        timeout: float | None,
    ) -> ClientCount | None:
        if timeout is None:
            sids = self._clients.select(selection)
            if self._is_for_others(selection):
                self._node.publish(kind, selection.namespace, make_data(selection.opts, None))
            if sids:
                own(sids)
            return None
        counts: list[int] = []
        request = self._everywhere(
            kind,
            selection,
            partial(make_data, selection.opts),
            partial(take_count, counts),
            lambda sids: counts.append(own(sids)),
            timeout,
        )
        return _noted(ClientCount(sum(counts)), request)


O = TypeVar("O", bound=Outcome)  # noqa: E741


def _noted(outcome: O, request: Request) -> O:
    """The answer, with what is missing of it. This node is one of those that are expected, and never missing."""
    expected = request.expected_nodes + 1
    request.note(outcome, expected, expected - len(request.missing))
    return outcome


def _rooms_to_change(rooms: Any) -> list[Hashable]:
    names = Selection.of("/", rooms).rooms
    if None in names or rooms is None:
        raise ValueError("a client cannot enter or leave the room None: name one room, or several")
    return names


def _server_side_packet(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    if not isinstance(event, str):
        raise TypeError(f"an event's name must be text, not {event!r}")
    return [event, *arguments]


def _check_timeout(timeout: float) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")


def _one_value(arguments: list[Any]) -> Any:
    """What python-socketio's `call` makes of the arguments of an answer."""
    if len(arguments) > 1:
        return tuple(arguments)
    return arguments[0] if arguments else None
