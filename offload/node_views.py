"""One view of each node out of many: the supervisor's own, and that of every worker. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_WORST_FIRST = ("ejected", "probing", "suspect", "healthy")


def merge(own: Iterable[dict[str, Any]], workers: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each node as the one sees it who thinks worst of it; what is in flight is added up.

    Workers know how a node answers handshakes, the supervisor only how it answers tests. Each
    entry is one of `ClusterClient.status`; `views` says how many think what.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for view in workers:
        for node in view:
            by_name.setdefault(node["name"], []).append(node)
    return [_merged(node, by_name.get(node["name"], [])) for node in own]


def _merged(own: dict[str, Any], workers: list[dict[str, Any]]) -> dict[str, Any]:
    views = [own, *(view for view in workers if view["ready"])]
    worst = min(views, key=lambda view: _WORST_FIRST.index(view["state"]))
    counts = {state: sum(view["state"] == state for view in views) for state in _WORST_FIRST}
    busiest = max(views, key=lambda view: view["outstanding"])
    return {
        **own,
        **{key: worst[key] for key in ("state", "since", "cause") if key in worst},
        "views": {state: count for state, count in counts.items() if count},
        "outstanding": sum(view["outstanding"] for view in workers),
        "limit": sum(view["limit"] for view in workers),
        "latency_ms": busiest["latency_ms"],
    }
