"""One log line per request, when it is over: as web servers write it ("combined"), or as JSON. Pure.

Everything that came from outside is bounded and escaped, so that no line can be forged. Headers that
carry secrets (Authorization, Cookie) are never looked at; queries, in which some applications put them,
are left out unless the configuration asks for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from offload.config_http import AccessLogSettings
from offload.connection_log import plain
from offload.sampling import Sample

TARGET_MOST = 2048
"""Bytes of a request's target."""
TEXT_MOST = 512
"""Bytes of another text that a client chose."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NOT_QUOTABLE = re.compile(rb"[^ !#-\[\]-~]")
_USER = re.compile(rb"^([A-Za-z][0-9A-Za-z+.-]*:)?//[^/?#]*@")


@dataclass(frozen=True, slots=True)
class Caller:
    """What is the same for all requests of a connection."""

    listener: str
    address: str
    """Of the TLS client, without its port."""
    port: int
    tls_version: str = ""
    """Empty, and so are the others, without TLS."""
    cipher: str = ""
    server_name: str = ""
    """The SNI, as the client sent it."""
    resumed: bool = False
    node: str = ""
    """Who signed for its handshake; empty when that resumed a session."""
    signature_ms: float | None = None


@dataclass(slots=True)
class Entry:
    """One request, and what became of it."""

    method: bytes
    target: bytes
    minor: int
    """Second digit of the HTTP version."""
    host: bytes
    referer: bytes
    user_agent: bytes
    forwarded_for: bytes
    """X-Forwarded-For as a trusted peer sent it; empty from others."""
    request_id: bytes
    route: str
    status: int
    """Of the response; 0 if none was begun."""
    reason: str
    """Why we answered ourselves or broke off; empty if all went well."""
    bytes_in: int
    bytes_out: int
    seconds: float
    server: str
    """The web server that was asked; empty if none was."""
    server_seconds: float | None
    """From the request's head sent to the first byte of the response."""


class AccessLog:
    """Decides which requests of a worker get a line, and writes it."""

    def __init__(self, settings: AccessLogSettings, write: Callable[[str], object], process: str) -> None:
        """`write` takes a line without waiting; `process` is what other lines of the log call this one."""
        self._sample = Sample(settings.sample)
        self._query = settings.query
        self._line = _json if settings.format == "json" else _combined
        self._write = write
        self._process = process

    def wants(self, status: int, reason: str) -> bool:
        """Whether such a request gets a line: a failure always, else a sample."""
        return self._sample.takes_next() or status >= 500 or reason != ""

    def write(self, caller: Caller, entry: Entry, now: float) -> None:
        """The line of a request that ended at this Unix time."""
        entry.target = shown_url(entry.target, self._query)
        entry.referer = shown_url(entry.referer, self._query)
        self._write(self._line(caller, entry, now, self._process))


def shown_url(url: bytes, with_query: bool) -> bytes:
    """Without user and password, and without query unless it is wanted."""
    if not with_query:
        url = url.partition(b"?")[0]
    return url if url.startswith(b"/") and not url.startswith(b"//") else _USER.sub(rb"\1//", url)


def quotable(text: bytes, most: int) -> str:
    """At most so many bytes, to stand between double quotes: visible ASCII and spaces, any other as `\\xHH`."""
    return _NOT_QUOTABLE.sub(lambda found: b"\\x%02x" % found[0][0], text[:most]).decode()


def _combined(caller: Caller, entry: Entry, now: float, _process: str) -> str:
    when = datetime.fromtimestamp(now, UTC)
    line = (
        f"{plain(caller.address)} - - [{when.day:02}/{_MONTHS[when.month - 1]}/{when:%Y:%H:%M:%S} +0000] "
        f'"{quotable(entry.method, TEXT_MOST)} {quotable(entry.target, TARGET_MOST)} HTTP/1.{entry.minor}" '
        f'{entry.status} {entry.bytes_out} "{quotable(entry.referer, TEXT_MOST) or "-"}" '
        f'"{quotable(entry.user_agent, TEXT_MOST) or "-"}"'
    )
    more = _more(caller, entry)
    return line + "".join(f" {name}={plain(str(value))}" for name, value in more.items())


def _json(caller: Caller, entry: Entry, now: float, process: str) -> str:
    fields: dict[str, Any] = {
        "event": "request", "level": "info", "process": process, "peer": plain(caller.address), "port": caller.port,
        "method": _text(entry.method, TEXT_MOST), "target": _text(entry.target, TARGET_MOST),
        "version": f"1.{entry.minor}", "status": entry.status, "bytes_out": entry.bytes_out,
        "referer": _text(entry.referer, TEXT_MOST), "user_agent": _text(entry.user_agent, TEXT_MOST),
        **_more(caller, entry),
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }  # fmt: skip
    return json.dumps({name: value for name, value in fields.items() if value != ""})


def _more(caller: Caller, entry: Entry) -> dict[str, object]:
    """What the combined form has no place for; what is empty or did not happen is left out."""
    fields: dict[str, object] = {
        "host": _text(entry.host, TEXT_MOST),
        "request_id": entry.request_id.decode(errors="backslashreplace"),
        "listener": caller.listener,
        "route": entry.route,
        "reason": entry.reason,
        "forwarded_for": _text(entry.forwarded_for, TEXT_MOST),
        "bytes_in": entry.bytes_in,
        "ms": round(entry.seconds * 1000, 3),
        "server": entry.server,
        "server_ms": None if entry.server_seconds is None else round(entry.server_seconds * 1000, 3),
    }
    if caller.tls_version:
        fields |= {
            "tls": caller.tls_version,
            "cipher": caller.cipher,
            "sni": plain(caller.server_name),
            "resumed": caller.resumed,
            "node": caller.node,
            "signature_ms": caller.signature_ms,
        }
    return {name: value for name, value in fields.items() if value not in ("", None)}


def _text(data: bytes, most: int) -> str:
    return data[:most].decode(errors="backslashreplace")
