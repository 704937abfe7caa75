"""Responses that are the proxy's own: errors, redirects, fixed answers. Pure.

An error's body is a small page, or JSON (RFC 9457) where the client likes that better; both tell the
request's id and nothing of what is behind the proxy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from offload.http.accept import preferred
from offload.http.header_rules import HeaderChanges

HTML, JSON, PROBLEM = b"text/html", b"application/json", b"application/problem+json"
_CONTENT_TYPES = {HTML: b"text/html; charset=utf-8", JSON: JSON, PROBLEM: PROBLEM}

_REQUEST_ID = b"{request_id}"

_EXPLAINED = {
    400: "This server could not understand the request.",
    403: "This is not for everybody.",
    404: "There is nothing at this address.",
    405: "This server takes no requests of this method.",
    408: "The request took too long to arrive.",
    413: "The request is larger than this server accepts.",
    414: "The address of the request is longer than this server accepts.",
    417: "This server cannot do what the request expects of it.",
    421: "This server does not answer for this name on this connection.",
    431: "The head of the request is larger than this server accepts.",
    500: "Something went wrong on our side.",
    501: "This server cannot do what was asked of it.",
    502: "The server behind this address gave no valid answer.",
    503: "The service is not available at the moment. Please try again shortly.",
    504: "The server behind this address took too long to answer.",
    505: "This server does not speak this version of HTTP.",
}
_ALLOW = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
"""With 405 (RFC 9110 §15.5.6), in which CONNECT and TRACE are refused: the usual ones of all others."""
_RENAMED = {413: b"Content Too Large", 414: b"URI Too Long"}
"""By RFC 9110: Python's names depend on its version."""
_BY_CLASS = {4: "The request cannot be answered.", 5: "Something went wrong on our side."}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{status} {phrase}</title>
<style>
body {{ font: 1.0625rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 18vh auto 2rem; padding: 0 1.5rem }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem }}
p {{ margin: 0 0 1.5rem }}
small {{ opacity: .7; overflow-wrap: anywhere }}
</style>
<h1>{status} {phrase}</h1>
<p>{explained}</p>
<small>Request {{request_id}}</small>
</html>
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What an answer depends on; the defaults are those of a request that could not be read."""

    accept: bytes = b""
    request_id: bytes = b""
    is_head: bool = False


class Page:
    """A body with places for the request's id, `{request_id}`."""

    __slots__ = ("_parts",)

    def __init__(self, content: bytes) -> None:
        self._parts = content.split(_REQUEST_ID)

    def body(self, request_id: bytes) -> bytes:
        """With the id in its places."""
        return request_id.join(self._parts)


class Answers:
    """The answers of a listener or route, with pages of its own and its rules for responses."""

    def __init__(
        self, pages: Mapping[int, bytes] | None = None, changes: HeaderChanges | None = None
    ) -> None:
        """`pages`: HTML for some statuses, in place of ours."""
        self._own = {status: Page(content) for status, content in (pages or {}).items()}
        self._made: dict[tuple[int, bytes], Page] = {}
        self._changes = changes or HeaderChanges()

    def error(
        self, status: int, request: Request, now: float, *, close: bool, retry_after: float | None = None
    ) -> bytes:
        """An error's response, at a Unix time; `retry_after` in seconds."""
        media = preferred(request.accept, (HTML, JSON, PROBLEM))
        body = self._page(status, media).body(request.request_id or b"-")
        lines = b"Content-Type: " + _CONTENT_TYPES[media] + b"\r\nCache-Control: no-store\r\n"
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            lines += _ALLOW
        if retry_after is not None:
            lines += b"Retry-After: %d\r\n" % -(-retry_after // 1)
        return self._response(status, lines, body, request, now, close=close)

    def _page(self, status: int, media: bytes) -> Page:
        if media == HTML and status in self._own:
            return self._own[status]
        page = self._made.get((status, media))
        if page is None:
            page = self._made[status, media] = Page(_html(status) if media == HTML else _json(status))
        return page

    def redirect(self, status: int, location: bytes, request: Request, now: float, *, close: bool) -> bytes:
        """To a URL that is known to be one line."""
        return self._response(status, b"Location: " + location + b"\r\n", b"", request, now, close=close)

    def fixed(
        self, status: int, content_type: bytes, body: bytes, request: Request, now: float, *, close: bool
    ) -> bytes:
        """What a route always answers."""
        lines = b"Content-Type: " + content_type + b"\r\n" if body else b""
        return self._response(status, lines, body, request, now, close=close)

    def _response(
        self, status: int, lines: bytes, body: bytes, request: Request, now: float, *, close: bool
    ) -> bytes:
        date = formatdate(now, usegmt=True).encode()
        lines = b"Date: " + date + b"\r\n" + lines
        if request.request_id:
            lines += b"X-Request-ID: " + request.request_id + b"\r\n"
        head = b"HTTP/1.1 %d %b\r\n" % (status, phrase(status))
        head += HeaderChanges(lines=lines).followed_by(self._changes).lines
        if status != HTTPStatus.NO_CONTENT:
            head += b"Content-Length: %d\r\n" % len(body)
        head += b"Connection: close\r\n\r\n" if close else b"\r\n"
        return head if request.is_head else head + body


def phrase(status: int) -> bytes:
    """The reason phrase of a status; empty for one that nobody has named."""
    try:
        return _RENAMED.get(status) or HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _explained(status: int) -> str:
    return _EXPLAINED.get(status) or _BY_CLASS.get(status // 100, "")


def _html(status: int) -> bytes:
    return _PAGE.format(status=status, phrase=phrase(status).decode(), explained=_explained(status)).encode()


def _json(status: int) -> bytes:
    fields = {"type": "about:blank", "title": phrase(status).decode(), "status": status,
              "detail": _explained(status), "request_id": "{request_id}"}  # fmt: skip
    return json.dumps(fields).encode() + b"\n"
