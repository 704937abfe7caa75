"""`hsm doctor`: examine a PKCS#11 token or a running node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsm import config, options
from hsm.config import NodeSettings, Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.terminal import fail

if TYPE_CHECKING:
    from hsm.findings import Finding


def command(
    token_uri: options.TokenUri = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A node's configuration (YAML): examine its token.")
    ] = None,
    node: options.OneNode = None,
    as_json: options.Json = False,
    timeout: Annotated[str, typer.Option(help="Time that the module may take for one thing.")] = "30s",
    tls_ca: options.Ca = None,
    tls_certificate: options.Certificate = None,
    tls_key: options.Key = None,
    tls_server_name: options.ServerName = None,
) -> None:
    """Sign and verify with each key and scheme, and look for what will cause trouble. Exit code 1 if broken."""
    link = options.Link(tls_ca, tls_certificate, tls_key, tls_server_name)
    try:
        options.only("token_uri", "config", "node", token_uri=token_uri, config=config_file, node=node)
        patience = options.duration("--timeout", timeout)
        if node is not None:
            found = _of_node(link.target(node), as_json)
        else:
            from hsm.doctor import examine_token

            settings = _settings(token_uri, config_file)
            found = _show(examine_token(settings, patience), as_json)
    except ConfigurationError as error:
        raise fail(error) from error
    raise typer.Exit(1 if any(finding.is_broken for finding in found) else 0)


def _settings(uri: str | None, config_file: Path | None) -> Pkcs11Settings:
    if uri is not None:
        return options.token_settings(uri)
    assert config_file is not None
    settings = config.load(config_file, NodeSettings)
    if not isinstance(settings, Pkcs11Settings):
        raise ConfigurationError(
            f"{config_file}: token: a {settings.token} token has no module to examine; "
            "start the node and name its address: --node"
        )
    return settings


def _of_node(target: options.NodeTarget, as_json: bool) -> list[Finding]:
    from hsm.doctor import examine_node

    async def run() -> list[Finding]:
        return [finding async for finding in examine_node(target)]

    return _show(asyncio.run(run()), as_json)


def _show(findings: Iterable[Finding], as_json: bool) -> list[Finding]:
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            print(f"{finding.level:8} {finding}", flush=True)
    if as_json:
        print(json.dumps([finding.as_json() for finding in shown], indent=2))
    return shown
