"""Presence: who is online, across all nodes. The rules are in `protocol.presence`; here is what sends, wakes and calls.

Rules:

- Changes are sent as soon as the greenlet that makes them lets others run: many of one moment share a message.
- What a link's reader brings is taken at once; calling the application's functions, and showing or hiding the clients
  of a whole node, are the work of greenlets that live only while there is such work.
- A namespace that other nodes speak of is kept whether this application has asked for it or not: it may ask later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import Any, TypeVar

import gevent

from .clients import Clients
from .net.pause import ITEMS_SLICE_SECONDS, give_way
from .node import Node
from .protocol.messages import ClusterMessage, MessageType
from .protocol.peers import Peer
from .protocol.presence import Change, PresenceTable, PresentClient, PresentUser, check_sid, check_user, pack_meta
from .protocol.presence_messages import UserId
from .service import Handler, Service

__all__ = ["Presence", "PresenceService", "PresentClient", "PresentUser"]

SETTLED_AT_ONCE = 100
"""Clients of a node that came or went which are shown or hidden in one step: less than half a millisecond."""
MAX_NAMESPACES = 1000
MAX_NAMESPACE_CHARS = 256
"""What other nodes may make us keep. What this application asks for comes on top."""

Callback = TypeVar("Callback", bound=Callable[[PresentUser], object])


class _Worker:
    """At most one greenlet that does what there is to do, and ends when there is nothing left.

    It gives way to everybody else whenever it has worked for a while.

    Args:
        has_work: whether there is something to do.
        step: does a little of it, so that it is not there any more even if this fails. May wait.
        what: for the log.
        logger: where failures go.
    """

    def __init__(
        self, has_work: Callable[[], bool], step: Callable[[], None], what: str, logger: logging.Logger
    ) -> None:
        self._has_work = has_work
        self._step = step
        self._what = what
        self._logger = logger
        self._runs = False

    def wake(self) -> None:
        """There may be something to do."""
        if not self._runs and self._has_work():
            self._runs = True
            gevent.spawn(self._run)

    def _run(self) -> None:
        slice_ends = monotonic() + ITEMS_SLICE_SECONDS
        try:
            while self._has_work():
                try:
                    self._step()
                    if monotonic() > slice_ends:
                        give_way()
                        slice_ends = monotonic() + ITEMS_SLICE_SECONDS
                except (Exception, gevent.Timeout):
                    self._logger.exception("%s failed", self._what)
        finally:
            self._runs = False


class Presence:
    """Who is online in one namespace, on all nodes. Made by `GeventMeshManager.presence`.

    ::

        presence = mesh.presence()

        @socketio.on("connect")
        def connect():
            presence.track(request.sid, current_user.id, {"name": current_user.name})

        @presence.on_join
        def joined(user):
            socketio.emit("online", user.id, ignore_queue=True)  # to the clients of this node; others do the same

    Reading it costs no message: every node knows all users. `len(presence)` is how many users there are, and
    `user_id in presence` whether one is online.
    """

    def __init__(self, node: Node, clients: Clients, namespace: str, logger: logging.Logger) -> None:
        self.namespace = namespace
        self._node = node
        self._clients = clients
        self._logger = logger
        self._table = PresenceTable(node.uid)
        self._followers: dict[Change, list[Callable[[PresentUser], object]]] = {change: [] for change in Change}
        self._workers = (
            _Worker(lambda: self._table.has_delta, self._send_delta, "telling other nodes who is online", logger),
            _Worker(lambda: not self._table.is_settled, self._settle, "showing and hiding users", logger),
            _Worker(lambda: self._table.has_notice, self._notify, "telling who is online", logger),
        )

    def __repr__(self) -> str:
        return f"<Presence {self.namespace!r}: {len(self)} users>"

    # ------------------------------------------------------------------ what applications call

    def track(self, sid: str, user: UserId, meta: dict[Any, Any] | None = None) -> None:
        """Say that a client of this node belongs to a user, who is online from now on.

        Once more for the same client, it changes the user or the metadata; the same again costs nothing. A client that
        disconnects is untracked by itself.

        Cost: one message to every node, of about 130 bytes plus the metadata; calls of one moment share it.

        Args:
            sid: the client. It must be connected to this node and namespace, or be about to: its connect handler may
                call this.
            user: the application's name for the user: a text of 1 to 256 characters or a 64-bit int.
            meta: what every node should know of it, at most 4 KiB when encoded as msgpack.

        Raises:
            ValueError: the client is not connected here, the user is the empty text, or something is too large.
            TypeError: the user is neither a text nor an int, or the metadata cannot be encoded.
        """
        sid, user, packed = check_sid(sid), check_user(user), pack_meta({} if meta is None else meta)
        if not self._clients.is_ours(sid, self.namespace):
            raise ValueError(
                f"no client {sid!r} is connected to {self.namespace!r} on this node: call track() where the client is "
                "connected, in its connect handler or a handler of its events, and with its sid of this namespace"
            )
        self._current_table().track(sid, user, packed, time())
        self._attend()

    def untrack(self, sid: str) -> None:
        """Say that a client of this node belongs to nobody any more. Does nothing if it did not.

        Cost: one small message to every node.
        """
        self._current_table().untrack(sid)
        self._attend()

    def users(self) -> dict[UserId, PresentUser]:
        """All users who are online, by their ids.

        Cost: no message; a dict of so many users.
        """
        return self._current_table().users()

    def get(self, user: UserId) -> PresentUser | None:
        """One user, None if not online. Cost: none to speak of."""
        return self._current_table().get(user)

    def __contains__(self, user: object) -> bool:
        return user in self._table

    def __len__(self) -> int:
        return len(self._table)

    def on_join(self, callback: Callback) -> Callback:
        """Call this with the `PresentUser` when a user comes online: with the first client, on whichever node.

        Every node calls its own functions. One greenlet calls all of a namespace, one after the other, so they may
        wait; who has come and gone again meanwhile is not told at all. Who is online already is in `users`.

        Returns:
            `callback`, so that this can be a decorator.

        Raises:
            TypeError: it is no function.
        """
        return self._follow(Change.JOINED, callback)

    def on_leave(self, callback: Callback) -> Callback:
        """Call this with the `PresentUser`, as last known, when a user's last client is gone. See `on_join`."""
        return self._follow(Change.LEFT, callback)

    def on_update(self, callback: Callback) -> Callback:
        """Call this with the `PresentUser` when the clients or the metadata of a user who stays online have changed.

        Several changes may come as one, with what they have come to. See `on_join`.
        """
        return self._follow(Change.UPDATED, callback)

    def _follow(self, change: Change, callback: Callback) -> Callback:
        if not callable(callback):
            raise TypeError(f"what follows who is online must be a function, not {type(callback).__name__}")
        self._table.watch()
        self._followers[change].append(callback)
        return callback

    # ------------------------------------------------------------------ what the service calls

    def _take(self, peer: Peer, data: dict[str, Any]) -> None:
        wanted = self._table.take(peer.uid, data, monotonic())
        if wanted is not None:
            self._node.send(peer.uid, MessageType.PRESENCE_WANTED, self.namespace, wanted)
        self._attend()

    def _answer(self, peer: Peer, data: dict[str, Any]) -> None:
        piece = self._table.piece(peer.uid, data["request"], data["part"])
        if piece is not None:
            self._node.send(peer.uid, MessageType.PRESENCE, self.namespace, piece)

    def _linked(self, peer: Peer) -> None:
        table = self._current_table()
        table.linked(peer.uid)
        announcement = table.announcement()
        if announcement is not None:
            self._node.send(peer.uid, MessageType.PRESENCE, self.namespace, announcement)

    def _lapsed(self, uid: str) -> None:
        self._table.lapsed(uid)
        self._attend()

    def _sweep(self, known: list[str], now: float) -> None:
        self._table.forget(known)
        for uid, wanted in self._table.overdue(now):
            self._node.send(uid, MessageType.PRESENCE_WANTED, self.namespace, wanted)
        self._attend()

    # ------------------------------------------------------------------ work

    def _current_table(self) -> PresenceTable:
        """The table; a node that has joined anew has another name in it."""
        if self._table.uid != self._node.uid:
            self._table.renamed(self._node.uid)
        return self._table

    def _attend(self) -> None:
        """Something has changed: see to it that whoever has to do with it does something."""
        for worker in self._workers:
            worker.wake()

    def _send_delta(self) -> None:
        self._node.publish(MessageType.PRESENCE, self.namespace, self._table.next_delta())

    def _settle(self) -> None:
        self._table.settle(SETTLED_AT_ONCE)
        self._attend()

    def _notify(self) -> None:
        notice = self._table.next_notice([change for change, followers in self._followers.items() if followers])
        if notice is None:
            return
        for callback in tuple(self._followers[notice.change]):
            try:
                callback(notice.user)
            except (Exception, gevent.Timeout):
                self._logger.exception("a function that follows who is online failed, for user %r", notice.user.id)


