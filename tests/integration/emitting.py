"""A program that emits from many threads: `python -m tests.integration.emitting '{"discovery": "ws://..."}'`.

Plain and threaded: nothing in it uses gevent, and nothing is patched, unless asked. Each thread numbers its events. It
prints a JSON line every few milliseconds, with the uid of the node that it is linked to, and a last one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

if __name__ == "__main__" and "--patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

from gevent_mesh import GeventMeshManager, MeshError

REPORT_SECONDS = 0.02


class Sender(threading.Thread):
    """Emits numbered events at a pace.

    Attributes:
        returned: the number of the last event that `emit` has returned for.
    """

    def __init__(self, manager: GeventMeshManager, name: str, count: int, pause: float, room: str | None) -> None:
        super().__init__(name=name)
        self.returned = 0
        self.errors: list[str] = []
        self._manager = manager
        self._count = count
        self._pause = pause
        self._room = room

    def run(self) -> None:
        for number in range(1, self._count + 1):
            try:
                self._manager.emit("tick", (self.name, number), room=self._room)
            except MeshError as error:
                self.errors.append(str(error))
                return
            self.returned = number
            time.sleep(self._pause)


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    manager = GeventMeshManager(options["discovery"], write_only=True, **options.get("manager", {}))
    count, pause, room = options["count"], options.get("pause", 0.001), options.get("room")
    senders = [Sender(manager, f"thread {number}", count, pause, room) for number in range(options["threads"])]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        report(manager, senders)
        time.sleep(REPORT_SECONDS)
    is_flushed = manager.flush(30)
    errors = [error for sender in senders for error in sender.errors]
    print(json.dumps({"flushed": is_flushed, "errors": errors}), flush=True)
    report(manager, senders)
    print("done", flush=True)
    manager.close()


def report(manager: GeventMeshManager, senders: list[Sender]) -> None:
    returned = {sender.name: sender.returned for sender in senders}
    relay = [peer.uid for peer in manager.peers]
    print(json.dumps({"relay": relay, "returned": returned, "total": sum(returned.values())}), flush=True)


if __name__ == "__main__":
    main()
