"""What an address of the mesh looks like: ``ws://host:port`` or ``wss://host:port``, and nothing more.

Rules:

- An address comes from strangers as well as from options, so everything that is not needed is refused: user info, path,
  query, fragment, control characters, anything outside of ASCII.
- A host is a name, an IPv4 address or an IPv6 address in brackets. It is never looked up here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["MAX_ADDRESS_CHARS", "Address", "format_host_port", "is_loopback", "parse_address", "plain_host"]

MAX_ADDRESS_CHARS = 512

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[^\]]*\]|[^:/?#@\[\]]*)"
    r"(?::(?P<port>[^/?#@]*))?"
    r"(?P<rest>.*)",
    re.DOTALL,
)
#: One label of a host name. Underscores are not in RFC 952, but container tools put them into service names.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_HOST_CHARS = 253


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. ``str()`` gives the URL again, without a trailing slash.

    Attributes:
        secure: True for ``wss``.
        host: a name or an IP address, lower-case, without brackets.
        port: 1 to 65535.
    """

    secure: bool
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """The ``host:port`` of a URL and of an HTTP Host header."""
        return format_host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.netloc}"


def parse_address(url: str) -> Address:
    """Read an address.

    Raises:
        ValueError: it is not one; the text says what is wrong with it.
    """
    if len(url) > MAX_ADDRESS_CHARS:
        raise ValueError(f"an address may have at most {MAX_ADDRESS_CHARS} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r}: an address is plain ASCII without spaces")
    match = _URL.fullmatch(url)
    if match is None or match["scheme"].lower() not in ("ws", "wss"):
        raise ValueError(f"{url!r}: an address begins with ws:// or wss://")
    if match["rest"] not in ("", "/"):
        raise ValueError(f"{url!r}: an address is ws://host:port, with no user, path, query or fragment")
    return Address(match["scheme"].lower() == "wss", _host(url, match["host"]), _port(url, match["port"]))


def plain_host(host: str) -> str:
    """An IPv4 address that came through an IPv6 socket, as the IPv4 address that it is; anything else unchanged."""
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return str(mapped) if mapped is not None else host


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine only. A name other than localhost never counts: it is not looked up."""
    host = plain_host(host.strip("[]"))
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def format_host_port(host: str, port: int) -> str:
    """Join a host and a port; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(url: str, host: str) -> str:
    if host.startswith("["):
        try:
            # With a zone ("fe80::1%eth0") it means something on one machine only.
            return str(ipaddress.IPv6Address(host[1:-1].replace("%", "/")))
        except ValueError:
            raise ValueError(f"{url!r}: {host} is not an IPv6 address") from None
    labels = host.removesuffix(".").split(".")
    if not host or len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{url!r}: {host!r} is not a host name or an IP address")
    return host.lower()


def _port(url: str, port: str | None) -> int:
    if not port:
        raise ValueError(f"{url!r}: the port is missing; write ws://host:port")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{url!r}: {port!r} is not a port from 1 to 65535")
    return int(port)
