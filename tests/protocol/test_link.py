"""One link: two protocols back to back, and everything that a stranger or a peer may not do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gevent_mesh.errors import FrameError, HandshakeError, RemoteError, WebSocketError
from gevent_mesh.protocol import frames, messages
from gevent_mesh.protocol.frames import (
    Auth,
    Batch,
    Bye,
    Challenge,
    Frame,
    Gap,
    Heartbeat,
    Hello,
    Refusal,
    Role,
    SessionState,
    Welcome,
    batch_header,
)
from gevent_mesh.protocol.handshake import Keys, boot_key_for
from gevent_mesh.protocol.link import (
    BATCH_BYTES,
    MAX_PENDING_PONGS,
    STALL_SECONDS,
    Claimed,
    Identity,
    Left,
    LinkProtocol,
    Lost,
    Phase,
    Proven,
    Status,
)
from gevent_mesh.protocol.messages import ClusterMessage, MessageType
from gevent_mesh.protocol.session import ACK_EVERY_BYTES, Session
from gevent_mesh.protocol.websocket import FrameDecoder, Opcode, close_payload, frame, frame_header
from tests.protocol.support import (
    HIGH,
    KEYS,
    LOW,
    OTHER,
    TOKEN,
    Side,
    connect,
    connected,
    dialer,
    event,
    exchange,
    frames_in,
    listener,
    numbers,
    session,
    wire,
)

STATE = SessionState(b"stream-1", b"", 0)
ONE_OF_EACH: list[Frame] = [
    Hello(1, OTHER, "", HIGH, bytes(32), Role.NODE, "socketio", "json", STATE),
    Challenge(1, OTHER, "", bytes(32), Role.NODE, "socketio", "json"),
    Auth((bytes(32),)),
    Welcome(bytes(32), STATE),
    Batch(1, 0, b""),
    Heartbeat(0, {}),
    Gap(1, 1),
]


def say_hello(side: Side, **changes: Any) -> None:
    """Give a listener a HELLO that is right but for the changes."""
    fields: dict[str, Any] = {
        "version": 1, "uid": LOW, "address": "ws://a:1", "target": HIGH, "nonce": bytes(32), "role": Role.NODE,
        "channel": "socketio", "codec": "json", "session": STATE,
    }  # fmt: skip
    side.receive(wire(Hello(**(fields | changes)), mask=True))


def challenge(side: Side, **changes: Any) -> None:
    """Give a dialer a CHALLENGE that is right but for the changes."""
    fields: dict[str, Any] = {
        "version": 1, "uid": HIGH, "address": "ws://b:2", "nonce": bytes(32), "role": Role.NODE,
        "channel": "socketio", "codec": "json",
    }  # fmt: skip
    side.receive(wire(Challenge(**(fields | changes)), mask=False))


def batch(first: int, *bodies: bytes, acknowledged: int = 0, mask: bool = True) -> bytes:
    """A BATCH on the wire; by default from the dialer."""
    return wire(Batch(first, acknowledged, b"".join(bodies)), mask=mask)


def refusals(side: Side) -> list[int]:
    """The codes of the BYEs that a side has to say."""
    said = frames_in(side.protocol.outgoing(), masked=side.protocol.is_dialer)
    return [found.code for found in said if isinstance(found, Bye)]


# ---------------------------------------------------------------------- coming up


def test_two_nodes_link() -> None:
    a, b = connected(dialer(codec="x"), listener(role=Role.EMITTER, codec="y"))
    assert (a.protocol.phase, b.protocol.phase) == (Phase.UP, Phase.UP)
    assert a.events == [Proven(Identity(HIGH, f"ws://{HIGH}:4000", Role.EMITTER, codec="y"))]
    assert b.events == [Claimed(LOW), Proven(Identity(LOW, f"ws://{LOW}:4000", codec="x"))]
    assert a.session.attached
    assert b.session.attached
    assert a.protocol.is_dialer
    assert not b.protocol.is_dialer
    assert repr(a.protocol) == f"<LinkProtocol {LOW} -> {HIGH} UP>"
    assert repr(b.protocol) == f"<LinkProtocol {HIGH} <- {LOW} UP>"


def test_a_dialer_that_knows_only_an_address_links() -> None:
    a, _ = connected(dialer(target=None))
    assert a.protocol.peer is not None
    assert a.protocol.peer.uid == HIGH


def test_nothing_is_said_to_a_stranger_that_it_may_not_know() -> None:
    a, b = dialer(), listener()
    b.receive(a.protocol.outgoing())
    (found,) = frames_in(b.protocol.outgoing(), masked=False)
    assert isinstance(found, Challenge)
    assert not b.session.attached
    assert b.protocol.phase is Phase.WAIT_AUTH


def test_what_waits_goes_both_ways_and_is_acknowledged() -> None:
    a, b = dialer(), listener()
    for number in range(1, 6):
        a.session.append(event(number))
        b.session.append(event(number, uid=HIGH))
    exchange(a, b)
    assert numbers(a) == numbers(b) == [1, 2, 3, 4, 5]
    for side in (a, b):
        side.protocol.request_ack()
    exchange(a, b)
    assert (a.session.outbox_messages, b.session.outbox_messages) == (0, 0)


def _conversation(split: Any) -> tuple[list[Any], list[Any], int]:
    """A handshake and some messages; what came out on both sides, and how many bytes went over."""
    total = 0

    def counted(data: bytes) -> Iterable[bytes]:
        nonlocal total
        begin, total = total, total + len(data)
        return split(data, begin)  # type: ignore[no-any-return]  # a split of the caller's

    a, b = dialer(), listener()
    a.session.append(event(1))
    b.session.append(event(1, uid=HIGH, fill="x" * 130))
    exchange(a, b, split=counted)
    a.session.append(event(2))
    a.protocol.tick(5.0, {"clients": 3})
    exchange(a, b, split=counted)
    a.protocol.refuse(Refusal.LEAVING, "done")
    exchange(a, b, split=counted)
    assert a.error is None
    assert b.error is None
    return a.events, b.events, total


def test_every_split_of_the_bytes_means_the_same() -> None:
    *expected, total = _conversation(lambda data, _begin: (data,))
    assert [type(found) for found in expected[1]] == [
        Claimed, Proven, ClusterMessage, Status, ClusterMessage, Left,
    ]  # fmt: skip
    for cut in range(total):
        *got, _ = _conversation(lambda data, begin, cut=cut: (data[: max(0, cut - begin)], data[max(0, cut - begin) :]))
        assert got == expected, f"cut at byte {cut}"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_small_pieces_mean_the_same(size: int) -> None:
    *expected, _ = _conversation(lambda data, _begin: (data,))
    *got, _ = _conversation(lambda data, _begin: [data[at : at + size] for at in range(0, len(data), size)])
    assert got == expected


def test_only_the_dialer_masks_and_its_key_is_zero() -> None:
    a, b = dialer(), listener()
    hello = a.protocol.outgoing()
    assert hello[1] & 0x80
    assert bytes(4) in hello[2:8]
    b.receive(hello)
    answer = b.protocol.outgoing()
    assert not answer[1] & 0x80
    a.receive(answer)
    exchange(a, b)
    for side, masked in ((a, True), (b, False)):
        message = event(1)
        side.session.append(message)
        side.protocol.tick(5.0, {})
        data = side.protocol.outgoing()
        # With key 0 the payload travels as it is: the same bytes serve every peer.
        assert data.endswith(message)
        decoder = FrameDecoder(max_payload_bytes=1 << 20, require_mask=masked)
        decoder.feed(data)
        assert decoder.next_frame() is not None
        assert decoder.next_frame() is not None
        assert decoder.next_frame() is None


def test_an_unmasked_dialer_and_a_masking_listener_are_cut() -> None:
    b = listener()
    b.receive(wire(ONE_OF_EACH[0], mask=False))
    assert isinstance(b.error, WebSocketError)
    a = dialer()
    a.receive(wire(ONE_OF_EACH[1], mask=True))
    assert isinstance(a.error, WebSocketError)


# ---------------------------------------------------------------------- wrong frames


def _sides() -> dict[str, tuple[Side, type[Any] | tuple[Any, ...]]]:
    """One side in each phase, and what it may get there."""
    waiting, asked = listener(), dialer()
    say_hello(waiting)
    challenge(asked)
    up_dialer, up_listener = connected()
    return {
        "WAIT_HELLO": (listener(), Hello),
        "WAIT_AUTH": (waiting, Auth),
        "HELLO_SENT": (dialer(), Challenge),
        "AUTH_SENT": (asked, Welcome),
        "UP dialer": (up_dialer, (Batch, Heartbeat, Gap)),
        "UP listener": (up_listener, (Batch, Heartbeat, Gap)),
    }


@pytest.mark.parametrize("phase", _sides())
@pytest.mark.parametrize("found", ONE_OF_EACH, ids=lambda found: type(found).__name__)
def test_every_phase_refuses_what_does_not_belong_there(phase: str, found: Frame) -> None:
    side, allowed = _sides()[phase]
    assert side.protocol.phase.name == phase.split()[0]
    if isinstance(found, allowed):
        return
    before = len(side.events)
    side.receive(wire(found, mask=not side.protocol.is_dialer))
    assert isinstance(side.error, FrameError)
    assert f"{type(found).__name__.upper()} frame in phase" in str(side.error)
    assert len(side.events) == before


@pytest.mark.parametrize("phase", _sides())
@pytest.mark.parametrize(
    "payload", [b"", b"\x00\x80", b"\x01\x80", b"\x10", b"\x18", b"\xff", b"\x14short", b"\x15", b"\x16"]
)
def test_undecodable_frames_end_the_link_in_every_phase(phase: str, payload: bytes) -> None:
    side, _ = _sides()[phase]
    side.receive(frame(Opcode.BINARY, payload, mask=not side.protocol.is_dialer))
    assert isinstance(side.error, FrameError)


def test_the_owner_must_decide_about_a_proved_peer() -> None:
    a, b = dialer(), listener()
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    with pytest.raises(RuntimeError, match="must accept or refuse"):
        list(b.protocol.receive(a.protocol.outgoing(), 0.0))


@pytest.mark.parametrize("phase", _sides())
def test_nobody_is_accepted_who_is_not_proved(phase: str) -> None:
    side, _ = _sides()[phase]
    with pytest.raises(RuntimeError, match="accept"):
        side.protocol.accept(session(), 0.0)


# ---------------------------------------------------------------------- strangers


@pytest.mark.parametrize("make", [listener, dialer])
def test_a_stranger_may_send_frames_of_one_kibibyte(make: Any) -> None:
    side = make()
    head = frame_header(Opcode.BINARY, frames.MAX_STRANGER_FRAME_BYTES, mask=not side.protocol.is_dialer)
    side.receive(head)
    assert side.error is None

    side = make()
    head = frame_header(Opcode.BINARY, frames.MAX_STRANGER_FRAME_BYTES + 1, mask=not side.protocol.is_dialer)
    side.receive(head)
    assert isinstance(side.error, WebSocketError)
    assert side.error.code == 1009


@pytest.mark.parametrize("phase", ["WAIT_AUTH", "AUTH_SENT"])
def test_a_stranger_that_answered_once_is_still_a_stranger(phase: str) -> None:
    side, _ = _sides()[phase]
    side.receive(frame_header(Opcode.BINARY, frames.MAX_STRANGER_FRAME_BYTES + 1, mask=not side.protocol.is_dialer))
    assert isinstance(side.error, WebSocketError)


@pytest.mark.parametrize("phase", ["UP dialer", "UP listener"])
def test_a_peer_may_send_large_frames(phase: str) -> None:
    side, _ = _sides()[phase]
    side.receive(frame_header(Opcode.BINARY, frames.MAX_FRAME_BYTES, mask=not side.protocol.is_dialer))
    assert side.error is None
    side, _ = _sides()[phase]
    side.receive(frame_header(Opcode.BINARY, frames.MAX_FRAME_BYTES + 1, mask=not side.protocol.is_dialer))
    assert isinstance(side.error, WebSocketError)


def test_a_large_batch_may_come_with_the_last_frame_of_the_handshake() -> None:
    a, b = dialer(), listener()
    b.session.append(event(1, uid=HIGH, fill="x" * 5000))
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    assert a.error is None
    assert numbers(a) == [1]


def test_a_second_hello_is_not_taken() -> None:
    side = listener()
    say_hello(side)
    say_hello(side, uid=OTHER)
    assert isinstance(side.error, FrameError)
    assert side.events == [Claimed(LOW)]


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200)
def test_whatever_a_stranger_sends_is_a_remote_error_at_worst(data: bytes, framed: bool) -> None:
    for side in (listener(), dialer()):
        side.receive(frame(Opcode.BINARY, data, mask=not side.protocol.is_dialer) if framed else data)
        assert side.error is None or isinstance(side.error, RemoteError)
        assert not side.of_type(Proven)


# ---------------------------------------------------------------------- refusals


def _refused(a: Side, b: Side, code: Refusal, by: str) -> None:
    """Both sides end with the same code, and nobody is attached."""
    exchange(a, b)
    for side in (a, b):
        assert isinstance(side.error, HandshakeError), side.error
        assert side.error.code == code
        assert side.protocol.phase is Phase.CLOSED
        assert not side.session.attached
        assert not side.protocol.has_outgoing
    one, other = (a, b) if by == "dialer" else (b, a)
    assert str(other.error) == f"refused: {one.error}"


def test_a_wrong_token_is_refused_by_the_listener() -> None:
    a, b = dialer(keys=Keys(["another token of theirs"])), listener()
    _refused(a, b, Refusal.UNAUTHORIZED, "listener")
    assert not b.of_type(Proven)


@pytest.mark.parametrize(("ours", "theirs"), [([], [TOKEN]), ([TOKEN], [])])
def test_a_missing_token_is_refused(ours: list[str], theirs: list[str]) -> None:
    _refused(dialer(keys=Keys(ours)), listener(keys=Keys(theirs)), Refusal.UNAUTHORIZED, "listener")


def test_a_listener_that_cannot_prove_itself_is_refused_by_the_dialer() -> None:
    class Liar(Keys):
        """Lets everybody in and knows nothing."""

        def is_dialer(self, *_: Any) -> bool:
            return True

        def listener_proof(self, *_: Any) -> bytes:
            return bytes(32)

    a, b = dialer(), listener(keys=Liar([]))
    exchange(a, b)
    assert isinstance(a.error, HandshakeError)
    assert a.error.code == Refusal.UNAUTHORIZED
    assert not a.of_type(Proven)
    # The liar thought that the link was up: it is told why it is not.
    assert b.error is None
    assert b.of_type(Left) == [Left(Refusal.UNAUTHORIZED, str(a.error))]


def test_the_listeners_session_state_cannot_be_changed_under_way() -> None:
    a, b = dialer(), listener()
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    b.receive(a.protocol.outgoing())
    (welcome,) = frames_in(b.protocol.outgoing(), masked=False)
    assert isinstance(welcome, Welcome)
    a.receive(wire(Welcome(welcome.proof, SessionState(b"evil-str", b"", 0)), mask=False))
    assert isinstance(a.error, HandshakeError)
    assert refusals(a) == [Refusal.UNAUTHORIZED]


@pytest.mark.parametrize("change", ["uid", "address", "session", "nonce"])
def test_the_dialers_hello_cannot_be_changed_under_way(change: str) -> None:
    a, b = dialer(), listener()
    (hello,) = frames_in(a.protocol.outgoing(), masked=True)
    assert isinstance(hello, Hello)
    values: dict[str, Any] = {"uid": OTHER, "address": "ws://evil:1", "session": STATE, "nonce": bytes(32)}
    fields = {name: getattr(hello, name) for name in Hello.__slots__} | {change: values[change]}
    b.receive(wire(Hello(**fields), mask=True))
    a.receive(b.protocol.outgoing())
    b.receive(a.protocol.outgoing())
    assert isinstance(b.error, HandshakeError)
    assert b.error.code == Refusal.UNAUTHORIZED


def test_each_side_shows_its_boot_key_to_the_other_one_only() -> None:
    def met(uid: str, secret: bytes) -> LinkProtocol:
        """What a listener has heard of a dialer with this secret."""
        a, b = dialer(target=uid), listener(uid)
        a.protocol = LinkProtocol(
            Identity(LOW), KEYS, nonce=bytes(32), now=0.0, target=uid, session=a.session.state(), secret=secret
        )
        b.protocol._secret = b"of the listener"
        connected(a, b)
        # Who shows none is shown none.
        assert a.protocol.boot_key == (boot_key_for(LOW, b"of the listener") if secret else b"")
        return b.protocol

    first = met(HIGH, b"secret").boot_key
    assert len(first) == 16
    assert met(HIGH, b"secret").boot_key == first
    assert met(OTHER, b"secret").boot_key != first
    assert met(HIGH, b"another").boot_key != first
    assert met(HIGH, b"").boot_key == b""


def test_the_listeners_boot_key_cannot_be_changed_under_way() -> None:
    a, b = dialer(), listener()
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    b.receive(a.protocol.outgoing())
    (welcome,) = frames_in(b.protocol.outgoing(), masked=False)
    assert isinstance(welcome, Welcome)
    a.receive(wire(replace(welcome, boot=b"k" * 16), mask=False))
    assert isinstance(a.error, HandshakeError)
    assert a.error.code == Refusal.UNAUTHORIZED


def test_the_dialers_boot_key_cannot_be_changed_under_way() -> None:
    a, b = dialer(), listener()
    b.receive(a.protocol.outgoing())
    a.receive(b.protocol.outgoing())
    (auth,) = frames_in(a.protocol.outgoing(), masked=True)
    assert isinstance(auth, Auth)
    b.receive(wire(replace(auth, boot=b"k" * 16), mask=True))
    assert isinstance(b.error, HandshakeError)
    assert b.error.code == Refusal.UNAUTHORIZED


class TestBootProofs:
    """What two sides that have or have not been linked before show to each other."""

    DIALERS, LISTENERS = boot_key_for(HIGH, b"of the dialer"), boot_key_for(LOW, b"of the listener")

    def shown(self, to_dialer: bytes, to_listener: bytes) -> tuple[bytes, bytes, LinkProtocol, LinkProtocol]:
        """Link; each side has been shown this key before. Returns what AUTH and WELCOME carried."""
        a, b = dialer(), listener()
        a.protocol._secret, b.protocol._secret = b"of the dialer", b"of the listener"
        a.protocol._known_key, b.protocol._known_key = lambda _uid: to_dialer, lambda _uid: to_listener
        b.receive(a.protocol.outgoing())
        a.receive(b.protocol.outgoing())
        sent = a.protocol.outgoing()
        (auth,) = frames_in(sent, masked=True)
        b.receive(sent)
        sent = b.protocol.outgoing()
        (welcome,) = frames_in(sent, masked=False)
        a.receive(sent)
        assert isinstance(auth, Auth)
        assert isinstance(welcome, Welcome)
        return auth.boot, welcome.boot, a.protocol, b.protocol

    def test_the_keys_themselves_travel_at_the_first_link_only(self) -> None:
        theirs, ours, a, b = self.shown(b"", b"")
        assert (theirs, ours) == (self.DIALERS, self.LISTENERS)
        assert (b.boot_key, a.boot_key) == (theirs, ours)
        first, second, a, b = self.shown(ours, theirs)
        assert len(first) == len(second) == 32
        assert (b.boot_key, a.boot_key) == (theirs, ours)

    @pytest.mark.parametrize("is_dialer", [True, False])
    def test_who_does_not_have_the_key_of_the_other_side_is_shown_it_again(self, is_dialer: bool) -> None:
        theirs, ours, a, b = self.shown(self.LISTENERS if is_dialer else b"", b"" if is_dialer else self.DIALERS)
        assert (theirs, ours) == (self.DIALERS, self.LISTENERS)
        assert (b.boot_key, a.boot_key) == (theirs, ours)

    def test_nobody_else_gets_the_key_by_saying_that_it_does_not_have_it(self) -> None:
        boot, _, a, b = self.shown(b"k" * 16, b"")
        assert len(boot) == 32
        assert a.boot_key == b.boot_key == b""

    def test_a_proof_under_another_key_shows_nothing(self) -> None:
        _, _, a, b = self.shown(b"k" * 16, b"x" * 16)
        assert a.boot_key == b.boot_key == b""


def test_an_address_with_a_new_owner_is_the_wrong_peer() -> None:
    a, b = dialer(target=OTHER), listener()
    _refused(a, b, Refusal.WRONG_PEER, "listener")
    assert b.events == [], "nobody was claimed"


def test_a_listener_with_another_name_is_the_wrong_peer() -> None:
    side = dialer(target=HIGH)
    side.protocol.outgoing()
    challenge(side, uid=OTHER)
    assert isinstance(side.error, HandshakeError)
    assert refusals(side) == [Refusal.WRONG_PEER]


@pytest.mark.parametrize("target", [None, LOW])
def test_a_node_does_not_link_to_itself(target: str | None) -> None:
    _refused(dialer(LOW, target=target), listener(LOW), Refusal.PROTOCOL, "listener")


def test_a_listener_with_our_own_name_is_refused() -> None:
    side = dialer(LOW, target=None)
    side.protocol.outgoing()
    challenge(side, uid=LOW)
    assert isinstance(side.error, HandshakeError)
    assert refusals(side) == [Refusal.PROTOCOL]


def test_another_channel_is_refused_and_only_after_the_proof() -> None:
    a, b = dialer(channel="one"), listener(channel="two")
    _refused(a, b, Refusal.CHANNEL, "listener")
    # Both log it.
    for error in (a.error, b.error):
        assert f"node {LOW} is on channel 'one'" in str(error)
        assert f"node {HIGH} is on channel 'two'" in str(error)
    a, b = dialer(channel="one", keys=Keys(["another token of theirs"])), listener(channel="two")
    _refused(a, b, Refusal.UNAUTHORIZED, "listener")


def test_a_dialer_refuses_another_channel_too() -> None:
    # This listener does not check.
    a, b = dialer(channel="one"), listener(channel="two")
    b.receive(a.protocol.outgoing())
    b.protocol._us = Identity(HIGH, channel="one")
    exchange(a, b)
    assert isinstance(a.error, HandshakeError)
    assert a.error.code == Refusal.CHANNEL
    assert not a.of_type(Proven)


def test_an_older_version_is_refused_on_both_sides() -> None:
    b = listener()
    say_hello(b, version=0)
    assert isinstance(b.error, HandshakeError)
    assert refusals(b) == [Refusal.VERSION]
    a = dialer()
    a.protocol.outgoing()
    challenge(a, version=0)
    assert isinstance(a.error, HandshakeError)
    assert refusals(a) == [Refusal.VERSION]


def test_a_newer_version_is_welcome() -> None:
    b = listener()
    say_hello(b, version=2)
    assert b.error is None
    assert b.protocol.phase is Phase.WAIT_AUTH
    a = dialer()
    challenge(a, version=2)
    assert a.error is None
    assert a.protocol.phase is Phase.AUTH_SENT


@pytest.mark.parametrize("at", [Claimed, Proven])
def test_the_owner_may_refuse(at: type[Any]) -> None:
    class Picky(Side):
        """Refuses at one event."""

        def receive(self, data: bytes, now: float = 0.0) -> None:
            for found in self.protocol.receive(data, now):
                self.events.append(found)
                if isinstance(found, at):
                    self.protocol.refuse(Refusal.DUPLICATE, "one is enough")

    a, b = dialer(), listener()
    b = Picky(b.protocol, b.session)
    exchange(a, b)
    assert isinstance(a.error, HandshakeError)
    assert (a.error.code, a.error.reason) == (Refusal.DUPLICATE, "refused: one is enough")
    assert b.protocol.phase is Phase.CLOSED
    assert type(b.events[-1]) is at


def test_a_refusal_is_the_last_that_is_said() -> None:
    b = listener()
    b.protocol.refuse(Refusal.BUSY, "later")
    b.protocol.refuse(Refusal.PROTOCOL, "again")
    assert frames_in(b.protocol.outgoing(), masked=False) == [Bye(Refusal.BUSY, "later")]
    assert not b.protocol.has_outgoing
    say_hello(b)
    assert b.events == []


def test_a_bye_is_followed_by_a_close_frame() -> None:
    b = listener()
    b.protocol.refuse(Refusal.BUSY, "later")
    assert b.protocol.outgoing().endswith(frame(Opcode.CLOSE, close_payload(1000, "BUSY"), mask=False))


# ---------------------------------------------------------------------- messages


def test_spoofed_messages_are_dropped_and_counted() -> None:
    _, b = connected()
    b.receive(batch(1, event(1), event(2, uid=OTHER), event(3, uid=HIGH), event(4, uid=""), event(5)))
    assert b.error is None
    assert numbers(b) == [1, 5]
    assert (b.protocol.spoofed, b.protocol.undecodable) == (3, 0)
    assert b.session.received == 5


@pytest.mark.parametrize(
    "malformed",
    [
        b"\xc0",
        b"\x07",
        msgpack.packb({"type": 99, "uid": LOW, "nsp": "/"}),
        msgpack.packb({"type": 3, "uid": LOW, "nsp": "/"}),
        msgpack.packb({1: 2, b"x": [None]}),
        msgpack.packb({"type": 9, "uid": LOW, "nsp": "/", "data": {"packet": []}}),
    ],
)
def test_a_malformed_message_is_dropped_and_counted_and_the_link_goes_on(malformed: bytes) -> None:
    _, b = connected()
    b.receive(batch(1, event(1), malformed, event(3)))
    assert b.error is None
    assert numbers(b) == [1, 3]
    assert (b.protocol.undecodable, b.protocol.spoofed) == (1, 0)
    assert b.session.received == 3


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xc1", id="the byte that msgpack never uses"),
        pytest.param(event(2)[:-1], id="cut off"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of 4 billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 4 billion"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GiB of bytes"),
        pytest.param(b"\xa1\xff", id="text that is not UTF-8"),
        pytest.param(b"\x91" * 2000, id="deep"),
        pytest.param(b"\x81\x90\x01", id="an array as a map key"),
        pytest.param(b"\x81\x80\x01", id="a map as a map key"),
    ],
)
def test_an_undecodable_batch_ends_the_link_behind_what_was_good(body: bytes) -> None:
    _, b = connected()
    b.receive(batch(1, event(1), body))
    assert isinstance(b.error, FrameError)
    assert numbers(b) == [1]
    assert b.session.received == 1


def test_a_timestamp_that_cannot_be_does_not_get_through() -> None:
    """The oldest msgpack makes a number of it, which is no message; newer ones refuse it."""
    _, b = connected()
    b.receive(batch(1, event(1), b"\xd7\xff" + b"\xff" * 8))
    assert numbers(b) == [1]
    assert isinstance(b.error, FrameError) != (b.protocol.undecodable == 1)


def test_timestamps_are_no_keys_whose_hashes_a_peer_can_choose() -> None:
    _, b = connected()
    keys = {msgpack.Timestamp(n, 1): n for n in range(10)}
    b.receive(batch(1, messages.encode(MessageType.SERVER_SIDE_EMIT, LOW, "/", {"packet": ["event", keys]})))
    (found,) = b.of_type(ClusterMessage)
    assert {type(key) for key in found.data["packet"][1]} == {float}


def test_repeats_are_dropped_and_counted() -> None:
    _, b = connected()
    b.receive(batch(1, event(1), event(2)))
    b.receive(batch(1, event(1), event(2), event(3)))
    assert numbers(b) == [1, 2, 3]
    assert b.session.repeats == 2


@pytest.mark.parametrize("first", [2, 3, 2**64 - 1])
def test_a_hole_in_the_numbers_ends_the_link(first: int) -> None:
    _, b = connected()
    b.receive(batch(first, event(1)))
    assert isinstance(b.error, FrameError)
    assert "missing" in str(b.error)
    assert numbers(b) == []


def test_a_message_counts_as_received_when_it_is_handed_on() -> None:
    _, b = connected()
    coming = b.protocol.receive(batch(1, event(1), event(2), event(3)), 0.0)
    next(coming)
    assert b.session.received == 1
    next(coming)
    assert b.session.received == 2


def test_a_reader_that_is_stopped_halfway_goes_on_over_the_next_link() -> None:
    ours, theirs = session("a"), session("b")
    a, b = connect(ours, theirs)
    for number in range(1, 4):
        ours.append(event(number))
    coming = b.protocol.receive(a.protocol.outgoing(), 0.0)
    next(coming)
    b.protocol.close()
    assert list(coming) == []
    ours.detach()
    theirs.detach()
    _, again = connect(ours, theirs)
    assert numbers(again) == [2, 3]
    assert theirs.repeats == 0


def test_a_link_that_is_closed_takes_and_says_nothing() -> None:
    a, b = connected()
    a.session.append(event(1))
    a.protocol.tick(5.0, {})
    a.protocol.close()
    assert not a.protocol.has_outgoing
    assert a.protocol.outgoing() == b""
    b.protocol.close()
    b.receive(batch(1, event(1)))
    assert numbers(b) == []


def test_all_that_waits_goes_in_one_batch_up_to_a_limit() -> None:
    a, _ = connected()
    for number in range(1, 4):
        a.session.append(event(number, fill="x" * (BATCH_BYTES // 2 - 100)))
    sizes = []
    while a.protocol.has_outgoing:
        (found,) = frames_in(a.protocol.outgoing(), masked=True)
        assert isinstance(found, Batch)
        sizes.append((found.first, len(found.body) <= BATCH_BYTES))
    assert sizes == [(1, True), (3, True)]


def test_a_message_larger_than_a_batch_goes_alone() -> None:
    a, b = connected()
    a.session.append(event(1, fill="x" * (2 * BATCH_BYTES)))
    a.session.append(event(2))
    assert len(frames_in(a.protocol.outgoing(), masked=True)) == 1
    exchange(a, b)
    a, b = connected()
    a.session.append(event(1, fill="x" * (2 * BATCH_BYTES)))
    a.session.append(event(2))
    exchange(a, b)
    assert numbers(b) == [1, 2]


def test_messages_are_written_as_they_are() -> None:
    a, _ = connected()
    a.session.append(event(1))
    a.session.append(event(2))
    body = batch_header(1, 0) + event(1) + event(2)
    assert a.protocol.outgoing() == frame_header(Opcode.BINARY, len(body), mask=True) + body


def test_nothing_waits_before_the_link_is_up() -> None:
    a = dialer()
    a.session.append(event(1))
    assert a.protocol.has_outgoing, "the HELLO"
    assert [type(found) for found in frames_in(a.protocol.outgoing(), masked=True)] == [Hello]
    assert not a.protocol.has_outgoing


# ---------------------------------------------------------------------- acknowledgements


def test_acknowledgements_ride_on_batches() -> None:
    a, b = connected()
    a.session.append(event(1))
    exchange(a, b)
    assert a.session.outbox_messages == 1
    b.session.append(event(1, uid=HIGH))
    assert not b.protocol._ack_wanted
    exchange(a, b)
    assert a.session.outbox_messages == 0


def test_acknowledgements_ride_on_heartbeats() -> None:
    a, b = connected()
    a.session.append(event(1))
    exchange(a, b)
    b.protocol.tick(5.0, {})
    assert [type(found) for found in _peek(b)] == [Heartbeat]
    exchange(a, b)
    assert a.session.outbox_messages == 0


def _peek(side: Side) -> list[Frame]:
    """What a side is going to say; it still says it."""
    data = side.protocol.outgoing()
    side.protocol._control.append(data)
    return frames_in(data, masked=side.protocol.is_dialer)


def test_an_acknowledgement_can_go_alone_and_goes_once() -> None:
    a, b = connected()
    a.session.append(event(1))
    exchange(a, b)
    assert not b.protocol.has_outgoing
    b.protocol.request_ack()
    assert _peek(b) == [Batch(1, 1, b"")]
    exchange(a, b)
    assert a.session.outbox_messages == 0
    b.protocol.request_ack()
    assert not b.protocol.has_outgoing, "nothing is owed any more"


def test_many_bytes_are_to_be_acknowledged_at_once() -> None:
    a, b = connected()
    a.session.append(event(1, fill="x" * (ACK_EVERY_BYTES // 2)))
    exchange(a, b)
    assert b.session.owes_ack_now is False
    a.session.append(event(2, fill="x" * (ACK_EVERY_BYTES // 2)))
    exchange(a, b)
    assert [b.session.owes_ack_now] == [True]


def test_an_acknowledgement_that_was_asked_for_is_not_sent_twice() -> None:
    a, b = connected()
    a.session.append(event(1))
    exchange(a, b)
    b.protocol.request_ack()
    b.session.append(event(1, uid=HIGH))
    assert len(frames_in(b.protocol.outgoing(), masked=False)) == 1
    assert not b.protocol.has_outgoing


@pytest.mark.parametrize("data", [batch(1, acknowledged=1), wire(Heartbeat(1, {}), mask=True)])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_link(data: bytes) -> None:
    _, b = connected()
    b.receive(data)
    assert isinstance(b.error, FrameError)
    assert "never sent" in str(b.error)


def test_heartbeat_that_tells_of_messages_which_have_not_come_ends_the_link() -> None:
    a, b = connected()
    a.session.append(event(1))
    exchange(a, b)
    b.receive(wire(Heartbeat(0, {"sent": 1}), mask=True))
    assert b.error is None
    b.receive(wire(Heartbeat(0, {"sent": 2}), mask=True))
    assert isinstance(b.error, FrameError)
    assert "1 have come" in str(b.error)


# ---------------------------------------------------------------------- resume


def test_a_new_link_resumes_both_streams() -> None:
    ours, theirs = session("a"), session("b")
    a, b = connect(ours, theirs)
    for number in range(1, 4):
        ours.append(event(number))
        theirs.append(event(number, uid=HIGH))
    a.protocol.outgoing()  # Lost with the link.
    a.receive(b.protocol.outgoing())
    for its_session in (ours, theirs):
        its_session.detach()
    a2, b2 = connect(ours, theirs)
    assert (numbers(a), numbers(a2)) == ([1, 2, 3], [])
    assert (numbers(b), numbers(b2)) == ([], [1, 2, 3])
    assert (ours.resumed, theirs.resumed) == (1, 1)
    assert (ours.sent_lost, theirs.sent_lost) == (0, 0)


def test_losses_are_told_before_anything_else() -> None:
    ours = session("a", limit_bytes=3 * len(event(1)))
    for number in range(1, 6):
        ours.append(event(number))
    _, b = connected(dialer(session=ours))
    assert [type(found) for found in b.events] == [Claimed, Proven, Lost, ClusterMessage, ClusterMessage]
    assert b.of_type(Lost) == [Lost(3)]
    assert numbers(b) == [4, 5]
    assert (ours.sent_lost, b.session.received_lost) == (3, 3)


def test_a_listener_tells_its_losses_too() -> None:
    theirs = session("b", limit_bytes=3 * len(event(1)))
    for number in range(1, 6):
        theirs.append(event(number, uid=HIGH))
    a, _ = connected(None, listener(session=theirs))
    assert a.of_type(Lost) == [Lost(3)]
    assert numbers(a) == [4, 5]


def test_a_gap_that_was_heard_before_is_no_news() -> None:
    _, b = connected()
    b.receive(wire(Gap(3, 3), mask=True))
    b.receive(wire(Gap(3, 3), mask=True))
    b.receive(wire(Gap(2, 2), mask=True))
    assert b.of_type(Lost) == [Lost(3)]
    b.receive(wire(Gap(5, 3), mask=True))
    assert isinstance(b.error, FrameError)


@pytest.mark.parametrize("who", ["dialer", "listener"])
def test_a_peer_that_claims_too_much_is_not_accepted(who: str) -> None:
    ours, theirs = session("a"), session("b")
    connect(ours, theirs)
    (theirs if who == "listener" else ours).received = 7
    for its_session in (ours, theirs):
        its_session.detach()
    a, b = dialer(session=ours), listener(session=theirs)
    exchange(a, b)
    victim = b if who == "dialer" else a
    assert isinstance(victim.error, FrameError)
    assert not victim.session.attached


# ---------------------------------------------------------------------- control frames


def test_a_ping_is_answered() -> None:
    a, b = connected()
    b.receive(frame(Opcode.PING, b"are you there", mask=True))
    assert b.protocol.outgoing() == frame(Opcode.PONG, b"are you there", mask=False)
    a.receive(frame(Opcode.PING, b"", mask=False))
    assert a.protocol.outgoing() == frame(Opcode.PONG, b"", mask=True)


def test_a_flood_of_pings_is_ended() -> None:
    ping = frame(Opcode.PING, b"", mask=True)
    _, b = connected()
    for _ in range(3):
        b.receive(ping * MAX_PENDING_PONGS)
        assert b.error is None
        b.protocol.outgoing()
    b.receive(ping * (MAX_PENDING_PONGS + 1))
    assert isinstance(b.error, FrameError)


def test_a_stranger_cannot_flood_either() -> None:
    b = listener()
    b.receive(frame(Opcode.PING, b"", mask=True) * (MAX_PENDING_PONGS + 1))
    assert isinstance(b.error, FrameError)


def test_a_pong_is_ignored() -> None:
    _, b = connected()
    b.receive(frame(Opcode.PONG, b"x", mask=True))
    assert b.error is None
    assert not b.protocol.has_outgoing


def test_a_close_frame_closes() -> None:
    _, b = connected()
    b.receive(frame(Opcode.CLOSE, close_payload(1001), mask=True) + batch(1, event(1)))
    assert b.error is None
    assert b.protocol.phase is Phase.CLOSED
    assert numbers(b) == []


def test_a_bye_ends_a_link_that_was_up() -> None:
    a, b = connected()
    a.protocol.refuse(Refusal.LEAVING, "stopped")
    exchange(a, b)
    assert b.error is None
    assert b.events[-1] == Left(Refusal.LEAVING, "stopped")
    assert b.protocol.phase is Phase.CLOSED


def test_a_bye_with_a_code_of_a_newer_node_is_understood() -> None:
    a = dialer()
    a.receive(wire(Bye(200, "new"), mask=False))
    assert isinstance(a.error, HandshakeError)
    assert a.error.code == 200


def test_behind_a_bye_nothing_is_taken() -> None:
    _, b = connected()
    b.receive(wire(Bye(Refusal.LEAVING, "x"), mask=True) + batch(1, event(1)))
    assert b.events[-1] == Left(Refusal.LEAVING, "x")
    assert numbers(b) == []


# ---------------------------------------------------------------------- heartbeats


def test_heartbeats_are_sent_at_their_interval() -> None:
    a, b = connected(now=100.0)
    assert a.protocol.next_tick() == 100.0
    sent = []
    for tenth in range(1000, 1151):
        now = tenth / 10
        b.protocol.tick(now, {})
        exchange(b, a, now=now)
        a.protocol.next_tick()
        assert a.protocol.tick(now, {"clients": 3})
        if any(isinstance(found, Heartbeat) for found in _peek(a)):
            sent.append(now)
        exchange(a, b, now=now)
    assert sent == [100.0, 105.0, 110.0, 115.0]
    assert b.of_type(Status)[-1].facts["clients"] == 3


def test_next_tick_is_the_next_heartbeat_or_the_end_of_patience() -> None:
    a, _ = connected(now=100.0)
    a.protocol.tick(100.0, {})
    assert a.protocol.next_tick() == 105.0
    a.protocol.tick(105.0, {})
    assert a.protocol.next_tick() == 110.0
    a.receive(frame(Opcode.PONG, b"", mask=False), 109.0)
    a.protocol.tick(110.0, {})
    assert a.protocol.next_tick() == 115.0


def test_the_end_of_patience_does_not_wait_for_the_next_heartbeat() -> None:
    a, _ = connected(dialer(now=100.0, heartbeat_timeout=12.0), now=100.0)
    for now in (100.0, 105.0, 110.0):
        assert a.protocol.next_tick() == now
        assert a.protocol.tick(now, {})
    assert a.protocol.next_tick() == 112.0
    assert not a.protocol.tick(112.0, {})


def test_silence_ends_the_link() -> None:
    a, _ = connected(now=100.0)
    for now in (100.0, 105.0):
        a.protocol.next_tick()
        assert a.protocol.tick(now, {})
    a.protocol.next_tick()
    assert not a.protocol.tick(110.0, {})


@pytest.mark.parametrize(
    "sign", [frame(Opcode.PONG, b"", mask=False), wire(Heartbeat(0, {}), mask=False), batch(1, mask=False), b"\x82"]
)
def test_any_byte_is_a_sign_of_life(sign: bytes) -> None:
    a, _ = connected(now=100.0)
    a.protocol.tick(105.0, {})
    a.receive(sign, 109.0)
    assert a.protocol.heard_at == 109.0
    a.protocol.next_tick()
    assert a.protocol.tick(110.0, {})
    a.protocol.next_tick()
    assert a.protocol.tick(115.0, {})
    a.protocol.next_tick()
    assert not a.protocol.tick(119.0, {})


def test_our_own_stall_is_not_the_peers_silence() -> None:
    a, _ = connected(now=100.0)
    a.protocol.tick(100.0, {})
    assert a.protocol.next_tick() == 105.0
    assert a.protocol.tick(160.0, {}), "we stood still for 55 s"
    # What the peer sent meanwhile is in the socket. If there was nothing, its time starts now.
    a.protocol.next_tick()
    a.protocol.tick(165.0, {})
    a.protocol.next_tick()
    assert not a.protocol.tick(170.0, {})


@pytest.mark.parametrize(("late", "forgiven"), [(STALL_SECONDS, False), (STALL_SECONDS + 0.01, True)])
def test_a_small_delay_is_no_stall(late: float, forgiven: bool) -> None:
    a, _ = connected(now=100.0)
    a.protocol.tick(105.0, {})
    assert a.protocol.next_tick() == 110.0
    assert a.protocol.tick(110.0 + late, {}) is forgiven


def test_the_round_trip_leaves_out_how_long_the_peer_kept_the_heartbeat() -> None:
    a, b = connected(now=100.0)
    a.protocol.tick(100.0, {})
    b.receive(a.protocol.outgoing(), 100.25)
    b.protocol.tick(102.0, {})
    a.receive(b.protocol.outgoing(), 102.5)
    assert a.protocol.round_trip_seconds == pytest.approx(0.75)


def test_the_handshake_measures_the_round_trip_first() -> None:
    a, b = dialer(now=100.0), listener(now=100.0)
    b.receive(a.protocol.outgoing(), 100.25)
    a.receive(b.protocol.outgoing(), 100.5)
    assert a.protocol.round_trip_seconds == 0.5
    b.receive(a.protocol.outgoing(), 100.75)
    assert b.protocol.round_trip_seconds == 0.5
    assert b.protocol.hello_at == 100.25
    assert a.protocol.hello_at == 100.0


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"echo": 1},
        {"held": 1},
        {"sent_at": "now", "echo": "1", "held": None},
        {"echo": 1.5, "held": 1},
        {"sent_at": True, "echo": True, "held": True},
    ],
)
def test_strange_facts_measure_nothing(facts: dict[str, Any]) -> None:
    _, b = connected()
    before = b.protocol.round_trip_seconds
    b.receive(wire(Heartbeat(0, facts), mask=True), 1.0)
    assert b.error is None
    assert b.events[-1] == Status(facts)
    assert b.protocol.round_trip_seconds == before


def test_a_round_trip_is_never_negative() -> None:
    _, b = connected()
    b.receive(wire(Heartbeat(0, {"echo": 10**15, "held": 0}), mask=True), 1.0)
    assert b.protocol.round_trip_seconds == 0.0


def test_no_heartbeat_before_the_link_is_up() -> None:
    a = dialer()
    a.protocol.outgoing()
    assert a.protocol.tick(5.0, {})
    assert not a.protocol.has_outgoing


# ---------------------------------------------------------------------- peers with bad intentions


@given(st.binary(max_size=120), st.sampled_from([0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]))
@settings(max_examples=200)
def test_whatever_a_peer_sends_is_a_remote_error_at_worst(data: bytes, kind: int) -> None:
    _, b = connected()
    head = batch_header(1, 0) if kind == 0x14 else bytes((kind,))
    b.receive(frame(Opcode.BINARY, head + data, mask=True))
    assert b.error is None or isinstance(b.error, RemoteError)
    assert not numbers(b)


def test_a_session_is_not_shared_by_two_directions() -> None:
    # A message of ours that comes back to us is not ours to act on.
    a, b = connected()
    a.session.append(event(1))
    b.receive(a.protocol.outgoing())
    b.session.append(messages.encode(MessageType.SERVER_SIDE_EMIT, LOW, "/", {"packet": ["event", 1, ""]}))
    exchange(a, b)
    assert numbers(a) == []
    assert a.protocol.spoofed == 1


def test_the_keys_of_the_tests_are_those_of_the_token() -> None:
    a, b = connected(dialer(keys=Keys([TOKEN])), listener(keys=KEYS))
    assert isinstance(a.protocol, LinkProtocol)
    assert isinstance(b.session, Session)
