"""TLS: who gets through to whom, what everybody is told, and that the rules of a connection hold with it as well."""

from __future__ import annotations

import logging
import os
import random
import select
import socket as native_socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import pytest
from gevent import socket
from gevent.event import Event

from gevent_mesh.errors import ConfigError, DialError
from gevent_mesh.net.dialer import dial
from gevent_mesh.net.listener import Listener, StrangerLimits, StrangerTicket
from gevent_mesh.net.mesh import TLS_AT_ONCE
from gevent_mesh.net.transport import Transport
from gevent_mesh.tls import NO_TLS, Tls
from gevent_mesh_discovery import DiscoveryServer
from tests.certificates import Authority, Files
from tests.net.nodes import MIDDLE, Join, linked, pair, uid_below
from tests.support import eventually


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """What the processes of this machine use."""
    return authority.files(tmp_path_factory.mktemp("tls")).tls()


def echo(transport: Transport, ticket: StrangerTicket) -> None:
    ticket.admitted()
    while data := transport.recv():
        transport.send(data)


Serve = Callable[..., Listener]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts listeners, which echo by default."""
    listeners: list[Listener] = []

    def start(
        tls: Tls,
        handler: Callable[[Transport, StrangerTicket], None] = echo,
        *,
        limits: StrangerLimits = StrangerLimits(),  # noqa: B008  # it is frozen
    ) -> Listener:
        listener = Listener("127.0.0.1", 0, on_websocket=handler, require_mesh_header=True, tls=tls, limits=limits)
        listener.start()
        listeners.append(listener)
        return listener

    yield start
    for listener in listeners:
        listener.stop()


def wss(listener: Listener, host: str = "127.0.0.1") -> str:
    return f"wss://{host}:{listener.port}"


def refused(address: str, tls: Tls = NO_TLS, *, is_peer: bool = False, timeout_seconds: float = 5.0) -> str:
    with pytest.raises(DialError) as caught:
        dial(address, tls=tls, is_peer=is_peer, timeout_seconds=timeout_seconds)
    return str(caught.value)


def ended(sock: socket.socket) -> bool:
    """Whether the other side ends it without a word."""
    try:
        return not sock.recv(1)
    except ConnectionError:
        return True


def contexts(files: Files, **client: bool) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What an application makes with the `ssl` module; both sides show and want certificates."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.ca))
    server.verify_mode = ssl.CERT_REQUIRED
    dialling = ssl.create_default_context(cafile=str(files.ca))
    server.load_cert_chain(files.certificate, files.key)
    if client.get("certificate", True):
        dialling.load_cert_chain(files.certificate, files.key)
    return server, dialling


def from_contexts(server: ssl.SSLContext | None, client: ssl.SSLContext | None, *, listens: bool = True) -> Tls:
    return Tls.from_options(server, client, None, {}, listens=listens)


# ---------------------------------------------------------------------- one connection


class TestConnection:
    def test_both_sides_show_a_certificate_and_what_is_sent_arrives(self, serve: Serve, tls: Tls) -> None:
        transport = dial(wss(serve(tls)), tls=tls)
        transport.send(b"hello")
        assert transport.recv() == b"hello"
        assert transport.certificate
        transport.abort()

    def test_contexts_of_the_ssl_module_and_a_host_name(
        self, serve: Serve, authority: Authority, tmp_path: Path
    ) -> None:
        made = from_contexts(*contexts(authority.files(tmp_path)))
        transport = dial(wss(serve(made), "localhost"), tls=made)
        transport.send(b"hello")
        assert transport.recv() == b"hello"
        transport.abort()

    def test_large_data_in_both_directions_at_once(self, serve: Serve, tls: Tls) -> None:
        """A reader and a writer of one connection, both held up by full buffers all the time."""
        transport = dial(wss(serve(tls)), tls=tls)
        data = os.urandom(24 << 20)
        writer = gevent.spawn(transport.send, data)
        received = bytearray()
        with gevent.Timeout(20):
            while len(received) < len(data):
                received += transport.recv()
        writer.get(timeout=1)
        assert received == data
        transport.abort()

    @pytest.mark.parametrize("end", ["abort", "close", "forget"])
    def test_every_end_frees_a_blocked_reader_and_a_blocked_writer(self, end: str, serve: Serve, tls: Tls) -> None:
        stuck: list[Transport] = []

        def read_nothing(transport: Transport, _ticket: StrangerTicket) -> None:
            stuck.append(transport)
            gevent.sleep(30)

        transport = dial(wss(serve(tls, read_nothing)), tls=tls)
        reader, writer = gevent.spawn(transport.recv), gevent.spawn(transport.send, bytes(32 << 20))
        eventually(lambda: stuck and not select.select([], [transport._socket.fileno()], [], 0)[1])
        getattr(transport, end)()
        assert reader.get(timeout=2) == b""
        writer.join(2)
        assert isinstance(writer.exception, ConnectionError)

    def test_whoever_is_woken_after_the_end_finds_that_it_is_the_end(self, serve: Serve, tls: Tls) -> None:
        """An event loop may wake a reader or a writer by what has come, although it is ended in the same turn."""
        drain = Event()

        def say_and_drain(transport: Transport, _ticket: StrangerTicket) -> None:
            drain.wait(5)
            transport.send(b"too late")
            while transport.recv():
                pass

        transport = dial(wss(serve(tls, say_and_drain)), tls=tls)
        reader, writer = gevent.spawn(transport.recv), gevent.spawn(transport.send, bytes(32 << 20))
        gevent.sleep(0)
        eventually(lambda: not select.select([], [transport._socket.fileno()], [], 0)[1])
        # What is left of gevent's socket then.
        transport._socket._sslobj = None
        drain.set()
        assert reader.get(timeout=2) == b""
        writer.join(2)
        assert isinstance(writer.exception, ConnectionError)
        transport.abort()

    def test_close_lets_everything_arrive_and_then_says_that_this_is_the_end(self, serve: Serve, tls: Tls) -> None:
        def say(transport: Transport, _ticket: StrangerTicket) -> None:
            transport.send(b"x" * 100_000)
            transport.close()

        transport = dial(wss(serve(tls, say)), tls=tls)
        # A missing close_notify would be an error.
        transport._socket.suppress_ragged_eofs = False
        received = b""
        while data := transport.recv():
            received += data
        assert received == b"x" * 100_000
        assert transport.error is None

    def test_a_process_that_is_patched_takes_the_same_contexts(self, authority: Authority, tmp_path: Path) -> None:
        authority.files(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "tests.net.patched_tls", str(tmp_path)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.stdout == "b'hello'\nb'hello'\n", done.stderr


# ---------------------------------------------------------------------- who does not get through, and what is said


class TestRefusals:
    def test_a_server_of_another_ca(self, serve: Serve, tls: Tls, tmp_path: Path) -> None:
        theirs = Authority().files(tmp_path).tls()
        listener = serve(theirs)
        assert "not signed by a CA that is trusted here (MESH_TLS_CA)" in refused(wss(listener), tls)
        eventually(lambda: listener.strangers_cut == {"TLS failed": 1})

    def test_a_client_of_another_ca(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        listener = serve(tls)
        stranger = Authority().files(tmp_path, trusted=authority).tls()
        assert "it does not take our certificate: it does not trust our CA" in refused(wss(listener), stranger)
        assert "not signed by a CA that is trusted here (MESH_TLS_CA)" in caplog.text

    def test_an_expired_certificate_of_either_side(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expired = authority.files(tmp_path, days=-1).tls()
        assert "its certificate has expired" in refused(wss(serve(expired)), tls)
        assert "does not take our certificate: it has expired" in refused(wss(serve(tls)), expired)
        assert "its certificate has expired" in caplog.text

    def test_a_certificate_for_somebody_else(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path
    ) -> None:
        elsewhere = serve(authority.files(tmp_path, "10.1.2.3", "node-3.example").tls())
        assert "is for another address" in refused(wss(elsewhere), tls)
        assert "is for another name" in refused(wss(elsewhere, "localhost"), tls)

    def test_a_client_without_a_certificate(self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path) -> None:
        server, nameless = contexts(authority.files(tmp_path), certificate=False)
        client = from_contexts(None, nameless)
        optional = serve(tls)
        assert "HTTP status 403; it may want a client certificate" in refused(wss(optional), client)
        eventually(lambda: optional.strangers_cut == {"no client certificate": 1})
        assert "it wants a certificate of ours" in refused(wss(serve(from_contexts(server, None))), client)

    def test_no_tls_at_a_tls_port(self, serve: Serve, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
        listener = serve(tls)
        assert "if TLS is spoken there, write wss://" in refused(f"ws://127.0.0.1:{listener.port}")
        eventually(lambda: listener.strangers_cut == {"TLS failed": 1})
        assert "it speaks HTTP without TLS; its address of us should be wss://" in caplog.text

    def test_tls_at_a_port_without(self, serve: Serve, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
        listener = serve(Tls())
        assert "it does not speak TLS; is its address ws:// then?" in refused(wss(listener), tls)
        assert listener.strangers_cut == {"it speaks TLS, and this port does not": 1}
        assert len(caplog.records) == 1

    def test_who_trusts_the_system_only_is_told(self, serve: Serve, tls: Tls) -> None:
        assert "not signed by a CA that is trusted here" in refused(wss(serve(tls)))

    def test_nodes_link_to_their_like_only(self, tls: Tls, authority: Authority, tmp_path: Path) -> None:
        plain = from_contexts(None, None)
        assert "it has no TLS, and links of this process are TLS only" in refused("ws://127.0.0.1:1", tls, is_peer=True)
        assert "it takes links over TLS only, and this node has no TLS" in refused(
            "wss://127.0.0.1:1", plain, is_peer=True
        )
        _, dialling = contexts(authority.files(tmp_path))
        emitter = from_contexts(None, dialling, listens=False)
        assert "TLS only" in refused("ws://127.0.0.1:1", emitter, is_peer=True)
        anybody = from_contexts(None, None, listens=False)
        for address in ("ws://127.0.0.1:1", "wss://127.0.0.1:1"):
            assert "Connection refused" in refused(address, anybody, is_peer=True)


# ---------------------------------------------------------------------- strangers


class TestStrangers:
    @pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"])
    def test_a_handshake_that_never_ends_is_cut(self, said: bytes, serve: Serve, tls: Tls) -> None:
        listener = serve(tls, limits=StrangerLimits(seconds=0.3))
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as sock:
            sock.sendall(said)
            assert ended(sock)
        assert 0.2 < time.monotonic() - began < 2
        assert listener.strangers_cut == {"too slow": 1}

    def test_it_has_a_place_among_the_strangers_and_the_oldest_one_goes(self, serve: Serve, tls: Tls) -> None:
        listener = serve(tls, limits=StrangerLimits(total=2))
        silent = [socket.create_connection(("127.0.0.1", listener.port), timeout=5) for _ in range(2)]
        eventually(lambda: len(listener._strangers) == 2)
        dial(wss(listener), tls=tls).abort()
        assert ended(silent[0])
        assert listener.strangers_cut == {"too many": 1}
        for sock in silent:
            sock.close()

    def test_a_port_check_is_no_news(self, serve: Serve, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
        listener = serve(tls)
        socket.create_connection(("127.0.0.1", listener.port)).close()
        # Over before the listener has seen it at all.
        with native_socket.create_connection(("127.0.0.1", listener.port)) as hasty:
            hasty.sendall(b"\x16\x03\x01")
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        dial(wss(listener), tls=tls).abort()
        eventually(lambda: not len(listener._strangers))
        assert not caplog.records
        assert not listener.strangers_cut

    def test_who_leaves_before_it_is_answered_is_no_news(self, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
        asked, is_gone, answered = Event(), Event(), Event()

        def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            asked.set()
            is_gone.wait(5)
            start_response("200 OK", [("Content-Length", "200000")])
            yield bytes(100_000)
            answered.set()
            yield bytes(100_000)

        listener = Listener("127.0.0.1", 0, on_websocket=echo, http_app=app, require_mesh_header=True, tls=tls)
        listener.start()
        transport = Transport(socket.create_connection(("127.0.0.1", listener.port)), is_client=True)
        transport.start_tls(tls.client(), "127.0.0.1")
        transport.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(5)
        transport.abort()
        is_gone.set()
        eventually(lambda: not len(listener._strangers))
        assert not answered.is_set()
        assert not caplog.records
        assert not listener.strangers_cut
        listener.stop()

    def test_garbage_ends_its_own_connection_in_one_line_a_second(
        self, serve: Serve, tls: Tls, caplog: pytest.LogCaptureFixture
    ) -> None:
        listener, rng = serve(tls), random.Random(1)
        for number in range(30):
            with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as sock:
                sock.sendall(rng.randbytes(300) if number % 2 else b"\x16\x03\x01\x00\x05" + rng.randbytes(200))
                eventually(lambda number=number: listener.strangers_cut == {"TLS failed": number + 1})  # type: ignore[misc]  # bound now
        assert len(caplog.records) <= 2
        dial(wss(listener), tls=tls).abort()

    def test_a_server_that_never_finishes_costs_the_deadline(self, tls: Tls) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"wss://127.0.0.1:{silent.getsockname()[1]}"
            assert "no WebSocket connection within 0.2 s" in refused(address, tls, timeout_seconds=0.2)

    def test_a_server_that_hangs_up(self, tls: Tls) -> None:
        with socket.socket() as rude:
            rude.bind(("127.0.0.1", 0))
            rude.listen()
            gevent.spawn(lambda: rude.accept()[0].close())
            assert "the TLS handshake was cut" in refused(f"wss://127.0.0.1:{rude.getsockname()[1]}", tls)


# ---------------------------------------------------------------------- nodes


class TestNodes:
    def test_they_link_and_everything_arrives(self, join: Join, tls: Tls) -> None:
        one, two = pair(join, tls=tls)
        assert one.address.startswith("wss://")
        one.say(500, padding=2000)
        two.say(500, padding=2000)
        two.hears(one, 500)
        one.hears(two, 500)

    def test_a_reset_link_is_resumed(self, join: Join, tls: Tls) -> None:
        one, two = pair(join, tls=tls)
        for number in range(1, 6):
            one.say(200, padding=1000)
            ours, theirs = (one, two) if number % 2 else (two, one)
            # What was said may all have come before the link was reset: then it is on its way to be up again.
            eventually(partial(ours.link, theirs))
            link = ours.link(theirs)
            assert link is not None
            link.transport.abort()
            two.hears(one, 200 * number)

    def test_peers_that_accept_and_never_answer_keep_nobody_else_waiting(self, join: Join, tls: Tls) -> None:
        silent, accepted = socket.socket(), []
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)

        def accept() -> None:
            while True:
                accepted.append(silent.accept())

        accepting = gevent.spawn(accept)
        one, two = join(uid=uid_below(MIDDLE), tls=tls), join(uid=MIDDLE, tls=tls)
        address = f"wss://127.0.0.1:{silent.getsockname()[1]}"
        others = {f"{0xF000000000000000 + number:016x}": address for number in range(2 * TLS_AT_ONCE)}
        one.names(**others)
        eventually(lambda: len(accepted) == len(others))
        began = time.monotonic()
        one.names(two, **others)
        linked(one, two)
        assert time.monotonic() - began < 3.0
        accepting.kill()
        silent.close()

    def test_a_name_that_the_certificate_does_not_have_is_refused_by_who_accepts(
        self, join: Join, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is a member of the mesh, knows the token, and wants to be known under the address of another one."""
        liar_tls = authority.files(tmp_path, "10.9.9.9").tls()
        honest, liar = join(uid=MIDDLE, tls=tls), join(uid=uid_below(MIDDLE), tls=liar_tls)
        liar.names(honest)
        eventually(lambda: "refused: the certificate is not for 127.0.0.1, but for 10.9.9.9" in caplog.text)
        assert honest.mesh.table.alive() == liar.mesh.table.alive() == []

    def test_one_name_for_all_takes_the_place_of_hosts(
        self, join: Join, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared = authority.files(tmp_path / "shared", "mesh.example")
        one, two = pair(join, tls=shared.tls("mesh.example"))
        assert one.link(two)
        other = join(uid=uid_below(one.uid), tls=tls)
        other.names(one)
        eventually(lambda: "its certificate is for another address" in caplog.text)
        assert other.mesh.table.alive() == []

    @pytest.mark.parametrize("is_secure", [True, False])
    def test_with_and_without_tls_do_not_link_and_say_so(
        self, is_secure: bool, join: Join, tls: Tls, caplog: pytest.LogCaptureFixture
    ) -> None:
        both = [tls, from_contexts(None, None)]
        ours, theirs = both if is_secure else reversed(both)
        one, two = join(uid=uid_below(MIDDLE), tls=ours), join(uid=MIDDLE, tls=theirs)
        one.names(two)
        says = "links of this process are TLS only" if is_secure else "it takes links over TLS only"
        eventually(lambda: says in caplog.text)
        assert one.mesh.table.alive() == two.mesh.table.alive() == []

    def test_they_meet_through_discovery_with_tls(self, join: Join, tls: Tls) -> None:
        server = DiscoveryServer(port=0, tls=tls)
        server.start()
        assert server.url == f"wss://127.0.0.1:{server.port}"
        linked(*(join(server.url, tls=tls) for _ in range(3)))
        server.stop()

    def test_discovery_refuses_an_address_that_the_certificate_does_not_have(
        self, join: Join, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = DiscoveryServer(port=0, tls=tls)
        server.start()
        join(server.url, tls=authority.files(tmp_path, "10.9.9.9").tls())
        eventually(lambda: "4403 the certificate is not for 127.0.0.1, but for 10.9.9.9" in caplog.text)
        assert server.registered == 0
        server.stop()


# ---------------------------------------------------------------------- new certificates


class TestReload:
    def test_a_replaced_certificate_serves_from_the_next_handshake_on(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path
    ) -> None:
        files = authority.files(tmp_path)
        listener = serve(files.tls())
        before = dial(wss(listener), tls=tls)
        files.write(authority.issue("127.0.0.1", "new.example"), authority)
        after = dial(wss(listener), tls=tls)
        assert ("DNS", "new.example") in (after.certificate or {})["subjectAltName"]
        before.send(b"still there")
        assert before.recv() == b"still there"
        before.abort()
        after.abort()

    def test_another_ca_serves_from_the_next_handshake_on(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path
    ) -> None:
        files, new = authority.files(tmp_path / "files"), Authority()
        listener = serve(files.tls())
        dial(wss(listener), tls=tls).abort()
        files.write(new.issue("127.0.0.1"), new)
        dial(wss(listener), tls=new.files(tmp_path / "new").tls()).abort()
        assert "not signed by a CA" in refused(wss(listener), tls)

    def test_files_that_cannot_be_used_change_nothing_and_are_told_once(
        self, serve: Serve, authority: Authority, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = authority.files(tmp_path)
        listener = serve(files.tls())
        files.key.write_text("nonsense")
        for _ in range(3):
            dial(wss(listener), tls=tls).abort()
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "the changed certificate cannot be used, the former one stays" in caplog.text
        assert str(files.certificate) in caplog.text
        files.key.unlink()
        dial(wss(listener), tls=tls).abort()
        assert str(files.key) in caplog.records[-1].getMessage()
        files.write(authority.issue("127.0.0.1", "mended.example"), authority)
        after = dial(wss(listener), tls=tls)
        assert ("DNS", "mended.example") in (after.certificate or {})["subjectAltName"]
        after.abort()

    def test_links_stay_up_and_new_ones_use_what_is_new(self, join: Join, authority: Authority, tmp_path: Path) -> None:
        files = [authority.files(tmp_path / name) for name in "ab"]
        one, two = join(uid=uid_below(MIDDLE), tls=files[0].tls()), join(uid=MIDDLE, tls=files[1].tls())
        one.names(two)
        linked(one, two)
        link, new = one.link(two), Authority()
        assert link is not None
        for each in files:
            each.write(new.issue("127.0.0.1"), new)
        one.say(10)
        two.hears(one, 10)
        assert one.link(two) is link
        link.transport.abort()
        one.say(10)
        two.hears(one, 20)


# ---------------------------------------------------------------------- options


class TestOptions:
    def test_the_environment_names_files(self, authority: Authority, tmp_path: Path) -> None:
        environ = authority.files(tmp_path).environment
        tls = Tls.from_options(None, None, None, environ, listens=True)
        assert tls.listens
        assert tls.asks_for_certificates
        assert tls.peer_name("10.0.0.1") == "10.0.0.1"
        named = Tls.from_options(None, None, None, {**environ, "MESH_TLS_NAME": "Mesh.Example"}, listens=True)
        assert named.peer_name("10.0.0.1") == "mesh.example"

    def test_contexts_take_the_place_of_files(self, authority: Authority, tmp_path: Path) -> None:
        files = authority.files(tmp_path)
        server, client = contexts(files)
        tls = Tls.from_options(server, client, "", {**files.environment, "MESH_TLS_NAME": "unwanted"}, listens=True)
        assert (tls.server(), tls.client(), tls.peer_name("host")) == (server, client, "host")

    def test_without_any_it_listens_without(self) -> None:
        tls = Tls.from_options(None, None, None, {}, listens=True)
        assert not tls.listens
        assert tls.client().verify_mode == ssl.CERT_REQUIRED

    def test_two_of_three_files(self, authority: Authority, tmp_path: Path) -> None:
        environ = authority.files(tmp_path).environment
        del environ["MESH_TLS_CA"]
        with pytest.raises(ConfigError, match="MESH_TLS_CERT, MESH_TLS_KEY, MESH_TLS_CA go together"):
            Tls.from_options(None, None, None, environ, listens=True)

    @pytest.mark.parametrize("broken", ["certificate", "key", "ca"])
    @pytest.mark.parametrize("content", [None, "nonsense"])
    def test_files_that_cannot_be_used_at_the_start(
        self, broken: str, content: str | None, authority: Authority, tmp_path: Path
    ) -> None:
        files = authority.files(tmp_path)
        path: Path = getattr(files, broken)
        path.unlink()
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=r"TLS cannot be used: .*\.pem"):
            files.tls()

    def test_a_key_with_a_password_is_no_question_at_the_terminal(self, authority: Authority, tmp_path: Path) -> None:
        files = authority.files(tmp_path)
        command = ["openssl", "ec", "-in", str(files.key), "-out", str(files.key), "-aes256", "-passout", "pass:secret"]
        subprocess.run(command, check=True, capture_output=True)
        with pytest.raises(ConfigError, match="TLS cannot be used"):
            files.tls()

    @pytest.mark.parametrize("context", ["cert.pem", object(), True])
    def test_what_is_no_context(self, context: object) -> None:
        for server, client in ((context, None), (None, context)):
            with pytest.raises(ConfigError, match=r"must be an ssl\.SSLContext"):
                Tls.from_options(server, client, None, {}, listens=True)

    def test_a_context_for_the_other_side(self) -> None:
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for given in ((client, None), (None, server)):
            with pytest.raises(ConfigError, match="made for the other side"):
                from_contexts(*given)

    def test_an_emitter_listens_to_nobody(self) -> None:
        with pytest.raises(ConfigError, match="leave ssl_context out"):
            from_contexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None, listens=False)

    @pytest.mark.parametrize("name", ["*.example", "mesh example", "a/b", "a:1"])
    def test_a_name_that_is_none(self, name: str) -> None:
        with pytest.raises(ConfigError, match="must be a host name"):
            Tls.from_options(None, None, name, {}, listens=True)


@pytest.mark.parametrize(
    ("kind", "name", "host", "is_it"),
    [
        ("DNS", "node-1.example", "node-1.example", True),
        ("DNS", "Node-1.Example", "node-1.example.", True),
        ("DNS", "node-1.example", "node-2.example", False),
        ("DNS", "*.mesh.example", "node-1.mesh.example", True),
        ("DNS", "*.mesh.example", "a.b.mesh.example", False),
        ("DNS", "*.mesh.example", "mesh.example", False),
        ("DNS", "*.example", "node-1.example", False),
        ("DNS", "*", "localhost", False),
        ("DNS", "node-*.mesh.example", "node-1.mesh.example", False),
        ("DNS", "10.0.0.1", "10.0.0.1", False),
        ("DNS", "*.0.0.1", "10.0.0.1", False),
        ("IP Address", "10.0.0.1", "10.0.0.1", True),
        ("IP Address", "10.0.0.1", "10.0.0.2", False),
        ("IP Address", "FE80:0:0:0:0:0:0:1\n", "fe80::1", True),
        ("IP Address", "nonsense", "nonsense", False),
        ("URI", "node-1.example", "node-1.example", False),
    ],
)
def test_whom_a_certificate_is_for(tls: Tls, kind: str, name: str, host: str, is_it: bool) -> None:
    address = f"wss://[{host}]:1" if ":" in host else f"wss://{host}:1"
    assert (tls.name_problem({"subjectAltName": ((kind, name),)}, address) == "") is is_it


def test_whom_a_certificate_is_for_when_there_is_no_address(tls: Tls, authority: Authority, tmp_path: Path) -> None:
    certificate = {"subjectAltName": (("DNS", "node-1.example"),)}
    assert tls.name_problem(certificate, None) == ""
    assert "names no address" in tls.name_problem(certificate, "")
    assert "but for nobody" in tls.name_problem({}, "wss://node-1.example:1")
    named = authority.files(tmp_path).tls("mesh.example")
    assert named.name_problem(certificate, None) == "the certificate is not for mesh.example, but for node-1.example"
    assert Tls().name_problem(None, "ws://node-1.example:1") == ""
