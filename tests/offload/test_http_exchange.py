"""One request and its response: which connections go on afterwards, and what may be answered or asked again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from offload.http.body import NO_BODY
from offload.http.errors import HttpError
from offload.http.exchange import INTERIM_MOST, Exchange, RequestState, ResponseState
from offload.http.head import parse_request, parse_response

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def exchange(line: bytes = b"GET / HTTP/1.1", fields: bytes = b"") -> Exchange:
    """For a request with these fields."""
    data = line + b"\r\nHost: a\r\n" + fields + b"\r\n"
    return Exchange(parse_request(data, 100), 0.0, len(data))


def post() -> Exchange:
    """For a request whose body has still to come."""
    return exchange(b"POST / HTTP/1.1", b"Content-Length: 9\r\n")


def head(each: Exchange, data: bytes, *, ending: bool = False) -> bool:
    """A response's head arrives: whether it passes."""
    return each.response_head(parse_response(data, 100, each.head.method), ending=ending)


@pytest.mark.parametrize(
    ("line", "fields", "response", "client", "upstream"),
    [
        (b"GET / HTTP/1.1", b"", OK, True, True),
        (b"GET / HTTP/1.1", b"Connection: close\r\n", OK, False, True),
        (b"GET / HTTP/1.0", b"", OK, False, True),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", OK, True, True),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", CHUNKS, False, True),
        (b"GET / HTTP/1.1", b"", CHUNKS, True, True),
        (b"GET / HTTP/1.1", b"", OK[:-2] + b"Connection: close\r\n\r\n", True, False),
        (b"GET / HTTP/1.1", b"", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", True, False),
        (b"GET / HTTP/1.1", b"", b"HTTP/1.1 200 OK\r\n\r\n", False, False),
        (b"HEAD / HTTP/1.1", b"", b"HTTP/1.1 200 OK\r\n\r\n", True, True),
    ],
)  # fmt: skip
def test_which_connections_are_kept(
    line: bytes, fields: bytes, response: bytes, client: bool, upstream: bool
) -> None:
    """Each side by its own version and options, and by how the body ends."""
    each = exchange(line, fields)
    assert head(each, response)
    each.response_ends()
    assert (each.keep_client, each.keep_upstream) == (client, upstream)


def test_ending() -> None:
    """A client that is to come back elsewhere is told so; the server is not concerned."""
    each = exchange()
    head(each, OK, ending=True)
    each.response_ends()
    assert (each.keep_client, each.keep_upstream) == (False, True)


def test_early_response() -> None:
    """Before the end of the request: the client's connection ends; the server's too, unless the rest came in time."""
    for in_time in (False, True):
        each = post()
        head(each, OK)
        if in_time:
            each.request_ends()
        each.response_ends()
        assert (each.keep_client, each.keep_upstream) == (False, in_time)


def test_deaf_server() -> None:
    """It may still answer, and that is the end of both connections."""
    each = post()
    each.server_is_deaf()
    assert each.request is RequestState.CUT
    head(each, OK)
    each.response_ends()
    assert (each.keep_client, each.keep_upstream) == (False, False)


