"""Applications as people write them, for real application servers: what they are asked comes back as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

Environment = dict[str, Any]
PAGE = b"""<!doctype html><title>waiting</title><body><script>
(async () => {
  const echo = await (await fetch("/echo?a=b", {method: "POST", body: "x".repeat(100000)})).json();
  const text = await (await fetch("/stream")).text();
  const socket = new WebSocket(`wss://${location.host}/page`);
  socket.onopen = () => socket.send("hello");
  socket.onmessage = (message) => {
    document.body.textContent = JSON.stringify([echo.size, echo.query, text.length, message.data]);
    socket.close();
  };
})();
</script><script src="/hold"></script></body>"""
"""What a browser does: a request with a body, a streamed answer, a WebSocket. Its loading ends with the last."""

_page_done = asyncio.Event()

CHUNKS, CHUNK = 50, b"0123456789abcdef" * 64


def wsgi(environment: Environment, start_response: Callable[..., object]) -> Iterable[bytes]:
    """Under WSGI: /stream is sent piece by piece, anything else is echoed."""
    if environment["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (CHUNK for _ in range(CHUNKS))
    body = hashlib.sha256()
    size = 0
    for part in _parts(environment["wsgi.input"]):
        body.update(part)
        size += len(part)
    headers = {
        key[5:].lower().replace("_", "-"): value
        for key, value in environment.items()
        if key.startswith("HTTP_")
    }
    answer = _echo(
        environment["REQUEST_METHOD"], environment["QUERY_STRING"], headers, size, body.hexdigest()
    )
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def _parts(body: Any) -> Iterator[bytes]:
    while part := body.read(65536):
        yield part


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def asgi(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Under ASGI: the same, WebSockets that echo, and a page whose /hold lasts until its WebSocket is closed."""
    if scope["type"] == "websocket":
        await _echo_socket(receive, send)
        if scope["path"] == "/page":
            _page_done.set()
    elif scope["type"] == "http":
        await _answer(scope, receive, send)


async def _answer(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    body, size, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        body.update(message.get("body", b""))
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/hold":
        await _page_done.wait()
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body"})
        return
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode()
    answer = PAGE if scope["path"] == "/" else _echo(scope["method"], query, headers, size, body.hexdigest())
    kind = b"text/html" if scope["path"] == "/" else b"application/json"
    fields = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": answer})


async def _echo_socket(receive: Receive, send: Send) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            elif message.get("text") is not None:
                await send({"type": "websocket.send", "text": message["text"]})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"]})


def _echo(method: str, query: str, headers: dict[str, str], size: int, sha256: str) -> bytes:
    told = {"method": method, "query": query, "headers": headers, "size": size, "sha256": sha256}
    return json.dumps(told).encode()
