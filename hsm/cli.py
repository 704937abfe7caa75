"""The `hsm` command."""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if Path(sys.argv[0]).name in ("hsm", "cli.py"):
    # The rest takes a moment to import: Ctrl-C meanwhile ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import typer
from cryptography.hazmat.primitives.serialization import Encoding

from hsm import __version__, cluster_cli, config, logs, pin_cli
from hsm.config import NodeSettings
from hsm.errors import ConfigurationError
from hsm.signing import scheme_names, ski_of
from hsm.terminal import fail, run

app = typer.Typer(
    help="Nodes that hold TLS keys, and tools for them.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(pin_cli.app, name="pin")
app.add_typer(cluster_cli.app, name="cluster")


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
    token_uri: Annotated[
        str | None, typer.Option(help="pkcs11:token=NAME?module-path=/path.so&pin-source=file:/path")
    ] = None,
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
    admin: Annotated[str | None, typer.Option(help="host:port or unix:/path for metrics and probes.")] = None,
    tls_ca: Annotated[str | None, typer.Option(help="CA of the clients' certificates.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="Own certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Key of that certificate.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="All of this from a YAML file.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    parent: Annotated[int | None, typer.Option(hidden=True, help="End when this process ends.")] = None,
) -> None:
    """Run a node: hold keys and sign with them for whoever may ask."""
    from hsm.node.environment import hide_pin
    from hsm.node.main import run_node
    from hsm.process import die_with_parent

    if parent is not None:
        die_with_parent(parent)
    options = {
        "name": name, "listen": listen, "token": token, "uri": token_uri, "sessions": sessions,
        "keys": keys, "emulate_file": emulate_file,
        "passphrase_file": passphrase_file,
        "allow_users": allow_user or None, "admin": admin,
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
        return config.validate(given, NodeSettings, "hsm node", Path.cwd())
    if given:
        raise ConfigurationError(f"--config stands alone; put {', '.join(sorted(given))} into {config_file}")
    return config.load(config_file, NodeSettings)


@app.command()
def keygen(
    key: Annotated[Path, typer.Option("--out", help="Key file to make (PEM, mode 0600).")],
    kind: Annotated[
        str, typer.Option("--type", help="p256, p384, p521, rsa2048, rsa3072, rsa4096.")
    ] = "p256",
    passphrase_file: Annotated[Path | None, typer.Option(help="Encrypt the key with this.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Also make a self-signed certificate.")] = None,
    csr: Annotated[Path | None, typer.Option(help="Also make a certificate signing request.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="DNS name or IP address (repeatable).")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Life of the certificate.")] = 90,
) -> None:
    """Make a key for the software token, and a certificate or CSR for it. Overwrites nothing."""
    from hsm import keygen as files
    from hsm.secret_file import read_secret

    try:
        if (certificate or csr) and not name:
            raise ConfigurationError("a certificate or CSR needs --name, once for each name")
        outputs = [path for path in (key, certificate, csr) if path is not None]
        for path in outputs:
            if path.exists():
                raise ConfigurationError(f"{path}: is there already; nothing is overwritten: choose another")
            if not path.parent.is_dir():
                raise ConfigurationError(
                    f"{path}: cannot write it: its directory is not there; make it first"
                )
        if len(set(outputs)) < len(outputs):
            raise ConfigurationError("--out, --certificate and --csr must be different files")
        passphrase = read_secret(passphrase_file, "passphrase") if passphrase_file is not None else None
        made = files.make_key(kind)
        # Everything is made before anything is written, so that a mistake leaves no key behind.
        written = []
        if certificate is not None:
            pem = files.self_signed(made, name or [], days).public_bytes(Encoding.PEM)
            written.append((certificate, pem, f"certificate  {certificate}  (self-signed, {days} days)"))
        if csr is not None:
            pem = files.signing_request(made, name or []).public_bytes(Encoding.PEM)
            written.append((csr, pem, f"request      {csr}  (have your CA sign it)"))
        files.write_key(key, made, passphrase)
        print(f"key          {key}  ({kind}, SKI {ski_of(made.public_key()).hex()})")
        for path, pem, told in written:
            files.write_new(path, pem, 0o644)
            print(told)
    except ConfigurationError as error:
        raise fail(error) from error


Node = Annotated[str, typer.Option("--node", help="unix:/path or tls://host:port.")]
Ca = Annotated[str | None, typer.Option("--tls-ca", help="CA of the node's certificate.")]
Certificate = Annotated[str | None, typer.Option("--tls-certificate", help="Own certificate.")]
Key = Annotated[str | None, typer.Option("--tls-key", help="Its key.")]


@app.command()
def keys(node: Node, tls_ca: Ca = None, tls_certificate: Certificate = None, tls_key: Key = None) -> None:
    """Show which keys a node holds, and what each can do."""
    from hsm import bench as tools

    async def run() -> dict[bytes, frozenset[int]] | None:
        cluster = await tools.connect(tools.target(node, tls_ca, tls_certificate, tls_key))
        held = cluster.nodes[0].keys
        await cluster.close()
        return held

    try:
        held = asyncio.run(run())
    except ConfigurationError as error:
        raise fail(error) from error
    if held is None:
        print("this node can't list its keys (another Keyless server)")
        return
    for ski, opcodes in sorted(held.items()):
        print(f"{ski.hex()}  {scheme_names(opcodes)}")


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
) -> None:
    """Measure a node: signatures a second, and how long each takes."""
    from hsm import bench as tools

    async def run() -> None:
        cluster = await tools.connect(tools.target(node, tls_ca, tls_certificate, tls_key))
        try:
            chosen, how = tools.choose(cluster, ski, scheme)
            print(f"{how.name} with key {chosen.hex()}, {concurrency} in flight, {duration}")
            result = await tools.run_bench(cluster, chosen, how, concurrency, seconds)
        finally:
            await cluster.close()
        times = ", ".join(f"p{p:g} {result.percentile(p / 100) * 1000:.2f} ms" for p in (50, 90, 99, 99.9))
        print(f"{result.rate:.0f} signatures/s; {times}")
        for reason, count in result.errors.items():
            print(f"{count} failed: {reason}")

    try:
        seconds = _duration(duration)
        asyncio.run(run())
    except ConfigurationError as error:
        raise fail(error) from error


def _duration(text: str) -> float:
    try:
        seconds = float(config.parse_duration(text))
    except ValueError as error:
        raise ConfigurationError(f"--duration: {error}") from error
    if not 0 < seconds <= 3600:
        raise ConfigurationError("--duration: between 0 and 1h")
    return seconds


def main() -> None:
    """The `hsm` command."""
    run(app)


if __name__ == "__main__":
    main()