class PresenceService(Service):
    """The presence of all namespaces of this node.

    Args:
        node: the way to other nodes.
        clients: this node's own.
        logger: where to report.
    """

    def __init__(self, node: Node, clients: Clients, logger: logging.Logger) -> None:
        self._node = node
        self._clients = clients
        self._logger = logger
        self._spaces: dict[str, Presence] = {}
        self._is_full = False

    def of(self, namespace: str) -> Presence:
        """The presence of one namespace, always the same object.

        Raises:
            TypeError: the namespace is no text.
        """
        if not isinstance(namespace, str):
            raise TypeError(f"a namespace must be a str, not {type(namespace).__name__}")
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = Presence(self._node, self._clients, namespace, self._logger)
        return space

    @property
    def handlers(self) -> Mapping[MessageType, Handler]:
        return {MessageType.PRESENCE: self._on_presence, MessageType.PRESENCE_WANTED: self._on_wanted}

    def _on_presence(self, peer: Peer, message: ClusterMessage) -> None:
        # An emitter has no clients. A peer that has lapsed while its last messages were read will say it all again.
        if peer.is_emitter or not peer.present:
            return
        if message.nsp in self._spaces or self._has_room(peer, message.nsp):
            self.of(message.nsp)._take(peer, message.data)

    def _has_room(self, peer: Peer, namespace: str) -> bool:
        if len(self._spaces) < MAX_NAMESPACES and len(namespace) <= MAX_NAMESPACE_CHARS:
            return True
        if not self._is_full:
            self._is_full = True
            self._logger.error(
                "%s tells who is online in %.64r, which is ignored: more namespaces than %d, or too long a name",
                peer.uid,
                namespace,
                MAX_NAMESPACES,
            )
        return False

    def _on_wanted(self, peer: Peer, message: ClusterMessage) -> None:
        space = self._spaces.get(message.nsp)
        if space is not None:
            space._answer(peer, message.data)

    def linked(self, peer: Peer) -> None:
        if not peer.is_emitter:
            for space in list(self._spaces.values()):
                space._linked(peer)

    def lapsed(self, peer: Peer) -> None:
        # It may have come back before this was told.
        if not any(known.uid == peer.uid and known.present for known in self._node.peers):
            for space in list(self._spaces.values()):
                space._lapsed(peer.uid)

    def left(self) -> None:
        for space in list(self._spaces.values()):
            space._sweep([], monotonic())

    def client_gone(self, sid: str, namespace: str) -> None:
        space = self._spaces.get(namespace)
        if space is not None:
            space.untrack(sid)

    def sweep(self, now: float) -> None:
        known = [peer.uid for peer in self._node.peers]
        for space in list(self._spaces.values()):
            space._sweep(known, now)
