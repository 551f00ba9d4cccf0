"""What publishers leave for the network thread of an emitter."""

from __future__ import annotations

import threading

import pytest

from gevent_mesh.emitter.inbox import Inbox, Item, Mark
from tests.support import eventually


def item(number: int) -> Item:
    return Item(b"%d" % number, 10)


def drained(inbox: Inbox) -> list[int | None]:
    """The numbers of what is taken out; None for a mark."""
    return [None if isinstance(entry, Mark) else int(entry.packed) for entry in inbox.drain()]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def test_what_is_left_comes_out_in_order_with_the_marks_between(inbox: Inbox) -> None:
    inbox.leave(item(1))
    inbox.mark()
    inbox.leave(item(2))
    assert drained(inbox) == [1, None, 2]
    assert drained(inbox) == []


def test_it_is_not_empty_before_the_last_one_is_dealt_with(inbox: Inbox) -> None:
    inbox.leave(item(1))
    assert not inbox.is_empty
    for _ in inbox.drain():
        assert not inbox.is_empty
    assert inbox.is_empty


def test_its_size_is_right_again_when_it_is_empty(inbox: Inbox) -> None:
    for number in range(3):
        inbox.leave(item(number))
    assert inbox.size_bytes == 30
    # As two publishers do that add at the same moment.
    inbox.size_bytes = 17
    drained(inbox)
    assert inbox.size_bytes == 0


def test_what_comes_while_it_is_drained_comes_next_time(inbox: Inbox) -> None:
    inbox.leave(item(1))
    got = []
    for entry in inbox.drain():
        got.append(entry)
        inbox.leave(item(2))
    assert len(got) == 1
    assert drained(inbox) == [2]


def test_nothing_comes_out_behind_the_last_mark(inbox: Inbox) -> None:
    before, behind = item(1), item(2)
    inbox.leave(before)
    inbox.mark(is_last=True)
    inbox.leave(behind)
    assert len(inbox) == 1
    assert drained(inbox) == [1, None]
    assert drained(inbox) == []
    assert not inbox.take_back(before)
    assert inbox.take_back(behind)


def test_an_equal_message_of_somebody_else_is_not_taken_back(inbox: Inbox) -> None:
    one, other = item(1), item(1)
    inbox.leave(one)
    assert not inbox.take_back(other)
    assert drained(inbox) == [1]


def test_what_was_taken_back_meanwhile_is_no_error(inbox: Inbox) -> None:
    one, two = item(1), item(2)
    inbox.leave(one)
    inbox.leave(two)
    entries = inbox.drain()
    assert next(entries) is one
    assert inbox.take_back(two)
    assert list(entries) == []


def test_many_threads_lose_nothing_and_keep_their_order(inbox: Inbox) -> None:
    def leave(first: int) -> None:
        for number in range(first, first + 2000):
            inbox.leave(item(number))

    threads = [threading.Thread(target=leave, args=(10_000 * number,)) for number in range(1, 5)]
    got: list[int | None] = []
    for thread in threads:
        thread.start()

    def is_all_there() -> bool:
        got.extend(drained(inbox))
        return len(got) == 8000

    eventually(is_all_there)
    for number in range(1, 5):
        assert [one for one in got if one is not None and one // 10_000 == number] == list(
            range(10_000 * number, 10_000 * number + 2000)
        )
