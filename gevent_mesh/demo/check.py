"""`gevent-mesh demo --check`: real Socket.IO clients on every server prove what the servers share.

Every check runs for every ordered pair of servers (A, B): a client of A asks A to do something, and clients of B, each
on a WebSocket of its own, see it happen. "Nothing came" is never proved by waiting, but by a marker that was sent later
and did come.

The clients are python-socketio's own, with real threads. Nothing waits beyond its deadline.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click
import socketio

from .processes import Demo, DemoError, Figures

__all__ = ["CheckFailed", "Result", "check"]

NAMESPACE = "/check"
CLIENTS_PER_SERVER = 2
MESH_SECONDS = 15.0
STEP_SECONDS = 5.0
NUMBERS = 100
BYTES = 100_000

_serial = itertools.count(1)


class CheckFailed(Exception):
    """Something was not as promised. The text says what."""


@dataclass(frozen=True, slots=True)
class Result:
    """One check between two servers."""

    name: str
    source: str
    target: str
    seconds: float
    error: str = ""


class Client:
    """A real client on one server, which writes down everything that it is sent."""

    def __init__(self, server: str, url: str, *namespaces: str) -> None:
        self.server = server
        self._events: list[tuple[str, Any]] = []
        self._changed = threading.Condition()
        self._namespaces = list(namespaces or [NAMESPACE])
        # A proxy that is set up for the internet is not asked for an address of this machine.
        options = {"http_no_proxy": ["127.0.0.1"], "timeout": STEP_SECONDS}
        self._client = socketio.Client(reconnection=False, websocket_extra_options=options)
        for namespace in self._namespaces:
            self._client.on("*", self._on_event, namespace=namespace)
            self._client.on("disconnect", self._on_disconnect, namespace=namespace)
        self._client.connect(url, transports=["websocket"], namespaces=self._namespaces, wait_timeout=STEP_SECONDS)

    @property
    def sid(self) -> str:
        sid: str = self._client.get_sid(self._namespaces[0])
        return sid

    def do(self, operation: str, **arguments: Any) -> Any:
        """Have our server do something (see the chat's `check` module), and return what came of it."""
        answer = self.call("do", operation, arguments)
        if "error" in answer:
            raise CheckFailed(f"{operation} on {self.server}: {answer['error']}")
        return answer["value"]

    def call(self, event: str, *arguments: Any) -> Any:
        try:
            return self._client.call(event, arguments, namespace=self._namespaces[0], timeout=STEP_SECONDS)
        except (socketio.exceptions.SocketIOError, OSError) as error:
            raise CheckFailed(f"{self.server} did not answer {event!r}: {type(error).__name__}") from error

    def wait_for(self, event: str, matches: Callable[[Any], bool] = lambda _data: True) -> Any:
        """Wait for an event whose data matches; return the data."""
        found = self._wait(lambda: [data for name, data in self._events if name == event and matches(data)])
        if not found:
            raise CheckFailed(f"a client of {self.server} did not receive {event!r}")
        return found[0]

    def wait_for_all(self, event: str, count: int) -> list[Any]:
        """Wait for so many of an event, and return the data of all, in the order of arrival."""
        return self._wait(lambda: self.received(event), count)

    def received(self, event: str) -> list[Any]:
        return [data for name, data in list(self._events) if name == event]

    def repeated(self) -> list[str]:
        """Events of the check that came more than once. They all have names of their own."""
        events = [(name, repr(data)) for name, data in list(self._events) if name.startswith("check")]
        counts = collections.Counter(events)
        return [name for (name, _), count in counts.items() if count > 1]

    def close(self) -> None:
        if self._client.connected:
            self._client.disconnect()

    def _wait(self, look: Callable[[], list[Any]], count: int = 1) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: len(look()) >= count, STEP_SECONDS)
            return look()

    def _on_event(self, event: str, *data: Any) -> tuple[Any, ...]:
        with self._changed:
            self._events.append((event, data[0] if data else None))
            self._changed.notify_all()
        return ("from", self.sid, *data)

    def _on_disconnect(self, reason: Any = None) -> None:
        with self._changed:
            self._events.append(("disconnected", reason))
            self._changed.notify_all()


# -- The checks, each between two servers ------------------------------------------------------------------------------


@dataclass(slots=True)
class Pair:
    """Server A, which is asked to do something, and server B, where it is to be seen."""

    a: Sequence[Client]
    b: Sequence[Client]
    a_url: str
    b_url: str
    guests: list[Client] = field(default_factory=list)

    def guest(self, client: Client, url: str, *namespaces: str) -> Client:
        """One more client of that server, for this check only."""
        guest = Client(client.server, url, *namespaces)
        self.guests.append(guest)
        return guest

    def do(self, operation: str, **arguments: Any) -> Any:
        return self.a[0].do(operation, **arguments)


