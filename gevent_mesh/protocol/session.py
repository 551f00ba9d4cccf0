"""A session: the two numbered message streams between two uids. It outlives the links that carry it.

Rules:

- Every message has a number, counted up by one from 1. What is numbered is delivered once, in order, or declared lost.
- A message stays in the outbox until the peer has acknowledged it. A new link resends what the peer does not have.
- The outbox is bounded. While no link is up the oldest messages make room for new ones; once the session is *abandoned*
  (the peer has been away for longer than the resume window) messages are only numbered, so that the loss stays exact.
- A peer that comes back to an outbox that has overflowed finds an eighth of it free, at the cost of the oldest
  messages: time to show that it moves, before the outbox is full again.
- Losses are settled when a link is made, and only then, because only then does the sender know what had arrived. A GAP
  that says so can itself be lost with its link; `_settled` remembers what was counted, so that it is counted once.
- `received` advances by one with each message that is handed on: what stops a reader half-way is resumed exactly.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

from ..errors import FrameError
from .frames import Gap, SessionState

__all__ = ["ACK_EVERY_BYTES", "ACK_EVERY_MESSAGES", "Session"]

ACK_EVERY_MESSAGES = 64
ACK_EVERY_BYTES = 256 * 1024


class Session:
    """One side of a session. Pure: it is driven by a link, and by a sender.

    Attributes:
        received: the number of the last message of the peer's stream that was handed on.
        sent_lost: messages of ours that are known to have been lost, exact as of the last link.
        received_lost: messages of the peer's that it declared lost.
        replayed: messages that were sent again over a new link.
        repeats: messages that arrived a second time and were dropped.
        resumed: links that continued the streams of an earlier link.
        acked_bytes: bytes that the peer has acknowledged; tells a slow peer from a stuck one.
        overflowed: messages made room for others since the last link went down.
    """

    def __init__(self, stream: bytes, *, limit_bytes: int) -> None:
        self._stream = stream
        self._their_stream = b""
        self._limit_bytes = limit_bytes

        # Outbox: `_unacked` was sent on the present link, `_waiting` was not. Together they are numbered
        # `_first`, `_first + 1`, ... without a hole.
        self._unacked: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()
        self._first = 1
        self._unacked_bytes = 0
        self._waiting_bytes = 0
        self._acked = 0
        self._settled = 0
        self._highest_taken = 0
        self._attached = False
        self._abandoned = False

        self.received = 0
        self._acked_by_us = 0
        self._unacked_in_bytes = 0

        self.sent_lost = 0
        self.received_lost = 0
        self.replayed = 0
        self.repeats = 0
        self.resumed = 0
        self.acked_bytes = 0
        self.overflowed = False

    def __repr__(self) -> str:
        state = "attached" if self._attached else "abandoned" if self._abandoned else "detached"
        return (
            f"<Session {self._stream.hex()} {state} next={self.next_sequence} outbox={self.outbox_messages} "
            f"({self.outbox_bytes} bytes) received={self.received} lost={self.sent_lost}/{self.received_lost}>"
        )

    # ------------------------------------------------------------------ sending

    @property
    def next_sequence(self) -> int:
        """The number that the next message will get."""
        return self._first + len(self._unacked) + len(self._waiting)

    @property
    def outbox_messages(self) -> int:
        """Messages that the peer has not acknowledged."""
        return len(self._unacked) + len(self._waiting)

    @property
    def outbox_begins(self) -> int:
        """Messages below this number are acknowledged, or can no longer be sent."""
        return self._first

    @property
    def has_outbox(self) -> bool:
        """Whether the peer has not acknowledged something."""
        return bool(self._unacked or self._waiting)

    @property
    def outbox_bytes(self) -> int:
        """Bytes of all messages that the peer has not acknowledged."""
        return self._unacked_bytes + self._waiting_bytes

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the present link has not taken yet."""
        return self._waiting_bytes

    @property
    def has_waiting(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._waiting)

    @property
    def last_taken(self) -> int:
        """The number of the last message that a link has taken, or need not take any more."""
        return self._first + len(self._unacked) - 1

    @property
    def undelivered(self) -> int:
        """Messages that are numbered, not in the outbox, and not known to have arrived: lost unless the peer got them
        without our hearing of it."""
        return max(0, self._first - 1 - self._settled)

    def fits(self, size_bytes: int) -> bool:
        """Tell whether a message of this size finds room without pushing out others."""
        return self._unacked_bytes + self._waiting_bytes + size_bytes <= self._limit_bytes

    def is_crowded(self, size_bytes: int) -> bool:
        """Tell whether a link is up and a message of this size would not fit: what is sent and not acknowledged is on
        its way to overflow as well."""
        return self._attached and self._unacked_bytes + self._waiting_bytes + size_bytes > self._limit_bytes

    def append(self, message: bytes) -> int:
        """Number a message and keep it until it is acknowledged.

        The bytes object is shared with other sessions, never copied. When there is no room and no link, the oldest
        messages go. With a link up nothing goes: the caller asks `is_crowded` first and cuts that of a slow consumer.

        Returns:
            How many bytes wait for the present link; 0 without one.
        """
        if self._abandoned:
            self._first += 1
            return 0
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        if self._attached:
            return self._waiting_bytes
        if self._waiting_bytes > self._limit_bytes:
            self.overflowed = True
            self._make_room(self._limit_bytes)
        return 0

    def _make_room(self, limit_bytes: int) -> None:
        while self._waiting_bytes > limit_bytes and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._first += 1

    def take(self, max_bytes: int) -> tuple[int, list[bytes]]:
        """Take what the present link should send next, in order: at least one message if any waits.

        Returns:
            The number of the first message, and the messages: as many as fit into `max_bytes`.
        """
        first = self._first + len(self._unacked)
        if self._waiting_bytes <= max_bytes:
            messages = list(self._waiting)
            self._waiting.clear()
            size = self._waiting_bytes
        else:
            messages, size = self._take_some(max_bytes)
        self._unacked.extend(messages)
        self._unacked_bytes += size
        self._waiting_bytes -= size
        self._highest_taken = max(self._highest_taken, first + len(messages) - 1)
        return first, messages

    def _take_some(self, max_bytes: int) -> tuple[list[bytes], int]:
        messages = [self._waiting.popleft()]
        size = len(messages[0])
        while self._waiting and size + len(self._waiting[0]) <= max_bytes:
            message = self._waiting.popleft()
            messages.append(message)
            size += len(message)
        return messages, size

    def acknowledge(self, upto: int) -> None:
        """Drop what the peer says it has.

        Raises:
            FrameError: it claims to have what was never sent on this link.
        """
        count = upto - self._first + 1
        if count <= 0:
            return
        if count > len(self._unacked):
            raise FrameError(f"message {upto} was acknowledged and never sent")
        popleft = self._unacked.popleft
        size = sum(map(len, [popleft() for _ in range(count)]))
        self._unacked_bytes -= size
        self.acked_bytes += size
        self._first += count
        self._acked = self._settled = self._first - 1

    def abandon(self) -> int:
        """The resume window is over: free the outbox, and from now on only count.

        Returns:
            How many messages were given up.
        """
        count = self.outbox_messages
        self._first += count
        self._unacked.clear()
        self._waiting.clear()
        self._unacked_bytes = self._waiting_bytes = 0
        self._abandoned = True
        return count

    # ------------------------------------------------------------------ links

    def state(self) -> SessionState:
        """What we tell the peer when a link is made. The former link's reader must have stopped."""
        return SessionState(self._stream, self._their_stream, self.received)

    def attach(self, theirs: SessionState) -> Gap | None:
        """A link is up: trim the outbox to what the peer has, and make the rest ready to be sent again.

        Returns:
            The GAP to send before anything else, if some messages can no longer be sent.

        Raises:
            FrameError: the peer claims to have what was never sent.
        """
        continued = theirs.their_stream == self._stream
        # A peer that does not know our stream is new to it, or has forgotten it: all that is certain is what it has
        # acknowledged. (Not `_settled`: the GAP that told it of a loss may never have arrived.)
        # One that knows it again may have missed the GAP that told it where to start: it cannot have less than that.
        has = max(theirs.received, self._acked) if continued else self._acked
        if has >= self.next_sequence:
            raise FrameError(f"the peer claims message {has}, and {self.next_sequence - 1} were sent")
        self._rewind()
        self._trim(has)
        if self.overflowed:
            self._make_room(self._limit_bytes * 7 // 8)
        self._acked = has
        self.replayed += max(0, self._highest_taken - self._first + 1)
        self._welcome_stream(theirs.stream)
        if continued:
            self.resumed += 1
        self._attached = True
        self._abandoned = False
        return self._settle(has, told=theirs.received if continued else 0)

    def detach(self) -> None:
        """The link is gone; everything unacknowledged waits for the next one."""
        self.overflowed = self.overflowed and not self._attached
        self._attached = False
        self._rewind()

    @property
    def attached(self) -> bool:
        """Whether a link carries this session now."""
        return self._attached

    def _rewind(self) -> None:
        self._waiting.extendleft(reversed(self._unacked))
        self._waiting_bytes += self._unacked_bytes
        self._unacked.clear()
        self._unacked_bytes = 0

    def _trim(self, has: int) -> None:
        while self._first <= has and self._waiting:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._first += 1

    def _welcome_stream(self, stream: bytes) -> None:
        if stream != self._their_stream:
            self._their_stream = stream
            self.received = 0
        self._acked_by_us = self.received
        self._unacked_in_bytes = 0

    def _settle(self, has: int, *, told: int) -> Gap | None:
        """Count what was lost since the last settlement, and say what the peer must skip."""
        last_gone = self._first - 1
        lost_now = max(0, last_gone - max(has, self._settled))
        self.sent_lost += lost_now
        self._settled = max(self._settled, has, last_gone)
        if last_gone <= told:
            return None
        # From `has` on, not from `_settled`: the peer counts by what it is told.
        return Gap(upto=last_gone, count=last_gone - has)

    # ------------------------------------------------------------------ receiving

    def skip(self, gap: Gap) -> int:
        """The peer can no longer send some messages.

        Returns:
            How many are newly lost.

        Raises:
            FrameError: it declares more lost than the numbers allow.
        """
        if gap.upto <= self.received:
            return 0
        if gap.count > gap.upto - self.received:
            raise FrameError(f"{gap.count} messages declared lost between {self.received} and {gap.upto}")
        self.received = gap.upto
        self.received_lost += gap.count
        return gap.count

    def note_received(self, size_bytes: int) -> None:
        """Count the bytes of a batch towards the next acknowledgement."""
        self._unacked_in_bytes += size_bytes

    @property
    def owes_ack(self) -> bool:
        """Whether the peer has not been told of everything that we received."""
        return self.received > self._acked_by_us

    @property
    def owes_ack_now(self) -> bool:
        """Whether that is so much that it should be told without waiting for the timer."""
        return (
            self.received - self._acked_by_us >= ACK_EVERY_MESSAGES or self._unacked_in_bytes >= ACK_EVERY_BYTES
        ) and self.owes_ack

    def acknowledgement(self) -> int:
        """The number to write into a frame that goes out now; nothing is owed after that."""
        self._acked_by_us = self.received
        self._unacked_in_bytes = 0
        return self.received

    def outbox(self) -> list[bytes]:
        """What the peer has not acknowledged, oldest first (for tests and reports)."""
        return list(chain(self._unacked, self._waiting))
