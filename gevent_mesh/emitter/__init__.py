"""An emitter: a process that publishes and asks, and serves no clients.

The map, from the outside in::

    emitter.py    Emitter: what a manager publishes through; survives forks and restarts
    courier.py    Courier: one life of it, with a thread of its own; what is retained, and who waits
    inbox.py      Inbox: what publishers leave for that thread
    uplink.py     Uplink: the greenlets of that thread; the link to one node
    calls.py      callbacks of clients' acknowledgements
    questions.py  questions to the cluster, and their answers
    native.py     threads and locks of the operating system

Nothing here needs gevent in the application: publishers of any thread, greenlet, fork or signal handler only append to
a queue, without a lock. All network work is done by one background thread with an event loop of its own.
"""

from __future__ import annotations

from .emitter import Emitter
from .questions import EmitterQueries

__all__ = ["Emitter", "EmitterQueries"]
