"""`offload check --connect`: one real signature per certificate, scheme and node, verified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.table import Table

from hsm import logs
from hsm.client import ClusterClient
from hsm.errors import HSMError
from hsm.signing import SignatureScheme
from offload import examine, plan, runtime
from offload.certificates import Chain
from offload.children import LocalNodeChild
from offload.config import Config
from offload.demands import Demand, shortfall
from offload.nodes import running_socket
from offload.plan import ListenerPlan
from offload.settings import Links

CONNECT_TIMEOUT = 5.0
SIGN_TIMEOUT = 5.0
_NO_ANSWER = ("deadline", "timeout", "queue_timeout", "link_lost")
"""Reasons of failures (hsm.errors) that say nothing about what a node can do."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One signature: how long it took in seconds, or why there was none."""

    chain: Chain
    scheme: SignatureScheme
    node: str
    seconds: float | None
    error: str = ""
    answered: bool = True
    """Whether the node said that it can't, if it did not sign."""


async def probe(config: Config, path: Path, plans: list[ListenerPlan]) -> list[str]:
    """Print the table. What is wrong, one line each: keys that sign on no node, or not as they may be asked to."""
    chains = list({chain.ski: chain for p in plans for chain in p.chains}.values())
    cells: list[Cell] = []
    held: dict[str, Mapping[bytes, frozenset[int]] | None] = {}
    telling = {entry.name for entry in examine.told_elsewhere(config, path)}
    async with _clusters(config, path) as clusters:
        for name, cluster in clusters.items():
            for chain in chains:
                cluster.add_key(chain.key)
            tried = await _probe_node(name, cluster, chains)
            node = cluster.nodes[0]
            held[name] = able(node.keys, tried) if node.ready else None
            if node.ready and name in telling:
                examine.show_warnings(
                    name, await examine.told_warnings(node, [chain.ski for chain in chains])
                )
            cells += tried
    _show(cells)
    signing = {cell.chain.ski for cell in cells if cell.seconds is not None}
    demands = [demand for p in plans for demand in p.demands if demand.ski in signing]
    return [
        *_without_node([chain for chain in chains if chain.ski not in signing], cells),
        *unanswered([cell for cell in cells if held[cell.node] is not None], demands),
        *(str(found) for demand in demands if (found := shortfall(demand, held)) is not None),
    ]


def _without_node(chains: list[Chain], cells: list[Cell]) -> list[str]:
    """A line for each certificate whose key signed nowhere."""
    reasons = {chain.ski: sorted({c.error for c in cells if c.chain is chain}) for chain in chains}
    return [
        f"{chain.path}: no node signs with its key {chain.ski.hex()} "
        f"({'; '.join(reasons[chain.ski])}); put the key into a node, or mend the node"
        for chain in chains
    ]


def unanswered(cells: list[Cell], demands: Iterable[Demand]) -> list[str]:
    """A line for each scheme that may be asked for and of which no node said whether it can."""
    demanded = {(demand.ski, opcode) for demand in demands for opcode in demand.opcodes}
    signed = {(cell.chain.ski, cell.scheme.opcode) for cell in cells if cell.seconds is not None}
    late: dict[tuple[Chain, SignatureScheme], list[str]] = {}
    for cell in cells:
        if not cell.answered and (cell.chain.ski, cell.scheme.opcode) in demanded - signed:
            late.setdefault((cell.chain, cell.scheme), []).append(cell.error)
    return [
        f"{chain.path}: no answer in time for {scheme.name} ({'; '.join(errors)}); "
        "try again when the nodes are less busy, or see their logs"
        for (chain, scheme), errors in late.items()
    ]


def able(listed: Mapping[bytes, frozenset[int]] | None, tried: list[Cell]) -> dict[bytes, frozenset[int]]:
    """What a node can do with each key: what it lists, less what it refused.

    `listed` is None for a node that can't list: then a key that signed at all counts as able to do the rest.
    """
    held = dict(listed or {})
    for cell in tried:
        if listed is None and cell.seconds is not None:
            held.setdefault(cell.chain.ski, cell.chain.key.opcodes)
    for cell in tried:
        if cell.seconds is None and cell.answered and cell.chain.ski in held:
            held[cell.chain.ski] -= {cell.scheme.opcode}
    return held


@contextlib.asynccontextmanager
async def _clusters(config: Config, path: Path) -> AsyncIterator[dict[str, ClusterClient]]:
    """A client for each node alone; local nodes are started unless the proxy runs them already."""
    log = logs.configure("check", "error")
    directory = runtime.directory_of(config, path)
    running = runtime.is_running(directory)
    async with contextlib.AsyncExitStack() as stack:
        if not running:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-check-")))
        clusters = {}
        for entry in config.hsm.nodes:
            address = entry.address
            if entry.run is not None:
                path = running_socket(directory, entry.name)
                child = LocalNodeChild(entry.name, entry.run, path, log, log_level="error")
                address = child.address
                if not running:
                    child.start()
                    stack.push_async_callback(child.stop)
            assert address is not None
            cluster = ClusterClient(Links().options([plan.node_data(entry, address)], workers=1))
            cluster.start()
            stack.push_async_callback(cluster.close)
            clusters[entry.name] = cluster
        yield clusters


async def _probe_node(name: str, cluster: ClusterClient, chains: list[Chain]) -> list[Cell]:
    node = cluster.nodes[0]
    until = monotonic() + CONNECT_TIMEOUT
    while not node.ready and monotonic() < until:  # noqa: ASYNC110  # a tool, once
        await asyncio.sleep(0.02)
    cells = []
    for chain in chains:
        for scheme in chain.key.usual_schemes():
            if not node.ready:
                why = f"node {name}: {node.last_error}"
                cells.append(Cell(chain, scheme, name, None, why, answered=False))
                continue
            started = monotonic()
            try:
                await cluster.sign_async(chain.ski, scheme, os.urandom(scheme.digest_size), SIGN_TIMEOUT)
            except HSMError as error:
                answered = error.reason not in _NO_ANSWER
                cells.append(Cell(chain, scheme, name, None, f"node {name}: {error}", answered))
            else:
                cells.append(Cell(chain, scheme, name, monotonic() - started))
    return cells


def _shown(cell: Cell) -> str:
    if cell.seconds is not None:
        return f"{cell.seconds * 1000:.1f} ms"
    return "no" if cell.answered else "no answer"


def _show(cells: list[Cell]) -> None:
    nodes = list(dict.fromkeys(cell.node for cell in cells))
    table = Table("certificate", "scheme", *nodes)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = rows.setdefault((cell.chain.path.name, cell.scheme.name), {})
        row[cell.node] = _shown(cell)
    for (chain, scheme), row in rows.items():
        table.add_row(chain, scheme, *(row.get(node, "") for node in nodes))
    Console().print(table)
