"""Node peers that are silent, slow, or not who they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import msgpack
import pytest
from gevent import socket

from gevent_mesh.net import mesh as mesh_module
from gevent_mesh.net.dialer import dial
from gevent_mesh.net.listener import Listener, StrangerTicket
from gevent_mesh.net.transport import Transport
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, frame
from tests.net.nodes import MIDDLE, Join, Member, pair, uid_above, uid_below
from tests.support import eventually

HIGHER = uid_above(MIDDLE)


def said(uid: str, kind: int = 2, data: Any = None, *, mask: bool = False) -> bytes:
    """A cluster message as a Node peer sends it."""
    value = {"type": kind, "uid": uid, "nsp": "/"}
    return frame(Opcode.BINARY, b"\1" + msgpack.packb(value if data is None else {**value, "data": data}), mask=mask)


class Acceptor:
    """What answers like a Node peer that we dial: it upgrades, and leaves the rest to `serve`."""

    def __init__(self, serve: Callable[[Transport], None]) -> None:
        self.serve = serve
        self.dials = 0
        self.listener = Listener("127.0.0.1", 0, on_websocket=self._accept, require_mesh_header=False)
        self.listener.start()

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.listener.port}"

    def _accept(self, transport: Transport, ticket: StrangerTicket) -> None:
        ticket.admitted()
        self.dials += 1
        self.serve(transport)


@pytest.fixture
def acceptor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Acceptor]:
    # A listener of ours says that it is one; a server of Node does not.
    monkeypatch.setattr("gevent_mesh.net.listener._MESH_HEADER", "Some-Header")
    started = Acceptor(lambda _transport: None)
    yield started
    started.listener.stop()


def everything(transport: Transport) -> Iterator[bytes]:
    decoder = FrameDecoder(max_payload_bytes=1 << 26, require_mask=not transport.is_client)
    while data := transport.recv():
        decoder.feed(data)
        while (found := decoder.next_frame()) is not None:
            if found[0] == Opcode.BINARY:
                yield found[1]


def test_a_peer_that_never_speaks_is_given_up(
    join: Join, acceptor: Acceptor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mesh_module, "HELLO_SECONDS", 0.2)
    heard: list[bytes] = []
    acceptor.serve = lambda transport: heard.extend(everything(transport))
    node = join(uid=MIDDLE, node_interop=True)
    node.names(**{HIGHER: acceptor.address})
    node.say(3)
    eventually(lambda: acceptor.dials >= 2)
    assert "does not take us (no handshake within" in caplog.text
    assert node.link(HIGHER) is None
    # Nothing but who we are and what we serve has been told.
    assert {payload[0] for payload in heard} == {0, 1}
    assert {msgpack.unpackb(payload[1:])["type"] for payload in heard if payload[0]} == {1}
    assert node.peer(HIGHER).session.outbox_messages == 3


def test_another_peer_at_the_address_gets_nothing(
    join: Join, acceptor: Acceptor, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def serve(transport: Transport) -> None:
        transport.send(said("9" * 16))
        heard.extend(everything(transport))

    acceptor.serve = serve
    node = join(uid=MIDDLE, node_interop=True)
    node.names(**{HIGHER: acceptor.address})
    node.say()
    eventually(lambda: acceptor.dials >= 2)
    assert f"wanted {HIGHER}, found {'9' * 16}" in caplog.text
    assert not [payload for payload in heard if payload[0] and msgpack.unpackb(payload[1:])["type"] == 3]


def test_what_was_said_before_the_link_is_sent_when_the_peer_speaks(join: Join, acceptor: Acceptor) -> None:
    heard: list[Any] = []

    def serve(transport: Transport) -> None:
        transport.send(said(HIGHER))
        heard.extend(msgpack.unpackb(payload[1:]) for payload in everything(transport) if payload[0])

    acceptor.serve = serve
    node = join(uid=MIDDLE, node_interop=True)
    node.names(**{HIGHER: acceptor.address})
    node.say(2)
    eventually(lambda: node.link(HIGHER))
    node.say()
    eventually(lambda: not node.peer(HIGHER).session.has_outbox)
    node.mesh.stop()
    eventually(lambda: heard[-1]["type"] == 13)
    events = [message["data"]["packet"]["data"] for message in heard if message["type"] == 3]
    assert [event[1] for event in events] == [1, 2, 3]


def test_the_token_is_not_sent_to_whoever_takes_the_address_of_a_node_of_ours(
    join: Join, acceptor: Acceptor, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []
    acceptor.serve = lambda transport: heard.extend(everything(transport))
    # What is not ours is refused by an answer without our header, and our own nodes need theirs.
    with pytest.MonkeyPatch.context() as as_ours:
        as_ours.setattr("gevent_mesh.net.listener._MESH_HEADER", "Mesh-Protocol")
        one, two = pair(join, node_interop=True, tokens=("a token that is long enough",))
    link = one.link(two)
    assert link is not None
    one.peer(two).member.address = acceptor.address
    one.names(**{two.uid: acceptor.address})
    link.cut("a test")
    two.mesh._listener.stop()  # type: ignore[union-attr]  # it listens
    eventually(lambda: acceptor.dials >= 2)
    assert "is not a node of this mesh" in caplog.text
    assert heard == []


def dialled(node: Member, uid: str) -> Transport:
    """A Node peer that has dialled a node of ours."""
    transport = dial(node.address)
    hello = b"\0" + msgpack.packb({"uid": uid, "address": "ws://127.0.0.1:9"})
    transport.send(frame(Opcode.BINARY, hello, mask=True))
    return transport


@pytest.fixture
def without_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dial as a server of Node does."""
    monkeypatch.setattr("gevent_mesh.net.dialer._MESH_VERSION", b"0")
    monkeypatch.setattr("gevent_mesh.net.dialer._check", lambda *_: False)


