"""Upstream servers for tests."""

from __future__ import annotations

from typing import Any

from hsm.metrics import MetricStore
from offload import metrics as m
from offload.settings import ServerData, UpstreamData
from offload.upstream import Server, Upstream


def tcp(port: int = 80, host: str = "127.0.0.1", **more: Any) -> ServerData:
    """A server on this machine."""
    return ServerData(label=f"{host}:{port}", host=host, port=port, **more)


def unix(path: str) -> ServerData:
    """A server on a unix socket."""
    return ServerData(label=f"unix:{path}", path=path)


def upstream_data(*servers: ServerData, **changed: Any) -> UpstreamData:
    """What a worker is told of these servers; without a slow start, for one worker."""
    settings: dict[str, Any] = {
        "name": "web",
        "balance": "round_robin",
        "connect_timeout": 1.0,
        "attempts": 3,
        "max_fails": 3,
        "slow_start": 0.0,
        "workers": 1,
    }
    return UpstreamData(servers=list(servers), **{**settings, **changed})


def upstream(*servers: ServerData, **changed: Any) -> Upstream:
    """An upstream with a store of its own, made at the time 0."""
    return Upstream(upstream_data(*servers, **changed), MetricStore(m.WORKER_SPECS), 0.0)


def server_of(data: ServerData) -> Server:
    """A server as a worker knows it."""
    return upstream(data).servers[0]
