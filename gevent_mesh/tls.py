"""TLS: the contexts that this process shows and trusts, whose certificate is for which name, and errors in words.

Rules:

- A context is asked for before each handshake, never kept: files that have changed meanwhile are read again, and serve
  from the next handshake on. Files that cannot be used change nothing.
- Whoever asks for certificates gets the name in them checked, on both sides: who dials checks whom it has reached, who
  accepts checks that the certificate is for the address under which the other side wants to be known.
- Contexts of the `ssl` module and of `gevent.ssl` serve alike, in a patched process and in any other.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent.ssl
from gevent import socket
from gevent.ssl import SSLError

from .errors import ConfigError
from .protocol.address import parse_address

__all__ = ["NO_TLS", "Tls", "explain", "wrap"]

_log = logging.getLogger(__name__)

_FILES = ("MESH_TLS_CERT", "MESH_TLS_KEY", "MESH_TLS_CA")
_NAME = "MESH_TLS_NAME"

Contexts = tuple[Any, Any]
"""Of the accepting and of the dialling side; None where there is none."""


class Tls:
    """What a process uses for TLS. Without arguments: it listens without, and dials ``wss://`` as a browser would.

    Args:
        contexts: gives the contexts for the next handshake.
        name: what every node's certificate must be for, instead of the host of its address.
        peers: whether the nodes that we dial must speak TLS; None: each as its address says.

    Attributes:
        listens: whether who connects to us must speak TLS.
    """

    def __init__(
        self, contexts: Callable[[], Contexts] = lambda: (None, None), *, name: str = "", peers: bool | None = None
    ) -> None:
        self.listens = contexts()[0] is not None
        self._contexts = contexts
        self._name = name
        self._peers = peers

    @classmethod
    def from_files(cls, certificate: str | None, key: str | None, ca: str | None, *, name: str = "") -> Tls:
        """TLS where both sides prove themselves by certificates, from files that may be replaced; without any, no TLS.

        Args:
            certificate: of this process, and those between it and the CA (PEM).
            key: its private key (PEM).
            ca: the certificates of the CAs that are trusted (PEM).
            name: see the class.

        Raises:
            ConfigError: they cannot be used.
        """
        if not (certificate or key or ca):
            return cls(name=_checked_name(name))
        if not (certificate and key and ca):
            raise ConfigError(f"{', '.join(_FILES)} go together: set all of them")
        try:
            files = _Files((certificate, key, ca))
        except OSError as error:
            raise ConfigError(f"TLS cannot be used: {_reason(error)}") from error
        return cls(files.contexts, name=_checked_name(name), peers=True)

    @classmethod
    def from_options(
        cls, ssl_context: Any, client_ssl_context: Any, name: str | None, environ: Mapping[str, str], *, listens: bool
    ) -> Tls:
        """TLS as the options of a node say, else as the environment does.

        Args:
            ssl_context, client_ssl_context, name: see `GeventMeshManager`.
            environ: may name files (`MESH_TLS_CERT`, `MESH_TLS_KEY`, `MESH_TLS_CA`) and the name (`MESH_TLS_NAME`).
            listens: False for an emitter.

        Raises:
            ConfigError: it cannot work.
        """
        name = environ.get(_NAME, "") if name is None else name
        if ssl_context is None and client_ssl_context is None:
            tls = cls.from_files(*map(environ.get, _FILES), name=name)
            if tls.listens:
                return tls
        _check_context("ssl_context", ssl_context, not_for=gevent.ssl.PROTOCOL_TLS_CLIENT)
        _check_context("client_ssl_context", client_ssl_context, not_for=gevent.ssl.PROTOCOL_TLS_SERVER)
        if not listens and ssl_context is not None:
            raise ConfigError("write_only=True does not listen: leave ssl_context out, and give client_ssl_context")
        peers = ssl_context is not None if listens else (True if client_ssl_context is not None else None)
        return cls(lambda: (ssl_context, client_ssl_context), name=_checked_name(name), peers=peers)

    def server(self) -> Any:
        """The context for somebody who connects to us, or None: no TLS."""
        return self._contexts()[0]

    def client(self) -> Any:
        """The context for dialling."""
        return self._contexts()[1] or _system()

    @property
    def asks_for_certificates(self) -> bool:
        """Whether who connects to us has to show a certificate."""
        context = self.server()
        return context is not None and context.verify_mode != gevent.ssl.CERT_NONE

    def peer_name(self, host: str) -> str:
        """What the certificate of a node at this host must be for."""
        return self._name or host

    def peer_problem(self, secure: bool) -> str:
        """Why no link leads to a node whose address is, or is not, ``wss://``; empty if one may."""
        if self._peers is None or self._peers == secure:
            return ""
        if secure:
            return "it takes links over TLS only, and this node has no TLS: give both the same (MESH_TLS_CERT ...)"
        return "it has no TLS, and links of this process are TLS only: give both the same (MESH_TLS_CERT ...)"

    def name_problem(self, certificate: Mapping[str, Any] | None, address: str | None) -> str:
        """Why somebody who connected to us may not be known by an address; empty if it may.

        Args:
            certificate: what it has shown (`ssl.SSLSocket.getpeercert`); None: it was not asked.
            address: under which it wants to be dialled; None for an emitter, which is not.
        """
        if certificate is None or (address is None and not self._name):
            return ""
        try:
            wanted = self._name or parse_address(address or "").host
        except ValueError:
            return "it names no address that its certificate could be for"
        names = [(kind, str(name)) for kind, name in certificate.get("subjectAltName", ())]
        if any(_matches(kind, name, wanted) for kind, name in names):
            return ""
        listed = ", ".join(name for _, name in names) or "nobody"
        return f"the certificate is not for {wanted}, but for {listed}"


