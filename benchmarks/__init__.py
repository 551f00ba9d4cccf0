"""What gevent-mesh costs, next to the other ways. `make bench`, or `python -m benchmarks`.

Real server processes and real WebSocket clients in processes of their own, all on one machine and on loopback.

The modules: `measuring` what a measure is, and the one way in which all of them are taken; `measures/` the measures;
`contenders` who is compared across nodes; `server` and `client` the processes, `wire` what a client reads and counts;
`children` starting and ending processes; `report` the table and the JSON.
"""
