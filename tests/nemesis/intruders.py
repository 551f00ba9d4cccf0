"""Intruders, who know the token: each kind is a function that is given an authenticated link to a node."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from gevent_mesh.protocol import frames, messages
from gevent_mesh.protocol.frames import Gap, Kind, Role, Welcome, decode_frame, encode_frame
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.websocket import Opcode, frame
from tests.integration.processes import Node
from tests.nemesis.faults import MIB
from tests.nemesis.strangers import Stranger
from tests.protocol.bombs import bombs
from tests.protocol.test_messages import INVALID, ROW

__all__ = ["EMITTERS", "INTRUDERS", "Intruder"]

BOMBS = bombs(40_000)
"""Not larger than what a node sends at a time."""
WHOLE = [bomb for name, bomb in BOMBS.items() if "announced" not in name and name != "deep"]
"""Those that keep what they announce: they are dropped, and the link goes on."""


class Intruder(Stranger):
    """Somebody who has been taken for a node, or an emitter."""

    def __init__(self, node: Node, token: str, uid: str = "00000000000000ee", role: Role = Role.NODE) -> None:
        super().__init__(node)
        self.their_uid = self.uid
        self.uid = uid
        self.upgrade()
        self.authenticate(token, self.hello(uid=uid, role=role))
        assert isinstance(decode_frame(self.receive()), Welcome)
        self._next = 1
        self._published = 0

    def batch(self, *packed: bytes) -> None:
        """Say something that may be no messages at all."""
        self.send(frames.batch_header(self._next, 0) + b"".join(packed))
        self._next += len(packed)

    def publish(self, packed: bytes) -> None:
        self._published += 1
        self.say(MessageType.PUBLISH, messages.publish(self._published, packed))

    def say(self, kind: int, data: Any, *, uid: str = "", nsp: str = "/") -> None:
        self.batch(msgpack.packb({"type": int(kind), "uid": uid or self.uid, "nsp": nsp, "data": data}))


def bombs_alone(intruder: Intruder) -> None:
    for bomb in WHOLE:
        intruder.batch(bomb)


def bombs_as_events(intruder: Intruder) -> None:
    for bomb in WHOLE:
        intruder.batch(event_with(intruder, bomb))


def event_with(intruder: Intruder, bomb: bytes) -> bytes:
    """A BROADCAST whose argument is the bomb."""
    head: bytes = msgpack.packb({"type": 3, "uid": intruder.uid, "nsp": "/"})
    packet = b"\x82\xa4type\x02\xa4data\x92\xa1e" + bomb
    opts: bytes = msgpack.packb(messages.options())
    return b"\x84" + head[1:] + b"\xa4data\x82\xa4opts" + opts + b"\xa6packet" + packet


def announced(intruder: Intruder) -> None:
    intruder.batch(event_with(intruder, BOMBS["announced"]))


def announced_at_every_level(intruder: Intruder) -> None:
    intruder.batch(event_with(intruder, BOMBS["announced at every level"]))


def deep(intruder: Intruder) -> None:
    intruder.batch(event_with(intruder, BOMBS["deep"]))


def bombs_in_messages(intruder: Intruder) -> None:
    for bomb in BOMBS.values():
        intruder.say(MessageType.RELAY, messages.relay("0" * 16, 1, bomb))
        intruder.say(MessageType.FETCH_SOCKETS_RESPONSE, messages.packed_sockets("ab", [bomb]))
        rows = [["sid", "user", bomb[:4096], 1.0, 1.0]] * 20
        intruder.say(MessageType.PRESENCE, {"version": 1, "set": rows, "gone": []})


def empty_maps(intruder: Intruder) -> None:
    intruder.batch(b"\x80" * (MIB // 4))


def junk_of_every_shape(intruder: Intruder) -> None:
    for kind, data in INVALID:
        intruder.say(kind, data)


def no_data(intruder: Intruder) -> None:
    intruder.batch(b"\x81\xa4type\x03")
    intruder.batch(b"\x82\xa4type\x03\xa3nsp\xa1/")
    intruder.batch(b"\xc0")


def packets_that_cannot_be_read(intruder: Intruder) -> None:
    opts = messages.options()
    nested: list[Any] = []
    for _ in range(400):
        nested = [nested]
    for data in (
        messages.broadcast(opts, packet=["e", nested]),
        messages.broadcast(opts, packet=["e", nested], request_id="ab"),
        messages.broadcast(opts, encoded=["2["], codec="json", request_id="ab"),
        messages.broadcast(opts, encoded=[b"\xc1"], codec="msgpack"),
        messages.broadcast(opts, encoded=["2[]"], codec="msgpack"),
        messages.broadcast(opts, encoded=["2[]"], codec="nobody's"),
    ):
        intruder.say(MessageType.BROADCAST, data)
    intruder.say(MessageType.BROADCAST, {"opts": opts, "packet": {"type": 2, "data": ["e", msgpack.ExtType(5, b"x")]}})


def as_an_emitter_does(intruder: Intruder) -> None:
    inner = messages.encode(MessageType.SERVER_SIDE_EMIT, intruder.uid, "/", {"packet": ["note", "published"]})
    intruder.say(MessageType.PUBLISH, messages.publish(1, inner))
    intruder.say(MessageType.ASK, messages.ask("ab", 1.0, inner))


def bombs_that_are_published(emitter: Intruder) -> None:
    for bomb in WHOLE:
        emitter.publish(bomb)
        emitter.publish(event_with(emitter, bomb))
    for kind, data in INVALID:
        emitter.publish(msgpack.packb({"type": int(kind), "uid": emitter.uid, "nsp": "/", "data": data}))


def asks_by_the_thousand(emitter: Intruder) -> None:
    inner = messages.encode(
        MessageType.FETCH_SOCKETS, emitter.uid, "/", messages.fetch_sockets(messages.options(), "ab")
    )
    for n in range(1500):
        emitter.say(MessageType.ASK, messages.ask(f"id{n}", 3600.0, inner))


def as_a_node_does(emitter: Intruder) -> None:
    data = messages.broadcast(messages.options(), packet=["forged"])
    emitter.say(MessageType.BROADCAST, data)
    emitter.say(
        MessageType.RELAY, messages.relay("0" * 16, 1, messages.encode(MessageType.BROADCAST, "0" * 16, "/", data))
    )
    emitter.say(MessageType.PRESENCE, {"version": 1, "set": [ROW], "gone": []})


def questions_by_the_thousand(intruder: Intruder) -> None:
    for n in range(1500):
        intruder.say(MessageType.LIST_ROOMS, messages.fetch_sockets(messages.options(), f"id{n}"))


def namespaces_by_the_thousand(intruder: Intruder) -> None:
    for n in range(2000):
        intruder.say(MessageType.PRESENCE, {"version": 1, "set": [ROW], "gone": []}, nsp=f"/{'n' * 200}{n}")


def pings_without_end(intruder: Intruder) -> None:
    with contextlib.suppress(OSError):
        for _ in range(1000):
            intruder.sock.sendall(frame(Opcode.PING, b"x" * 100, mask=True))


def large_heartbeat(intruder: Intruder) -> None:
    intruder.send(bytes((Kind.HEARTBEAT,)) + bytes(8) + msgpack.packb({"x" * n: "y" * 1000 for n in range(300)}))


def one_byte(intruder: Intruder) -> None:
    intruder.send(b"\xc0")


def nothing(intruder: Intruder) -> None:
    intruder.send(b"")


def cut_off_batch(intruder: Intruder) -> None:
    intruder.batch(b"\x84\xa4type\x03")


def numbers_ahead(intruder: Intruder) -> None:
    intruder.send(frames.batch_header(2**63, 0) + b"\x80")


def acknowledged_and_never_sent(intruder: Intruder) -> None:
    intruder.send(frames.batch_header(1, 2**64 - 1))


def gap_without_end(intruder: Intruder) -> None:
    intruder.send(encode_frame(Gap(5, 2**64 - 1)))


def second_hello(intruder: Intruder) -> None:
    intruder.send(intruder.hello(uid=intruder.uid))


def random_bytes(intruder: Intruder) -> None:
    intruder.send(os.urandom(100_000))


def huge_announcement(intruder: Intruder) -> None:
    intruder.sock.sendall(b"\x82\xff" + struct.pack("!Q", 65 * MIB) + b"\0\0\0\0" + b"x" * 1000)


def fragmented(intruder: Intruder) -> None:
    intruder.sock.sendall(b"\x02\x84\0\0\0\0abcd" + b"\x80\x84\0\0\0\0abcd")


def unmasked(intruder: Intruder) -> None:
    intruder.sock.sendall(frame(Opcode.BINARY, b"\x14" + bytes(16), mask=False))


EMITTERS = (bombs_that_are_published, asks_by_the_thousand, as_a_node_does)
"""Those that are taken for emitters."""
INTRUDERS: list[Callable[[Intruder], None]] = [
    bombs_alone, bombs_as_events, bombs_in_messages, announced, announced_at_every_level, deep, empty_maps,
    junk_of_every_shape, no_data, packets_that_cannot_be_read, as_an_emitter_does, questions_by_the_thousand,
    namespaces_by_the_thousand, pings_without_end, large_heartbeat, one_byte, nothing, cut_off_batch, numbers_ahead,
    acknowledged_and_never_sent, gap_without_end, second_hello, random_bytes, huge_announcement, fragmented, unmasked,
    *EMITTERS,
]  # fmt: skip
