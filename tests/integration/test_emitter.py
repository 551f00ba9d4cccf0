"""Emitters as real processes: whatever becomes of nodes, every event arrives once."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gevent
import pytest

from tests.integration.clients import Client, clients_closed
from tests.integration.nodejs_peer import NodejsPeer
from tests.integration.processes import Discovery, Fleet, Node, Process, fleet, linked
from tests.support import eventually

QUICK: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2.0}

pytestmark = pytest.mark.integration


def last_report(emitter: Process) -> dict[str, Any]:
    """What the program has printed last (see `tests.integration.emitting`)."""
    reports = [line for line in emitter.output.split("\n")[:-1] if line.startswith('{"relay"')]
    found: dict[str, Any] = json.loads(reports[-1]) if reports else {"relay": [], "returned": {}, "total": 0}
    return found


def start_emitting(ships: Fleet, discovery: Discovery, *flags: str, **options: Any) -> Process:
    command = [sys.executable, "-m", "tests.integration.emitting", json.dumps({"discovery": discovery.url, **options})]
    return ships.program("emitting", [*command, *flags])


class TestKilledNodes:
    @pytest.mark.parametrize("flags", [(), ("--patched",)], ids=["plain threads", "monkey-patched"])
    def test_every_event_arrives_once_while_its_node_is_killed_twice(
        self, ships: Fleet, clients: list[Client], flags: tuple[str, ...]
    ) -> None:
        discovery = ships.discovery()
        nodes = ships.nodes(4, discovery, **QUICK)
        linked(nodes)
        clients += [Client(node.url) for node in nodes]
        client_of = dict(zip([node.uid for node in nodes], clients, strict=True))
        threads, count = 8, 1250
        emitter = start_emitting(ships, discovery, *flags, threads=threads, count=count)
        living = {node.uid: node for node in nodes}
        for after in (2000, 5000):
            relay = eventually(
                lambda after=after: relay_past(emitter, after, living),  # type: ignore[misc]  # bound now
                20,
            )
            assert relay is not None
            living.pop(relay).kill()
        emitter.wait_for(r"^done$", 60)
        outcome = json.loads(emitter.wait_for(r'^\{"flushed".*$')[0])
        assert outcome == {"flushed": True, "errors": []}
        sent = last_report(emitter)["returned"]
        assert sent == {f"thread {number}": count for number in range(threads)}
        for uid in living:
            client = client_of[uid]
            for name in sent:
                client.wait_for_number(name, count, 30)
            report = client.checker.report(sent)
            assert report.is_perfect, report
            assert report.received == threads * count


def relay_past(emitter: Process, total: int, living: dict[str, Node]) -> str | None:
    """The uid of the node that it is linked to, once it has emitted so many events."""
    report = last_report(emitter)
    relay: list[str] = report["relay"]
    return relay[0] if report["total"] >= total and relay and relay[0] in living else None


# ---------------------------------------------------------------------- programs of many kinds


@dataclass
class Mesh:
    """Two nodes with a client each, for programs that emit from outside."""

    ships: Fleet
    discovery: Discovery
    nodes: list[Node]
    clients: list[Client]

    def run(self, code: str, *, patched: bool = False, expect: int = 0, seconds: float = 30.0, **variables: str) -> str:
        """Run a program, in which `URL` is discovery's, and return what it wrote."""
        head = f"from gevent_mesh import GeventMeshManager, EmitterError\nURL = {self.discovery.url!r}\n"
        command = [sys.executable, "-c", PATCH * patched + head + textwrap.dedent(code)]
        program = self.ships.program("program", command, **variables)
        code_of_exit = program.wait(seconds)
        assert code_of_exit == expect, program.tail()
        return program.output

    def got(self, event: str, count: int) -> list[Any]:
        """What both clients got, which must be the same in the same order."""
        found = [client.wait_for(event, count=count) for client in self.clients]
        assert found[0] == found[1]
        return found[0]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with ExitStack() as stack:
        ships = stack.enter_context(fleet())
        discovery = ships.discovery()
        nodes = ships.nodes(2, discovery, **QUICK)
        linked(nodes)
        clients = stack.enter_context(clients_closed([]))
        clients += [Client(node.url, answer=lambda *arguments: arguments) for node in nodes]
        yield Mesh(ships, discovery, nodes, clients)


