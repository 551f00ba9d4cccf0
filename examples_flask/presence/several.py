"""All of it with one command: `python -m gevent_mesh_examples.presence.several [--servers N] [--port FIRST]`.

Starts a discovery service and some servers as children, names their pages and processes, and ends them on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from gevent_mesh.demo.processes import Child, DemoError

SECONDS = 20.0
MAX_SERVERS = 16


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
    parser = argparse.ArgumentParser(prog="several", description="Who is online, on several servers of this machine.")
    parser.add_argument("--servers", type=int, choices=range(1, MAX_SERVERS + 1), metavar="N", default=3)
    parser.add_argument("--port", type=int, default=5000, help="of the first server, the others follow; 0: any")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    children: list[Child] = []
    try:
        urls = start(options.servers, options.port, children)
        for url, server in zip(urls, children[1:], strict=True):
            print(f"who is online: {url} (process {server.process.pid})", flush=True)
        threading.Event().wait()
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