def test_interim_responses() -> None:
    """100 to who expects it, others to HTTP/1.1; only so many; none of them is the response."""
    each = post()
    assert not head(each, b"HTTP/1.1 100 Continue\r\n\r\n")
    assert head(each, b"HTTP/1.1 103 Hints\r\n\r\n")
    assert each.may_answer
    expecting = exchange(b"PUT / HTTP/1.1", b"Expect: 100-continue\r\nContent-Length: 9\r\n")
    assert head(expecting, b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not expecting.may_retry(reused=True, body_sent=False)
    old = exchange(b"GET / HTTP/1.0")
    assert not head(old, b"HTTP/1.1 103 Hints\r\n\r\n")
    for _ in range(INTERIM_MOST - 1):
        head(old, b"HTTP/1.1 103 Hints\r\n\r\n")
    with pytest.raises(HttpError, match="502 interim_responses"):
        head(old, b"HTTP/1.1 103 Hints\r\n\r\n")


def test_upgrade() -> None:
    """Only to what was asked for."""
    asks = b"Connection: upgrade\r\nUpgrade: WebSocket\r\n"
    agreed = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    each = exchange(fields=asks)
    assert head(each, agreed)
    assert each.response is ResponseState.UPGRADED
    for fields, response in (
        (b"", agreed),
        (asks, agreed.replace(b"websocket", b"other")),
        (asks, b"HTTP/1.1 101 Go\r\n\r\n"),
    ):
        with pytest.raises(HttpError, match="502 upgrade"):
            head(exchange(fields=fields), response)


@pytest.mark.parametrize(
    ("line", "reused", "body_sent", "expected"),
    [
        (b"GET / HTTP/1.1", True, False, True),
        (b"DELETE / HTTP/1.1", True, False, True),
        (b"GET / HTTP/1.1", False, False, False),
        (b"GET / HTTP/1.1", True, True, False),
        (b"POST / HTTP/1.1", True, False, False),
        (b"PATCH / HTTP/1.1", True, False, False),
        (b"FROB / HTTP/1.1", True, False, False),
    ],
)  # fmt: skip
def test_what_is_asked_again(line: bytes, reused: bool, body_sent: bool, expected: bool) -> None:
    """What does no harm twice, on a connection that had been kept, before any byte of a body or an answer."""
    each = exchange(line)
    assert each.may_retry(reused=reused, body_sent=body_sent) == expected
    head(each, OK)
    assert not each.may_retry(reused=reused, body_sent=body_sent)


class Exchanges(RuleBasedStateMachine):
    """Every order of events that can happen."""

    @initialize(
        line=st.sampled_from([b"GET / HTTP/1.1", b"HEAD / HTTP/1.1", b"POST / HTTP/1.0"]),
        fields=st.lists(
            st.sampled_from([b"Content-Length: 3\r\n", b"Connection: close, upgrade\r\n", b"Upgrade: a\r\n"]),
            unique=True,
        ),
    )
    def begin(self, line: bytes, fields: list[bytes]) -> None:
        self.each = exchange(line, b"".join(fields))
        self.passed_heads = 0
        self.deaf = self.refused = False

    @precondition(lambda self: self.each.request is RequestState.COMING)
    @rule()
    def request_ends(self) -> None:
        self.each.request_ends()

    @precondition(lambda self: self.each.request is not RequestState.CUT and not self.each.over)
    @rule()
    def server_is_deaf(self) -> None:
        self.each.server_is_deaf()
        self.deaf = True

    @precondition(lambda self: self.each.may_answer and not self.refused)
    @rule(
        response=st.sampled_from(
            [OK, CHUNKS, b"HTTP/1.1 103 H\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n",
             b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"]
        ),
        ending=st.booleans(),
    )  # fmt: skip
    def response_head(self, response: bytes, ending: bool) -> None:
        try:
            head(self.each, response, ending=ending)
        except HttpError as error:
            self.refused = error.status == 502

    @precondition(lambda self: self.each.response is ResponseState.PASSING)
    @rule()
    def response_ends(self) -> None:
        self.each.response_ends()

    @precondition(lambda self: self.each.may_answer)
    @rule()
    def answered(self) -> None:
        self.each.answered(502)

    @rule()
    def nothing_more_happens(self) -> None:
        """There is always something to do, also at the end."""

    @invariant()
    def connections_are_kept_only_after_whole_messages(self) -> None:
        each = self.each
        if each.keep_upstream:
            assert each.over
            assert each.request is RequestState.SENT
            assert not self.deaf
        if each.over and each.keep_client:
            assert each.request is not RequestState.COMING
            assert each.head.keep_alive
        assert not (each.may_answer and each.over)
        if each.head.framing == NO_BODY and not self.deaf:
            assert each.request is RequestState.SENT


TestExchanges = Exchanges.TestCase
