"""The discovery command as a process of its own: what it prints, how it ends, and what strangers can do to it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import psutil
import pytest
from gevent import socket, subprocess

from gevent_mesh.net.discovery import DiscoveryClient
from gevent_mesh.protocol.websocket import Opcode, frame_header
from tests.discovery.members import NODE_FRAMES, NodeMember, http_get
from tests.support import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token of 26 characters.."
SECONDS = 20.0


class Command:
    """A running `gevent-mesh-discovery`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not re.match("HOST|PORT|MESH_|METRICS_|LOG_", name)
        }
        paths = os.pathsep.join([str(ROOT), str(ROOT / "discovery")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gevent_mesh_discovery", *arguments],
            env={**kept, "PYTHONPATH": paths, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.line = ""
        self.port = 0

    def wait_until_it_serves(self) -> Command:
        with gevent.Timeout(SECONDS, AssertionError("no startup line")):
            self.line = self.process.stdout.readline()
        found = re.search(r"ws://\S+:(\d+) ", self.line)
        assert found, self.line + self.process.stderr.read()
        self.port = int(found[1])
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; the exit code and what else was printed."""
        self.process.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err

    def resident_bytes(self) -> int:
        rss: int = psutil.Process(self.process.pid).memory_info().rss
        return rss


Run = Callable[..., Command]


@pytest.fixture
def run() -> Iterator[Run]:
    commands: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        commands.append(Command(*arguments, **environment))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()


@pytest.fixture
def serving(run: Run) -> Command:
    return run("--port", "0").wait_until_it_serves()


class TestStart:
    def test_the_startup_line_and_both_signals(self, run: Run) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            command = run(PORT="0").wait_until_it_serves()
            line = f"gevent-mesh-discovery listening on ws://127.0.0.1:{command.port} (no token)\n"
            assert command.line == line
            member = NodeMember(command.port)
            member.register("a", "ws://127.0.0.1:1")
            member.servers()
            code, out, err = command.end(number)
            assert (code, out) == (0, "")
            assert "Traceback" not in err
            assert member.closing() == (1001, "going away")

    def test_with_a_token_it_binds_all_addresses_and_keeps_the_token_to_itself(self, run: Run) -> None:
        command = run(PORT="0", MESH_AUTH_TOKEN=f"{TOKEN},{TOKEN}2").wait_until_it_serves()
        assert command.line == f"gevent-mesh-discovery listening on ws://0.0.0.0:{command.port} (token required)\n"
        assert http_get(command.port, "/roster")[0] == 401
        assert http_get(command.port, "/roster", {"Authorization": f"Bearer {TOKEN}2"})[0] == 200
        code, _, err = command.end()
        assert code == 0
        assert TOKEN not in err

    def test_flags_win_over_the_environment(self, run: Run) -> None:
        command = run("--port", "0", "--host", "127.0.0.1", PORT="1", HOST="0.0.0.0").wait_until_it_serves()
        assert http_get(command.port, "/healthz")[::2] == (200, "ok\n")

    def test_anonymous_beyond_loopback_when_asked_for(self, run: Run) -> None:
        command = run(PORT="0", HOST="0.0.0.0", MESH_ALLOW_ANONYMOUS="1").wait_until_it_serves()
        assert "ws://0.0.0.0:" in command.line

    def test_help(self, run: Run) -> None:
        code, out, _ = run("--help").outcome()
        assert code == 0
        for name in ("--host", "--port", "--token", "--allow-anonymous", "--metrics-port", "--log-level"):
            assert name in out
        for name in ("HOST", "PORT", "MESH_AUTH_TOKEN", "METRICS_PORT"):
            assert name in out


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("--port", "many"), {}, "'--port'"),
        ((), {"PORT": "70000"}, "70000"),
        ((), {"PORT": "-1"}, "-1"),
        ((), {"METRICS_PORT": "x"}, "'--metrics-port'"),
        ((), {"HOST": "0.0.0.0"}, "MESH_AUTH_TOKEN"),
        (("--host", "no-such-host.invalid"), {"MESH_AUTH_TOKEN": TOKEN}, "the host name is not known"),
        (("--host", "203.0.113.7"), {"MESH_AUTH_TOKEN": TOKEN}, "not an address of this machine"),
        ((), {"MESH_AUTH_TOKEN": "short"}, "at least 16 characters"),
        ((), {"MESH_AUTH_TOKEN": ",".join([TOKEN] * 5)}, "at most 4 tokens"),
        (("--log-level", "loud"), {}, "'--log-level'"),
        (("--nonsense",), {}, "--nonsense"),
        (("surplus",), {}, "surplus"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    run: Run, arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    code, out, err = run(*arguments, **{"PORT": "0", **environment}).outcome()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert environment.get("MESH_AUTH_TOKEN", "---") not in err


def test_a_taken_port_is_one_line_and_exit_code_2(run: Run, serving: Command) -> None:
    for environment in ({"PORT": str(serving.port)}, {"PORT": "0", "METRICS_PORT": str(serving.port)}):
        code, out, err = run(**environment).outcome()
        assert (code, out) == (2, "")
        assert err == (
            f"gevent-mesh-discovery: cannot listen on 127.0.0.1:{serving.port}: the port is already in use\n"
        )


class TestMetrics:
    NAMES = (
        "servers_registered",
        "registrations_total",
        "disconnects_total",
        "roster_broadcasts_total",
        # The Node package lets whoever comes last have a name.
        "takeovers_refused_total",
    )

    def figures(self, port: int) -> dict[str, float]:
        status, _, body = http_get(port, "/metrics")
        assert status == 200
        lines = [line.split() for line in body.splitlines() if line and not line.startswith("#")]
        return {name.removeprefix("socketio_mesh_discovery_"): float(value) for name, value in lines}

    def test_the_node_packages_figures_under_its_names(self, run: Run) -> None:
        command = run(PORT="0", METRICS_PORT="0").wait_until_it_serves()
        found = re.fullmatch(r"metrics on http://127\.0\.0\.1:(\d+)/metrics\n", command.process.stdout.readline())
        assert found
        port = int(found[1])
        assert self.figures(port) == dict.fromkeys(self.NAMES, 0.0)
        member, other = NodeMember(command.port), NodeMember(command.port)
        member.register("a", "ws://127.0.0.1:1")
        other.register("b", "ws://127.0.0.1:2")
        eventually(lambda: len(member.servers()) == 2)
        other.leave()
        assert len(member.servers()) == 1
        figures = self.figures(port)
        assert tuple(figures) == self.NAMES
        assert figures["servers_registered"] == 1
        assert figures["registrations_total"] == 2
        assert figures["disconnects_total"] == 1
        assert figures["roster_broadcasts_total"] >= 2
        assert http_get(command.port, "/metrics")[0] == 404
        assert command.end()[0] == 0

    def test_prometheus_is_not_loaded_without_metrics(self) -> None:
        code = "import sys, gevent_mesh_discovery.__main__; sys.exit('prometheus_client' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "discovery")])}
        assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def into(rosters: dict[str, dict[str, str]], uid: str) -> Callable[[str, dict[str, str], bool, tuple[str, ...]], None]:
    """A callback that keeps the last roster of one client."""

    def keep(_url: str, roster: dict[str, str], _complete: bool, _removed: tuple[str, ...]) -> None:
        rosters[uid] = roster

    return keep


class TestTraffic:
    def test_clients_as_the_node_package_makes_them_byte_for_byte(self, serving: Command) -> None:
        first = NodeMember(serving.port)
        first.send(bytes.fromhex(NODE_FRAMES["register A"]))
        assert first.receive().hex() == NODE_FRAMES["update A"]
        second = NodeMember(serving.port)
        second.send(bytes.fromhex(NODE_FRAMES["register B"]))
        assert first.receive().hex() == NODE_FRAMES["update A B"]
        assert second.receive().hex() == NODE_FRAMES["update A B"]
        second.send_frame(Opcode.CLOSE, bytes.fromhex(NODE_FRAMES["close by client"]))
        second.closing()
        assert second.closed_with.hex() == NODE_FRAMES["close by client"]
        assert first.receive().hex() == NODE_FRAMES["update A"]

    def test_no_garbage_ends_it_and_its_memory_is_flat(self, serving: Command) -> None:
        member = NodeMember(serving.port)
        member.register("a", "ws://127.0.0.1:1")
        member.servers()

        def abuse() -> None:
            for _ in range(10):
                for data in (b"\xc0", b"\xdd\x00\x01\x00\x00" * 200, os.urandom(50)):
                    stranger = NodeMember(serving.port)
                    stranger.send(data)
                    assert stranger.closing()[0] == 4400
                stranger = NodeMember(serving.port)
                with suppress(ConnectionError):  # the server may cut while this is being sent
                    stranger.send_raw(frame_header(Opcode.BINARY, 2**40, mask=True) + bytes(1 << 19))
                assert stranger.closing()[0] in (1009, 1006)
                for data in (b"\xc0", os.urandom(20_000), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000):
                    with socket.create_connection(("127.0.0.1", serving.port)) as sock:
                        try:
                            sock.sendall(data)
                        except ConnectionError:
                            continue

        abuse()
        before = serving.resident_bytes()
        for _ in range(4):
            abuse()
        assert serving.resident_bytes() - before < 4 << 20
        member.register("a", "ws://127.0.0.1:2")
        assert member.servers() == {"a": "ws://127.0.0.1:2"}
        code, _, err = serving.end()
        assert code == 0
        assert "Traceback" not in err

    def test_300_silent_sockets_do_not_keep_a_member_out(self, serving: Command) -> None:
        silent = [socket.create_connection(("127.0.0.1", serving.port)) for _ in range(300)]
        member = NodeMember(serving.port)
        member.register("a", "ws://127.0.0.1:1")
        assert member.servers() == {"a": "ws://127.0.0.1:1"}
        for sock in silent:
            sock.close()

    def test_members_come_back_after_a_restart_of_a_killed_server(self, run: Run) -> None:
        rosters: dict[str, dict[str, str]] = {}
        first = run(PORT="0", MESH_AUTH_TOKEN=TOKEN).wait_until_it_serves()
        clients = [
            DiscoveryClient(
                f"ws://127.0.0.1:{first.port}",
                uid=uid * 16,
                secret=uid.encode() * 16,
                role="node",
                tokens=(TOKEN,),
                address_for=lambda host: f"ws://{host}:4000",
                on_roster=into(rosters, uid),
            )
            for uid in "abcde"
        ]
        for client in clients:
            client.start()
        try:
            eventually(lambda: len(rosters) == 5 and all(len(roster) == 5 for roster in rosters.values()))
            first.end(signal.SIGKILL)
            eventually(lambda: not any(client.connected for client in clients))
            assert all(len(roster) == 5 for roster in rosters.values())
            rosters.clear()
            run(PORT=str(first.port), MESH_AUTH_TOKEN=TOKEN).wait_until_it_serves()
            eventually(lambda: len(rosters) == 5 and all(len(roster) == 5 for roster in rosters.values()), 20)
        finally:
            for client in clients:
                client.stop()
