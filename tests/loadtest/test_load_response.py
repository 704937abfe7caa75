"""The end of an HTTP response, found in whatever pieces it comes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generate.response import MAX_HEAD, ResponseError, ResponseReader


def response(body: bytes, *fields: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@given(st.binary(max_size=60), st.lists(st.integers(1, 150), max_size=8))
def test_pieces_make_no_difference(body: bytes, cuts: list[int]) -> None:
    data = response(body, "Server: x")
    reader = ResponseReader()
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    done = [reader.feed(data[start:end]) for start, end in itertools.pairwise(edges)]
    assert done == [False] * (len(done) - 1) + [True]
    assert reader.body_bytes == len(body)


def test_responses_follow_each_other() -> None:
    reader = ResponseReader()
    assert reader.feed(response(b"one"))
    assert reader.feed(memoryview(response(b"three")))
    assert reader.body_bytes == 8


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "http_503", id="status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", "http_malformed", id="no length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "http_malformed", id="no number"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", "http_malformed", id="not HTTP"),
        pytest.param(b"HTTP/1.1\r\n\r\n", "http_malformed", id="no status"),
        pytest.param(response(b"body") + b"more", "http_excess", id="bytes after the end"),
        pytest.param(b"x" * (MAX_HEAD + 1), "http_malformed", id="endless head"),
    ],
)
def test_wrong_responses_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(ResponseError, match=f"^{reason}$"):
        ResponseReader().feed(data)
