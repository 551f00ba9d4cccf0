"""The servers of one contender, joined to each other, and clients of them: what the measures between nodes share."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode

from .children import BenchmarkError, Child, Children, python
from .client import Client, Tally
from .contenders import CONTENDERS

__all__ = ["GIVE_UP_SECONDS", "Servers"]

START_SECONDS = 15.0
WARM_SECONDS = 15.0
WARM_PAUSE_SECONDS = 0.05
GIVE_UP_SECONDS = 30.0
"""A client counts for so long, and what has not come by then is lost."""


class Servers:
    """Processes of `benchmarks.server`, the first of which emits and the second of which has the client.

    Attributes:
        service: the broker, or discovery.
        nodes: the server processes.
    """

    def __init__(self, started: Children, contender: str, nodes: int) -> None:
        self._started = started
        self.service, url = CONTENDERS[contender].start_service(started)
        command = python("benchmarks.server", contender, url)
        self.nodes = [started.start(f"node {number}", command) for number in range(1, nodes + 1)]
        self._ports = [int(node.line(r"listening on (\d+)", START_SECONDS)[1]) for node in self.nodes]
        # python-socketio's managers subscribe when their first client comes: without it a node would have no share.
        for port in self._ports:
            with Client(port) as client:
                client.connect()

    def ask(self, node: int, action: str, **query: Any) -> Any:
        """Have a node, counted from 0, do something, and wait for its answer.

        Raises:
            BenchmarkError: there was none in time.
        """
        url = f"http://127.0.0.1:{self._ports[node]}/{action}?{urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=query.get("seconds", 0.0) + START_SECONDS) as response:
                return json.load(response)
        except (OSError, HTTPException) as error:
            raise BenchmarkError(f"{self.nodes[node].name} does not answer /{action}: {error}") from None

    def warm_client(self, mode: str) -> Child:
        """A client of the second node that is known to get what the first one emits: subscriptions and links are up."""
        command = python("benchmarks.client", str(self._ports[1]), mode, str(GIVE_UP_SECONDS))
        client = self._started.start("client", command)
        client.line("connected", START_SECONDS)
        deadline = time.monotonic() + WARM_SECONDS
        while True:
            self.ask(0, "warm")
            try:
                client.line("warm", WARM_PAUSE_SECONDS)
            except BenchmarkError:
                if time.monotonic() > deadline:
                    raise
            else:
                return client

    def tally(self, client: Child) -> Tally:
        """What a client has counted, when it has seen the end."""
        return Tally(**json.loads(client.line(r"^\{", GIVE_UP_SECONDS + START_SECONDS).string))
