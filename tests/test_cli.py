"""The command line: what it says, and how it refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial

import pytest
from click.testing import CliRunner

from gevent_mesh.cli import main
from gevent_mesh.demo import commands, processes


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_help_shows_the_commands_with_examples() -> None:
    code, output = run("--help")
    assert code == 0
    assert "demo" in output
    assert "gevent-mesh demo --check" in output


def test_help_of_demo_names_every_option() -> None:
    code, output = run("demo", "--help")
    assert code == 0
    for word in ("--nodes", "--port", "--check", "gevent-mesh demo --nodes 5 --port 8080"):
        assert word in output


def test_help_of_emit_names_every_option() -> None:
    code, output = run("emit", "--help")
    assert code == 0
    for word in ("--room", "--except", "--namespace", "--discovery", "--channel", "--timeout", "--text", "tail -f"):
        assert word in output


def test_version_is_that_of_the_package() -> None:
    code, output = run("--version")
    assert code == 0
    assert output.startswith("gevent-mesh ")
    assert output.strip().endswith("0.1.0")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("demo", "--nodes", "0"), "--nodes"),
        (("demo", "--nodes", "many"), "--nodes"),
        (("demo", "--port", "65536"), "--port"),
        (("demo", "--check", "--nodes", "1"), "at least --nodes 2"),
        (("emit",), "EVENT"),
        (("emit", "event", "hello", "--discovery", "ws://127.0.0.1:1"), "is not JSON"),
        (("dmeo",), "dmeo"),
    ],
)
def test_nonsense_is_refused_with_exit_code_2(arguments: tuple[str, ...], complaint: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert complaint in output


def test_port_in_use_is_one_clear_line_and_exit_code_2(taken_port: int) -> None:
    code, output = run("demo", "--port", str(taken_port))
    assert code == 2
    assert output.count("\n") == 1
    assert f"Port {taken_port} cannot be used" in output
    assert "--port 0" in output


def test_ports_beyond_the_last_are_refused() -> None:
    code, output = run("demo", "--port", "65535", "--nodes", "2")
    assert code == 2
    assert "smaller --port" in output


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None if name == "flask_socketio" else object())
    code, output = run("demo", "--port", "0")
    assert code == 2
    assert "flask_socketio" in output
    assert "pip install 'gevent-mesh[demo]'" in output


@pytest.mark.parametrize(
    ("arguments", "called", "with_port"),
    [
        (("demo",), "run_demo", 5000),
        (("demo", "--port", "0"), "run_demo", 0),
        (("demo", "--check"), "run_check", 0),
        (("demo", "--check", "--port", "7000"), "run_check", 7000),
    ],
)
def test_check_takes_free_ports_and_the_demo_takes_5000(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], called: str, with_port: int
) -> None:
    calls: list[tuple[str, int, int]] = []

    def remember(name: str, nodes: int, port: int) -> int:
        calls.append((name, nodes, port))
        return 0

    for name in ("run_demo", "run_check"):
        monkeypatch.setattr(commands, name, partial(remember, name))
    code, _ = run(*arguments)
    assert code == 0
    assert calls == [(called, 3, with_port)]
