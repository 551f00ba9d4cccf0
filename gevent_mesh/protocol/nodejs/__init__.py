"""Everything that is particular to Node.js servers with ``socket.io-mesh-adapter`` 2.x.

Their protocol has no proof, no numbers, no acknowledgement and no BYE, so a link to such a *Node peer* promises less
than one between our own nodes. The rest of the library meets it in four places: the mesh picks the protocol of a link,
the client of discovery speaks the Node package's dialect, `Peer.is_nodejs` says who is one, and what is answered to one
is a single message.
"""

from __future__ import annotations

from .answers import as_answer
from .discovery import read_update, register
from .link import HELLO_SECONDS, NodejsLinkProtocol
from .messages import ReadPacket, Translator, fetched_sockets, read_message, repack_socket
from .values import NOBODY, date_text, from_node, to_node

__all__ = [
    "HELLO_SECONDS",
    "NOBODY",
    "NodejsLinkProtocol",
    "ReadPacket",
    "Translator",
    "as_answer",
    "date_text",
    "fetched_sockets",
    "from_node",
    "read_message",
    "read_update",
    "register",
    "repack_socket",
    "to_node",
]
