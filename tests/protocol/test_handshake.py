"""Proofs: who is let in, and that no proof is worth anything anywhere else."""

from __future__ import annotations

import hmac
import struct
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gevent_mesh.protocol.frames import Challenge, Hello, Role, SessionState, encode_frame
from gevent_mesh.protocol.handshake import Keys, derive_key

OLD, NEW, WRONG = "the old token of ours", "the new token of ours", "a token of strangers"

HELLO = Hello(
    1, "00000000000000aa", "ws://a:1", "ff000000000000bb", b"n" * 32, Role.NODE, "socketio", "json",
    SessionState(b"stream-1", b"stream-2", 7),
)  # fmt: skip
CHALLENGE = Challenge(1, "ff000000000000bb", "ws://b:2", b"m" * 32, Role.NODE, "socketio", "json")
HELLO_BYTES, CHALLENGE_BYTES = encode_frame(HELLO), encode_frame(CHALLENGE)
SESSION = b"the listener's session"


def shake(dialer: Keys, listener: Keys) -> bool:
    """Run a handshake. Both must come to the same conclusion, the dialer's proof first."""
    proofs = dialer.dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES)
    answer = listener.listener_proof(proofs, HELLO_BYTES, CHALLENGE_BYTES, SESSION)
    assert listener.is_dialer(proofs, HELLO_BYTES, CHALLENGE_BYTES) is (answer is not None)
    return answer is not None and dialer.is_listener(answer, HELLO_BYTES, CHALLENGE_BYTES, SESSION)


@pytest.mark.parametrize(
    ("ours", "theirs", "linked"),
    [
        ([OLD], [OLD], True),
        ([], [], True),
        ([OLD], [NEW], False),
        ([OLD], [], False),
        ([], [OLD], False),
        # A rotation: every step of it links with the step before and the step after.
        ([OLD], [NEW, OLD], True),
        ([OLD], [OLD, NEW], True),
        ([NEW, OLD], [OLD, NEW], True),
        ([NEW, OLD], [NEW], True),
        ([NEW], [NEW, OLD], True),
        ([WRONG, NEW, OLD, "another token of ours"], ["a fourth token of ours", OLD], True),
        ([NEW, OLD], [WRONG], False),
    ],
)
def test_who_shares_a_token_is_let_in(ours: list[str], theirs: list[str], linked: bool) -> None:
    assert shake(Keys(ours), Keys(theirs)) is linked
    assert shake(Keys(theirs), Keys(ours)) is linked


def test_an_empty_token_is_no_token_and_no_token_is_no_secret() -> None:
    assert derive_key(None, "link") == derive_key("", "link")
    assert derive_key(None, "link") == hmac.new(b"", b"gmesh1|link", sha256).digest()
    assert not shake(Keys([]), Keys([OLD]))


def test_the_listener_answers_under_the_key_that_the_dialer_knows() -> None:
    proofs = Keys([OLD]).dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES)
    answer = Keys([NEW, OLD]).listener_proof(proofs, HELLO_BYTES, CHALLENGE_BYTES, SESSION)
    assert answer == Keys([OLD]).listener_proof(proofs, HELLO_BYTES, CHALLENGE_BYTES, SESSION)


def test_the_dialer_offers_one_proof_for_each_token() -> None:
    both = Keys([NEW, OLD]).dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES)
    assert both == (
        *Keys([NEW]).dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES),
        *Keys([OLD]).dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES),
    )
    assert {len(proof) for proof in both} == {32}


def test_proofs_are_computed_as_written_down() -> None:
    # Pinned: nodes of different versions have to agree on every byte.
    def proof(label: bytes, *parts: bytes) -> bytes:
        text = label + b"".join(struct.pack("!I", len(part)) + part for part in parts)
        return hmac.new(hmac.new(OLD.encode(), b"gmesh1|link", sha256).digest(), text, sha256).digest()

    keys = Keys([OLD])
    proofs = keys.dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES)
    assert proofs == (proof(b"gmesh1|dialer", HELLO_BYTES, CHALLENGE_BYTES),)
    answer = keys.listener_proof(proofs, HELLO_BYTES, CHALLENGE_BYTES, SESSION)
    assert answer == proof(b"gmesh1|listener", HELLO_BYTES, CHALLENGE_BYTES, SESSION)


# ---------------------------------------------------------------------- proofs in the wrong place


def _proofs() -> tuple[bytes, bytes]:
    keys = Keys([OLD])
    (ours,) = keys.dialer_proofs(HELLO_BYTES, CHALLENGE_BYTES)
    theirs = keys.listener_proof((ours,), HELLO_BYTES, CHALLENGE_BYTES, SESSION)
    assert theirs is not None
    return ours, theirs