NO_TLS = Tls()


def wrap(sock: socket.socket, context: Any, *, server_hostname: str | None) -> socket.socket:
    """Put TLS around a connected socket, which is of no use any more; the handshake is still to do.

    Args:
        sock: a gevent socket.
        context: either side's.
        server_hostname: whom we dialled; None: we accepted.

    Raises:
        OSError: the connection is over.
    """
    # What gevent's own SSLContext.wrap_socket does; that of the ssl module would make a socket that blocks.
    return gevent.ssl.SSLSocket(
        sock,
        server_side=server_hostname is None,
        server_hostname=server_hostname,
        do_handshake_on_connect=False,
        _context=context,
    )


class _Files:
    """Contexts from files, made again when these have changed."""

    def __init__(self, paths: tuple[str, str, str]) -> None:
        self._paths = paths
        self._version = self._look()
        self._made = _load(*paths)

    def contexts(self) -> Contexts:
        version = self._look()
        if version != self._version:
            # First of all: what cannot be used is told once, and looked at again when it has changed again.
            self._version = version
            try:
                self._made = _load(*self._paths)
                _log.info("the certificate has changed: %s serves from now on", self._paths[0])
            except OSError as error:
                _log.error("the changed certificate cannot be used, the former one stays: %s", _reason(error))
        return self._made

    def _look(self) -> list[tuple[int, ...]]:
        return [_version(path) for path in self._paths]


