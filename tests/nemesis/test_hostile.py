"""Garbage and forgeries: from strangers, and from those who know the token."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest

from gevent_mesh.protocol import discovery as wire
from gevent_mesh.protocol import messages
from gevent_mesh.protocol.frames import (
    Auth,
    Bye,
    Challenge,
    Refusal,
    Role,
    SessionState,
    Welcome,
    batch_header,
    decode_frame,
    encode_frame,
)
from gevent_mesh.protocol.handshake import Keys
from gevent_mesh.protocol.messages import MessageType
from gevent_mesh.protocol.websocket import Opcode, frame
from tests.integration.clients import Client, clients_closed
from tests.integration.processes import FULL, Discovery, Fleet, Node, Process, fleet, linked
from tests.nemesis.faults import MIB
from tests.nemesis.figures import Figures
from tests.nemesis.intruders import EMITTERS, INTRUDERS, Intruder
from tests.nemesis.strangers import Mirror, Stranger, register
from tests.protocol.bombs import bombs
from tests.support import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300 if FULL else 120)]

TOKEN = "a token for these tests"
ROUNDS = 10 if FULL else 1


@dataclass
class Served:
    """Two nodes with a token, and events that flow between them all the time."""

    discovery: Discovery
    nodes: list[Node]
    client: Client

    @property
    def processes(self) -> list[Process]:
        return [self.discovery, *self.nodes]

    def still_flows(self) -> None:
        """What is emitted now arrives."""
        self.client.wait_for_number(self.nodes[0].boot, self.nodes[0].state()["sent"], 10)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fleet() as ships, clients_closed([]) as clients:
        discovery = ships.discovery(token=TOKEN)
        nodes = ships.nodes(2, discovery, auth_token=TOKEN, ws_host="127.0.0.1")
        linked(nodes)
        clients.append(Client(nodes[1].url))
        nodes[0].do("start_traffic", 200)
        yield Served(discovery, nodes, clients[0])


def peak_mib(process: Process) -> float:
    """The most memory that a process has had since `forget_peak`."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def forget_peak(process: Process) -> float:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return peak_mib(process)


def is_quiet(process: Process) -> bool:
    """Whether nothing in its output was not meant to be there."""
    return not re.search(r"Traceback|never retrieved|Exception ignored|\bCRITICAL\b", process.output)


def attack(served: Served, intrude: Callable[[Intruder], None]) -> None:
    who = ("00000000000000ef", Role.EMITTER) if intrude in EMITTERS else ("00000000000000ee", Role.NODE)
    intruder = Intruder(served.nodes[0], TOKEN, *who)
    with intruder, contextlib.suppress(OSError):
        intrude(intruder)
        # What is dropped leaves the link up; a goodbye ends it in good order behind everything else.
        intruder.send(encode_frame(Bye(0, "done")))
        intruder.seconds_until_cut()


@pytest.mark.row(
    "garbage, bombs and nonsense from a peer that knows the token",
    "only its own link ends; nothing uncaught; memory at most +5 MiB",
)
def test_intruders_end_their_own_links_and_nothing_else(served: Served, figures: Figures) -> None:
    node, other = served.nodes
    for intrude in INTRUDERS:
        # What is allocated once, by the first of a kind, is not what this is about.
        attack(served, intrude)
    grown: dict[str, float] = {}
    for intrude in INTRUDERS:
        before = forget_peak(node)
        for _ in range(ROUNDS):
            attack(served, intrude)
        served.still_flows()
        grown[intrude.__name__] = peak_mib(node) - before
    worst = max(grown, key=lambda name: grown[name])
    figures["kinds"] = len(grown)
    figures["worst_kind"] = worst
    figures["memory_mib"] = grown[worst]
    state = node.state()
    assert state["links"] == [other.uid]
    assert state["counters"]["undecodable"] > 1000
    assert other.state()["counters"]["links_down"] == 0
    assert all(map(is_quiet, served.processes))
    assert node.do("server_events") == []
    assert grown[worst] < 5, grown


@pytest.mark.row("bombs of 16 MiB from a peer", "a few copies of one of them, however many come")
def test_large_bombs_cost_no_more_than_copies_of_one_of_them(served: Served, figures: Figures) -> None:
    node = served.nodes[0]
    size = 16 * MIB

    def explode(intruder: Intruder) -> None:
        intruder.batch(b"\xdd" + size.to_bytes(4, "big") + b"\x80" * size)

    before = forget_peak(node)
    for _ in range(5):
        attack(served, explode)
    served.still_flows()
    figures["bombs"] = 5
    figures["peak_mib"] = peak_mib(node) - before
    assert figures["peak_mib"] < 4 * 16 + 5
    assert is_quiet(node)


