"""Discovery for the nodes of one host, served by one of them: whichever comes first.

The kernel decides who: one process can listen on a port, and the port is free the moment that it dies. Whoever is not
connected tries to listen there before it tries to connect. So whoever is not the first finds the first, and when that
one is gone, the first who comes back is the next.

Rules:

- One node serves at a time, also for itself and for others of its own process: they connect like any other.
- Only loopback. Who may register is decided as at any discovery server: with a token, who knows it.
- It is served for as long as its node is in the mesh. Discovery that goes ends no link.
- This is the one place of the library that uses the discovery service, and loads it when it is needed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gevent_mesh_discovery import DiscoveryServer

__all__ = ["EmbeddedDiscovery"]

_log = logging.getLogger(__name__)


class EmbeddedDiscovery:
    """One node's part in it.

    Args:
        port: where all nodes of the host look for it.
        tokens: shared secrets, as the node has them.
    """

    def __init__(self, port: int, tokens: Sequence[str]) -> None:
        self._port = port
        self._tokens = tokens
        self._server: DiscoveryServer | None = None

    @property
    def is_serving(self) -> bool:
        """Whether this node is the one."""
        return self._server is not None

    def serve(self) -> str:
        """Serve, if nobody does.

        Returns:
            Why this node does not; empty if it does.
        """
        if self._server is None:
            from gevent_mesh_discovery import DiscoveryServer

            server = DiscoveryServer("127.0.0.1", self._port, tokens=self._tokens)
            try:
                server.start()
            except StartError as error:
                return (
                    f"{error}; MESH_EMBEDDED_PORT or embedded_port chooses another port, MESH_DISCOVERY another server"
                )
            self._server = server
            _log.info("serving discovery to the nodes of this host on %s", server.url)
        return ""

    def stop(self) -> None:
        """Leave it to others. Takes a second at most."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def forget(self) -> None:
        """In a forked child: the parent goes on serving."""
        server, self._server = self._server, None
        if server is not None:
            server.forget()
