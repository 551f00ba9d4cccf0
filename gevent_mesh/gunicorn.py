"""gunicorn's worker for this package: ``gunicorn -k gevent_mesh.gunicorn.GeventMeshWorker -w 1 app:app``.

Needs gunicorn, which nothing else in this package imports.
"""

from __future__ import annotations

from geventwebsocket.gunicorn.workers import GeventWebSocketWorker

from .handler import GeventMeshHandler

__all__ = ["GeventMeshWorker"]


class GeventMeshWorker(GeventWebSocketWorker):  # type: ignore[misc]  # gevent-websocket ships no types
    """gevent-websocket's worker, with `GeventMeshHandler`."""

    wsgi_handler = GeventMeshHandler

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        limit = self.cfg.worker_connections
        self.log.info("At most %s connections at a time, others wait (--worker-connections)", limit)
        super().init_process()
