"""Who is online, by the rules alone: tables that talk over simulated links, against a model that knows the truth."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gevent_mesh.protocol import messages, presence
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.presence import (
    Change,
    PresenceTable,
    PresentClient,
    PresentUser,
    check_sid,
    check_user,
    pack_meta,
)
from gevent_mesh.protocol.presence_messages import presence_delta, presence_piece

A, B = "a" * 16, "b" * 16
JOINED, LEFT, UPDATED = Change.JOINED, Change.LEFT, Change.UPDATED
PLAIN = pack_meta({})


def over_the_wire(kind: MessageType, data: dict[str, Any]) -> dict[str, Any]:
    """The data as the other side finds it: encoded, decoded, validated."""
    return messages.parse(msgpack.unpackb(messages.encode(kind, A, "/", data))).data


class Pair:
    """Two tables. `said` sends what the first has to say to the second, and answers what that asks for."""

    def __init__(self) -> None:
        self.owner, self.other = PresenceTable(A), PresenceTable(B)
        self.pieces = 0

    def deltas(self) -> Iterator[dict[str, Any]]:
        while self.owner.has_delta:
            yield over_the_wire(MessageType.PRESENCE, self.owner.next_delta())

    def take(self, data: dict[str, Any] | None) -> None:
        while data is not None:
            wanted = self.other.take(A, over_the_wire(MessageType.PRESENCE, data), 0.0)
            data = None if wanted is None else self.answer(wanted)
        self.other.settle(1000)

    def answer(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        self.pieces += 1
        wanted = over_the_wire(MessageType.PRESENCE_WANTED, wanted)
        return self.owner.piece(B, wanted["request"], wanted["part"])

    def flush(self) -> None:
        for delta in self.deltas():
            self.take(delta)

    def link(self) -> None:
        self.other.linked(A)
        self.take(self.owner.announcement())


@pytest.fixture
def pair() -> Pair:
    return Pair()


# ---------------------------------------------------------------------- users


def test_a_user_is_online_from_the_first_client_to_the_last() -> None:
    table = PresenceTable(A)
    table.track("s1", "ada", PLAIN, 1.0)
    table.track("s2", "ada", PLAIN, 2.0)
    table.untrack("s1")
    assert "ada" in table
    table.untrack("s2")
    assert "ada" not in table
    assert len(table) == 0


def test_a_user_is_described_the_same_way_on_every_node(pair: Pair) -> None:
    pair.other.track("s0", "ada", pack_meta({"at": "other"}), 5.0)
    pair.owner.track("s2", "ada", pack_meta({"at": "second"}), 3.0)
    pair.owner.track("s1", "ada", pack_meta({"at": "first"}), 3.0)
    pair.flush()
    assert pair.other.get("ada") == PresentUser(
        id="ada",
        meta={"at": "other"},
        since=3.0,
        clients=(
            PresentClient("s1", A, {"at": "first"}, 3.0),
            PresentClient("s2", A, {"at": "second"}, 3.0),
            PresentClient("s0", B, {"at": "other"}, 5.0),
        ),
    )


def test_sids_and_nodes_of_a_user_are_in_the_order_of_the_clients(pair: Pair) -> None:
    pair.owner.track("s1", 7, PLAIN, 1.0)
    pair.other.track("s2", 7, PLAIN, 2.0)
    pair.owner.track("s3", 7, PLAIN, 3.0)
    pair.flush()
    user = pair.other.get(7)
    assert user is not None
    assert user.sids == ("s1", "s2", "s3")
    assert user.nodes == (A, B)


def test_new_metadata_of_an_old_client_is_the_users_and_its_time_stays() -> None:
    table = PresenceTable(A)
    table.track("s1", "ada", PLAIN, 1.0)
    table.track("s2", "ada", PLAIN, 2.0)
    table.track("s1", "ada", pack_meta({"mood": "away"}), 3.0)
    user = table.get("ada")
    assert user is not None
    assert (user.meta, user.since, user.clients[0].since) == ({"mood": "away"}, 1.0, 1.0)


def test_to_track_a_client_as_what_it_is_changes_nothing() -> None:
    table = PresenceTable(A)
    table.track("s1", "ada", PLAIN, 1.0)
    table.next_delta()
    table.track("s1", "ada", pack_meta({}), 2.0)
    assert not table.has_delta


def test_a_client_that_becomes_another_user_is_no_longer_the_first() -> None:
    table = PresenceTable(A)
    table.track("s1", "ada", PLAIN, 1.0)
    table.track("s1", "bob", PLAIN, 2.0)
    assert list(table.users()) == ["bob"]
    assert table.users()["bob"].since == 2.0


def test_numbers_and_texts_are_different_users_and_true_is_none() -> None:
    table = PresenceTable(A)
    table.track("s1", 1, PLAIN, 1.0)
    assert 1 in table
    assert "1" not in table
    assert True not in table
    assert 1.0 not in table
    assert [] not in table
    assert table.get(True) is None


def test_a_new_uid_changes_where_users_are_and_nobody_leaves() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", PLAIN, 1.0)
    assert table.next_notice() is not None
    table.renamed(B)
    user = table.get("ada")
    assert user is not None
    assert user.nodes == (B,)
    assert notices(table) == [(UPDATED, "ada")]
    table.untrack("s1")
    assert len(table) == 0


# ---------------------------------------------------------------------- between nodes


def test_changes_travel_and_many_share_a_message(pair: Pair) -> None:
    for number in range(100):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    assert len(list(pair.deltas())) == 1


def test_what_comes_and_goes_between_two_messages_travels_as_its_end(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    pair.owner.untrack("s1")
    pair.owner.track("s2", "ada", PLAIN, 1.0)
    pair.owner.track("s2", "bob", PLAIN, 1.0)
    (delta,) = pair.deltas()
    assert delta["gone"] == ["s1"]
    assert [row[:2] for row in delta["set"]] == [["s2", "bob"]]


@pytest.mark.parametrize("meta", [{}, {"bio": "x" * 4000}])
def test_no_message_is_large(pair: Pair, meta: dict[str, Any]) -> None:
    for number in range(1200):
        pair.owner.track(f"client-{number}", f"user-{number}", pack_meta(meta), 1.0)
    for delta in pair.deltas():
        assert len(messages.encode(MessageType.PRESENCE, A, "/", delta)) < 48 * 1024
        assert len(delta["set"]) <= 500
        pair.take(delta)
    assert len(pair.other) == 1200


def test_a_newcomer_gets_everything_in_pieces(pair: Pair) -> None:
    for number in range(1200):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    lost = list(pair.deltas())
    assert len(lost) == 3
    pair.link()
    assert pair.pieces == 3
    assert pair.other.users() == pair.owner.users()


def test_who_has_everything_pulls_nothing(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    pair.flush()
    pair.link()
    pair.other.lapsed(A)
    pair.other.settle(10)
    assert len(pair.other) == 0
    pair.link()
    assert "ada" in pair.other
    assert pair.pieces == 0


def test_who_was_never_asked_announces_nothing(pair: Pair) -> None:
    assert pair.owner.announcement() is None


def test_a_lost_change_is_found_by_the_next_one(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    list(pair.deltas())
    pair.owner.track("s2", "bob", PLAIN, 1.0)
    pair.flush()
    assert set(pair.other.users()) == {"ada", "bob"}


def test_a_lost_change_is_found_at_the_next_link(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    pair.flush()
    pair.owner.untrack("s1")
    list(pair.deltas())
    assert "ada" in pair.other
    pair.link()
    assert "ada" not in pair.other


def test_a_change_that_the_first_piece_knew_of_is_not_applied_again(pair: Pair) -> None:
    """A delta may wait for a slow peer while a piece, which is newer, goes out before it."""
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    (waiting,) = pair.deltas()
    pair.owner.untrack("s1")
    pair.link()
    pair.take(waiting)
    assert len(pair.other) == 0
    pair.flush()
    assert len(pair.other) == 0


def test_changes_between_pieces_are_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "PIECE_CHANGES", 1)
    for number in (1, 2, 3):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    list(pair.deltas())
    wanted = pair.other.take(A, pair.owner.announcement() or {}, 0.0)
    changes: list[Callable[[], None]] = [
        lambda: pair.owner.untrack("s3"),
        lambda: pair.owner.track("s1", 9, PLAIN, 2.0),
    ]
    for change in changes:
        assert wanted is not None
        piece = pair.answer(wanted)
        assert piece is not None
        wanted = pair.other.take(A, piece, 0.0)
        change()
        for delta in pair.deltas():
            assert pair.other.take(A, delta, 0.0) is None
    assert wanted is not None
    pair.take(pair.answer(wanted))
    assert set(pair.other.users()) == {2, 9}


def test_a_pull_that_a_broken_link_has_cut_short_begins_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "PIECE_CHANGES", 1)
    for number in (1, 2, 3):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    list(pair.deltas())
    wanted = pair.other.take(A, pair.owner.announcement() or {}, 0.0)
    assert wanted is not None
    pair.answer(wanted)  # is lost
    pair.link()
    assert set(pair.other.users()) == {1, 2, 3}


def test_a_change_that_waits_during_a_pull_is_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made before a piece, sent behind it: the first piece's version counts, not that of a later one."""
    monkeypatch.setattr(presence, "PIECE_CHANGES", 1)
    for number in (1, 2):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    list(pair.deltas())
    wanted = pair.other.take(A, pair.owner.announcement() or {}, 0.0)
    assert wanted is not None
    wanted = pair.other.take(A, pair.answer(wanted) or {}, 0.0)
    pair.owner.untrack("s2")  # that was in the piece
    (waiting,) = pair.deltas()
    assert wanted is not None
    pair.take(pair.answer(wanted))
    pair.take(waiting)
    assert set(pair.other.users()) == {1}


