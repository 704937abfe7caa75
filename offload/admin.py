"""The read-only HTTP server: /metrics, /livez, /readyz, /status; / lists them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from hsm.metrics import MetricStore
from offload import __version__, node_views
from offload import metrics as m
from offload.errors import WorkerLost
from offload.plan import ListenerPlan
from offload.plan_upstreams import GroupPlan
from offload.supervisor import Supervisor
from offload.tls import library_info
from offload.upstream_status import ServerStatus, outage, server_statuses

REFRESH_TIMEOUT = 1.0
"""Longest wait for a worker's or a local node's figures; then the last known are shown."""


@contextlib.asynccontextmanager
async def serve_admin(supervisor: Supervisor, sock: socket.socket) -> AsyncIterator[None]:
    """Serve on this listening socket while the context lasts."""
    runner = web.AppRunner(make_application(supervisor), access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    try:
        yield
    finally:
        await runner.cleanup()


def make_application(supervisor: Supervisor) -> web.Application:
    """The routes."""

    async def metrics(_request: web.Request) -> web.Response:
        body = await render_metrics(supervisor)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def ready(request: web.Request) -> web.Response:
        strict = request.query.get("strict") == "1"
        good = supervisor.ready and not (strict and supervisor.degraded)
        body = {"ready": good, "degraded": faults(supervisor)}
        return web.json_response(body, status=200 if good else 503)

    async def show_status(_request: web.Request) -> web.Response:
        return web.json_response(await refreshed_status(supervisor))

    async def contents(_request: web.Request) -> web.Response:
        return web.Response(text="".join(f"{path}\n" for path in pages))

    pages = {"/metrics": metrics, "/livez": alive, "/readyz": ready, "/status": show_status}
    app = web.Application()
    app.add_routes([web.get("/", contents), *(web.get(path, page) for path, page in pages.items())])
    return app


async def refreshed_status(supervisor: Supervisor) -> dict[str, Any]:
    """`status` with the workers' figures of this moment."""
    await _refresh_workers(supervisor)
    return status(supervisor)


def status(supervisor: Supervisor) -> dict[str, Any]:
    """Everything an operator asks first."""
    info = library_info()
    return {
        "version": __version__,
        "tls_library": {"name": info.version, "fips": info.fips, "path": info.path},
        "ready": supervisor.ready,
        "draining": supervisor.draining,
        "degraded": faults(supervisor),
        "listeners": [_listener_status(supervisor, listener) for listener in supervisor.state.listeners],
        "workers": [
            {
                "slot": worker.slot,
                "pid": worker.pid,
                "accepting": worker.accepting,
                "restarts": worker.restarts,
                "slots": worker.snapshot.get("slots", []),
                "connections": worker.snapshot.get("connections", {}),
                "confined_by": worker.snapshot.get("confined_by"),
            }
            for worker in supervisor.pool.workers
        ],
        "nodes": node_views.merge(
            supervisor.cluster.status(),
            (worker.snapshot.get("nodes", []) for worker in supervisor.pool.workers),
        ),
        "generation": supervisor.state.generation,
        "reload": supervisor.reloader.last.as_data() if supervisor.reloader.last is not None else None,
    }


def faults(supervisor: Supervisor) -> list[str]:
    """What is wrong, in words: with nodes, keys and certificates, and with the web servers."""
    outages = (outage(group.name, upstream_status(supervisor, group)) for group in supervisor.state.groups)
    return supervisor.degraded + [each for each in outages if each]


def _listener_status(supervisor: Supervisor, plan: ListenerPlan) -> dict[str, Any]:
    return {
        "name": plan.settings.name,
        "address": str(plan.bound),
        "policy": plan.settings.tls.policy if plan.chains else None,
        "mode": plan.settings.mode,
        "upstream": [
            {"upstream": group.name, **_server_status(server)}
            for group in supervisor.state.groups
            if group.name in plan.settings.groups
            for server in upstream_status(supervisor, group)
        ],
        "certificates": [
            {
                "chain": str(chain.path),
                "subject": chain.subject,
                "names": list(chain.names),
                "not_after": chain.not_after.isoformat(),
                "ski": chain.ski.hex(),
                "nodes": supervisor.keys.holders(chain.ski),
            }
            for chain in plan.chains
        ],
    }


def upstream_status(supervisor: Supervisor, group: GroupPlan) -> list[ServerStatus]:
    """A group's servers, as the checks and all workers see them."""
    views = [worker.snapshot.get("upstreams", {}).get(group.name, []) for worker in supervisor.pool.workers]
    return server_statuses(group.servers, supervisor.upstreams.checks(group.name), views)