def _version(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(certificate: str, key: str, ca: str) -> Contexts:
    for path in (certificate, key, ca):
        # The ssl module's own errors do not say which file it is.
        with Path(path).open("rb"):
            pass
    server = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    client = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        # Both ends are ours, and none of them is older than that.
        context.minimum_version = gevent.ssl.TLSVersion.TLSv1_3
        # A password would be asked for at the terminal.
        _named(certificate, lambda: context.load_cert_chain(certificate, key, password=""))  # noqa: B023  # called here
        _named(ca, lambda: context.load_verify_locations(ca))  # noqa: B023  # called here
    # They would be made at each handshake, and nobody comes back with one.
    server.num_tickets = 0
    # Probes and scrapers may come without; the listener wants one from everybody else.
    server.verify_mode = gevent.ssl.CERT_OPTIONAL
    return server, client


def _named(path: str, load: Callable[[], None]) -> None:
    try:
        load()
    except SSLError as error:
        raise OSError(f"{path}: {_reason(error)}") from error


@functools.cache
def _system() -> Any:
    return gevent.ssl.create_default_context()


def _check_context(option: str, context: Any, *, not_for: Any) -> None:
    if context is None:
        return
    # The class of the ssl module itself, also where monkey-patching has put another one in its place.
    if not isinstance(context, gevent.ssl.orig_SSLContext):
        raise ConfigError(f"{option} must be an ssl.SSLContext, not {context!r}")
    if context.protocol == not_for:
        raise ConfigError(f"{option} was made for the other side of a connection (it has {not_for.name})")


def _checked_name(name: str) -> str:
    try:
        return parse_address(f"wss://{name}:1").host if name else ""
    except ValueError:
        raise ConfigError(f"tls_name (or {_NAME}) must be a host name, not {name!r}") from None


def _matches(kind: str, name: str, host: str) -> bool:
    """Whether a name of a certificate is that of a host (RFC 6125, section 6.4; `*` stands for one whole label)."""
    if kind == "IP Address":
        return _ip(name) is not None and _ip(name) == _ip(host)
    if kind != "DNS" or _ip(host) is not None:
        return False
    name, host = name.lower(), host.removesuffix(".")
    if name.startswith("*."):
        return name[1:] == host[host.find(".") :] and "." in name[2:]
    return name == host


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip())
    except ValueError:
        return None


# ---------------------------------------------------------------------- errors in words

#: Said by gevent, of a connection that was over before the handshake has begun.
_GONE = "Closed before TLS handshake with data in recv buffer."
_NO_TLS_THERE = "it does not speak TLS; is its address ws:// then?"
_REFUSED = "it does not take our certificate"

_UNVERIFIED = {
    # X509_V_ERR_* of OpenSSL.
    9: "its certificate is not valid yet; is the clock right?",
    10: "its certificate has expired",
    18: "its certificate is not signed by a CA that is trusted here (MESH_TLS_CA)",
    19: "its certificate is not signed by a CA that is trusted here (MESH_TLS_CA)",
    20: "its certificate is not signed by a CA that is trusted here (MESH_TLS_CA)",
    21: "its certificate is not signed by a CA that is trusted here (MESH_TLS_CA)",
    26: "its certificate is not for this use: one for both server and client authentication is needed",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}
_FAILED = {
    "HTTP_REQUEST": "it speaks HTTP without TLS; its address of us should be wss://",
    "WRONG_VERSION_NUMBER": _NO_TLS_THERE,
    "UNSUPPORTED_PROTOCOL": "no version of TLS that both sides take",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no version of TLS that both sides take",
    "NO_SHARED_CIPHER": "no cipher in common; does the ssl_context have a certificate?",
    "TLSV1_ALERT_UNKNOWN_CA": f"{_REFUSED}: it does not trust our CA",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{_REFUSED}: it has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"{_REFUSED}: is it for the name by which we are dialled?",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{_REFUSED}: it is not for client authentication as well",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSED,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of ours, and the client_ssl_context has none",
}
"""By the reason of OpenSSL; what is not here is shown as OpenSSL says it."""


def explain(error: OSError | None) -> str:
    """What went wrong with TLS, and what may help; empty when it has not: somebody has just hung up, or not."""
    if not isinstance(error, SSLError) or isinstance(error, gevent.ssl.SSLEOFError) or error.reason == _GONE:
        return ""
    if isinstance(error, gevent.ssl.SSLCertVerificationError):
        advice = _UNVERIFIED.get(error.verify_code)
        return f"{advice}: {error.verify_message}" if advice else f"its certificate is refused: {error.verify_message}"
    return _FAILED.get(error.reason or "") or f"TLS failed: {_reason(error)}"


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if isinstance(reason, str) else str(error)
