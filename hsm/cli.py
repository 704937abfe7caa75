"""The `hsm` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm import __version__, config, logs
from hsm.config import NodeSettings
from hsm.errors import ConfigurationError

app = typer.Typer(
    help="Nodes that hold TLS keys, and tools for them.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hsm {__version__}")
        raise typer.Exit


def fail(error: ConfigurationError) -> typer.Exit:
    """Print an operator's mistake, one line each, and end with exit code 2."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return typer.Exit(2)


def parse_emulation(text: str) -> dict[str, Any]:
    """`latency=5ms,parallel=4` → keys of `emulate`. Raises ConfigurationError."""
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise ConfigurationError(f"--emulate: {part!r} is not key=value; write e.g. latency=5ms")
        settings[key.strip()] = value.strip()
    return settings


@app.command()
def node(
    name: Annotated[str | None, typer.Option(help="Name in logs and metrics.")] = None,
    listen: Annotated[str | None, typer.Option(help="unix:/path or tls://host:port.")] = None,
    token: Annotated[str | None, typer.Option(help="Kind of token: software.")] = None,
    keys: Annotated[str | None, typer.Option(help="Directory of PEM private keys.")] = None,
    emulate: Annotated[str | None, typer.Option(help="Imitate an HSM: latency=5ms,parallel=4 …")] = None,
    emulate_file: Annotated[
        str | None, typer.Option(help="YAML file of the same, read again on SIGUSR1.")
    ] = None,
    allow_user: Annotated[list[str] | None, typer.Option(help="User that may connect (repeatable).")] = None,
    admin: Annotated[str | None, typer.Option(help="host:port or unix:/path for metrics and probes.")] = None,
    tls_ca: Annotated[str | None, typer.Option(help="CA of the clients' certificates.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="Own certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Key of that certificate.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="All of this from a YAML file.")
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End when this process ends.")] = None,
) -> None:
    """Run a node: hold keys and sign with them for whoever may ask."""
    from hsm.node.main import run_node
    from hsm.process import die_with_parent

    if parent is not None:
        die_with_parent(parent)
    options = {
        "name": name, "listen": listen, "token": token, "keys": keys, "emulate_file": emulate_file,
        "allow_users": allow_user or None, "admin": admin,
    }  # fmt: skip
    tls = {"ca": tls_ca, "certificate": tls_certificate, "key": tls_key}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if any(tls.values()):
        given["tls"] = {key: value for key, value in tls.items() if value is not None}
    try:
        if emulate:
            given["emulate"] = parse_emulation(emulate)
        settings = _settings(config_file, given)
        run_node(settings, logs.configure(f"node {settings.name}"))
    except ConfigurationError as error:
        raise fail(error) from error


def _settings(config_file: Path | None, given: dict[str, Any]) -> NodeSettings:
    if config_file is None:
        return config.validate(given, NodeSettings, "hsm node", Path.cwd())
    if given:
        raise ConfigurationError(f"--config stands alone; put {', '.join(sorted(given))} into {config_file}")
    return config.load(config_file, NodeSettings)


if __name__ == "__main__":
    app()
