"""Clients on paper that go from room to room, and events for rooms: what was there when, and what came.

Times are those of the clock that all processes of a machine share.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from time import monotonic
from typing import Any

import gevent

from gevent_mesh import GeventMeshManager
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.peers import Peer

__all__ = ["Roaming", "withheld"]

STAY_SECONDS = 0.1


class Roaming:
    """Of one node.

    Args:
        manager: its manager.
    """

    def __init__(self, manager: GeventMeshManager) -> None:
        self._manager = manager
        self._greenlets: list[gevent.Greenlet] = []
        self._is_over = False
        self._stays: list[tuple[str, float, float]] = []
        self._waits: list[float] = []
        self._events: list[tuple[str, int, float]] = []
        self._got: list[tuple[str, int]] = []

    def start(self, rooms: int, clients: int, rate: float) -> None:
        """Have so many clients go about in rooms, and emit events for random ones."""
        node = self._manager._node
        on_message = node.on_message

        def note(peer: Peer, message: ClusterMessage) -> None:
            if message.type is MessageType.BROADCAST:
                self._got.append((peer.uid, int(message.data["encoded"][0].rpartition(",")[2][:-1])))
            on_message(peer, message)

        node.on_message = note  # type: ignore[method-assign]  # a spy
        self._greenlets = [gevent.spawn(self._roam, rooms) for _ in range(clients)]
        self._greenlets.append(gevent.spawn(self._publish, rooms, rate))

    def _roam(self, rooms: int) -> None:
        manager, rng = self._manager, random.Random()
        sid = f"{secrets.token_hex(10)}.{manager.uid}"
        manager.basic_enter_room(sid, "/", None, eio_sid=secrets.token_hex(10))
        while not self._is_over:
            room = f"room {rng.randrange(rooms)}"
            began = monotonic()
            manager.enter_room(sid, "/", room)
            entered = monotonic()
            gevent.sleep(rng.uniform(0, 2 * STAY_SECONDS))
            self._stays.append((room, entered, monotonic()))
            self._waits.append(entered - began)
            manager.leave_room(sid, "/", room)
            gevent.sleep(rng.uniform(0, STAY_SECONDS))

    def _publish(self, rooms: int, rate: float) -> None:
        rng, began = random.Random(), monotonic()
        while not self._is_over:
            while len(self._events) < (monotonic() - began) * rate and not self._is_over:
                self._events.append((f"room {rng.randrange(rooms)}", len(self._events), monotonic()))
                room, number, _ = self._events[-1]
                self._manager.emit("roaming", number, room=room)
            gevent.sleep(0.003)

    def stop(self) -> None:
        """Nobody goes anywhere any more, and nothing is emitted."""
        self._is_over = True
        gevent.joinall(self._greenlets)

    def report(self) -> dict[str, Any]:
        mesh = self._manager.mesh
        assert mesh is not None
        return {
            "uid": self._manager.uid,
            "stays": self._stays,
            "waits": sorted(self._waits),
            "events": self._events,
            "got": self._got,
            "spared": mesh.counters.events_spared,
        }


def withheld(reports: Sequence[dict[str, Any]], receivers: Sequence[dict[str, Any]]) -> list[str]:
    """The events that did not come where a client was in the room before they were emitted, and until after that."""
    found = []
    for receiver in receivers:
        got = {(uid, number) for uid, number in receiver["got"]}
        stays: dict[str, list[tuple[float, float]]] = {}
        for room, since, until in receiver["stays"]:
            stays.setdefault(room, []).append((since, until))
        for sender in reports:
            for room, number, at in sender["events"] if sender is not receiver else ():
                is_owed = any(since <= at <= until for since, until in stays.get(room, ()))
                if is_owed and (sender["uid"], number) not in got:
                    found.append(f"{receiver['uid']} did not get {number} of {sender['uid']} for {room}")
    return found