def discovery_junk() -> list[bytes]:
    register = {"type": "register", "serverId": "0" * 16, "address": "ws://127.0.0.1:9"}
    junk: list[Any] = [None, 1, [], {}, "", "x" * 900, [register], "\0\n"]
    broken = [{**register, key: value} for key in register for value in junk]
    return [
        b"\xc0",
        b"",
        b"\x80",
        b"\xc1",
        *(bomb[:1000] for bomb in bombs(1000).values()),
        *map(msgpack.packb, [[], 1, "register", {"type": 1}, {"type": "roster"}, {"type": "register"}, *broken]),
        msgpack.packb({**register, "token": "a wrong token for this"}),
        msgpack.packb({**register, "nonce": b"n" * 32, "proofs": [b"p" * 32], "secret": b"s" * 16}),
        wire.roster("i" * 16, 1, True, {"0" * 16: "ws://127.0.0.1:9"}),
    ]


@pytest.mark.row("byte C0, garbage and bombs to discovery", "only that connection ends; memory at most +5 MiB")
def test_garbage_for_discovery_ends_its_own_connection_only(served: Served, figures: Figures) -> None:
    payloads = discovery_junk()

    def send_all() -> None:
        for payload in payloads:
            for mesh in (True, False):
                knocking = Stranger(served.discovery)
                with knocking, contextlib.suppress(OSError):
                    knocking.upgrade(mesh=mesh)
                    knocking.send(payload)
                    assert knocking.seconds_until_cut() < 5.5
        text = frame(Opcode.TEXT, b"a", mask=True)
        for raw in (b"\x16\x03\x01" * 3000, b"\x82\xff" + b"\x7f" * 20, b"\x02\x81\0\0\0\0a", text):
            knocking = Stranger(served.discovery)
            with knocking, contextlib.suppress(OSError):
                if raw[0] != 0x16:
                    knocking.upgrade()
                knocking.sock.sendall(raw)
                assert knocking.seconds_until_cut() < 5.5

    send_all()
    before = forget_peak(served.discovery)
    for _ in range(ROUNDS):
        send_all()
    figures["connections"] = (2 * len(payloads) + 4) * ROUNDS
    figures["memory_mib"] = peak_mib(served.discovery) - before
    assert figures["memory_mib"] < 5
    assert is_quiet(served.discovery)
    assert all(node.state()["discovery"] == [True] for node in served.nodes)
    assert all(len(node.links()) == 1 for node in served.nodes)


# ---------------------------------------------------------------------- forgeries

UID = "00000000000000ab"


