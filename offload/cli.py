"""The `offload` command."""

from __future__ import annotations

import signal
import sys

if sys.argv[0].rpartition("/")[2] in ("offload", "cli.py"):
    # The rest takes a moment to import: Ctrl-C meanwhile ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm.start import importing
from hsm.terminal import fail
from hsm.terminal import run as run_command
from offload import __version__
from offload.errors import TLS_LIBRARY, ConfigurationError

app = typer.Typer(
    help="A TLS-terminating reverse proxy whose private keys live in HSMs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file (YAML).")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print versions.")] = False) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if version:
        from offload.tls import library_info

        print(f"offload {__version__}, {library_info()}")
        raise typer.Exit


@app.command()
def serve(config: ConfigFile) -> None:
    """Run the proxy until SIGTERM."""
    with importing():
        import uvloop

        from hsm import logs
        from offload.config import load
        from offload.succession import predecessor

    log = logs.configure("supervisor")

    async def run() -> None:
        async with predecessor() as before:
            with importing():
                from offload.supervisor import Supervisor

            settings = load(config)
            logs.set_form(settings.log.format)
            await Supervisor(settings, config, log, before).run()

    try:
        uvloop.run(run())
    except ConfigurationError as error:
        raise fail(error) from error


@app.command()
def check(
    config: ConfigFile,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also have every node make a signature with every key.")
    ] = False,
) -> None:
    """Find everything that is wrong with a configuration. Exit code 0 or 2."""
    from offload.check import check_file

    raise typer.Exit(check_file(config, connect=connect))


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors."""
    from offload.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def status(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the state of the running proxy."""
    found = _command(config, "status")["status"]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from offload.show import show_status

    show_status(found)


@app.command()
def reload(config: ConfigFile) -> None:
    """Have the running proxy take over what has changed. Exit code 2, and no change, if anything is wrong."""
    from offload.commands import RELOAD_TIMEOUT

    print(_command(config, "reload", within=RELOAD_TIMEOUT)["said"])


@app.command()
def upgrade(
    config: ConfigFile,
    program: Annotated[
        Path | None, typer.Option("--exec", help="The `offload` of another installation; else the same one.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the new process must be ready.")] = 60,
) -> None:
    """Have a new process take over from the running proxy. Exit code 2, and the old one goes on, if it can't."""
    from offload.commands import UPGRADE_SLACK

    found = None if program is None else str(program.absolute())
    print(_command(config, "upgrade", within=timeout + UPGRADE_SLACK, program=found, timeout=timeout)["said"])


@app.command()
def drain(config: ConfigFile) -> None:
    """Have the running proxy finish what is open, and end."""
    print(_command(config, "drain")["said"])


node = typer.Typer(help="Take a node out of use, or back.", no_args_is_help=True)
app.add_typer(node, name="node")


@node.command()
def disable(name: str, config: ConfigFile) -> None:
    """Send no more requests to a node."""
    print(_command(config, "node", name=name, enabled=False)["said"])


@node.command()
def enable(name: str, config: ConfigFile) -> None:
    """Send requests to a node again."""
    print(_command(config, "node", name=name, enabled=True)["said"])


@app.command()
def log_level(level: str, config: ConfigFile) -> None:
    """Set the log level: debug, info, warning or error."""
    print(_command(config, "log_level", level=level)["said"])


def _command(config: Path, operation: str, **arguments: Any) -> dict[str, Any]:
    from offload import commands, runtime

    try:
        path = runtime.find_directory(config) / runtime.CONTROL_SOCKET
        return asyncio.run(commands.command(path, operation, **arguments))
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


def main() -> None:
    """The `offload` command."""
    try:
        run_command(app)
    except ImportError as error:
        if error.name != TLS_LIBRARY:
            raise
        sys.exit(fail(error).exit_code)


if __name__ == "__main__":
    main()
