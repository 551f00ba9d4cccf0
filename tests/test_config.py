"""Options: what is taken, what is refused, and that a refusal says what to change."""

from __future__ import annotations

import math
import ssl
from typing import Any

import pytest

from gevent_mesh.config import MeshConfig
from gevent_mesh.errors import ConfigError

TOKEN = "a token that is long enough"
DEFAULTS: dict[str, Any] = {
    "discovery_service_address": None,
    "ws_port": None,
    "ws_host": None,
    "server_address": None,
    "heartbeat_interval": 5.0,
    "heartbeat_timeout": 10.0,
    "buffered_amount_threshold": 16 * 1024 * 1024,
    "resume_window": 30.0,
    "auth_token": None,
    "allow_anonymous": False,
    "channel": "socketio",
    "write_only": False,
    "callback_timeout": 60.0,
    "environ": {},
}
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def config(**options: Any) -> MeshConfig:
    """The options of a manager, the others left at their defaults."""
    return MeshConfig.from_options(**(DEFAULTS | options))


def test_without_any_option_a_node_is_on_loopback_and_finds_those_of_its_host() -> None:
    found = config()
    port = found.embedded_port
    assert 20_000 <= port < 30_000
    assert found == MeshConfig(
        discovery=(f"ws://127.0.0.1:{port}",), embedded_port=port, port=0, host="127.0.0.1", address="",
        heartbeat_interval=5.0, heartbeat_timeout=10.0,
        outbox_bytes=16 * 1024 * 1024, resume_window=30.0, tokens=(), channel="socketio", write_only=False,
        callback_timeout=60.0, drain_rate=100.0, drain_timeout=20.0, node_interop=False,
    )  # fmt: skip


def test_every_option_has_its_place() -> None:
    assert config(
        discovery_service_address="ws://d:1", ws_port=1, ws_host="10.0.0.1", server_address="ws://a:2",
        heartbeat_interval=1, heartbeat_timeout=3, buffered_amount_threshold=65536, resume_window=0,
        auth_token=TOKEN, channel="c", callback_timeout=9, drain_rate=1, drain_timeout=0, node_interop=True,
        client_queue_bytes=70000, bounded_reader=False,
    ) == MeshConfig(
        discovery=("ws://d:1",), port=1, host="10.0.0.1", address="ws://a:2", heartbeat_interval=1,
        heartbeat_timeout=3, outbox_bytes=65536, resume_window=0, tokens=(TOKEN,), channel="c",
        callback_timeout=9, drain_rate=1, drain_timeout=0, node_interop=True,
        client_queue_bytes=70000, bounded_reader=False,
    )  # fmt: skip


def test_tls_has_its_place() -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    options = {"ssl_context": SERVER, "client_ssl_context": client, "tls_name": "mesh.example"}
    tls = config(server_address="wss://a:2", **options).tls
    assert (tls.server(), tls.client(), tls.peer_name("a")) == (SERVER, client, "mesh.example")


def test_those_who_would_not_link_look_for_each_other_at_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {config(channel=channel).embedded_port for channel in ("socketio", "another")}
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert len(found | {config().embedded_port}) == 3


def test_the_port_of_embedded_discovery_can_be_chosen() -> None:
    found = config(environ={"MESH_EMBEDDED_PORT": "4999"})
    assert (found.embedded_port, found.discovery) == (4999, ("ws://127.0.0.1:4999",))
    assert config(environ={"MESH_EMBEDDED_PORT": "4999"}, embedded_port=5000).embedded_port == 5000


def test_discovery_that_is_named_is_not_embedded() -> None:
    for found in (
        config(discovery_service_address="ws://d:1", embedded_port=4999),
        config(environ={"MESH_DISCOVERY": "ws://d:1", "MESH_EMBEDDED_PORT": "4999"}),
    ):
        assert (found.embedded_port, found.discovery, found.port) == (0, ("ws://d:1",), 4000)


@pytest.mark.parametrize("nothing", [[], (), ""])
def test_an_empty_list_of_discovery_servers_means_alone(nothing: Any) -> None:
    found = config(discovery_service_address=nothing)
    assert (found.embedded_port, found.discovery) == (0, ())


def test_nodes_of_one_host_listen_on_loopback_with_a_token_too() -> None:
    assert config(auth_token=TOKEN).host == "127.0.0.1"
    assert config(auth_token=TOKEN, ws_host="10.0.0.1").host == "10.0.0.1"


# ---------------------------------------------------------------------- environment

ENVIRON = {
    "MESH_DISCOVERY": "ws://one:1, ws://two:2,",
    "MESH_PORT": "4001",
    "MESH_ADDRESS": "ws://me:4001",
    "MESH_AUTH_TOKEN": f"{TOKEN}, another {TOKEN}",
}


