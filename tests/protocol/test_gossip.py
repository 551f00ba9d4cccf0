"""Gossip: any mesh that hangs together becomes whole, the dead do not go round, and nobody can make it cost much."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import MessageError
from gevent_mesh.protocol import gossip
from gevent_mesh.protocol.gossip import (
    ASK_SECONDS,
    MAX_KNOWN,
    MAX_NAMED,
    SAME_PEER_SECONDS,
    Gossip,
    check_nodes,
    check_nodes_wanted,
    digest,
    lacking,
    nodes,
    nodes_wanted,
)
from gevent_mesh.protocol.membership import Membership, PeerState

OURS, THEIRS = b"ours....", b"theirs.."


def uid_of(number: int) -> str:
    return f"{number:016x}"


def address_of(number: int) -> str:
    return f"ws://node-{number}:4000"


# ---------------------------------------------------------------------- digest and messages


@given(st.sets(st.integers(0, 2**64 - 1), max_size=8), st.randoms())
def test_the_digest_is_that_of_the_set(numbers: set[int], rng: random.Random) -> None:
    uids = [uid_of(number) for number in numbers]
    shuffled = rng.sample(uids, len(uids))
    assert digest(shuffled) == digest(uids)
    assert len(digest(uids)) == 8
    assert digest([*uids, "another"]) != digest(uids)


@given(st.sets(st.integers(0, 2**64 - 1), max_size=20), st.sets(st.integers(0, 2**64 - 1), max_size=20))
def test_an_answer_names_exactly_whom_the_other_side_lacks(ours: set[int], theirs: set[int]) -> None:
    wanted = nodes_wanted(map(uid_of, theirs))
    check_nodes_wanted(wanted)
    linked = {uid_of(number): "ws://a:1" for number in ours}
    answer = nodes(lacking(linked, wanted["known"]))
    check_nodes(answer)
    assert answer["nodes"] == {uid_of(number): "ws://a:1" for number in ours - theirs}


def test_an_answer_is_bounded_and_names_no_address_that_others_refuse() -> None:
    linked = {uid_of(number): address_of(number) for number in range(1000)}
    assert len(lacking(linked, b"")) == MAX_NAMED
    odd = {uid_of(1): "", uid_of(2): "http://a", uid_of(3): "ws://" + "a" * 252 + ":1"}
    assert lacking({**odd, uid_of(4): "ws://a:1"}, b"") == {uid_of(4): "ws://a:1"}


def test_a_question_is_bounded() -> None:
    wanted = nodes_wanted(uid_of(number) for number in range(MAX_KNOWN + 1))
    check_nodes_wanted(wanted)
    assert len(wanted["known"]) == MAX_KNOWN * 8


@pytest.mark.parametrize("known", [None, "", [], b"1234567", bytes(8 * (MAX_KNOWN + 1))])
def test_questions_of_another_shape_are_refused(known: object) -> None:
    with pytest.raises(MessageError):
        check_nodes_wanted({"known": known})


GOOD = [uid_of(1), "ws://a:1"]
BAD_NODES: list[Any] = [
    None, {}, b"", GOOD, [GOOD] * (MAX_NAMED + 1), [GOOD, None], [[]], [[*GOOD, 1]], [[uid_of(1)]], [["1", "ws://a:1"]],
    [[uid_of(1), ""]], [[uid_of(1), None]], [[uid_of(1), "http://a:1"]], [[uid_of(1), "ws://a"]], [[[], "ws://a:1"]],
    [[uid_of(1), f"ws://{'a' * 260}:1"]], [[b"0" * 16, "ws://a:1"]], [[uid_of(1), b"ws://a:1"]],
]  # fmt: skip


@pytest.mark.parametrize("found", BAD_NODES)
def test_answers_of_another_shape_are_refused(found: object) -> None:
    with pytest.raises(MessageError):
        check_nodes({"nodes": found})


# ---------------------------------------------------------------------- whom to ask, and when


def test_who_has_the_same_links_or_tells_none_is_not_asked() -> None:
    asking = Gossip()
    for theirs in (OURS, None, "theirs..", 7, [THEIRS]):
        assert not asking.asks("a", theirs, OURS, 0.0)
    assert asking.asks("a", THEIRS, OURS, 0.0)


def test_one_peer_is_asked_at_a_time_and_the_same_one_more_seldom() -> None:
    asking = Gossip()
    assert asking.asks("a", THEIRS, OURS, 0.0)
    assert not asking.asks("b", THEIRS, OURS, ASK_SECONDS - 0.1)
    assert not asking.asks("a", THEIRS, OURS, SAME_PEER_SECONDS - 0.1)
    assert asking.asks("a", THEIRS, OURS, SAME_PEER_SECONDS)
    assert asking.asks("b", THEIRS, OURS, SAME_PEER_SECONDS + ASK_SECONDS)
    assert asking.asks("a", THEIRS, OURS, SAME_PEER_SECONDS + 2 * ASK_SECONDS)


def test_a_peer_with_something_new_every_moment_keeps_nobody_from_being_asked() -> None:
    asking = Gossip()
    asked = []
    for tenth in range(600):
        now = tenth / 10
        if asking.asks("chatty", tenth.to_bytes(8, "big"), OURS, now):
            asked.append("chatty")
        if tenth % 50 == 0 and asking.asks("calm", THEIRS, OURS, now):
            asked.append("calm")
    assert asked.count("calm") >= 5


def test_only_who_was_asked_is_listened_to_and_once() -> None:
    asking = Gossip()
    assert not asking.takes("a")
    asking.asks("a", THEIRS, OURS, 0.0)
    assert not asking.takes("b")
    assert asking.takes("a")
    assert not asking.takes("a")


# ---------------------------------------------------------------------- the whole


class Mesh:
    """Nodes, and which pairs are linked. Every candidate can be reached, unless it is dead or both are `apart`."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.tables = [Membership(uid_of(number), 30.0) for number in range(count)]
        self.gossips = [Gossip() for _ in range(count)]
        self.dead: set[int] = set()
        self.apart: set[int] = set()
        self.messages = 0
        self.bytes = 0

    def link(self, one: int, other: int) -> None:
        self.tables[one].link_up(uid_of(other), address_of(other), self.now)
        self.tables[other].link_up(uid_of(one), address_of(one), self.now)

    def linked(self, number: int) -> dict[str, str]:
        return {member.uid: member.address for member in self.tables[number] if member.state is PeerState.ALIVE}

    def kill(self, number: int) -> None:
        self.dead.add(number)
        for table in self.tables:
            table.link_down(uid_of(number), self.now)

    def alive(self) -> list[int]:
        return [number for number in range(len(self.tables)) if number not in self.dead]

    def is_whole(self) -> bool:
        return all(len(self.linked(number)) == len(self.alive()) - 1 for number in self.alive())

    def beat(self) -> None:
        """Five seconds: everybody hears a heartbeat of everybody that it is linked to, and dials whom it looks for."""
        self.now += 5.0
        for number in self.alive():
            for other in [int(uid, 16) for uid in self.linked(number)]:
                self._hear(number, other)
        for number in self.alive():
            self.tables[number].tick(self.now)
            for member in self.tables[number]:
                other = int(member.uid, 16)
                reaches = other in self.alive() and not {number, other} <= self.apart
                if reaches and self.tables[number].wants_dial(member.uid, self.now):
                    self.link(number, other)

    def _digest(self, number: int) -> bytes:
        return digest([uid_of(number), *self.linked(number)])

    def _hear(self, number: int, other: int) -> None:
        if self.gossips[number].asks(uid_of(other), self._digest(other), self._digest(number), self.now):
            sought = [member.uid for member in self.tables[number]]
            wanted = nodes_wanted([uid_of(number), *sought])
            answer = lacking(self.linked(other), wanted["known"])
            self.messages += 2
            self.bytes += len(wanted["known"]) + 45 * len(answer)
            assert self.gossips[number].takes(uid_of(other))
            self.tables[number].told(uid_of(other), answer, self.now)


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Links that join up to twelve nodes with as few as can be."""
    count = draw(st.integers(2, 12))
    return [(node, draw(st.integers(0, node - 1))) for node in range(1, count)]


@settings(max_examples=200, deadline=None)
@given(trees())
def test_whatever_hangs_together_becomes_whole(links: list[tuple[int, int]]) -> None:
    mesh = Mesh(len(links) + 1)
    for one, other in links:
        mesh.link(one, other)
    for _ in range(40):
        if mesh.is_whole():
            break
        mesh.beat()
    assert mesh.is_whole()
    before = mesh.messages
    mesh.beat()
    assert mesh.messages == before, "a whole mesh has nothing to ask"


def split(count: int) -> Mesh:
    """Two halves that know of themselves only, and one node that is linked to everybody."""
    mesh = Mesh(count)
    for one in range(1, count):
        mesh.link(0, one)
        for other in range(one + 1, count):
            if one % 2 == other % 2:
                mesh.link(one, other)
    return mesh


def test_a_split_view_with_one_node_in_both_heals_within_two_heartbeats() -> None:
    mesh = split(11)
    for _ in range(2):
        mesh.beat()
    assert mesh.is_whole()


def test_healing_a_split_of_a_hundred_nodes_costs_little() -> None:
    mesh = split(101)
    while not mesh.is_whole():
        mesh.beat()
    assert mesh.now <= 35.0
    assert mesh.bytes < 500_000


def test_the_dead_do_not_go_round() -> None:
    mesh = split(7)
    mesh.kill(6)
    for _ in range(200):
        mesh.beat()
    assert mesh.is_whole()
    assert all(table.get(uid_of(6)) is None for number, table in enumerate(mesh.tables) if number % 2)
    assert not any(table.wants_dial(uid_of(6), mesh.now) for table in mesh.tables)


def test_two_nodes_that_cannot_reach_each_other_cost_next_to_nothing() -> None:
    mesh = Mesh(5)
    for one in range(5):
        for other in range(one + 1, 5):
            if (one, other) != (0, 1):
                mesh.link(one, other)
    mesh.apart = {0, 1}
    for _ in range(60):
        mesh.beat()
    # One question of each node in a heartbeat at the most, in five minutes.
    assert mesh.messages <= 5 * 60 * 2
    assert mesh.bytes < 30_000


def test_the_module_has_the_limits_that_are_promised() -> None:
    assert (gossip.ASK_SECONDS, gossip.SAME_PEER_SECONDS, gossip.MAX_NAMED) == (5.0, 30.0, 256)