def rooms(pair: Pair) -> None:
    event, room = fresh("room"), fresh("room name")
    pair.do("enter_room", sid=pair.a[0].sid, room=room)
    pair.b[0].do("enter_room", sid=pair.b[0].sid, room=room)
    pair.do("emit", event=event, data=1, to=room)
    pair.a[0].wait_for(event)
    pair.b[0].wait_for(event)
    nothing_came(pair, pair.b[1], event)


def rooms_from_afar(pair: Pair) -> None:
    """A puts a client of B into a room, takes it out, puts both in and closes the room."""
    room, first, second, third = fresh("room name"), fresh("entered"), fresh("left"), fresh("closed")
    pair.do("enter_room", sid=pair.b[0].sid, room=room)
    pair.do("emit", event=first, to=room)
    pair.b[0].wait_for(first)
    pair.do("leave_room", sid=pair.b[0].sid, room=room)
    pair.do("emit", event=second, to=room)
    nothing_came(pair, pair.b[0], second)
    pair.do("enter_room", sid=pair.b[0].sid, room=room)
    pair.do("enter_room", sid=pair.b[1].sid, room=room)
    pair.do("close_room", room=room)
    pair.do("emit", event=third, to=room)
    nothing_came(pair, pair.b[0], third)
    nothing_came(pair, pair.b[1], third)


def broadcast(pair: Pair) -> None:
    event = fresh("broadcast")
    pair.do("emit", event=event, data={"to": "all"})
    for client in (*pair.a, *pair.b):
        client.wait_for(event)


def callback(pair: Pair) -> None:
    event = fresh("callback")
    answer = pair.do("emit_with_callback", event=event, data=[1, None, "zwölf"], to=pair.b[0].sid)
    same(answer, ["from", pair.b[0].sid, [1, None, "zwölf"]])


def call(pair: Pair) -> None:
    event = fresh("call")
    answer = pair.do("call", event=event, data={"question": 42}, to=pair.b[1].sid)
    same(answer, ["from", pair.b[1].sid, {"question": 42}])


def skip_sid(pair: Pair) -> None:
    one, several = fresh("skip one"), fresh("skip several")
    pair.do("emit", event=one, skip_sid=pair.b[0].sid)
    pair.b[1].wait_for(one)
    nothing_came(pair, pair.b[0], one)
    pair.do("emit", event=several, skip_sid=[pair.a[1].sid, pair.b[1].sid])
    pair.b[0].wait_for(several)
    nothing_came(pair, pair.b[1], several)
    nothing_came(pair, pair.a[1], several)


