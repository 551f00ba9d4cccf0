"""Questions: what an emitter asks the node that it is linked to, and the answers on their way back.

Rules:

- A question waits for a link, and for its turn: a node takes so many of one emitter at a time.
- When the link goes down, what changes nothing is asked again over the next one. What may have been done already is
  not: it ends with what has come.
- Whoever asks waits, and puts the answer together. The network thread only leaves pieces of it here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ..clients import Clients
from ..cluster.queries import MakeData, Queries, take_count
from ..cluster.requests import Request, Requests, Take
from ..cluster.results import ClientAnswers, NodeAnswers, Outcome
from ..errors import MessageError
from ..node import Node
from ..protocol import messages
from ..protocol.messages import MAX_QUESTION_SECONDS, ClusterMessage, MessageType
from ..protocol.relay import open_answer

__all__ = ["Asker", "EmitterQueries", "Question", "Questions"]

MAX_ASKED = 32
"""Questions that a node is asked at a time; it takes twice as many (`gevent_mesh.asking`)."""
ANSWER_SECONDS = 0.5
"""What is kept of the time for the answer's way back, at the most: the node waits for others no longer than that."""

_REPEATABLE = frozenset(
    {MessageType.FETCH_SOCKETS, MessageType.COUNT_SOCKETS, MessageType.LIST_ROOMS, MessageType.COUNT_SERVERS}
)
"""Questions that change nothing."""


class Question(Request):
    """One question of an emitter.

    Args:
        kind: what is asked.
        packed: the question as a whole cluster message.
        take: as of a `Request`; called by who waits, at the end.
        deadline: when it ends at the latest, monotonic.
        wait: waits until it is over, or its deadline.

    Attributes:
        is_sent: it is on its way to the node that is linked now.
        is_over: nothing more will come.
    """

    def __init__(
        self, kind: MessageType, packed: bytes, take: Take, deadline: float, wait: Callable[[Question], None]
    ) -> None:
        super().__init__((), (), take, deadline)
        self.is_sent = False
        self.is_over = False
        self._is_repeatable = kind in _REPEATABLE
        self._packed = packed
        self._wait = wait
        self._answers: list[ClusterMessage] = []
        self._told: tuple[list[str], int, int] | None = None

    # ------------------------------------------------------------------ the network thread

    def asked(self, now: float) -> dict[str, Any]:
        """The data of the ASK."""
        left = min(self.deadline - now, MAX_QUESTION_SECONDS)
        return messages.ask(self.id, left - min(ANSWER_SECONDS, left / 4), self._packed)

    def unlinked(self) -> None:
        """The link that it went over is down."""
        if not self._is_repeatable:
            self.is_over = True
            return
        # Under another id: what is still told of the former one must not mix with what comes now.
        self.id = secrets.token_hex(8)
        self.is_sent = False
        self._answers = []

    def replied(self, data: dict[str, Any]) -> None:
        """A piece of the answer.

        Raises:
            MessageError: it makes no sense; nothing else is waited for.
        """
        if "messages" in data:
            try:
                self._answers += map(open_answer, data["messages"])
            except MessageError:
                self.is_over = True
                raise
            return
        if "error" not in data:
            self._told = data["missing"], data["expected"], data["received"]
        self.is_over = True

    # ------------------------------------------------------------------ who asks

    @property
    def is_complete(self) -> bool:
        return self.is_over

    def wait(self) -> None:
        self._wait(self)
        # The network thread may go on with a list of its own: nothing of it is wanted any more.
        for message in list(self._answers):
            self._take(message.uid, message)
        if self._told is not None:
            missing, self.expected_nodes, _ = self._told
            self.missing = set(missing)

    def note(self, outcome: Outcome, expected: int, received: int) -> None:  # noqa: ARG002  # the node knows it
        if self._told is not None:
            outcome.note(*self._told)
            return
        # Nobody knows what is missing; something is.
        came = len(outcome) if isinstance(outcome, (NodeAnswers, ClientAnswers)) else 0
        outcome.note((), came + 1, came)


class Questions:
    """The open questions of one emitter. Callable from any thread."""

    def __init__(self) -> None:
        # No lock: a signal handler may ask while it interrupts somebody who does. Each step is one operation of the
        # dictionary, which Python does as a whole, and only the network thread goes through it (a copy).
        self._open: dict[str, Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, question: Question) -> None:
        """Ask this one from now on."""
        self._open[question.id] = question

    def remove(self, question: Question) -> None:
        """Nobody waits for this one any more."""
        self._open.pop(question.id, None)

    # ------------------------------------------------------------------ the network thread

    def ask(self, send: Callable[[dict[str, Any]], bool], now: float) -> None:
        """Put the questions whose turn it is.

        Args:
            send: sends the data of an ASK; returns False when there is no room for it now.
        """
        questions = list(self._open.values())
        asked = sum(question.is_sent for question in questions)
        for question in questions:
            if asked >= MAX_ASKED:
                return
            if question.is_sent or question.deadline <= now:
                continue
            if not send(question.asked(now)):
                return
            question.is_sent = True
            asked += 1

    def unlinked(self) -> None:
        """The link is down: what was asked over it is asked again, or is over."""
        for key, question in list(self._open.items()):
            if question.is_sent:
                # It gets another id, if it is asked again.
                question.unlinked()
                self._open.pop(key, None)
                if not question.is_over:
                    self._open[question.id] = question

    def replied(self, data: dict[str, Any]) -> None:
        """The node answers.

        Raises:
            MessageError: what it says makes no sense.
        """
        question = self._open.get(data["requestId"])
        if question is None:
            return
        try:
            question.replied(data)
        finally:
            if question.is_over:
                self.remove(question)

    def sweep(self, now: float) -> None:
        """Free what nobody waits for, because it was interrupted."""
        for key, question in list(self._open.items()):
            if now >= question.deadline:
                self._open.pop(key, None)


class Asker(Protocol):
    """Puts questions: an `Emitter`."""

    def ask(self, kind: MessageType, namespace: str, make_data: MakeData, take: Take, timeout: float) -> Question:
        """As `Queries.ask`."""


class EmitterQueries(Queries):
    """The questions of a process that serves no clients: the node that it is linked to asks for it."""

    def __init__(self, asker: Asker, node: Node, clients: Clients, requests: Requests, logger: Any) -> None:
        super().__init__(node, clients, requests, logger)
        self._asker = asker

    def ask(
        self,
        kind: MessageType,
        namespace: str,
        make_data: MakeData,
        take: Callable[[str, ClusterMessage], bool],
        timeout: float,
    ) -> Question:
        """Ask the node that is linked, now or within the timeout. Never waits.

        Raises:
            PayloadError: the question cannot be sent.
            EmitterError: this emitter is closed.
        """
        return self._asker.ask(kind, namespace, make_data, take, timeout)

    def count_servers(self, namespace: str, timeout: float) -> int:
        counts: list[int] = []
        take = partial(take_count, counts)
        self._requests.wait(self.ask(MessageType.COUNT_SERVERS, namespace, messages.count_servers, take, timeout))
        return sum(counts)
