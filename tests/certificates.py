"""Certificates of a CA that a test makes."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import trustme

from gevent_mesh.tls import Tls

__all__ = ["Authority", "Files"]


class Files:
    """A certificate, its key, and the CA that is trusted, as files that may be replaced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.certificate, self.key, self.ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))

    @property
    def paths(self) -> tuple[str, str, str]:
        return str(self.certificate), str(self.key), str(self.ca)

    @property
    def environment(self) -> dict[str, str]:
        return dict(zip(("MESH_TLS_CERT", "MESH_TLS_KEY", "MESH_TLS_CA"), self.paths, strict=True))

    def tls(self, name: str = "") -> Tls:
        return Tls.from_files(*self.paths, name=name)

    def write(self, issued: trustme.LeafCert, trusted: Authority) -> Files:
        """Write all, at once for whoever looks at one of them."""
        self._put(self.ca, trusted.ca.cert_pem.bytes())
        self._put(self.key, issued.private_key_pem.bytes())
        self._put(self.certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return self

    def _put(self, path: Path, data: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(data)
        os.replace(new, path)


class Authority:
    """A CA of its own."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def issue(self, *names: str, days: int = 1) -> trustme.LeafCert:
        """A certificate for these names; with negative `days`, one that has expired."""
        now = datetime.now(timezone.utc)
        options: dict[str, Any] = {"not_before": now - timedelta(days=9), "not_after": now + timedelta(days=days)}
        return self.ca.issue_cert(*names, **options)

    def files(self, folder: Path, *names: str, trusted: Authority | None = None, days: int = 1) -> Files:
        """The files of a process: for these names (this machine by default), trusting this CA or another one."""
        return Files(folder).write(self.issue(*(names or ("127.0.0.1", "localhost")), days=days), trusted or self)