def test_a_listeners_proof_does_not_make_a_dialer() -> None:
    _, theirs = _proofs()
    assert not Keys([OLD]).is_dialer([theirs], HELLO_BYTES, CHALLENGE_BYTES)


def test_a_dialers_proof_does_not_make_a_listener() -> None:
    ours, _ = _proofs()
    for session in (SESSION, b""):
        assert not Keys([OLD]).is_listener(ours, HELLO_BYTES, CHALLENGE_BYTES, session)


@pytest.mark.parametrize(
    "hello",
    [
        replace(HELLO, nonce=b"N" * 32),
        replace(HELLO, uid="00000000000000ab"),
        replace(HELLO, address="ws://evil:1"),
        replace(HELLO, target="ff000000000000bc"),
        replace(HELLO, role=Role.EMITTER),
        replace(HELLO, channel="other"),
        replace(HELLO, codec="other"),
        replace(HELLO, session=replace(HELLO.session, received=8)),
        replace(HELLO, session=replace(HELLO.session, stream=b"stream-3")),
        replace(HELLO, session=replace(HELLO.session, their_stream=b"")),
    ],
)
def test_proofs_hold_for_one_hello_only(hello: Hello) -> None:
    ours, theirs = _proofs()
    assert not Keys([OLD]).is_dialer([ours], encode_frame(hello), CHALLENGE_BYTES)
    assert not Keys([OLD]).is_listener(theirs, encode_frame(hello), CHALLENGE_BYTES, SESSION)


@pytest.mark.parametrize(
    "challenge",
    [
        replace(CHALLENGE, nonce=b"M" * 32),
        replace(CHALLENGE, uid="ff000000000000bc"),
        replace(CHALLENGE, address="ws://evil:2"),
        replace(CHALLENGE, role=Role.EMITTER),
        replace(CHALLENGE, channel="other"),
    ],
)
def test_proofs_hold_for_one_challenge_only(challenge: Challenge) -> None:
    ours, theirs = _proofs()
    assert not Keys([OLD]).is_dialer([ours], HELLO_BYTES, encode_frame(challenge))
    assert not Keys([OLD]).is_listener(theirs, HELLO_BYTES, encode_frame(challenge), SESSION)


def test_the_listeners_proof_covers_its_session() -> None:
    _, theirs = _proofs()
    assert not Keys([OLD]).is_listener(theirs, HELLO_BYTES, CHALLENGE_BYTES, SESSION + b"!")


def test_bytes_cannot_move_between_hello_and_challenge() -> None:
    keys = Keys([OLD])
    assert keys.dialer_proofs(b"ab", b"c") != keys.dialer_proofs(b"a", b"bc")
    (ours,) = keys.dialer_proofs(b"ab", b"c")
    assert keys.listener_proof((ours,), b"ab", b"c", b"de") != keys.listener_proof((ours,), b"ab", b"c", b"d")


def test_a_key_for_discovery_opens_no_link() -> None:
    assert derive_key(OLD, "link") != derive_key(OLD, "discovery")
    assert not shake(Keys([OLD], "discovery"), Keys([OLD]))
    assert not shake(Keys([OLD]), Keys([OLD], "discovery"))


def test_a_listener_without_a_right_proof_gives_no_proof_away() -> None:
    assert Keys([OLD]).listener_proof([bytes(32)], HELLO_BYTES, CHALLENGE_BYTES, SESSION) is None
    assert Keys([OLD]).listener_proof([], HELLO_BYTES, CHALLENGE_BYTES, SESSION) is None


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_no_junk_is_a_proof(junk: list[bytes]) -> None:
    assert not Keys([OLD]).is_dialer(junk, HELLO_BYTES, CHALLENGE_BYTES)
    assert not any(Keys([OLD]).is_listener(proof, HELLO_BYTES, CHALLENGE_BYTES, SESSION) for proof in junk)


@given(st.integers(0, 31), st.integers(1, 255))
def test_every_byte_of_a_proof_counts(position: int, change: int) -> None:
    ours, theirs = _proofs()
    flip = bytes(change if at == position else 0 for at in range(32))
    ours, theirs = (bytes(a ^ b for a, b in zip(proof, flip, strict=True)) for proof in (ours, theirs))
    assert not Keys([OLD]).is_dialer([ours], HELLO_BYTES, CHALLENGE_BYTES)
    assert not Keys([OLD]).is_listener(theirs, HELLO_BYTES, CHALLENGE_BYTES, SESSION)
