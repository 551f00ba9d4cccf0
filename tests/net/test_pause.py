"""Giving way lets timers and sockets have their turn, which `gevent.sleep(0)` does not."""

from __future__ import annotations

import time
from time import monotonic

import gevent
from gevent import socket

from gevent_mesh.net.pause import Turns, give_way, in_slices
from tests.support import eventually


def work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_timer_that_is_due_runs_in_the_next_turn() -> None:
    rang: list[int] = []
    for round_ in range(50):
        timer = gevent.spawn_later(0.0005, rang.append, round_)
        gevent.sleep(0)
        work(0.002)
        # One turn finds the timer due and makes the greenlet ready, another one runs it at the latest.
        give_way()
        give_way()
        assert timer.dead
    assert rang == list(range(50))


def test_a_socket_is_served_while_somebody_works_in_slices() -> None:
    near, far = socket.socketpair()
    with near, far:

        def echo() -> None:
            while data := far.recv(100):
                far.sendall(data)

        echoing = gevent.spawn(echo)
        gevent.sleep(0)
        for _ in range(20):
            near.send(b"x")
            for _ in range(3):
                work(0.001)
                give_way()
            near.setblocking(False)
            assert near.recv(100) == b"x"
            near.setblocking(True)
        echoing.kill()


def test_work_on_many_items_gives_way() -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            give_way()

    ticking = gevent.spawn(tick)
    began = monotonic()
    # Work that takes a while, however fast the machine is.
    worked = [item for item in in_slices(range(1_000_000)) if monotonic() - began < 0.1 or item < 0]
    ticking.kill()
    assert worked
    assert ticks >= 5


def test_items_come_whole_and_in_order_in_the_hub_as_well() -> None:
    assert list(in_slices("abc")) == ["a", "b", "c"]
    came: list[int] = []
    timer = gevent.get_hub().loop.timer(0)
    timer.start(lambda: came.extend(in_slices(range(20_000))))
    eventually(lambda: len(came) == 20_000)
    timer.close()
    assert came == list(range(20_000))


def test_many_whose_sockets_end_at_once_let_timers_run_between_them() -> None:
    turns, done, ticks = Turns(), [], [0]
    pairs = [socket.socketpair() for _ in range(100)]

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks[0] += 1

    def one(number: int) -> None:
        pairs[number][0].recv(1)
        turns.take_turn()
        work(0.001)
        done.append(number)

    readers = [gevent.spawn(one, number) for number in range(100)]
    ticking = gevent.spawn(tick)
    gevent.sleep(0.01)
    for _, far in pairs:
        far.close()
    ticks[0] = 0
    gevent.joinall(readers, timeout=10)
    ticking.kill()
    assert sorted(done) == list(range(100))
    # Once for every slice of two milliseconds, unless the machine is busy.
    assert ticks[0] > 10
    for near, _ in pairs:
        near.close()


def test_who_waits_after_its_turn_holds_up_nobody() -> None:
    turns, done = Turns(), []

    def one(number: int) -> None:
        turns.take_turn()
        gevent.sleep(0 if number else 30)
        done.append(number)

    slow, *others = [gevent.spawn(one, number) for number in range(5)]
    gevent.joinall(others, timeout=5)
    assert done == [1, 2, 3, 4]
    slow.kill()
