"""Heads: what is refused, what is understood, and what of it is written for the other side."""

from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offload.http.body import CHUNKED, NO_BODY, UNTIL_CLOSE
from offload.http.errors import HttpError
from offload.http.fields import REMEMBERED, FieldLines
from offload.http.guarded import DroppedNames
from offload.http.head import (
    REQUEST_DROP,
    RESPONSE_DROP,
    RequestHead,
    ResponseHead,
    head_size,
    parse_request,
    parse_response,
    pass_trailers,
    write_request,
    write_response,
)

REQUEST_DROPPED, RESPONSE_DROPPED = DroppedNames(REQUEST_DROP), DroppedNames(RESPONSE_DROP)


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a.test") -> bytes:
    """A request's head."""
    return b"\r\n".join((line, *((host,) if host else ()), *fields, b"", b""))


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A response's head."""
    return b"\r\n".join((line, *fields, b"", b""))


def status_of(data: bytes) -> tuple[int, str]:
    """What a request is refused with."""
    with pytest.raises(HttpError) as caught:
        parse_request(data, 100)
    return caught.value.status, caught.value.reason


CHUNKS = b"Transfer-Encoding: chunked"
FIVE = b"Content-Length: 5"
REFUSED = {
    # What is no head, and lines that some read as one field, and some as another or as two.
    "malformed": [
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        *(
            request(line=line)
            for line in (
                b"GET  / HTTP/1.1", b" GET / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /a b HTTP/1.1", b"GET\t/ HTTP/1.1",
                b"GET /\xc3\xa4 HTTP/1.1", b"get / HTTP/1.1", b"G=T / HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1.10",
            )
        ),
        *(
            request(field)
            for field in (
                b"X : 1", b"X\t: 1", b" X: 1", b"X: 1\r\n folded", b"X: 1\r\n\tfolded", b"X: 1\nY: 2", b"X: 1\rY: 2",
                b"X: 1\r", b"X: a\0b", b"X: a\x7fb", b"X: a\x0bb", b"X\xe4: 1", b": 1", b"X", b"X(y): 1",
            )
        ),
    ],
    # Whose request it is.
    "host": [
        *(
            request(host=host)
            for host in (
                b"", b"Host: a.test\r\nHost: a.test", b"Host: a.test\r\nhost: b.test", b"Host: a.test, b.test", b"Host:",
                b"Host: a b", b"Host: a@b", b"Host: a/b", b"Host: a:port", b"Host: " + b"a" * 256,
                b"Host: [" + b":" * 46 + b"]",
            )
        ),
        request(line=b"GET / HTTP/1.0", host=b""),
        *(request(line=b"GET %b HTTP/1.1" % url) for url in (b"http://b.test/", b"http://a.test@b.test/", b"http://a.test:80/")),
    ],
    "target": [
        request(line=b"GET %b HTTP/1.1" % target)
        for target in (b"ftp://a.test/", b"a.test", b"*", b"/a#b", b"http://a.test/#b")
    ],
    # Where its body ends.
    "transfer_encoding": [
        request(FIVE, CHUNKS),
        request(CHUNKS, FIVE),
        request(CHUNKS, CHUNKS),
        request(CHUNKS, line=b"POST / HTTP/1.0"),
        *(
            request(b"Transfer-Encoding: " + coding)
            for coding in (b"gzip, chunked", b"chunked, identity", b"identity", b"xchunked", b"chunked;q=1", b"")
        ),
    ],
    "content_length": [
        request(FIVE, FIVE),
        request(FIVE, b"Content-Length: 6"),
        *(
            request(b"Content-Length: " + length)
            for length in (b"5, 5", b"+5", b"-5", b"0x5", b"5 5", b"\xd9\xa5", b"", b"9" * 19)
        ),
    ],
}  # fmt: skip
"""By the word for the log."""


