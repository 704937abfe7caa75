"""`hsm cluster status`: each node's state, as the running proxy sees it, or as it looks from here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm.errors import ConfigurationError

app = typer.Typer(help="The cluster of nodes.", no_args_is_help=True)

PROXY_TIMEOUT = 5.0
CONNECT_TIMEOUT = 5.0


@app.callback()
def cluster() -> None:
    """The cluster of nodes."""


@app.command()
def status(
    config_file: Annotated[
        Path, typer.Option("--config", help="The proxy's configuration; its hsm: section names the nodes.")
    ],
    direct: Annotated[
        bool, typer.Option("--direct", help="Ask the nodes from here, also if a proxy is running.")
    ] = False,
) -> None:
    """Show each node's state, why, and since when.

    By a running proxy (its admin address); without one the nodes are asked directly.
    """
    from rich.console import Console

    from hsm.cluster_config import load_cluster
    from hsm.show import nodes_table
    from hsm.terminal import fail

    try:
        settings, admin = load_cluster(config_file)
        told = None if direct or admin is None else asyncio.run(_ask_proxy(admin))
        if told is None:
            told = asyncio.run(_ask_nodes(settings))
            print("as seen from here (no proxy answered)" if not direct else "as seen from here")
        else:
            print(f"as seen by the proxy at {admin}")
    except ConfigurationError as error:
        raise fail(error) from error
    Console(soft_wrap=True).print(nodes_table(told))
    if not any(node["ready"] for node in told):
        raise typer.Exit(1)


async def _ask_proxy(admin: Any) -> list[dict[str, Any]] | None:
    """The nodes as /status has them; None if no proxy answers there."""
    import aiohttp

    connector = aiohttp.UnixConnector(admin.path) if admin.path else None
    url = "http://proxy/status" if admin.path else f"http://{admin}/status"
    timeout = aiohttp.ClientTimeout(total=PROXY_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(url) as answer,
        ):
            nodes: list[dict[str, Any]] = (await answer.json())["nodes"]
            return nodes
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None


async def _ask_nodes(settings: Any) -> list[dict[str, Any]]:
    from hsm.client import ClusterClient, ClusterOptions, NodeOptions
    from hsm.client.membership import Names, members
    from hsm.transport import client_context

    entries = [
        NodeOptions(
            entry.name, entry.address, client_context(entry.tls) if entry.tls else None,
            entry.tls.server_name if entry.tls else None, zone=entry.zone,
        )
        for entry in settings.nodes
        if entry.address is not None
    ]  # fmt: skip
    names = Names()
    await names.refresh(entry.address for entry in entries)
    cluster = ClusterClient(members(entries, names.addresses), ClusterOptions(verify="never"))
    cluster.start()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            while not all(node.ready for node in cluster.nodes):  # noqa: ASYNC110  # a tool, for a moment
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    told = cluster.status()
    await cluster.close()
    absent = "started by `offload serve`, which does not run"
    return told + [
        {"name": entry.name, "enabled": True, "ready": False, "error": absent, "zone": entry.zone}
        for entry in settings.nodes
        if entry.address is None
    ]
