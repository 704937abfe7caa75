"""Which route takes a request: by host, then by path. Pure.

The most specific host that has a route for the path decides (exact, then `*.` for one label, then
any), and within it the longest path, at the end of a segment: `/v2` takes `/v2` and `/v2/x`, not
`/v2x`. Upper and lower case are the same in a host and differ in a path.

A web server may read a path in another way than it was sent: `//`, `%61`, `%2F`, `\\`, `;x`, UTF-8 of more
bytes than it takes (`%C1%A1`, which is an ordinary character in GBK or EUC-KR) and, on Windows, `x.` mean
something to one and nothing to the next. If such a reading led to another route, a request could reach
what its route is to keep it from. So all readings are tried, and a request whose route depends on them is
refused. So is one with a segment `.` or `..` in any of them, which clients resolve before they send it
(RFC 3986 §6.2.2.3), and one with `%u0061`, which nobody sends in good faith. Any other passes on as it was
sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from offload.http.errors import HttpError
from offload.http.hosts import NAME_MOST, above, name_of

T = TypeVar("T")

REMEMBERED = 1024
"""Spellings of hosts whose routes are kept: a client with ever new ones takes up no memory, and shuts nobody out."""
DECODINGS_MOST = 3
"""So often is a path decoded, by escapes or overlong UTF-8: once by a web server, once more by each one behind it."""
EXAMINED_MOST = 2048
"""Bytes of a path with anything to read in several ways: reading it costs time."""

_PLAIN = re.compile(rb"(?:/[^%\\;$./?]++(?:\.++[^%\\;$./?]++)*+)*+/?+(?:\?|\Z)")
"""A target whose path every web server reads as it stands."""
_NEVER_MEANT_WELL = re.compile(
    rb"""
    [/\\]\.{1,2}(?:\x20[ .]*)?(?:[/\\;?#\0]|$)                 # dot segments, also as Windows trims them
    | %u[0-9A-Fa-f]{4}                                         # IIS: UTF-16
    """,
    re.VERBOSE,
)
_OVERLONG = re.compile(
    rb"(?:[\xc0\xc1]|(?:\xe0|\xf0\x80|\xf8\x80\x80|\xfc\x80\x80\x80)[\x80\x81])[\x80-\xbf]"
)
"""ASCII as UTF-8 of several bytes: the last bit of the last but one and six of the last are the character."""
_END = re.compile(rb"[?#\0].*", re.DOTALL)
_PARAMETERS = re.compile(rb"(?:;|::?\$)[^/]*")
"""With the streams of NTFS: `::$DATA`, `:$i30:$INDEX_ALLOCATION`."""
_TRIMMED = re.compile(rb"(?<![ .])[ .]++(?=/|$)")
_PORT = re.compile(rb":[0-9]*\Z")
_SLASHES = re.compile(rb"//+")


class Table(Generic[T]):
    """The routes of a host."""

    __slots__ = ("_pattern", "_routes", "only")

    def __init__(self, routes: Iterable[tuple[bytes, T]]) -> None:
        """The first one that takes a path is found. Paths have no slash at the end: all of them is empty."""
        entries = list(routes)
        paths = [path for path, _ in entries]
        self._routes = [route for _, route in entries]
        self._pattern = re.compile(
            b"(?:%b)(?=[/?]|\\Z)" % b"|".join(b"(%b)" % re.escape(path) for path in paths)
        )
        self.only: T | None = self._routes[0] if paths == [b""] else None
        """The one that takes every path, if there is no other."""

    def find(self, target: bytes) -> T | None:
        """The route for a path, read as it stands; a query may follow."""
        match = self._pattern.match(target)
        if match is None or match.lastindex is None:
            return None
        return self._routes[match.lastindex - 1]


class Routes(Generic[T]):
    """All routes of a listener. One that is found costs a look-up and a short loop."""

    __slots__ = ("_any", "_by_host", "_named")

    def __init__(self, entries: Iterable[tuple[str, str, T]]) -> None:
        """Each has a host in lower case (`*.` for any first label, empty for any host), a path, and what is found."""
        paths: dict[str, dict[bytes, T]] = {"": {}}
        for host, path, route in entries:
            paths.setdefault(host, {})[path.rstrip("/").encode()] = route
        self._named = {host: Table(_ordered(host, paths)) for host in paths}
        self._any = self._named.pop("")
        self._by_host: dict[bytes, Table[T]] = {}

    def find(self, host: bytes, target: bytes) -> T:
        """The route for a request with this Host and target (origin form, or `*`).

        Raises HttpError: 404 if there is none, 400 if it depends on how the path is read.
        """
        table = self._by_host.get(host)
        if table is None:
            table = self._table(host)
        if table.only is not None:
            return table.only
        if _PLAIN.match(target) is not None:
            found = table.find(target)
        elif target == b"*":  # OPTIONS: the server as a whole
            found = table.find(b"/")
        else:
            found = _find_read_anyhow(table, target.partition(b"?")[0])
        if found is None:
            raise HttpError(404, "no_route")
        return found

    def _table(self, host: bytes) -> Table[T]:
        name = name_of(host)
        table = self._named.get(name) or self._named.get(above(name)) or self._any
        if len(host) <= NAME_MOST:
            if len(self._by_host) >= REMEMBERED:
                self._by_host.clear()
            self._by_host[host] = table
        return table


def _ordered(host: str, paths: dict[str, dict[bytes, T]]) -> Iterator[tuple[bytes, T]]:
    """Those of the host itself, then those of less specific ones; longer paths first."""
    for each in dict.fromkeys((host, above(host), "")):
        found = paths.get(each, {})
        yield from sorted(found.items(), key=lambda item: -len(item[0]))
        if b"" in found:
            return


def _find_read_anyhow(table: Table[T], path: bytes) -> T | None:
    if len(path) > EXAMINED_MOST:
        raise HttpError(400, "ambiguous_path")
    found = table.find(path)
    for reading in readings(path):
        if table.find(reading) is not found:
            raise HttpError(400, "ambiguous_path")
    return found


def readings(path: bytes, decodings: int = DECODINGS_MOST) -> Iterator[bytes]:
    """What web servers may take a path for, which decode it at most so often.

    Raises HttpError (400) for one that only an attacker would send, and for one that is encoded again and again.
    """
    if decodings < 0 or _NEVER_MEANT_WELL.search(path):
        raise HttpError(400, "ambiguous_path")
    yield from _read_as_it_stands(path)
    for decoded in {unquote_to_bytes(path), _OVERLONG.sub(_shortened, path)} - {path}:
        yield from readings(decoded, decodings - 1)


def _shortened(overlong: re.Match[bytes]) -> bytes:
    *_, high, low = overlong[0]
    return bytes([(high & 1) << 6 | (low & 0x3F)])


def _read_as_it_stands(path: bytes) -> Iterator[bytes]:
    """A `\\` may be a slash, `;x` and a last dot not belong to a segment, `?`, `#` or NUL end the path, slashes be one."""
    variants = {path, _END.sub(b"", path)}
    variants |= {each.replace(b"\\", b"/") for each in variants}
    variants |= {_PARAMETERS.sub(b"", each) for each in variants}
    variants |= {_TRIMMED.sub(b"", each) for each in variants}
    for each in variants:
        yield each
        yield _SLASHES.sub(b"/", each)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Sends clients elsewhere."""

    status: int
    to: str
    """`https://{host}:8443/new{rest}`, as `config_http.RedirectSettings` has it."""
    path: str
    """The route's."""

    def location(self, host: bytes, target: bytes) -> bytes:
        """The URL for a request with this Host and target, which are known to be good ones."""
        target = target if target.startswith(b"/") else b"/"
        name = _PORT.sub(b"", host)
        url = self.to.encode().replace(b"{host}", name)
        if url.endswith(b"{path}"):
            return url.removesuffix(b"{path}") + target
        if url.endswith(b"{rest}"):
            return url.removesuffix(b"{rest}") + target[len(self.path.rstrip("/")) :]
        return url


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always answers the same."""

    status: int
    content_type: bytes
    body: bytes
