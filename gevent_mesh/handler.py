"""The handler of an HTTP server whose WebSockets are all bounded, those that are not Socket.IO's as well.

For Socket.IO it is not needed: `GeventMeshManager` limits what its clients send behind any handler that gives it
gevent-websocket's WebSockets. This one does so from the start, and mends two more things of gevent-websocket's: it
takes version 13 of the protocol only (7 and 8 were drafts), and works behind UNIX sockets, where all clients have the
same address.
"""

from __future__ import annotations

from typing import Any

from geventwebsocket.handler import WebSocketHandler

from .websocket import BoundedWebSocket

__all__ = ["GeventMeshHandler"]


class GeventMeshHandler(WebSocketHandler):  # type: ignore[misc]  # gevent-websocket ships no types
    """gevent-websocket's handler with bounded WebSockets: ``WSGIServer(..., handler_class=GeventMeshHandler)``.

    Attributes:
        max_message_bytes: the largest message that is taken; for Socket.IO that is the server's `max_http_buffer_size`.
    """

    SUPPORTED_VERSIONS = ("13",)
    max_message_bytes = 1_000_000

    def upgrade_connection(self) -> Any:
        """Answer the request, as gevent-websocket does."""
        result = super().upgrade_connection()
        upgraded = self.environ.get("wsgi.websocket")
        if upgraded is not None:
            self.websocket = self.environ["wsgi.websocket"] = BoundedWebSocket(upgraded, self.max_message_bytes)
        return result

    def run_websocket(self) -> None:
        """Have the application serve the WebSocket, and close it."""
        try:
            list(self.application(self.environ, lambda *_: []))
        finally:
            self.websocket.close()
            self.environ["wsgi.websocket"] = None
