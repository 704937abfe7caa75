"""Which route takes a request, and which requests none may take."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.http.errors import HttpError
from offload.http.hosts import REMEMBERED, CertifiedNames, name_of
from offload.http.routes import EXAMINED_MOST, Redirect, Routes

SITE = Routes(
    [
        ("", "/", "any"),
        ("", "/healthz", "health"),
        ("api.example.org", "/v2", "v2"),
        ("api.example.org", "/v2/admin", "admin"),
        ("*.example.org", "/", "wild"),
        ("*.example.org", "/v2", "wild-v2"),
        ("www.example.org", "/", "www"),
    ]
)


@pytest.mark.parametrize(
    ("host", "target", "route"),
    [
        (b"other.net", b"/", "any"),
        (b"other.net", b"/healthz", "health"),
        (b"other.net", b"/healthz?deep=1", "health"),
        (b"other.net", b"/healthz/deep", "health"),
        (b"other.net", b"/healthzz", "any"),
        (b"api.example.org", b"/v2", "v2"),
        (b"API.Example.org:8443", b"/v2/users?x=/../admin", "v2"),
        (b"api.example.org.", b"/v2/admin/x", "admin"),
        (b"api.example.org", b"/V2", "wild"),
        (b"api.example.org", b"/healthz", "wild"),
        (b"www.example.org", b"/v2", "www"),
        (b"new.example.org", b"/v2", "wild-v2"),
        (b"a.b.example.org", b"/v2", "any"),
        (b"example.org", b"/v2", "any"),
        (b"[::1]:443", b"/x", "any"),
        (b"other.net", b"*", "any"),
    ],
)
def test_the_most_specific_host_then_the_longest_path(host: bytes, target: bytes, route: str) -> None:
    """A host with a route for everything shares none of a less specific one."""
    assert SITE.find(host, target) == route


def refusal(routes: Routes[str], target: bytes, host: bytes = b"x") -> tuple[int, str]:
    """How a request is refused."""
    with pytest.raises(HttpError) as caught:
        routes.find(host, target)
    return caught.value.status, caught.value.reason


def test_no_route() -> None:
    """404, and so for `OPTIONS *` where nothing takes everything."""
    routes = Routes([("", "/a", "a"), ("b", "/", "b")])
    assert refusal(routes, b"/b") == refusal(routes, b"*") == (404, "no_route")
    assert refusal(Routes[str]([]), b"/") == (404, "no_route")


GUARDED = Routes([("", "/", "open"), ("", "/admin", "closed"), ("", "/admin/public", "open")])


@pytest.mark.parametrize(
    "target",
    [
        b"//admin", b"/%61dmin", b"/%2561dmin", b"/%252561dmin", b"/./admin", b"/x/../admin", b"/x/%2e%2e/admin",
        b"/x/.%2E/admin", b"/x/%252e%252e/admin", b"/x/..;/admin", b"/x/..;a=b/admin", b"/admin;x", b"/;/admin",
        b"/\\admin", b"/%5cadmin", b"/%2fadmin", b"/%2Fadmin", b"/x\\..\\admin", b"/admin%00.png", b"/admin%3fx",
        b"/admin%23", b"/admin\\x", b"/admin/public/../x", b"/admin/public/..", b"/admin/public%2f..%2fx",
        b"/admin//public", b"/admin/public;/x\\..", b"/..", b"/.", b"/x/.", b"/%2525252561dmin",
        # To IIS, and whatever has its files on Windows.
        b"/%u0061dmin", b"/%u00%361dmin", b"/%25u0061dmin", b"/%c0%afadmin", b"/%c1%a1dmin", b"/%e0%81%a1dmin",
        b"/%c0%ae%c0%ae/admin", b"/x/%c0%ae", b"/%25c1%25a1dmin", b"/%c0%a561dmin", b"/%f0%80%81%a1dmin",
        b"/admin.", b"/admin..", b"/admin%20", b"/admin.%20./x", b"/admin./x", b"/.../admin", b"/x/..%20/admin",
        b"/x/.%2e%20./admin", b"/admin.;x", b"/admin::$DATA", b"/admin:$i30:$INDEX_ALLOCATION/x",
    ],
)  # fmt: skip
def test_ways_around_a_route_are_refused(target: bytes) -> None:
    """Each is below /admin to some web server, and not to another: 400, whatever was meant."""
    assert refusal(GUARDED, target) == (400, "ambiguous_path")


@pytest.mark.parametrize(
    ("target", "route"),
    [
        (b"/caf%C3%A9/a%20b", "open"),
        (b"/admin/a%2Fb", "closed"),
        (b"/projects/group%2Fproject", "open"),
        (b"/a//b", "open"),
        (b"/admin//b", "closed"),
        (b"/items;color=red/1", "open"),
        (b"/.well-known/security.txt", "open"),
        (b"/...", "open"),
        (b"/and-so-on...", "open"),
        (b"/admin/etc.", "closed"),
        (b"/a.b..c/$metadata", "open"),
        (b"/%C0%20propos", "open"),
        (b"/search/%C0%B4", "open"),
        (b"/%C0%BA%C7%E0", "open"),
        (b"/%C0%A4", "open"),
        (b"/admin/%C1%A1", "closed"),
        (b"/%untitled", "open"),
        (b"/100%", "open"),
        (b"/x?next=//admin/../%61", "open"),
        (b"/x/", "open"),
    ],
)
def test_what_leads_to_the_same_route_in_any_reading_passes(target: bytes, route: str) -> None:
    """Escapes and the like are usual, and no reason to refuse by themselves."""
    assert GUARDED.find(b"x", target) == route


def test_one_route_for_everything_asks_no_questions() -> None:
    """Where there is nothing to get around, the path is the web server's business."""
    assert Routes([("", "/", "all")]).find(b"x", b"/a/../%2e%2e//") == "all"


