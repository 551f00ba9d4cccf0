"""The command `gevent-mesh`. Each subcommand imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import click

__all__ = ["main"]

DEFAULT_PORT = 5000


@click.group(
    name="gevent-mesh",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples:\n\n\b\n"
    "  gevent-mesh demo             a chat on three servers\n"
    "  gevent-mesh demo --check     prove that they share everything, and end",
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


if __name__ == "__main__":
    main()