PATCH = "from gevent import monkey; monkey.patch_all()\n"
each_kind = pytest.mark.parametrize("patched", [False, True], ids=["plain", "monkey-patched"])


class TestEndOfTheProcess:
    @each_kind
    def test_a_script_that_ends_at_once_can_still_look_up_host_names(self, mesh: Mesh, patched: bool) -> None:
        # From Python 3.12 on a program that ends cannot start threads.
        event = f"by name {patched}"
        mesh.run(
            f"GeventMeshManager(URL.replace('127.0.0.1', 'localhost'), write_only=True).emit({event!r}, 1)",
            patched=patched,
        )
        assert mesh.got(event, 1) == [(1,)]

    @each_kind
    def test_a_script_that_ends_at_once_delivers_what_it_emitted(self, mesh: Mesh, patched: bool) -> None:
        event = f"ends at once {patched}"
        mesh.run(
            f"""
            manager = GeventMeshManager(URL, write_only=True)
            for number in range(1000):
                manager.emit({event!r}, number)
            """,
            patched=patched,
        )
        assert mesh.got(event, 1000) == [(number,) for number in range(1000)]

    def test_a_manager_that_nobody_holds_any_more_delivers_too(self, mesh: Mesh) -> None:
        mesh.run("GeventMeshManager(URL, write_only=True).emit('nobody holds it', 1)\nimport gc; gc.collect()")
        assert mesh.got("nobody holds it", 1) == [(1,)]

    def test_threads_that_outlive_the_main_one_deliver_too(self, mesh: Mesh) -> None:
        mesh.run(
            """
            import threading, time
            manager = GeventMeshManager(URL, write_only=True)

            def late():
                time.sleep(0.3)
                manager.emit("late thread", 1)

            manager.emit("early", 1)
            threading.Thread(target=late).start()
            """
        )
        assert mesh.got("late thread", 1) == [(1,)]

    def test_with_no_node_in_reach_it_ends_and_says_what_is_lost(self, mesh: Mesh) -> None:
        output = mesh.run(
            """
            manager = GeventMeshManager("ws://127.0.0.1:1", write_only=True)
            manager.emit("lost", 1)
            manager.emit("lost", 2)
            """,
            seconds=12,
        )
        assert "2 messages may be lost" in output
        assert "Connection refused" in output

    def test_an_unused_manager_costs_nothing(self, mesh: Mesh) -> None:
        output = mesh.run(
            """
            import os, threading
            manager = GeventMeshManager(URL, write_only=True)
            assert manager.flush() and manager.peers == [] and len(os.listdir("/proc/self/task")) == 1
            """
        )
        assert output == ""

    def test_it_may_close_and_end(self, mesh: Mesh) -> None:
        mesh.run(
            """
            manager = GeventMeshManager(URL, write_only=True)
            manager.emit("closed", 1)
            assert manager.close()
            try:
                manager.emit("closed", 2)
            except EmitterError:
                print("refused")
            import os
            assert len(os.listdir("/proc/self/task")) == 1
            """
        )
        assert mesh.got("closed", 1) == [(1,)]

    def test_sigterm_between_two_events_loses_none_with_a_handler(self, mesh: Mesh) -> None:
        mesh.run(
            """
            import os, signal, sys
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            manager = GeventMeshManager(URL, write_only=True)
            manager.emit("terminated", 1)
            os.kill(os.getpid(), signal.SIGTERM)
            """,
            expect=7,
        )
        assert mesh.got("terminated", 1) == [(1,)]


INTERRUPTED = """
import signal, sys

def at_each_line(of, handler):
    \"\"\"Call the function `of`, and a signal handler at each line of the library that it runs through.\"\"\"
    def trace(frame, kind, _argument):
        if "gevent_mesh" not in frame.f_code.co_filename:
            return None
        if kind == "line":
            handler()
        return trace

    sys.settrace(trace)
    try:
        of()
    finally:
        sys.settrace(None)
"""


