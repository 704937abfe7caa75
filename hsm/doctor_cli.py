"""`hsm doctor`: examine a PKCS#11 token or a running node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsm import config
from hsm.config import NodeSettings, Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.options import (
    Ca,
    Certificate,
    Json,
    Key,
    Link,
    NodeTarget,
    OneNode,
    ServerName,
    TokenUri,
    duration,
    only,
    token_settings,
)
from hsm.terminal import fail

if TYPE_CHECKING:
    from hsm.findings import Finding


def command(
    token_uri: TokenUri = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A node's configuration (YAML): examine its token.")
    ] = None,
    node: OneNode = None,
    as_json: Json = False,
    timeout: Annotated[str, typer.Option(help="Time that the module may take for one thing.")] = "30s",
    tls_ca: Ca = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    tls_server_name: ServerName = None,
) -> None:
    """Sign and verify with each key and scheme, and look for what will cause trouble. Exit code 1 if broken."""
    link = Link(tls_ca, tls_certificate, tls_key, tls_server_name)
    try:
        only("token_uri", "config", "node", token_uri=token_uri, config=config_file, node=node)
        patience = duration("--timeout", timeout)
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
        return token_settings(uri, "hsm doctor")
    assert config_file is not None
    settings = config.load(config_file, NodeSettings)
    if not isinstance(settings, Pkcs11Settings):
        raise ConfigurationError(
            f"{config_file}: token: a {settings.token} token has no module to examine; "
            "start the node and name its address: --node"
        )
    return settings


def _of_node(target: NodeTarget, as_json: bool) -> list[Finding]:
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