@pytest.mark.parametrize(
    ("data", "reason"), [(data, reason) for reason, heads in REFUSED.items() for data in heads]
)
def test_requests_that_are_refused(data: bytes, reason: str) -> None:
    """Whatever two readers could understand differently: 400.

    llhttp may be of the same opinion first; the status is the same then.
    """
    status, word = status_of(data)
    assert status == 400
    assert word in (reason, "malformed")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (request(line=b"GET / HTTP/2.0"), (505, "version")),
        (request(line=b"GET / HTTP/1.2"), (505, "version")),
        (request(line=b"GET / HTTP/0.9"), (505, "version")),
        (request(line=b"CONNECT a.test:443 HTTP/1.1"), (405, "method")),
        (request(line=b"TRACE / HTTP/1.1"), (405, "method")),
        (request(b"Expect: 200-ok"), (417, "expectation")),
        (request(*[b"X: 1"] * 100), (431, "too_many_headers")),
    ],
)  # fmt: skip
def test_requests_with_a_status_of_their_own(data: bytes, expected: tuple[int, str]) -> None:
    """They can be read, but not answered."""
    assert status_of(data) == expected


@pytest.mark.parametrize(
    ("fields", "line", "expected"),
    [
        ((), b"GET / HTTP/1.1", {"framing": NO_BODY, "keep_alive": True}),
        ((), b"GET / HTTP/1.0", {"keep_alive": False}),
        ((b"Connection: Keep-Alive",), b"GET / HTTP/1.0", {"keep_alive": True, "not_forwarded": frozenset()}),
        ((b"Connection: x, close",), b"GET / HTTP/1.1", {"keep_alive": False, "not_forwarded": {b"x"}}),
        ((b"Connection: A", b"Connection: b"), b"GET / HTTP/1.1", {"not_forwarded": {b"a", b"b"}}),
        ((b"Content-Length: 005",), b"POST / HTTP/1.1", {"framing": 5}),
        ((b"transfer-encoding:CHUNKED ",), b"POST / HTTP/1.1", {"framing": CHUNKED}),
        ((b"Expect: 100-Continue", FIVE), b"POST / HTTP/1.1", {"expects_continue": True}),
        ((b"Expect: 100-continue",), b"GET / HTTP/1.1", {"expects_continue": False}),
        ((b"Expect: any", FIVE), b"POST / HTTP/1.0", {"expects_continue": False}),
        ((b"TE: gzip, Trailers",), b"GET / HTTP/1.1", {"trailers": True}),
        ((b"TE: gzip",), b"GET / HTTP/1.1", {"trailers": False}),
        ((b"Connection: Upgrade", b"Upgrade: websocket"), b"GET / HTTP/1.1", {"upgrade": b"websocket"}),
        ((b"Upgrade: websocket",), b"GET / HTTP/1.1", {"upgrade": b""}),
        ((b"Connection: Upgrade", b"Upgrade: h2c"), b"GET / HTTP/1.1", {"upgrade": b""}),
        ((b"Connection: Upgrade", b"Upgrade: a, b"), b"GET / HTTP/1.1", {"upgrade": b""}),
        ((b"Connection: Upgrade", b"Upgrade: a", FIVE), b"POST / HTTP/1.1", {"upgrade": b""}),
        ((b"Connection: Upgrade", b"Upgrade: a"), b"GET / HTTP/1.0", {"upgrade": b""}),
        ((), b"GET http://A.test/x?y HTTP/1.1", {"target": b"/x?y"}),
        ((), b"GET https://a.test?y HTTP/1.1", {"target": b"/?y"}),
        ((), b"GET https://a.test HTTP/1.1", {"target": b"/"}),
        ((), b"OPTIONS * HTTP/1.1", {"target": b"*", "method": b"OPTIONS", "idempotent": True}),
        ((), b"FROBNICATE / HTTP/1.1", {"method": b"FROBNICATE", "idempotent": False}),
    ],
)  # fmt: skip
def test_requests_that_are_understood(
    fields: tuple[bytes, ...], line: bytes, expected: dict[str, object]
) -> None:
    """Framing, the connection's life, and what is asked for besides."""
    head = parse_request(request(*fields, line=line), 100)
    assert {name: getattr(head, name) for name in expected} == expected


