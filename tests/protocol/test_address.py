"""Addresses: what is accepted, and that a refusal says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gevent_mesh.protocol.address import Address, format_host_port, is_loopback, parse_address, plain_host


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://127.0.0.1:4000", Address(False, "127.0.0.1", 4000)),
        ("ws://127.0.0.1:4000/", Address(False, "127.0.0.1", 4000)),
        ("WSS://Node-1.Example.com:65535", Address(True, "node-1.example.com", 65535)),
        ("ws://my_service:1", Address(False, "my_service", 1)),
        ("ws://node.example.:80", Address(False, "node.example.", 80)),
        ("ws://[::1]:4000", Address(False, "::1", 4000)),
        ("ws://[FE80:0::1]:4000", Address(False, "fe80::1", 4000)),
    ],
)
def test_addresses_are_read(url: str, address: Address) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "begins with ws://"),
        ("127.0.0.1:4000", "begins with ws://"),
        ("http://h:1", "begins with ws://"),
        ("ws:/h:1", "begins with ws://"),
        ("ws://h", "port is missing"),
        ("ws://h:", "port is missing"),
        ("ws://:4000", "not a host name"),
        ("ws://h:0", "not a port"),
        ("ws://h:65536", "not a port"),
        ("ws://h:-1", "not a port"),
        ("ws://h:4e3", "not a port"),
        ("ws://h:1/x", "no user, path"),
        ("ws://h:1//", "no user, path"),
        ("ws://h:1?x", "no user, path"),
        ("ws://h:1#x", "no user, path"),
        ("ws://user@h:1", "no user, path"),
        ("ws://user:secret@h:1", "no user, path"),
        ("ws://h o:1", "plain ASCII"),
        ("ws://h:1\r\nX: y", "plain ASCII"),
        ("ws://h:1\x00", "plain ASCII"),
        ("ws://bücher:1", "plain ASCII"),
        ("ws://\uff48:1", "plain ASCII"),
        ("ws://-h:1", "not a host name"),
        ("ws://a..b:1", "not a host name"),
        ("ws://" + "a" * 64 + ":1", "not a host name"),
        ("ws://[::1:1", "no user, path"),
        ("ws://[xyz]:1", "not an IPv6 address"),
        ("ws://[fe80::1%eth0]:1", "not an IPv6 address"),
        ("ws://[127.0.0.1]:1", "not an IPv6 address"),
        ("ws://" + "a." * 300 + "b:1", "at most 512"),
    ],
)
def test_anything_else_is_refused_with_a_reason(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_address(url)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"wss?://.{0,40}")))
def test_any_text_is_an_address_or_a_value_error_and_what_is_read_can_be_read_again(url: str) -> None:
    try:
        address = parse_address(url)
    except ValueError:
        return
    assert parse_address(str(address)) == address


def test_ipv6_hosts_keep_their_brackets() -> None:
    assert str(parse_address("ws://[::1]:4000/")) == "ws://[::1]:4000"
    assert format_host_port("::1", 80) == "[::1]:80"
    assert format_host_port("10.0.0.1", 80) == "10.0.0.1:80"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_told_apart_without_looking_a_name_up(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_mapped_ipv4_address_is_shown_as_ipv4() -> None:
    assert plain_host("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_host("::1") == "::1"
    assert plain_host("name") == "name"
