"""Who is compared across nodes: client managers of python-socketio, each with what it needs beside the servers."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .children import MISSING, BenchmarkError, Child, Children, guarded, python

__all__ = ["CONTENDERS", "Contender", "check_installed", "redis_server_version"]

START_SECONDS = 10.0
REDIS_START_ATTEMPTS = 3


@dataclass(frozen=True)
class Contender:
    """One client manager.

    Attributes:
        key: how `server` and the JSON call it.
        name: how the table calls it.
        start_service: starts what its servers need; returns that process and the URL to give to the manager.
    """

    key: str
    name: str
    start_service: Callable[[Children], tuple[Child, str]]


def _start_discovery(children: Children) -> tuple[Child, str]:
    child = children.start("gevent-mesh-discovery", python("gevent_mesh_discovery", "--port", "0"))
    return child, child.line(r"listening on (ws://\S+)", START_SECONDS)[1]


def _start_redis(children: Children) -> tuple[Child, str]:
    for _ in range(REDIS_START_ATTEMPTS):
        port = _free_port()
        options = {"port": str(port), "bind": "127.0.0.1", "dir": children.folder(), "save": "", "appendonly": "no"}
        command = [_redis_server()] + [word for name, value in options.items() for word in (f"--{name}", value)]
        child = children.start("redis-server", guarded(command))
        try:
            child.line("Ready to accept connections", START_SECONDS)
        except BenchmarkError as error:
            problem = error  # the port may have been taken in between
        else:
            return child, f"redis://127.0.0.1:{port}/0"
    raise problem


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _redis_server() -> str:
    path = shutil.which("redis-server")
    if path is None:
        raise BenchmarkError(
            "redis-server is not installed, and RedisManager and KombuManager are measured with a real one; "
            "on Debian and Ubuntu: apt-get install redis-server; without them: --contender mesh",
            exit_code=MISSING,
        )
    return path


def redis_server_version() -> str:
    """The version of the redis-server that is measured; empty without one."""
    if shutil.which("redis-server") is None:
        return ""
    text = subprocess.run([_redis_server(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\S+)", text)
    return match[1] if match else "unknown"


CONTENDERS = {
    contender.key: contender
    for contender in (
        Contender("mesh", "GeventMeshManager", _start_discovery),
        Contender("mesh-interest", "GeventMeshManager, room_interest", _start_discovery),
        Contender("redis", "RedisManager", _start_redis),
        Contender("kombu", "KombuManager (Redis)", _start_redis),
    )
}


def check_installed(keys: Iterable[str]) -> None:
    """Say what is missing before anything is measured.

    Raises:
        BenchmarkError: one of these contenders needs what this machine does not have.
    """
    if platform.system() != "Linux":
        raise BenchmarkError("the benchmark needs Linux: epoll, and what the kernel says of connections", MISSING)
    if {"redis", "kombu"} & set(keys):
        _redis_server()
    if "kombu" in keys:
        try:
            importlib.import_module("kombu")
        except ImportError:
            raise BenchmarkError(
                "KombuManager needs kombu: pip install kombu; without it: --contender mesh", MISSING
            ) from None