class TestSignalHandlers:
    """A handler may have interrupted any line of the same thread."""

    def test_events_of_handlers_and_of_what_they_interrupt_all_arrive(self, mesh: Mesh) -> None:
        output = mesh.run(
            INTERRUPTED
            + textwrap.dedent("""
            manager = GeventMeshManager(URL, write_only=True)
            lines = 0

            def handler():
                global lines
                lines += 1
                manager.emit("by a handler", lines, callback=print if lines % 7 == 0 else None)
                if lines % 20 == 1:
                    assert manager.flush(10), f"line {lines}"

            def emit():
                manager.emit("interrupted", 1, callback=print)
                manager.flush(1)
                manager.emit("interrupted", 2)

            at_each_line(emit, handler)
            assert manager.flush(10)
            print("lines:", lines)
            """)
        )
        lines = int(output.rpartition("lines: ")[2].split()[0])
        assert lines > 50
        assert sorted(mesh.got("by a handler", lines)) == [(number,) for number in range(1, lines + 1)]
        assert mesh.got("interrupted", 2) == [(1,), (2,)]

    def test_a_handler_that_closes_hangs_nowhere_and_what_it_interrupted_is_told(self, mesh: Mesh) -> None:
        output = mesh.run(
            INTERRUPTED
            + textwrap.dedent("""
            refused = 0
            for last in range(1, 1000):
                manager = GeventMeshManager("ws://127.0.0.1:1", write_only=True)
                lines = 0

                def handler():
                    global lines
                    lines += 1
                    if lines == last:
                        manager.close(0)

                try:
                    at_each_line(lambda: manager.emit("interrupted by the end", 1), handler)
                except EmitterError:
                    refused += 1
                manager.close(0)
                if lines < last:
                    break
            print("refused:", refused, "of", last)
            """)
        )
        refused, last = map(int, output.rpartition("refused: ")[2].split()[::2])
        assert 10 < refused < last < 999

    def test_flush_in_a_handler_of_sigterm_waits_for_what_was_emitted(self, mesh: Mesh) -> None:
        output = mesh.run(
            """
            import os, signal, threading
            manager = GeventMeshManager(URL, write_only=True)

            def terminated(*_):
                print("flushed:", manager.flush(10), flush=True)
                os._exit(7)

            signal.signal(signal.SIGTERM, terminated)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            number = 0
            while True:
                number += 1
                manager.emit("until sigterm", number, room="nobody")
            """,
            expect=7,
        )
        assert "flushed: True" in output


FORKS = """
import os, threading, time
manager = GeventMeshManager(URL, write_only=True)
manager.emit("fork", ("parent", 0))
assert manager.flush()
uid, relay = manager.uid, manager.peers[0].uid
is_over, parent = threading.Event(), os.getpid()

def busy():
    number = 1
    while not is_over.is_set():
        manager.emit("fork", ("parent", number))
        number += 1
        time.sleep(0.0005)
        if os.getpid() != parent:
            # A patched thread is a greenlet, and a fork has them all.
            return
    manager.emit("fork last", number - 1)

def has_sockets():
    fds = "/proc/self/fd/"
    return any("socket:" in os.readlink(fds + fd) for fd in os.listdir(fds) if os.path.lexists(fds + fd))

thread = threading.Thread(target=busy)
thread.start()
children = []
for child in range(20):
    pid = os.fork()
    if not pid:
        assert manager.peers == [] and manager.uid != uid
        # A copy would keep the parent's connections open when it is gone.
        assert not has_sockets()
        for number in range(10):
            manager.emit("fork", (f"child {child}", number))
        if child % 2:
            assert manager.close()
            os._exit(0)
        # The main thread of the child: ends as any program does.
        raise SystemExit(0)
    children.append(pid)
    if child % 5 == 4:
        assert os.waitpid(children.pop(), 0)[1] == 0
is_over.set()
thread.join()
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
assert manager.flush() and manager.uid == uid
# Its link was not disturbed by what the children did with their copies.
assert manager.peers[0].uid == relay
"""


