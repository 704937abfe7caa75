"""The nodes of a cluster as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def nodes_table(nodes: list[dict[str, Any]]) -> Table:
    """One line for each node of `/status`. Nothing is cut: what does not fit goes on in the next line."""
    table = Table()
    for heading in ("node", "state", "since", "zone", "in flight", "latency", "keys", "why"):
        table.add_column(heading, overflow="fold")
    for node in nodes:
        table.add_row(*row(node))
    return table


def row(node: dict[str, Any]) -> tuple[str, ...]:
    """One node's line, from its entry in /status."""
    if not node["enabled"]:
        state = "disabled"
    elif not node["ready"]:
        state = "not connected"
    else:
        state = str(node.get("state", "ready"))
    since = f"{_age(node['since'])} ago" if node["ready"] and "since" in node else ""
    latency = f"{node['latency_ms']:.1f} ms" if node.get("latency_ms") else ""
    flight = f"{node['outstanding']}/{node['limit']}" if "limit" in node else ""
    keys = "can't list" if node.get("keys") is None and node["ready"] else str(node.get("keys") or "")
    why = str(node.get("error") or node.get("cause") or "").replace("_", " ")
    return node["name"], state, since, node.get("zone", ""), flight, latency, keys, why


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
