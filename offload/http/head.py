"""Heads of requests and responses: read strictly, and written anew for the other side. Sans I/O.

A head has to match a grammar of ours (RFC 9112 without what it calls obsolete: no folded lines, no
bare CR or LF, no space before a colon, no control characters). llhttp is asked for a second opinion,
so that a mistake in ours is not enough (`fields`). What frames a message, or belongs to one connection (RFC 9110
§7.6.1), is never copied: it is written from what was understood.
"""

from __future__ import annotations

import re

from offload.http.body import CHUNKED, NO_BODY, UNTIL_CLOSE
from offload.http.errors import HttpError
from offload.http.fields import Field, read_fields, status_lines
from offload.http.guarded import DroppedNames

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,31}+) ([!-~]++) HTTP/([0-9]\.[0-9])")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""With a name of at most 255 bytes (RFC 1035 §2.3.4): servers are told it three times."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)

BLOCK_MOST = 1024
"""Bytes of a request's head that are kept, to see whether the next one is the same."""
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
"""What belongs to one connection (RFC 9110 §7.6.1)."""
REQUEST_DROP = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Of a request; Host, the framing and Expect are written anew."""
RESPONSE_DROP = HOP_BY_HOP | {b"content-length"}

_NO_TRAILERS = frozenset(
    (b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie",
     b"host", b"content-length", b"set-cookie", b"trailer")
)  # fmt: skip
"""What a trailer must not say, because it would be read as if it had been in the head (RFC 9110 §6.5.1)."""

_NOTHING: frozenset[bytes] = frozenset()
_BODILESS = frozenset((204, 304))
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PROPFIND", b"REPORT", b"SEARCH"))
"""Methods that can be repeated (RFC 9110 §9.2.2)."""
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
_OPTIONS = frozenset((b"keep-alive", b"close", b"upgrade", b"te"))
"""Connection options that name no further field."""
_REFUSED_UPGRADES = frozenset((b"h2c", b"h2", b"http/2.0"))
"""Behind an upgrade to HTTP/2 requests would pass unread."""

_REQUEST_WATCHED = frozenset(
    (b"host", b"connection", b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"te")
)
_RESPONSE_WATCHED = frozenset((b"connection", b"content-length", b"transfer-encoding", b"upgrade"))


class Head:
    """What both kinds of head have."""

    __slots__ = ("fields", "framing", "keep_alive", "known", "minor", "not_forwarded", "upgrade")

    def __init__(self, fields: list[Field], known: dict[bytes, bytes], minor: int) -> None:
        self.fields = fields
        self.known = known
        """Values of those with a meaning here, by name in lower case; repeated ones are joined as a list."""
        self.minor = minor
        """The second digit of the HTTP version."""
        self.framing = NO_BODY
        """Bytes of the body, or CHUNKED, or UNTIL_CLOSE."""
        self.keep_alive = minor == 1
        """Whether the sender lets its connection go on after this message."""
        self.upgrade = b""
        """The one protocol that is asked for, or agreed on; empty if there is none."""
        self.not_forwarded = _NOTHING
        """Fields that Connection names as its own."""

    def get(self, name: bytes) -> bytes | None:
        """The values of a field, by its name in lower case, joined as a list; None if there is none."""
        values = [value for lower, _, value in self.fields if lower == name]
        return b", ".join(values) if values else None


class RequestHead(Head):
    """A request's head, as it came."""

    __slots__ = (
        "block", "expects_continue", "host", "method", "passing", "target", "trailers",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, minor: int, fields: list[Field], known: dict[bytes, bytes]
    ) -> None:
        Head.__init__(self, fields, known, minor)
        self.method = method
        self.target = target
        """In origin form, or `*`."""
        self.host = b""
        """The Host field, which every request has."""
        self.expects_continue = False
        self.trailers = False
        """Whether the client takes trailers (TE)."""
        self.block = b""
        """All of it but the first line, as it came; empty if that is too long to be kept."""
        self.passing: tuple[DroppedNames, bytes] | None = None
        """The lines that pass to servers, and without which names."""

    def repeat(self, method: bytes, target: bytes) -> RequestHead:
        """The head of another request that differs from this one in its first line only."""
        head = RequestHead(method, target, self.minor, self.fields, self.known)
        head.framing, head.keep_alive, head.upgrade = self.framing, self.keep_alive, self.upgrade
        head.host, head.not_forwarded, head.trailers = self.host, self.not_forwarded, self.trailers
        head.expects_continue, head.block, head.passing = self.expects_continue, self.block, self.passing
        return head

    @property
    def idempotent(self) -> bool:
        """Whether it does no harm to send it twice."""
        return self.method in _IDEMPOTENT