@pytest.mark.parametrize(
    "host", [b"a", b"A.b-c.d:8443", b"10.0.0.1", b"[2001:db8::1]:443", b"xn--a_b.test", b"a" * 255]
)
def test_hosts(host: bytes) -> None:
    """Names and addresses, with and without a port."""
    assert parse_request(request(host=b"Host: " + host), 100).host == host


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (response(line=b"HTTP/1.1 20 OK"), "malformed"),
        (response(line=b"HTTP/1.1  200 OK"), "malformed"),
        (response(line=b"HTTP/1.1 200 O\rK"), "malformed"),
        (response(line=b"HTTP/2.0 200 OK"), "malformed"),
        (response(line=b"ICY 200 OK"), "malformed"),
        (response(b"X : 1"), "malformed"),
        (response(b"X: 1", b" folded"), "malformed"),
        (response(b"Set-Cookie: a\nSet-Cookie: b"), "malformed"),
        (response(FIVE, CHUNKS), "transfer_encoding"),
        (response(CHUNKS, line=b"HTTP/1.0 200 OK"), "transfer_encoding"),
        (response(b"Transfer-Encoding: gzip"), "transfer_encoding"),
        (response(FIVE, FIVE), "content_length"),
        (response(b"Content-Length: 5a"), "content_length"),
        (response(*[b"X: 1"] * 101), "too_many_headers"),
    ],
)  # fmt: skip
def test_responses_that_are_refused(data: bytes, reason: str) -> None:
    """502: nothing doubtful is passed on to a client."""
    with pytest.raises(HttpError) as caught:
        parse_response(data, 100, b"GET")
    assert caught.value.status == 502
    assert caught.value.reason in (reason, "malformed")


@pytest.mark.parametrize(
    ("data", "method", "framing"),
    [
        (response(), b"GET", UNTIL_CLOSE),
        (response(line=b"HTTP/1.0 200"), b"GET", UNTIL_CLOSE),
        (response(FIVE), b"GET", 5),
        (response(CHUNKS), b"POST", CHUNKED),
        (response(FIVE), b"HEAD", NO_BODY),
        (response(CHUNKS), b"HEAD", NO_BODY),
        (response(line=b"HTTP/1.1 204 No Content"), b"GET", NO_BODY),
        (response(FIVE, line=b"HTTP/1.1 304 Not Modified"), b"GET", NO_BODY),
        (response(line=b"HTTP/1.1 103 Early Hints"), b"GET", NO_BODY),
    ],
)  # fmt: skip
def test_framing_of_responses(data: bytes, method: bytes, framing: int) -> None:
    """By status, by the request's method, by its fields, and else up to the end of the connection."""
    assert parse_response(data, 100, method).framing == framing


# -- what is written --------------------------------------------------------------------------


def test_a_request_is_written_anew() -> None:
    """Host first, framing and hop-by-hop fields from what was understood, look-alikes of those not at all."""
    head = parse_request(
        request(
            b"A: 1", b"content-LENGTH: 05", b"Connection: b", b"B: 2", b"Content_Length: 6", b"Keep-Alive: 1"
        ),
        100,
    )
    assert write_request(head, None, REQUEST_DROPPED, b"X: 1\r\n") == (
        b"GET / HTTP/1.1\r\nHost: a.test\r\nA: 1\r\nContent-Length: 5\r\nX: 1\r\n\r\n"
    )
    assert write_request(head, b"b.test", REQUEST_DROPPED, b"").startswith(
        b"GET / HTTP/1.1\r\nHost: b.test\r\n"
    )


