"""What a node hears: every numbered event that would go to its clients, and how long it was on its way.

A client that exists in the tables of the server only: no socket and no thread has a part in what is measured.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from time import monotonic
from typing import Any

from gevent_mesh import GeventMeshManager
from gevent_mesh.net.mesh import Mesh
from gevent_mesh.protocol.link import Phase
from tests.integration.checker import Account, SessionAccount, Stream

__all__ = ["Ear"]

_EIO_SID = "an ear"
_KEPT_LATENCIES = 500_000


class Ear:
    """Listens from now on.

    Args:
        sio: the node's server.
        manager: its manager, not started yet.
        boot: names what this node emits itself.
    """

    def __init__(self, sio: Any, manager: GeventMeshManager, boot: str) -> None:
        self._manager = manager
        self._boot = boot
        self._streams: dict[str, Stream] = {}
        self._latencies: deque[tuple[float, str, float]] = deque(maxlen=_KEPT_LATENCIES)
        self._handed_on: dict[str, int] = {}
        self._owed: dict[str, int] = {}
        self._listen(sio)
        self._count()

    def _listen(self, sio: Any) -> None:
        send = sio._send_eio_packet

        def hear(eio_sid: str, packet: Any) -> None:
            if eio_sid == _EIO_SID:
                self._take(packet.data)
            else:
                send(eio_sid, packet)

        sio._send_eio_packet = hear
        sio.environ[_EIO_SID] = {}
        self._manager.basic_enter_room("ear", "/", None, eio_sid=_EIO_SID)

    def _count(self) -> None:
        """Count what links hand on: events, and what nodes say to each other. The mesh is made when the node starts."""
        link_message = Mesh.link_message

        def counted(mesh: Mesh, peer: Any, message: Any) -> None:
            self._handed_on[peer.uid] = self._handed_on.get(peer.uid, 0) + 1
            link_message(mesh, peer, message)

        Mesh.link_message = counted  # type: ignore[assignment, method-assign]  # one mesh in this process

    def _take(self, encoded: Any) -> None:
        if not isinstance(encoded, str) or not encoded.startswith('2["tick",'):
            return
        _, boot, number, sent_at, *_ = json.loads(encoded[1:])
        if boot == self._boot:
            return
        self._streams.setdefault(boot, Stream()).take(number)
        now = monotonic()
        self._latencies.append((now, boot, now - sent_at))

    def emits(self, number: int) -> None:
        """This node is about to emit an event: from it on, each peer that is known now is owed all."""
        assert self._manager.mesh is not None
        for peer in self._manager.mesh.table:
            if peer.uid not in self._owed:
                self._owed[peer.uid] = number

    def forget_latencies(self) -> None:
        """They take more memory than all else."""
        self._latencies.clear()

    def latencies(self, since: float, boots: list[str] | None) -> list[float]:
        """Seconds that events of some senders took that came after a moment of the clock that all processes share."""
        return sorted(
            took for at, boot, took in list(self._latencies) if at >= since and (boots is None or boot in boots)
        )

    def account(self, uid: str, sent: int) -> dict[str, Any]:
        """See `Account`."""
        mesh = self._manager.mesh
        assert mesh is not None
        up = [link.peer.uid for link in mesh._connections if link.peer and link.protocol.phase is Phase.UP]
        sessions = {
            peer.uid: SessionAccount(
                sent=peer.session.next_sequence - 1,
                waiting=peer.session.outbox_messages,
                sent_lost=peer.session.sent_lost,
                received_lost=peer.session.received_lost,
                handed_on=self._handed_on.get(peer.uid, 0),
                links=up.count(peer.uid),
            )
            for peer in mesh.table
        }
        return asdict(Account(uid, self._boot, sent, self._owed, self._streams, sessions))
