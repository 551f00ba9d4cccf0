"""A program that asks from outside: `python -m tests.integration.asking '{"discovery": "ws://..."}'`.

Plain and threaded: nothing in it uses gevent, and nothing is patched. Each line of its input is JSON,
``{"id", "method", "arguments", "options"}``; a thread for each calls that method of a write-only manager, and prints
the answer (see `tests.integration.node.told_of`) with the id. ``"brief": true`` leaves the value out but for its size.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from gevent_mesh import GeventMeshManager
from tests.integration.node import dumps, told_of


def answer(manager: GeventMeshManager, asked: dict[str, Any]) -> None:
    told: dict[str, Any]
    if asked["method"] == "node":
        told = {"value": [peer.uid for peer in manager.peers]}
    else:
        told = told_of(manager, asked["method"], *asked["arguments"], **asked["options"])
    if asked["brief"]:
        told["value"] = len(told["value"])
    # One write, with its end: lines of several threads must not mix.
    sys.stdout.write(dumps({"id": asked["id"], **told}) + "\n")
    sys.stdout.flush()


def main() -> None:
    options = json.loads(sys.argv[1])
    manager = GeventMeshManager(options["discovery"], write_only=True, **options.get("manager", {}))
    for line in sys.stdin:
        threading.Thread(target=answer, args=(manager, json.loads(line))).start()


if __name__ == "__main__":
    main()
