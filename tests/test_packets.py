"""Events as packets: whatever way they are made, they are what the server's own packet class makes of them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from socketio import packet as sio_packet
from socketio.msgpack_packet import MsgPackPacket

from gevent_mesh.packets import Packets
from gevent_mesh.stock import stock

EVENTS: list[tuple[str, list[Any]]] = [
    ("event", []),
    ("event", ["text", 1, -2.5, True, None, 2**70]),
    ("event", [float("inf"), 'a "quoted"\n text', "ünïcode \U0001f600", "lone \ud800 surrogate", ""]),
    ("ünïcode", [{"a": [1, {"b": ()}], 2: None, None: 3}, [(), []]]),
    ("event", [b"binary", {"deep": [b"in", bytearray(b"side")]}, "x"]),
    ("", ["an event without a name"]),
]


class Shouting(SimpleNamespace):
    """A JSON module of an application."""

    @staticmethod
    def dumps(value: Any, **options: Any) -> str:
        return json.dumps(value, **options).upper()

    loads = staticmethod(json.loads)


class OwnForm(sio_packet.Packet):  # type: ignore[misc]  # python-socketio has no types
    def encode(self) -> str:
        return f"own {self.data}"


PACKET_CLASSES = [
    sio_packet.Packet,
    type("StandardJson", (sio_packet.Packet,), {"json": json}),
    type("OwnJson", (sio_packet.Packet,), {"json": Shouting}),
    MsgPackPacket,
    OwnForm,
]


@pytest.fixture
def own_json() -> Iterator[None]:
    """`socketio.Server(json=...)` puts it into the packet class, which all servers share."""
    stock, sio_packet.Packet.json = sio_packet.Packet.json, Shouting
    yield
    sio_packet.Packet.json = stock


def _made_by(packet_class: Any, event: str, arguments: list[Any], namespace: str) -> list[str | bytes]:
    packet = packet_class(sio_packet.EVENT, namespace=namespace, data=[event, *arguments])
    encoded = packet.encode()
    return encoded if isinstance(encoded, list) else [encoded]


def _outcome(make: Any, *how: Any) -> Any:
    try:
        return make(*how)
    except (TypeError, ValueError, OverflowError) as exc:  # surrogates in msgpack, and numbers that are too large
        return type(exc), str(exc)


def _check(packet_class: Any, event: str, arguments: list[Any], namespace: str) -> Any:
    ours = _outcome(Packets(packet_class).encode, event, arguments, namespace)
    assert ours == _outcome(_made_by, packet_class, event, arguments, namespace)
    return ours


@pytest.mark.parametrize("namespace", ["/", "/chat", ""])
@pytest.mark.parametrize("packet_class", PACKET_CLASSES)
@pytest.mark.parametrize(("event", "arguments"), EVENTS)
def test_events_are_what_the_packet_class_makes_of_them(
    packet_class: Any, event: str, arguments: list[Any], namespace: str
) -> None:
    _check(packet_class, event, arguments, namespace)


@pytest.mark.usefixtures("own_json")
def test_json_module_that_a_server_brings_is_used() -> None:
    assert _check(sio_packet.Packet, "event", ["text"], "/") == ['2["EVENT","TEXT"]']


@pytest.mark.parametrize("argument", [object(), {1, 2}, {(1, 2): 3}])
def test_what_has_no_form_raises_as_it_does_there_and_disturbs_nothing(argument: Any) -> None:
    kind, _ = _check(sio_packet.Packet, "event", [argument], "/")
    assert kind is TypeError
    assert _check(sio_packet.Packet, "event", ["next"], "/") == ['2["event","next"]']


def test_event_that_is_no_text_is_what_it_is_there() -> None:
    assert _check(sio_packet.Packet, [1, "x"], ["text"], "/") == ['2[[1,"x"],"text"]']  # type: ignore[arg-type]


def test_what_wraps_a_function_of_a_library_is_told_from_it() -> None:
    @functools.wraps(json.dumps)
    def replaced(*args: Any, **options: Any) -> str:
        return json.dumps(*args, **options)

    assert stock(json.dumps, json) is json.dumps
    assert stock(replaced, json) is None
    assert stock(None, json) is None


def test_json_that_was_replaced_before_this_library_came_is_used() -> None:
    program = """
import json
dumps = json.dumps
json.dumps = lambda *args, **options: dumps(*args, **options).upper()
from gevent_mesh.packets import Packets
print(Packets().encode("event", ["text"], "/")[0])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout == '2["EVENT","TEXT"]\n'
