"""One log line per request, when it is over: as web servers write it ("combined"), or as JSON. Pure.

Everything that came from outside is bounded and escaped, so that no line can be forged. Headers that
carry secrets (Authorization, Cookie) are never looked at; queries, in which some applications put them,
are left out unless the configuration asks for them. What is no request may be a piece of a body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

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
_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} +(?:/|\*|[A-Za-z][A-Za-z0-9+.-]*://)")
"""What a request line begins with, more or less."""
_USER_ANYWHERE = re.compile(rb"//[^/?#]*@")


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

    @property
    def tls_fields(self) -> dict[str, object]:
        """As both forms tell them; none without TLS."""
        if not self.tls_version:
            return {}
        fields: dict[str, object] = {
            "tls": self.tls_version,
            "cipher": self.cipher,
            "sni": plain(self.server_name),
            "resumed": self.resumed,
            "node": self.node,
            "signature_ms": self.signature_ms,
        }
        return {name: value for name, value in fields.items() if value not in ("", None)}


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
    bytes_up: int
    """From the client, and"""
    bytes_down: int
    """to it, heads included."""
    seconds: float
    server: str
    """The web server that was asked; empty if none was."""
    server_seconds: float
    """From the server being asked to the first byte of its response; 0 if there was none."""
    line: bytes = b""
    """What came in the place of a first line if there was no reading the request; method and target are `-` then."""


class AccessLog:
    """Decides which requests of a worker get a line, and writes it."""

    def __init__(self, settings: AccessLogSettings, write: Callable[[str], object], process: str) -> None:
        """`write` takes a line without waiting; `process` is what other lines of the log call this one."""
        self._sample = Sample(settings.sample)
        self._query = settings.query
        self._form: type[Form] = _Json if settings.format == "json" else _Combined
        self._write = write
        self._process = process

    def wants(self, status: int, reason: str) -> bool:
        """Whether such a request gets a line: a failure always, else a sample."""
        return self._sample.takes_next() or status >= 500 or reason != ""

    def form(self, caller: Caller) -> Form:
        """How lines of this caller look; to keep as long as its connection."""
        return self._form(caller, self._process)

    def write(self, form: Form, entry: Entry, now: float) -> None:
        """The line of a request that ended at this Unix time."""
        entry.target = shown_url(entry.target, self._query)
        entry.referer = shown_url(entry.referer, self._query)
        entry.line = shown_line(entry.line, self._query)
        self._write(form.line(entry, now))


def shown_url(url: bytes, with_query: bool) -> bytes:
    """Without user and password, and without query unless it is wanted."""
    if not with_query:
        url = url.partition(b"?")[0]
    return url if url.startswith(b"/") and not url.startswith(b"//") else _USER.sub(rb"\1//", url)


def shown_line(line: bytes, with_query: bool) -> bytes:
    """The same of a line with a URL anywhere; of one that does not begin like a request, only how long it is."""
    if line and _REQUEST.match(line) is None:
        return b"(%d bytes)" % len(line)
    return _USER_ANYWHERE.sub(b"//", line if with_query else line.partition(b"?")[0])


def quotable(text: bytes, most: int) -> str:
    """At most so many bytes, to stand between double quotes: visible ASCII and spaces, any other as `\\xHH`."""
    return _NOT_QUOTABLE.sub(lambda found: b"\\x%02x" % found[0][0], text[:most]).decode()


class Form(Protocol):
    """A form of lines; what is the same for all requests of a connection is made once."""

    def __init__(self, caller: Caller, process: str) -> None: ...

    def line(self, entry: Entry, now: float) -> str:
        """The line of a request that ended at this Unix time."""


class _Combined:
    def __init__(self, caller: Caller, _process: str) -> None:
        self._address = plain(caller.address)
        self._listener = caller.listener
        self._end = "".join(f" {name}={value}" for name, value in caller.tls_fields.items())

    def line(self, entry: Entry, now: float) -> str:
        """As nginx and Apache have it; then `name=value` pairs, which have no spaces."""
        more = "".join(f" {name}={value}" for name, value in _optional(entry) if value)
        return (
            f"{self._address} - - [{_clock(int(now))}] "
            f'"{_first_line(entry)}" '
            f'{entry.status} {entry.bytes_down} "{quotable(entry.referer, TEXT_MOST) or "-"}" '
            f'"{quotable(entry.user_agent, TEXT_MOST) or "-"}" '
            f"request_id={entry.request_id.decode()} listener={self._listener} route={entry.route} "
            f"bytes_up={entry.bytes_up} ms={entry.seconds * 1000:.3f}{more}{self._end}"
        )


class _Json:
    def __init__(self, caller: Caller, process: str) -> None:
        self._start = {"event": "request", "level": "info", "process": process}
        self._caller = {"listener": caller.listener, "peer": plain(caller.address), "port": caller.port}
        self._end = caller.tls_fields

    def line(self, entry: Entry, now: float) -> str:
        """An object like those of all other lines of the log."""
        return json.dumps(
            {
                **self._start,
                **self._caller,
                "method": _text(entry.method, TEXT_MOST),
                "target": _text(entry.target, TARGET_MOST),
                "version": f"1.{entry.minor}",
                "status": entry.status,
                "request_id": entry.request_id.decode(),
                "route": entry.route,
                "bytes_up": entry.bytes_up,
                "bytes_down": entry.bytes_down,
                "ms": round(entry.seconds * 1000, 3),
                **{name: value for name, value in _texts(entry) if value},
                **{name: value for name, value in _optional(entry) if value},
                **self._end,
                "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            }
        )


def _first_line(entry: Entry) -> str:
    if entry.line:
        return quotable(entry.line, TARGET_MOST)
    return f"{quotable(entry.method, TEXT_MOST)} {quotable(entry.target, TARGET_MOST)} HTTP/1.{entry.minor}"


def _texts(entry: Entry) -> tuple[tuple[str, str], ...]:
    return (
        ("referer", _text(entry.referer, TEXT_MOST)),
        ("user_agent", _text(entry.user_agent, TEXT_MOST)),
        ("request_line", _text(entry.line, TARGET_MOST)),
    )


def _optional(entry: Entry) -> tuple[tuple[str, object], ...]:
    """What the combined form has no place for, and is not always there: visible ASCII without spaces."""
    return (
        ("host", plain(entry.host.decode("latin-1"))),
        ("reason", entry.reason),
        ("forwarded_for", plain(entry.forwarded_for.decode("latin-1"))),
        ("server", plain(entry.server)),
        ("server_ms", round(entry.server_seconds * 1000, 3)),
    )


@lru_cache(1)
def _clock(second: int) -> str:
    """As web servers write a time: 15/Jun/2025:15:06:40 +0000."""
    when = datetime.fromtimestamp(second, UTC)
    return f"{when.day:02}/{_MONTHS[when.month - 1]}/{when:%Y:%H:%M:%S} +0000"


def _text(data: bytes, most: int) -> str:
    return data[:most].decode(errors="backslashreplace")
