"""python-socketio's own client, made to keep the order in which its events arrive.

As it is, it starts a thread for each message, and the threads race. Here its reader handles one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import engineio
import requests
import socketio

from tests.integration.checker import Checker

__all__ = ["Client", "clients_closed"]

SECONDS = 10.0


class _InOrder(engineio.Client):  # type: ignore[misc]  # python-engineio has no types
    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        return super()._trigger_event(event, *arguments, **{**options, "run_async": False})


class _SocketIOClient(socketio.Client):  # type: ignore[misc]  # python-socketio has no types
    def _engineio_client_class(self) -> type:
        return _InOrder


class Client:
    """One client, which writes down everything that it is sent.

    Args:
        url: of its server.
        namespaces: to connect to.
        transports: as for `socketio.Client.connect`.
        answer: what it acknowledges events with: called with (event, *arguments).
        options: for `socketio.Client`.

    Attributes:
        checker: has been fed with every numbered event ("tick").
    """

    def __init__(
        self,
        url: str,
        *,
        namespaces: Sequence[str] = ("/",),
        transports: Sequence[str] = ("websocket",),
        answer: Callable[..., Any] | None = None,
        auth: Any = None,
        **options: Any,
    ) -> None:
        self.checker = Checker()
        self._answer = answer
        self._events: list[tuple[str, str, tuple[Any, ...]]] = []
        self._changed = threading.Condition()
        # A proxy that is set up for the internet is not asked for an address of this machine.
        # websocket-client checks UTF-8 byte by byte in Python: with large texts that is all that a test would do.
        direct = {"http_no_proxy": ["127.0.0.1"], "timeout": SECONDS, "skip_utf8_validation": True}
        session = requests.Session()
        session.trust_env = False
        self.io = _SocketIOClient(
            websocket_extra_options=direct,
            http_session=session,
            **{"reconnection": False, "handle_sigint": False, **options},
        )
        for namespace in namespaces:
            self.io.on("*", self._recorder(namespace), namespace=namespace)
            self.io.on("disconnect", self._disconnected(namespace), namespace=namespace)
        self.io.on("tick", self._on_tick)
        self.io.connect(url, transports=list(transports), namespaces=list(namespaces), wait_timeout=SECONDS, auth=auth)
        self.sids: dict[str, str] = {namespace: self.io.get_sid(namespace) for namespace in namespaces}

    @property
    def sid(self) -> str:
        """Its id in the main namespace."""
        return self.sids["/"]

    def enter(self, room: str) -> None:
        """Have the server put us into a room, and wait until it has."""
        assert self.call("enter", room) == room

    def call(self, event: str, *arguments: Any, namespace: str = "/") -> Any:
        return self.io.call(event, arguments, namespace=namespace, timeout=SECONDS)

    def received(self, event: str, namespace: str = "/") -> list[tuple[Any, ...]]:
        """The arguments of every event of this name so far."""
        return [args for where, name, args in list(self._events) if name == event and where == namespace]

    @property
    def position(self) -> int:
        """How many events have come so far, on all namespaces."""
        return len(self._events)

    def since(self, position: int) -> list[tuple[str, str, tuple[Any, ...]]]:
        """(namespace, event, arguments) of the events after that position."""
        return self._events[position:]

    def wait_for(self, event: str, *, namespace: str = "/", count: int = 1, seconds: float = SECONDS) -> list[Any]:
        """Wait for so many events of this name; return the arguments of all."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.received(event, namespace)) >= count, seconds)
        found = self.received(event, namespace)
        assert len(found) >= count, f"{len(found)} of {count} {event!r} came to {namespace} within {seconds} s"
        return found

    def wait_for_number(self, sender: str, number: int, seconds: float = SECONDS) -> None:
        """Wait until a numbered event has come."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self.checker.highest(sender) < number:
                left = deadline - time.monotonic()
                assert left > 0, f"{self.checker.highest(sender)} of {number} events of {sender} came in {seconds} s"
                self._changed.wait(min(left, 0.05))

    def close(self) -> None:
        if self.io.connected:
            self.io.disconnect()

    def _recorder(self, namespace: str) -> Callable[..., Any]:
        def record(event: str, *arguments: Any) -> Any:
            with self._changed:
                self._events.append((namespace, event, arguments))
                self._changed.notify_all()
            return None if self._answer is None else self._answer(event, *arguments)

        return record

    def _disconnected(self, namespace: str) -> Callable[..., None]:
        def record(_reason: Any = None) -> None:
            with self._changed:
                self._events.append((namespace, "(disconnected)", ()))
                self._changed.notify_all()

        return record

    def _on_tick(self, sender: str, number: int, *_rest: Any) -> None:
        self.checker.take(sender, number)


@contextmanager
def clients_closed(clients: list[Client]) -> Iterator[list[Client]]:
    """Close the clients of this list, which may grow inside of the block, on the way out."""
    try:
        yield clients
    finally:
        for client in clients:
            client.close()
