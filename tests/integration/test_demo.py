"""`gevent-mesh demo` as a newcomer starts it: real processes, and none of them left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from gevent_mesh.demo.processes import Child, DemoError
from tests.integration.programs import SECONDS, Program, gone, running, until

pytestmark = pytest.mark.integration


def demo(*arguments: str, **variables: str) -> AbstractContextManager[Program]:
    return running([sys.executable, "-m", "gevent_mesh.cli", "demo", *arguments], **variables)


def children_of(program: Program) -> dict[str, psutil.Process]:
    """By name. Discovery is started first, then the servers, one after the other."""
    children = sorted(
        psutil.Process(program.process.pid).children(), key=lambda child: (child.create_time(), child.pid)
    )
    names = ["discovery", *(f"server-{number}" for number in range(1, len(children)))]
    return dict(zip(names, children, strict=True))


@pytest.mark.timeout(90)
def test_check_proves_everything_within_a_minute() -> None:
    started = time.monotonic()
    # What a user has set up for servers of their own must not leak into the demo.
    with demo("--check", "--nodes", "3", MESH_DISCOVERY="ws://127.0.0.1:1", MESH_AUTH_TOKEN="x" * 20) as program:
        code = program.wait(60)
        assert code == 0, program.output
    assert time.monotonic() - started < 60
    checks = ("rooms", "callback", "call()", "skip_sid", "bytes", "order of 100", "disconnect", "broadcast", "chat")
    assert [name for name in checks if name not in program.output] == []
    for number in (1, 2, 3):
        assert f"server-{number} → server-" in program.output
    assert "FAILED" not in program.output
    assert "all ok" in program.output


@pytest.mark.timeout(90)
def test_check_fails_when_a_server_dies() -> None:
    with demo("--check", "--nodes", "4") as program:
        program.wait_for("found each other")
        victim = children_of(program)["server-3"]
        victim.kill()
        assert program.wait(60) == 1
        assert f"server-3 (pid {victim.pid}) was killed by SIGKILL" in program.output
        assert "all ok" not in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process(number: int) -> None:
    with demo("--nodes", "2", "--port", "0") as program:
        program.wait_for(r"server-2\s+http://127\.0\.0\.1:\d+")
        children = children_of(program)
        assert children.keys() == {"discovery", "server-1", "server-2"}
        program.process.send_signal(number)
        assert program.wait() == 0, program.output
        assert gone(children.values())
        assert "Traceback" not in program.output


def test_live_line_shows_the_links() -> None:
    with demo("--nodes", "2", "--port", "0") as program:
        program.wait_for(r"servers 2/2 · links \d/1 · clients 0")


def test_a_child_that_dies_is_reported_with_its_log_and_not_started_again() -> None:
    with demo("--nodes", "2", "--port", "0") as program:
        program.wait_for(r"server-2\s+http://")
        victim = children_of(program)["server-1"]
        victim.kill()
        program.wait_for(rf"!! server-1 \(pid {victim.pid}\) was killed by SIGKILL\.\n +chat server server-1 listening")
        program.wait_for("It is not started again")
        assert len(children_of(program)) == 2
        program.process.terminate()
        assert program.wait() == 1


def test_no_server_left_ends_the_demo() -> None:
    with demo("--nodes", "1", "--port", "0") as program:
        program.wait_for(r"server-1\s+http://")
        children_of(program)["server-1"].kill()
        assert program.wait() == 1
        assert "No server is left" in program.output


def test_killed_parent_leaves_no_orphan() -> None:
    with demo("--nodes", "2", "--port", "0") as program:
        program.wait_for(r"server-2\s+http://")
        children = children_of(program)
        program.process.kill()
        program.wait()
        until(lambda: gone(children.values()))


def test_stopped_child_is_killed_at_the_end() -> None:
    with demo("--nodes", "1", "--port", "0") as program:
        program.wait_for(r"server-1\s+http://")
        children = children_of(program)
        children["server-1"].suspend()
        program.process.terminate()
        assert program.wait() == 0, program.output
        assert gone(children.values())


def fake(tmp_path: Path, source: str) -> Child:
    (tmp_path / "a_fake_server.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    return Child("fake", "a_fake_server", r"listening on (\S+)", [], environment)


def test_child_that_fails_to_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = fake(tmp_path, "print('first words')\nraise SystemExit('no way')")
    with pytest.raises(DemoError, match=r"fake \(pid \d+\) has ended with exit code 1") as failure:
        child.wait_until_ready(SECONDS)
    assert "    first words\n    no way" in str(failure.value)
    assert failure.value.exit_code == 1
    child.end(1)


def test_child_that_says_nothing_is_not_waited_for_forever(tmp_path: Path) -> None:
    child = fake(tmp_path, "import time\ntime.sleep(60)")
    with pytest.raises(DemoError, match="was not ready within 1 s"):
        child.wait_until_ready(1)
    child.ask_to_end()
    child.end(5)
    assert not child.running
