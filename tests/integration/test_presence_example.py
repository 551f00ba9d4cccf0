"""The presence example as people start it: real processes, python-socketio's own client as the page."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import socketio

from tests.integration.clients import Client
from tests.integration.programs import SECONDS, Program, gone, running, until

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples_flask" / "presence"


def server(*arguments: str) -> Any:
    return running([sys.executable, str(EXAMPLE / "app.py"), "--port", "0", *arguments])


def url_of(program: Program) -> str:
    return program.wait_for(r"listening on (\w+://[\d.:]+)")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def online(url: str) -> dict[str, dict[str, int]]:
    """How many tabs everybody has on each server, as one server knows it."""
    return {person["name"]: person["tabs"] for person in json.loads(get(f"{url}/online"))["people"]}


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Program]]:
    """Two servers that share a discovery service."""
    command = [sys.executable, "-m", "gevent_mesh_discovery", "--host", "127.0.0.1", "--port", "0"]
    with running(command) as discovery:
        options = ["--discovery", url_of(discovery)]
        with server(*options) as one, server(*options) as two:
            first = Client(url_of(one), auth={"name": "first"})
            until(lambda: "first" in online(url_of(two)))
            first.close()
            until(lambda: not online(url_of(one)) and not online(url_of(two)))
            yield [one, two]


def test_page_and_its_files_are_served_with_a_strict_policy(servers: list[Program]) -> None:
    url = url_of(servers[0])
    text = get(url + "/")
    assert "<script>" not in text
    assert "onclick" not in text
    paths = re.findall(r'(?:src|href)="(/[^"]+)"', text)
    assert len(paths) >= 3
    for path in paths:
        assert get(url + path)
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_people_are_seen_from_every_server_with_all_of_their_tabs(servers: list[Program]) -> None:
    one, two = (url_of(program) for program in servers)
    ada = Client(one, auth={"name": "Ada"})
    (state,) = ada.wait_for("everybody")[0]
    assert state["you"] == "Ada"
    assert [person["name"] for person in state["people"]] == ["Ada"]
    bob = Client(two, auth={"name": "Bob"})
    also_ada = Client(two, auth={"name": "Ada"})
    other = bob.wait_for("everybody")[0][0]["server"]
    tabs = {"Ada": {state["server"]: 1, other: 1}, "Bob": {other: 1}}
    until(lambda: online(one) == tabs == online(two))
    until(lambda: ada.received("present")[-1][0]["name"] in tabs)
    ada.close()
    until(lambda: online(one)["Ada"] == {other: 1})
    assert bob.received("absent") == []
    also_ada.close()
    bob.wait_for("absent")
    assert bob.received("absent") == [("Ada",)]
    bob.close()
    until(lambda: not online(one) and not online(two))


def test_each_page_hears_of_each_change_once(servers: list[Program]) -> None:
    one, two = (url_of(program) for program in servers)
    ada, bob = Client(one, auth={"name": "Ada"}), Client(two, auth={"name": "Bob"})
    until(lambda: ("Bob", "here") in moods(ada))
    assert bob.call("mood", "busy") == {}
    until(lambda: ("Bob", "busy") in moods(ada))
    bob.close()
    ada.wait_for("absent")
    assert moods(ada).count(("Bob", "here")) == 1
    assert moods(ada).count(("Bob", "busy")) == 1
    assert ada.received("absent") == [("Bob",)]
    ada.close()


def moods(page: Client) -> list[tuple[str, str]]:
    return [(person["name"], person["mood"]) for (person,) in page.received("present")]


@pytest.mark.parametrize("auth", [None, {}, {"name": ""}, {"name": "x" * 25}, {"name": 7}, {"name": "\u202e"}, "Ada"])
def test_who_has_no_name_is_refused_and_is_not_online(servers: list[Program], auth: Any) -> None:
    url = url_of(servers[0])
    with pytest.raises(socketio.exceptions.ConnectionError):
        Client(url, auth=auth)
    assert online(url) == {}


@pytest.mark.parametrize("wish", [None, "elated", 1, ["here"], {}, "here" * 1000])
def test_other_moods_are_refused(servers: list[Program], wish: Any) -> None:
    page = Client(url_of(servers[0]), auth={"name": "Ada"})
    assert "error" in page.call("mood", wish)
    page.close()


def test_a_flood_of_moods_is_refused(servers: list[Program]) -> None:
    page = Client(url_of(servers[0]), auth={"name": "Ada"})
    answers = [page.call("mood", ("busy", "away")[number % 2]) for number in range(20)]
    assert answers[0] == {}
    assert "fast" in answers[-1]["error"]
    page.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int) -> None:
    with server() as program:
        page = Client(url_of(program), auth={"name": "Ada"})
        program.process.send_signal(number)
        assert program.wait() == 0
        assert "Traceback" not in program.output
        page.close()


def test_one_command_starts_all_and_ends_all() -> None:
    with running(
        [sys.executable, "-m", "gevent_mesh_examples.presence.several", "--servers", "2", "--port", "0"]
    ) as program:
        program.wait_for(r"(?s)online: \S+.*online: \S+ \(process \d+\)")
        one, two = re.findall(r"online: (\S+)", program.output)
        children = psutil.Process(program.process.pid).children(recursive=True)
        assert {int(pid) for pid in re.findall(r"process (\d+)", program.output)} < {child.pid for child in children}
        page = Client(one, auth={"name": "Ada"})
        until(lambda: "Ada" in online(two))
        page.close()
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 0
    assert len(children) == 3
    assert gone(children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_while_it_starts(number: int) -> None:
    with running([sys.executable, "-m", "gevent_mesh_examples.presence.several", "--port", "0"]) as program:
        starting = psutil.Process(program.process.pid)
        until(starting.children)
        children = starting.children(recursive=True)
        program.process.send_signal(number)
        assert program.wait() == 0
        assert program.output == ""
        assert gone(children)
