"""Networks that come apart and heal. One mesh, whose links all lead through a proxy, goes through all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.processes import FULL, Node, Proxy, fleet, linked
from tests.nemesis.faults import judge, lost, time_until, until
from tests.nemesis.figures import Figures
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

NODES = 10 if FULL else 4
RATE = 40
TIMEOUT_SECONDS = 10.0 if FULL else 0.8
RESUME_WINDOW = 30.0 if FULL else 2.5
OPTIONS: dict[str, Any] = {
    "heartbeat_interval": TIMEOUT_SECONDS / 2 if FULL else 0.25,
    "heartbeat_timeout": TIMEOUT_SECONDS,
    "resume_window": RESUME_WINDOW,
}
BLINK, BREAK, LAPSE = (8.0, 20.0, 60.0) if FULL else (0.4, 1.5, 4.8)
"""Seconds: shorter than the timeout; longer, within the resume window; beyond it."""
KINDS = ["holds", "swallows"] if FULL else ["holds"]
"""Whoever dials into a network that swallows notices after five seconds: longer than the window of a short run."""
WHOLE_SECONDS = {"holds": 5.0, "swallows": 10.0}
"""A dial that was swallowed just before the repair is noticed five seconds later, and is in the way that long."""


@dataclass
class Mesh:
    """Nodes behind a proxy."""

    nodes: list[Node]
    proxy: Proxy

    @property
    def halves(self) -> tuple[list[Node], list[Node]]:
        middle = len(self.nodes) // 2
        return self.nodes[:middle], self.nodes[middle:]

    def fault(self, sources: Sequence[Node], sinks: Sequence[Node], kind: str) -> None:
        self.proxy.do("fault", [node.uid for node in sources], [node.uid for node in sinks], **{kind: True})

    def part(self, kind: str) -> None:
        """Nothing passes between the halves any more."""
        one, other = self.halves
        self.fault(one, other, kind)
        self.fault(other, one, kind)

    def repair(self) -> float:
        """Returns the seconds until all are linked again."""
        self.proxy.do("repair")
        began = time.monotonic()
        linked(self.nodes, 30)
        return time.monotonic() - began

    def links(self) -> list[set[str]]:
        return [node.links() for node in self.nodes]

    def are_apart(self, ones: Sequence[Node], others: Sequence[Node]) -> bool:
        """Whether neither side has a link to the other any more."""
        return not any(
            node.links() & {other.uid for other in theirs}
            for mine, theirs in ((ones, others), (others, ones))
            for node in mine
        )

    def judge(self) -> int:
        """Hold all to what is promised. Returns how many messages were lost since the last time."""
        before, self.lost = self.lost, lost(judge(self.nodes))
        return self.lost - before

    lost: int = 0


@pytest.fixture(scope="module")
def shared() -> Iterator[Mesh]:
    with fleet() as ships:
        proxy = ships.proxy()
        nodes = ships.nodes(NODES, ships.discovery(), proxy=proxy, ear=True, **OPTIONS)
        linked(nodes, 30)
        yield Mesh(nodes, proxy)


@pytest.fixture
def mesh(shared: Mesh) -> Iterator[Mesh]:
    for node in shared.nodes:
        node.do("start_traffic", RATE)
    try:
        yield shared
    finally:
        shared.proxy.do("repair")
        for node in shared.nodes:
            node.do("stop_traffic")


@pytest.mark.row("8 s partition, 5 against 5", "0 lost; whole within 5 s of repair")
@pytest.mark.parametrize("kind", KINDS)
def test_short_partition_loses_nothing(mesh: Mesh, kind: str, figures: Figures) -> None:
    mesh.part(kind)
    until(time.monotonic() + BLINK)
    figures["whole_seconds"] = mesh.repair()
    # What was swallowed shows when the heartbeats are late: after the repair.
    until(time.monotonic() + (TIMEOUT_SECONDS - BLINK + 1 if kind == "swallows" else 0))
    figures["whole_again_seconds"] = time_until(lambda: all(len(links) == NODES - 1 for links in mesh.links()), 30)
    figures["lost"] = mesh.judge()
    assert figures["lost"] == 0
    assert max(figures["whole_seconds"], figures["whole_again_seconds"]) < WHOLE_SECONDS[kind]


@pytest.mark.row("20 s partition, 5 against 5", "0 lost; whole within 5 s of repair")
@pytest.mark.parametrize("kind", KINDS)
def test_partition_within_the_resume_window_loses_nothing(mesh: Mesh, kind: str, figures: Figures) -> None:
    mesh.part(kind)
    began = time.monotonic()
    figures["apart_seconds"] = time_until(lambda: mesh.are_apart(*mesh.halves), TIMEOUT_SECONDS + 5)
    until(began + BREAK)
    figures["whole_seconds"] = mesh.repair()
    figures["lost"] = mesh.judge()
    assert figures["lost"] == 0
    assert figures["apart_seconds"] < TIMEOUT_SECONDS + 2
    assert figures["whole_seconds"] < WHOLE_SECONDS[kind]


@pytest.mark.row("60 s partition, 5 against 5", "exact count of lost on both sides; whole within 5 s; no double links")
@pytest.mark.parametrize("kind", KINDS)
def test_partition_beyond_the_resume_window_counts_its_losses_exactly(mesh: Mesh, kind: str, figures: Figures) -> None:
    before = [node.account() for node in mesh.nodes]
    mesh.part(kind)
    until(time.monotonic() + LAPSE)
    figures["whole_seconds"] = mesh.repair()
    figures["lost"] = mesh.judge()
    after = [node.account() for node in mesh.nodes]
    missing = sum(
        receiver.heard[sender.boot].missing(was.sent + 1, sender.sent)
        for was, sender in zip(before, after, strict=True)
        for receiver in after
        if receiver is not sender
    )
    figures["missing"] = missing
    # Both sides say the same, and it is the exact number, or the judge would have objected. Not all were events.
    assert 0 < missing <= figures["lost"]
    assert figures["whole_seconds"] < WHOLE_SECONDS[kind]


@pytest.mark.row("one-way partition", "both ends down within 12 s")
@pytest.mark.parametrize("kind", KINDS)
def test_one_way_partition_takes_both_ends_down(mesh: Mesh, kind: str, figures: Figures) -> None:
    mute, *others = mesh.nodes
    mesh.fault([mute], others, kind)
    figures["down_seconds"] = time_until(lambda: mesh.are_apart([mute], others), TIMEOUT_SECONDS + 5)
    figures["whole_seconds"] = mesh.repair()
    figures["lost"] = mesh.judge()
    assert figures["lost"] == 0
    assert figures["down_seconds"] < TIMEOUT_SECONDS + 2
    assert figures["whole_seconds"] < WHOLE_SECONDS[kind]


@pytest.mark.row("half-open, then redial", "the new socket replaces the old within 1 s")
@pytest.mark.parametrize(
    "dialer_knows",
    # The listener dials after three seconds: in a short run the other side has noticed by then.
    [True, pytest.param(False, marks=pytest.mark.skipif(not FULL, reason="at full size only"))],
    ids=["the dialer knows", "the listener knows"],
)
def test_new_socket_replaces_a_half_open_one(mesh: Mesh, dialer_knows: bool, figures: Figures) -> None:
    # The smaller uid dials, and the larger one listens.
    dialer, *_, listener = sorted(mesh.nodes, key=lambda node: node.uid)
    ignorant, knowing = (listener, dialer) if dialer_knows else (dialer, listener)
    before = linked_at(ignorant, knowing)
    began = time.monotonic()
    assert mesh.proxy.do("half_open", listener.route, dialer_knows=dialer_knows) > 0
    eventually(lambda: linked_at(ignorant, knowing) > before, 10)
    assert knowing.uid in ignorant.links()
    # Whoever dials again comes to the other one's route.
    dialled = mesh.proxy.state()["routes"][str(ignorant.route)]["dialled"]
    redialled = min(at for at, uid in dialled if at > began and uid == knowing.uid)
    figures["redialled_seconds"] = redialled - began
    figures["replaced_seconds"] = linked_at(ignorant, knowing) - redialled
    linked(mesh.nodes)
    figures["lost"] = mesh.judge()
    assert figures["replaced_seconds"] < 1.0
    assert figures["lost"] == 0


def linked_at(node: Node, other: Node) -> float:
    at: float = node.state()["linked_at"][other.uid]
    return at
