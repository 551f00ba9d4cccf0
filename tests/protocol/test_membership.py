"""Membership: states, rosters, who dials when, and backoff."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gevent_mesh.protocol import membership
from gevent_mesh.protocol.membership import (
    AWAY_SECONDS,
    FALLBACK_SECONDS,
    FORGET_SECONDS,
    MAX_MEMBERS,
    MAX_TOLD,
    REMEMBER_GONE,
    STOP_DIALLING_SECONDS,
    Backoff,
    Change,
    Membership,
    PeerState,
    dials,
)
from tests.protocol.support import HIGH, LOW, OTHER

JOINING, ALIVE, SUSPECT, DEAD = PeerState.JOINING, PeerState.ALIVE, PeerState.SUSPECT, PeerState.DEAD
ADDRESS = "ws://other:1"
WINDOW = 30.0


def table(our_uid: str = LOW) -> Membership:
    """A table without members."""
    return Membership(our_uid, WINDOW)


def in_state(state: PeerState, *, listed: bool = True) -> Membership:
    """A table with OTHER in a state since time 0."""
    members = table()
    if listed:
        members.roster("d", {OTHER: ADDRESS}, True, 0.0)
    if state is not JOINING:
        members.link_up(OTHER, ADDRESS, 0.0)
    if state in (SUSPECT, DEAD):
        members.link_down(OTHER, 0.0)
    if state is DEAD:
        members.tick(WINDOW)
    if OTHER in members:
        assert members[OTHER].state is state
    return members


# ---------------------------------------------------------------------- states

_EVENTS = {
    "listed": lambda members: members.roster("d", {OTHER: ADDRESS}, True, 40.0),
    "unlisted": lambda members: members.roster("d", {}, True, 40.0),
    "link up": lambda members: members.link_up(OTHER, ADDRESS, 40.0),
    "link down": lambda members: members.link_down(OTHER, 40.0),
    "inside the window": lambda members: members.tick(WINDOW - 0.1),
    "window over": lambda members: members.tick(WINDOW),
    "left": lambda members: members.left(OTHER),
}


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (JOINING, "listed", JOINING),
        (JOINING, "unlisted", JOINING),
        (JOINING, "link up", ALIVE),
        (JOINING, "link down", JOINING),
        (JOINING, "inside the window", JOINING),
        (JOINING, "window over", DEAD),
        (JOINING, "left", None),
        (ALIVE, "listed", ALIVE),
        (ALIVE, "unlisted", ALIVE),
        (ALIVE, "link up", ALIVE),
        (ALIVE, "link down", SUSPECT),
        (ALIVE, "window over", ALIVE),
        (ALIVE, "left", None),
        (SUSPECT, "listed", SUSPECT),
        (SUSPECT, "unlisted", SUSPECT),
        (SUSPECT, "link up", ALIVE),
        (SUSPECT, "link down", SUSPECT),
        (SUSPECT, "inside the window", SUSPECT),
        (SUSPECT, "window over", DEAD),
        (SUSPECT, "left", None),
        (DEAD, "listed", DEAD),
        (DEAD, "unlisted", DEAD),
        (DEAD, "link up", ALIVE),
        (DEAD, "link down", DEAD),
        (DEAD, "window over", DEAD),
        (DEAD, "left", None),
    ],
)
def test_states_change_as_written_down(before: PeerState, event: str, after: PeerState | None) -> None:
    members = in_state(before)
    changes = _EVENTS[event](members)
    assert changes == ([] if before is after else [Change(OTHER, before, after)])
    member = members.get(OTHER)
    assert (None if member is None else member.state) is after


@pytest.mark.parametrize("event", ["unlisted", "link down", "window over", "left"])
def test_nothing_happens_to_a_stranger(event: str) -> None:
    members = table()
    assert _EVENTS[event](members) == []
    assert list(members) == []


@pytest.mark.parametrize(("event", "state"), [("listed", JOINING), ("link up", ALIVE)])
def test_a_newcomer_becomes_a_member(event: str, state: PeerState) -> None:
    members = table()
    assert _EVENTS[event](members) == [Change(OTHER, None, state)]
    assert members[OTHER].address == ADDRESS
    assert members[OTHER].since == 40.0


def test_the_time_away_counts_from_the_loss_of_the_link() -> None:
    members = in_state(ALIVE)
    assert members.tick(1000.0) == []
    members.link_down(OTHER, 1000.0)
    assert members.tick(1000.0 + WINDOW - 0.1) == []
    assert members.tick(1000.0 + WINDOW) == [Change(OTHER, SUSPECT, DEAD)]
    assert members[OTHER].since == 1000.0


# ---------------------------------------------------------------------- rosters


def test_we_are_not_our_own_member() -> None:
    members = table()
    assert members.roster("d", {LOW: ADDRESS}, True, 0.0) == []
    assert LOW not in members


def test_several_servers_rosters_are_united() -> None:
    members = table()
    members.roster("one", {OTHER: "ws://o:1"}, True, 0.0)
    assert members.roster("two", {HIGH: "ws://h:1"}, True, 0.0) == [Change(HIGH, None, JOINING)]
    assert {member.uid for member in members} == {OTHER, HIGH}
    members.roster("one", {}, True, 1.0)
    assert not members.is_listed(OTHER)
    assert members.is_listed(HIGH)
    members.roster("two", {OTHER: "ws://o:1", HIGH: "ws://h:1"}, True, 2.0)
    members.roster("one", {HIGH: "ws://h:1"}, True, 3.0)
    assert members.is_listed(OTHER), "one server still names it"


def test_an_incomplete_roster_removes_nothing() -> None:
    members = in_state(JOINING)
    members.roster("d", {HIGH: "ws://h:1"}, False, 1.0)
    assert members.is_listed(OTHER)
    assert members.is_listed(HIGH)
    members.roster("d", {HIGH: "ws://h:1"}, True, 2.0)
    assert not members.is_listed(OTHER)


def test_what_a_server_has_seen_go_is_removed_however_young_the_server_is() -> None:
    members = in_state(JOINING)
    members.roster("d", {HIGH: "ws://h:1"}, False, 1.0, removed=[OTHER, LOW])
    assert not members.is_listed(OTHER)
    assert members.is_listed(HIGH)


@pytest.mark.parametrize("state", [JOINING, SUSPECT, DEAD])
def test_an_address_that_moved_is_taken_from_the_roster_while_the_link_is_down(state: PeerState) -> None:
    members = in_state(state)
    members.roster("d", {OTHER: "ws://moved:1"}, True, 40.0)
    assert members[OTHER].address == "ws://moved:1"


def test_a_living_peer_knows_its_address_better_than_a_roster() -> None:
    members = in_state(ALIVE)
    members.roster("d", {OTHER: "ws://moved:1"}, True, 1.0)
    assert members[OTHER].address == ADDRESS
    members.link_down(OTHER, 2.0)
    members.link_up(OTHER, "ws://told:1", 3.0)
    assert members[OTHER].address == "ws://told:1"
    members.link_down(OTHER, 4.0)
    members.link_up(OTHER, "", 5.0)
    assert members[OTHER].address == "ws://told:1"


def test_a_goodbye_in_the_name_of_another_node_counts_until_that_node_has_a_link() -> None:
    members = table()
    members.link_up(OTHER, ADDRESS, 0.0)
    members.left(OTHER)
    assert members.roster("d", {OTHER: ADDRESS}, True, 1.0) == []
    assert members.link_up(OTHER, ADDRESS, 2.0) == [Change(OTHER, None, ALIVE)]
    members.link_down(OTHER, 3.0)
    members.forget(OTHER)
    assert members.roster("d", {OTHER: ADDRESS}, True, 4.0) == [Change(OTHER, None, JOINING)]


def test_the_callers_roster_is_not_kept_by_reference() -> None:
    servers = {OTHER: ADDRESS}
    members = table()
    members.roster("d", servers, True, 0.0)
    members.left(OTHER)
    assert servers == {OTHER: ADDRESS}


def test_who_left_is_not_dialled_though_a_roster_named_it_before() -> None:
    members = in_state(ALIVE)
    members.left(OTHER)
    assert not members.is_listed(OTHER)
    assert not members.wants_dial(OTHER, 1.0)


def test_a_roster_that_still_names_one_that_said_goodbye_does_not_bring_it_back() -> None:
    members = in_state(ALIVE)
    members.left(OTHER)
    assert members.roster("d", {OTHER: ADDRESS}, True, 1.0) == []
    assert OTHER not in members


def test_what_is_remembered_of_those_who_left_is_bounded() -> None:
    members = table()
    for number in range(2000):
        members.left(f"{number:016x}")
    assert len(members._gone) == REMEMBER_GONE


# ---------------------------------------------------------------------- successors


@pytest.mark.parametrize("state", [JOINING, SUSPECT, DEAD])
@pytest.mark.parametrize("how", ["roster", "link"])
def test_a_new_uid_at_the_same_address_is_the_successor(state: PeerState, how: str) -> None:
    members = in_state(state)
    if how == "roster":
        changes = members.roster("d", {HIGH: ADDRESS}, True, 40.0)
        assert changes == [Change(OTHER, state, None), Change(HIGH, None, JOINING)]
    else:
        members.roster("d", {}, True, 39.0)
        changes = members.link_up(HIGH, ADDRESS, 40.0)
        assert changes == [Change(OTHER, state, None), Change(HIGH, None, ALIVE)]
    assert OTHER not in members


@pytest.mark.parametrize("state", [JOINING, SUSPECT])
def test_who_is_still_listed_is_not_succeeded(state: PeerState) -> None:
    members = in_state(state)
    assert members.roster("d", {OTHER: ADDRESS, HIGH: ADDRESS}, True, 1.0) == [Change(HIGH, None, JOINING)]
    assert members[OTHER].state is state


def test_a_living_peer_is_not_succeeded() -> None:
    members = in_state(ALIVE)
    assert members.roster("d", {HIGH: ADDRESS}, True, 1.0) == [Change(HIGH, None, JOINING)]
    assert members[OTHER].state is ALIVE


def test_another_address_succeeds_nobody() -> None:
    members = in_state(SUSPECT)
    assert members.roster("d", {HIGH: "ws://else:1"}, True, 1.0) == [Change(HIGH, None, JOINING)]
    assert OTHER in members


def test_who_tells_no_address_succeeds_nobody() -> None:
    # Emitters: two of them have nothing in common.
    members = table()
    members.link_up(OTHER, "", 0.0)
    members.link_down(OTHER, 1.0)
    assert members.link_up(HIGH, "", 2.0) == [Change(HIGH, None, ALIVE)]
    assert members[OTHER].state is SUSPECT


# ---------------------------------------------------------------------- what peers name


def test_whom_a_peer_names_is_tried_until_the_window_is_over() -> None:
    members = table()
    assert members.told(HIGH, {OTHER: ADDRESS, LOW: "ws://us:1"}, 5.0) == [Change(OTHER, None, JOINING)]
    assert members.wants_dial(OTHER, 5.0)
    assert not members.is_listed(OTHER)
    assert not members.is_delisted(OTHER)
    assert LOW not in members
    assert members.tick(5.0 + WINDOW - 0.1) == []
    assert members.tick(5.0 + WINDOW) == [Change(OTHER, JOINING, None)]


@pytest.mark.parametrize("how", ["roster", "link"])
def test_who_was_named_by_a_peer_stays_once_somebody_else_knows_it(how: str) -> None:
    members = table()
    members.told(HIGH, {OTHER: ADDRESS}, 0.0)
    if how == "roster":
        members.roster("d", {OTHER: "ws://elsewhere:1"}, True, 1.0)
        assert members[OTHER].address == "ws://elsewhere:1"
    else:
        members.link_up(OTHER, ADDRESS, 1.0)
        members.link_down(OTHER, 2.0)
    members.tick(WINDOW + 1.0)
    assert OTHER in members


@pytest.mark.parametrize("state", list(PeerState))
@pytest.mark.parametrize("listed", [True, False])
def test_what_peers_name_changes_nothing_that_is_known(state: PeerState, listed: bool) -> None:
    members = in_state(state, listed=listed) if listed or state is not JOINING else table()
    before = members.get(OTHER) and (members[OTHER].address, members[OTHER].state, members[OTHER].since)
    # Neither another address for a known uid nor another uid for a known address.
    changes = members.told(HIGH, {OTHER: "ws://trap:1", "00000000000000bb": ADDRESS}, 50.0)
    assert all(change.before is None for change in changes)
    if before is not None:
        assert (members[OTHER].address, members[OTHER].state, members[OTHER].since) == before


def test_who_said_goodbye_is_not_brought_back_by_a_peer() -> None:
    members = in_state(ALIVE)
    members.left(OTHER)
    assert members.told(HIGH, {OTHER: ADDRESS}, 1.0) == []


def test_a_peer_that_is_linked_to_one_that_was_given_up_has_it_tried_again() -> None:
    members = in_state(DEAD, listed=False)
    assert not members.wants_dial(OTHER, 300.0)
    members.told(HIGH, {OTHER: ADDRESS}, 300.0)
    assert members.wants_dial(OTHER, 300.0 + STOP_DIALLING_SECONDS - 0.1)
    assert not members.wants_dial(OTHER, 300.0 + STOP_DIALLING_SECONDS)


def test_how_many_a_peer_may_name_is_bounded_and_so_are_all() -> None:
    members = table()
    for number in range(100):
        members.told("liar", {f"{number:08x}{more:08x}": "ws://nobody:1" for more in range(100)}, 0.0)
    assert len(list(members)) == MAX_TOLD
    assert members.told(HIGH, {OTHER: ADDRESS}, 0.0) == [Change(OTHER, None, JOINING)]
    for teller in range(1, 100):
        members.told(f"liar {teller}", {f"{teller:08x}{more + 200:08x}": "ws://nobody:1" for more in range(256)}, 0.0)
    assert len(list(members)) == MAX_MEMBERS
    members.tick(WINDOW)
    assert list(members) == []


def test_who_was_only_named_and_is_not_where_it_should_be_may_come_back() -> None:
    members = table()
    members.told(HIGH, {OTHER: ADDRESS}, 0.0)
    assert members.forget(OTHER) == [Change(OTHER, JOINING, None)]
    assert members.roster("d", {OTHER: ADDRESS}, True, 1.0) == [Change(OTHER, None, JOINING)]


def test_a_link_takes_the_place_of_the_former_process_also_when_it_was_named_before() -> None:
    members = in_state(SUSPECT, listed=False)
    members.told("00000000000000bb", {HIGH: ADDRESS}, 1.0)
    assert members.link_up(HIGH, ADDRESS, 2.0) == [Change(OTHER, SUSPECT, None), Change(HIGH, JOINING, ALIVE)]


# ---------------------------------------------------------------------- servers that are away


def test_the_roster_of_a_server_that_is_away_counts_as_long_as_no_other_is_there() -> None:
    members = table()
    members.roster("a", {OTHER: ADDRESS}, True, 0.0)
    members.roster("b", {}, True, 0.0)
    members.roster_away("a", 10.0)
    members.roster_away("b", 10.0)
    members.roster_away("a", 60.0)
    members.tick(1000.0)
    assert members.is_listed(OTHER)
    members.roster("b", {}, True, 1001.0)
    members.tick(1001.0)
    assert not members.is_listed(OTHER)


def test_a_server_that_is_back_in_time_counts_all_along() -> None:
    members = table()
    members.roster("a", {OTHER: ADDRESS}, True, 0.0)
    members.roster("b", {}, True, 0.0)
    members.roster_away("a", 10.0)
    members.roster_away("never heard", 10.0)
    members.tick(10.0 + AWAY_SECONDS - 0.1)
    # Restarted, it does not know everybody yet.
    members.roster("a", {}, False, 10.0 + AWAY_SECONDS)
    members.tick(1000.0)
    assert members.is_listed(OTHER)


# ---------------------------------------------------------------------- dialling


def test_the_smaller_uid_dials() -> None:
    assert dials(LOW, HIGH)
    assert not dials(HIGH, LOW)


@given(st.text("0123456789abcdef", min_size=16, max_size=16), st.text("0123456789abcdef", min_size=16, max_size=16))
def test_of_every_pair_exactly_one_side_dials(one: str, other: str) -> None:
    assert one == other or dials(one, other) is not dials(other, one)


def test_the_smaller_uid_dials_at_once_and_the_larger_as_a_fallback() -> None:
    for our_uid, wait in ((LOW, 0.0), (HIGH, FALLBACK_SECONDS)):
        members = table(our_uid)
        members.roster("d", {OTHER: ADDRESS}, True, 100.0)
        assert members.dial_at(OTHER) == 100.0 + wait
        members.link_up(OTHER, ADDRESS, 200.0)
        members.link_down(OTHER, 300.0)
        assert members.dial_at(OTHER) == 300.0 + wait


@pytest.mark.parametrize(("state", "wanted"), [(JOINING, True), (ALIVE, False), (SUSPECT, True), (DEAD, True)])
def test_everybody_who_is_listed_and_not_linked_is_dialled(state: PeerState, wanted: bool) -> None:
    assert in_state(state).wants_dial(OTHER, 10_000.0) is wanted


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_who_is_listed_nowhere_is_dialled_for_a_minute(state: PeerState) -> None:
    members = in_state(state, listed=False)
    assert members.wants_dial(OTHER, STOP_DIALLING_SECONDS - 0.1)
    assert not members.wants_dial(OTHER, STOP_DIALLING_SECONDS)
    members.roster("d", {OTHER: ADDRESS}, True, 200.0)
    assert members.wants_dial(OTHER, 10_000.0)


def test_who_has_no_address_or_is_unknown_is_not_dialled() -> None:
    members = table()
    members.link_up(OTHER, "", 0.0)
    members.link_down(OTHER, 0.0)
    assert not members.wants_dial(OTHER, 0.0)
    assert not members.wants_dial(HIGH, 0.0)


def test_the_dead_are_forgotten_in_the_end_unless_they_are_listed() -> None:
    members = in_state(DEAD)
    assert members.tick(FORGET_SECONDS * 2) == []
    members.roster("d", {}, True, 1.0)
    assert members.tick(FORGET_SECONDS - 0.1) == []
    assert members.tick(FORGET_SECONDS) == [Change(OTHER, DEAD, None)]
    assert OTHER not in members


def test_times_are_what_is_promised() -> None:
    assert (FALLBACK_SECONDS, STOP_DIALLING_SECONDS, FORGET_SECONDS) == (3.0, 60.0, 600.0)


# ---------------------------------------------------------------------- backoff


class _Extreme(random.Random):
    """Always the same place in the range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        """From `a` to `b`."""
        return a + (b - a) * self.share


