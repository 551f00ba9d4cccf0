"""What Node peers answer to questions of ours that they are asked in their own words (see `Translator`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from .. import messages
from ..messages import ClusterMessage, MessageType

__all__ = ["as_answer"]


def as_answer(kind: MessageType, message: ClusterMessage) -> ClusterMessage:
    """What comes for a question of some kind, in the form in which our own nodes answer it."""
    if message.type is not MessageType.FETCH_SOCKETS_RESPONSE or kind is MessageType.FETCH_SOCKETS:
        return message
    request_id, packed = message.data["requestId"], message.data.get("packed", ())
    if kind is MessageType.LIST_ROOMS:
        data = messages.answer_rooms(request_id, _count_rooms(packed).items())
    else:
        data = messages.answer_count(request_id, len(packed))
    return ClusterMessage(MessageType.ANSWER, message.uid, message.nsp, data)


def _count_rooms(packed: Iterable[tuple[str, bytes]]) -> Counter[Hashable]:
    rooms: Counter[Hashable] = Counter()
    for _, one in packed:
        socket = messages.unpack_socket(one)
        rooms.update(room for room in socket["rooms"] if room != socket["id"])
    return rooms
