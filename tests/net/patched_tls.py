"""A patched process that dials itself over TLS, with contexts of the `ssl` module and with files."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import ssl
import sys
from pathlib import Path

from gevent_mesh.net.dialer import dial
from gevent_mesh.net.listener import Listener, StrangerTicket
from gevent_mesh.net.transport import Transport
from gevent_mesh.tls import Tls


def echo(transport: Transport, _ticket: StrangerTicket) -> None:
    transport.send(transport.recv())


def talk(tls: Tls) -> None:
    listener = Listener("127.0.0.1", 0, on_websocket=echo, require_mesh_header=True, tls=tls)
    listener.start()
    transport = dial(f"wss://127.0.0.1:{listener.port}", tls=tls)
    transport.send(b"hello")
    print(transport.recv(), flush=True)
    transport.abort()
    listener.stop()


def main() -> None:
    certificate, key, ca = (str(Path(sys.argv[1], name)) for name in ("cert.pem", "key.pem", "ca.pem"))
    talk(Tls.from_files(certificate, key, ca))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=ca)
    for context in (server, client):
        context.load_cert_chain(certificate, key)
    talk(Tls.from_options(server, client, None, {}, listens=True))


if __name__ == "__main__":
    main()
