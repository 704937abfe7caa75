"""The `offload` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hsm import logs
from offload import __version__
from offload.errors import ConfigurationError

app = typer.Typer(
    help="A TLS-terminating reverse proxy whose private keys live in HSMs.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print versions.")] = False) -> None:
    if version:
        from offload.tls import library_info

        print(f"offload {__version__}, {library_info()}")
        raise typer.Exit


def fail(error: ConfigurationError) -> typer.Exit:
    """Print an operator's mistake, one line each, and end with exit code 2."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return typer.Exit(2)


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="Configuration file (YAML).")],
) -> None:
    """Run the proxy until SIGTERM."""
    import uvloop

    from offload import config as configuration
    from offload.supervisor import Supervisor

    log = logs.configure("supervisor")

    async def run() -> None:
        await Supervisor(configuration.load(config), log).run()

    try:
        uvloop.run(run())
    except ConfigurationError as error:
        raise fail(error) from error


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port for TLS on 127.0.0.1.", min=1, max=65535)] = 8443,
    admin_port: Annotated[int, typer.Option(help="Port for metrics.", min=1, max=65535)] = 9443,
    directory: Annotated[Path | None, typer.Option(help="Keep state here; else a temporary one.")] = None,
) -> None:
    """Show it all on this machine: key, certificate, two nodes, a page, the proxy."""
    from offload.demo import run_demo

    try:
        run_demo(port, admin_port, directory)
    except ConfigurationError as error:
        raise fail(error) from error


if __name__ == "__main__":
    app()