def test_what_is_left_out_comes_from_the_environment() -> None:
    found = config(environ=ENVIRON)
    assert found.discovery == ("ws://one:1", "ws://two:2")
    assert found.port == 4001
    assert found.address == "ws://me:4001"
    assert found.tokens == (TOKEN, f"another {TOKEN}")
    assert found.host == "0.0.0.0"


def test_options_come_before_the_environment() -> None:
    other = "the token of the options"
    found = config(
        environ=ENVIRON, discovery_service_address=["ws://d:1"], ws_port=0, server_address="", auth_token=other
    )
    assert (found.discovery, found.port, found.address, found.tokens) == (("ws://d:1",), 0, "", (other,))


def test_the_processs_own_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    assert config(environ=None) == config(environ=ENVIRON)


@pytest.mark.parametrize("name", ENVIRON)
def test_an_empty_variable_is_none_at_all(name: str) -> None:
    assert config(environ={name: ""}) == config()


def test_an_empty_option_switches_the_environment_off() -> None:
    found = config(environ=ENVIRON, auth_token="", discovery_service_address=[])
    assert (found.tokens, found.discovery, found.host) == ((), (), "127.0.0.1")


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("option", "tokens"),
    [
        (TOKEN, (TOKEN,)),
        ([TOKEN], (TOKEN,)),
        ((f"new {TOKEN}", TOKEN), (f"new {TOKEN}", TOKEN)),
        (f"  {TOKEN}\n", (TOKEN,)),
        ("with, a comma, in the text", ("with, a comma, in the text",)),
        ([TOKEN, "", " "], (TOKEN,)),
        ("x" * 16, ("x" * 16,)),
        ([f"{number} {TOKEN}" for number in range(4)], tuple(f"{number} {TOKEN}" for number in range(4))),
    ],
)
def test_tokens(option: Any, tokens: tuple[str, ...]) -> None:
    assert config(auth_token=option).tokens == tokens


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ({}, "127.0.0.1"),
        ({"auth_token": TOKEN}, "0.0.0.0"),
        ({"allow_anonymous": True}, "127.0.0.1"),
        ({"ws_host": "localhost"}, "localhost"),
        ({"ws_host": "::1"}, "::1"),
        ({"ws_host": "127.0.0.2"}, "127.0.0.2"),
        ({"ws_host": "0.0.0.0", "allow_anonymous": True}, "0.0.0.0"),
        ({"ws_host": "10.0.0.1", "auth_token": TOKEN}, "10.0.0.1"),
        ({"ws_host": "127.0.0.1", "auth_token": TOKEN}, "127.0.0.1"),
    ],
)
def test_where_a_node_listens(options: dict[str, Any], host: str) -> None:
    assert config(discovery_service_address="ws://d:1", **options).host == host


def test_an_emitter_listens_nowhere_so_its_host_does_not_matter() -> None:
    assert config(write_only=True, discovery_service_address="ws://d:1", ws_host="0.0.0.0").write_only


