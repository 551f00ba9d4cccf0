"""The wire between a node and a discovery server: msgpack maps, their limits, and the proofs in them.

Rules:

- Both sides read what strangers may have sent: every key is checked for type and length before it is used, and msgpack
  is decoded under tight limits. What is wrong is a `MessageError`, and ends that connection.
- Keys that are not known are ignored, so that either side may be newer. Values are never guessed.
- Our own clients say ``Mesh-Protocol: 1`` in the upgrade, are challenged, and never send a token. The Node package's
  clients do not, and send theirs.
- Between our own clients and servers the roster travels once, then as deltas; Node clients get it whole each time.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import msgpack

from ..errors import MessageError
from .address import parse_address
from .handshake import derive_key
from .unpacking import read

__all__ = [
    "CLOSE_CERTIFICATE",
    "CLOSE_FULL",
    "CLOSE_GOING_AWAY",
    "CLOSE_MALFORMED",
    "CLOSE_REPLACED",
    "CLOSE_TAKEN",
    "CLOSE_UNAUTHORIZED",
    "LEASE_SECONDS",
    "MAX_MESSAGE_BYTES",
    "MAX_MESSAGE_ENTRIES",
    "MAX_REGISTER_BYTES",
    "MAX_ROSTER_BYTES",
    "MAX_ROSTER_ENTRIES",
    "NONCE_BYTES",
    "PING_SECONDS",
    "SECRET_BYTES",
    "Challenge",
    "Delta",
    "DiscoveryKeys",
    "Register",
    "Roster",
    "Welcome",
    "decode",
    "delta",
    "entries",
    "parse_challenge",
    "parse_delta",
    "parse_register",
    "parse_roster",
    "parse_welcome",
    "roster",
    "secret_for",
    "update",
]

#: Both sides ping this often, and a server that heard nothing of a client for a lease takes it off the roster. Shorter
#: notices dead nodes sooner and lets short network trouble look like death.
PING_SECONDS = 10.0
LEASE_SECONDS = 30.0

#: The most a server reads from a client: before it has registered, and after.
MAX_REGISTER_BYTES = 1024
MAX_MESSAGE_BYTES = 4096
#: The most a client reads from a server. 4,096 entries with the longest ids and addresses are about 1.5 MiB.
MAX_ROSTER_BYTES = 4 * 1024 * 1024

NONCE_BYTES = 32
SECRET_BYTES = 16
_PROOF_BYTES = 32
_INSTANCE_CHARS = 16
_MAX_PROOFS = 4
_MAX_SERVER_ID_CHARS = 64
_MAX_ADDRESS_CHARS = 256
_MAX_TOKEN_CHARS = 512

#: The most nodes that a client knows through one server, and the most entries of a message that it reads.
MAX_ROSTER_ENTRIES = 4096
MAX_MESSAGE_ENTRIES = 16_384

_VALUES_PER_ENTRY = 8

_CLIENT = b"gmesh1|discovery|client"
_SERVER = b"gmesh1|discovery|server"
_SECRET = b"gmesh1|discovery|secret|"

#: Close codes of a discovery server; those from 4000 on are ours (RFC 6455, section 7.4.2), 4401 is the Node package's.
CLOSE_GOING_AWAY = 1001
CLOSE_MALFORMED = 4400
CLOSE_UNAUTHORIZED = 4401
CLOSE_CERTIFICATE = 4403
CLOSE_REPLACED = 4408
CLOSE_TAKEN = 4409
CLOSE_FULL = 4503

Role = Literal["node", "emitter"]


@dataclass(frozen=True, slots=True)
class Register:
    """A client's wish to be in the roster, or, as an emitter, to watch it.

    Attributes:
        address: where peers dial this node; "" for an emitter that cannot be dialled.
        nonce, proofs, secret: of our own clients; the secret lets a node take its own name back after a broken
            connection, and keeps everybody else from taking it.
        token: of a Node client.
    """

    server_id: str
    address: str
    role: Role = "node"
    nonce: bytes = b""
    proofs: tuple[bytes, ...] = ()
    secret: bytes = b""
    token: str = ""

    @property
    def is_ours(self) -> bool:
        """True when it answers a challenge, False when it comes from a Node client."""
        return bool(self.proofs)

    def encode(self) -> bytes:
        """The message, as our own clients send it."""
        return _pack(
            {
                "type": "register",
                "serverId": self.server_id,
                "address": self.address,
                "role": self.role,
                "nonce": self.nonce,
                "proofs": list(self.proofs),
                "secret": self.secret,
            }
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """The server's first message to our own clients. `instance` is new at every start of a server."""

    nonce: bytes
    instance: str

    def encode(self) -> bytes:
        return _pack({"type": "challenge", "nonce": self.nonce, "instance": self.instance})


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's answer to an accepted register, with its own proof."""

    proof: bytes
    lease: float
    instance: str

    def encode(self) -> bytes:
        return _pack({"type": "welcome", "proof": self.proof, "lease": self.lease, "instance": self.instance})


