"""What `hsm doctor` would say of a configuration's nodes: part of `offload check --connect`.

Tokens of nodes that the proxy runs itself are examined as a whole, each module in a process of its own and
before the node is started. While the proxy runs it holds them, and some tokens let in only one program: then,
and for nodes elsewhere, there is what the node itself tells of its keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from hsm.client.listing import key_details
from hsm.client.node import NodeClient
from hsm.cluster_config import NodeEntry
from hsm.config import Pkcs11Settings, SoftwareSettings
from hsm.doctor import examine_token
from hsm.errors import HSMError
from hsm.findings import Finding, Level, key_warnings
from hsm.keyless import KeylessError
from offload import runtime
from offload.config import Config

PATIENCE = 30.0
"""Seconds that a module may take for one thing."""


def own_tokens(config: Config, path: Path) -> dict[str, Pkcs11Settings]:
    """The tokens to examine, by their nodes' names. A PIN from a descriptor may be read once, by the node."""
    if runtime.is_running(runtime.directory_of(config, path)):
        return {}
    return {
        entry.name: entry.run
        for entry in config.hsm.nodes
        if isinstance(entry.run, Pkcs11Settings) and not entry.run.inherited_descriptors()
    }


def examine_tokens(config: Config, path: Path) -> list[str]:
    """Examine these tokens; print the warnings. What is broken, one line each."""
    problems = []
    for name, settings in own_tokens(config, path).items():
        findings = list(examine_token(settings, PATIENCE))
        show_warnings(name, findings)
        faults = [finding for finding in findings if finding.level is Level.BROKEN]
        problems += [f"node {name}: {finding}" for finding in faults]
        if not faults:
            print(f"node {name}: its token and each of its keys were examined (hsm doctor)")
    return problems


def show_warnings(name: str, findings: Collection[Finding]) -> None:
    """Print the warnings among what was found at a node."""
    for finding in findings:
        if finding.level is Level.WARNING:
            print(f"warning: node {name}: {finding}")


def told_elsewhere(config: Config, path: Path) -> Iterator[NodeEntry]:
    """The nodes whose own words are all there is. Key files can be copied: that needs no warning."""
    examined = own_tokens(config, path)
    for entry in config.hsm.nodes:
        if entry.name not in examined and not isinstance(entry.run, SoftwareSettings):
            yield entry


async def told_warnings(node: NodeClient, skis: Collection[bytes]) -> list[Finding]:
    """What a node's own words say against these keys; nothing if it tells nothing."""
    try:
        keys = await key_details(node) or []
    except (HSMError, KeylessError, TimeoutError):
        return []
    return [finding for key in keys if key.ski in skis for finding in key_warnings(key)]
