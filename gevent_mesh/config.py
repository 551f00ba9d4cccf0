"""The options of a node, checked in one place.

Options that are left out come from the environment where they differ from deployment to deployment (`MESH_DISCOVERY`,
`MESH_PORT`, `MESH_ADDRESS`, `MESH_AUTH_TOKEN`, `MESH_TLS_*`, `MESH_EMBEDDED_PORT`), else from the defaults here.
Whatever cannot work is refused when the manager is made, with a text that says what to change.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError
from .protocol.address import parse_address
from .protocol.frames import MAX_ADDRESS_CHARS
from .protocol.tokens import check_bind, check_tokens, default_host
from .tls import NO_TLS, Tls

__all__ = ["MeshConfig"]

MAX_CHANNEL_CHARS = 128
MIN_THRESHOLD_BYTES = 64 * 1024
MAX_THRESHOLD_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """A node's options, valid.

    Attributes:
        discovery: URLs of discovery servers; without any the node works alone.
        embedded_port: where the nodes of this host serve discovery in turn; `discovery` is then that. 0: they do not.
        port: where peers reach this node's own socket; 0 takes any free port.
        host: the address to listen on.
        address: the URL that peers dial; empty means: found out from the connection to discovery.
        heartbeat_interval: seconds between two heartbeats. Lower finds dead peers sooner and costs more idle traffic.
        heartbeat_timeout: seconds of silence after which a link is cut. Lower takes a busy peer for a dead one.
        outbox_bytes: how much may wait for one peer; above it a peer counts as a slow consumer.
        resume_window: seconds that a peer may be away without losing anything. Longer keeps more in memory.
        tokens: shared secrets, newest first.
        channel: nodes of different channels do not link, even through the same discovery.
        write_only: this process publishes and asks, and serves no clients.
        callback_timeout: seconds after which a callback that some clients never answered is freed.
        drain_rate: clients that are disconnected in a second when the node leaves. Higher leaves sooner, and more of
            them come to the other nodes at once.
        drain_timeout: seconds after which they all are, whatever their number.
        node_interop: link to Node.js servers as well. They are sent the token in clear, and promise less.
        tls: with what it listens and dials where that is encrypted.
        client_queue_bytes: how much may wait for one client; None for any amount.
        bounded_reader: refuse what clients send before it is read, when it is too large.
        direct_writes: write events to clients' sockets where nothing is before them in the queues.
        room_interest: send events only to nodes that have members of their rooms.
    """

    discovery: tuple[str, ...] = ()
    embedded_port: int = 0
    port: int = 4000
    host: str = "127.0.0.1"
    address: str = ""
    heartbeat_interval: float = 5.0
    heartbeat_timeout: float = 10.0
    outbox_bytes: int = 16 * 1024 * 1024
    resume_window: float = 30.0
    tokens: tuple[str, ...] = ()
    channel: str = "socketio"
    write_only: bool = False
    callback_timeout: float = 60.0
    drain_rate: float = 100.0
    drain_timeout: float = 20.0
    node_interop: bool = False
    tls: Tls = field(default=NO_TLS, compare=False)
    client_queue_bytes: int | None = 64 * 1024 * 1024
    bounded_reader: bool = True
    direct_writes: bool = True
    room_interest: bool = False

    @classmethod
    def from_options(
        cls,
        *,
        discovery_service_address: str | Sequence[str] | None,
        ws_port: int | None,
        ws_host: str | None,
        server_address: str | None,
        heartbeat_interval: float,
        heartbeat_timeout: float,
        buffered_amount_threshold: int,
        resume_window: float,
        auth_token: str | Sequence[str] | None,
        allow_anonymous: bool,
        channel: str,
        write_only: bool,
        callback_timeout: float,
        drain_rate: float = 100.0,
        drain_timeout: float = 20.0,
        node_interop: bool = False,
        ssl_context: Any = None,
        client_ssl_context: Any = None,
        tls_name: str | None = None,
        client_queue_bytes: int | None = 64 * 1024 * 1024,
        bounded_reader: bool = True,
        direct_writes: bool = True,
        room_interest: bool = False,
        embedded_port: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> MeshConfig:
        """Check the options of `GeventMeshManager` and fill in what is left out.

        Raises:
            ConfigError: an option, or a combination, cannot work.
        """
        environ = os.environ if environ is None else environ
        tokens = check_tokens(_several(auth_token, environ.get("MESH_AUTH_TOKEN")))
        discovery = _several(discovery_service_address, environ.get("MESH_DISCOVERY"))
        for url in discovery:
            _check_url("discovery_service_address", url)
        shared_port = _port("embedded_port", embedded_port, environ, default=_embedded_port_for(channel), lowest=1)
        is_embedded = discovery_service_address is None and not discovery
        if is_embedded:
            discovery = [f"ws://127.0.0.1:{shared_port}"]
        # Peers that are found on this host need no other address.
        default = "127.0.0.1" if is_embedded else default_host(tokens)
        host = default if ws_host is None else ws_host
        if not write_only:
            check_bind("ws_host", host, tokens, allow_anonymous)
        _check_times(heartbeat_interval, heartbeat_timeout, resume_window, callback_timeout)
        _check_drain(drain_rate, drain_timeout)
        if write_only and not discovery:
            raise ConfigError("write_only=True needs a discovery_service_address: there is no other way to find nodes")
        if write_only and node_interop:
            raise ConfigError("node_interop=True is for nodes: a write_only process reaches Node servers through them")
        if write_only and (ws_port is not None or server_address is not None):
            raise ConfigError("write_only=True does not listen: leave ws_port and server_address out")
        tls = Tls.from_options(ssl_context, client_ssl_context, tls_name, environ, listens=not write_only)
        address = server_address if server_address is not None else environ.get("MESH_ADDRESS", "")
        if address:
            _check_own_address(address, tls)
        if not isinstance(channel, str) or not 0 < len(channel) <= MAX_CHANNEL_CHARS or not channel.isprintable():
            raise ConfigError(f"channel must have 1 to {MAX_CHANNEL_CHARS} printable characters, not {channel!r}")
        _check_number("buffered_amount_threshold", buffered_amount_threshold)
        if not MIN_THRESHOLD_BYTES <= buffered_amount_threshold <= MAX_THRESHOLD_BYTES:
            raise ConfigError(
                f"buffered_amount_threshold must be between {MIN_THRESHOLD_BYTES} and {MAX_THRESHOLD_BYTES} bytes, "
                f"not {buffered_amount_threshold}"
            )
        _check_client_queue(client_queue_bytes)
        return cls(
            discovery=tuple(discovery),
            embedded_port=shared_port if is_embedded else 0,
            port=_port("ws_port", ws_port, environ, default=0 if is_embedded else 4000),
            host=host,
            address=address,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            outbox_bytes=buffered_amount_threshold,
            resume_window=resume_window,
            tokens=tokens,
            channel=channel,
            write_only=write_only,
            callback_timeout=callback_timeout,
            drain_rate=drain_rate,
            drain_timeout=drain_timeout,
            node_interop=node_interop,
            tls=tls,
            client_queue_bytes=client_queue_bytes,
            bounded_reader=bounded_reader,
            direct_writes=direct_writes,
            room_interest=room_interest,
        )


def _several(option: str | Sequence[str] | None, environment: str | None) -> list[str]:
    """An option that may be one text, several, or a comma-separated environment variable."""
    if option is None:
        option = environment.split(",") if environment else []
    values = [option] if isinstance(option, str) else list(option)
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"expected text or a list of texts, not {values!r}")
    return [value.strip() for value in values if value.strip()]


def _check_url(option: str, url: str) -> None:
    try:
        parse_address(url)
    except ValueError as exc:
        raise ConfigError(f"{option}={url!r}: {exc}; it should look like ws://10.0.0.1:8000") from None


def _check_own_address(address: str, tls: Tls) -> None:
    _check_url("server_address", address)
    if len(address) > MAX_ADDRESS_CHARS:
        raise ConfigError(
            f"server_address has {len(address)} characters, and peers take at most {MAX_ADDRESS_CHARS}; "
            "use a shorter host name or an IP address"
        )
    if parse_address(address).secure != tls.listens:
        listens = "listens with TLS" if tls.listens else "has no ssl_context (or MESH_TLS_CERT)"
        raise ConfigError(
            f"server_address={address!r}, and this node {listens}: write {'wss' if tls.listens else 'ws'}://"
        )


_PORT_VARIABLES = {"ws_port": "MESH_PORT", "embedded_port": "MESH_EMBEDDED_PORT"}


def _port(option: str, value: object, environ: Mapping[str, str], *, default: int, lowest: int = 0) -> int:
    variable = _PORT_VARIABLES[option]
    if value is None:
        value = environ.get(variable) or default
    try:
        port = int(str(value))
    except ValueError:
        port = -1
    if not lowest <= port <= 65535:
        raise ConfigError(f"{option} (or {variable}) must be a port number from {lowest} to 65535, not {value!r}")
    return port


def _embedded_port_for(channel: str) -> int:
    """Where embedded discovery is when nothing is said: those who would not link anyway do not meet there either.

    Below the ports that systems give out by themselves, which anybody's connection may hold at any moment.
    """
    return 20_000 + zlib.crc32(f"{os.getuid()} {channel}".encode()) % 10_000


def _check_number(option: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{option} must be a number, not {value!r}")


def _check_client_queue(limit: int | None) -> None:
    if limit is None:
        return
    _check_number("client_queue_bytes", limit)
    if not limit >= MIN_THRESHOLD_BYTES:
        raise ConfigError(
            f"client_queue_bytes must be at least {MIN_THRESHOLD_BYTES} bytes, or None for no limit, not {limit}"
        )


def _check_times(interval: float, timeout: float, window: float, callback_timeout: float) -> None:
    times = {
        "heartbeat_interval": interval,
        "heartbeat_timeout": timeout,
        "resume_window": window,
        "callback_timeout": callback_timeout,
    }
    for option, value in times.items():
        _check_number(option, value)
    # Written so that NaN, which compares as false, is refused as well.
    if not interval > 0:
        raise ConfigError(f"heartbeat_interval must be more than 0 seconds, not {interval}")
    if not timeout >= 2 * interval:
        raise ConfigError(
            f"heartbeat_timeout={timeout} must be at least twice heartbeat_interval={interval}: "
            "one late heartbeat would end the link"
        )
    if not window >= 0:
        raise ConfigError(f"resume_window must be 0 seconds or more, not {window}")
    if not callback_timeout > 0:
        raise ConfigError(f"callback_timeout must be more than 0 seconds, not {callback_timeout}")


def _check_drain(rate: float, timeout: float) -> None:
    _check_number("drain_rate", rate)
    _check_number("drain_timeout", timeout)
    if not rate > 0:
        raise ConfigError(f"drain_rate must be more than 0 clients a second, not {rate}")
    if not timeout >= 0:
        raise ConfigError(f"drain_timeout must be 0 seconds or more, not {timeout}")
