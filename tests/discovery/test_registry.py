"""Who may have a name, who loses it, and that changes add up to the roster. No sockets, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gevent_mesh.protocol.discovery import Register, Role
from gevent_mesh_discovery.registry import Accepted, Registry, Rejected

SECRET = b"s" * 16


def ours(name: str, address: str = "ws://h:1", *, secret: bytes = SECRET, role: Role = "node") -> Register:
    return Register(name, address, role, nonce=bytes(32), proofs=(bytes(32),), secret=secret)


def nodes(name: str, address: str = "ws://h:1") -> Register:
    return Register(name, address)


@pytest.fixture
def registry() -> Registry[Any]:
    return Registry(0.0)


def test_who_registers_is_in_the_roster_until_it_leaves(registry: Registry[Any]) -> None:
    assert registry.register("c1", ours("a"), 1.0) == Accepted()
    assert registry.register("c2", nodes("b", "ws://h:2"), 1.0) == Accepted()
    assert registry.roster() == {"a": "ws://h:1", "b": "ws://h:2"}
    assert len(registry) == 2
    assert registry.unregister("c1")
    assert not registry.unregister("c1")
    assert registry.roster() == {"b": "ws://h:2"}


def test_emitters_are_members_but_not_listed(registry: Registry[Any]) -> None:
    registry.register("c1", ours("e", "", role="emitter"), 1.0)
    assert registry.roster() == {}
    assert len(registry) == 0
    assert registry.version == 0
    assert registry.take_change(1.0) is None
    assert registry.unregister("c1")


def test_a_new_address_replaces_the_old_one_in_its_place(registry: Registry[Any]) -> None:
    registry.register("c1", ours("a"), 1.0)
    registry.register("c2", ours("b"), 1.0)
    registry.take_change(1.0)
    assert registry.register("c1", ours("a", "ws://h:9"), 2.0) == Accepted()
    change = registry.take_change(2.0)
    assert change is not None
    assert (change.added, change.removed) == ({"a": "ws://h:9"}, ())
    assert list(registry.roster()) == ["a", "b"]


def test_registering_again_as_before_changes_nothing(registry: Registry[Any]) -> None:
    registry.register("c1", ours("a"), 1.0)
    registry.take_change(1.0)
    version = registry.version
    registry.register("c1", ours("a"), 2.0)
    assert registry.version == version
    assert registry.take_change(2.0) is None


def test_a_connection_has_one_name(registry: Registry[Any]) -> None:
    registry.register("c1", ours("a"), 1.0)
    assert isinstance(registry.register("c1", ours("b"), 1.0), Rejected)
    assert registry.roster() == {"a": "ws://h:1"}


@pytest.mark.parametrize(
    ("holder", "newcomer", "silence", "taken_over"),
    [
        (ours("a"), ours("a"), 0.0, True),
        (ours("a"), ours("a", secret=b"t" * 16), 0.0, False),
        (ours("a"), ours("a", secret=b"t" * 16), 29.0, False),
        (ours("a"), nodes("a"), 29.0, False),
        (nodes("a"), nodes("a"), 0.0, False),
        (nodes("a"), nodes("a"), 11.0, False),  # it may have been pinged just now
        (nodes("a"), nodes("a"), 16.0, True),
        (nodes("a"), ours("a"), 0.0, False),
        (nodes("a"), ours("a"), 16.0, True),
    ],
)
def test_a_name_is_taken_over_with_its_secret_or_from_a_quiet_node_client(
    registry: Registry[Any], holder: Register, newcomer: Register, silence: float, taken_over: bool
) -> None:
    registry.register("old", holder, 1.0)
    answer = registry.register("new", newcomer, 1.0 + silence)
    if taken_over:
        assert answer == Accepted(replaced="old")
        assert not registry.unregister("old"), "the old connection's end must not remove the new one"
        assert registry.roster() == {"a": "ws://h:1"}
        assert registry.unregister("new")
    else:
        assert answer == Rejected(4409, "taken")
        assert not registry.unregister("new")
        assert registry.unregister("old")


def test_whoever_took_a_name_over_sets_the_secret(registry: Registry[Any]) -> None:
    registry.register("old", nodes("a"), 0.0)
    registry.register("new", ours("a"), 20.0)
    assert isinstance(registry.register("third", ours("a", secret=b"t" * 16), 60.0), Rejected)
    assert registry.register("fourth", ours("a"), 60.0) == Accepted(replaced="new")


def test_a_lease_runs_from_the_last_sign_of_life(registry: Registry[Any]) -> None:
    registry.register("c1", ours("a"), 0.0)
    registry.register("c2", ours("b", "ws://h:2"), 0.0)
    registry.heard("c2", 20.0)
    registry.heard("unknown", 20.0)
    assert registry.overdue(30.0) == []
    assert registry.overdue(30.1) == ["c1"]
    assert registry.overdue(50.1) == ["c1", "c2"]


def test_a_quiet_node_whose_address_has_a_new_owner_is_gone_before_its_lease(registry: Registry[Any]) -> None:
    registry.register("dead", ours("a"), 0.0)
    registry.register("successor", ours("b"), 2.0)
    registry.heard("successor", 10.0)
    assert registry.overdue(15.0) == []
    assert registry.overdue(15.1) == ["dead"]


def test_an_address_alone_puts_nobody_out_who_is_heard(registry: Registry[Any]) -> None:
    registry.register("alive", ours("a"), 0.0)
    registry.register("liar", ours("b"), 2.0)
    for now in range(3, 60):
        registry.heard("alive", float(now))
        assert "alive" not in registry.overdue(float(now))
    assert registry.roster()["a"] == "ws://h:1"


def test_emitters_have_no_address_in_common(registry: Registry[Any]) -> None:
    registry.register("c1", ours("e", "", role="emitter"), 0.0)
    registry.register("c2", ours("f", "", role="emitter"), 2.0)
    assert registry.overdue(20.0) == []


def test_there_is_a_limit(registry: Registry[Any]) -> None:
    registry = Registry(0.0, max_members=2)
    registry.register("c1", ours("a"), 0.0)
    registry.register("c2", ours("b"), 0.0)
    assert registry.register("c3", ours("c"), 0.0) == Rejected(4503, "full")
    assert registry.register("c4", ours("a"), 0.0) == Accepted(replaced="c1")
    registry.unregister("c2")
    assert registry.register("c3", ours("c"), 0.0) == Accepted()


def test_a_young_server_says_that_its_roster_is_not_complete_and_then_that_it_is(registry: Registry[Any]) -> None:
    registry.register("c1", ours("a"), 1.0)
    first = registry.take_change(1.0)
    assert first is not None
    assert not first.complete
    assert registry.take_change(29.9) is None
    second = registry.take_change(30.0)
    assert second is not None
    assert second.complete
    assert (second.added, second.removed) == ({}, ())
    assert registry.take_change(31.0) is None


def test_one_who_came_and_went_between_two_changes_is_named_as_removed(registry: Registry[Any]) -> None:
    # Somebody who registered in between was given a roster with that one in it.
    registry.register("c1", ours("a"), 1.0)
    registry.unregister("c1")
    change = registry.take_change(1.0)
    assert change is not None
    assert (change.added, change.removed) == ({}, ("a",))


def test_the_version_rises_with_every_change(registry: Registry[Any]) -> None:
    seen = [registry.version]
    registry.register("c1", ours("a"), 1.0)
    seen.append(registry.version)
    registry.register("c1", ours("a", "ws://h:2"), 1.0)
    seen.append(registry.version)
    registry.unregister("c1")
    seen.append(registry.version)
    assert seen == sorted(set(seen))


class Replicas(RuleBasedStateMachine):
    """Members get the roster when they register and every change after that, whenever changes happen to be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Registry[int] = Registry(0.0)
        self.now = 0.0
        self.next_connection = 0
        self.replicas: dict[int, dict[str, str]] = {}

    @rule(name=st.sampled_from("abcd"), port=st.integers(1, 3), emitter=st.booleans(), secret=st.sampled_from("xy"))
    def register(self, name: str, port: int, emitter: bool, secret: str) -> None:
        self.next_connection += 1
        role: Role = "emitter" if emitter else "node"
        register = ours(name, f"ws://h:{port}", secret=secret.encode() * 16, role=role)
        answer = self.registry.register(self.next_connection, register, self.now)
        if isinstance(answer, Accepted):
            if answer.replaced is not None:
                del self.replicas[answer.replaced]
            self.replicas[self.next_connection] = self.registry.roster()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.replicas:
            connection = data.draw(st.sampled_from(sorted(self.replicas)))
            assert self.registry.unregister(connection)
            del self.replicas[connection]

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def publish(self) -> None:
        change = self.registry.take_change(self.now)
        if change is not None:
            assert not set(change.added) & set(change.removed)
            for replica in self.replicas.values():
                for name in change.removed:
                    replica.pop(name, None)
                replica.update(change.added)
        for replica in self.replicas.values():
            assert replica == self.registry.roster()

    @invariant()
    def names_and_connections_belong_together(self) -> None:
        assert len(self.registry._names) == len(self.registry._members) == len(self.replicas)


Replicas.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestReplicas = Replicas.TestCase
