"""Emitters and their relays: how an event of an emitter comes to every node, once and in order.

An *emitter* publishes, and is linked to one node at a time: its *relay*, which passes on to all others. It counts its
messages up by one from 1.

Rules:

- The emitter *retains* a message until a relay has said that it is everywhere: delivered at the relay, and acknowledged
  (or not to be had any more) by every peer that is *owed* it: one that is dead, forgotten, or that discovery does not
  name any more and whose link is down, is not. A peer that has merely lapsed is. Over each new link, to the same node
  or to another, it sends all that it retains again, in order.
- A relay passes on whatever comes from its emitter, also what it has seen before: others may lack it.
- Every node remembers the highest number that it has delivered of each emitter, whichever way it came, and drops what
  is not above it.

Why the highest number is enough. Take a node that no relay gives up, and for which outboxes have room. Each way to it
(one link of the emitter, one session between relay and node) carries consecutive numbers in order: that is what links
and sessions promise. A way begins with the oldest retained number, and all below that one have been acknowledged by
this node, or they would still be retained. So whenever a number comes, over whichever way, the one before it is there
already: it is the next one, or it is a repeat. Numbers can only be missing for a node that some relay had given up,
which is to say: one that was not in the mesh, or was cut off for longer than `resume_window`, or took nothing for
longer than `heartbeat_timeout` while its outbox was full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from ..errors import MessageError
from .messages import MAX_REFUSED, ClusterMessage, MessageType, parse
from .peers import Peer
from .unpacking import DECODE, read

__all__ = ["Delivered", "Receipt", "Retained", "open_answer", "open_message", "open_question"]

MAX_EMITTERS = 10_000
"""How many emitters a node remembers; the ones that were silent for longest are forgotten first."""
FORGET_SECONDS = 3600.0
"""How long an emitter is remembered after its last message."""

_PUBLISHED = frozenset(
    {
        MessageType.BROADCAST,
        MessageType.SOCKETS_JOIN,
        MessageType.SOCKETS_LEAVE,
        MessageType.DISCONNECT_SOCKETS,
        MessageType.SERVER_SIDE_EMIT,
    }
)
"""What an emitter may say to all nodes."""
_ASKED = _PUBLISHED | {
    MessageType.FETCH_SOCKETS,
    MessageType.COUNT_SOCKETS,
    MessageType.LIST_ROOMS,
    MessageType.COUNT_SERVERS,
}
"""What it may ask its node."""
_ANSWERED = frozenset(
    {
        MessageType.FETCH_SOCKETS_RESPONSE,
        MessageType.ANSWER,
        MessageType.SERVER_SIDE_EMIT_RESPONSE,
        MessageType.BROADCAST_ACK,
    }
)
"""What its node may answer."""


def open_message(packed: bytes, emitter: str) -> ClusterMessage:
    """Check the message inside of a PUBLISH or RELAY.

    Raises:
        MessageError: it is not one that this emitter may send.
    """
    message = _open(packed, _PUBLISHED)
    _check_sender(message, emitter)
    if message.type is not MessageType.BROADCAST and message.data.get("requestId") is not None:
        raise MessageError(f"an emitter cannot ask for answers to {message.type.name}")
    return message


def open_question(packed: bytes, emitter: str) -> ClusterMessage:
    """Check the message inside of an ASK.

    Raises:
        MessageError: it is not one that this emitter may ask.
    """
    message = _open(packed, _ASKED)
    _check_sender(message, emitter)
    if message.data.get("requestId") is None:
        raise MessageError(f"a {message.type.name} that is asked needs a requestId")
    return message


def open_answer(packed: bytes) -> ClusterMessage:
    """Check a message inside of a REPLY.

    Raises:
        MessageError: it is no answer.
    """
    return _open(packed, _ANSWERED)


def _open(packed: bytes, allowed: frozenset[MessageType]) -> ClusterMessage:
    message = parse(read(packed, **DECODE))
    if message.type not in allowed:
        raise MessageError(f"{message.type.name} cannot be in a message for or from an emitter")
    return message


def _check_sender(message: ClusterMessage, emitter: str) -> None:
    if message.uid != emitter:
        raise MessageError(f"emitter {emitter} sent a message in the name of {message.uid}")


class Retained:
    """What an emitter keeps, numbered, until it is everywhere.

    Args:
        limit_bytes: how much may be kept; one message always finds room.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        # Numbered `_first`, `_first + 1`, ... without a hole; `_sent` comes first.
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._first = 1
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    @property
    def first_number(self) -> int:
        """Every message below this number is everywhere."""
        return self._first

    @property
    def next_number(self) -> int:
        """The number of the message that is appended next."""
        return self._first + len(self)

    @property
    def is_empty(self) -> bool:
        """Whether all is everywhere."""
        return not self._bytes

    def fits(self, size_bytes: int, besides_bytes: int = 0) -> bool:
        """Whether there is room for a message of this size, besides what is about to be appended."""
        kept = self._bytes + besides_bytes
        return not kept or kept + size_bytes <= self._limit_bytes

    def append(self, message: bytes) -> None:
        """Keep a message, which carries `next_number`."""
        self._unsent.append(message)
        self._bytes += len(message)

    def take(self) -> list[bytes]:
        """All that the present link has not been given, in order."""
        messages = list(self._unsent)
        self._sent.extend(messages)
        self._unsent.clear()
        return messages

    def rewind(self) -> None:
        """There is a new link: everything is to be sent (again)."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()

    def relayed(self, upto: int) -> None:
        """A relay says that everything up to this number is everywhere."""
        while self._first <= upto and len(self):
            message = (self._sent or self._unsent).popleft()
            self._bytes -= len(message)
            self._first += 1


class Delivered:
    """What a node has delivered to its own clients, for each emitter. Bounded in number and in time."""

    def __init__(self, max_emitters: int = MAX_EMITTERS, forget_seconds: float = FORGET_SECONDS) -> None:
        self._max_emitters = max_emitters
        self._forget_seconds = forget_seconds
        # (highest number, when) by uid, the ones that were silent for longest first.
        self._highest: dict[str, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._highest)

    def is_new(self, emitter: str, number: int, now: float) -> bool:
        """Whether to deliver this one. It counts as delivered from then on."""
        highest, _ = self._highest.pop(emitter, (0, 0.0))
        self._highest[emitter] = (max(highest, number), now)
        if len(self._highest) > self._max_emitters:
            del self._highest[next(iter(self._highest))]
        return number > highest

    def sweep(self, now: float) -> None:
        """Forget emitters that have been silent for long."""
        for emitter, (_, heard_at) in list(self._highest.items()):
            if now - heard_at < self._forget_seconds:
                return
            del self._highest[emitter]


@dataclass(slots=True)
class Receipt:
    """What the relay of an emitter may tell it: how far everybody has got.

    One question is open at a time: whether all peers that are owed it have acknowledged what had been passed on when it
    was put. What is passed on meanwhile waits for the next one, so the cost does not grow with the number of messages.

    Attributes:
        taken: the highest number that was delivered here and put into the outboxes of all peers.
        told: the highest number that the emitter was told of.
        refused: numbers of messages that nobody got, as they could not be passed on; those above `MAX_REFUSED` are not
            noted.
    """

    taken: int = 0
    told: int = 0
    refused: list[int] = field(default_factory=list)
    _upto: int = 0
    _awaited: list[tuple[Peer, int]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the emitter has not been told of everything."""
        return self.told < self.taken

    def settle(self, owed: Collection[Peer]) -> int | None:
        """See who has acknowledged what.

        Args:
            owed: the peers that may still get what is sent to them (see `PeerTable.owed`).

        Returns:
            The number up to which everything is everywhere, if that is news for the emitter.
        """
        before = self.told
        self._see_acknowledged(owed)
        if not self._awaited and self.taken > self._upto:
            self._upto = self.taken
            self._awaited = [(peer, peer.session.next_sequence - 1) for peer in owed]
            self._see_acknowledged(owed)
        return self.told if self.told > before else None

    def refuse(self, number: int) -> None:
        """This message is not passed on. It is not kept for ever either: it counts as taken."""
        if len(self.refused) < MAX_REFUSED:
            self.refused.append(number)

    def take_refused(self) -> list[int]:
        """The refused ones among those that the emitter is told of now."""
        taken = [number for number in self.refused if number <= self.told]
        self.refused = [number for number in self.refused if number > self.told]
        return taken

    def _see_acknowledged(self, owed: Collection[Peer]) -> None:
        self._awaited = [
            (peer, number) for peer, number in self._awaited if number >= peer.session.outbox_begins and peer in owed
        ]
        if not self._awaited:
            self.told = self._upto
