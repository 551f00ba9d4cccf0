"""Tokens: which are good enough, and where one may listen without any."""

from __future__ import annotations

import pytest

from gevent_mesh.errors import ConfigError
from gevent_mesh.protocol.tokens import MAX_TOKENS, MIN_TOKEN_CHARS, check_bind, check_tokens, default_host

TOKEN = "x" * MIN_TOKEN_CHARS


def test_limits_are_what_is_promised() -> None:
    assert (MIN_TOKEN_CHARS, MAX_TOKENS) == (16, 4)


def test_a_token_opens_the_node_to_the_network() -> None:
    assert default_host([TOKEN]) == "0.0.0.0"
    assert default_host([]) == "127.0.0.1"


@pytest.mark.parametrize("tokens", [[], [TOKEN], [TOKEN] * MAX_TOKENS])
def test_good_tokens_are_given_back(tokens: list[str]) -> None:
    assert check_tokens(tokens) == tuple(tokens)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 4 tokens are valid at once, not 5"):
        check_tokens([TOKEN] * (MAX_TOKENS + 1))


@pytest.mark.parametrize("tokens", [["hunter2"], [TOKEN, "hunter2"], [TOKEN[1:]]])
def test_short_tokens_are_refused_with_a_mend_and_never_shown(tokens: list[str]) -> None:
    with pytest.raises(ConfigError, match="at least 16 characters; make one with: python -c") as caught:
        check_tokens(tokens)
    assert tokens[-1] not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_a_loopback_host_needs_no_token(host: str) -> None:
    check_bind("host", host, (), False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "my-host", "localhost.example.com", "::ffff:10.0.0.1"]
)
def test_any_other_host_needs_a_token_or_somebody_who_answers_for_it(host: str) -> None:
    with pytest.raises(ConfigError, match=r"host=.*set auth_token .*MESH_AUTH_TOKEN.*allow_anonymous=True"):
        check_bind("host", host, (), False)
    check_bind("host", host, (TOKEN,), False)
    check_bind("host", host, (), True)
