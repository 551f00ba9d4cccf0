"""The checker itself: what it must notice, or every test that trusts it is worth nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.checker import Account, SessionAccount, Stream, violations


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 30), st.integers(0, 40))
def test_a_stream_counts_as_a_set_of_all_numbers_would(numbers: list[int], first: int, last: int) -> None:
    stream = Stream()
    seen: list[int] = []
    late = 0
    for number in numbers:
        late += number not in seen and number < max(seen, default=0)
        seen.append(number)
        stream.take(number)
    assert (stream.received, stream.highest) == (len(set(seen)), max(seen, default=0))
    assert (stream.late, stream.doubled) == (late, len(seen) - len(set(seen)))
    assert stream.missing(first, last) == sum(number not in seen for number in range(first, last + 1))


def two() -> tuple[Account, Account]:
    """Two nodes that have sent each other ten events and lost two of them."""

    def account(uid: str, other: str) -> Account:
        heard = Stream()
        for number in (1, 2, 3, 4, 7, 8, 9, 10):
            heard.take(number)
        session = SessionAccount(sent=11, waiting=0, sent_lost=2, received_lost=2, handed_on=9, links=1)
        return Account(uid, f"boot of {uid}", 10, {other: 1}, {f"boot of {other}": heard}, {other: session})

    return account("a", "b"), account("b", "a")


def test_what_is_as_promised_is_no_violation() -> None:
    assert violations(two()) == []
    assert violations([Account.read(account.told()) for account in two()]) == []


def doubled(account: Account) -> None:
    account.heard["boot of b"].take(10)


def late(account: Account) -> None:
    account.heard["boot of b"].take(5)


def two_links(account: Account) -> None:
    account.sessions["b"].links = 2


def no_link(account: Account) -> None:
    account.sessions["b"].links = 0


def unknown(account: Account) -> None:
    del account.sessions["b"]


def waiting(account: Account) -> None:
    account.sessions["b"].waiting = 1


def lost_and_not_declared(account: Account) -> None:
    account.sessions["b"].handed_on -= 1


def other_figures(account: Account) -> None:
    account.sessions["b"].sent_lost += 1


def more_missing_than_declared(account: Account) -> None:
    account.heard["boot of b"].holes.append([1, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        doubled,
        late,
        two_links,
        no_link,
        unknown,
        waiting,
        lost_and_not_declared,
        other_figures,
        more_missing_than_declared,
    ],
)
def test_every_broken_promise_is_noticed(wrong: Callable[[Account], None]) -> None:
    account, other = two()
    wrong(account)
    assert violations([account, other])


def test_what_was_emitted_before_a_peer_was_known_is_not_missing() -> None:
    account, other = two()
    other.owed["a"] = 5
    other.sessions["a"].sent -= 4
    account.sessions["b"].handed_on -= 4
    account.heard["boot of b"] = Stream()
    for number in range(7, 11):
        account.heard["boot of b"].take(number)
    assert violations([account, other]) == []
