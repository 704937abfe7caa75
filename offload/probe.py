"""`offload check --connect`: one real signature per certificate, scheme and node, verified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.table import Table

from hsm import logs
from hsm.client import ClusterClient
from hsm.errors import HSMError
from hsm.signing import SignatureScheme
from offload import plan, runtime
from offload.certificates import Chain
from offload.children import LocalNodeChild
from offload.config import Config
from offload.plan import ListenerPlan

CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One signature: how long it took in seconds, or why there was none."""

    chain: Chain
    scheme: SignatureScheme
    node: str
    seconds: float | None
    error: str = ""


async def probe(config: Config, path: Path, plans: list[ListenerPlan]) -> int:
    """Print the table. 0 if each certificate's key signed on some node, else 2."""
    chains = list({chain.ski: chain for p in plans for chain in p.chains}.values())
    cells: list[Cell] = []
    async with _clusters(config, path) as clusters:
        for name, cluster in clusters.items():
            for chain in chains:
                cluster.add_key(chain.key)
            cells += await _probe_node(name, cluster, chains)
    _show(cells)
    lacking = [
        chain for chain in chains if not any(c.seconds is not None and c.chain is chain for c in cells)
    ]
    for chain in lacking:
        reasons = {c.error for c in cells if c.chain is chain}
        print(
            f"error: {chain.path}: no node signs with its key {chain.ski.hex()} "
            f"({'; '.join(sorted(reasons))}); put the key into a node, or mend the node",
            file=sys.stderr,
        )
    return 2 if lacking else 0


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
                child = LocalNodeChild(entry.name, entry.run, str(directory), log, log_level="error")
                address = child.address
                if not running:
                    child.start()
                    stack.push_async_callback(child.stop)
            assert address is not None
            cluster = ClusterClient([plan.node_options(entry, address)])
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
                cells.append(Cell(chain, scheme, name, None, f"node {name}: {node.last_error}"))
                continue
            started = monotonic()
            try:
                await cluster.sign_async(chain.ski, scheme, os.urandom(scheme.digest_size), CONNECT_TIMEOUT)
            except HSMError as error:
                cells.append(Cell(chain, scheme, name, None, f"node {name}: {error}"))
            else:
                cells.append(Cell(chain, scheme, name, monotonic() - started))
    return cells


def _show(cells: list[Cell]) -> None:
    nodes = list(dict.fromkeys(cell.node for cell in cells))
    table = Table("certificate", "scheme", *nodes)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        row = rows.setdefault((cell.chain.path.name, cell.scheme.name), {})
        row[cell.node] = f"{cell.seconds * 1000:.1f} ms" if cell.seconds is not None else "no"
    for (chain, scheme), row in rows.items():
        table.add_row(chain, scheme, *(row.get(node, "") for node in nodes))
    Console().print(table)
