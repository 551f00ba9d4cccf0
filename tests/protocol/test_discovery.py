"""Messages of discovery: the Node package's bytes, our own round trips, and that nothing malformed gets through."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gevent_mesh.errors import MessageError
from gevent_mesh.protocol import discovery as wire
from tests.discovery.members import NODE_FRAMES

CHALLENGE = wire.Challenge(b"c" * 32, "0123456789abcdef")


def registered(tokens: tuple[str, ...], **change: Any) -> wire.Register:
    keys = wire.DiscoveryKeys(tokens)
    fields: dict[str, Any] = {"server_id": "a" * 16, "address": "ws://h:1", "nonce": b"n" * 32, "secret": b"s" * 16}
    proofs = keys.client_proofs(CHALLENGE, fields["nonce"], fields["server_id"], fields["address"])
    return wire.Register(**{**fields, "proofs": proofs, **change})


class TestNodeWire:
    def test_registers_of_the_node_package_are_read(self) -> None:
        plain = wire.parse_register(wire.decode(bytes.fromhex(NODE_FRAMES["register A"])))
        assert plain == wire.Register("712b2514a3039852", "ws://127.0.0.1:4210")
        assert not plain.is_ours
        with_token = wire.parse_register(wire.decode(bytes.fromhex(NODE_FRAMES["register with token s3cret"])))
        assert with_token.token == "s3cret"

    def test_updates_are_the_node_packages_bytes(self) -> None:
        servers = {"712b2514a3039852": "ws://127.0.0.1:4210"}
        assert wire.update(servers).hex() == NODE_FRAMES["update A"]
        servers["e4bdf2169a91d081"] = "ws://127.0.0.1:4211"
        assert wire.update(servers).hex() == NODE_FRAMES["update A B"]


class TestRoundTrips:
    def test_register(self) -> None:
        register = registered(("t" * 16, "u" * 16))
        assert wire.parse_register(wire.decode(register.encode())) == register
        watcher = registered((), address="", role="emitter")
        assert wire.parse_register(wire.decode(watcher.encode())) == watcher

    def test_challenge_and_welcome(self) -> None:
        assert wire.parse_challenge(wire.decode(CHALLENGE.encode())) == CHALLENGE
        welcome = wire.Welcome(b"p" * 32, 30.0, "0123456789abcdef")
        assert wire.parse_welcome(wire.decode(welcome.encode())) == welcome

    def test_roster_and_delta(self) -> None:
        servers = {"a": "ws://h:1", "b": "ws://[::1]:2"}
        data = wire.roster("0123456789abcdef", 7, True, servers)
        assert wire.parse_roster(wire.decode(data)) == wire.Roster("0123456789abcdef", 7, True, servers)
        data = wire.delta("0123456789abcdef", 8, False, {"c": "ws://h:3"}, ["a", "b"])
        expected = wire.Delta("0123456789abcdef", 8, False, {"c": "ws://h:3"}, ("a", "b"))
        assert wire.parse_delta(wire.decode(data)) == expected

    def test_addresses_stay_as_they_were_written(self) -> None:
        register = wire.parse_register({"type": "register", "serverId": "a", "address": "ws://Host:1/"})
        assert register.address == "ws://Host:1/"

    def test_malformed_entries_of_a_roster_are_left_out_and_counted(self) -> None:
        message = wire.decode(wire.roster("0123456789abcdef", 1, True, {"a": "ws://h:1", "b": "http://h:1", "c": "x"}))
        message["servers"] += [None, 7, {}, {"serverId": 1, "address": "ws://h:1"}]
        roster = wire.parse_roster(message)
        assert roster.servers == {"a": "ws://h:1"}
        assert roster.malformed == 6

    def test_keys_of_newer_versions_are_ignored(self) -> None:
        message = {**wire.decode(CHALLENGE.encode()), "more": 1}
        assert wire.parse_challenge(message) == CHALLENGE


class TestProofs:
    @pytest.mark.parametrize(
        ("client", "server"),
        [((), ()), (("t",), ("t",)), (("new", "old"), ("old",)), (("new",), ("old", "new")), (("a", "b"), ("c", "b"))],
    )
    def test_one_shared_token_is_enough_for_both_sides(self, client: tuple[str, ...], server: tuple[str, ...]) -> None:
        register = registered(client)
        proof = wire.DiscoveryKeys(server).server_proof(CHALLENGE, register)
        assert proof is not None
        welcome = wire.Welcome(proof, 30.0, CHALLENGE.instance)
        assert wire.DiscoveryKeys(client).is_server(CHALLENGE, register, welcome)

    @pytest.mark.parametrize(("client", "server"), [(("a",), ("b",)), ((), ("b",)), (("a",), ())])
    def test_without_a_shared_token_neither_side_is_believed(
        self, client: tuple[str, ...], server: tuple[str, ...]
    ) -> None:
        register = registered(client)
        assert wire.DiscoveryKeys(server).server_proof(CHALLENGE, register) is None
        forged = wire.DiscoveryKeys(server).server_proof(CHALLENGE, registered(server))
        assert forged is not None
        welcome = wire.Welcome(forged, 30.0, CHALLENGE.instance)
        assert not wire.DiscoveryKeys(client).is_server(CHALLENGE, register, welcome)

    @pytest.mark.parametrize("change", [{"server_id": "b" * 16}, {"address": "ws://evil:1"}, {"nonce": b"m" * 32}])
    def test_a_proof_is_for_one_name_one_address_and_one_nonce(self, change: dict[str, Any]) -> None:
        assert wire.DiscoveryKeys(("t",)).server_proof(CHALLENGE, registered(("t",), **change)) is None

    def test_a_proof_is_for_one_challenge(self) -> None:
        other = wire.Challenge(b"d" * 32, CHALLENGE.instance)
        assert wire.DiscoveryKeys(("t",)).server_proof(other, registered(("t",))) is None

    def test_a_clients_proof_cannot_be_sent_back_to_it(self) -> None:
        register = registered(("t",))
        mirrored = wire.Welcome(register.proofs[0], 30.0, CHALLENGE.instance)
        assert not wire.DiscoveryKeys(("t",)).is_server(CHALLENGE, register, mirrored)


class TestRefusals:
    @pytest.mark.parametrize(
        "data", [b"", b"\xc0", b"\x01", b"\xa1x", b"\x90", b"\x80", b"\x81\xa4type\x01", b"\x93\x01"]
    )
    def test_what_is_not_a_map_with_a_type_is_refused(self, data: bytes) -> None:
        with pytest.raises(MessageError):
            wire.decode(data)

    @pytest.mark.parametrize("key", [b"\x01", b"\xc0", b"\xc3", b"\x90", b"\x80", b"\xcb" + bytes(8)])
    def test_keys_are_texts(self, key: bytes) -> None:
        with pytest.raises(MessageError):
            wire.decode(b"\x82\xa4type\xa1x" + key + b"\x01")

    @pytest.mark.parametrize(
        "bomb",
        [
            b"\xdd\x00\x01\x00\x00" * 800,  # lists in lists, 65,536 entries announced in each
            b"\xdc\x3f\xff" * 1300,
            b"\xdf\x00\x00\x00\x20" * 800,
            b"\x91" * 4096,
            b"\x81\xa1x" * 1365,
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x05",
            b"\xd6\xff\x00\x00\x00\x00",  # a timestamp: no message has one
        ],
    )
    def test_bombs_cost_nothing(self, bomb: bytes) -> None:
        tracemalloc.start()
        try:
            for data in (bomb, b"\x82\xa4type\xa1x\xa1y" + bomb):
                with pytest.raises(MessageError):
                    wire.decode(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "change",
        [
            {"type": "update"},
            {"serverId": None},
            {"serverId": ""},
            {"serverId": 5},
            {"serverId": "a" * 65},
            {"serverId": "a\n"},
            {"serverId": b"abc"},
            {"address": None},
            {"address": ""},
            {"address": "http://h:1"},
            {"address": "ws://h"},
            {"address": "ws://" + "h" * 60 + "." + "h" * 250 + ":1"},
            {"role": "king"},
            {"role": []},
            {"nonce": b"short"},
            {"nonce": "n" * 32},
            {"secret": None},
            {"secret": b"s" * 17},
            {"proofs": []},
            {"proofs": None},
            {"proofs": [b"p" * 31]},
            {"proofs": [b"p" * 32] * 5},
            {"proofs": ["p" * 32]},
            {"proofs": {"a": 1}},
        ],
    )
    def test_wrong_fields_of_a_register_are_refused(self, change: dict[str, Any]) -> None:
        message = msgpack.unpackb(registered(("t" * 16,)).encode())
        with pytest.raises(MessageError):
            wire.parse_register({**message, **change})

    @pytest.mark.parametrize("token", [5, b"x", ["x"], "x" * 513])
    def test_a_node_clients_token_is_a_text(self, token: object) -> None:
        with pytest.raises(MessageError):
            wire.parse_register({"type": "register", "serverId": "a", "address": "ws://h:1", "token": token})

    @pytest.mark.parametrize("token", [None, ""])
    def test_no_token_is_no_token(self, token: object) -> None:
        message = {"type": "register", "serverId": "a", "address": "ws://h:1", "token": token}
        assert wire.parse_register(message).token == ""

    @pytest.mark.parametrize("lease", [None, True, "30", 0, -1, float("nan"), float("inf")])
    def test_a_lease_is_a_number_of_seconds(self, lease: object) -> None:
        message = {"type": "welcome", "proof": b"p" * 32, "lease": lease, "instance": "0" * 16}
        with pytest.raises(MessageError):
            wire.parse_welcome(message)

    @given(st.binary(max_size=200))
    def test_random_bytes_are_a_message_error_or_a_map(self, data: bytes) -> None:
        try:
            message = wire.decode(data)
        except MessageError:
            return
        assert isinstance(message["type"], str)

    json_like = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5) | st.binary(max_size=40),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    fields = st.sampled_from(
        ["serverId", "address", "role", "nonce", "proofs", "secret", "token", "instance", "version", "complete",
         "servers", "added", "removed", "proof", "lease"]
    )  # fmt: skip

    @given(st.dictionaries(fields, json_like, max_size=8))
    def test_any_value_in_any_field_is_a_message_error_or_read(self, fields: dict[str, Any]) -> None:
        parsers: dict[str, Any] = {
            "register": wire.parse_register,
            "challenge": wire.parse_challenge,
            "welcome": wire.parse_welcome,
            "roster": wire.parse_roster,
            "delta": wire.parse_delta,
        }
        for kind, parse in parsers.items():
            try:
                parse({**fields, "type": kind})
            except MessageError:
                continue