@pytest.mark.parametrize(
    ("fields", "line", "minor", "keep", "expected"),
    [
        ((FIVE,), b"HTTP/1.0 200 OK", 1, True, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ((CHUNKS,), b"HTTP/1.1 200 OK", 1, True, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ((CHUNKS,), b"HTTP/1.1 200 OK", 0, False, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        ((FIVE,), b"HTTP/1.1 200 OK", 0, True, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"),
        ((FIVE,), b"HTTP/1.1 204 None", 1, True, b"HTTP/1.1 204 None\r\n\r\n"),
        ((b"Link: a",), b"HTTP/1.1 103 Hints", 1, True, b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"),
        (
            (b"Connection: upgrade", b"Upgrade: a"), b"HTTP/1.1 101 Go", 1, True,
            b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n",
        ),
    ],
)  # fmt: skip
def test_a_response_is_written_anew(
    fields: tuple[bytes, ...], line: bytes, minor: int, keep: bool, expected: bytes
) -> None:
    """As HTTP/1.1, framed for the client, and saying whether its connection goes on."""
    head = parse_response(response(*fields, line=line), 100, b"GET")
    assert write_response(head, minor, RESPONSE_DROPPED, b"", keep) == expected


def test_trailers() -> None:
    """They pass, but for what would count as part of the head."""
    section = b"X-Sum: 1\r\nHost: b\r\nAuthorization: x\r\nX-Own: 2\r\n\r\n"
    assert pass_trailers(section, DroppedNames({b"x-own"}), 400) == b"X-Sum: 1\r\n"
    with pytest.raises(HttpError, match="502 trailers"):
        pass_trailers(b"X : 1\r\n\r\n", DroppedNames(()), 502)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"GET / HT", 0),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r", 0),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nmore", 27),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"a" * 33, 414),
        (b"a" * 33 + b"\r\n\r\n", 414),
        (b"a" * 32 + b"\r\n" + b"b" * 31, 431),
        (b"a" * 32 + b"\r\n" + b"b" * 31 + b"\r\n\r\n", 431),
        (b"a" * 32 + b"\r\n" + b"b" * 26 + b"\r\n\r\n", 64),
    ],
)
def test_size_of_a_head(data: bytes, expected: int) -> None:
    """Or the status of an error, as soon as that can be told."""
    assert size_or_status(data, 0) == expected


def size_or_status(data: bytes, examined: int) -> int:
    """Of a head with a first line of at most 32 bytes and 64 in all."""
    try:
        return head_size(data, 32, 64, examined)
    except HttpError as error:
        return error.status


PIECES = st.sampled_from(
    [b"GET", b"POST", b" ", b"/", b"/a?b", b"http://a.test/", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\t", b":",
     b"Host: a.test", b"Host", b"Content-Length: 5", b"Content-Length", b"Transfer-Encoding: chunked", b"chunked", b"5", b",",
     b"Connection: close", b"Upgrade: a", b"Expect: 100-continue", b"X: 1", b"\0", b"\xff", b"200 OK"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 80), max_size=8))
def test_a_head_in_pieces_is_as_large_as_in_one(data: bytes, ends: list[int]) -> None:
    """What was examined before is not looked at again, and nothing is missed for that."""
    examined = 0
    for end in sorted({min(end, len(data)) for end in ends} | {len(data)}):
        at_once = size_or_status(data[:end], 0)
        assert size_or_status(data[:end], examined) == at_once
        if at_once:
            return
        examined = end


def test_lines_are_remembered_within_bounds() -> None:
    """So many short ones of headers that are known to be harmless; any other may hold a secret."""
    lines = FieldLines()
    for number in range(3 * REMEMBERED):
        assert lines[b"Age: %d" % number] == (b"age", b"Age: %d" % number, b"%d" % number)
        assert len(lines) <= REMEMBERED
    lines.clear()
    for line in (
        b"Cookie: a",
        b"authorization: b",
        b"X-Api-Key: c",
        b"X: d",
        b"Referer: /e",
        b"Age: " + b"1" * 300,
    ):
        assert lines[line][1] == line
    assert not lines