def test_pieces_of_a_pull_that_was_given_up_are_not_mixed_into_the_next(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    list(pair.deltas())
    first = pair.other.take(A, pair.owner.announcement() or {}, 0.0)
    assert first is not None
    old = pair.answer(first)
    assert old is not None
    pair.owner.track("s2", "bob", PLAIN, 1.0)
    list(pair.deltas())
    pair.other.linked(A)
    second = pair.other.take(A, pair.owner.announcement() or {}, 0.0)
    assert second is not None
    assert pair.other.take(A, old, 0.0) is None
    pair.take(pair.answer(second))
    assert set(pair.other.users()) == {"ada", "bob"}


def test_a_second_announcement_does_not_disturb_a_pull(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    list(pair.deltas())
    announcement = pair.owner.announcement() or {}
    assert pair.other.take(A, announcement, 0.0) is not None
    assert pair.other.take(A, announcement, 0.0) is None


def test_an_answer_that_nobody_waits_for_changes_nothing(pair: Pair) -> None:
    stray = presence_piece(1, [["s1", "ada", PLAIN, 1.0, 1.0]], request=1, part=0, more=False)
    assert pair.other.take(A, stray, 0.0) is None
    assert len(pair.other) == 0


@pytest.mark.parametrize(("request_", "part"), [(1, 1), (2, 0)])
def test_a_part_out_of_turn_is_not_answered(pair: Pair, request_: int, part: int) -> None:
    assert pair.owner.piece(B, 1, 0) is not None
    if part:
        assert pair.owner.piece(B, request_, part) is None
    else:
        assert pair.owner.piece(B, request_, part + 1) is None


def test_who_does_not_answer_is_asked_again(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    list(pair.deltas())
    assert pair.other.take(A, pair.owner.announcement() or {}, 100.0) is not None
    assert pair.other.overdue(105.0) == []
    ((node, wanted),) = pair.other.overdue(111.0)
    assert node == A
    pair.take(pair.answer(wanted))
    assert "ada" in pair.other
    assert pair.other.overdue(999.0) == []


def test_users_of_a_node_that_is_forgotten_take_no_room(pair: Pair) -> None:
    pair.owner.track("s1", "ada", PLAIN, 1.0)
    pair.flush()
    pair.other.forget([A])
    assert "ada" in pair.other
    pair.other.forget([])
    pair.other.settle(10)
    assert len(pair.other) == 0
    pair.other.forget([])
    assert not pair.other._copies


def test_thousands_who_leave_at_once_do_so_in_slices(pair: Pair) -> None:
    for number in range(1000):
        pair.owner.track(f"s{number}", number, PLAIN, 1.0)
    pair.flush()
    pair.other.lapsed(A)
    for left in (900, 800, 700):
        pair.other.settle(100)
        assert len(pair.other) == left
    pair.other.settle(10_000)
    assert pair.other.is_settled
    assert len(pair.other) == 0


# ---------------------------------------------------------------------- watching


def notices(table: PresenceTable) -> list[tuple[Change, Any]]:
    found = []
    while (notice := table.next_notice()) is not None:
        found.append((notice.change, notice.user.id))
    return found


def test_a_user_joins_and_leaves_once_whatever_the_number_of_tabs() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", PLAIN, 1.0)
    table.track("s2", "ada", PLAIN, 2.0)
    assert notices(table) == [(JOINED, "ada")]
    table.untrack("s1")
    assert notices(table) == [(UPDATED, "ada")]
    table.untrack("s2")
    assert notices(table) == [(LEFT, "ada")]


def test_who_leaves_is_described_as_last_seen() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", pack_meta({"name": "Ada"}), 1.0)
    notices(table)
    table.untrack("s1")
    notice = table.next_notice()
    assert notice is not None
    assert (notice.user.meta, notice.user.sids) == ({"name": "Ada"}, ("s1",))


def test_what_was_undone_before_it_was_told_is_not_told() -> None:
    table = PresenceTable(A)
    table.watch()
    for _ in range(1000):
        table.track("s1", "ada", PLAIN, 1.0)
        table.untrack("s1")
    assert notices(table) == []
    table.track("s1", "ada", PLAIN, 1.0)
    table.track("s1", "ada", pack_meta({"a": 1}), 1.0)
    assert notices(table) == [(JOINED, "ada")]


def test_who_is_back_before_it_was_told_is_an_update() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", PLAIN, 1.0)
    notices(table)
    table.untrack("s1")
    table.track("s2", "ada", PLAIN, 1.0)
    assert notices(table) == [(UPDATED, "ada")]


def test_who_leaves_while_an_update_is_owed_only_leaves() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", PLAIN, 1.0)
    notices(table)
    table.track("s1", "ada", pack_meta({"a": 1}), 1.0)
    table.untrack("s1")
    notice = table.next_notice()
    assert notice is not None
    assert (notice.change, notice.user.meta) == (LEFT, {"a": 1})
    assert not table.has_notice


def test_new_metadata_is_no_join() -> None:
    table = PresenceTable(A)
    table.watch()
    table.track("s1", "ada", PLAIN, 1.0)
    notices(table)
    table.track("s1", "ada", pack_meta({"a": 1}), 2.0)
    assert notices(table) == [(UPDATED, "ada")]
    table.track("s1", "ada", pack_meta({"a": 1}), 3.0)
    assert notices(table) == []


def test_a_user_is_not_made_for_a_change_that_nobody_listens_to() -> None:
    table = PresenceTable("a")
    table.watch()
    table.track("s1", "ada", pack_meta({}), 1.0)
    table.track("s2", "bob", pack_meta({}), 1.0)
    assert table.next_notice([UPDATED, LEFT]) is None
    assert table._users["ada"].made is None
    assert table.has_notice
    assert table.next_notice([JOINED]) is not None
    assert not table.has_notice


def test_who_watches_late_hears_of_what_happens_from_then_on() -> None:
    table = PresenceTable(A)
    table.track("s1", "ada", PLAIN, 1.0)
    table.watch()
    assert notices(table) == []
    table.untrack("s1")
    assert notices(table) == [(LEFT, "ada")]


# ---------------------------------------------------------------------- what applications pass


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


def test_user_ids_are_made_plain() -> None:
    assert type(check_user(Text("ada"))) is str
    assert check_user(Text("ada")) == "ada"
    assert check_user(2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize("user", [True, None, 1.5, b"ada", ("ada",), object()])
def test_user_ids_of_other_types_are_refused(user: object) -> None:
    with pytest.raises(TypeError, match="must be a str or an int"):
        check_user(user)


@pytest.mark.parametrize("user", ["x" * 257, "\ud800", 2**64, -(2**63) - 1])
def test_user_ids_that_cannot_travel_are_refused(user: object) -> None:
    with pytest.raises(ValueError, match="a user id"):
        check_user(user)


@pytest.mark.parametrize("sid", ["", "x" * 129, "\ud800"])
def test_sids_that_cannot_travel_are_refused(sid: str) -> None:
    with pytest.raises(ValueError, match="a sid"):
        check_sid(sid)


def test_a_sid_is_a_text() -> None:
    with pytest.raises(TypeError, match="a sid must be a str"):
        check_sid(None)


@pytest.mark.parametrize("meta", [None, [], "text", {"a": object()}, {"a": {1, 2}}, {("a", "b"): 1}, {"a": 2**64}])
def test_metadata_that_cannot_travel_is_refused(meta: object) -> None:
    with pytest.raises(TypeError, match="meta must"):
        pack_meta(meta)


def test_metadata_without_end_is_refused() -> None:
    meta: dict[str, Any] = {}
    meta["self"] = meta
    with pytest.raises(TypeError, match="meta must"):
        pack_meta(meta)


def test_large_metadata_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"meta has 5006 bytes.*limit of 4096"):
        pack_meta({"a": "x" * 5000})


def test_metadata_is_not_what_the_application_changes_later() -> None:
    meta = {"list": [1]}
    table = PresenceTable(A)
    table.track("s1", "ada", pack_meta(meta), 1.0)
    meta["list"].append(2)
    user = table.get("ada")
    assert user is not None
    assert user.meta == {"list": [1]}


# ---------------------------------------------------------------------- against a model

PLACES = range(3)
USERS = ["ada", "bob", 1, "1"]
SIDS = [f"s{number}" for number in range(5)]
places = st.sampled_from(PLACES)
pairs = st.sampled_from(list(itertools.permutations(PLACES, 2)))
sids = st.sampled_from(SIDS)


class Server:
    """One node: its table, the truth about its own clients, a delta that waits for slow peers, what was told."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.table = PresenceTable(uid)
        self.table.watch()
        self.truth: dict[str, tuple[Any, dict[str, Any], float, float]] = {}
        self.waiting: dict[str, Any] | None = None
        self.told: dict[Any, PresentUser] = {}

    def hear(self) -> None:
        """Take one notice. A user who is told to have come was not there by all that was told before."""
        notice = self.table.next_notice()
        if notice is None:
            return
        user = notice.user
        assert (notice.change is JOINED) is (user.id not in self.told)
        if notice.change is LEFT:
            del self.told[user.id]
        else:
            self.told[user.id] = user


class Mesh(RuleBasedStateMachine):
    """Three nodes. Links break and mend, lose what waits longest, hang; nodes die and others come in their place."""

    def __init__(self) -> None:
        super().__init__()
        self._changes, presence.PIECE_CHANGES = presence.PIECE_CHANGES, 1
        self.clock = 0.0
        self.births = itertools.count()
        self.servers: list[Server] = []
        self.wires: dict[tuple[str, str], deque[tuple[MessageType, dict[str, Any]]]] = {}
        self.up: set[frozenset[str]] = set()
        for _ in PLACES:
            self.servers.append(self.born())
        self.mend_all()

    def teardown(self) -> None:
        try:
            self.settle()
            self.check()
        finally:
            presence.PIECE_CHANGES = self._changes

    # -- the machinery

    def born(self) -> Server:
        newcomer = Server(f"{next(self.births):016x}")
        for server in self.servers:
            # Named, not linked: what is published from now on is kept for it.
            self.wires[server.uid, newcomer.uid] = deque()
            self.wires[newcomer.uid, server.uid] = deque()
        return newcomer

    def send(self, source: Server, target: str, kind: MessageType, data: dict[str, Any] | None) -> None:
        wire = self.wires.get((source.uid, target))
        if data is not None and wire is not None:
            wire.append((kind, over_the_wire(kind, data)))

    def publish(self, server: Server) -> None:
        delta, server.waiting = server.waiting, None
        for other in self.servers:
            if other is not server:
                self.send(server, other.uid, MessageType.PRESENCE, delta)

    def flush(self, server: Server) -> None:
        while server.waiting is not None or server.table.has_delta:
            if server.waiting is None:
                server.waiting = server.table.next_delta()
            self.publish(server)

    def deliver(self, source: Server, target: Server) -> bool:
        wire = self.wires[source.uid, target.uid]
        if not wire or frozenset((source.uid, target.uid)) not in self.up:
            return False
        kind, data = wire.popleft()
        if kind is MessageType.PRESENCE:
            self.send(target, source.uid, MessageType.PRESENCE_WANTED, target.table.take(source.uid, data, self.clock))
        else:
            piece = target.table.piece(source.uid, data["request"], data["part"])
            self.send(target, source.uid, MessageType.PRESENCE, piece)
        return True

    def cut(self, one: Server, other: Server) -> None:
        self.up.discard(frozenset((one.uid, other.uid)))

    def mend(self, one: Server, other: Server) -> None:
        pair = frozenset((one.uid, other.uid))
        if pair not in self.up:
            self.up.add(pair)
            for near, far in ((one, other), (other, one)):
                near.table.linked(far.uid)
                self.send(near, far.uid, MessageType.PRESENCE, near.table.announcement())

    def mend_all(self) -> None:
        for one, other in itertools.combinations(self.servers, 2):
            self.mend(one, other)

    def others(self, server: Server) -> list[str]:
        return [other.uid for other in self.servers if other is not server]

    # -- what happens

    @rule(place=places, sid=sids, user=st.sampled_from(USERS), sent=st.booleans())
    def track(self, place: int, sid: str, user: Any, sent: bool) -> None:
        server = self.servers[place]
        self.clock += 1.0
        before = server.truth.get(sid)
        since = before[2] if before is not None and before[0] == user else self.clock
        meta = {"at": self.clock}
        server.truth[sid] = (user, meta, since, self.clock)
        server.table.track(sid, user, pack_meta(meta), self.clock)
        if sent:
            self.flush(server)

    @rule(place=places, which=st.integers(0, 9), sent=st.booleans())
    def untrack(self, place: int, which: int, sent: bool) -> None:
        server = self.servers[place]
        if server.truth:
            sid = list(server.truth)[which % len(server.truth)]
            del server.truth[sid]
            server.table.untrack(sid)
        if sent:
            self.flush(server)

    @rule(place=places)
    def begin_to_publish(self, place: int) -> None:
        """The delta is made, and waits for a slow peer."""
        server = self.servers[place]
        if server.waiting is None and server.table.has_delta:
            server.waiting = server.table.next_delta()

    @rule(pair=pairs, count=st.integers(1, 6))
    def arrive(self, pair: tuple[int, int], count: int) -> None:
        """Some messages of both directions."""
        one, other = (self.servers[place] for place in pair)
        for _ in range(count):
            self.deliver(one, other)
            self.deliver(other, one)

    @rule(pair=pairs, lost=st.integers(0, 9), lapses=st.booleans(), stays_down=st.booleans())
    def break_link(self, pair: tuple[int, int], lost: int, lapses: bool, stays_down: bool) -> None:
        """For a moment, or for so long that messages are lost and the one gives the other up."""
        one, other = (self.servers[place] for place in pair)
        self.cut(one, other)
        wire = self.wires[one.uid, other.uid]
        for _ in range(min(lost, len(wire))):
            wire.popleft()
        if lapses:
            other.table.lapsed(one.uid)
            other.table.settle(10_000)
            assert not any(one.uid in user.nodes for user in other.table.users().values())
        if not stays_down:
            self.mend(one, other)

    @rule(pair=pairs, sent=st.integers(1, 4), lost=st.integers(0, 9))
    def break_link_in_a_pull(self, pair: tuple[int, int], sent: int, lost: int) -> None:
        self.break_link(pair, lost=9, lapses=False, stays_down=False)
        self.arrive(pair, sent)
        self.break_link(pair[::-1], lost=lost, lapses=False, stays_down=False)

    @rule(pair=pairs)
    def mend_link(self, pair: tuple[int, int]) -> None:
        self.mend(*(self.servers[place] for place in pair))

    @rule(place=places, at_once=st.booleans())
    def die_and_be_followed(self, place: int, at_once: bool) -> None:
        dead = self.servers.pop(place)
        for server in self.servers:
            self.cut(server, dead)
            server.table.lapsed(dead.uid)
            del self.wires[server.uid, dead.uid], self.wires[dead.uid, server.uid]
        self.servers.insert(place, self.born())
        if at_once:
            self.mend_all()

    @rule(place=places, limit=st.integers(1, 3))
    def work(self, place: int, limit: int) -> None:
        server = self.servers[place]
        server.table.settle(limit)
        server.table.forget(self.others(server))

    @rule(place=places)
    def hear(self, place: int) -> None:
        self.servers[place].hear()

    @rule()
    def calm(self) -> None:
        self.settle()
        self.check()

    # -- what must be so

    @invariant()
    def own_clients_are_always_right(self) -> None:
        for server in self.servers:
            for sid, (user, *_) in server.truth.items():
                found = server.table.get(user)
                assert found is not None
                assert (server.uid, sid) in {(client.node, client.sid) for client in found.clients}

    def settle(self) -> None:
        """Everything is linked, and all that waits arrives."""
        self.mend_all()
        for server in self.servers:
            self.flush(server)
        while any(self.deliver(one, other) for one, other in itertools.permutations(self.servers, 2)):
            pass
        for server in self.servers:
            server.table.settle(10_000)
            server.table.forget(self.others(server))

    def check(self) -> None:
        truth = self.truth()
        for server in self.servers:
            assert server.table.is_settled
            assert server.table.users() == truth
            assert server.table._copies.keys() <= set(self.others(server))
            while server.table.has_notice:
                server.hear()
            assert server.told == truth

    def truth(self) -> dict[Any, PresentUser]:
        found: dict[Any, list[tuple[float, str, str, float, dict[str, Any]]]] = {}
        for server in self.servers:
            for sid, (user, meta, since, updated) in server.truth.items():
                found.setdefault(user, []).append((since, server.uid, sid, updated, meta))
        users = {}
        for user, clients in found.items():
            clients.sort(key=lambda client: client[:3])
            latest = max(clients, key=lambda client: client[3])
            made = tuple(PresentClient(sid, node, meta, since) for since, node, sid, _, meta in clients)
            users[user] = PresentUser(user, latest[4], clients[0][0], made)
        return users


TestMesh = Mesh.TestCase
TestMesh.settings = settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_node_cannot_have_any_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "MAX_CLIENTS", 3)
    table = PresenceTable("b" * 16)
    rows = [[f"sid {n}", f"user {n}", b"\x80", 1.0, 1.0] for n in range(5)]
    table.take("a" * 16, presence_delta(1, rows, []), 1.0)
    table.take("a" * 16, presence_delta(2, [["sid 1", "other", b"\x80", 1.0, 2.0]], ["sid 0"]), 1.0)
    table.settle(10)
    assert list(table.users()) == ["user 2", "other"]
    table.take("a" * 16, presence_delta(3, [["sid 9", "user 9", b"\x80", 1.0, 2.0]], []), 1.0)
    assert "user 9" in table
