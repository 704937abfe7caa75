"""What `/status` and `/metrics` say of upstream servers: the workers' views and the checks, as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from offload.settings import ServerData
from offload.upstream_health import CheckHealth


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server: `state` is up, down (its checks fail), out (workers can't connect), partly out
    (some can't), or leaving (no longer configured, but with connections).

    `since` is on the monotonic clock; None while no worker has told anything.
    """

    server: str
    configured: str
    weight: int
    state: str
    why: str
    since: float | None
    connections: int

    @property
    def is_up(self) -> bool:
        """Whether clients are sent to it, at least by some workers."""
        return self.state in ("up", "partly out")


def server_statuses(
    servers: Iterable[ServerData], checks: dict[str, CheckHealth], views: Sequence[Sequence[dict[str, Any]]]
) -> list[ServerStatus]:
    """Each server's status, from `Upstream.status()` of each worker."""
    by_server: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        for entry in view:
            by_server.setdefault(entry["server"], []).append(entry)
    statuses = []
    for server in servers:
        address = str(server.address)
        entries = by_server.pop(address, [])
        state, why, since = _judge(entries, checks.get(address))
        statuses.append(
            ServerStatus(address, server.label, server.weight, state, why, since, _connections(entries))
        )
    leaving = (
        ServerStatus(address, address, 0, "leaving", "", None, _connections(entries))
        for address, entries in by_server.items()
    )
    return statuses + [status for status in leaving if status.connections]


def outage(group: str, servers: Sequence[ServerStatus]) -> str:
    """What is wrong with a group of which no server is up, in words; else empty."""
    if any(server.is_up for server in servers):
        return ""
    reasons = [f"{server.server}: {server.why}" for server in servers if server.state != "leaving"]
    return f"upstream {group}: no server is up ({'; '.join(reasons)})"


def _connections(entries: list[dict[str, Any]]) -> int:
    return sum(entry["connections"] for entry in entries)


def _judge(entries: list[dict[str, Any]], health: CheckHealth | None) -> tuple[str, str, float | None]:
    """State, why and since when."""
    if health is not None and not health.up:
        return "down", health.why, health.since
    out = [entry for entry in entries if entry["out"]]
    if out:
        last = max(out, key=lambda entry: float(entry["since"]))
        return "out" if len(out) == len(entries) else "partly out", last["why"], last["since"]
    changes = [entry["since"] for entry in entries] + ([health.since] if health is not None else [])
    return "up", "", max(changes, default=None)