@pytest.mark.usefixtures("without_header")
def test_a_peer_that_does_not_read_is_cut_and_its_outbox_bounded(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    node = join(uid=MIDDLE, node_interop=True, outbox_bytes=256 * 1024)
    transport = dialled(node, uid_below(MIDDLE))
    transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    eventually(lambda: node.link(uid_below(MIDDLE)))
    node.say(3000, padding=10_000)
    assert node.mesh.counters.slow_consumers >= 1
    eventually(lambda: "is too slow" in caplog.text)
    assert node.peer(uid_below(MIDDLE)).session.outbox_bytes <= 256 * 1024
    eventually(lambda: node.link(uid_below(MIDDLE)) is None)


@pytest.mark.usefixtures("without_header")
def test_a_peer_that_floods_and_never_reads_costs_a_bounded_amount(join: Join) -> None:
    node = join(uid=MIDDLE, node_interop=True)
    transport = dialled(node, uid_below(MIDDLE))
    eventually(lambda: node.link(uid_below(MIDDLE)))
    for _ in range(200):
        transport.send(said(uid_below(MIDDLE), 1, mask=True) * 100 + frame(Opcode.BINARY, b"\1\xc1", mask=True) * 100)
        gevent.sleep(0)
    link = node.link(uid_below(MIDDLE))
    assert link is not None
    eventually(lambda: link.protocol.undecodable == 20_000)
    assert len(link.protocol.outgoing()) < 1000


def test_a_node_of_ours_is_not_replaced_by_somebody_who_says_its_uid(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair(join, node_interop=True)
    link = two.link(one)
    monkeypatch.setattr("gevent_mesh.net.dialer._MESH_VERSION", b"0")
    monkeypatch.setattr("gevent_mesh.net.dialer._check", lambda *_: False)
    transport = dialled(two, one.uid)
    with gevent.Timeout(5):
        while transport.recv():
            pass
    assert two.link(one) is link
    one.say()
    two.hears(one, 1)
