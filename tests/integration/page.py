"""Runs the Python of a page of the documentation: `python -m tests.integration.page docs/cluster.md`.

The page's blocks are one program, a module that is imported. If it makes a Flask application, that is served, and what
``POST /control`` asks for is evaluated in the program's own namespace. Where a page names the discovery service by its
usual address, that of ``MESH_DISCOVERY`` is meant.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

from tests.integration.node import dumps, loads

__all__ = ["python_of"]


def python_of(page: Path) -> str:
    """The Python of a page, at its own line numbers."""
    lines = page.read_text("utf-8").splitlines()
    inside = False
    program = []
    for line in lines:
        if re.match(r"```", line):
            inside = line == "```python"
            line = ""
        program.append(line if inside else "")
    return "\n".join(program)


class Control:
    """Evaluates expressions in the namespace of the page."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        try:
            answer = {"value": eval(asked["operation"], self._namespace)}
        except Exception as error:  # noqa: BLE001  # whatever a test asks for
            answer = {"error": type(error).__name__, "text": str(error)}
        body = dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    logging.basicConfig(level="INFO", stream=sys.stderr)
    page = Path(sys.argv[1])
    program = python_of(page).replace("ws://127.0.0.1:8000", os.environ["MESH_DISCOVERY"])
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(program, str(page), "exec"), namespace)
    app = namespace.get("app")
    if app is None:
        return
    control = Control(namespace)

    def both(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return (control if environ["PATH_INFO"] == "/control" else app)(environ, start_response)

    server = WSGIServer(("127.0.0.1", 0), both, handler_class=WebSocketHandler, log=None)
    server.start()
    print(json.dumps({"http_port": server.server_port, "pid": os.getpid()}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
