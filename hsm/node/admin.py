"""A node's own HTTP address: /metrics, /livez, /readyz."""

from __future__ import annotations

import os
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hsm.config import Address
from hsm.node.server import NodeServer
from hsm.transport import listen_tcp, listen_unix


class _NodeCollector(Collector):
    def __init__(self, server: NodeServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        self._server.update_gauges()
        return self._server.store.families()


async def serve_admin(server: NodeServer, address: Address) -> web.AppRunner:
    """Serve until the runner's `cleanup`. Raises ConfigurationError if the address is taken."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(server))
    ProcessCollector(registry=registry)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_request: web.Request) -> web.Response:
        return web.json_response({"alive": True, "pid": os.getpid()})

    async def ready(_request: web.Request) -> web.Response:
        return web.json_response({"ready": True, "keys": len(server.token.keys())})

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/livez", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = listen_unix(address.path, 0o600) if address.path else listen_tcp(address, "admin")
    await web.SockSite(runner, sock).start()
    return runner
