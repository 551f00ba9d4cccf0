"""The example of a script outside of the servers, as people start it."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from examples_flask.external_emitter import __main__ as external_emitter
from tests.integration.clients import Client
from tests.integration.programs import gone, running, until

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples_flask" / "external_emitter"


def steps(client: Client, rounds: int = 1) -> dict[str, list[str]]:
    """What each job has said."""
    said: dict[str, list[str]] = {}
    for (message,) in client.wait_for("said", count=9 * rounds, seconds=30):
        said.setdefault(message["nickname"], []).append(message["text"])
    return said


def member_of(url: str, room: str) -> Client:
    client = Client(url)
    assert "error" not in client.call("join", {"nickname": "tester", "room": room})
    return client


def test_all_of_it_with_one_command(clients: list[Client]) -> None:
    with running([sys.executable, "-m", "gevent_mesh_examples.external_emitter", "--port", "0"]) as program:
        program.wait_for(r"(?s)lobby.*lobby.*http://\S+ \(process \d+\)\n")
        clients += [member_of(url, "lobby") for url in re.findall(r"http://[\d.:]+", program.output)]
        assert len(clients) == 2
        for client in clients:
            # The first round may have begun before we came.
            said = steps(client, 2)
            assert set(said) == {"job 1", "job 2", "job 3"}
            assert "step 3 of 3 is done" in said["job 1"]
        children = psutil.Process(program.process.pid).children(recursive=True)
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
        assert gone(children)


def test_the_worker_by_hand(clients: list[Client]) -> None:
    discovery_command = [sys.executable, "-m", "gevent_mesh_discovery", "--host", "127.0.0.1", "--port", "0"]
    with running(discovery_command) as discovery:
        url = discovery.wait_for(r"listening on (ws://[\d.:]+)")
        chat = [sys.executable, "-m", "gevent_mesh_examples.chat", "--port", "0", "--discovery", url]
        with running(chat) as one, running(chat) as two:
            pages: list[Any] = [server.wait_for(r"listening on (http://[\d.:]+)") for server in (one, two)]
            clients += [member_of(page, "workshop") for page in pages]
            worker = [sys.executable, str(EXAMPLE / "worker.py"), "--room", "workshop", "--seconds", "0.05"]
            with running([*worker, "--discovery", url]) as program:
                assert program.wait() == 0
                assert "every server has been told" in program.output
            for client in clients:
                expected = [f"step {step} of 3 is done" for step in (1, 2, 3)]
                assert steps(client) == {f"job {number}": expected for number in (1, 2, 3)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_while_it_starts(number: int) -> None:
    with running([sys.executable, "-m", "gevent_mesh_examples.external_emitter", "--port", "0"]) as program:
        starting = psutil.Process(program.process.pid)
        until(starting.children)
        children = starting.children(recursive=True)
        program.process.send_signal(number)
        assert program.wait() == 0
        assert program.output == ""
        assert gone(children)


def test_a_worker_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(external_emitter, "WORK_SECONDS", 0.01)
    external_emitter.work("ws://127.0.0.1:1")
    assert "the worker was not done within" in capfd.readouterr().err