class ResponseHead(Head):
    """A response's head, as it came."""

    __slots__ = ("reason", "status")

    def __init__(
        self, status: int, reason: bytes, minor: int, fields: list[Field], known: dict[bytes, bytes]
    ) -> None:
        Head.__init__(self, fields, known, minor)
        self.status = status
        self.reason = reason


def _connection_options(head: Head) -> frozenset[bytes]:
    """What Connection lists, and with it the rules for keeping a connection (RFC 9112 §9.3)."""
    value = head.known.get(b"connection")
    if value is None:
        return _NOTHING
    if value == b"keep-alive":
        head.keep_alive = True
        return _NOTHING
    options = frozenset(option.strip(b" \t") for option in value.lower().split(b","))
    head.keep_alive = b"close" not in options and (head.minor == 1 or b"keep-alive" in options)
    return options


def _body_framing(head: Head, status: int, absent: int) -> int:
    """RFC 9112 §6.3, strictly; anything doubtful is an HttpError with `status`."""
    known = head.known
    length = known.get(b"content-length")
    coding = known.get(b"transfer-encoding")
    if coding is None:
        if length is None:
            return absent
        if _LENGTH.fullmatch(length) is None:
            raise HttpError(status, "content_length")
        return int(length)
    if length is not None or coding.lower() != b"chunked" or head.minor == 0:
        raise HttpError(status, "transfer_encoding")
    return CHUNKED


def parse_request(data: bytes, fields_most: int, before: RequestHead | None = None) -> RequestHead:
    """A head, the empty line included, with at most so many fields; `before`: the client's last one.

    Raises HttpError with status 400, 405, 417, 431 or 505.
    """
    first, _, block = data.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise HttpError(400, "malformed")
    method, target, version = match.groups()
    if version != b"1.1" and version != b"1.0":
        raise HttpError(505, "version")
    if method in _REFUSED_METHODS:
        raise HttpError(405, "method")
    minor = 1 if version == b"1.1" else 0
    is_plain = target[0] == 0x2F and b"#" not in target
    if before is not None and block == before.block and minor == before.minor and is_plain:
        return before.repeat(method, target)
    if block.count(b"\r\n") > fields_most + 1:
        raise HttpError(431, "too_many_headers")
    head = _read_request(method, target, minor, block)
    if not is_plain:
        head.target = _origin_form(head)
    return head


def _read_request(method: bytes, target: bytes, minor: int, block: bytes) -> RequestHead:
    """What the rest of a head, its `block`, adds to the first line."""
    try:
        fields, known = read_fields(block.split(b"\r\n")[:-2], _REQUEST_WATCHED)
    except ValueError as error:
        raise HttpError(400, "malformed") from error
    head = RequestHead(method, target, minor, fields, known)
    host = known.get(b"host")
    if host is None or _HOST.fullmatch(host) is None:
        raise HttpError(400, "host")
    head.host = host
    if len(known) > 1:
        _understand_request(head)
    if len(block) <= BLOCK_MOST:
        head.block = block
    return head


def _understand_request(head: RequestHead) -> None:
    """What the fields besides Host mean."""
    known = head.known
    head.framing = _body_framing(head, 400, NO_BODY)
    options = _connection_options(head)
    if options:
        head.not_forwarded = options - _OPTIONS
        if head.minor == 1 and head.framing == NO_BODY and b"upgrade" in options:
            protocol = known.get(b"upgrade", b"")
            if b"," not in protocol and protocol.lower() not in _REFUSED_UPGRADES:
                head.upgrade = protocol
    if head.minor == 0:
        return
    expectation = known.get(b"expect")
    if expectation is not None:
        if expectation.lower() != b"100-continue":
            raise HttpError(417, "expectation")
        head.expects_continue = head.framing != NO_BODY
    codings = known.get(b"te")
    if codings is not None:
        head.trailers = any(coding.strip(b" \t") == b"trailers" for coding in codings.lower().split(b","))


def _origin_form(head: RequestHead) -> bytes:
    """The target without scheme and host, which have to agree with Host (RFC 9112 §3.2)."""
    if head.target == b"*" and head.method == b"OPTIONS":
        return b"*"
    match = _ABSOLUTE.fullmatch(head.target)
    if match is None or b"#" in head.target:
        raise HttpError(400, "target")
    authority, rest = match.groups()
    if authority.lower() != head.host.lower():
        raise HttpError(400, "host")
    return rest if rest.startswith(b"/") else b"/" + rest


