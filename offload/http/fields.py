"""The lines of heads: each is read strictly, by itself. Sans I/O.

They are nearly always the same few: a line that has been understood is remembered, if it is one of those
headers whose values are nobody's secret. llhttp is asked for its opinion of heads with other ones.
"""

from __future__ import annotations

import re

import httptools

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*+))?+")
_FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([\t -~\x80-\xff]*+)")

REMEMBERED = 2048
"""Lines of heads that are remembered at a time,"""
_LINE_MOST = 200
"""if they are no longer than that,"""
_HARMLESS = frozenset(
    b"""
    accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-credentials
    access-control-allow-headers access-control-allow-methods access-control-max-age age allow alt-svc cache-control
    connection content-encoding content-language content-length content-type cross-origin-embedder-policy
    cross-origin-opener-policy cross-origin-resource-policy date dnt etag expect expires host keep-alive
    last-modified permissions-policy pragma priority referrer-policy sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform
    sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user sec-gpc server strict-transport-security te trailer
    transfer-encoding upgrade upgrade-insecure-requests user-agent vary x-content-type-options x-frame-options
    x-powered-by x-requested-with x-xss-protection
    """.split()
)
"""and of these, which say nothing that only some may know: of any other header an application may make a secret."""

Field = tuple[bytes, bytes, bytes]
"""A header field: its name in lower case, its line as it came, its value without space around it."""


class FieldLines(dict[bytes, Field]):
    """What lines of heads say; those that are not known are read, or refused with ValueError."""

    __slots__ = ("read",)

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        """Lines that were not known."""

    def __missing__(self, line: bytes) -> Field:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise ValueError("no header field")
        self.read += 1
        lower = match[1].lower()
        field = lower, line, match[2].strip(b" \t")
        if lower in _HARMLESS and len(line) <= _LINE_MOST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[line] = field
        return field


class StatusLines(dict[bytes, tuple[int, int, bytes]]):
    """What first lines of responses say: minor version, status, reason. Raises ValueError."""

    __slots__ = ()

    def __missing__(self, line: bytes) -> tuple[int, int, bytes]:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise ValueError("no status line")
        minor, status, reason = match.groups(b"")
        found = int(minor), int(status), reason
        if len(line) <= _LINE_MOST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[line] = found
        return found


_lines = FieldLines()
_read_line = _lines.__getitem__
status_lines = StatusLines()


def read_fields(
    lines: list[bytes], watched: frozenset[bytes] = frozenset()
) -> tuple[list[Field], dict[bytes, bytes]]:
    """The fields that these lines are, and what those that are `watched` say. Raises ValueError."""
    read = _lines.read
    fields = list(map(_read_line, lines))
    if _lines.read != read:
        _ask_llhttp(lines)
    known: dict[bytes, bytes] = {}
    for field in fields:
        if (lower := field[0]) in watched:
            known[lower] = known[lower] + b", " + field[2] if lower in known else field[2]
    return fields, known


def _ask_llhttp(lines: list[bytes]) -> None:
    """Whether llhttp takes the fields for good ones. Raises ValueError."""
    try:
        httptools.HttpRequestParser(None).feed_data(b"\r\n".join((b"GET / HTTP/1.1", *lines, b"", b"")))
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        for line in lines:
            _lines.pop(line, None)  # so that it is asked the next time, too
        raise ValueError(str(error)) from error
