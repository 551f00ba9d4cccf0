"""What an event for few costs the nodes that it is not for.

The members of a room are on one node, the second; the first one emits, at a fixed rate. What the remaining nodes
handle and spend meanwhile is counted by themselves, and what they spend in the same time without events is taken off.
The same is done with events for one client, by its sid; there also what the emitting node sends.

A message is one event, or whatever else the nodes say to each other. So many bytes have come for nothing as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..children import BenchmarkError, children
from ..contenders import CONTENDERS
from ..measuring import Kind, Measure, Sample
from ..servers import Servers

__all__ = ["MEASURE"]

ROOM = "members"
PACE = 500
SECONDS, QUICK_SECONDS = 4.0, 1.0


@dataclass(frozen=True)
class Spell:
    """What was counted while events were emitted, all but `lost` for each event.

    Attributes:
        sent: messages of the emitting node.
        received: messages that the node of the client has handled.
        elsewhere: messages that each of the other nodes has handled.
        cpu_us: CPU time of each of the other nodes.
    """

    sent: float
    received: float
    elsewhere: float
    cpu_us: float
    lost: int


def _sample(contender: str, nodes: int, quick: bool) -> Sample:
    seconds = QUICK_SECONDS if quick else SECONDS
    with children() as started:
        servers = Servers(started, contender, nodes)
        to_room = _spell(servers, seconds, lambda _sid: ROOM)
        to_client = _spell(servers, seconds, lambda sid: sid)
    return {
        "room_messages": to_room.elsewhere,
        "room_cpu_us": to_room.cpu_us,
        "room_sent": to_room.sent,
        "sid_messages": to_client.elsewhere,
        "sid_cpu_us": to_client.cpu_us,
        "sid_sent": to_client.sent,
        "sid_received": to_client.received,
        "lost": to_room.lost + to_client.lost,
    }


def _spell(servers: Servers, seconds: float, to: Callable[[str], str]) -> Spell:
    client = servers.warm_client("counts")
    sid = servers.ask(1, "enter", room=ROOM)[-1]
    before = _facts(servers)
    time.sleep(seconds)
    idle = _facts(servers)
    emitted: int = servers.ask(0, "pace", rate=PACE, seconds=seconds, to=to(sid))["emitted"]
    tally = servers.tally(client)
    if not tally.received:
        raise BenchmarkError("no event has reached the client")
    after = _facts(servers)

    def each(node: int, fact: str) -> float:
        # One more than was emitted: the end is an event as well.
        during, without = after[node][fact] - idle[node][fact], idle[node][fact] - before[node][fact]
        return (during - without) / (emitted + 1)

    others = range(2, len(servers.nodes))
    return Spell(
        sent=each(0, "sent"),
        received=each(1, "handled"),
        elsewhere=sum(each(node, "handled") for node in others) / len(others),
        # The clock of CPU time is read at any moment of a turn: what is nothing may come out below it.
        cpu_us=max(0.0, sum(each(node, "cpu_seconds") for node in others) / len(others) * 1e6),
        lost=emitted - tally.received,
    )


def _facts(servers: Servers) -> list[dict[str, float]]:
    return [servers.ask(node, "facts") for node in range(len(servers.nodes))]


MEASURE = Measure(
    key="rooms",
    title=f"Events for a room, or a client, of one node ({PACE} a second)",
    unit="nodes",
    points=(5, 10),
    quick_points=(5,),
    contenders={key: CONTENDERS[key].name for key in ("mesh", "mesh-interest", "redis")},
    kinds={
        "room_messages": Kind("to a room: messages at each node without a member, per event", 2),
        "room_cpu_us": Kind("to a room: CPU µs/event of each node without a member"),
        "room_sent": Kind("to a room: messages that the emitting node sends, per event", 2, more_is_better=None),
        "sid_messages": Kind("to a sid: messages at each node without the client, per event", 2),
        "sid_cpu_us": Kind("to a sid: CPU µs/event of each node without the client"),
        "sid_sent": Kind("to a sid: messages that the emitting node sends, per event", 2, more_is_better=None),
        "sid_received": Kind("to a sid: messages at the client's node, per event", 2, more_is_better=None),
        "lost": Kind("events lost", 0, never=True),
    },
    sample=_sample,
)
