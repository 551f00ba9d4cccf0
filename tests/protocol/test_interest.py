"""Room interest: copies and leases, and that nobody is left out whatever the network does."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import msgpack
import pytest

from gevent_mesh.errors import MessageError
from gevent_mesh.protocol import interest
from gevent_mesh.protocol.interest import (
    LEASE_SECONDS,
    MAX_ROOM_CHARS,
    Announced,
    Copy,
    answer,
    check_interest,
    check_interest_known,
    check_interest_wanted,
    is_tellable,
)
from tests.integration.processes import FULL
from tests.protocol.interest_simulation import SimNode, Violation, run_schedule

LINK, OTHER_LINK = object(), object()


def deltas(announced: Announced) -> list[dict[str, Any]]:
    found = list(announced.announce())
    for data in found:
        check_interest(data)
    return found


def asked(ours: Announced, theirs: Copy, now: float, number: int = 1, link: object = LINK) -> int:
    """The whole of a question and its answer; how many parts it took."""
    deltas(ours)
    is_current = ours.asked("them", theirs.ask(number, link, now)["version"], now)
    parts = [] if is_current else list(ours.snapshot())
    for part in parts:
        check_interest(part)
        theirs.take(part, now)
    theirs.take(answer(number, ours.version, len(parts)), now)
    return len(parts)


def announced(*rooms: Hashable) -> Announced:
    found = Announced()
    for room in rooms:
        found.enter("/", room)
    return found


# ---------------------------------------------------------------------- copies and leases


def test_an_answer_brings_all_rooms_and_a_lease() -> None:
    ours, copy = announced("red", None, 7), Copy()
    assert asked(ours, copy, 10.0) == 1
    assert copy.rooms == {"/": {"red", None, 7}}
    assert 10.0 + LEASE_SECONDS - 0.1 < copy.ends < 10.0 + LEASE_SECONDS


def test_a_copy_that_is_up_to_date_costs_an_answer_only() -> None:
    ours, copy = announced("red"), Copy()
    assert [asked(ours, copy, 10.0), asked(ours, copy, 11.0, 2)] == [1, 0]
    assert copy.ends > 12.5


def test_a_lease_counts_from_its_question_not_from_its_answer() -> None:
    ours, copy = Announced(), Copy()
    ours.asked("them", copy.ask(1, LINK, 10.0)["version"], 13.0)
    for part in ours.snapshot():
        copy.take(part, 13.0)
    copy.take(answer(1, ours.version, 1), 13.0)
    assert copy.ends < 13.0


def test_changes_are_batched_and_what_is_undone_is_never_told() -> None:
    ours, copy = announced("red"), Copy()
    asked(ours, copy, 10.0)
    ours.enter("/", "blue")
    ours.enter("/chat", "blue")
    ours.leave("/", "red")
    ours.enter("/", "green")
    ours.leave("/", "green")
    (delta,) = deltas(ours)
    copy.take(delta, 10.1)
    assert copy.rooms == {"/": {"blue"}, "/chat": {"blue"}}
    assert copy.ends > 11.0


def test_a_version_that_does_not_follow_voids_the_copy() -> None:
    ours, copy = announced("red"), Copy()
    asked(ours, copy, 10.0)
    for room in ("blue", "green"):
        ours.enter("/", room)
        (delta,) = deltas(ours)
    copy.take(delta, 10.1)
    assert (copy.rooms, copy.ends) == ({}, -math.inf)
    assert copy.attend_at > 10.0  # and asks again, but not for every event
    assert copy.ask(2, LINK, 11.0)["version"] is None


@pytest.mark.parametrize("lost", range(3))
def test_a_part_that_is_lost_voids_the_copy(lost: int) -> None:
    ours, copy = announced(*(f"room {number}" for number in range(2500))), Copy()
    copy.ask(1, LINK, 10.0)
    parts = list(ours.snapshot())
    assert len(parts) >= 3
    for number, part in enumerate(parts):
        if number != lost:
            copy.take(part, 10.0)
    copy.take(answer(1, ours.version, len(parts)), 10.0)
    assert copy.ends == -math.inf
    asked(ours, copy, 12.0, 2)
    assert len(copy.rooms["/"]) == 2500


def test_parts_and_changes_between_them_come_to_what_is_there() -> None:
    ours, copy = announced(*range(3000)), Copy()
    ours.asked("them", copy.ask(1, LINK, 10.0)["version"], 10.0)
    snapshot, parts = ours.snapshot(), 0
    while True:
        for data in deltas(ours):
            copy.take(data, 10.0)
        part = next(snapshot, None)
        if part is None:
            break
        copy.take(part, 10.0)
        parts += 1
        ours.leave("/", 3000 - parts)
        ours.leave("/", parts)
        ours.enter("/", f"new {parts}")
        ours.enter("/", 3000 - parts + 1)
    copy.take(answer(1, ours.version, parts), 10.0)
    assert copy.ends > 11.0
    assert copy.rooms == ours._rooms


def test_a_lease_is_good_over_its_own_link_only() -> None:
    ours, copy = announced("red"), Copy()
    asked(ours, copy, 10.0)
    copy.ask(2, OTHER_LINK, 10.1)
    assert copy.ends == -math.inf


def test_an_answer_to_a_question_that_was_dropped_gives_no_lease() -> None:
    ours, copy = announced("red"), Copy()
    wanted = copy.ask(1, LINK, 10.0)
    copy.drop_lease()
    ours.asked("them", wanted["version"], 10.0)
    for part in ours.snapshot():
        copy.take(part, 10.0)
    copy.take(answer(1, ours.version, 1), 10.0)
    assert (copy.ends, copy.rooms) == (-math.inf, {"/": {"red"}})
    assert asked(ours, copy, 10.1, 2) == 0


# ---------------------------------------------------------------------- what enters waits for


def test_nobody_waits_where_nobody_has_asked() -> None:
    ours = announced("red")
    assert ours.unsettled_until("/", "red", 10.0) is None
    assert not ours.has_pending


def test_a_new_room_waits_for_those_who_may_have_a_lease() -> None:
    ours = Announced()
    ours.asked("them", None, 10.0)
    ours.enter("/", "red")
    assert ours.unsettled_until("/", "red", 11.0) is not None
    (delta,) = deltas(ours)
    assert ours.unsettled_until("/", "red", 11.0) == 10.0 + LEASE_SECONDS
    # A question that comes later is answered behind the announcement: it makes nobody wait longer.
    ours.asked("them", None, 11.5)
    assert ours.unsettled_until("/", "red", 11.5) == 10.0 + LEASE_SECONDS
    ours.known("them", delta["version"], 11.5)
    assert ours.unsettled_until("/", "red", 11.5) is None


def test_a_second_client_waits_for_what_the_first_one_waits_for() -> None:
    ours = Announced()
    ours.asked("them", None, 10.0)
    ours.enter("/", "red")
    deltas(ours)
    ours.enter("/", "red")
    assert not ours.has_pending
    assert ours.unsettled_until("/", "red", 10.5) == 10.0 + LEASE_SECONDS
    assert ours.unsettled_until("/", "red", 10.0 + LEASE_SECONDS) is None


def test_it_is_news_only_when_everybody_who_may_have_a_lease_knows_more() -> None:
    ours = Announced()
    for uid, asked_at in (("dead", 10.0), ("one", 11.0), ("other", 11.0)):
        ours.asked(uid, None, asked_at)
    ours.enter("/", "red")
    (delta,) = deltas(ours)
    assert not ours.known("one", delta["version"], 11.1)
    assert not ours.known("stranger", delta["version"], 11.1)
    # Who waits looks again when the first lease ends, however much later the last one does.
    assert ours.unsettled_until("/", "red", 11.1) == 10.0 + LEASE_SECONDS
    assert ours.unsettled_until("/", "red", 12.5) == 11.0 + LEASE_SECONDS
    assert ours.known("other", delta["version"], 12.5)
    assert ours.unsettled_until("/", "red", 12.5) is None


def test_all_that_has_changed_is_numbered_before_any_of_it_is_sent() -> None:
    ours = Announced()
    ours.asked("them", None, 10.0)
    for number in range(2500):
        ours.enter("/", number)
    first, *others = ours.announce()
    assert (len(others), ours.version) == (2, first["version"] + 2)
    assert ours.unsettled_until("/", 2499, 10.5) == 10.0 + LEASE_SECONDS


def test_namespaces_count_as_much_as_rooms_in_what_a_message_may_take() -> None:
    ours = Announced()
    ours.asked("them", None, 10.0)
    for number in range(1000):
        ours.enter("\N{GRINNING FACE}" * 250 + str(number), None)
    found = deltas(ours)
    assert sum(len(data["in"]) for data in found) == 1000
    assert max(len(msgpack.packb(data)) for data in found) < 33 * 1024


def test_who_has_not_asked_for_long_is_forgotten() -> None:
    ours = Announced()
    ours.asked("them", None, 10.0)
    ours.forget(12.0)
    assert ours.followers
    ours.forget(100.0)
    assert not ours.followers


# ---------------------------------------------------------------------- what cannot be told


@pytest.mark.parametrize("room", ["x" * (MAX_ROOM_CHARS + 1), "\ud800", 2**70, frozenset("ab")])
def test_a_node_with_a_room_that_cannot_be_told_gets_everything(room: Hashable) -> None:
    ours, copy = announced("red"), Copy()
    asked(ours, copy, 10.0)
    ours.enter("/", room)
    (delta,) = deltas(ours)
    assert (delta["all"], ours.is_everything) == (True, True)
    copy.take(delta, 10.1)
    assert copy.ends == -math.inf
    ours.leave("/", room)
    deltas(ours)
    assert not ours.is_everything
    assert asked(ours, copy, 12.0, 2) == 1
    assert copy.rooms == {"/": {"red"}}


def test_a_namespace_that_cannot_be_told_counts_as_everything() -> None:
    ours = Announced()
    ours.enter("/" * 300, "red")
    assert ours.is_everything


def test_a_tuple_is_not_told_for_its_events_go_to_everybody() -> None:
    ours = announced(("a", 1))
    assert (len(ours), ours.is_everything) == (0, False)


def test_too_many_rooms_are_everything_and_nobody_keeps_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interest, "MAX_ROOMS", 3)
    assert announced(1, 2, 3, 4).is_everything
    copy = Copy()
    copy.ask(1, LINK, 10.0)
    copy.take({"version": 1, "part": 0, "in": {"/": [1, 2, 3, 4]}}, 10.0)
    copy.take(answer(1, 1, 1), 10.0)
    assert (copy.rooms, copy.ends) == ({}, -math.inf)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": -1, "all": True},
        {"version": True, "all": True},
        {"version": 1},
        {"version": 1, "in": {"/": ["a"]}},
        {"version": 1, "in": [], "out": {}},
        {"version": 1, "in": {"/": []}, "out": {}},
        {"version": 1, "in": {7: ["a"]}, "out": {}},
        {"version": 1, "in": {"/": [["a"]]}, "out": {}},
        {"version": 1, "in": {"/": [{}]}, "out": {}},
        {"version": 1, "in": {"/": ["x" * 257]}, "out": {}},
        {"version": 1, "in": {"/": list(range(4001))}, "out": {}},
        {"version": 1, "part": "0", "in": {}},
        {"version": 1, "part": 0, "all": True},
        {"version": 1, "number": 1},
        {"version": 1, "number": -1, "parts": 0},
    ],
)
def test_what_is_no_interest_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        check_interest(data)


@pytest.mark.parametrize(
    ("check", "data"),
    [(check_interest_wanted, {}), (check_interest_wanted, {"number": 1, "version": "1"}), (check_interest_known, {})],
)
def test_what_is_no_question_and_no_word_of_it_is_refused(
    check: Callable[[dict[str, Any]], None], data: dict[str, Any]
) -> None:
    with pytest.raises(MessageError):
        check(data)


@pytest.mark.parametrize("room", [None, "a", b"a", 1, -1.5, True])
def test_usual_rooms_can_be_told(room: Hashable) -> None:
    assert is_tellable(room)


# ---------------------------------------------------------------------- whatever the network does

SCHEDULES = 30_000 if FULL else 1500


def test_nobody_is_left_out_whatever_the_network_does() -> None:
    left_out = sum(run_schedule(seed) for seed in range(SCHEDULES))
    assert left_out > 5 * SCHEDULES  # else it would prove nothing


class LeaseForEver(Copy):
    """Leases do not end."""

    __slots__ = ()

    def _answered(self, number: int) -> None:
        super()._answered(number)
        self.ends = math.inf if self.ends > -math.inf else self.ends


class Trusting(Copy):
    """Takes any change, whether it follows or not."""

    __slots__ = ()

    def _fits(self, data: dict[str, Any]) -> bool:
        return "out" in data or super()._fits(data)


class CountsNoParts(Copy):
    """Takes an answer for the present version, however many parts came before it."""

    __slots__ = ()

    def _fits(self, data: dict[str, Any]) -> bool:
        return data["version"] == self._version if "number" in data else super()._fits(data)


class TakesAnyAnswer(SimNode):
    Copy = CountsNoParts


class KeepsLeases(SimNode):
    Copy = LeaseForEver


class TakesAll(SimNode):
    Copy = Trusting


class AnswersBeforeTheChanges(SimNode):
    """Says that whatever the other one has is the present version."""

    def answer(self, uid: str, data: dict[str, Any], is_current: bool) -> None:
        if is_current or data["version"] is None:
            super().answer(uid, data, is_current)
        else:
            self.streams[uid].send("interest", answer(data["number"], data["version"], 0))


class DoesNotWait(SimNode):
    """Lets clients in at once."""

    def unsettled_until(self, room: object) -> float | None:  # noqa: ARG002  # nothing to look up
        return None


class WaitsForLinkedNodesOnly(SimNode):
    """Forgets whose link is down."""

    def unsettled_until(self, room: object) -> float | None:
        for uid, stream in self.streams.items():
            if stream.link is None:
                self.announced.followers.pop(uid, None)
        return super().unsettled_until(room)


class KeepsLeasesThroughCommands(SimNode):
    """Sends clients into rooms, and goes on as before."""

    def drop_leases(self) -> None:
        pass


BROKEN = [
    KeepsLeases,
    TakesAll,
    TakesAnyAnswer,
    AnswersBeforeTheChanges,
    DoesNotWait,
    WaitsForLinkedNodesOnly,
    KeepsLeasesThroughCommands,
]


@pytest.mark.parametrize("kind", BROKEN, ids=[kind.__name__ for kind in BROKEN])
def test_a_rule_that_is_broken_is_noticed(kind: type[SimNode]) -> None:
    def run_all() -> None:
        for seed in range(3000):
            run_schedule(seed, kind)

    with pytest.raises(Violation):
        run_all()


def test_a_schedule_is_the_same_each_time() -> None:
    assert run_schedule(7) == run_schedule(7)
