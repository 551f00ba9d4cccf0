"""What python-engineio starts for each client: the same happens, and nothing is left of a client that has gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from engineio.socket import Socket
from greenlet import greenlet

from tests.support import eventually
from tests.test_fanout import HANDLERS, Browser, Served


@pytest.fixture(params=HANDLERS)
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def serve(**options: Any) -> Served:
        made.append(Served(request.param, **options))
        return made[-1]

    yield serve
    for served in made:
        served.stop()


def pings(browser: Browser) -> int:
    return sum(payload == b"2" for _, payload in browser.others)


def test_clients_are_pinged_again_once_they_have_answered(serve: Callable[..., Served]) -> None:
    served = serve(ping_interval=0.05, ping_timeout=5)
    browser = served.browser().read_on()
    eventually(lambda: pings(browser) == 1)
    gevent.sleep(0.2)  # four intervals in which none is to come
    assert pings(browser) == 1
    browser.send(b"3")
    eventually(lambda: pings(browser) == 2)


def test_a_client_that_answers_no_ping_is_disconnected(serve: Callable[..., Served]) -> None:
    served = serve(ping_interval=0.05, ping_timeout=0.1)
    served.browser()
    eventually(lambda: not served.sio.eio.sockets)


def test_a_client_that_answers_its_pings_stays(serve: Callable[..., Served]) -> None:
    """The older python-engineio notes only when it sends the next one that the last one was answered."""
    served = serve(ping_interval=0.3, ping_timeout=0.1)
    browser = served.browser().read_on()
    for count in range(1, 5):
        eventually(lambda count=count: pings(browser) == count)  # type: ignore[misc]  # bound now
        browser.send(b"3")
        gevent.sleep(0.2)  # longer than the timeout: what is sent now looks at when the last ping was
        served.tick()
    assert served.sio.eio.sockets
    eventually(lambda: browser.numbers == [1, 2, 3, 4])


def test_an_application_may_send_pings_in_its_own_way(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Socket, "_send_ping", lambda session: asked.append(session.sid))
    served = serve()
    served.browser()
    eventually(lambda: asked == list(served.sio.eio.sockets))


def test_what_is_left_of_a_client_needs_no_garbage_collector(serve: Callable[..., Served]) -> None:
    served = serve()
    served.browser().sock.close()
    eventually(lambda: not served.sio.eio.sockets)
    browser = served.browser()
    (session,) = served.sio.eio.sockets.values()
    left = weakref.ref(session), weakref.ref(session.queue.connections[0])
    del session
    gc.collect()
    gc.disable()
    try:
        browser.sock.close()
        eventually(lambda: [one() for one in left] == [None, None])
    finally:
        gc.enable()


def test_an_idle_client_has_no_greenlet_that_only_sleeps(serve: Callable[..., Served]) -> None:
    served = serve()

    def running() -> int:
        # One that a timer is about to start has no stack yet.
        return sum(isinstance(one, greenlet) and one.gr_frame is not None for one in gc.get_objects())

    served.browser()
    before = running()
    for _ in range(10):
        served.browser()
    per_client = (running() - before) / 10
    # A reader and a writer; simple-websocket has one that reads for another.
    assert per_client <= (2 if served.handler == "gevent-websocket" else 3)