# -- properties -------------------------------------------------------------------------------

HEADS = st.one_of(
    st.binary(max_size=200),
    st.lists(PIECES, max_size=30).map(b"".join),
    st.lists(st.binary(max_size=20), max_size=8).map(lambda lines: request(*lines)),
    st.lists(PIECES, max_size=8).map(lambda lines: request(*lines)),
).map(lambda data: data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


class Witness:
    """What llhttp reads in a head."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def read_by_llhttp(data: bytes, parser: type) -> Witness:
    """A head that it accepts; another is an error of the test."""
    witness = Witness()
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser(witness).feed_data(data)
    assert witness.complete
    return witness


@given(HEADS)
@example(request(b"Connection: upgrade", b"Upgrade: a"))
def test_requests_are_read_as_llhttp_does(data: bytes) -> None:
    """Or refused; and what is written for the server says the same once more."""
    try:
        head = parse_request(data, 100)
    except HttpError:
        return
    if head.method in (b"GET", b"POST"):
        witness = read_by_llhttp(data, httptools.HttpRequestParser)
        assert witness.fields == [(lower, value) for lower, _, value in head.fields]
    written = write_request(head, None, REQUEST_DROPPED, b"")
    again = parse_request(written, 100)
    assert written.count(b"\r\n\r\n") == 1
    assert facts(again) == facts(head)


def facts(head: RequestHead) -> tuple[object, ...]:
    """What of a request must reach the server unchanged."""
    kept = [value for lower, _, value in head.fields if lower not in REQUEST_DROP | head.not_forwarded]
    return head.method, head.target, head.host, head.framing, head.upgrade, head.expects_continue, kept


@given(st.lists(HEADS, min_size=2, max_size=4), st.lists(PIECES, max_size=3).map(b"".join))
@example([request(FIVE), request(FIVE, line=b"POST /b HTTP/1.1")], b"")
@example([request(), request(line=b"GET http://b.test/ HTTP/1.1")], b"")
@example([request(), request(line=b"GET / HTTP/1.0")], b"")
def test_a_head_like_the_one_before_is_read_the_same(heads: list[bytes], line: bytes) -> None:
    """Whatever was read before: the outcome is that of reading it alone."""
    heads = [*heads, *(line + b"\r\n" + head.partition(b"\r\n")[2] for head in heads)]
    before = None
    for data in heads:
        after, alone = outcome(data, before), outcome(data, None)
        assert after == alone
        with contextlib.suppress(HttpError):
            before = parse_request(data, 100, before)


def outcome(data: bytes, before: RequestHead | None) -> object:
    """What is read, and written for the server; or why not."""
    try:
        head = parse_request(data, 100, before)
    except HttpError as error:
        return str(error)
    return facts(head), head.keep_alive, head.trailers, write_request(head, None, REQUEST_DROPPED, b"")


@given(HEADS, st.sampled_from([b"GET", b"HEAD"]), st.booleans())
def test_responses_are_read_as_llhttp_does(data: bytes, method: bytes, keep: bool) -> None:
    """Or refused; and what is written for the client frames the same body."""
    data = data.replace(b"GET / HTTP/1.1", b"HTTP/1.1 200 OK")
    try:
        head = parse_response(data, 100, method)
    except HttpError:
        return
    witness = read_by_llhttp(data, httptools.HttpResponseParser)
    assert witness.fields == [(lower, value) for lower, _, value in head.fields]
    written = write_response(head, 1, RESPONSE_DROPPED, b"", keep)
    again: ResponseHead = parse_response(written, 100, method)
    assert (again.status, again.framing) == (head.status, head.framing)
    assert again.keep_alive == keep or head.status < 200
