"""All of it with one command: `python -m gevent_mesh_examples.external_emitter [--port FIRST]`.

Starts a discovery service and two servers of the chat as children, and the worker again and again, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from ..together import run_together

WORK_SECONDS = 60.0
PAUSE_SECONDS = 5.0


def work(discovery: str) -> None:
    command = [sys.executable, "-m", "gevent_mesh_examples.external_emitter.worker", "--discovery", discovery]
    try:
        # A session of its own: Ctrl-C in the terminal reaches only us.
        subprocess.run(command, check=False, timeout=WORK_SECONDS, start_new_session=True)
    except subprocess.TimeoutExpired:
        print(f"the worker was not done within {WORK_SECONDS:.0f} s, and was ended", file=sys.stderr)


def work_again_and_again(discovery: str) -> None:
    while True:
        work(discovery)
        time.sleep(PAUSE_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A chat on two servers, and a worker outside of them that talks in it."
    )
    parser.add_argument("--port", type=int, default=5000, help="of the first server, the other follows; 0: any")
    options = parser.parse_args()
    text = "join the room 'lobby' of the chat"
    return run_together("gevent_mesh_examples.chat", 2, options.port, text, work_again_and_again)


if __name__ == "__main__":
    sys.exit(main())
