"""The promises hold under thousands of random schedules, and the checker notices when a rule is broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from gevent_mesh.protocol import link as link_module
from gevent_mesh.protocol.session import Session
from tests.protocol.simulation import Violation, run_schedule

SCHEDULES = int(os.environ.get("MESH_SCHEDULES", "2000"))
FIRST_SEED = int(os.environ.get("MESH_SEED", "0"))
BLOCKS = 20


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_under_random_faults(block: int) -> None:
    for seed in range(FIRST_SEED + block, FIRST_SEED + SCHEDULES, BLOCKS):
        run_schedule(seed)


def test_the_schedules_reach_what_they_are_for() -> None:
    simulations = [run_schedule(seed) for seed in range(60)]
    sessions = [peer.session for run in simulations for node in run.nodes for peer in node.table]
    assert any(session.resumed for session in sessions)
    assert any(session.replayed for session in sessions)
    assert any(session.sent_lost for session in sessions)
    assert any(run.overflowed for run in simulations)
    assert any(run.gave_up for run in simulations)


def _forget_declared_losses(patch: pytest.MonkeyPatch) -> None:
    detach = Session.detach

    def broken(self: Session) -> None:
        detach(self)
        self._settled = self._acked

    patch.setattr(Session, "detach", broken)


def _do_not_resend(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Session) -> None:
        self._first += len(self._unacked)
        self._unacked.clear()
        self._unacked_bytes = 0

    patch.setattr(Session, "_rewind", broken)


def _take_repeats(patch: pytest.MonkeyPatch) -> None:
    attach = Session.attach

    def broken(self: Session, theirs: Any) -> Any:
        received = self.received
        gap = attach(self, theirs)
        self.received = max(0, received - 2)
        return gap

    patch.setattr(Session, "attach", broken)


def _count_by_what_is_settled(patch: pytest.MonkeyPatch) -> None:
    settle = Session._settle

    def broken(self: Session, has: int, *, told: int) -> Any:
        return settle(self, max(has, self._settled), told=told)

    patch.setattr(Session, "_settle", broken)


def _say_received_before_it_is_handed_on(patch: pytest.MonkeyPatch) -> None:
    check = link_module.LinkProtocol._check

    def broken(self: link_module.LinkProtocol, value: object) -> Any:
        if self._session is not None and self._session.received % 7 == 0:
            self._session.received += 1
        return check(self, value)

    patch.setattr(link_module.LinkProtocol, "_check", broken)


@pytest.mark.parametrize(
    "break_rule",
    [
        _forget_declared_losses,
        _do_not_resend,
        _take_repeats,
        _count_by_what_is_settled,
        _say_received_before_it_is_handed_on,
    ],
)
def test_a_broken_rule_is_noticed(break_rule: Callable[[pytest.MonkeyPatch], None], monkeypatch: Any) -> None:
    break_rule(monkeypatch)
    with pytest.raises((Violation, RuntimeError)):
        _run_schedules(1000)


def _run_schedules(count: int) -> None:
    for seed in range(count):
        run_schedule(seed)
