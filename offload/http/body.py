"""Where a body ends: counted, chunked, or with the connection. Sans I/O.

Bytes pass through as they came. A body only says how many of those that are there belong to it
and are complete; the tail of a chunk's line that has not come whole is offered again, with more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from offload.http.errors import HttpError

NO_BODY = 0
CHUNKED = -1
UNTIL_CLOSE = -2
"""Framings besides a number of bytes: see `Head.framing`."""

LINE_MOST = 256
"""Bytes of a chunk's line: its size, and extensions."""
EXTENSIONS_MOST = 4096
"""Bytes of extensions in all chunks of a body."""
TRAILERS_MOST = 8192
"""Bytes of the trailer section."""

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15}+)((?:[ \t]*+;[\t -~]*+)?+)\r\n")
_CHUNK_BEGINNING = re.compile(rb"[0-9A-Fa-f]{1,15}+(?:[ \t]*+(?:;[\t -~]*+)?+)?+\r?+")
"""What has come of a chunk's line that is not complete yet."""
_LINE_END = b"\r\n"
_TRAILERS_END = re.compile(rb"\r\n\r\n")

TrailerFilter = Callable[[bytes], bytes]
"""From a trailer section, the empty line included, to the lines that pass; may raise HttpError."""


class Body:
    """A body of so many bytes; other kinds are its subclasses."""

    __slots__ = ("decodes", "left", "tail")

    def __init__(self, length: int) -> None:
        self.decodes = False
        """Whether `content` is less than what passes."""
        self.left = length
        """Bytes until the end, as far as is known."""
        self.tail = b""
        """Once it is complete: what is to be sent after the bytes that pass as they came."""

    @property
    def done(self) -> bool:
        """Whether it is complete."""
        return self.left == 0

    def take(self, data: Any, start: int, end: int) -> tuple[int, int]:  # noqa: ARG002 (others look at it)
        """Of the bytes data[start:end]: up to where they pass, and up to where they are used up.

        The second is `end`, unless the body is complete there or a line is not. Raises HttpError.
        """
        stop = min(end, start + self.left)
        self.left -= stop - start
        return stop, stop

    def content(self, data: Any, start: int, stop: int) -> Any:
        """Of the bytes that pass, those to send: without the chunks, if it decodes."""
        return data[start:stop]


class UntilClose(Body):
    """A response's body that ends with its connection."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1)

    def take(self, _data: Any, _start: int, end: int) -> tuple[int, int]:
        """All of it."""
        return end, end


class ChunkedBody(Body):
    """RFC 9112 §7.1, strictly.

    `left` counts the bytes of a chunk with its line end; -1 while a chunk's line is expected.
    """

    __slots__ = ("_extensions", "_filter", "_most", "_size", "_spans", "_status")

    def __init__(
        self, status: int, trailers: TrailerFilter, *, most: int | None = None, decode: bool = False
    ) -> None:
        """What is wrong is an HttpError with `status`; more content than `most` one with 413.

        With `decode`, its `content` is that alone.
        """
        super().__init__(-1)
        self._status = status
        self._filter = trailers
        self._most = most
        self._size = 0
        self._extensions = 0
        self.decodes = decode
        self._spans: list[tuple[int, int]] = []

    def take(self, data: Any, start: int, end: int) -> tuple[int, int]:
        """See `Body.take`."""
        at = start
        while at < end:
            if self.left > 2:
                stop = min(at + self.left - 2, end)
                if self.decodes:
                    self._spans.append((at, stop))
                self.left -= stop - at
                at = stop
            elif self.left > 0:
                if data[at] != _LINE_END[2 - self.left]:
                    raise HttpError(self._status, "chunk")
                self.left = self.left - 1 or -1
                at += 1
            else:
                match = _CHUNK.match(data, at, end)
                if match is None:
                    self._check_beginning(data, at, end)
                    break
                size = self._account(match)
                if size == 0:
                    return self._end(data, at, match.end(), end)
                self.left = size + 2
                at = match.end()
        return at, at

    def content(self, data: Any, start: int, stop: int) -> Any:
        """See `Body.content`; once for each `take`."""
        if not self.decodes:
            return data[start:stop]
        spans, self._spans = self._spans, []
        return b"".join(data[first:last] for first, last in spans)

    def _account(self, match: re.Match[bytes]) -> int:
        """The size of the chunk whose line this is, within the limits."""
        size = int(match[1], 16)
        self._size += size
        if size:  # the last one's line may be looked at again
            self._extensions += len(match[2])
        if match.end() - match.start() > LINE_MOST or self._extensions > EXTENSIONS_MOST:
            raise HttpError(self._status, "chunk_extensions")
        if self._most is not None and self._size > self._most:
            raise HttpError(413, "body_size")
        return size

    def _check_beginning(self, data: Any, at: int, end: int) -> None:
        """What there is of a chunk's line may still become one."""
        if _CHUNK_BEGINNING.fullmatch(data, at, end) is None:
            raise HttpError(self._status, "chunk")
        if end - at > LINE_MOST:
            raise HttpError(self._status, "chunk_extensions")

    def _end(self, data: Any, line: int, at: int, end: int) -> tuple[int, int]:
        """The last chunk is there: whether the trailer section is, too."""
        if bytes(data[at : min(at + 2, end)]) == _LINE_END:
            stop, trailers = at + 2, b""
        else:
            found = _TRAILERS_END.search(data, at, end)
            stop = end if found is None else found.end()
            if stop - at > TRAILERS_MOST:
                raise HttpError(self._status, "trailers")
            if found is None:
                return line, line
            trailers = self._filter(bytes(data[at:stop]))
        self.left = 0
        if not self.decodes:
            self.tail = b"0\r\n" + trailers + _LINE_END
        return line, stop
