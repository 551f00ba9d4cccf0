"""Threads that work at something, and tell the people in a room of the chat how it goes.

A plain script, as a cron job or a worker of Celery is: it serves nobody, and knows nothing of gevent. The one manager
is shared by all threads. Its first event starts a background thread, which finds a server through discovery, hands the
events to it, and goes to another one when that server dies.

The work is pretence: it waits.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time

from gevent_mesh import EmitterError, GeventMeshManager


def read_settings(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="worker.py", description="Work, and tell a room of the chat how it goes.")
    parser.add_argument(
        "--discovery",
        default=os.environ.get("MESH_DISCOVERY") or None,
        help="ws://host:port of the discovery service; without it, the servers of this host are found [MESH_DISCOVERY]",
    )
    parser.add_argument("--room", default="lobby", help="the chat's room")
    parser.add_argument("--jobs", type=int, default=3, help="how many at a time, each in a thread")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each step takes")
    return parser.parse_args(arguments)


class Job(threading.Thread):
    """One piece of work, in three steps."""

    def __init__(self, manager: GeventMeshManager, name: str, settings: argparse.Namespace) -> None:
        super().__init__(name=name)
        self._manager = manager
        self._settings = settings

    def run(self) -> None:
        for step in (1, 2, 3):
            time.sleep(self._settings.seconds)
            self._say(f"step {step} of 3 is done")

    def _say(self, text: str) -> None:
        # The event that the chat's own servers send when somebody says something.
        room = self._settings.room
        message = {"id": self.name, "nickname": self.name, "room": room, "text": text}
        origin = {"node": self._manager.uid, "server": "worker", "sentAt": time.time()}
        try:
            self._manager.emit("said", {**message, **origin}, room=f"room:{room}")
        except EmitterError as error:
            print(f"nobody hears of it: {error}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    settings = read_settings(arguments)
    manager = GeventMeshManager(settings.discovery, write_only=True)
    jobs = [Job(manager, f"job {number}", settings) for number in range(1, settings.jobs + 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    # Without this, the end of the process would wait for the events as well, for a few seconds.
    if not manager.close(timeout=10):
        return 1
    print("all done, and every server has been told", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
