"""One life of an emitter: its uid, what it retains, and the thread that carries it to a node.

Rules:

- Publishers leave messages in the inbox, and read figures and flags; all else belongs to the thread. They hold no lock:
  a signal handler may emit, flush and close, whatever it has interrupted.
- What `publish` has returned for is retained until a relay says that it is everywhere, or the process ends.
- The thread belongs to this process. A forked child gives up its copies of the connections, and this object with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from ..cluster.requests import Take
from ..config import MeshConfig
from ..errors import EmitterError, MessageError, PayloadTooLarge
from ..net.mesh import PeerInfo
from ..protocol import messages
from ..protocol.messages import MessageType
from ..protocol.relay import Retained
from .calls import Calls
from .inbox import Inbox, Item, Mark
from .native import may_wait, native_sleep, pause, start_thread
from .questions import Question, Questions
from .uplink import Uplink

__all__ = ["Courier"]

POLL_SECONDS = 0.005
"""How often a publisher looks for room, and a flush for the end."""
FULL_SECONDS = 5.0
"""How long `publish` waits for room."""
SWEEP_SECONDS = 1.0
STOP_SECONDS = 3.0
"""How long the thread may take to say goodbye."""
BEGIN_SECONDS = 0.25
"""How long the first use waits for the thread to have started threads of its own; it takes about a millisecond."""
RESOLVERS = 4
"""Threads that look up host names, at most: for discovery servers at the same time, and for a node."""
ENVELOPE_BYTES = 128
"""What a relay adds to a message."""


class Courier:
    """Carries what is published. All methods may be called from any thread or greenlet, but for the private ones.

    Args:
        config: valid options.
        uid: new with each courier.
        logger: where to report.
    """

    def __init__(self, config: MeshConfig, uid: str, logger: logging.Logger) -> None:
        self.uid = uid
        self.calls = Calls(config.callback_timeout)
        self.questions = Questions()
        self._config = config
        self._logger = logger
        self._inbox = Inbox()
        self._retained = Retained(config.outbox_bytes)
        self._uplink = Uplink(config, uid, store=self, logger=logger)
        self._waker: Any = None
        # Whoever takes it starts the thread.
        self._unstarted = [True]
        self._is_closed = False
        self._has_threads = False
        self._must_stop = False
        self._has_ended = False

    def start(self) -> None:
        """Start the thread, if nobody has."""
        if self._unstarted and self._is_first():
            start_thread(self._main)

    def _is_first(self) -> bool:
        try:
            return self._unstarted.pop()
        except IndexError:
            return False

    def wait_for_threads(self) -> None:
        """Wait, for a moment at most, until the thread has all threads that it needs.

        A program that is at its end cannot start any (from Python 3.12 on), and may be so as soon as this returns.
        """
        ends_at = monotonic() + BEGIN_SECONDS
        while not self._has_threads and not self._has_ended and monotonic() < ends_at:
            native_sleep(0.0005)

    # ------------------------------------------------------------------ publishing (any thread)

    def publish(self, packed: bytes) -> None:
        """Take a message: it will be everywhere, once, unless this process ends before a node has it.

        Args:
            packed: a whole cluster message of ours.

        Raises:
            PayloadTooLarge: no node would take it.
            EmitterError: no node takes anything, and there is no more room here; or the emitter is closed.
        """
        size = self._sized(packed)
        if self._leave(packed, size):
            return
        if self._wait_until(lambda: self._leave(packed, size), FULL_SECONDS, pause):
            return
        raise EmitterError(
            f"{self._count()} messages wait, and no node takes them ({self.trouble}); nobody gets this one"
        )

    def _sized(self, packed: bytes) -> int:
        size = len(packed) + ENVELOPE_BYTES
        if size > self._config.outbox_bytes:
            raise PayloadTooLarge(size, self._config.outbox_bytes)
        return size

    def _leave(self, packed: bytes, size: int) -> bool:
        self._check_open()
        if not self._retained.fits(size, self._inbox.size_bytes):
            return False
        item = Item(packed, size)
        self._inbox.leave(item)
        if self._is_closed and self._inbox.take_back(item):
            # It came behind the last mark, or would have been the last before it.
            self._check_open()
        self._wake()
        return True

    def _check_open(self) -> None:
        if self._is_closed:
            raise EmitterError("this emitter is closed; nobody gets the message, or is asked")

    def _count(self) -> int:
        """How many messages are not known to be everywhere."""
        return len(self._retained) + len(self._inbox)

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            with suppress(ValueError, TypeError):  # its loop is gone
                waker.send()

    def question(self, kind: MessageType, packed: bytes, take: Take, timeout: float) -> Question:
        """Ask the node that is linked, now or within the timeout.

        Args:
            packed: the question as a whole cluster message of ours.

        Raises:
            PayloadTooLarge: no node would take it.
            EmitterError: the emitter is closed.
        """
        self._sized(packed)
        question = Question(kind, packed, take, monotonic() + timeout, self._wait_for)
        self._check_open()
        self.questions.add(question)
        self._wake()
        return question

    def _wait_for(self, question: Question) -> None:
        try:
            left = question.deadline - monotonic()
            self._wait_until(lambda: question.is_over or self._has_ended, left, pause)
        finally:
            self.questions.remove(question)

    def flush(self, timeout: float, wait: Callable[[float], None] = pause) -> bool:
        """Wait until every node has what was published.

        Args:
            timeout: seconds.
            wait: waits for so many seconds.

        Returns:
            Whether that is so.
        """
        # In this order: what is not in the inbox any more is retained, if it is not everywhere.
        if self._inbox.is_empty and self._retained.is_empty:
            return True
        return self._wait_for_all_before(self._inbox.mark(), timeout, wait)

    def _wait_for_all_before(self, mark: Mark, timeout: float, wait: Callable[[float], None]) -> bool:
        self._wake()
        return self._wait_until(lambda: self._is_everywhere(mark), timeout, wait)

    def _is_everywhere(self, mark: Mark) -> bool:
        return mark.number is not None and self._retained.first_number >= mark.number

    def _wait_until(self, is_so: Callable[[], bool], timeout: float | None, wait: Callable[[float], None]) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while not is_so():
            if not may_wait() or (deadline is not None and monotonic() >= deadline):
                return False
            wait(POLL_SECONDS)
        return True

    def wait_for_node(self, timeout: float | None) -> bool:
        """Wait for the link to a node; without end if `timeout` is None."""
        return self._wait_until(lambda: self._uplink.link is not None, timeout, pause)

    @property
    def node(self) -> PeerInfo | None:
        """The node that it is linked to."""
        link = self._uplink.link
        peer = None if link is None else link.peer
        if link is None or peer is None:
            return None
        return PeerInfo(peer.uid, peer.member.address, peer.member.state.value, link.protocol.round_trip_seconds, None)

    @property
    def trouble(self) -> str:
        """Why nothing can be sent now, for people."""
        return self._uplink.trouble or "the node that it is linked to is not done with them"

    # ------------------------------------------------------------------ the end

    def close(self, timeout: float, wait: Callable[[float], None] = pause) -> tuple[int, str]:
        """Take no more, wait until every node has what was published, and end the thread.

        Args:
            timeout: seconds to wait for nodes; the end itself may take `STOP_SECONDS` more.
            wait: waits for so many seconds.

        Returns:
            How many messages are not known to be everywhere, and why.
        """
        self._is_closed = True
        is_done = self._wait_for_all_before(self._inbox.mark(is_last=True), timeout, wait)
        lost, trouble = 0 if is_done else self._count(), self.trouble
        self._must_stop = True
        self._has_ended = self._has_ended or self._is_first()
        self._wake()
        self._wait_until(lambda: self._has_ended, STOP_SECONDS, wait)
        return lost, trouble

    def forget(self) -> None:
        """In a forked child: give up the copies of the parent's connections, without a word to anybody.

        The thread is not there, and its event loop stays as the fork found it. Nothing of it may be touched, or freed.
        """
        _left_behind.append(self)
        # For greenlets of the parent that wait for answers: a fork has copies of them.
        self._has_ended = True
        for transport in self._uplink.transports():
            transport.drop_copy()

    # ------------------------------------------------------------------ the thread

    def _main(self) -> None:
        try:
            self._work()
        except Exception:  # the top of a thread
            self._logger.exception("the thread of emitter %s failed because of an error of ours", self.uid)
        finally:
            self._is_closed = True
            self._has_ended = True

    def _work(self) -> None:
        hub = gevent.get_hub()
        self._start_resolvers(hub.threadpool)
        must_stop = Event()
        waker = hub.loop.async_()
        try:
            waker.start(self._woken, must_stop)
            self._waker = waker
            # For whatever came before there was a waker.
            waker.send()
            self._uplink.start()
            gevent.spawn(self._sweep)
            must_stop.wait()
            self._uplink.stop()
        finally:
            self._waker = None
            waker.close()
            hub.destroy(destroy_loop=True)

    def _start_resolvers(self, pool: Any) -> None:
        """Start the threads in which host names are looked up."""
        try:
            pool.size = min(RESOLVERS, pool.maxsize, 1 + len(self._config.discovery))
        except RuntimeError as exc:
            # Addresses in digits need none.
            self._logger.warning("no threads to look up host names: %s", exc)
        self._has_threads = True

    def _woken(self, must_stop: Event) -> None:
        # Runs in the hub: must not wait.
        self._take_in()
        self._uplink.pump()
        if self._must_stop:
            must_stop.set()

    def _sweep(self) -> None:
        while True:
            gevent.sleep(SWEEP_SECONDS)
            self.calls.sweep(monotonic())
            self.questions.sweep(monotonic())
            # A publisher may have been interrupted between leaving a message and saying so.
            self._take_in()
            self._uplink.pump()

    def _take_in(self) -> None:
        """Number what publishers have left."""
        for entry in self._inbox.drain():
            if isinstance(entry, Mark):
                entry.number = self._retained.next_number
            else:
                data = messages.publish(self._retained.next_number, entry.packed)
                self._retained.append(messages.encode_anywhere(MessageType.PUBLISH, self.uid, "/", data))

    # ------------------------------------------------------------------ what the uplink asks for (Store)

    def rewind(self) -> None:
        self._retained.rewind()

    def take(self) -> list[bytes]:
        self._take_in()
        return self._retained.take()

    def relayed(self, upto: int) -> None:
        self._retained.relayed(upto)

    def told(self, data: dict[str, Any]) -> None:
        if data.get("done"):
            self.calls.ended(data["requestId"])
        else:
            self.calls.answered(data["requestId"], data["number"], data["args"])

    def ask(self, send: Callable[[dict[str, Any]], bool]) -> None:
        self.questions.ask(send, monotonic())

    def replied(self, data: dict[str, Any]) -> None:
        if "error" in data:
            self._logger.warning("a question has no answer: %s", data["error"])
        try:
            self.questions.replied(data)
        except MessageError as exc:
            self._logger.warning("an answer makes no sense: %s", exc)

    def unlinked(self) -> None:
        self.questions.unlinked()


_left_behind: list[Courier] = []
"""The couriers of the processes that this one was forked from."""
