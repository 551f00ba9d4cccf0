"""The documentation's own code: every Python snippet is run, and does what its page says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from socketio.exceptions import ConnectionError

from gevent_mesh.net.dialer import dial
from gevent_mesh.net.listener import Listener
from gevent_mesh.net.transport import Transport
from gevent_mesh.tls import Tls
from tests.browser import connect
from tests.integration.clients import Client
from tests.integration.nodejs_peer import NodejsPeer
from tests.integration.page import python_of
from tests.integration.processes import ROOT, Discovery, Fleet, Page, linked
from tests.protocol.recorded import cluster_message
from tests.support import eventually

pytestmark = pytest.mark.integration

RUN = {
    "README.md",
    "docs/clients.md",
    "docs/cluster.md",
    "docs/emitters.md",
    "docs/health.md",
    "docs/nodejs.md",
    "docs/presence.md",
    "docs/tls.md",
}
"""The pages with Python: each is run by a test of this module, README.md by `test_gunicorn`."""


def test_every_page_with_python_is_run_by_a_test() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples_flask").glob("*/*.md")]
    with_python = {str(page.relative_to(ROOT)) for page in pages if "```python" in page.read_text("utf-8")}
    assert with_python == RUN


@pytest.mark.parametrize("page", sorted(RUN))
def test_python_of_pages_can_be_read(page: str) -> None:
    compile(python_of(ROOT / page), page, "exec")


def ask(page: Page, path: str, method: str = "GET") -> Any:
    """An HTTP request; the JSON that comes back, if any."""
    with urlopen(Request(page.url + path, method=method), timeout=20) as answer:
        body = answer.read()
    return json.loads(body) if body else None


@pytest.fixture
def discovery(ships: Fleet) -> Discovery:
    return ships.discovery()


@pytest.fixture
def pages(ships: Fleet, discovery: Discovery, request: Any) -> list[Page]:
    """The page that a test names in its parameter, served by two nodes that are linked."""
    pages = [ships.page(request.param, discovery) for _ in "ab"]
    for page in pages:
        assert page.do("socketio.server.manager.wait_for_peers(1)")
    return pages


def vote(event: str, *arguments: Any) -> Any:
    return f"yes to {arguments[0]}" if event == "vote" else None


@pytest.mark.parametrize("pages", ["docs/clients.md"], indirect=True)
def test_limits_of_clients(pages: list[Page]) -> None:
    page, _ = pages
    with connect(page.http_port, socket) as slow, connect(page.http_port, socket) as large:
        slow.open()
        page.do("[socketio.emit('news', 'x' * 10_000) for _ in range(2000)] and None")
        eventually(lambda: ask(page, "/cut") == {"slow": 1, "refused": 0})
        assert page.do("reasons") in (["slow consumer"], [None])
        large.open()
        large.send("4" + "x" * 100_000)
        assert large.close_code() == 1009
        eventually(lambda: ask(page, "/cut") == {"slow": 1, "refused": 1})
    page.do("gc.collect()")
    assert page.do("gc.get_freeze_count()") > 10_000


@pytest.mark.parametrize("pages", ["docs/cluster.md"], indirect=True)
class TestCluster:
    @pytest.fixture
    def members(self, pages: list[Page], clients: list[Client]) -> list[Client]:
        """A client of each node."""
        clients += [Client(page.url, answer=vote) for page in pages]
        return clients

    def test_who_is_there(self, pages: list[Page], members: list[Client]) -> None:
        members[1].enter("lobby")
        for page in pages:
            told = ask(page, "/clients")
            assert {client["sid"] for client in told["clients"]} == {client.sid for client in members}
            assert {client["node"] for client in told["clients"]} == {page.do("mesh.uid") for page in pages}
            assert told["missing"] == []
            (one,) = ask(page, "/clients?room=lobby")["clients"]
            assert (one["sid"], set(one["rooms"]), one["from"]) == (
                members[1].sid, {members[1].sid, "lobby"}, "127.0.0.1",
            )  # fmt: skip
            assert ask(page, "/counts") == {"clients": 2, "rooms": {"lobby": 1}}
            assert ask(page, "/complete") == 2

    def test_sockets_can_be_used(self, pages: list[Page], members: list[Client]) -> None:
        for client in members:
            client.enter("trial")
        ask(pages[0], "/warn", "POST")
        for client in members:
            assert client.wait_for("warning") == [({"name": None},)]
        eventually(lambda: ask(pages[1], "/counts")["rooms"] == {"warned": 2})
        ask(pages[1], "/close", "POST")
        for client in members:
            client.wait_for("(disconnected)")

    def test_many_at_once(self, pages: list[Page], members: list[Client]) -> None:
        for client in members:
            client.enter("a")
        members[0].enter("admins")
        assert ask(pages[0], "/merge", "POST") == {"moved": 2, "missing": []}
        assert ask(pages[0], "/counts")["rooms"] == {"b": 2, "admins": 1}
        ask(pages[0], "/maintenance", "POST")
        members[1].wait_for("(disconnected)")
        assert ask(pages[0], "/counts")["clients"] == 1

    def test_between_servers(self, pages: list[Page]) -> None:
        other = pages[1].do("mesh.uid")
        assert ask(pages[0], "/theme/dark", "POST") == {"answers": {other: 1}, "missing": [], "errors": {}}
        assert [page.do("settings") for page in pages] == [{"theme": "dark"}] * 2
        ask(pages[0], "/reset", "POST")
        eventually(lambda: pages[1].do("settings") == {"theme": "light"})

    def test_acknowledgements(self, pages: list[Page], members: list[Client]) -> None:
        for client in members:
            client.enter("voters")
        assert ask(pages[0], "/vote/tea", "POST") == {"votes": ["yes to tea"] * 2, "asked": 2, "answered": 2}
        ask(pages[1], "/ask/milk", "POST")
        eventually(lambda: pages[1].output.count("one says yes to milk") == 2)


@pytest.mark.parametrize("pages", ["docs/presence.md"], indirect=True)
def test_who_is_online(pages: list[Page], clients: list[Client]) -> None:
    one, other = pages
    clients += [
        Client(one.url, auth={"user": "ada", "name": "Ada"}),
        Client(other.url, auth={"user": 7, "name": "Bob"}),
        Client(other.url, auth={"user": "ada", "name": "Ada"}),
    ]
    ada, bob, more_of_ada = clients
    for page in pages:
        eventually(lambda page=page: page.do("sum(len(user.sids) for user in presence.users().values())") == 3)  # type: ignore[misc]  # bound now
        assert page.do("friends_online(['ada', 'eve', 7])") == ["ada", 7]
        assert page.do("everybody()[1]") == 2
        assert page.do("where_is('ada')['sids']") == [ada.sid, more_of_ada.sid]
        assert page.do("where_is('ada')['nodes']") == [one.do("mesh.uid"), other.do("mesh.uid")]
        assert page.do("where_is('eve')") is None
    with pytest.raises(ConnectionError):
        Client(one.url)
    bob.io.emit("mood", "fine")
    eventually(lambda: one.do("presence.get(7).meta") == {"name": "Bob", "mood": "fine"})
    more_of_ada.close()
    eventually(lambda: ({"id": "ada", "tabs": 1},) in ada.received("updated"))
    bob.io.emit("log out")
    ada.wait_for("offline")
    # From its own node, and from no other one.
    assert ada.received("online").count(({"id": 7, "name": "Bob"},)) == 1
    assert ada.received("offline") == [({"id": 7},)]


@pytest.mark.parametrize("pages", ["docs/health.md"], indirect=True)
def test_health(pages: list[Page]) -> None:
    for page in pages:
        eventually(lambda page=page: page.do("mesh.health().is_ready"))  # type: ignore[misc]  # bound now
        assert ask(page, "/readyz")["links_up"] == 1
        assert ask(page, "/healthz")["reasons"] == []


def test_emitters(ships: Fleet, discovery: Discovery, clients: list[Client]) -> None:
    nodes = ships.nodes(2, discovery)
    linked(nodes)
    clients += [Client(node.url, answer=lambda *_: "yes") for node in nodes]
    for client in clients:
        client.enter("readers")
    command = [sys.executable, "-m", "tests.integration.page", str(ROOT / "docs/emitters.md")]
    page = ships.program("page", command, MESH_DISCOVERY=discovery.url)
    assert page.wait(20) == 0, page.tail()
    for client in clients:
        assert client.sid in page.output
        assert client.wait_for("vote") == [("tea",)]
    assert "at least" not in page.output
    for client in clients:
        assert client.wait_for("news") == [({"text": "from outside"},)]
        assert client.wait_for("picture") == [(b"\x89PNG...",)]
        assert client.wait_for("last words") == [(1,)]
        assert client.wait_for("question") == [("Tea?",)]


@pytest.mark.parametrize("pages", ["docs/nodejs.md"], indirect=True)
def test_node_servers(pages: list[Page], clients: list[Client], discovery: Discovery) -> None:
    clients += [Client(page.url) for page in pages]
    peer = NodejsPeer(discovery.url, "f" * 16)
    peer.sockets = cluster_message("mesh/FETCH_SOCKETS_RESPONSE", "fetch-all")["data"]["sockets"]
    for page in pages:
        eventually(lambda page=page: ask(page, "/servers")["servers"] == 3)  # type: ignore[misc]  # bound now
        assert ask(page, "/servers") == {"servers": 3, "clients": 2 + len(peer.sockets)}
    peer.leave()
    for page in pages:
        eventually(lambda page=page: ask(page, "/servers") == {"servers": 2, "clients": 2})  # type: ignore[misc]  # bound now
    assert peer.faults == []


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificates that the page makes serve its own contexts, for the name that it makes them for."""
    page = ROOT / "docs/tls.md"
    (lines,) = [
        block for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL) if "openssl" in block
    ]
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {}
    exec(compile(python_of(page), page, "exec"), program)
    served: list[Transport] = []
    listener = Listener(
        "127.0.0.1",
        0,
        on_websocket=lambda transport, _ticket: served.append(transport),
        require_mesh_header=True,
        tls=program["mesh"].config.tls,
    )
    listener.start()
    tls = Tls.from_files("tls.crt", "tls.key", "ca.crt", name="node-1.example.com")
    dial(f"wss://127.0.0.1:{listener.port}", tls=tls, is_peer=True).abort()
    listener.stop()
    assert tls.name_problem(served[0].certificate, "wss://10.0.0.5:4000") == ""


def test_pages_are_named_by_their_links() -> None:
    """No page of the documentation points to one that is not there."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples_flask").glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (Path(page).parent / target).exists(), f"{page.name} points to {target}"
