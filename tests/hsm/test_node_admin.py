"""What a node's admin address answers, byte by byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.node.admin import Page, answer

PAGES: dict[str, Page] = {"/livez": lambda: ("text/plain", b"alive")}


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /livez HTTP/1.1", 200, b"alive"),
        ("GET /livez?verbose=1 HTTP/1.0", 200, b"alive"),
        ("HEAD /livez HTTP/1.1", 200, b""),
        ("GET / HTTP/1.1", 200, b"/livez\n"),
        ("GET /other HTTP/1.1", 404, b""),
        ("GET /../livez HTTP/1.1", 404, b""),
        ("POST /livez HTTP/1.1", 405, b""),
        ("GET livez HTTP/1.1", 400, b""),
        ("GET /livez HTTP/2.0", 400, b""),
        ("GET /livez", 400, b""),
        ("get /livez HTTP/1.1", 400, b""),
        ("GET /live z HTTP/1.1", 400, b""),
    ],
)
def test_answers(request_line: str, status: int, body: bytes) -> None:
    """A page, or the status that says why there is none."""
    head, _, rest = answer(f"{request_line}\r\nHost: node\r\n\r\n".encode(), PAGES).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close" in head
    assert rest == body


@given(
    st.one_of(
        st.binary(max_size=200),
        st.from_regex(r"\A[A-Z]+ /\S* HTTP/1\.1\r\n.*", fullmatch=False).map(str.encode),
    )
)
def test_any_bytes_get_an_answer(head: bytes) -> None:
    """Nothing makes it fail, and nothing of the request comes back."""
    assert re.fullmatch(
        rb"HTTP/1\.1 \d{3} [A-Za-z ]+\r\n(?:[A-Za-z-]+: [^\r\n]+\r\n)+\r\n(?:alive|/livez\n)?",
        answer(head, PAGES),
    )
