"""One link: the greenlets that drive a link's protocol over a transport.

Rules:

- Three greenlets, one way out. The *reader* is the greenlet that calls `run`; the link is over when it returns. The
  *writer* is the only one that ever sends. The *heartbeat* starts when the link is up.
- Others end a link with `cut` or `leave`, which make the reader return; they never take it apart themselves. So "the
  link has ended" also means "nothing of it is being handed on any more", which resuming a session relies on.
- The reader never runs application code that could wait (see `gevent_mesh.service`), and it gives way every few
  milliseconds, so that heartbeats and clients are served during a flood.
- A reader that is at work on a message does not read: its peer is not silent then, and nobody kills it.
- A reader that does not come back from a message is *left behind* with it (`leave_behind`): the link is over without
  it, and the next one begins behind that message. So the message is acted on once, when the reader does come back.
  Killing it would lose the rest, and sending it again would repeat what is done.
- A link whose writer or heartbeat ends for any other reason than the link's end is cut, and the traceback logged.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event as GeventEvent

from ..errors import HandshakeError, MessageError, RemoteError
from ..protocol.frames import Refusal
from ..protocol.link import AnyLinkProtocol, Claimed, Event, Identity, Left, Lost, Phase, Proven, Status
from ..protocol.messages import ClusterMessage, MessageType
from ..protocol.peers import Peer
from .lines import LinesPerSecond
from .listener import StrangerTicket
from .pause import SLICE_SECONDS, at_work, give_way, slice_behind_read, worked_at
from .transport import Transport

__all__ = ["Link", "LinkOwner"]

logger = logging.getLogger(__name__)

_BROADCAST = MessageType.BROADCAST

ACK_SECONDS = 0.2
STUCK_SECONDS = 5.0
"""A reader that has not given way for so long in the middle of a message does not come back. (It is left behind sooner
where half of `heartbeat_timeout` is less, see `gevent_mesh.net.watch`.)"""
PARTING_SECONDS = 1.0
"""How long the last words (BYE) may take to leave."""


class LinkOwner(Protocol):
    """What a link tells the mesh. Called in the reader's greenlet; only `link_proven` may wait."""

    def link_claimed(self, uid: str) -> None:
        """A dialer says who it is. Raises HandshakeError to refuse."""

    def link_proven(self, link: Link, identity: Identity) -> Peer:
        """The other side is authentic: make it a peer. Raises HandshakeError to refuse."""

    def link_event(self, link: Link, event: Status | Lost | Left) -> None:
        """Something happened on a link that is up."""

    def link_message(self, peer: Peer, message: ClusterMessage) -> None:
        """A message was received, in order and once."""

    def link_pauses(self) -> None:
        """The reader is about to let others run, or to do anything else than to hand on events for clients."""

    def link_relieved(self) -> None:
        """A peer has acknowledged something."""

    def link_ended(self, link: Link, reason: str) -> None:
        """The link is over."""

    def status(self) -> dict[str, Any]:
        """What heartbeats say of this node."""