def _server_status(server: ServerStatus) -> dict[str, Any]:
    """As JSON; its monotonic time as one of the calendar."""
    since = None
    if server.since is not None:
        since = datetime.now(UTC) - timedelta(seconds=monotonic() - server.since)
    return {**asdict(server), "since": since and since.isoformat(timespec="seconds")}


async def _refresh_workers(supervisor: Supervisor) -> None:
    async def refresh(worker: Any) -> None:
        with contextlib.suppress(WorkerLost):
            await worker.refresh(REFRESH_TIMEOUT)

    await asyncio.gather(*(refresh(worker) for worker in supervisor.pool.workers if worker.accepting))


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def render_metrics(supervisor: Supervisor) -> bytes:
    """All metrics in Prometheus' text format, fetched from workers and local nodes now."""
    _, node_texts = await asyncio.gather(_refresh_workers(supervisor), _fetch_nodes(supervisor))
    store = supervisor.pool.metrics()
    _add_own(store, supervisor)
    families = _node_families(node_texts, store)
    registry = CollectorRegistry()
    registry.register(_Families([*store.families(), *families]))
    return generate_latest(registry)


def _add_own(store: MetricStore, supervisor: Supervisor) -> None:
    info = library_info()
    store.value(m.BUILD_INFO, __version__, info.version, str(info.fips).lower()).value = 1
    accepting = sum(worker.accepting for worker in supervisor.pool.workers)
    store.value(m.WORKERS, "accepting").value = accepting
    store.value(m.WORKERS, "absent").value = len(supervisor.pool.workers) - accepting
    store.value(m.DEGRADED).value = int(bool(faults(supervisor)))
    missing = supervisor.keys.missing()
    for plan in supervisor.state.listeners:
        for chain in plan.chains:
            labels = (plan.settings.name, chain.subject, chain.ski.hex())
            store.value(m.CERTIFICATE_NOT_AFTER, *labels).value = chain.not_after.timestamp()
            store.value(m.KEYS_MISSING, chain.ski.hex()).value = int(chain.ski in missing)
    for group in supervisor.state.groups:
        for server in upstream_status(supervisor, group):
            store.value(m.UPSTREAM_CONNECTIONS, group.name, server.server).value = server.connections
            store.value(m.UPSTREAM_UP, group.name, server.server).value = int(server.is_up)
    _set_usage(store, "supervisor", supervisor.usage.read())
    for worker in supervisor.pool.workers:
        if "usage" in worker.snapshot:
            _set_usage(store, worker.name, worker.snapshot["usage"])


def _set_usage(store: MetricStore, process: str, usage: tuple[float, int, int]) -> None:
    cpu, resident, files = usage
    store.value(m.CPU_SECONDS, process).value = cpu
    store.value(m.RESIDENT_BYTES, process).value = resident
    store.value(m.OPEN_FILES, process).value = files


async def _fetch_nodes(supervisor: Supervisor) -> dict[str, str]:
    """Each local node's own metrics; a node that does not answer is left out."""

    async def fetch(path: str) -> str:
        timeout = aiohttp.ClientTimeout(total=REFRESH_TIMEOUT)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), timeout=timeout) as session,
            session.get("http://node/metrics") as answer,
        ):
            return await answer.text()

    nodes = list(supervisor.local_nodes.children.values())
    texts = await asyncio.gather(*(fetch(node.admin.path) for node in nodes), return_exceptions=True)
    return {node.name: text for node, text in zip(nodes, texts, strict=True) if isinstance(text, str)}


_PROCESS_METRICS = {
    "process_cpu_seconds_total": m.CPU_SECONDS,
    "process_resident_memory_bytes": m.RESIDENT_BYTES,
    "process_open_fds": m.OPEN_FILES,
}


def _node_families(texts: dict[str, str], store: MetricStore) -> list[Metric]:
    """The local nodes' `hsm_node_…` metrics with a `node` label; process figures go to `store`."""
    families: dict[str, Metric] = {}
    for node, text in texts.items():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                spec = _PROCESS_METRICS.get(sample.name)
                if spec is not None:
                    store.value(spec, f"node-{node}").value = sample.value
            if family.name.startswith("hsm_node_"):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    Sample(s.name, {"node": node, **s.labels}, s.value) for s in family.samples
                ]
    return list(families.values())
