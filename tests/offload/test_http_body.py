"""Where bodies end, in whatever pieces they come."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offload.http.body import (
    EXTENSIONS_MOST,
    LINE_MOST,
    TRAILERS_MOST,
    Body,
    ChunkedBody,
    UntilClose,
)
from offload.http.errors import HttpError
from offload.http.guarded import DroppedNames
from offload.http.head import pass_trailers


def as_they_are(section: bytes) -> bytes:
    """Lets every trailer pass that is one."""
    pass_trailers(section, DroppedNames(()), 400)
    return section[:-2]


def chunked(*, most: int | None = None, decode: bool = False) -> ChunkedBody:
    """A chunked body of a request."""
    return ChunkedBody(400, as_they_are, most=most, decode=decode)


def run(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """What passes of a body that comes in these pieces, and what is left over. Raises HttpError."""
    passed = rest = b""
    for index, piece in enumerate(pieces):
        data = memoryview(rest + piece)
        passes, used = body.take(data, 0, len(data))
        passed += bytes(body.content(data, 0, passes))
        rest = bytes(data[used:])
        if body.done:
            return passed + body.tail, rest + b"".join(pieces[index + 1 :])
    return passed, rest


def refusal(data: bytes, most: int | None = None) -> tuple[int, str]:
    """What a chunked body is refused with."""
    with pytest.raises(HttpError) as caught:
        run(chunked(most=most), [data])
    return caught.value.status, caught.value.reason


@given(st.integers(0, 100), st.lists(st.binary(max_size=40), max_size=8))
def test_counted(size: int, pieces: list[bytes]) -> None:
    """So many bytes, and not one more."""
    body = Body(size)
    data = b"".join(pieces)
    passed, rest = run(body, pieces)
    assert body.done == (len(data) >= size)
    if body.done and pieces:
        assert (passed, rest) == (data[:size], data[size:])


def test_until_close() -> None:
    """Never done by itself."""
    body = UntilClose()
    assert run(body, [b"a", b"b"]) == (b"ab", b"")
    assert not body.done


WHOLE = b"5;a=b\r\n01234\r\n00A\r\n0123456789\r\n0\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_chunked_in_pieces(step: int) -> None:
    """Every cut gives the same, and what follows is left alone."""
    data = WHOLE + b"GET / HTTP/1.1"
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert run(chunked(), pieces) == (WHOLE, b"GET / HTTP/1.1")
    assert run(chunked(decode=True), pieces) == (b"012340123456789", b"GET / HTTP/1.1")


@pytest.mark.parametrize(
    "data",
    [
        b"5\n01234\r\n",
        b"5\r01234\r\n",
        b"5 \r\n01234\r\n",
        b" 5\r\n01234\r\n",
        b"+5\r\n01234\r\n",
        b"0x5\r\n01234\r\n",
        b"5h\r\n01234\r\n",
        b"-1\r\n",
        b"\r\n01234\r\n",
        b";a\r\n",
        b"5,\r\n",
        b"5;a\nb\r\n01234\r\n",
        b"5;a\0\r\n01234\r\n",
        b"5\r\n012345\r\n",
        b"5\r\n01234\n",
        b"5\r\n01234\r0",
        b"1" * 16 + b"\r\n",
    ],
)
def test_chunks_that_are_refused(data: bytes) -> None:
    """What one reader forgives and the next does not."""
    assert refusal(data) == (400, "chunk")


def test_limits_of_a_chunked_body() -> None:
    """On a chunk's line, on all extensions together, on trailers, on the content."""
    assert refusal(b"5;" + b"a" * LINE_MOST) == (400, "chunk_extensions")
    assert refusal(b"5;" + b"a" * LINE_MOST + b"\r\n") == (400, "chunk_extensions")
    assert refusal((b"1;" + b"a" * 199 + b"\r\nx\r\n") * (EXTENSIONS_MOST // 200 + 1)) == (
        400,
        "chunk_extensions",
    )
    assert refusal(b"0\r\n" + b"X: 1\r\n" * (TRAILERS_MOST // 6 + 1)) == (400, "trailers")
    assert refusal(b"0\r\n" + b"X: 1\r\n" * (TRAILERS_MOST // 6 + 1) + b"\r\n") == (400, "trailers")
    assert refusal(b"4\r\n0123\r\n7\r\n", most=10) == (413, "body_size")
    assert run(chunked(most=10), [b"A\r\n0123456789\r\n0\r\n\r\n"])[1] == b""


def test_last_chunk_is_looked_at_again() -> None:
    """While its trailers are awaited, its line counts once."""
    data = b"0;" + b"a" * 200 + b"\r\n" + b"X: 1\r\n" * 100 + b"\r\n"
    assert run(chunked(), [data[at : at + 1] for at in range(len(data))])[1] == b""


class Witness:
    """The content that llhttp finds."""

    def __init__(self) -> None:
        self.content = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_message_complete(self) -> None:
        self.complete = True


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
PARTS = st.one_of(
    st.sampled_from([b"0", b"5", b"A", b"a", b"1", b"\r\n", b"\r", b"\n", b";", b"=", b" ", b"X: 1\r\n", b"01234", b"0\r\n\r\n",
                     b"5\r\n01234\r\n", b"1;a=b\r\nx\r\n"]),
    st.binary(max_size=4),
)  # fmt: skip


@given(st.lists(PARTS, max_size=16), st.integers(1, 12))
@example([WHOLE], 5)
@example([b"0\r\n", b"0", b"\r\n", b"\r\n"], 1)
def test_chunks_are_read_as_llhttp_does(parts: list[bytes], step: int) -> None:
    """Whatever is accepted as a whole body, llhttp accepts with the same content; in any pieces."""
    data = b"".join(parts)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    body, decoded = chunked(), chunked(decode=True)
    try:
        passed, rest = run(body, [data])
    except HttpError:
        return
    if not body.done:
        return
    witness = Witness()
    httptools.HttpRequestParser(witness).feed_data(HEAD + data[: len(data) - len(rest)])
    assert witness.complete
    assert run(decoded, pieces) == (witness.content, rest)
    assert run(chunked(), pieces) == (passed, rest)
    again = Witness()
    httptools.HttpRequestParser(again).feed_data(HEAD + passed)
    assert again.complete
    assert again.content == witness.content


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.integers(1, 20))
def test_what_is_chunked_is_found_again(contents: list[bytes], step: int) -> None:
    """Any content, in any pieces, passes as it came."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents) + b"0\r\n\r\n"
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert run(chunked(), [*pieces, b"next"]) == (data, b"next")
    assert run(chunked(decode=True), [*pieces, b"next"]) == (b"".join(contents), b"next")