class Link:
    """Drives one connection.

    Args:
        transport: the connection, after the WebSocket upgrade; owned by the link from now on.
        protocol: its rules.
        owner: who is told.
    """

    def __init__(self, transport: Transport, protocol: AnyLinkProtocol, owner: LinkOwner) -> None:
        self.transport = transport
        self.protocol = protocol
        self.peer: Peer | None = None
        self.ticket: StrangerTicket | None = None
        self.ended = GeventEvent()
        self.error: RemoteError | None = None
        self._owner = owner
        self._reason = ""
        self._wake = GeventEvent()
        self._idle = False
        self._is_handling = False
        self._is_over = False
        self.lines = LinesPerSecond()
        self.reader: gevent.Greenlet | None = None
        self._writer: gevent.Greenlet | None = None
        self._heart: gevent.Greenlet | None = None
        self._ack_timer: Any = None

    def __repr__(self) -> str:
        return f"<Link {self.protocol!r} {self.transport.peer_address}>"

    @property
    def reason(self) -> str:
        """Why it is over."""
        return self._reason or "it was closed"

    # ------------------------------------------------------------------ for others

    def wake(self) -> None:
        """There may be something to send. Cheap, never waits, callable from anywhere in this thread."""
        if self._idle:
            self._idle = False
            self._wake.set()

    def cut(self, reason: str) -> None:
        """End the link at once, with a TCP reset: whatever it had not delivered is sent again by the next one."""
        self._reason = self._reason or reason
        self.protocol.close()
        self.transport.abort()

    def leave(self, code: Refusal, reason: str) -> None:
        """End the link politely: say BYE behind what was sent before. Waits for at most `PARTING_SECONDS`."""
        self._reason = self._reason or reason
        self.protocol.refuse(code, reason)
        self._part()
        self.transport.close()
        if not self.ended.wait(PARTING_SECONDS):
            self.transport.abort()

    @property
    def is_at_work(self) -> bool:
        """Whether the reader is in the middle of a message, and not stuck there."""
        return self._is_handling and self.reader is not None and monotonic() - worked_at(self.reader) < STUCK_SECONDS

    @property
    def reader_at(self) -> float | None:
        """Where the reader is, as a number that changes whenever it comes further; None while it waits for bytes."""
        if self.reader is None or not (self._is_handling or self.is_cut):
            return None
        return worked_at(self.reader)

    @property
    def is_cut(self) -> bool:
        """Whether the reader has nothing to do but to come back."""
        return self.protocol.phase is Phase.CLOSED and not self._is_handling and not self._is_over

    @property
    def writer_at(self) -> int | None:
        """The same for the writer; None while it has nothing to send, or the socket takes nothing."""
        if self._writer is None or self._idle or not self.transport.is_writable:
            return None
        return self.transport.sent_bytes

    def stacks(self) -> str:
        """Where the reader and the writer stand."""
        return "".join(
            f"the {name}:\n{''.join(traceback.format_stack(greenlet.gr_frame))}"
            for name, greenlet in (("reader", self.reader), ("writer", self._writer))
            if greenlet is not None and greenlet.gr_frame is not None
        )

    def leave_behind(self, reason: str) -> None:
        """End a link whose reader does not come back, without it."""
        self.cut(reason)
        self._finish()

    def forget(self) -> None:
        """In a forked child: give up our copy of the connection, and all greenlets, without a word to anybody."""
        self.protocol.close()
        self.transport.forget()
        self._end_ack_timer()
        for greenlet in (self.reader, self._writer, self._heart):
            if greenlet is not None:
                greenlet.kill(block=False)

    # ------------------------------------------------------------------ reader

    def run(self) -> None:
        """Read until the link is over. Never raises because of the other side."""
        self.reader = gevent.getcurrent()
        self._writer = gevent.spawn(self._write)
        self._writer.link(self._greenlet_ended)
        try:
            self._read()
        except RemoteError as exc:
            # Without its traceback, in whose frames what had come would be kept.
            self.error = exc.with_traceback(None)
            self._reason = self._reason or str(exc)
        except (Exception, gevent.Timeout):
            logger.exception("a link failed because of an error of ours: %r", self)
            self._reason = self._reason or "internal error"
        except BaseException:
            if self.protocol.phase is Phase.UP:
                logger.exception("somebody has killed the reader of %r", self)
                self._reason = self._reason or "its reader was killed"
            raise
        finally:
            self._finish()

    def _read(self) -> None:
        protocol, transport = self.protocol, self.transport
        slice_ends = monotonic() + SLICE_SECONDS
        while protocol.phase is not Phase.CLOSED:
            began = monotonic()
            data = transport.recv()
            now = monotonic()
            slice_ends = slice_behind_read(began, now, slice_ends)
            if not data:
                self._reason = self._reason or "the connection was closed"
                return
            self._is_handling = True
            at_work()
            try:
                for event in protocol.receive(data, now):
                    self._handle(event)
                    if monotonic() > slice_ends:
                        self._owner.link_pauses()
                        give_way()
                        slice_ends = monotonic() + SLICE_SECONDS
            finally:
                self._owner.link_pauses()
            self._after_receive()
            self._is_handling = False

    def _handle(self, event: Event) -> None:
        if type(event) is ClusterMessage:
            peer = self.peer
            if event.type is not _BROADCAST:
                self._owner.link_pauses()
            if peer is not None:
                self._hand_on(peer, event)
            return
        self._owner.link_pauses()
        if isinstance(event, Claimed):
            self._ask(lambda: self._owner.link_claimed(event.uid))
        elif isinstance(event, Proven):
            self._ask(lambda: self._prove(event.peer))
        elif isinstance(event, (Status, Lost, Left)):
            self._owner.link_event(self, event)
            if isinstance(event, Left):
                self._reason = self._reason or f"the peer said goodbye: {event.reason}"

    def _hand_on(self, peer: Peer, message: ClusterMessage) -> None:
        try:
            self._owner.link_message(peer, message)
        except MessageError:
            # It can only be seen here that it is malformed.
            self.protocol.undecodable += 1
        except (Exception, gevent.Timeout):
            self._owner.link_pauses()
            # One message that we cannot handle must not cost the ones behind it, and a thousand must not fill the log.
            if self.lines.next(monotonic()) is not None:
                logger.exception("a %s message from %s could not be handled", message.type.name, peer.uid)

    def _ask(self, decision: Callable[[], None]) -> None:
        try:
            decision()
        except HandshakeError as exc:
            self.error = exc
            self._reason = self._reason or str(exc)
            self.protocol.refuse(Refusal(exc.code), exc.reason)

    def _prove(self, identity: Identity) -> None:
        self.peer = self._owner.link_proven(self, identity)
        if self.protocol.phase is Phase.UP:
            self._heart = gevent.spawn(self._beat)
            self._heart.link(self._greenlet_ended)

    def _after_receive(self) -> None:
        """Answer what came: handshake frames and pongs at once, acknowledgements at once or after a short while."""
        peer = self.peer
        if peer is not None:
            session = peer.session
            if session.owes_ack_now:
                self.protocol.request_ack()
            elif session.owes_ack and self._ack_timer is None:
                # A new one each time: one that has fired and is started again fires at once.
                self._ack_timer = gevent.get_hub().loop.timer(ACK_SECONDS)
                self._ack_timer.start(self._ack_due)
            self._owner.link_relieved()
        if self.protocol.has_outgoing:
            self.wake()

    def _ack_due(self) -> None:
        # Runs in the hub: must not wait.
        self._end_ack_timer()
        self.protocol.request_ack()
        self.wake()

    def _end_ack_timer(self) -> None:
        timer, self._ack_timer = self._ack_timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _greenlet_ended(self, greenlet: gevent.Greenlet) -> None:
        # Runs in the hub: must not wait. They end by themselves when the link does, and not before.
        if self.protocol.phase is not Phase.CLOSED and not self._is_over:
            logger.error("a greenlet of %r has ended too early: %r", self, greenlet.exception or greenlet.value)
            self.cut("internal error")

    def _finish(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._end_ack_timer()
        if self._heart is not None:
            self._heart.kill(block=False)
        try:
            self._part()
        finally:
            # Also when somebody kills the reader meanwhile.
            self.protocol.close()
            self.transport.close()
            self._tell_ended()

    def _tell_ended(self) -> None:
        try:
            self._owner.link_ended(self, self._reason)
        finally:
            self.ended.set()

    def _part(self) -> None:
        """Let the writer say the last words, if there are any."""
        writer = self._writer
        if writer is None:
            return
        self.wake()
        has_last_words = self.protocol.phase is Phase.CLOSED and not self.transport.ended
        writer.join(PARTING_SECONDS if has_last_words else 0)
        if not writer.dead:
            self.transport.abort()
            writer.kill(block=False)

    # ------------------------------------------------------------------ writer

    def _write(self) -> None:
        protocol, transport = self.protocol, self.transport
        try:
            while True:
                data = protocol.outgoing()
                if data:
                    transport.send(data)
                    continue
                if protocol.phase is Phase.CLOSED:
                    return
                self._idle = True
                self._wake.wait()
                self._wake.clear()
        except OSError as exc:
            self.cut(f"sending failed: {exc}")
        except (Exception, gevent.Timeout):
            logger.exception("the writer of a link failed because of an error of ours: %r", self)
            self.cut("internal error")

    # ------------------------------------------------------------------ heartbeat

    def _beat(self) -> None:
        try:
            self._beat_while_up()
        except (Exception, gevent.Timeout):
            logger.exception("the heartbeat of a link failed because of an error of ours: %r", self)
            self.cut("internal error")

    def _beat_while_up(self) -> None:
        protocol = self.protocol
        while protocol.phase is Phase.UP:
            gevent.sleep(max(0.0, protocol.next_tick() - monotonic()))
            if not protocol.tick(monotonic(), self._owner.status(), reads=not self.is_at_work):
                self.cut(f"nothing was heard for {monotonic() - protocol.heard_at:.1f} s")
                return
            self.wake()
