"""All of it with one command: `python -m gevent_mesh_examples.presence.several [--servers N] [--port FIRST]`.

Starts a discovery service and some servers as children, names their pages and processes, and ends them on Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys

from ..together import run_together

MAX_SERVERS = 16


def main() -> int:
    parser = argparse.ArgumentParser(prog="several", description="Who is online, on several servers of this machine.")
    parser.add_argument("--servers", type=int, choices=range(1, MAX_SERVERS + 1), metavar="N", default=3)
    parser.add_argument("--port", type=int, default=5000, help="of the first server, the others follow; 0: any")
    options = parser.parse_args()
    return run_together("gevent_mesh_examples.presence", options.servers, options.port, "who is online")


if __name__ == "__main__":
    sys.exit(main())