class TestForks:
    @each_kind
    def test_forks_emit_for_themselves_and_leave_the_parent_alone(self, mesh: Mesh, patched: bool) -> None:
        before = [len(client.received("fork")) for client in mesh.clients]
        last_before = len(mesh.clients[0].received("fork last"))
        mesh.run(FORKS, patched=patched, seconds=60)
        last = mesh.got("fork last", last_before + 1)[-1][0]
        for client, start in zip(mesh.clients, before, strict=True):
            got = client.wait_for("fork", count=start + last + 1 + 200)[start:]
            by_sender: dict[str, list[int]] = {}
            for sender, number in got:
                by_sender.setdefault(sender, []).append(number)
            assert by_sender.pop("parent") == list(range(last + 1))
            assert by_sender == {f"child {child}": list(range(10)) for child in range(20)}
        for node in mesh.nodes:
            assert "is too slow" not in node.output

    def test_multiprocessing_delivers_at_the_end_of_each_process(self, mesh: Mesh) -> None:
        mesh.run(
            """
            import multiprocessing
            manager = GeventMeshManager(URL, write_only=True)
            manager.emit("pool", -1)

            def work(number):
                manager.emit("pool", number)

            context = multiprocessing.get_context("fork")
            workers = [context.Process(target=work, args=(number,)) for number in range(5)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
                assert worker.exitcode == 0
            """
        )
        for client in mesh.clients:
            assert sorted(client.wait_for("pool", count=6)) == [(number,) for number in range(-1, 5)]


class TestQuestions:
    @each_kind
    def test_threads_and_forks_ask_for_themselves(self, mesh: Mesh, patched: bool) -> None:
        output = mesh.run(
            """
            import os, threading
            from gevent._hub_local import get_hub_if_exists
            manager = GeventMeshManager(URL, write_only=True)
            had_hub = get_hub_if_exists() is not None
            counts = []

            def ask():
                counts.append(manager.count_sockets())

            ask()
            threads = [threading.Thread(target=ask) for _ in range(20)]
            for thread in threads:
                thread.start()
            children = []
            for _ in range(5):
                pid = os.fork()
                if not pid:
                    sids = {socket.sid for socket in manager.fetch_sockets()}
                    answers = manager.call("ask", 5)
                    right = len(sids) == 2 and answers == [("ask", 5)] * 2 and answers.is_complete
                    os._exit(0 if right and manager.close() else 1)
                children.append(pid)
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            for thread in threads:
                thread.join()
            assert counts == [2] * 21, counts
            assert all(count.is_complete for count in counts)
            # Asking makes no event loop for a thread that has none.
            assert had_hub or get_hub_if_exists() is None
            print("right")
            """,
            patched=patched,
        )
        assert "right" in output


