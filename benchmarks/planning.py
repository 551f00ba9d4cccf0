"""How many clients this machine can carry, and in how many processes. Reads limits; opens nothing."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from pathlib import Path

import psutil

from .children import MISSING, BenchmarkError

__all__ = ["Limits", "Plan", "plan", "raise_descriptor_limit", "read_limits"]

SPARE_DESCRIPTORS = 300
"""Of each process, for everything that is not a client."""
NODE_BYTES = 90_000
SWARM_BYTES = 6_000
"""Of memory for each client, the kernel's included: more than is measured."""
PROCESS_BYTES = 80_000_000
MEMORY_SHARE = 0.85
SWARM_CLIENTS = 20_000
"""The most in one swarm: from one address about 28,000 connections can go to all servers together."""
MAX_PROCESSES = 64


@dataclass(frozen=True)
class Limits:
    """What the machine allows.

    Attributes:
        descriptors: of one process, at most (the hard limit).
        all_descriptors: that are still free in the whole system.
        tracked: connections that the firewall can still keep track of; None when it does not.
        ports: ephemeral ones, for each address.
        free_bytes: of memory.
    """

    descriptors: int
    all_descriptors: int
    tracked: int | None
    ports: int
    free_bytes: int


@dataclass(frozen=True)
class Plan:
    """Clients of each node, and of each swarm, by process."""

    nodes: list[int]
    swarms: list[int]

    def portions(self) -> list[list[int]]:
        """For each swarm, how many of its clients go to each node."""
        left = list(self.nodes)
        shares = []
        for clients in self.swarms:
            share = []
            for node, free in enumerate(left):
                taken = min(free, clients)
                left[node] -= taken
                clients -= taken
                share.append(taken)
            shares.append(share)
        return shares


def plan(clients: int, nodes: int, limits: Limits) -> Plan:
    """Divide clients among processes.

    Raises:
        BenchmarkError: the machine does not allow it; says which limit, and how to raise it.
    """
    room = limits.descriptors - SPARE_DESCRIPTORS
    per_node = math.ceil(clients / nodes)
    if per_node > room:
        needed = math.ceil(clients / room) if room > 0 else 0
        more = f"use --nodes {needed} or more, or raise it" if 0 < needed <= MAX_PROCESSES // 2 else "raise it"
        raise _refusal(
            f"{clients:,} clients on {nodes} nodes are {per_node:,} for each, and a process may have "
            f"{limits.descriptors:,} open descriptors: {more} with `ulimit -Hn {per_node + SPARE_DESCRIPTORS}` "
            "(as root), or LimitNOFILE in systemd"
        )
    if 2 * clients > limits.all_descriptors:
        raise _refusal(
            f"{clients:,} connections are {2 * clients:,} descriptors, and the system has {limits.all_descriptors:,} "
            "left: raise it with `sysctl fs.file-max`"
        )
    if limits.tracked is not None and clients > limits.tracked:
        raise _refusal(
            f"the firewall can keep track of {limits.tracked:,} more connections: raise it with "
            "`sysctl net.netfilter.nf_conntrack_max`"
        )
    swarms = math.ceil(clients / min(room, SWARM_CLIENTS, limits.ports - SPARE_DESCRIPTORS))
    needed_bytes = clients * (NODE_BYTES + SWARM_BYTES) + (nodes + swarms) * PROCESS_BYTES
    if needed_bytes > limits.free_bytes * MEMORY_SHARE:
        fits = max(0, int(limits.free_bytes * MEMORY_SHARE) - (nodes + swarms) * PROCESS_BYTES)
        raise _refusal(
            f"{clients:,} clients may need {needed_bytes / 1e9:.1f} GB of memory, and {limits.free_bytes / 1e9:.1f} GB "
            f"are free: there is room for about --clients {fits // (NODE_BYTES + SWARM_BYTES)}"
        )
    return Plan(_shares(clients, nodes), _shares(clients, swarms))


def _refusal(text: str) -> BenchmarkError:
    return BenchmarkError(text, MISSING)


def _shares(total: int, parts: int) -> list[int]:
    return [total * (part + 1) // parts - total * part // parts for part in range(parts)]


def read_limits() -> Limits:
    """What this machine allows now. Where the system does not tell (not Linux), it is taken to allow enough."""
    low, high = _numbers("net/ipv4/ip_local_port_range") or (32768, 60999)
    in_use, _, all_of_them = _numbers("fs/file-nr") or (0, 0, 1 << 40)
    most = _numbers("net/netfilter/nf_conntrack_max")
    tracked = _numbers("net/netfilter/nf_conntrack_count")
    return Limits(
        descriptors=_hard_limit(),
        all_descriptors=all_of_them - in_use,
        tracked=most[0] - tracked[0] if most and tracked else None,
        ports=high - low + 1,
        free_bytes=int(psutil.virtual_memory().available),
    )


def _numbers(name: str) -> list[int]:
    try:
        return [int(word) for word in (Path("/proc/sys") / name).read_text(encoding="ascii").split()]
    except OSError:
        return []


def _hard_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def raise_descriptor_limit() -> None:
    """Let this process open as many as it may."""
    limit = _hard_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