def test_the_bound_doubles_up_to_the_cap() -> None:
    backoff = Backoff(_Extreme(1.0))
    assert [backoff.next_delay() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_jitter_is_full() -> None:
    backoff = Backoff(_Extreme(0.0))
    assert [backoff.next_delay() for _ in range(8)] == [0.0] * 8


def test_a_reset_starts_from_the_base() -> None:
    backoff = Backoff(_Extreme(1.0), base_seconds=1.0, cap_seconds=3.0)
    assert [backoff.next_delay() for _ in range(3)] == [1.0, 2.0, 3.0]
    backoff.reset()
    assert backoff.next_delay() == 1.0


def test_thousands_of_failures_are_no_problem() -> None:
    backoff = Backoff(_Extreme(1.0))
    assert {backoff.next_delay() for _ in range(5000)} == {0.5, 1.0, 2.0, 4.0, 8.0, 15.0}


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_every_delay_is_within_its_bound(seed: int, failures: int) -> None:
    backoff = Backoff(random.Random(seed))
    delays = [backoff.next_delay() for _ in range(failures)]
    assert all(0 <= delay <= min(15.0, 0.5 * 2**number) for number, delay in enumerate(delays))


def test_delays_spread_over_the_whole_range() -> None:
    first = [Backoff(random.Random(seed)).next_delay() for seed in range(500)]
    assert min(first) < 0.05
    assert max(first) > 0.45


def test_rosters_name_so_many_nodes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_NAMES", 64)
    members = Membership(LOW, 30.0)
    for part in range(3):
        names = {f"{part:04x}{number:012x}": f"ws://{part}:{number}" for number in range(40)}
        members.roster("d", names, False, float(part))
    assert len(list(members)) == 64
    assert len(members._rosters["d"]) == 64