@dataclass(frozen=True, slots=True)
class Roster:
    """All nodes that a server knows.

    Attributes:
        version: rises with every change of this instance's roster.
        complete: False while the server is younger than a lease: who is absent may just not be back yet.
        servers: address by uid.
        malformed: entries that were skipped.
    """

    instance: str
    version: int
    complete: bool
    servers: dict[str, str]
    malformed: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed since the last message. A node whose address changed is in `added`."""

    instance: str
    version: int
    complete: bool
    added: dict[str, str]
    removed: tuple[str, ...]
    malformed: int = 0


class DiscoveryKeys:
    """The proofs of both sides. Like the links' handshake, under keys of their own; no tokens means an empty key."""

    def __init__(self, tokens: Sequence[str]) -> None:
        valid: Sequence[str | None] = tokens or (None,)
        self._keys = tuple(derive_key(token, "discovery") for token in valid[:_MAX_PROOFS])

    def client_proofs(self, challenge: Challenge, nonce: bytes, server_id: str, address: str) -> tuple[bytes, ...]:
        """One proof for each token that we hold: we cannot know which one the server shares with us."""
        return tuple(_proof(key, _CLIENT, challenge.nonce, nonce, server_id, address) for key in self._keys)

    def server_proof(self, challenge: Challenge, register: Register) -> bytes | None:
        """Check a client's proofs and answer with ours, under the token that it proved to know.

        Returns:
            Our proof, or None when none of theirs is right.
        """
        parts = (challenge.nonce, register.nonce, register.server_id, register.address)
        for key in self._keys:
            expected = _proof(key, _CLIENT, *parts)
            if any(hmac.compare_digest(expected, proof) for proof in register.proofs):
                return _proof(key, _SERVER, *parts)
        return None

    def is_server(self, challenge: Challenge, register: Register, welcome: Welcome) -> bool:
        """Tell whether the server knows one of our tokens."""
        parts = (challenge.nonce, register.nonce, register.server_id, register.address)
        return any(hmac.compare_digest(_proof(key, _SERVER, *parts), welcome.proof) for key in self._keys)


def secret_for(url: str, secret: bytes) -> bytes:
    """What a node shows to one server, to take back there what it has registered: worth nothing at any other."""
    return hmac.new(secret, _SECRET + url.encode(), sha256).digest()[:SECRET_BYTES]


def roster(instance: str, version: int, complete: bool, servers: Mapping[str, str]) -> bytes:
    """Encode the whole roster for our own clients."""
    return _pack(
        {
            "type": "roster",
            "instance": instance,
            "version": version,
            "complete": complete,
            "servers": entries(servers),
        }
    )


def delta(instance: str, version: int, complete: bool, added: Mapping[str, str], removed: Iterable[str]) -> bytes:
    """Encode a change of the roster for our own clients."""
    return _pack(
        {
            "type": "delta",
            "instance": instance,
            "version": version,
            "complete": complete,
            "added": entries(added),
            "removed": list(removed),
        }
    )


def update(servers: Mapping[str, str]) -> bytes:
    """Encode the whole roster for Node clients."""
    return _pack({"type": "update", "servers": entries(servers)})


def entries(servers: Mapping[str, str]) -> list[dict[str, str]]:
    """A roster in the shape that it has on the wire and in JSON."""
    return [{"serverId": server_id, "address": address} for server_id, address in servers.items()]


def decode(data: bytes, *, max_entries: int = _MAX_PROOFS) -> dict[str, Any]:
    """Decode one message.

    Args:
        data: what a WebSocket message held.
        max_entries: of any list inside.

    Raises:
        MessageError: it is not a msgpack map with a `type`, or larger in some way than any message is.
    """
    message = read(
        data,
        max_values=_VALUES_PER_ENTRY * max_entries,
        raw=False,
        strict_map_key=True,
        max_str_len=_MAX_TOKEN_CHARS * 4,
        max_bin_len=64,
        max_array_len=max_entries,
        max_map_len=32,
        max_ext_len=0,
    )
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError("not a map with a type")
    return message


