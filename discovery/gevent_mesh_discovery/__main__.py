"""The command ``gevent-mesh-discovery``: options from the command line or the environment, signals, exit codes.

Rules:

- 0 after SIGTERM or SIGINT; 2, with one line on stderr, when an option is wrong or a port cannot be had.
- One line on stdout, flushed, once it serves. Logs go to stderr. A token is never printed.
"""

from __future__ import annotations

import logging
import signal
import sys

import click
from gevent import signal_handler
from gevent.event import Event

from gevent_mesh.errors import ConfigError, StartError
from gevent_mesh.net.listener import Listener
from gevent_mesh.protocol.tokens import check_tokens, default_host
from gevent_mesh.tls import Tls

from .app import DiscoveryServer

__all__ = ["main"]


def _tokens(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return check_tokens([token.strip() for token in (value or "").split(",") if token.strip()])


@click.command(name="gevent-mesh-discovery", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", envvar="HOST", help="Address to bind. Default: 127.0.0.1; with a token 0.0.0.0.")
@click.option(
    "--port", envvar="PORT", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--token",
    "tokens",
    envvar="MESH_AUTH_TOKEN",
    callback=_tokens,
    help="Shared secret of 16 characters or more; several with commas while it is being changed. "
    "The environment variable keeps it out of the list of processes.",
)
@click.option(
    "--allow-anonymous",
    envvar="MESH_ALLOW_ANONYMOUS",
    is_flag=True,
    help="Serve other machines without a token.",
)
@click.option("--metrics-port", envvar="METRICS_PORT", type=click.IntRange(0, 65535), help="Serve Prometheus figures.")
@click.option("--metrics-host", envvar="METRICS_HOST", default="127.0.0.1", show_default=True)
@click.option("--tls-cert", envvar="MESH_TLS_CERT", help="Serve TLS (wss://, https://) with this certificate (PEM).")
@click.option("--tls-key", envvar="MESH_TLS_KEY", help="Its private key (PEM).")
@click.option(
    "--tls-ca", envvar="MESH_TLS_CA", help="Nodes have to show a certificate that is signed by this CA (PEM)."
)
@click.option(
    "--tls-name",
    envvar="MESH_TLS_NAME",
    default="",
    help="What the certificate of every node is for, instead of the host of its address.",
)
@click.option(
    "--log-level",
    envvar="LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
)
def command(
    host: str | None,
    port: int,
    tokens: tuple[str, ...],
    allow_anonymous: bool,
    metrics_port: int | None,
    metrics_host: str,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    tls_name: str,
    log_level: str,
) -> None:
    """Tell the nodes of a mesh of each other.

    Every option is also an environment variable: HOST, PORT, MESH_AUTH_TOKEN, MESH_ALLOW_ANONYMOUS, METRICS_PORT,
    METRICS_HOST, MESH_TLS_CERT, MESH_TLS_KEY, MESH_TLS_CA, MESH_TLS_NAME, LOG_LEVEL.
    """
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    tls = Tls.from_files(tls_cert, tls_key, tls_ca, name=tls_name)
    server = DiscoveryServer(
        host or default_host(tokens), port, tokens=tokens, allow_anonymous=allow_anonymous, tls=tls
    )
    metrics = None if metrics_port is None else _metrics(server, metrics_host, metrics_port)
    _serve(server, metrics, "token required" if tokens else "no token")


def _metrics(server: DiscoveryServer, host: str, port: int) -> Listener:
    # Only here: whoever does not want metrics does not load prometheus-client.
    from .metrics import metrics_listener

    return metrics_listener(server, host, port)


def _serve(server: DiscoveryServer, metrics: Listener | None, tokens: str) -> None:
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal_handler(number, stopping.set)
    server.start()
    try:
        if metrics is not None:
            metrics.start()
        print(f"gevent-mesh-discovery listening on {server.url} ({tokens})", flush=True)
        if metrics is not None:
            scheme = "https" if server.tls.listens else "http"
            print(f"metrics on {scheme}://{metrics.host}:{metrics.port}/metrics", flush=True)
        stopping.wait()
    finally:
        if metrics is not None:
            metrics.stop()
        server.stop()


def main() -> None:
    """Entry point of the console script."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ConfigError, StartError) as error:
        _fail(str(error))
    except click.Abort:
        sys.exit(130)


def _fail(text: str) -> None:
    print(f"gevent-mesh-discovery: {' '.join(text.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
