"""Real applications behind the proxy that tell what they saw: under aiohttp, and under WSGI."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from aiohttp import web

WHISPERED = {"Server": "inner/1.0", "X-Powered-By": "inner", "Strict-Transport-Security": "max-age=1"}
"""Headers of the responses besides ordinary ones."""


async def _mirror(request: web.Request) -> web.Response:
    fields = [[name.decode(), value.decode()] for name, value in request.raw_headers]
    told = {"method": request.method, "path": request.raw_path, "headers": fields}
    return web.json_response(told, headers=WHISPERED)


async def _serve(started: threading.Event, found: dict[str, Any]) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _mirror)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    found["address"] = "{}:{}".format(*runner.addresses[0][:2])
    found["stop"] = lambda: loop.call_soon_threadsafe(stop.set)
    started.set()
    await stop.wait()
    await runner.cleanup()


@contextmanager
def mirror() -> Iterator[str]:
    """An application that answers with the request's headers, as JSON; its address."""
    started, found = threading.Event(), dict[str, Any]()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(started, found)))
    thread.start()
    assert started.wait(20)
    try:
        yield found["address"]
    finally:
        found["stop"]()
        thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _environ(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = json.dumps({name: value for name, value in environ.items() if name.startswith("HTTP_")}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def wsgi() -> Iterator[str]:
    """A WSGI application that answers with its variables of headers, as JSON; its address."""
    with make_server("127.0.0.1", 0, _environ, handler_class=_Silent) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(0.05))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