def test_long_doubtful_paths_are_refused() -> None:
    """Reading them in all ways would cost too much; plain ones may be long."""
    assert GUARDED.find(b"x", b"/" + b"a" * EXAMINED_MOST * 2) == "open"
    assert refusal(GUARDED, b"/%20" + b"a" * EXAMINED_MOST) == (400, "ambiguous_path")


def test_hosts_take_up_no_memory() -> None:
    """A client with ever new ones is answered all the same, and forgotten."""
    routes = Routes([("", "/", "any"), ("a", "/", "a")])
    for number in range(REMEMBERED + 10):
        assert routes.find(b"h%d" % number, b"/") == "any"
        assert len(routes._by_host) <= REMEMBERED
    assert routes.find(b"a", b"/") == "a"
    assert routes.find(b"x" * 5000, b"/") == "any"
    assert set(routes._by_host) == {b"a", *(b"h%d" % (REMEMBERED + number) for number in range(10))}


def _merge(path: bytes) -> bytes:
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path


def _resolve(path: bytes) -> bytes:
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    return b"/" + b"/".join(kept)


def _without_parameters(path: bytes) -> bytes:
    return b"/".join(segment.partition(b";")[0] for segment in path.split(b"/"))


def _trim(path: bytes) -> bytes:
    """As Windows does."""
    return b"/".join(segment.rstrip(b". ") or segment.rstrip(b" ") for segment in path.split(b"/"))


