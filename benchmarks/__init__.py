"""What an event costs, next to python-socketio's own way over Redis. `make bench`, or `python -m benchmarks`.

Two server processes, the same but for their client manager, and one WebSocket client, a process of its own, connected
to the second. Events are emitted on the first. All on one machine and on loopback. The contenders alternate, each round
on fresh processes, and each round measures

- **latency**: events at an even pace, each carrying the time of its emission (the monotonic clock is one for all
  processes of a machine);
- **throughput**: events emitted in a loop that does nothing else. What counts is what the client has *received* in the
  steady part of that time. A loop that outruns the rest is no merit: what it leaves behind is waited for, and what
  never arrives is reported as lost;
- **CPU time per event**: user and system time of all processes, the client and the broker included, from the first
  event of the loop to the last one received.

The modules: `wire` what the client reads and counts, `client` and `server` the processes, `children` starting and
ending them, `contenders` who is compared, `measure` one round, `report` figures out of rounds.
"""
