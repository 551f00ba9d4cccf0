"""Gossip and takeovers over real sockets: who links to one node soon links to all, and nobody takes another's place."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gevent_mesh.errors import HandshakeError
from gevent_mesh.net import outboxes
from gevent_mesh.protocol import gossip
from gevent_mesh.protocol import link as link_module
from gevent_mesh.protocol.frames import Auth, Frame, Refusal, Role, Welcome, encode_frame
from gevent_mesh.protocol.link import Status
from gevent_mesh.protocol.messages import ClusterMessage, MessageType, encode
from tests.net.nodes import MIDDLE, NOBODY, HandMade, Join, Member, linked, numbered, pair, uid_below
from tests.support import eventually

PEER = "00000000000000aa"


def whole(join: Join, count: int) -> list[Member]:
    """A mesh of so many nodes."""
    members = [join() for _ in range(count)]
    for member in members:
        member.names(*(other for other in members if other is not member))
    linked(*members)
    return members


def names_some(member: Member, *others: Member) -> None:
    """Take a roster of a server that has just started: not complete."""
    member.mesh._take_roster("young", {other.uid: other.address for other in others}, False)


class TestNewcomers:
    def test_who_is_linked_to_one_node_is_soon_linked_to_all(self, join: Join) -> None:
        members = whole(join, 4)
        newcomer = join()
        names_some(newcomer, members[0])
        linked(newcomer, *members)
        assert sum(member.mesh.counters.links_down for member in members) == 0

    def test_what_a_newcomer_says_before_it_knows_all_reaches_all(self, join: Join) -> None:
        members = whole(join, 4)
        newcomer = join()
        newcomer.say(10)
        names_some(newcomer, members[0])
        assert not newcomer.mesh.outboxes.awaits_roster
        newcomer.say(10)
        linked(newcomer, *members)
        newcomer.say(10)
        for member in members:
            member.hears(newcomer, 30)

    def test_behind_a_complete_roster_whoever_comes_is_new(self, join: Join) -> None:
        one, two = pair(join)
        one.say(5)
        third = join()
        third.names(one, two)
        linked(one, two, third)
        assert one.say() == 6
        eventually(lambda: third.numbers_from(one) == [6])

    def test_nothing_is_kept_for_long(self, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outboxes, "KEEP_SECONDS", 0.0)
        one, two = join(), join()
        one.say(5)
        names_some(one)
        one.names(two)
        linked(one, two)
        one.say()
        eventually(lambda: two.numbers_from(one) == [6])

    def test_who_is_forgotten_and_named_again_gets_nothing_twice(self, join: Join) -> None:
        one, two = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        names_some(one, two)
        one.say(5)
        linked(one, two)
        two.hears(one, 5)
        link = one.link(two)
        assert link is not None
        link.cut("a test")
        assert link.ended.wait(5)
        one.mesh._report(one.mesh.table.forget(two.uid))
        names_some(one, two)
        linked(one, two)
        one.say(1)
        two.hears(one, 6)

    def test_who_was_never_linked_gets_what_was_kept_when_it_is_named_again(self, join: Join) -> None:
        one, two = join(uid=uid_below(MIDDLE)), join(uid=MIDDLE)
        one.say(5)
        names_some(one)
        one.mesh._take_roster("young", {two.uid: NOBODY}, False)
        one.mesh._report(one.mesh.table.forget(two.uid))
        names_some(one, two)
        two.hears(one, 5)

    def test_a_split_view_heals(self, join: Join) -> None:
        left, right, both = [join(), join()], [join(), join()], join()
        for half in (left, right):
            for member in half:
                member.names(both, *half)
        both.names(*left, *right)
        linked(*left, *right, both)


class Insider(HandMade):
    """A peer that knows the token and says what it likes."""

    def tell(self, kind: MessageType, data: dict[str, Any]) -> None:
        self.session.append(encode(kind, PEER, "/", data))
        self.flush()

    def told(self, kind: MessageType) -> list[ClusterMessage]:
        return [event for event in self.events if isinstance(event, ClusterMessage) and event.type is kind]

    def heartbeat(self, **facts: Any) -> None:
        self.protocol._beat_at = 0.0
        self.protocol.tick(0.0, facts)
        self.flush()

    def of_status(self, name: str) -> Any:
        """What the node has said of itself in its first heartbeat."""
        return next(event.facts[name] for event in self.events if isinstance(event, Status))

    def waits_for(self, kind: MessageType) -> ClusterMessage:
        with gevent.Timeout(5):
            while not self.told(kind):
                assert self.step()
        return self.told(kind)[-1]


class TestInsiders:
    def test_who_was_not_asked_names_nobody(self, join: Join) -> None:
        node = join()
        insider = Insider(node).handshake()
        assert isinstance(insider, Insider)
        insider.tell(MessageType.NODES, gossip.nodes({MIDDLE: NOBODY}))
        insider.tell(MessageType.NODES_WANTED, gossip.nodes_wanted([]))
        # The answer comes behind what was not asked for.
        assert insider.waits_for(MessageType.NODES).data["nodes"] == {PEER: "ws://127.0.0.1:9"}
        assert [peer.uid for peer in node.mesh.peers] == [PEER]
        insider.transport.abort()

    def test_who_names_nobody_real_is_forgotten_and_bounded(self, join: Join) -> None:
        node = join(resume_window=1.0)
        insider = Insider(node).handshake()
        assert isinstance(insider, Insider)
        insider.heartbeat(nodes=b"another.")
        known = insider.waits_for(MessageType.NODES_WANTED).data["known"]
        assert known == bytes.fromhex(node.uid + PEER)
        assert insider.of_status("nodes") == gossip.digest([node.uid, PEER])
        many = {f"{number:016x}": NOBODY for number in range(1000, 1000 + gossip.MAX_NAMED)}
        insider.tell(MessageType.NODES, gossip.nodes(many))
        eventually(lambda: len(node.mesh.peers) == gossip.MAX_NAMED + 1)
        insider.tell(MessageType.NODES, gossip.nodes({MIDDLE: NOBODY}))
        eventually(lambda: len(node.mesh.peers) == 1, 10)
        insider.transport.abort()

    def test_nobody_waits_for_who_is_only_told_of(self, join: Join) -> None:
        node = join()
        insider = Insider(node).handshake()
        assert isinstance(insider, Insider)
        insider.heartbeat(nodes=b"another.")
        insider.waits_for(MessageType.NODES_WANTED)
        insider.tell(MessageType.NODES, gossip.nodes({MIDDLE: NOBODY}))
        eventually(lambda: node.mesh.table.get(MIDDLE))
        node.mesh.outboxes.publish([node.peer(MIDDLE)], b"kept for it")
        assert node.mesh.outboxes.flush(0.0)
        assert node.lapsed == []
        insider.transport.abort()

    def test_who_asks_again_and_again_is_answered_once(self, join: Join) -> None:
        node = join()
        insider = Insider(node).handshake()
        assert isinstance(insider, Insider)
        for _ in range(10):
            insider.tell(MessageType.NODES_WANTED, gossip.nodes_wanted([]))
        insider.session.append(numbered(PEER, 1))
        insider.flush()
        eventually(lambda: node.numbers_from(PEER) == [1])
        insider.waits_for(MessageType.NODES)
        assert node.peer(PEER).session.next_sequence == 2
        # Later it is again.
        node.peer(PEER).answered_at -= gossip.ASK_SECONDS
        insider.tell(MessageType.NODES_WANTED, gossip.nodes_wanted([]))
        eventually(lambda: node.peer(PEER).session.next_sequence == 3)
        insider.transport.abort()

    def test_an_emitter_takes_no_part(self, join: Join) -> None:
        node = join()
        insider = Insider(node, role=Role.EMITTER).handshake()
        assert isinstance(insider, Insider)
        insider.tell(MessageType.NODES_WANTED, gossip.nodes_wanted([]))
        eventually(lambda: node.mesh.counters.spoofed == 1)
        assert insider.told(MessageType.NODES) == []
        insider.transport.abort()

    @pytest.mark.parametrize("secret", [b"", b"of somebody else"])
    def test_whoever_knows_the_token_cannot_take_a_uid_without_its_boot_secret(self, join: Join, secret: bytes) -> None:
        node = join(tokens=("a" * 16,))
        honest = HandMade(node, tokens=("a" * 16,), secret=b"boot").handshake()
        eventually(lambda: node.link(PEER))
        link = node.link(PEER)
        with pytest.raises(HandshakeError) as caught:
            HandMade(node, tokens=("a" * 16,), secret=secret).until_closed()
        assert caught.value.code == Refusal.TAKEN
        assert node.link(PEER) is link
        assert node.mesh.counters.takeovers_refused == 1
        honest.session.detach()
        again = HandMade(node, tokens=("a" * 16,), secret=b"boot", session=honest.session).handshake()
        eventually(lambda: node.link(PEER) not in (None, link))
        honest.transport.abort()
        again.transport.abort()

    def test_a_dialer_takes_nobody_else_at_an_address_either(self, join: Join) -> None:
        one, two = pair(join)
        link = one.link(two)
        assert link is not None
        two.mesh._secret = b"another process."
        link.cut("a test")
        eventually(lambda: one.mesh.counters.takeovers_refused or two.mesh.counters.takeovers_refused)
        assert one.link(two) is None

    def test_a_pair_that_is_linked_again_shows_no_boot_key(self, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[int] = []

        def encode(frame: Frame) -> bytes:
            if isinstance(frame, (Auth, Welcome)):
                shown.append(len(frame.boot))
            return encode_frame(frame)

        monkeypatch.setattr(link_module, "encode_frame", encode)
        one, two = pair(join)
        keys = one.peer(two).boot_key, two.peer(one).boot_key
        link = one.link(two)
        assert link is not None
        link.cut("a test")
        eventually(lambda: one.link(two) not in (None, link))
        # Two raw keys, then nothing but proofs, which somebody else at a peer's address could do nothing with.
        assert shown[:2] == [16, 16]
        assert set(shown[2:]) == {32}
        assert (one.peer(two).boot_key, two.peer(one).boot_key) == keys
        assert all(len(key) == 16 for key in keys)