def wrong_token(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.authenticate("another token for it", stranger.hello(UID))


def token_of_discovery(stranger: Stranger) -> None:
    """A proof under the key that is for discovery."""
    stranger.upgrade()
    hello = stranger.hello(UID)
    stranger.send(hello)
    proofs = Keys([TOKEN], "discovery").dialer_proofs(hello, stranger.receive())
    stranger.send(encode_frame(Auth(proofs)))


def wrong_target(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.authenticate(TOKEN, stranger.hello(UID, target="00000000000000bb"))


def its_own_uid(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.authenticate(TOKEN, stranger.hello(stranger.uid))


def batch_before_the_proof(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(stranger.hello(UID))
    stranger.receive()
    stranger.send(batch_header(1, 0) + forged(UID))


def nodejs_without_token(stranger: Stranger) -> None:
    _speak_nodejs(stranger, {"uid": UID, "address": "ws://127.0.0.1:9"})


def nodejs_with_a_wrong_token(stranger: Stranger) -> None:
    _speak_nodejs(stranger, {"uid": UID, "address": "ws://127.0.0.1:9", "token": "another token for it"})


def nodejs_over_an_upgrade_of_ours(stranger: Stranger) -> None:
    stranger.upgrade()
    stranger.send(b"\x00" + msgpack.packb({"uid": UID, "address": "ws://127.0.0.1:9", "token": TOKEN}))


def _speak_nodejs(stranger: Stranger, hello: dict[str, str]) -> None:
    stranger.upgrade(mesh=False)
    stranger.send(b"\x00" + msgpack.packb(hello))
    stranger.send(b"\x01" + forged(hello["uid"]))


def forged(uid: str) -> bytes:
    data = messages.broadcast(messages.options(), packet=["forged"])
    return messages.encode(MessageType.BROADCAST, uid, "/", data)


FORGERS: list[Callable[[Stranger], None]] = [
    wrong_token, token_of_discovery, wrong_target, its_own_uid, batch_before_the_proof, nodejs_without_token,
    nodejs_with_a_wrong_token, nodejs_over_an_upgrade_of_ours,
]  # fmt: skip


def heard_by(node: Node, forger: Callable[[Stranger], None]) -> bytes:
    """Have a forger try; returns all that it was told."""
    stranger = Stranger(node)
    with stranger, contextlib.suppress(OSError, AssertionError):
        forger(stranger)
        # With whatever comes of it, it speaks as if it were a peer.
        stranger.send(batch_header(1, 0) + forged(UID))
        stranger.seconds_until_cut()
    return bytes(stranger.heard)


@pytest.mark.parametrize("interop", [False, True], ids=["", "node_interop"])
@pytest.mark.row(
    "wrong token, wrong uid, reflected proofs, downgrade to the Node protocol, forged sender",
    "0 become peers, 0 events out, 0 accepted",
)
def test_forgers_become_no_peers_hear_no_events_and_are_not_heard(
    ships: Fleet, clients: list[Client], figures: Figures, interop: bool
) -> None:
    discovery = ships.discovery(token=TOKEN)
    nodes = ships.nodes(2, discovery, auth_token=TOKEN, ws_host="127.0.0.1", node_interop=interop)
    linked(nodes)
    node, other = nodes
    clients.append(Client(node.url))
    node.do("start_traffic", 100)
    forgers = [*FORGERS, lambda stranger: as_a_node_in_clear(stranger, other.uid)]
    for forger in forgers:
        assert b"tick" not in heard_by(node, forger)
        assert node.links() == {other.uid}
    assert b"tick" not in reflected(discovery)
    # Somebody who is a peer, and speaks in the name of another one.
    intruder = Intruder(node, TOKEN)
    with intruder:
        data = messages.broadcast(messages.options(), packet=["forged"])
        inner = messages.encode(MessageType.BROADCAST, other.uid, "/", data)
        intruder.say(MessageType.BROADCAST, data, uid=other.uid)
        intruder.say(MessageType.RELAY, messages.relay(other.uid, 1, inner))
        intruder.say(MessageType.RELAY, messages.relay("0" * 16, 1, inner))
        intruder.say(MessageType.PUBLISH, messages.publish(1, inner))
        intruder.say(MessageType.BROADCAST, messages.broadcast(messages.options(), packet=["honest"]))
        clients[0].wait_for("honest")
        intruder.send(encode_frame(Bye(0, "done")))
        intruder.seconds_until_cut()
    eventually(lambda: node.links() == {other.uid})
    assert node.state()["peers"].keys().isdisjoint({UID, node.uid})
    node.do("stop_traffic")
    figures["forgers"] = len(forgers) + 5
    figures["accepted"] = len(clients[0].received("forged"))
    figures["links_down"] = other.state()["counters"]["links_down"]
    assert clients[0].received("forged") == []
    assert other.state()["counters"]["links_down"] == 0
    assert all(map(is_quiet, [discovery, *nodes]))


def as_a_node_in_clear(stranger: Stranger, uid: str) -> None:
    """The token is right, but the uid belongs to a node that proves itself."""
    _speak_nodejs(stranger, {"uid": uid, "address": "ws://127.0.0.1:9", "token": TOKEN})


def reflected(discovery: Discovery) -> bytes:
    """Have the nodes dial us, and give one of them its own proof back. Returns what it said after that."""
    uid = "ffffffffffffffcd"
    with Mirror() as mirror, Stranger(discovery) as registering:
        register(registering, uid, mirror.address, TOKEN)
        mirror.accept()
        mirror.receive()
        mirror.send(encode_frame(Challenge(1, uid, mirror.address, b"m" * 32, Role.NODE, "socketio", "json")))
        auth = decode_frame(mirror.receive())
        assert isinstance(auth, Auth)
        mirror.send(encode_frame(Welcome(auth.proofs[0], SessionState(b"s" * 8, b"", 0))))
        refusal = decode_frame(mirror.receive())
        assert isinstance(refusal, Bye)
        assert refusal.code == Refusal.UNAUTHORIZED
        mirror.seconds_until_cut()
        return bytes(mirror.heard)
