"""Emitters and relays: numbers, repeats, and how far everybody has got."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import msgpack
import pytest

from gevent_mesh.errors import MessageError
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import SessionState
from gevent_mesh.protocol.membership import Backoff, Member, PeerState
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.peers import Peer
from gevent_mesh.protocol.relay import Delivered, Receipt, Retained, open_message
from gevent_mesh.protocol.session import Session
from tests.protocol.relay_simulation import Rules, Violation, run_schedule

EMITTER = "e" * 16
SCHEDULES = int(os.environ.get("MESH_SCHEDULES", "2000")) // 10
SEED = int(os.environ.get("MESH_SEED", "1"))


def violates(seed: int, rules: Rules) -> bool:
    try:
        run_schedule(seed, rules=rules)
    except Violation:
        return True
    return False


class TestSimulation:
    def test_every_event_is_everywhere_once_and_in_order(self) -> None:
        for seed in range(SEED, SEED + SCHEDULES):
            run_schedule(seed)

    @pytest.mark.parametrize(
        "rule", ["relays_repeats", "awaits_peers", "awaits_lapsed", "sends_retained_again", "drops_repeats"]
    )
    def test_each_rule_is_needed(self, rule: str) -> None:
        broken = replace(Rules(), **{rule: False})
        assert any(violates(seed, broken) for seed in range(SEED, SEED + 500))


class TestRetained:
    def test_numbers_count_up_whatever_is_dropped(self) -> None:
        retained = Retained(100)
        for number in range(1, 5):
            assert retained.next_number == number
            retained.append(b"x")
        retained.relayed(3)
        assert retained.next_number == 5
        assert len(retained) == 1

    def test_a_link_is_given_each_message_once_and_the_next_link_all_of_them(self) -> None:
        retained = Retained(100)
        retained.append(b"one")
        retained.append(b"two")
        assert retained.take() == [b"one", b"two"]
        retained.append(b"three")
        assert retained.take() == [b"three"]
        assert retained.take() == []
        retained.relayed(1)
        retained.rewind()
        assert retained.take() == [b"two", b"three"]

    def test_what_was_not_sent_can_be_everywhere_too(self) -> None:
        # Sent over an earlier link, and told of over this one before it is sent again.
        retained = Retained(100)
        retained.append(b"one")
        retained.append(b"two")
        retained.relayed(1)
        assert retained.take() == [b"two"]

    def test_it_is_bounded_in_bytes(self) -> None:
        retained = Retained(10)
        retained.append(b"x" * 6)
        assert retained.fits(4)
        assert not retained.fits(5)
        retained.relayed(1)
        assert retained.fits(5)

    def test_one_message_always_fits(self) -> None:
        assert Retained(10).fits(11)

    @pytest.mark.parametrize("upto", [0, -1, 7, 10**30])
    def test_a_number_that_makes_no_sense_does_no_harm(self, upto: int) -> None:
        retained = Retained(10)
        retained.append(b"x")
        retained.relayed(upto)
        assert retained.next_number == 2
        assert retained.fits(10) == (upto > 0)


class TestDelivered:
    def test_what_is_not_above_the_highest_is_a_repeat(self) -> None:
        delivered = Delivered()
        numbers = [1, 2, 2, 1, 3, 9, 4, 10]
        assert [delivered.is_new("e", number, 0.0) for number in numbers] == [
            True, True, False, False, True, True, False, True,
        ]  # fmt: skip

    def test_emitters_do_not_mix(self) -> None:
        delivered = Delivered()
        assert delivered.is_new("e", 5, 0.0)
        assert delivered.is_new("f", 1, 0.0)

    def test_the_longest_silent_emitter_makes_room(self) -> None:
        delivered = Delivered(max_emitters=2)
        for emitter in ("a", "b", "a", "c"):
            delivered.is_new(emitter, 7, 0.0)
        assert len(delivered) == 2
        assert not delivered.is_new("a", 7, 0.0)
        assert delivered.is_new("b", 7, 0.0)

    def test_silent_emitters_are_forgotten_in_time(self) -> None:
        delivered = Delivered(forget_seconds=10.0)
        delivered.is_new("a", 1, 0.0)
        delivered.is_new("b", 1, 5.0)
        delivered.is_new("a", 2, 8.0)
        delivered.sweep(15.0)
        assert len(delivered) == 1
        assert not delivered.is_new("a", 2, 15.0)


def peer(uid: str) -> Peer:
    """A linked peer."""
    session = Session(b"s" * 8, limit_bytes=1000)
    session.attach(SessionState(b"t" * 8, b"", 0))
    return Peer(uid, Member(uid, "", PeerState.ALIVE, 0.0), session, Backoff(random.Random(1)))


def passed_on(receipt: Receipt, number: int, *peers: Peer) -> None:
    for one in peers:
        one.session.append(b"x")
        one.session.take(100)
    receipt.taken = number


class TestReceipt:
    def test_with_no_other_node_it_is_everywhere_at_once(self) -> None:
        receipt = Receipt()
        assert receipt.settle([]) is None
        receipt.taken = 3
        assert receipt.is_open
        assert receipt.settle([]) == 3
        assert receipt.settle([]) is None
        assert not receipt.is_open

    def test_all_peers_must_acknowledge(self) -> None:
        one, two, receipt = peer("1"), peer("2"), Receipt()
        passed_on(receipt, 1, one, two)
        assert receipt.settle([one, two]) is None
        one.session.acknowledge(1)
        assert receipt.settle([one, two]) is None
        two.session.acknowledge(1)
        assert receipt.settle([one, two]) == 1

    def test_what_comes_meanwhile_does_not_put_it_off_and_is_told_next(self) -> None:
        one, receipt = peer("1"), Receipt()
        passed_on(receipt, 1, one)
        assert receipt.settle([one]) is None
        passed_on(receipt, 2, one)
        one.session.acknowledge(1)
        assert receipt.settle([one]) == 1
        assert receipt.settle([one]) is None
        one.session.acknowledge(2)
        assert receipt.settle([one]) == 2

    def test_a_peer_that_lapses_holds_it_up_until_nobody_owes_it_anything(self) -> None:
        one, receipt = peer("1"), Receipt()
        passed_on(receipt, 1, one)
        one.present = False
        assert receipt.settle([one]) is None
        assert receipt.settle([one]) is None
        assert receipt.settle([]) == 1

    def test_what_an_outbox_had_to_drop_does_not_hold_it_up(self) -> None:
        one, receipt = peer("1"), Receipt()
        passed_on(receipt, 1, one)
        assert receipt.settle([one]) is None
        one.session.detach()
        one.session.append(b"x" * 1000)
        assert receipt.settle([one]) == 1

    def test_a_peer_that_comes_later_is_not_waited_for_by_an_earlier_question(self) -> None:
        one, two, receipt = peer("1"), peer("2"), Receipt()
        passed_on(receipt, 1, one)
        assert receipt.settle([one]) is None
        one.session.acknowledge(1)
        assert receipt.settle([one, two]) == 1


def inner(kind: MessageType, data: dict[str, object], uid: str = EMITTER) -> bytes:
    return messages.encode(kind, uid, "/", data)


class TestOpening:
    @pytest.mark.parametrize(
        ("kind", "data"),
        [
            (MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["event"])),
            (MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["event"], request_id="r")),
            (MessageType.SOCKETS_JOIN, messages.sockets_join(messages.options(["a"]), ["b"])),
            (MessageType.SOCKETS_LEAVE, messages.sockets_leave(messages.options(["a"]), ["b"])),
            (MessageType.DISCONNECT_SOCKETS, messages.disconnect_sockets(messages.options(["a"]))),
            (MessageType.SERVER_SIDE_EMIT, {"packet": ["event", 1]}),
        ],
    )
    def test_what_an_emitter_may_send(self, kind: MessageType, data: dict[str, object]) -> None:
        message = open_message(inner(kind, data), EMITTER)
        assert (message.type, message.uid) == (kind, EMITTER)

    @pytest.mark.parametrize(
        "packed",
        [
            inner(MessageType.HEARTBEAT, {}),
            inner(MessageType.INITIAL_HEARTBEAT, {}),
            inner(MessageType.ADAPTER_CLOSE, {}),
            inner(MessageType.FETCH_SOCKETS, {"opts": messages.options(), "requestId": "r"}),
            inner(MessageType.BROADCAST_ACK, {"requestId": "r", "packet": 1}),
            inner(MessageType.BROADCAST_CLIENT_COUNT, {"requestId": "r", "clientCount": 1}),
            inner(MessageType.SERVER_SIDE_EMIT, {"packet": ["event"], "requestId": "r"}),
            inner(MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["event"]), "f" * 16),
            inner(MessageType.BROADCAST, {"opts": {}}),
            b"",
            b"\xc1",
            b"\x91" * 5000,
            msgpack.packb(1) + msgpack.packb(2),
            msgpack.packb({b"a": {1: 2}}),
            b"\xdd\xff\xff\xff\xff",
            b"\x81\x80\x01",
        ],
    )
    def test_all_else_is_refused(self, packed: bytes) -> None:
        with pytest.raises(MessageError):
            open_message(packed, EMITTER)
