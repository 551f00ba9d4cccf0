"""Health: whether this node hears the others, and may be sent clients; and the WSGI application that tells.

Rules:

- *Ready* means that clients which come here get what is emitted anywhere. At first that takes a link to every live
  member: one that a roster names and that is not given up after `resume_window`. So a name that nobody can reach keeps
  nobody waiting for longer than that.
- From then on a name that has never been linked does not count at all: newcomers that cannot be reached may be many.
- A link that breaks counts as long as its peer is present (see `gevent_mesh.protocol.peers`): a moment. Who has been
  silent for longer does not count by itself, or one sick member would take the clients away from all others. But who
  hears none of the live others, or less than half of the mesh, is the sick one itself, and so is who is deaf to
  somebody whose link is up.
- *Healthy* means that this process need not be started anew: deafness heals by a new link, except when it does not. Of
  deafness to one of several the cause may be that one, and would outlast every new process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, Protocol

from gevent.pywsgi import WSGIServer

from .net.mesh import Mesh
from .net.watch import MAX_LEFT_BEHIND
from .node import Node
from .protocol.membership import PeerState
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .service import Handler, Service

__all__ = ["Health", "HealthApp", "HealthService"]

SILENT_TIMEOUTS = 0.9
"""Who has said nothing for so long, in times of `heartbeat_timeout`, is not heard. There were heartbeats to come."""
NOT_HEALED_TIMEOUTS = 3.0
"""Deafness that has lasted for so many times `heartbeat_timeout`, over new links, does not heal by itself."""


@dataclass(frozen=True, slots=True)
class Health:
    """How this node is.

    Attributes:
        is_ready: clients may be sent here.
        is_healthy: this process need not be started anew.
        reasons: why it is not ready, or not healthy; empty when it is both.
        is_leaving: it has begun to leave the mesh.
        roster_seen: it is known which other nodes there are.
        links_expected: live other nodes; once the node has been ready, those that have been linked.
        links_up: those of them that are heard.
        missing: uids of those that are not.
        deaf: uids of those of whom no message gets through, over whatever link.
        stuck: messages of other nodes that are in the hands of code that does not come back.
    """

    is_ready: bool
    is_healthy: bool
    reasons: tuple[str, ...] = ()
    is_leaving: bool = False
    roster_seen: bool = False
    links_expected: int = 0
    links_up: int = 0
    missing: tuple[str, ...] = ()
    deaf: tuple[str, ...] = ()
    stuck: int = 0


class HealthService(Service):
    """Judges how this node is.

    Args:
        node: whom it is about.
        logger: where to report.
    """

    def __init__(self, node: Node, logger: logging.Logger) -> None:
        self._node = node
        self._logger = logger
        self._has_formed = False
        self._was_ready = False

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {MessageType.HEARTBEAT: self._on_heartbeat}

    def _on_heartbeat(self, peer: Peer, message: ClusterMessage) -> None:
        """It has come so far: that is all there is to it (see `gevent_mesh.protocol.hearing`)."""

    def left(self) -> None:
        self._has_formed = self._was_ready = False

    def sweep(self, now: float) -> None:  # noqa: ARG002  # it is judged as whoever asks would
        # Also where nobody asks: it is for newcomers to wait, and not for those that were here before them.
        health = self.health()
        if health.is_ready is not self._was_ready:
            self._was_ready = health.is_ready
            self._logger.info("ready" if health.is_ready else "not ready: %s", *health.reasons[:1])

    def health(self) -> Health:
        """How this node is now."""
        node, mesh = self._node, self._node.mesh
        if mesh is None:
            return Health(False, True, ("it has not joined the mesh",), is_leaving=node.is_leaving)
        live = [peer for peer in mesh.table.live() if peer.has_been_linked or not self._has_formed]
        silent_since = monotonic() - SILENT_TIMEOUTS * mesh.config.heartbeat_timeout
        deaf = [peer for peer in live if peer.hearing.deaf_since is not None]
        missing = [peer.uid for peer in live if peer.link is None or peer in deaf or peer.link.heard_at < silent_since]
        doubts = [*self._doubts(mesh, live, missing), *(f"nothing that {peer.uid} sends gets through" for peer in deaf)]
        troubles = _troubles(mesh, live, deaf)
        return Health(
            is_ready=not doubts and not troubles,
            is_healthy=not troubles,
            reasons=(*doubts, *troubles),
            is_leaving=node.is_leaving,
            roster_seen=node.knows_nodes,
            links_expected=len(live),
            links_up=len(live) - len(missing),
            missing=tuple(missing),
            deaf=tuple(peer.uid for peer in deaf),
            stuck=mesh.watch.left_behind,
        )

    def _doubts(self, mesh: Mesh, live: list[Peer], missing: list[str]) -> list[str]:
        """Why clients should not be sent here."""
        if self._node.is_leaving:
            return ["it is leaving the mesh"]
        if not self._node.knows_nodes:
            return ["no discovery server has told which other nodes there are"]
        if not missing:
            self._has_formed = True
            return []
        heard = len(live) - len(missing)
        # Half of the mesh, with this node itself.
        is_large = heard > 0 and 2 * (heard + 1) >= len(live) + 1
        settled = mesh.config.heartbeat_timeout
        if self._has_formed and is_large and not any(_has_just_broken(peer, settled) for peer in live):
            return []
        return [f"it hears {heard} of {len(live)} other nodes"]


def _has_just_broken(peer: Peer, settled_seconds: float) -> bool:
    """Whether a link is gone that had settled: one that comes and goes all the time says nothing of this node."""
    stood = peer.heard_at - peer.linked_at
    return peer.present and peer.member.state is PeerState.SUSPECT and stood >= settled_seconds


def _troubles(mesh: Mesh, live: list[Peer], deaf: list[Peer]) -> list[str]:
    """Why this process should be started anew."""
    now, timeout = monotonic(), NOT_HEALED_TIMEOUTS * mesh.config.heartbeat_timeout
    lasting = [peer for peer in deaf if now - (peer.hearing.deaf_since or now) > timeout]
    if len(lasting) < min(2, len(live)):
        lasting = []
    troubles = [f"new links have not healed that it is deaf to {peer.uid}" for peer in lasting]
    if mesh.watch.left_behind >= MAX_LEFT_BEHIND:
        troubles.append(f"{mesh.watch.left_behind} messages are in the hands of code that does not come back")
    if now - mesh.swept_at > timeout:
        troubles.append(f"its scheduler has stood still for {now - mesh.swept_at:.0f} s")
    return troubles


class HasHealth(Protocol):
    """What `HealthApp` is about: a `GeventMeshManager`."""

    def health(self) -> Health: ...


class HealthApp:
    """WSGI: answers ``/healthz`` and ``/readyz``, and leaves everything else to another application.

    ``app.wsgi_app = HealthApp(mesh, app.wsgi_app)`` puts it before a Flask application. The status is 200 or 503; the
    body is JSON, and holds what `Health` does.

    Args:
        mesh: the manager.
        app: what answers other paths; without one they are 404.
    """

    def __init__(self, mesh: HasHealth, app: Callable[..., Iterable[bytes]] | None = None) -> None:
        self._mesh = mesh
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in ("/healthz", "/readyz"):
            return self._not_ours(environ, start_response)
        health = self._mesh.health()
        is_good = health.is_ready if path == "/readyz" else health.is_healthy
        return _answer(environ, start_response, "200 OK" if is_good else "503 Service Unavailable", asdict(health))

    def serve(self, port: int, host: str = "127.0.0.1") -> WSGIServer:
        """Answer on a port of its own. That alone does not make this node join the mesh.

        Args:
            port: 0 for any free one; see `server_port` of what is returned.
            host: the address to listen on.

        Returns:
            The server, started; call its `stop` to end it.

        Raises:
            OSError: the port cannot be bound.
        """
        server = WSGIServer((host, port), self, log=None)
        server.belongs_to_a_node = True
        server.start()
        return server

    def _not_ours(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._app is not None:
            return self._app(environ, start_response)
        return _answer(environ, start_response, "404 Not Found", {"paths": ["/healthz", "/readyz"]})


def _answer(
    environ: dict[str, Any], start_response: Callable[..., Any], status: str, value: dict[str, Any]
) -> list[bytes]:
    body = json.dumps(value).encode()
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]
