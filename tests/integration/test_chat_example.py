"""The chat example as people start it: real processes, python-socketio's own client as the page."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gevent_mesh.demo.check import Client
from tests.integration.programs import SECONDS, Program, running, until

pytestmark = pytest.mark.integration

CHAT = Path(__file__).resolve().parent.parent.parent / "examples_flask" / "chat"


def chat_server(*arguments: str, **variables: str) -> AbstractContextManager[Program]:
    return running([sys.executable, str(CHAT / "app.py"), "--port", "0", *arguments], **variables)


def url_of(program: Program) -> str:
    return program.wait_for(r"[Ll]istening (?:on|at:) (\w+://[\d.:]+)")


@contextmanager
def page(url: str) -> Iterator[Client]:
    """What the JavaScript of the page does, as far as the server can tell."""
    client = Client(url, url, "/")
    try:
        yield client
    finally:
        client.close()


def join(client: Client, nickname: Any, room: Any = "lobby") -> dict[str, Any]:
    answer: dict[str, Any] = client.call("join", {"nickname": nickname, "room": room})
    return answer


def get(url: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def mesh(url: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(get(f"{url}/mesh")[2])
    return state


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with chat_server("--name", "alone") as program:
        yield url_of(program)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    """Two servers that share a discovery service."""
    command = [sys.executable, "-m", "gevent_mesh_discovery", "--host", "127.0.0.1", "--port", "0"]
    with running(command) as discovery:
        options = ["--discovery", url_of(discovery), "--name"]
        with chat_server(*options, "one") as one, chat_server(*options, "two") as two:
            urls = [url_of(one), url_of(two)]
            until(lambda: all([peer["state"] for peer in mesh(url)["peers"]] == ["alive"] for url in urls))
            yield urls


def test_page_and_its_files_are_served_with_a_strict_policy(server: str) -> None:
    status, headers, body = get(server + "/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    text = body.decode()
    assert "onclick" not in text
    assert "<script>" not in text
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', text):
        assert get(server + path)[0] == 200, path


def test_page_takes_the_bundled_client_or_the_public_one(server: str) -> None:
    text = get(server + "/")[2].decode()
    if (CHAT / "static" / "vendor" / "socket.io.min.js").exists():
        assert "/static/vendor/socket.io.min.js" in text
    else:
        assert re.search(r'src="https://cdn\.socket\.io/4\.\d+\.\d+/socket\.io\.min\.js" crossorigin', text)


def test_mesh_shows_this_node_and_no_addresses(server: str) -> None:
    with page(server) as ada:
        join(ada, "Ada")
        state = mesh(server)
    assert re.fullmatch("[0-9a-f]{16}", state["node"])
    assert (state["server"], state["clients"], state["peers"]) == ("alone", 1, [])


def test_people_of_a_room_hear_each_other_and_nobody_else_does(server: str) -> None:
    with page(server) as ada, page(server) as bob, page(server) as eve:
        join(ada, "Ada", "a room")
        join(bob, "Bob", "a room")
        join(eve, "Eve", "another room")
        assert ada.call("say", "hello") == {}
        said = bob.wait_for("said")
        assert (said["text"], said["nickname"], said["server"]) == ("hello", "Ada", "alone")
        eve.call("say", "a marker")
        eve.wait_for("said", lambda message: message["text"] == "a marker")
        assert [message["text"] for message in eve.received("said")] == ["a marker"]


def test_leaving_a_room_ends_its_messages(server: str) -> None:
    with page(server) as ada, page(server) as bob:
        join(ada, "Ada", "first")
        join(bob, "Bob", "first")
        join(bob, "Bob", "second")
        ada.call("say", "to the first room")
        bob.call("say", "to the second room")
        bob.wait_for("said", lambda message: message["room"] == "second")
        assert [message["room"] for message in bob.received("said")] == ["second"]


@pytest.mark.parametrize("nickname", ["", "   ", None, 7, "x" * 25, "\u202e"])
def test_bad_nicknames_are_refused(server: str, nickname: Any) -> None:
    with page(server) as someone:
        assert "error" in join(someone, nickname)
        assert "error" in someone.call("say", "hello")


@pytest.mark.parametrize("room", ["", ["lobby"], "r" * 25, "\x00\x07"])
def test_bad_rooms_are_refused(server: str, room: Any) -> None:
    with page(server) as someone:
        assert "error" in join(someone, "Ada", room)
        assert "error" in someone.call("say", "hello")


@pytest.mark.parametrize("text", ["", " \n ", None, 5, {"html": "<b>"}, "x" * 1001, "x" * 50_000])
def test_bad_texts_are_refused(server: str, text: Any) -> None:
    with page(server) as ada:
        join(ada, "Ada")
        assert "error" in ada.call("say", text)


def test_odd_events_do_no_harm(server: str) -> None:
    with page(server) as ada:
        odd: list[tuple[Any, ...]] = [(), (None,), ("text",), ({}, {}, {})]
        for arguments in odd:
            assert "error" in ada.call("join", *arguments)
        join(ada, "Ada", "lobby")
        ada.call("roll call", "with", "arguments")
        assert ada.call("say", "still here", "with more") == {}


def test_text_is_cleaned_but_not_changed_otherwise(server: str) -> None:
    with page(server) as ada:
        join(ada, "  Ada \t Lovelace\n", "lobby")
        ada.call("say", "\u202e<b>bold</b> & \x00größe 👩‍🚀\nsecond\u0007 line \ud800")
        said = ada.wait_for("said")
        assert said["nickname"] == "Ada Lovelace"
        assert said["text"] == "<b>bold</b> & größe 👩‍🚀\nsecond line"


def test_a_flood_is_refused(server: str) -> None:
    with page(server) as ada:
        join(ada, "Ada")
        answers = [ada.call("say", f"message {number}") for number in range(30)]
        assert answers[0] == {}
        assert "fast" in answers[-1]["error"]


def test_a_room_named_like_a_client_is_not_that_client(server: str) -> None:
    with page(server) as ada, page(server) as eve:
        sid = join(ada, "Ada", "private")["id"]
        join(eve, "Eve", sid[:24])
        ada.call("say", "for the private room")
        eve.call("say", "a marker")
        eve.wait_for("said", lambda message: message["text"] == "a marker")
        assert len(eve.received("said")) == 1


def test_messages_cross_servers_and_show_their_origin(servers: list[str]) -> None:
    with page(servers[0]) as ada, page(servers[1]) as bob:
        join(ada, "Ada", "crossing")
        join(bob, "Bob", "crossing")
        ada.call("say", "hello over there")
        said = bob.wait_for("said")
        assert (said["text"], said["server"], said["node"]) == ("hello over there", "one", mesh(servers[0])["node"])
        assert 0 <= time.time() - said["sentAt"] < SECONDS
        bob.call("say", "hello back")
        assert ada.wait_for("said", lambda message: message["nickname"] == "Bob")["server"] == "two"


def announces(wanted: dict[str, list[str]], here: dict[str, Any]) -> bool:
    return {here["server"]: [person["nickname"] for person in here["people"]]} == wanted


def test_every_page_learns_who_is_on_which_server(servers: list[str]) -> None:
    with page(servers[0]) as ada, page(servers[1]) as bob:
        join(ada, "Ada", "people")
        join(bob, "Bob", "people")
        for one in (ada, bob):
            for here in ({"one": ["Ada"]}, {"two": ["Bob"]}):
                one.wait_for("people", partial(announces, here))
        bob.close()
        ada.wait_for("people", lambda here: here["server"] == "two" and here["total"] == 0)


def test_a_newcomer_learns_of_those_who_were_there_by_a_roll_call(servers: list[str]) -> None:
    with page(servers[0]) as ada:
        join(ada, "Ada", "roll call")
        with page(servers[1]) as bob:
            join(bob, "Bob", "roll call")
            ada.wait_for("roll call")
            ada.call("roll call")
            asked = time.monotonic()
            bob.wait_for("people", lambda here: here["server"] == "one")
            # Without it, the announcement that comes every four seconds would have been the first.
            assert time.monotonic() - asked < 3


def test_servers_say_their_names_to_pages_in_any_room(servers: list[str]) -> None:
    with page(servers[0]) as ada:
        ada.wait_for("server", lambda announced: announced["server"] == "two")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int) -> None:
    with chat_server() as program, page(url_of(program)):
        program.process.send_signal(number)
        assert program.wait() == 0
        assert "Traceback" not in program.output


def test_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = str(listener.getsockname()[1])
        with chat_server("--port", taken) as program:
            assert program.wait() == 2
            (problem,) = program.output.splitlines()
            assert taken in problem


def test_settings_come_from_the_environment_as_well() -> None:
    command = [sys.executable, "-m", "gevent_mesh_examples.chat"]
    with running(command, PORT="0", CHAT_NAME="by variable") as program:
        assert mesh(url_of(program))["server"] == "by variable"


def test_it_runs_under_gunicorn() -> None:
    pytest.importorskip("gunicorn")
    worker = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
    options = ["-k", worker, "-w", "1", "-b", "127.0.0.1:0", "--graceful-timeout", "1"]
    command = [sys.executable, "-m", "gunicorn", *options, "gevent_mesh_examples.chat.app:app"]
    with running(command, CHAT_NAME="gunicorn") as program, page(url_of(program)) as ada:
        assert join(ada, "Ada")["server"] == "gunicorn"
        ada.call("say", "hello")
        ada.wait_for("said")
