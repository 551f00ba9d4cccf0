"""The command `gevent-mesh`. Each subcommand imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["main"]

DEFAULT_PORT = 5000


@click.group(
    name="gevent-mesh",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples:\n\n\b\n"
    "  gevent-mesh demo             a chat on three servers\n"
    "  gevent-mesh demo --check     prove that they share everything, and end\n"
    """  gevent-mesh emit news '{"id": 7}'     an event for the clients of all servers""",
)
@click.version_option(package_name="gevent-mesh", message="%(prog)s %(version)s")
def main() -> None:
    """Flask-SocketIO and python-socketio servers, joined into a mesh of direct WebSocket links."""


@main.command(
    epilog="Examples:\n\n\b\n"
    "  gevent-mesh demo --nodes 5 --port 8080     http://127.0.0.1:8080 to :8084\n"
    "  gevent-mesh demo --port 0                  on any free ports\n"
    "  gevent-mesh demo --check                   exits 0 when all is well, else 1",
)
@click.option("--nodes", type=click.IntRange(1, 16), default=3, show_default=True, help="How many chat servers.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    help="HTTP port of the first server, the others follow; 0 takes free ones.  "
    f"[default: {DEFAULT_PORT}, with --check: 0]",
)
@click.option("--check", is_flag=True, help="Without a browser: real clients try everything across servers.")
@click.pass_context
def demo(context: click.Context, nodes: int, port: int | None, check: bool) -> None:
    """Run a chat on several servers of this machine, with a discovery service of their own.

    Everything listens on 127.0.0.1 only, and ends with Ctrl-C.
    """
    if check and nodes < 2:
        raise click.UsageError("--check needs at least --nodes 2: it is about what happens between servers.")
    from .demo.commands import run_check, run_demo

    if check:
        context.exit(run_check(nodes, port or 0))
    context.exit(run_demo(nodes, DEFAULT_PORT if port is None else port))


@main.command(
    epilog="Examples:\n\n\b\n"
    """  gevent-mesh emit news '{"id": 7}' --room readers\n"""
    """  gevent-mesh emit chat '"hello"' 42            two arguments: a text and a number\n"""
    "  tail -f events.jsonl | gevent-mesh emit news -\n"
    "  tail -f app.log | gevent-mesh emit log --text -\n"
    "  gevent-mesh emit change -- -5                 what begins with a minus sign, behind --\n\n"
    "Exit code: 0 every server has it, 1 it could not be delivered in time, 2 it is not usable. A line that is not "
    "usable ends the command with 2, after what came before it has been delivered.",
)
@click.argument("event")
@click.argument("arguments", metavar="[JSON]...", nargs=-1)
@click.option("-r", "--room", "rooms", multiple=True, help="Only clients in this room, or in any of several.")
@click.option("--except", "exclude", metavar="ROOM", multiple=True, help="But not clients in this room; a sid is one.")
@click.option("-n", "--namespace", default="/", show_default=True, help="The Socket.IO namespace.")
@click.option(
    "--discovery",
    metavar="URL",
    help="The discovery service, ws(s)://HOST:PORT.  [default: MESH_DISCOVERY, else the servers of this host]",
)
@click.option("--channel", default="socketio", show_default=True, help="The servers' channel.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait at the end until every server has everything.",
)
@click.option("--text", "is_text", is_flag=True, help="Arguments and lines are text, not JSON.")
@click.pass_context
def emit(context: click.Context, /, event: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Emit EVENT to the clients of all servers.

    Each JSON is one argument of the event. - reads the standard input, and emits one event for each line of it.

    The servers' secret, if they have one, is taken from MESH_AUTH_TOKEN, and the files for TLS from MESH_TLS_CERT,
    MESH_TLS_KEY and MESH_TLS_CA.
    """
    from . import ConfigError
    from .shell import emit as run

    try:
        context.exit(run(event, arguments, **options))
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


if __name__ == "__main__":
    main()