def parse_register(message: Mapping[str, Any]) -> Register:
    """Read a register of our own clients or of the Node package's.

    Raises:
        MessageError: something is missing, of the wrong type, or too long.
    """
    _check_type(message, "register")
    role = message.get("role", "node")
    if role not in ("node", "emitter"):
        raise MessageError("register: unknown role")
    address = message.get("address")
    if not (role == "emitter" and address == ""):
        address = _address(address)
    register = Register(_server_id(message.get("serverId")), address, role)
    if "proofs" not in message:
        token = message.get("token") or ""
        if not isinstance(token, str) or len(token) > _MAX_TOKEN_CHARS:
            raise MessageError("register: the token is not a text")
        return Register(register.server_id, address, role, token=token)
    return Register(
        register.server_id,
        address,
        role,
        nonce=_bytes(message, "nonce", NONCE_BYTES),
        proofs=_proofs(message["proofs"]),
        secret=_bytes(message, "secret", SECRET_BYTES),
    )


def parse_challenge(message: Mapping[str, Any]) -> Challenge:
    """Read a challenge.

    Raises:
        MessageError: it is not one.
    """
    _check_type(message, "challenge")
    return Challenge(_bytes(message, "nonce", NONCE_BYTES), _instance(message))


def parse_welcome(message: Mapping[str, Any]) -> Welcome:
    """Read a welcome.

    Raises:
        MessageError: it is not one.
    """
    _check_type(message, "welcome")
    lease = message.get("lease")
    if isinstance(lease, bool) or not isinstance(lease, (int, float)) or not 0 < lease < 86_400:
        raise MessageError("welcome: the lease is not a number of seconds")
    return Welcome(_bytes(message, "proof", _PROOF_BYTES), float(lease), _instance(message))


def parse_roster(message: Mapping[str, Any]) -> Roster:
    """Read a roster; entries that are malformed are left out and counted.

    Raises:
        MessageError: it is not a roster.
    """
    _check_type(message, "roster")
    servers, malformed = _servers(message, "servers")
    return Roster(_instance(message), _version(message), _complete(message), servers, malformed)


def parse_delta(message: Mapping[str, Any]) -> Delta:
    """Read a delta; entries that are malformed are left out and counted.

    Raises:
        MessageError: it is not a delta.
    """
    _check_type(message, "delta")
    added, malformed = _servers(message, "added")
    removed = [server_id for server_id in _list(message, "removed") if isinstance(server_id, str)]
    return Delta(_instance(message), _version(message), _complete(message), added, tuple(removed), malformed)


def _pack(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, use_bin_type=True)
    return packed


def _proof(key: bytes, label: bytes, challenge: bytes, nonce: bytes, server_id: str, address: str) -> bytes:
    # Nonces have a fixed length and an id has no NUL, so no two sets of parts are the same bytes.
    said = b"".join((label, challenge, nonce, server_id.encode(), b"\0", address.encode()))
    return hmac.new(key, said, sha256).digest()


def _check_type(message: Mapping[str, Any], expected: str) -> None:
    if message.get("type") != expected:
        raise MessageError(f"expected a {expected}")


def _server_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SERVER_ID_CHARS or not value.isprintable():
        raise MessageError(f"a serverId is 1 to {_MAX_SERVER_ID_CHARS} printable characters")
    return value


def _address(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_ADDRESS_CHARS:
        raise MessageError(f"an address is a text of at most {_MAX_ADDRESS_CHARS} characters")
    try:
        parse_address(value)
    except ValueError as error:
        raise MessageError(str(error)) from error
    # As it was written: Node peers compare addresses character by character.
    return value


def _bytes(message: Mapping[str, Any], key: str, size: int) -> bytes:
    value = message.get(key)
    if not isinstance(value, bytes) or len(value) != size:
        raise MessageError(f"{message['type']}: {key} is not {size} bytes")
    return value


def _proofs(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_PROOFS:
        raise MessageError(f"register: proofs are not 1 to {_MAX_PROOFS}")
    if not all(isinstance(proof, bytes) and len(proof) == _PROOF_BYTES for proof in value):
        raise MessageError(f"register: a proof is not {_PROOF_BYTES} bytes")
    return tuple(value)


def _instance(message: Mapping[str, Any]) -> str:
    instance = message.get("instance")
    if not isinstance(instance, str) or len(instance) != _INSTANCE_CHARS:
        raise MessageError(f"{message['type']}: no instance")
    return instance


def _version(message: Mapping[str, Any]) -> int:
    version = message.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise MessageError(f"{message['type']}: no version")
    return version


def _complete(message: Mapping[str, Any]) -> bool:
    complete = message.get("complete")
    if not isinstance(complete, bool):
        raise MessageError(f"{message['type']}: no mark of completeness")
    return complete


def _list(message: Mapping[str, Any], key: str) -> list[Any]:
    value = message.get(key)
    if not isinstance(value, list):
        raise MessageError(f"{message['type']}: no {key}")
    return value


def _servers(message: Mapping[str, Any], key: str) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}
    malformed = 0
    for entry in _list(message, key):
        try:
            found[_server_id(entry.get("serverId"))] = _address(entry.get("address"))
        except (MessageError, AttributeError):
            malformed += 1
    return found, malformed
