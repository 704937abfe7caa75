"""The `hsm` command."""

from __future__ import annotations

import signal
import sys

if sys.argv[0].rpartition("/")[2] in ("hsm", "cli.py"):
    # The rest takes a moment to import: Ctrl-C meanwhile ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm import __version__, cluster_cli, config, doctor_cli, keygen_cli, keys_cli, pin_cli
from hsm.config import NodeSettings
from hsm.errors import ConfigurationError
from hsm.options import Ca, Certificate, Json, Key, Link, Node, ServerName, TokenUri, from_options
from hsm.options import duration as parse_duration
from hsm.start import importing
from hsm.terminal import fail, run

app = typer.Typer(
    help="Nodes that hold TLS keys, and tools for them.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(pin_cli.app, name="pin")
app.add_typer(cluster_cli.app, name="cluster")
app.add_typer(keys_cli.app, name="keys")
app.command("keygen")(keygen_cli.command)
app.command("doctor")(doctor_cli.command)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if version:
        print(f"hsm {__version__}")
        raise typer.Exit


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
    token: Annotated[str | None, typer.Option(help="Kind of token: software, pkcs11.")] = None,
    token_uri: TokenUri = None,
    sessions: Annotated[str | None, typer.Option(help="pkcs11: auto, or at most so many.")] = None,
    keys: Annotated[str | None, typer.Option(help="Directory of PEM private keys.")] = None,
    passphrase_file: Annotated[
        str | None, typer.Option(help="File with the passphrase of encrypted keys.")
    ] = None,
    emulate: Annotated[str | None, typer.Option(help="Imitate an HSM: latency=5ms,parallel=4 …")] = None,
    emulate_file: Annotated[
        str | None, typer.Option(help="YAML file of the same, read again on SIGUSR1.")
    ] = None,
    allow_user: Annotated[list[str] | None, typer.Option(help="User that may connect (repeatable).")] = None,
    socket_group: Annotated[str | None, typer.Option(help="Group of the unix socket.")] = None,
    admin: Annotated[str | None, typer.Option(help="host:port or unix:/path for metrics and probes.")] = None,
    tls_ca: Annotated[str | None, typer.Option(help="CA of the clients' certificates.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="Own certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Key of that certificate.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="All of this from a YAML file.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a node: hold keys and sign with them for whoever may ask."""
    with importing():
        from hsm import logs
        from hsm.node.environment import hide_pin
        from hsm.node.main import run_node

    options = {
        "name": name, "listen": listen, "token": token, "uri": token_uri, "sessions": sessions,
        "keys": keys, "emulate_file": emulate_file,
        "passphrase_file": passphrase_file,
        "allow_users": allow_user or None, "socket_group": socket_group, "admin": admin,
    }  # fmt: skip
    tls = {"ca": tls_ca, "certificate": tls_certificate, "key": tls_key}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if any(tls.values()):
        given["tls"] = {key: value for key, value in tls.items() if value is not None}
    try:
        if emulate:
            given["emulate"] = parse_emulation(emulate)
        if log_level not in logs.LEVELS:
            raise ConfigurationError(f"--log-level: {log_level!r} is none of {', '.join(logs.LEVELS)}")
        settings = _settings(config_file, given)
        log = logs.configure(f"node {settings.name}", log_level)
        if token_uri is not None:
            hide_pin(partial(log.warning, "pin_in_command_line"))
        run_node(settings, log)
    except ConfigurationError as error:
        raise fail(error) from error


def _settings(config_file: Path | None, given: dict[str, Any]) -> NodeSettings:
    if config_file is None:
        return from_options(given, NodeSettings)
    if given:
        raise ConfigurationError(f"--config stands alone; put {', '.join(sorted(given))} into {config_file}")
    return config.load(config_file, NodeSettings)


@app.command()
def bench(
    node: Node,
    ski: Annotated[str | None, typer.Option(help="Key to sign with; the first one if left out.")] = None,
    scheme: Annotated[str | None, typer.Option(help="e.g. ecdsa_secp256r1_sha256.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight.")] = 16,
    duration: Annotated[str, typer.Option(help="e.g. 5s.")] = "5s",
    tls_ca: Ca = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    tls_server_name: ServerName = None,
    as_json: Json = False,
) -> None:
    """Measure a node: signatures a second, and how long each takes."""
    from hsm import bench as tools
    from hsm.connect import connect

    link = Link(tls_ca, tls_certificate, tls_key, tls_server_name)

    async def run() -> None:
        cluster = await connect(link.target(node), "never")
        try:
            chosen, how = tools.choose(cluster, ski, scheme)
            if not as_json:
                print(f"{how.name} with key {chosen.hex()}, {concurrency} in flight, {duration}")
            result = await tools.run_bench(cluster, chosen, how, concurrency, seconds)
        finally:
            await cluster.close()
        if as_json:
            asked = {"node": node, "key": chosen.hex(), "scheme": how.name, "concurrency": concurrency}
            print(json.dumps({"tool": "hsm bench", **asked, **result.as_json()}, indent=1))
            return
        times = ", ".join(f"p{p:g} {result.percentile(p / 100) * 1000:.2f} ms" for p in (50, 90, 99, 99.9))
        print(f"{result.rate:.0f} signatures/s; {times}")
        for reason, count in result.errors.items():
            print(f"{count} failed: {reason}")

    try:
        seconds = parse_duration("--duration", duration)
        asyncio.run(run())
    except ConfigurationError as error:
        raise fail(error) from error


def main() -> None:
    """The `hsm` command."""
    run(app)


if __name__ == "__main__":
    main()