def parse_response(data: bytes, fields_most: int, method: bytes) -> ResponseHead:
    """The head of an answer to a request with this method, the empty line included.

    Raises HttpError with status 502.
    """
    lines = data[:-4].split(b"\r\n")
    if len(lines) > fields_most + 1:
        raise HttpError(502, "too_many_headers")
    try:
        minor, status, reason = status_lines[lines[0]]
        fields, known = read_fields(lines[1:], _RESPONSE_WATCHED)
    except ValueError as error:
        raise HttpError(502, "malformed") from error
    head = ResponseHead(status, reason, minor, fields, known)
    head.framing = _body_framing(head, 502, UNTIL_CLOSE)
    options = _connection_options(head)
    if options:
        head.not_forwarded = options - _OPTIONS
        if status == 101 and b"upgrade" in options:
            head.upgrade = known.get(b"upgrade", b"")
    if method == b"HEAD" or status in _BODILESS or status < 200:
        head.framing = NO_BODY
    return head


def write_request(head: RequestHead, host: bytes | None, drop: DroppedNames, added: bytes) -> bytes:
    """The head that goes to the web server: always HTTP/1.1, without the fields to `drop`.

    `host` stands for the client's; `drop` has REQUEST_DROP among its names; `added` is whole lines.
    """
    if head.passing is None or head.passing[0] is not drop:
        named = head.not_forwarded
        passing = [line for lower, line, _ in head.fields if not drop[lower] and lower not in named]
        head.passing = drop, b"".join(b"\r\n" + line for line in passing)
    first = b"%b %b HTTP/1.1\r\nHost: %b%b"
    lines = [first % (head.method, head.target, host or head.host, head.passing[1])]
    if head.framing == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif head.framing or b"content-length" in head.known:
        lines.append(b"Content-Length: %d" % head.framing)
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    elif head.trailers:
        lines.append(b"Connection: TE\r\nTE: trailers")
    if head.expects_continue:
        lines.append(b"Expect: 100-continue")
    lines.append(added)
    return b"\r\n".join(lines) + b"\r\n"


def write_response(head: ResponseHead, minor: int, drop: DroppedNames, added: bytes, keep: bool) -> bytes:
    """The head that goes to a client of HTTP/1.`minor`, whose connection goes on after the response if `keep`.

    `drop` has RESPONSE_DROP among its names; `added` is whole lines.
    """
    named = head.not_forwarded
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += [line for lower, line, _ in head.fields if not drop[lower] and lower not in named]
    if head.status >= 200 and head.status != 204:
        if head.framing == CHUNKED:
            if minor == 1:
                lines.append(b"Transfer-Encoding: chunked")
        elif (length := head.known.get(b"content-length")) is not None:
            lines.append(b"Content-Length: " + length)
    if head.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    elif head.status >= 200:
        if not keep:
            lines.append(b"Connection: close")
        elif minor == 0:
            lines.append(b"Connection: keep-alive")
    lines.append(added)
    return b"\r\n".join(lines) + b"\r\n"


def pass_trailers(section: bytes, drop: DroppedNames, status: int) -> bytes:
    """The lines of a trailer section, the empty line included, that are not to `drop`.

    Raises HttpError with `status`.
    """
    lines = section[:-4].split(b"\r\n")
    try:
        fields, _ = read_fields(lines)
    except ValueError as error:
        raise HttpError(status, "trailers") from error
    passing = [line for lower, line, _ in fields if not drop[lower] and lower not in _NO_TRAILERS]
    return b"".join(line + b"\r\n" for line in passing)


def head_size(data: bytes, line_most: int, size_most: int, examined: int = 0) -> int:
    """Bytes of the request's head that `data` begins with; 0 while it is not complete.

    So many of the bytes were `examined` before, and found to be the beginning of one. Raises HttpError
    (400, 414, 431) as soon as it can't become a good one.
    """
    size = data.find(b"\r\n\r\n", max(examined - 3, 0)) + 4
    if size == 3:
        size = 0
        if data.count(b"\n", examined) != data.count(b"\r\n", max(examined - 1, 0)):
            raise HttpError(400, "malformed")
    if data.find(b"\r\n", 0, line_most + 2) < 0 and len(data) > line_most:
        raise HttpError(414, "request_line")
    if (size or len(data)) > size_most:
        raise HttpError(431, "head_size")
    return size
