"""What the examples' one-command programs share: discovery and some servers as children, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from gevent_mesh.demo.processes import Child, DemoError, signals_held_back

__all__ = ["run_together"]

SECONDS = 20.0


def wait_for_ever(_discovery: str) -> None:
    """Until a signal comes."""
    threading.Event().wait()


def run_together(
    module: str, count: int, first_port: int, text: str, go_on: Callable[[str], None] = wait_for_ever
) -> int:
    """Start everything, name the pages, and end everything on a signal, also on one that comes during the start.

    Args:
        module: the program of a server.
        count: how many servers.
        first_port: of the first server, the others follow; 0 takes any.
        text: what stands in front of the address of each page.
        go_on: called with the URL of discovery when all of it runs; does not return.

    Returns:
        The exit code.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    children: list[Child] = []
    try:
        discovery = _start_discovery(children)
        for url, server in _start_servers(children, discovery, module, count, first_port):
            print(f"{text}: {url} (process {server.process.pid})", flush=True)
        go_on(discovery)
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    finally:
        _end(children)
    return 0


def _start_discovery(children: list[Child]) -> str:
    anywhere = ["--host", "127.0.0.1", "--port", "0"]
    with signals_held_back():
        children.append(Child("discovery", "gevent_mesh_discovery", r"listening on (ws://\S+)", anywhere, os.environ))
    return children[0].wait_until_ready(SECONDS)


def _start_servers(
    children: list[Child], discovery: str, module: str, count: int, first_port: int
) -> list[tuple[str, Child]]:
    for number in range(count):
        arguments = ["--discovery", discovery, "--port", str(first_port + number if first_port else 0)]
        with signals_held_back():
            children.append(Child(f"server {number + 1}", module, r"listening on (http://\S+)", arguments, os.environ))
    return [(server.wait_until_ready(SECONDS), server) for server in children[1:]]


def _end(children: list[Child]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for child in reversed(children):
        child.ask_to_end()
    for child in reversed(children):
        child.end(SECONDS)