def _decode_utf_16(path: bytes) -> bytes:
    return re.sub(rb"%u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)).encode(), path)


def _decode_overlong(path: bytes) -> bytes:
    return re.sub(
        rb"[\xc0\xc1][\x80-\xbf]", lambda found: bytes([(found[0][0] & 1) * 64 + found[0][1] - 0x80]), path
    )


READINGS: dict[str, Callable[[bytes], bytes]] = {
    "decode": unquote_to_bytes,
    "merge": _merge,
    "resolve": _resolve,
    "backslash": lambda path: path.replace(b"\\", b"/"),
    "parameters": _without_parameters,
    "end": lambda path: path.partition(b"\0")[0],
    "trim": _trim,
    "utf-16": _decode_utf_16,
    "overlong": _decode_overlong,
}
"""What web servers, and those behind them, do to a path before they look at it."""

PIECES = st.sampled_from(
    [b"/", b"/", b"/admin", b"/public", b"admin", b"%61dmin", b"x", b".", b"..", b"%2e", b"%2f", b"%5c", b"\\", b";",
     b"%3b", b"%25", b"2f", b"2e", b"%00", b"%3f", b"%23", b"%20", b"u0061dmin", b"%u002f", b"%c0%af", b"%c0%ae",
     b"%c1%a1dmin", b"%c0%a5", b"61dmin"]
)  # fmt: skip


@given(
    st.lists(PIECES, max_size=8).map(lambda pieces: b"/" + b"".join(pieces)),
    st.lists(st.sampled_from(sorted(READINGS)), max_size=6).filter(lambda steps: steps.count("decode") <= 3),
)
def test_no_reading_leads_to_another_route(path: bytes, steps: list[str]) -> None:
    """Whatever servers do to a path that passes, in whatever order: it would have had the same route."""
    try:
        route = GUARDED.find(b"x", path)
    except HttpError:
        return
    for step in steps:
        path = READINGS[step](path)
    segments = path.split(b"/")
    assert (route == "closed") == (segments[1:2] == [b"admin"] and segments[2:3] != [b"public"])


@given(st.binary(max_size=60), st.binary(max_size=60).map(lambda rest: b"/" + rest))
def test_anything_has_a_route_or_is_refused(host: bytes, target: bytes) -> None:
    """No input breaks it."""
    with contextlib.suppress(HttpError):
        assert SITE.find(host, target)


@pytest.mark.parametrize(
    ("to", "host", "target", "url"),
    [
        ("https://{host}{path}", b"Example.org:8080", b"/a?b", b"https://Example.org/a?b"),
        ("https://{host}:8443{path}", b"[::1]:80", b"//evil.org/", b"https://[::1]:8443//evil.org/"),
        ("https://{host}{path}", b"a", b"*", b"https://a/"),
        ("https://b.org/new{rest}", b"a", b"/old/x?y", b"https://b.org/new/x?y"),
        ("https://b.org{rest}", b"a", b"/old?y", b"https://b.org?y"),
        ("https://b.org/new", b"a", b"/old/x", b"https://b.org/new"),
        ("https://b.org/{path}", b"a", b"/{host}{rest}", b"https://b.org//{host}{rest}"),
    ],
)
def test_where_redirects_lead(to: str, host: bytes, target: bytes, url: bytes) -> None:
    """To the host that the configuration says or the client asked for; what a client sent is not expanded."""
    assert Redirect(308, to, "/old").location(host, target) == url


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"Example.ORG", "example.org"),
        (b"example.org.:8443", "example.org"),
        (b"[2001:DB8::1]:443", "2001:db8::1"),
        (b"127.0.0.1", "127.0.0.1"),
        (b"a:b:c", ""),
    ],
)
def test_names_of_hosts(host: bytes, name: str) -> None:
    """Case, port and a final dot make no difference."""
    assert name_of(host) == name


CERTIFICATES = CertifiedNames([["example.org", "*.example.org"], ["other.net"], ["shop.example.org"]])


@pytest.mark.parametrize(
    ("server_name", "host", "covered"),
    [
        ("example.org", b"example.org", True),
        ("example.org", b"www.example.org:443", True),
        ("www.example.org", b"EXAMPLE.org", True),
        ("example.org", b"other.net", False),
        ("other.net", b"example.org", False),
        ("example.org", b"a.b.example.org", False),
        ("shop.example.org", b"shop.example.org", True),
        ("shop.example.org", b"www.example.org", True),
        ("", b"anything", True),
        ("unknown", b"unknown", True),
        ("unknown", b"example.org", True),
        ("unknown", b"other.net", False),
    ],
)
def test_connections_and_hosts(server_name: str, host: bytes, covered: bool) -> None:
    """A client may ask for what it named, and for what the certificate it was shown is good for."""
    assert CERTIFICATES.covers(server_name, host) is covered
    assert CERTIFICATES.covers(server_name, host) is covered
