"""A node's own HTTP address: /metrics, /livez, /readyz, listed by /; one GET or HEAD a connection.

Answered here, and not by an HTTP server with all that one can do: the process that holds the keys
has the less in it, and starts 0.2 s sooner.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hsm.config import Address
from hsm.node.server import NodeServer
from hsm.transport import listen_tcp, listen_unix

HEAD_MOST = 8192
"""Bytes of a request; it has no body."""
REQUEST_TIMEOUT = 10.0
"""Seconds from a connection to the end of its answer."""

Page = Callable[[], tuple[str, bytes]]
"""Makes a page: its media type and its bytes."""

_REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.[01]\r\n")


class _NodeCollector(Collector):
    def __init__(self, server: NodeServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        self._server.update_gauges()
        return self._server.store.families()


async def serve_admin(server: NodeServer, address: Address) -> asyncio.Server:
    """Serve until it is closed. Raises ConfigurationError if the address is taken."""
    pages = _pages(server)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                writer.write(answer(await reader.readuntil(b"\r\n\r\n"), pages))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # a client that says too little or too much, or has gone
        finally:
            writer.close()

    if address.path:
        return await asyncio.start_unix_server(serve, sock=listen_unix(address.path, 0o600), limit=HEAD_MOST)
    return await asyncio.start_server(serve, sock=listen_tcp(address, "admin"), limit=HEAD_MOST)


def _pages(server: NodeServer) -> dict[str, Page]:
    registry = CollectorRegistry()
    registry.register(_NodeCollector(server))
    ProcessCollector(registry=registry)
    return {
        "/metrics": lambda: (CONTENT_TYPE_LATEST, generate_latest(registry)),
        "/livez": lambda: _json(alive=True, pid=os.getpid()),
        "/readyz": lambda: _json(ready=True, keys=len(server.token.keys())),
    }


def _json(**values: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(values).encode()


def answer(head: bytes, pages: Mapping[str, Page]) -> bytes:
    """The whole answer to a request's head, whatever that is; the connection ends with it (RFC 9112 §9.6)."""
    request = _REQUEST.match(head)
    if request is None:
        return _response("400 Bad Request")
    method, target = (part.decode("ascii") for part in request.groups())
    path = target.partition("?")[0]
    page = _contents(pages) if path == "/" else pages.get(path)
    if page is None:
        return _response("404 Not Found")
    if method not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", "Allow: GET, HEAD\r\n")
    kind, body = page()
    response = _response("200 OK", f"Content-Type: {kind}\r\n", len(body))
    return response if method == "HEAD" else response + body


def _contents(pages: Mapping[str, Page]) -> Page:
    return lambda: ("text/plain", "".join(f"{path}\n" for path in pages).encode())


def _response(status: str, fields: str = "", length: int = 0) -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode()
