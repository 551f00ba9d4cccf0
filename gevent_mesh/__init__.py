"""Scale Flask-SocketIO and python-socketio over processes and hosts, without a broker.

The map, from the outside in; imports point downwards only::

    manager.py      GeventMeshManager: the seam to python-socketio
    node.py         this process as a member of the mesh; service.py: a part of it
    emitter/        the same for a process that serves no clients; relay.py, asking.py: what a node does for it
    cluster/        questions to all nodes and their answers
    presence.py     who is online, on all nodes
    interest.py     which rooms have members on which node
    health.py       whether this node hears the others
    commands.py     what other nodes have our clients do
    clients.py      this node's own clients
    fanout.py       delivery to them; outlets.py: straight to their sockets
    connections.py  their WebSockets; tasks.py: their greenlets; stock.py: what is python-engineio's own
    limits.py       what a client may cost; websocket.py: its WebSocket; handler.py, gunicorn.py: for whole servers
    packets.py      events as Socket.IO packets
    routing.py      which peers need a message
    startup.py      joins when the process begins to serve; forks
    net/            greenlets and sockets: mesh, link, listener, dialer, client of discovery
    tls.py          certificates, and whom they are for
    protocol/       the rules, without input or output
    errors.py       everything that is raised on purpose

The path of one event: ``sio.emit`` -> `GeventMeshManager.emit` encodes the packet once -> `routing` names the peers ->
`Outboxes.publish` appends one shared bytes object to each peer's `Session` -> `Fanout` hands it to local clients ->
each `Link`'s writer sends all that waits as one BATCH. At the peer: the reader feeds `LinkProtocol.receive`, which
drops repeats and checks shapes -> `Commands` hands the encoded packet to `Fanout`, untouched.
"""

from __future__ import annotations

from .cluster.results import (
    ClientAnswers,
    ClientCount,
    Handshake,
    NodeAnswers,
    Outcome,
    RemoteSocket,
    RoomCounts,
    SocketList,
)
from .errors import (
    ConfigError,
    EmitterError,
    MeshError,
    PayloadError,
    PayloadTooLarge,
    StartError,
)
from .health import Health, HealthApp
from .manager import GeventMeshManager
from .net.mesh import PeerInfo
from .presence import Presence, PresentClient, PresentUser

__all__ = [
    "ClientAnswers",
    "ClientCount",
    "ConfigError",
    "EmitterError",
    "GeventMeshManager",
    "Handshake",
    "Health",
    "HealthApp",
    "MeshError",
    "NodeAnswers",
    "Outcome",
    "PayloadError",
    "PayloadTooLarge",
    "PeerInfo",
    "Presence",
    "PresentClient",
    "PresentUser",
    "RemoteSocket",
    "RoomCounts",
    "SocketList",
    "StartError",
    "__version__",
]

__version__ = "0.1.0"