def payload(pair: Pair) -> None:
    event = fresh("bytes")
    pair.do("emit_bytes", event=event, to=pair.b[0].sid, size=BYTES)
    pattern = (bytes(range(256)) * (BYTES // 256 + 1))[:BYTES]
    same(pair.b[0].wait_for(event), {"name": "größe ✓", "parts": [pattern, None, {"empty": b""}]})


def order(pair: Pair) -> None:
    event = fresh("number")
    pair.do("emit_numbers", event=event, to=pair.b[0].sid, count=NUMBERS)
    same(pair.b[0].wait_for_all(event, NUMBERS), list(range(NUMBERS)))


def disconnect(pair: Pair) -> None:
    guest = pair.guest(pair.b[0], pair.b_url)
    pair.do("disconnect", sid=guest.sid)
    guest.wait_for("disconnected")


def chat(pair: Pair) -> None:
    """The example itself: two people on two servers see each other and talk."""
    ada, bob = pair.guest(pair.a[0], pair.a_url, "/"), pair.guest(pair.b[0], pair.b_url, "/")
    room = fresh("chat")[-24:]
    for nickname, person in (("Ada", ada), ("Bob", bob)):
        answer = person.call("join", {"nickname": nickname, "room": room})
        same(answer.get("room"), room)
    for one, other in ((ada, bob), (bob, ada)):
        one.wait_for("people", partial(is_just, other.sid))
    same(ada.call("say", "hello <b>Bob</b>"), {})
    said = bob.wait_for("said")
    same((said["text"], said["server"]), ("hello <b>Bob</b>", ada.server))


def is_just(sid: str, announcement: dict[str, Any]) -> bool:
    """Whether a server announces this one person."""
    return [person["id"] for person in announcement["people"]] == [sid]


CHECKS: dict[str, Callable[[Pair], None]] = {
    "rooms": rooms,
    "rooms of remote clients": rooms_from_afar,
    "broadcast": broadcast,
    "emit with callback": callback,
    "call()": call,
    "skip_sid": skip_sid,
    f"{BYTES // 1000} KB of bytes": payload,
    f"order of {NUMBERS} events": order,
    "disconnect": disconnect,
    "the chat": chat,
}


def fresh(name: str) -> str:
    """A name that no other check uses: what is received under it belongs to this check alone."""
    return f"check {name} {next(_serial)}"


def same(seen: Any, wanted: Any) -> None:
    if seen != wanted:
        raise CheckFailed(f"got {short(seen)}, not {short(wanted)}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def nothing_came(pair: Pair, client: Client, event: str) -> None:
    """A sends a marker to this client. When it is there, an event that A sent before it would be there too."""
    marker = fresh("marker")
    pair.do("emit", event=marker, to=client.sid)
    client.wait_for(marker)
    if client.received(event):
        raise CheckFailed(f"a client of {client.server} received {event!r}, which was not for it")


# -- The run -----------------------------------------------------------------------------------------------------------


def check(demo: Demo, deadline: float) -> bool:
    """Run all checks against a demo that has started, and print the table.

    Args:
        demo: its servers run the chat with its check door.
        deadline: the monotonic time at which what has not been checked yet has failed.

    Returns:
        Whether all went well.

    Raises:
        DemoError: a server died, cannot be reached, or did not find the others.
    """
    started = time.monotonic()
    figures = wait_for_links(demo, min(deadline, started + MESH_SECONDS))
    took = milliseconds(time.monotonic() - started)
    click.echo(f"{figures.servers} servers found each other in {took}; links up: {figures.links}")
    clients: dict[str, list[Client]] = {}
    try:
        for server, url in zip(demo.servers, demo.urls, strict=True):
            clients[server.name] = [connect(server.name, url) for _ in range(CLIENTS_PER_SERVER)]
        results = check_all(demo, clients, deadline)
        results += [repeats(name, several) for name, several in clients.items()]
    finally:
        for client in itertools.chain.from_iterable(clients.values()):
            client.close()
    show(results)
    failed = sum(bool(result.error) for result in results)
    count = f"{len(results)} checks with {len(clients) * CLIENTS_PER_SERVER} clients on {len(clients)} servers"
    verdict = f"{failed} FAILED" if failed else "all ok"
    click.secho(f"{count} in {time.monotonic() - started:.1f} s: {verdict}", fg="red" if failed else "green", bold=True)
    return not failed


def wait_for_links(demo: Demo, deadline: float) -> Figures:
    while True:
        figures = demo.figures()
        if figures.links == figures.links_wanted:
            return figures
        demo.require_all_running()
        if time.monotonic() > deadline:
            logs = "\n".join(f"{child.name}:\n{child.log()}" for child in demo.children)
            raise DemoError(f"The servers did not find each other in time: {figures}.\n{logs}")
        time.sleep(0.05)


def connect(name: str, url: str, *namespaces: str) -> Client:
    try:
        return Client(name, url, *namespaces)
    except (socketio.exceptions.SocketIOError, OSError) as error:
        raise DemoError(f"A client could not connect to {name}: {error}") from error


def check_all(demo: Demo, clients: dict[str, list[Client]], deadline: float) -> list[Result]:
    urls = dict(zip(clients, demo.urls, strict=True))
    results = []
    for name in CHECKS:
        for a, b in itertools.permutations(clients, 2):
            demo.require_all_running()  # what died has more to say than the checks that fail for it
            results.append(check_pair(name, Pair(clients[a], clients[b], urls[a], urls[b]), deadline))
    demo.require_all_running()
    return results


def check_pair(name: str, pair: Pair, deadline: float) -> Result:
    source, target = pair.a[0].server, pair.b[0].server
    started = time.monotonic()
    error = ""
    try:
        if started > deadline:
            raise CheckFailed("not run: no time left")
        CHECKS[name](pair)
    except (CheckFailed, socketio.exceptions.SocketIOError, OSError) as failure:
        error = str(failure) or type(failure).__name__
    finally:
        for guest in pair.guests:
            guest.close()
    return Result(name, source, target, time.monotonic() - started, error)


def repeats(name: str, clients: Sequence[Client]) -> Result:
    twice = [event for client in clients for event in client.repeated()]
    return Result("nothing came twice", "all", name, 0.0, f"more than once: {short(twice)}" if twice else "")


# -- The table ---------------------------------------------------------------------------------------------------------

HEADINGS = ("check", "between", "result", "slowest")


def show(results: Sequence[Result]) -> None:
    """One row for each check and server that it started from; what failed has a row of its own."""
    groups = itertools.groupby(results, key=lambda result: (result.name, result.source))
    rows = [row for _, group in groups for row in rows_of(list(group))]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        show_plainly(rows)
        return
    table = Table(*HEADINGS)
    table.columns[-1].justify = "right"
    for row in rows:
        style = "green" if row[2] == "ok" else "red"
        table.add_row(row[0], row[1], Text(row[2], style=style), row[3])
    Console().print(table)


def show_plainly(rows: Sequence[tuple[str, str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    for row in (HEADINGS, tuple("-" * width for width in widths), *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def rows_of(group: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    good = [result for result in group if not result.error]
    together = [row_of(good, "ok")] if good else []
    return together + [row_of([bad], f"FAILED: {bad.error}") for bad in group if bad.error]


def row_of(results: Sequence[Result], verdict: str) -> tuple[str, str, str, str]:
    between = f"{results[0].source} → {', '.join(result.target for result in results)}"
    return results[0].name, between, verdict, milliseconds(max(result.seconds for result in results))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
