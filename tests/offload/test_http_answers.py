"""The proxy's own responses: which form, what they tell, and what rules do to them."""

from __future__ import annotations

import json
from email.parser import BytesParser
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offload.config_http import HeaderSettings, HttpSettings
from offload.http.accept import EXAMINED_MOST, preferred
from offload.http.answers import HTML, JSON, PROBLEM, Answers, Request
from offload.http.header_policy import HeaderPolicy, RouteHeaders
from offload.http.header_rules import HeaderChanges, compile_changes, hsts

NOW = 1_750_000_000.0
BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
STATUSES = (400, 404, 405, 408, 413, 414, 417, 421, 431, 500, 501, 502, 503, 504, 505)


def parsed(response: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers by name in lower case (each stands once), body."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, _, fields = head.partition(b"\r\n")
    pairs = BytesParser().parsebytes(fields + b"\r\n\r\n").items()
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    return status.decode(), headers, body


def error(
    status: int, accept: bytes = b"", *, answers: Answers | None = None
) -> tuple[str, dict[str, str], bytes]:
    """An error's response for a client that likes this."""
    request = Request(accept=accept, request_id=b"4f2a")
    return parsed((answers or Answers()).error(status, request, NOW, close=False))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", HTML), (b"*/*", HTML), (BROWSER, HTML), (b"image/png", HTML), (b"text/*", HTML),
        (b"application/json", JSON), (b"application/json, text/plain, */*", JSON), (b"Application/JSON", JSON),
        (b"application/*", JSON), (b"application/problem+json", PROBLEM), (b"text/html;q=0.5, application/json;q=0.4", HTML),
        (b"text/html;q=0.5, application/json ; charset=utf-8 ; q=0.6", JSON), (b"text/html;q=0, */*", JSON),
        (b"application/json;q=0", HTML), (b"application/json;q=2", JSON), (b",;,/,*/;q=1,application/json", JSON),
    ],
)  # fmt: skip
def test_what_a_client_likes(accept: bytes, expected: bytes) -> None:
    """By quality, then by how exactly it is named; HTML when there is no choice."""
    assert preferred(accept, (HTML, JSON, PROBLEM)) == expected


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_accept_can_be_read(start: bytes, end: bytes) -> None:
    """And what comes after the first bytes changes nothing."""
    whole = start + b"," * EXAMINED_MOST
    assert preferred(whole + end, (HTML, JSON)) == preferred(whole, (HTML, JSON)) in (HTML, JSON)


@given(
    st.permutations(
        [b"text/html;q=0.3", b"application/json;q=0.7", b"application/problem+json;q=0.5", b"*/*;q=0.9"]
    )
)
def test_the_order_of_a_list_does_not_count(ranges: list[bytes]) -> None:
    """Only qualities do, where they differ."""
    assert preferred(b", ".join(ranges), (HTML, JSON, PROBLEM)) == JSON


@pytest.mark.parametrize("status", STATUSES)
def test_pages(status: int) -> None:
    """Each says what is wrong and the request's id, in both forms, and needs nothing from elsewhere."""
    line, headers, body = error(status, BROWSER)
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-length"] == str(len(body))
    assert b"4f2a" in body
    assert b"{" not in body.partition(b"</style>")[2]
    assert not any(word in body for word in (b"http", b"src=", b"href=", b"url("))
    _, headers, body = error(status, b"application/json")
    assert headers["content-type"] == "application/json"
    told = json.loads(body)
    assert (told["status"], told["request_id"]) == (status, "4f2a")
    assert told["title"]
    assert told["detail"]


def test_an_error_is_not_kept_by_caches() -> None:
    """It is true now."""
    _, headers, _ = error(503)
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"] == "4f2a"
    assert parsedate_to_datetime(headers["date"]).timestamp() == NOW


def test_a_head_request_gets_no_body() -> None:
    """But the headers of one."""
    request = Request(b"*/*", b"4f2a", is_head=True)
    _, headers, body = parsed(Answers().error(404, request, NOW, close=True))
    assert body == b""
    assert headers["content-length"] == str(len(error(404)[2]))
    assert headers["connection"] == "close"


def test_when_to_try_again() -> None:
    """In whole seconds, rounded up."""
    response = Answers().error(503, Request(), NOW, close=False, retry_after=4.2)
    assert parsed(response)[1]["retry-after"] == "5"
    assert "retry-after" not in error(503)[1]


def test_which_methods_are_allowed() -> None:
    """405 says so (RFC 9110 §15.5.6), and nothing else does."""
    assert "GET" in error(405)[1]["allow"].split(", ")
    assert "TRACE" not in error(405)[1]["allow"]
    assert "allow" not in error(404)[1]


def test_a_page_of_ones_own() -> None:
    """For clients that accept HTML; programs get JSON all the same."""
    answers = Answers({503: b"<p>Back soon ({request_id}, {request_id}). {other}"})
    assert error(503, BROWSER, answers=answers)[2] == b"<p>Back soon (4f2a, 4f2a). {other}"
    assert json.loads(error(503, JSON, answers=answers)[2])["status"] == 503
    assert b"502" in error(502, BROWSER, answers=answers)[2]


