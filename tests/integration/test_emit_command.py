"""`gevent-mesh emit` in real shells and pipelines."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.processes import ROOT, Discovery, Fleet, fleet, linked

pytestmark = pytest.mark.integration

SECONDS = 30


@dataclass
class Shell:
    """Runs command lines in which `emit` is ours, next to two nodes with a client each."""

    ships: Fleet
    discovery: Discovery
    clients: list[Client]

    def line(self, command: str) -> str:
        emit = shlex.join([sys.executable, "-m", "gevent_mesh.cli", "emit"])
        return command.replace("EMIT", emit)

    def environment(self, *, discovery: str = "", **variables: str) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("MESH_")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "discovery")]),
            "MESH_DISCOVERY": discovery or self.discovery.url,
            **variables,
        }

    def run(self, command: str, *, discovery: str = "", **variables: str) -> tuple[int, str, str]:
        """The exit code, the output and the error output of a line."""
        environment = self.environment(discovery=discovery, **variables)
        done = subprocess.run(
            ["bash", "-c", self.line(command)],
            env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with ExitStack() as stack:
        ships = stack.enter_context(fleet())
        discovery = ships.discovery()
        nodes = ships.nodes(2, discovery)
        linked(nodes)
        clients = stack.enter_context(clients_closed([]))
        clients += [Client(node.url, namespaces=["/", "/other"]) for node in nodes]
        yield Shell(ships, discovery, clients)


def test_arguments_are_json_and_nothing_is_written(shell: Shell) -> None:
    assert shell.run("""EMIT arguments '{"id": 7}' '"two"' 3 null""") == (0, "", "")
    for client in shell.clients:
        assert client.wait_for("arguments") == [({"id": 7}, "two", 3, None)]


def test_an_event_may_have_no_arguments(shell: Shell) -> None:
    assert shell.run("EMIT nothing")[0] == 0
    for client in shell.clients:
        assert client.wait_for("nothing") == [()]


def test_rooms_exclusions_and_namespaces(shell: Shell) -> None:
    one, two = shell.clients
    one.enter("readers")
    two.enter("readers")
    two.enter("writers")
    assert shell.run("EMIT chosen 1 --room readers --room nobody --except writers && EMIT chosen 2")[0] == 0
    assert one.wait_for("chosen", count=2) == [(1,), (2,)]
    assert two.wait_for("chosen") == [(2,)]
    assert shell.run("EMIT elsewhere 1 -n /other; EMIT elsewhere 2")[0] == 0
    assert one.wait_for("elsewhere", namespace="/other") == [(1,)]
    assert one.wait_for("elsewhere") == [(2,)]


def test_a_pipeline_emits_one_event_for_each_line(shell: Shell) -> None:
    assert shell.run("""seq 1 2000 | EMIT piped '"line"' - && EMIT piped '"end"' 0""") == (0, "", "")
    for client in shell.clients:
        wanted = [*(("line", number) for number in range(1, 2001)), ("end", 0)]
        assert client.wait_for("piped", count=2001) == wanted


def test_lines_of_text(shell: Shell) -> None:
    assert shell.run(r"""printf 'no "JSON"\n\n  grüß  \n' | EMIT text --text log -""")[0] == 0
    for client in shell.clients:
        assert client.wait_for("text", count=2) == [("log", 'no "JSON"'), ("log", "  grüß  ")]


def test_indentation_foreign_line_ends_and_broken_text(shell: Shell) -> None:
    line = r"""printf '\357\273\277first\r\n\tindented\n \n\377 latin' | EMIT odd --text -"""
    assert shell.run(line, PYTHONIOENCODING="utf-8:strict") == (0, "", "")
    assert shell.run(r"""EMIT odd --text $'\377' && EMIT odd -- -5""") == (0, "", "")
    for client in shell.clients:
        wanted = [("first",), ("\tindented",), (" ",), ("\ufffd latin",), ("\ufffd",), (-5,)]
        assert client.wait_for("odd", count=6) == wanted


def test_a_byte_order_mark_before_json_is_no_part_of_it(shell: Shell) -> None:
    assert shell.run(r"""printf '\357\273\2771\n  \n2\n' | EMIT mark -""") == (0, "", "")
    for client in shell.clients:
        assert client.wait_for("mark", count=2) == [(1,), (2,)]


def test_an_event_leaves_when_its_line_comes(shell: Shell, tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.touch()
    command = f"tail -f {shlex.quote(str(growing))} & echo $!; exec 1>&-; wait"
    tail = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE)
    assert tail.stdout is not None
    tail_pid = int(tail.stdout.readline())
    emit = subprocess.Popen(
        [sys.executable, "-m", "gevent_mesh.cli", "emit", "growing", "-", "--discovery", shell.discovery.url],
        stdin=tail.stdout, cwd=ROOT,
    )  # fmt: skip
    tail.stdout.close()
    try:
        for number in range(3):
            with growing.open("a") as file:
                file.write(f"{number}\n")
            for client in shell.clients:
                assert client.wait_for("growing", count=number + 1)[-1] == (number,)
        assert emit.poll() is None
        os.kill(tail_pid, signal.SIGTERM)
        assert emit.wait(SECONDS) == 0
    finally:
        emit.kill()
        tail.kill()
        tail.wait()


def test_sigterm_delivers_what_was_emitted(shell: Shell) -> None:
    line = ["bash", "-c", "exec " + shell.line("EMIT ended -")]
    with subprocess.Popen(line, env=shell.environment(), stdin=subprocess.PIPE) as command:
        assert command.stdin is not None
        command.stdin.write(b"1\n2\n")
        command.stdin.flush()
        for client in shell.clients:
            assert client.wait_for("ended", count=2) == [(1,), (2,)]
        command.terminate()
        assert command.wait(SECONDS) == 128 + signal.SIGTERM


def test_a_line_that_is_no_json_ends_it_and_what_came_before_is_delivered(shell: Shell) -> None:
    code, _, errors = shell.run(r"""printf '1\n\nhello\n2\n' | EMIT broken -""")
    assert code == 2
    assert "line 3: 'hello' is not JSON" in errors
    assert "--text" in errors
    assert shell.run("EMIT broken 3")[0] == 0
    for client in shell.clients:
        assert client.wait_for("broken", count=2) == [(1,), (3,)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("EMIT event hello", "'hello' is not JSON"),
        ("EMIT event NaN", "'NaN' is not JSON"),
        ("EMIT event '{\"a\": 1'", "is not JSON"),
        ("EMIT event 1e999", "too large a number"),
        ("EMIT event '[-1e999]'", "too large a number"),
        ("EMIT event - <&-", "the standard input is closed"),
        ("EMIT event --text - <&-", "the standard input is closed"),
        ("EMIT event - 0>/dev/null", "the standard input cannot be read"),
        ("EMIT event - -", "can be given once"),
        ("EMIT", "Missing argument 'EVENT'"),
        ("EMIT event --discovery http://here", "it should look like ws://"),
        ("EMIT event --timeout 0", "--timeout"),
        ("EMIT event --discovery ''", "needs a discovery_service_address"),
        ("MESH_AUTH_TOKEN=short EMIT event", "16 characters"),
    ],
)
def test_what_is_not_usable_is_refused_with_exit_code_2(shell: Shell, line: str, complaint: str) -> None:
    code, output, errors = shell.run(line)
    assert (code, output) == (2, "")
    assert complaint in errors
    assert "Traceback" not in errors


def test_what_cannot_be_delivered_is_exit_code_1_and_says_why(shell: Shell) -> None:
    code, output, errors = shell.run("EMIT event 1 --timeout 0.5", discovery="ws://127.0.0.1:1")
    assert (code, output) == (1, "")
    assert "1 message may be lost" in errors
    assert "Connection refused" in errors
    assert "Traceback" not in errors


def test_what_is_too_large_is_exit_code_1(shell: Shell) -> None:
    code, _, errors = shell.run("""head -c 20000000 /dev/zero | tr '\\0' x | EMIT large --text -""")
    assert code == 1
    assert "more than the limit" in errors
