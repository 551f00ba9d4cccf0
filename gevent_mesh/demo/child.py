"""Runs a module as a program that does not outlive its parent: `python -m gevent_mesh.demo.child MODULE [ARGUMENT...]`.

The parent holds the other end of our standard input and never writes to it. However the parent ends, the system closes
that end, and our reading returns. This works on every platform, even when the parent was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

__all__ = ["main"]

GRACE_SECONDS = 3.0


def main() -> None:
    """Run `sys.argv[1]` as `python -m` would."""
    sys.argv = sys.argv[1:]
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