@pytest.mark.parametrize(
    "options",
    [
        {"ws_port": 0},
        {"ws_port": 65535},
        {"heartbeat_interval": 0.01, "heartbeat_timeout": 0.02},
        {"heartbeat_timeout": math.inf},
        {"resume_window": 0},
        {"callback_timeout": 0.1},
        {"channel": "c"},
        {"channel": "c" * 128},
        {"buffered_amount_threshold": 64 * 1024},
        {"buffered_amount_threshold": 64 * 1024 * 1024},
        {"server_address": f"ws://{'a.' * 122}b:65535"},
        {"client_queue_bytes": 64 * 1024},
        {"client_queue_bytes": None},
    ],
)
def test_the_edges_of_what_is_allowed(options: dict[str, Any]) -> None:
    config(**options)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ws_host": "0.0.0.0"}, "ws_host='0.0.0.0'.*set auth_token .or MESH_AUTH_TOKEN.*allow_anonymous=True"),
        ({"ws_host": ""}, "ws_host=''.*set auth_token"),
        ({"ws_host": "10.0.0.1"}, "set auth_token"),
        ({"ws_host": "::"}, "set auth_token"),
        ({"ws_host": "my-host"}, "set auth_token"),
        ({"auth_token": "short"}, "at least 16 characters; make one with"),
        ({"auth_token": "x" * 15}, "at least 16 characters"),
        ({"auth_token": [TOKEN, "short"]}, "at least 16 characters"),
        ({"environ": {"MESH_AUTH_TOKEN": f"{TOKEN},short"}}, "at least 16 characters"),
        ({"auth_token": [TOKEN] * 5}, "at most 4 tokens.*not 5"),
        ({"auth_token": [1]}, r"list of texts, not \[1\]"),
        ({"auth_token": TOKEN.encode()}, "list of texts"),
        ({"discovery_service_address": [None]}, "list of texts"),
        ({"discovery_service_address": "http://d:1"}, "discovery_service_address='http://d:1'.*like ws://10.0.0.1:8000"),
        ({"discovery_service_address": "d:8000"}, "should look like ws://"),
        ({"discovery_service_address": ["ws://d:1", "ws://d"]}, "port is missing"),
        ({"environ": {"MESH_DISCOVERY": "ws://d:1,nonsense"}}, "discovery_service_address='nonsense'"),
        ({"server_address": "10.0.0.1:4000"}, "server_address='10.0.0.1:4000'.*should look like ws://"),
        ({"server_address": "wss://a:1"}, "has no ssl_context .or MESH_TLS_CERT.: write ws://"),
        ({"server_address": "ws://a:1", "ssl_context": SERVER}, "listens with TLS: write wss://"),
        ({"ssl_context": "cert.pem"}, "ssl_context must be an ssl.SSLContext, not 'cert.pem'"),
        ({"environ": {"MESH_TLS_CERT": "cert.pem"}}, "MESH_TLS_CERT, MESH_TLS_KEY, MESH_TLS_CA go together"),
        ({"tls_name": "a b"}, "tls_name .or MESH_TLS_NAME. must be a host name, not 'a b'"),
        ({"write_only": True, "discovery_service_address": "ws://d:1", "ssl_context": SERVER}, "leave ssl_context out"),
        ({"server_address": f"ws://{'a.' * 122}bb:65535"}, "257 characters.*at most 256; use a shorter host name"),
        ({"environ": {"MESH_ADDRESS": "nonsense"}}, "server_address='nonsense'"),
        ({"ws_port": -1}, "ws_port .or MESH_PORT.*0 to 65535, not -1"),
        ({"ws_port": 65536}, "not 65536"),
        ({"ws_port": True}, "not True"),
        ({"environ": {"MESH_PORT": "http"}}, "MESH_PORT.*not 'http'"),
        ({"environ": {"MESH_PORT": "4000.5"}}, "not '4000.5'"),
        ({"embedded_port": 0}, "embedded_port .or MESH_EMBEDDED_PORT.*from 1 to 65535, not 0"),
        ({"environ": {"MESH_EMBEDDED_PORT": "x"}}, "MESH_EMBEDDED_PORT.*not 'x'"),
        ({"heartbeat_interval": 0}, "heartbeat_interval must be more than 0 seconds, not 0"),
        ({"heartbeat_interval": -1}, "heartbeat_interval must be more"),
        ({"heartbeat_interval": math.nan}, "heartbeat_interval must be more"),
        ({"heartbeat_timeout": 9.9}, "heartbeat_timeout=9.9 must be at least twice heartbeat_interval=5.0"),
        ({"heartbeat_timeout": math.nan}, "at least twice"),
        ({"resume_window": -1}, "resume_window must be 0 seconds or more, not -1"),
        ({"resume_window": math.nan}, "resume_window must be"),
        (
            {"write_only": True, "discovery_service_address": "ws://d:1", "node_interop": True},
            "a write_only process reaches Node servers through them",
        ),
        ({"callback_timeout": 0}, "callback_timeout must be more than 0"),
        ({"callback_timeout": math.nan}, "callback_timeout must be more than 0"),
        ({"drain_rate": 0}, "drain_rate must be more than 0"),
        ({"drain_rate": math.nan}, "drain_rate must be more than 0"),
        ({"drain_rate": "fast"}, "drain_rate must be a number"),
        ({"drain_timeout": -1}, "drain_timeout must be 0 seconds or more"),
        ({"channel": ""}, "channel must have 1 to 128 printable characters"),
        ({"channel": "c" * 129}, "channel must have 1 to 128 printable characters"),
        ({"buffered_amount_threshold": 65535}, "between 65536 and 67108864 bytes, not 65535"),
        ({"buffered_amount_threshold": 64 * 1024 * 1024 + 1}, "not 67108865"),
        ({"client_queue_bytes": 65535}, "client_queue_bytes must be at least 65536 bytes, or None"),
        ({"client_queue_bytes": math.nan}, "client_queue_bytes must be at least 65536"),
        ({"client_queue_bytes": "1M"}, "client_queue_bytes must be a number"),
        ({"write_only": True, "discovery_service_address": []}, "write_only=True needs a discovery_service_address"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_a_mend(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        config(**options)


def test_a_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="ws_port"):
        config(ws_port=70000)
