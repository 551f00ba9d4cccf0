"""One TCP connection: what each way of ending it does to both sides, and to whoever waits."""

from __future__ import annotations

import os
import select
import socket as stdlib_socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from gevent_mesh.net.transport import Transport
from tests.support import eventually


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    yield sock
    sock.close()


@pytest.fixture
def pair(listening: socket.socket) -> Iterator[tuple[Transport, Transport]]:
    """The two ends of one connection: who dialled, and who accepted."""
    dialled = socket.create_connection(listening.getsockname())
    accepted, _ = listening.accept()
    ends = Transport(dialled, is_client=True), Transport(accepted, is_client=False)
    yield ends
    for end in ends:
        end.abort()


@pytest.fixture
def raw_pair(listening: socket.socket) -> Iterator[tuple[Transport, stdlib_socket.socket]]:
    """A transport, and at its other end a plain blocking socket that hides nothing."""
    plain = stdlib_socket.create_connection(listening.getsockname(), timeout=5)
    accepted, _ = listening.accept()
    transport = Transport(accepted, is_client=False)
    yield transport, plain
    transport.abort()
    plain.close()


def fill(transport: Transport) -> gevent.Greenlet:
    """A greenlet that is stuck in `send`, as the other side reads nothing."""
    writer = gevent.spawn(transport.send, bytes(32 << 20))
    gevent.sleep(0)
    eventually(lambda: not writer.dead and not select.select([], [transport._socket.fileno()], [], 0)[1])
    return writer


def drain_until_reset(plain: stdlib_socket.socket) -> int:
    """The bytes that still arrived; fails when they end in good order."""
    received = 0
    try:
        while data := plain.recv(1 << 20):
            received += len(data)
    except ConnectionResetError:
        return received
    raise AssertionError(f"no reset after {received} bytes")


def test_names_of_both_ends(pair: tuple[Transport, Transport]) -> None:
    dialled, accepted = pair
    host, port = dialled._socket.getsockname()
    assert accepted.peer_address == f"{host}:{port}"
    assert dialled.local_host == "127.0.0.1"
    assert dialled.is_client
    assert not accepted.is_client
    assert "to 127.0.0.1" in repr(dialled)


def test_nagle_is_off(pair: tuple[Transport, Transport]) -> None:
    for end in pair:
        assert end._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_large_data_arrives_whole(pair: tuple[Transport, Transport]) -> None:
    dialled, accepted = pair
    data = os.urandom(5 << 20)
    writer = gevent.spawn(dialled.send, data)
    received, sizes = bytearray(), set()
    while len(received) < len(data):
        piece = accepted.recv()
        assert piece
        sizes.add(len(piece))
        received += piece
    writer.get(timeout=5)
    assert received == data
    assert max(sizes) <= 256 * 1024


def test_unread_bytes_come_first_and_respect_the_limit(pair: tuple[Transport, Transport]) -> None:
    dialled, accepted = pair
    dialled.send(b"world")
    accepted.unread(b"hello ")
    assert accepted.recv(2) == b"he"
    assert accepted.recv() == b"llo "
    assert accepted.recv(3) == b"wor"
    assert accepted.recv() == b"ld"


def test_close_lets_everything_sent_arrive_although_input_is_unread(
    raw_pair: tuple[Transport, stdlib_socket.socket],
) -> None:
    transport, plain = raw_pair
    # More than the other side takes now, so that a part of it still waits in our kernel when we close.
    plain.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, 64 * 1024)
    transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
    plain.sendall(b"never read by us")
    eventually(lambda: select.select([transport._socket.fileno()], [], [], 0)[0])
    said = os.urandom(1 << 20)
    transport.send(said)
    transport.close()
    received = bytearray()
    while data := plain.recv(1 << 20):
        received += data
    assert received == said


def test_abort_drops_what_waits_and_resets(raw_pair: tuple[Transport, stdlib_socket.socket]) -> None:
    transport, plain = raw_pair
    fill(transport)
    transport.abort()
    gevent.sleep(0)  # gevent closes a socket that somebody waits for in the next turn of its loop
    assert drain_until_reset(plain) < 32 << 20


@pytest.mark.parametrize("end", ["abort", "close"])
def test_an_end_is_an_end_although_a_forked_child_holds_a_copy(
    raw_pair: tuple[Transport, stdlib_socket.socket], end: str
) -> None:
    transport, plain = raw_pair
    copy = os.dup(transport._socket.fileno())
    getattr(transport, end)()
    assert plain.recv(100) == b""
    os.close(copy)


@pytest.mark.parametrize("end", ["abort", "close", "forget"])
def test_every_end_frees_a_blocked_reader(pair: tuple[Transport, Transport], end: str) -> None:
    reader = gevent.spawn(pair[0].recv)
    gevent.sleep(0)
    getattr(pair[0], end)()
    assert reader.get(timeout=2) == b""


@pytest.mark.parametrize("end", ["abort", "close", "forget"])
def test_every_end_frees_a_blocked_writer(pair: tuple[Transport, Transport], end: str) -> None:
    writer = fill(pair[0])
    getattr(pair[0], end)()
    with pytest.raises(ConnectionError):
        writer.get(timeout=2)


@pytest.mark.parametrize("end", ["abort", "close"])
def test_the_other_side_notices(pair: tuple[Transport, Transport], end: str) -> None:
    reader = gevent.spawn(pair[1].recv)
    gevent.sleep(0)
    getattr(pair[0], end)()
    assert reader.get(timeout=2) == b""


def test_ends_may_be_repeated_and_mixed(pair: tuple[Transport, Transport]) -> None:
    for end in ("close", "abort", "forget", "abort", "close"):
        getattr(pair[0], end)()
    assert pair[0].ended
    assert pair[0].recv() == b""
    with pytest.raises(ConnectionError):
        pair[0].send(b"x")


def test_after_an_abort_nothing_more_is_read(pair: tuple[Transport, Transport]) -> None:
    pair[0].unread(b"left over")
    pair[0].abort()
    assert pair[0].recv() == b""


def test_a_writer_to_one_that_is_gone_gets_a_connection_error(pair: tuple[Transport, Transport]) -> None:
    pair[1].abort()

    def send_fails() -> bool:
        try:
            pair[0].send(b"x")
        except ConnectionError:
            return True
        return False

    assert eventually(send_fails)


def test_forget_in_a_fork_leaves_the_connection_of_the_parent(raw_pair: tuple[Transport, stdlib_socket.socket]) -> None:
    transport, plain = raw_pair
    # The same as a fork, seen from the connection: two descriptors for one socket.
    twin = Transport(socket.socket(fileno=os.dup(transport._socket.fileno())), is_client=transport.is_client)
    twin.forget()
    transport.send(b"still here")
    assert plain.recv(100) == b"still here"
    plain.sendall(b"me too")
    assert transport.recv() == b"me too"


def test_what_the_other_side_has_taken_is_known() -> None:
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ours = gevent.socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        transport = Transport(ours, is_client=True)
        try:
            transport.send(b"x" * 1000)
            eventually(lambda: transport.delivered_bytes == 1000)
        finally:
            transport.abort()
            theirs.close()
    assert transport.delivered_bytes == 1000
