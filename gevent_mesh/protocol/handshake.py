"""The mutual challenge-response that turns a stranger into a peer.

Rules:

- The dialer proves itself first, then the listener; neither ever sends a token.
- A proof is an HMAC over both sides' first frames, so it cannot be replayed (fresh nonces), reflected (a label for each
  side) or carried over to another node (both uids and addresses are inside).
- A token only proves that somebody belongs to the mesh. That it is the process that had its uid before is shown by its
  *boot key*, made of a secret of that process for one peer only. A peer keeps the key that came with the first link,
  and takes nobody under that uid who has another one; what it was shown itself opens no door at other peers.
- A boot key is shown at the first link of a pair. Whoever has the other side's key already sends a proof of its own
  instead, and gets one back: it may be talking to somebody else who knows the token and has come to the peer's address.
- A listener that has no key of the dialer says so, by a proof of its own key: the first link may have broken before it
  knew of it, or it has forgotten the dialer. Then the dialer knows whom it talks to, and shows its key again.
- Up to four tokens are valid at once, so that they can be changed without a gap. Without a token the same frames travel
  under an empty key: that authenticates nobody and is only for loopback, or where the operator says so.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256

from .frames import BOOT_KEY_BYTES

__all__ = ["Keys", "boot_key_for", "boot_proof", "derive_key"]

_BOOT = b"gmesh1|boot proof"
_DIALER = b"gmesh1|dialer"
_LISTENER = b"gmesh1|listener"


def derive_key(token: str | None, purpose: str) -> bytes:
    """Derive the key for one purpose, so that a proof given to discovery is worth nothing on a link.

    Args:
        token: the shared secret, or None for an unauthenticated mesh.
        purpose: ``"link"`` or ``"discovery"``.
    """
    secret = b"" if token is None else token.encode()
    return hmac.new(secret, b"gmesh1|" + purpose.encode(), sha256).digest()


def boot_key_for(uid: str, secret: bytes) -> bytes:
    """What a process shows to the node `uid` as its own; the same as long as it lives.

    Args:
        secret: random, new at every start, known to nobody else; empty for one that shows nothing.
    """
    return hmac.new(secret, b"gmesh1|boot|" + uid.encode(), sha256).digest()[:BOOT_KEY_BYTES] if secret and uid else b""


def boot_proof(boot_key: bytes, *parts: bytes) -> bytes:
    """Prove to have a boot key, with what the two sides have said to each other so far."""
    return _proof(boot_key, _BOOT, parts)


class Keys:
    """The keys that are valid now; the first one is the newest."""

    def __init__(self, tokens: Sequence[str], purpose: str = "link") -> None:
        valid: Sequence[str | None] = tokens or (None,)
        self._keys = tuple(derive_key(token, purpose) for token in valid)

    def dialer_proofs(self, hello: bytes, challenge: bytes) -> tuple[bytes, ...]:
        """One proof for each key that we hold: we cannot know which one the listener shares with us."""
        return tuple(_proof(key, _DIALER, (hello, challenge)) for key in self._keys)

    def listener_proof(self, proofs: Iterable[bytes], hello: bytes, challenge: bytes, session: bytes) -> bytes | None:
        """Check a dialer's proofs and answer with ours, under the key that it proved to know.

        Args:
            proofs: as they came in AUTH.
            session: the bytes of our session state, bound into our proof.

        Returns:
            Our proof, or None when none of theirs is right.
        """
        key = self._shared_key(proofs, hello, challenge)
        return None if key is None else _proof(key, _LISTENER, (hello, challenge, session))

    def is_dialer(self, proofs: Iterable[bytes], hello: bytes, challenge: bytes) -> bool:
        """Tell whether one of a dialer's proofs is right."""
        return self._shared_key(proofs, hello, challenge) is not None

    def is_listener(self, proof: bytes, hello: bytes, challenge: bytes, session: bytes) -> bool:
        """Tell whether a listener's proof is right under one of our keys."""
        parts = (hello, challenge, session)
        return any(hmac.compare_digest(_proof(key, _LISTENER, parts), proof) for key in self._keys)

    def _shared_key(self, proofs: Iterable[bytes], hello: bytes, challenge: bytes) -> bytes | None:
        proofs = tuple(proofs)
        for key in self._keys:
            expected = _proof(key, _DIALER, (hello, challenge))
            if any(hmac.compare_digest(expected, proof) for proof in proofs):
                return key
        return None


def _proof(key: bytes, label: bytes, parts: Iterable[bytes]) -> bytes:
    # Each part goes in behind its length: two different transcripts never run together into the same bytes.
    mac = hmac.new(key, label, sha256)
    for part in parts:
        mac.update(struct.pack("!I", len(part)))
        mac.update(part)
    return mac.digest()
