"""What a shared secret must be, and where one may listen without one: the same for nodes and for discovery."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from .address import is_loopback

__all__ = ["MAX_TOKENS", "MIN_TOKEN_CHARS", "check_bind", "check_tokens", "default_host"]

MIN_TOKEN_CHARS = 16
MAX_TOKENS = 4


def default_host(tokens: Sequence[str]) -> str:
    """Where to listen when nothing is said: everywhere with a token, on this machine only without one."""
    return "0.0.0.0" if tokens else "127.0.0.1"


def check_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the tokens if all are long enough.

    Raises:
        ConfigError: one is too short, or there are too many.
    """
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"at most {MAX_TOKENS} tokens are valid at once, not {len(tokens)}")
    for token in tokens:
        if len(token) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"an auth token needs at least {MIN_TOKEN_CHARS} characters; make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tuple(tokens)


def check_bind(option: str, host: str, tokens: Sequence[str], allow_anonymous: bool) -> None:
    """Refuse to listen beyond this machine when anybody could join.

    Raises:
        ConfigError: `host` is not a loopback address and there is no token.
    """
    if not tokens and not allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"{option}={host!r} can be reached from other machines, and without a token anybody could join: "
            "set auth_token (or MESH_AUTH_TOKEN) on every node and on discovery, "
            "or allow_anonymous=True (--allow-anonymous) if the network itself keeps strangers out"
        )