def test_redirects_and_fixed_answers() -> None:
    """No body without content; none at all with 204."""
    answers = Answers()
    line, headers, body = parsed(answers.redirect(308, b"https://a/b", Request(), NOW, close=False))
    assert (line, headers["location"], headers["content-length"], body) == (
        "HTTP/1.1 308 Permanent Redirect", "https://a/b", "0", b"",
    )  # fmt: skip
    line, headers, body = parsed(answers.fixed(200, b"text/plain", b"ok", Request(), NOW, close=False))
    assert (line, headers["content-type"], body) == ("HTTP/1.1 200 OK", "text/plain", b"ok")
    _, headers, _ = parsed(answers.fixed(204, b"text/plain", b"", Request(), NOW, close=False))
    assert not headers.keys() & {"content-type", "content-length"}
    assert parsed(answers.fixed(599, b"text/plain", b"x", Request(), NOW, close=False))[0] == "HTTP/1.1 599 "


def test_rules_hold_for_own_answers() -> None:
    """What they set replaces ours, what they remove is not said."""
    changes = compile_changes({"Cache-Control": "private", "X-Frame-Options": "DENY"}, ["date"])
    changes = changes.followed_by(hsts(31_536_000, subdomains=True, preload=False))
    _, headers, _ = error(404, answers=Answers(changes=changes))
    assert (headers["cache-control"], headers["x-frame-options"]) == ("private", "DENY")
    assert headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
    assert "date" not in headers


def test_the_stronger_rules_come_last() -> None:
    """A route's replace its listener's header by header, whatever their case."""
    weak = compile_changes({"X-A": "1", "X-B": "1"}, ["X-C"])
    strong = compile_changes({"x-a": "2", "X-C": "2"}, ["X-D"])
    assert weak.followed_by(strong) == HeaderChanges(
        frozenset({b"x-a", b"x-b", b"x-c", b"x-d"}), b"X-B: 1\r\nx-a: 2\r\nX-C: 2\r\n"
    )


def policy(*, tls: bool = True, asks_certificates: bool = False, **http: object) -> HeaderPolicy:
    """A listener's, from its configuration."""
    settings = HttpSettings.model_validate(http, context={"directory": ""})
    return HeaderPolicy(settings, {503: b"soon"}, tls=tls, asks_certificates=asks_certificates)


def route_headers(listener: HeaderPolicy, **rules: object) -> RouteHeaders:
    """A route's, from its rules."""
    return listener.of_route(
        HeaderSettings.model_validate(rules), frozenset({b"te"}), frozenset({b"upgrade"})
    )


def test_a_route_compiled() -> None:
    """Its rules after its listener's; HSTS unless a rule says otherwise; Host apart from the others."""
    listener = policy(
        hsts="1y",
        headers={"request": {"set": {"X-A": "1", "Host": "a"}}, "response": {"remove": ["Server"]}},
    )
    headers = route_headers(
        listener, request={"set": {"x-a": "2", "HOST": "b"}}, response={"set": {"X-B": "1"}}
    )
    assert headers.host == b"b"
    assert headers.request_lines == b"x-a: 2\r\n"
    assert headers.response_lines == b"Strict-Transport-Security: max-age=31536000\r\nX-B: 1\r\n"
    for name in (b"x-a", b"te", b"x_forwarded_for", b"x-request-id", b"x-real-ip"):
        assert headers.request_drop[name]
        assert headers.trusted_drop[name] == (name != b"x-real-ip")
    assert all(headers.response_drop[name] for name in (b"server", b"x-b", b"upgrade"))
    assert not headers.response_drop[b"x-forwarded-for"]
    assert headers.answers.error(503, Request(), NOW, close=False).endswith(b"\r\n\r\nsoon")
    assert route_headers(listener).host == b"a"
    assert route_headers(policy()).host is None


def test_browsers_are_not_bound_without_tls() -> None:
    """RFC 6797 section 7.2."""
    assert route_headers(policy(tls=False, hsts="1y")).response_lines == b""


def test_what_is_not_told_passes_from_trusted_peers() -> None:
    """With the switches off they alone say who the client is."""
    headers = route_headers(policy(x_forwarded=False, forwarded=False, request_id=False))
    for name in (b"x-forwarded-for", b"forwarded", b"client-cert"):
        assert headers.request_drop[name]
        assert not headers.trusted_drop[name]
    assert not headers.request_drop[b"x-request-id"]
    assert route_headers(policy(asks_certificates=True)).trusted_drop[b"client-cert"]


@pytest.mark.parametrize("where", ["listener", "route"])
def test_rules_cannot_say_what_is_told(where: str) -> None:
    """It would stand there twice."""
    rules = {"request": {"set": {"X-Forwarded-Proto": "https"}}}
    http = {"headers": rules} if where == "listener" else {"routes": [{"upstream": "a", "headers": rules}]}
    with pytest.raises(
        ValidationError,
        match="X-Forwarded-Proto is told of every client; leave it out, or set x_forwarded: false",
    ):
        policy(**http)
    policy(x_forwarded=False, **http)
