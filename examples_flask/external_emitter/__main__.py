"""All of it with one command: `python -m gevent_mesh_examples.external_emitter [--port FIRST]`.

Starts a discovery service and two servers of the chat as children, and the worker again and again, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

from gevent_mesh.demo.processes import Child, DemoError

SECONDS = 20.0
WORK_SECONDS = 60.0
PAUSE_SECONDS = 5.0


def start(first_port: int, children: list[Child]) -> tuple[str, list[str]]:
    """Start everything, appending to `children` what runs. Returns the addresses of discovery and of the pages."""
    anywhere = ["--host", "127.0.0.1", "--port", "0"]
    children.append(Child("discovery", "gevent_mesh_discovery", r"listening on (ws://\S+)", anywhere, os.environ))
    discovery = children[0].wait_until_ready(SECONDS)
    for number in (0, 1):
        arguments = ["--discovery", discovery, "--port", str(first_port + number if first_port else 0)]
        name, module = f"server {number + 1}", "gevent_mesh_examples.chat"
        children.append(Child(name, module, r"listening on (http://\S+)", arguments, os.environ))
    return discovery, [server.wait_until_ready(SECONDS) for server in children[1:]]


def work(discovery: str) -> None:
    command = [sys.executable, "-m", "gevent_mesh_examples.external_emitter.worker", "--discovery", discovery]
    try:
        # A session of its own: Ctrl-C in the terminal reaches only us.
        subprocess.run(command, check=False, timeout=WORK_SECONDS, start_new_session=True)
    except subprocess.TimeoutExpired:
        print(f"the worker was not done within {WORK_SECONDS:.0f} s, and was ended", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A chat on two servers, and a worker outside of them that talks in it."
    )
    parser.add_argument("--port", type=int, default=5000, help="of the first server, the other follows; 0: any")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    children: list[Child] = []
    try:
        discovery, urls = start(options.port, children)
        for url, server in zip(urls, children[1:], strict=True):
            print(f"join the room 'lobby' of the chat: {url} (process {server.process.pid})", flush=True)
        while True:
            work(discovery)
            time.sleep(PAUSE_SECONDS)
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # a signal, also one that comes while all of it starts
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(children):
            child.ask_to_end()
        for child in reversed(children):
            child.end(SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
