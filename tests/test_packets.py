"""Events as packets: whatever way they are made, they are what the server's own packet class makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from socketio import packet as sio_packet
from socketio.msgpack_packet import MsgPackPacket

from gevent_mesh.packets import Packets

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