class TestSurroundings:
    def test_greenlets_run_on_while_it_waits(self, mesh: Mesh) -> None:
        mesh.run(
            """
            import gevent
            manager = GeventMeshManager(URL, write_only=True)
            turns = 0

            def count():
                global turns
                while True:
                    turns += 1
                    gevent.sleep(0.001)

            counting = gevent.spawn(count)
            greenlets = [gevent.spawn(manager.emit, "greenlet", number) for number in range(20)]
            gevent.joinall(greenlets, raise_error=True)
            assert manager.wait_for_peers(1)
            assert manager.flush()
            assert turns > 1
            counting.kill()
            """
        )
        assert mesh.got("greenlet", 20) == [(number,) for number in range(20)]

    def test_the_network_goes_on_while_the_application_stands_still(self, mesh: Mesh) -> None:
        program = mesh.ships.program(
            "busy",
            [
                sys.executable,
                "-c",
                PATCH
                + textwrap.dedent(
                    f"""
                    import time
                    from gevent.monkey import get_original
                    from gevent_mesh import GeventMeshManager
                    manager = GeventMeshManager({mesh.discovery.url!r}, write_only=True)
                    manager.emit("busy", 1)
                    get_original("time", "sleep")(5)
                    print("done")
                    """
                ),
            ],
        )
        assert mesh.got("busy", 1) == [(1,)]
        assert program.popen.poll() is None
        assert program.wait(15) == 0

    @each_kind
    def test_every_client_calls_back(self, mesh: Mesh, patched: bool) -> None:
        output = mesh.run(
            """
            import threading
            manager = GeventMeshManager(URL, write_only=True)
            answers, both = [], threading.Event()

            def answered(event, number):
                answers.append((event, number))
                if len(answers) == 2:
                    both.set()

            manager.emit("ask", 5, callback=answered)
            assert both.wait(10), answers
            print(answers)
            """,
            patched=patched,
        )
        assert output.strip() == "[('ask', 5), ('ask', 5)]"

    def test_without_the_token_nothing_gets_through(self, ships: Fleet, mesh: Mesh) -> None:
        token = "a token of sixteen or more"
        discovery = ships.discovery(token=token)
        node = ships.node(discovery, auth_token=token)
        code = """
            import os
            manager = GeventMeshManager(os.environ["WHERE"], write_only=True, auth_token=os.environ["SECRET"])
            manager.emit("secret", 1)
            print(manager.close(timeout=2))
        """
        refused = mesh.run(code, WHERE=discovery.url, SECRET="another token of sixteen")
        assert "False" in refused
        assert "does not accept our token" in refused
        assert "True" in mesh.run(code, WHERE=discovery.url, SECRET=token)
        assert node.state()["counters"]["spoofed"] == 0

    def test_a_node_that_stands_still_is_given_up_for_another(self, ships: Fleet, clients: list[Client]) -> None:
        discovery = ships.discovery()
        nodes = ships.nodes(3, discovery, **QUICK)
        linked(nodes)
        clients += [Client(node.url) for node in nodes]
        emitter = start_emitting(ships, discovery, threads=2, count=1500, pause=0.002, manager=QUICK)
        living = {node.uid: node for node in nodes}
        relay = eventually(lambda: relay_past(emitter, 500, living), 20)
        assert relay is not None
        living[relay].signal(signal.SIGSTOP)
        # A link that is silent, and one that does not shake hands.
        eventually(lambda: relay_past(emitter, 0, {uid: node for uid, node in living.items() if uid != relay}), 20)
        living[relay].signal(signal.SIGCONT)
        emitter.wait_for(r"^done$", 60)
        sent = last_report(emitter)["returned"]
        assert sent == {"thread 0": 1500, "thread 1": 1500}
        for client in clients:
            for name in sent:
                client.wait_for_number(name, 1500, 30)
            assert client.checker.report(sent).is_perfect

    def test_resets_between_emitter_and_nodes_lose_nothing(self, ships: Fleet, clients: list[Client]) -> None:
        discovery, proxy = ships.discovery(), ships.proxy()
        nodes = ships.nodes(2, discovery, proxy=proxy, **QUICK)
        linked(nodes)
        clients += [Client(node.url) for node in nodes]
        emitter = start_emitting(ships, discovery, threads=4, count=1000, pause=0.002)
        while '"flushed"' not in emitter.output:
            eventually(lambda: relay_past(emitter, 0, {node.uid: node for node in nodes}), 20)
            for node in nodes:
                proxy.do("reset", node.route)
            eventually(lambda: '"flushed"' in emitter.output or last_report(emitter)["relay"], 20)
            gevent.sleep(0.2)
        emitter.wait_for(r"^done$", 60)
        sent = last_report(emitter)["returned"]
        assert sum(sent.values()) == 4000
        for client in clients:
            for name in sent:
                client.wait_for_number(name, 1000, 30)
            assert client.checker.report(sent).is_perfect


def test_node_servers_hear_of_events_from_outside_once(ships: Fleet) -> None:
    discovery = ships.discovery()
    nodes = ships.nodes(2, discovery, node_interop=True, **QUICK)
    linked(nodes)
    peer = NodejsPeer(discovery.url, "f" * 16)
    for node in nodes:
        eventually(lambda node=node: peer.uid in node.links(), 10)  # type: ignore[misc]  # bound now
    emitter = start_emitting(ships, discovery, threads=1, count=300, pause=0.002)
    emitter.wait_for(r"^done$", 60)
    eventually(lambda: len(peer.received(3)) >= 300)
    events = [message["data"]["packet"]["data"] for message in peer.received(3)]
    assert events == [["tick", "thread 0", number] for number in range(1, 301)]
    peer.leave()
    assert peer.faults == []
