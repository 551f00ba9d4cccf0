"""All of it with one command: `python -m gevent_mesh_examples.presence.several [COUNT] [FIRST_PORT]`.

Starts a discovery service and some servers as children, names their pages, and ends them on Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from gevent_mesh.demo.processes import Child, DemoError

SECONDS = 20.0


def start(count: int, first_port: int, children: list[Child]) -> list[str]:
    """Start everything, appending to `children` what runs. Returns the addresses of the pages."""
    anywhere = ["--host", "127.0.0.1", "--port", "0"]
    discovery = Child("discovery", "gevent_mesh_discovery", r"listening on (ws://\S+)", anywhere, os.environ)
    children.append(discovery)
    url = discovery.wait_until_ready(SECONDS)
    for number in range(count):
        arguments = ["--discovery", url, "--port", str(first_port + number if first_port else 0)]
        name, module = f"server {number + 1}", "gevent_mesh_examples.presence"
        children.append(Child(name, module, r"listening on (http://\S+)", arguments, os.environ))
    return [server.wait_until_ready(SECONDS) for server in children[1:]]


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    first_port = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    children: list[Child] = []
    try:
        for url in start(count, first_port, children):
            print(f"who is online: {url}", flush=True)
        stop.wait()
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        for child in reversed(children):
            child.ask_to_end()
        for child in reversed(children):
            child.end(SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
