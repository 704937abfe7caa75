"""Requests that no honest client sends, and what becomes of each here and in nginx.

Each is followed by `AFTERWARDS`, which has to be a request of its own, or nothing at all. `ours`
and `nginx` are the statuses that come back, in order; 0 is an end without an answer. Where they
differ, `why` says which is right and by which rule (RFC 9112 unless another is named).
"""

from __future__ import annotations

from dataclasses import dataclass

AFTERWARDS = b"GET /afterwards HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
"""Were it taken for a part of what stood before it, or that for a part of it, the server would see that."""

NGINX = "nginx/1.22."
"""Whose statuses the table tells."""


@dataclass(frozen=True)
class Case:
    """One way to be hostile."""

    name: str
    sent: bytes
    ours: tuple[int, ...]
    nginx: tuple[int, ...]
    why: str = ""


def _head(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: a.test") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def _chunked(body: bytes) -> bytes:
    return _head(b"Transfer-Encoding: chunked") + body


_TE = b"Transfer-Encoding: chunked"
_BOTH = (200, 200)
_END = b"0\r\n\r\n"

_UNKNOWN_CODING = (
    "§6.1: 501 is for codings that a server lacks; here none but chunked can be right, so it is an error"
)
_BARE_LF = "§2.2 and §7.1: a line may end by LF alone for lenient readers; of two readers one is stricter"
_ONE_SPACE = "§3: exactly one space; leniency is allowed (MAY), and two readers may cut the line differently"
_DISCARDED = "nginx reads past it without a look and sends none of it on; here chunks pass as they came"
_VERSION = "§2.3: no other version of HTTP/1 exists; nginx takes any minor one"
_HOST = "§3.2: not a host with an optional port; applications make links of it"
_CONTROL = "RFC 9110 §5.5: recipients may take it; some cut the value there"
CASES = (
    # -- where the body ends: length against chunks ---------------------------------------
    Case("CL.TE", _head(b"Content-Length: 6", _TE) + b"0\r\n\r\nG", (400,), (400,)),
    Case("TE.CL", _head(_TE, b"Content-Length: 4") + b"1\r\nZ\r\n" + _END, (400,), (400,)),
    Case(
        "two lengths that differ", _head(b"Content-Length: 1", b"Content-Length: 2") + b"ab", (400,), (400,)
    ),
    Case("two lengths that agree", _head(b"Content-Length: 2", b"Content-Length: 2") + b"ab", (400,), (400,)),
    Case("a list of lengths", _head(b"Content-Length: 2, 2") + b"ab", (400,), (400,)),
    Case("length with a sign", _head(b"Content-Length: +2") + b"ab", (400,), (400,)),
    Case("negative length", _head(b"Content-Length: -1"), (400,), (400,)),
    Case("hexadecimal length", _head(b"Content-Length: 0x2") + b"ab", (400,), (400,)),
    Case("length with an underscore", _head(b"Content-Length: 1_0") + b"0123456789", (400,), (400,)),
    Case("length with a space inside", _head(b"Content-Length: 1 0") + b"0123456789", (400,), (400,)),
    Case("empty length", _head(b"Content-Length:"), (400,), (400,)),
    Case("length beyond 64 bits", _head(b"Content-Length: 18446744073709551618") + b"ab", (400,), (400,)),
    Case("length with a space before the colon", _head(b"Content-Length : 2") + b"ab", (400,), (400,)),
    # -- TE.TE: spellings that one side may take for chunked, and the other not ------------
    Case("TE: other case", _head(b"Transfer-Encoding: ChUnKeD") + _END, _BOTH, _BOTH),
    Case(
        "TE: tab before the value",
        _head(b"Transfer-Encoding:\tchunked") + _END,
        _BOTH,
        (501,),
        "§5: a tab is white space like any other; 501 would be wrong",
    ),
    Case(
        "TE: vertical tab before the value",
        _head(b"Transfer-Encoding:\x0bchunked") + _END,
        (400,),
        (501,),
        _UNKNOWN_CODING,
    ),
    Case("TE: space before the colon", _head(b"Transfer-Encoding : chunked") + _END, (400,), (400,)),
    Case("TE: tab before the colon", _head(b"Transfer-Encoding\t: chunked") + _END, (400,), (400,)),
    Case("TE: line end before the colon", _head(b"Transfer-Encoding\r\n: chunked") + _END, (400,), (400,)),
    Case("TE: folded", _head(b"Transfer-Encoding:\r\n chunked") + _END, (400,), (400,)),
    Case("TE: after a bare LF", _head(b"X: y\nTransfer-Encoding: chunked") + _END, (400,), _BOTH, _BARE_LF),
    Case(
        "TE: after a bare CR",
        _head(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5") + _END,
        (400,),
        (400,),
    ),
    Case("TE: prefix", _head(b"Transfer-Encoding: xchunked") + _END, (400,), (501,), _UNKNOWN_CODING),
    Case("TE: suffix", _head(b"Transfer-Encoding: chunkedx") + _END, (400,), (501,), _UNKNOWN_CODING),
    Case("TE: quoted", _head(b'Transfer-Encoding: "chunked"') + _END, (400,), (501,), _UNKNOWN_CODING),
    Case("TE: parameter", _head(b"Transfer-Encoding: chunked;q=1") + _END, (400,), (501,), _UNKNOWN_CODING),
    Case(
        "TE: chunked twice in a list",
        _head(b"Transfer-Encoding: chunked, chunked") + _END,
        (400,),
        (501,),
        _UNKNOWN_CODING,
    ),
    Case("TE: chunked twice", _head(_TE, _TE) + _END, (400,), (400,)),
    Case(
        "TE: with identity",
        _head(b"Transfer-Encoding: chunked, identity") + _END,
        (400,),
        (501,),
        _UNKNOWN_CODING,
    ),
    Case(
        "TE: after another coding",
        _head(b"Transfer-Encoding: gzip, chunked") + _END,
        (400,),
        (501,),
        _UNKNOWN_CODING,
    ),
    Case("TE: a second one unknown", _head(_TE, b"Transfer-Encoding: x") + _END, (400,), (400,)),
    Case(
        "TE: identity",
        _head(b"Transfer-Encoding: identity", b"Content-Length: 0"),
        (400,),
        (501,),
        _UNKNOWN_CODING,
    ),
    Case("TE: empty", _head(b"Transfer-Encoding:", b"Content-Length: 0"), (400,), (501,), _UNKNOWN_CODING),
    Case("TE: NUL at the end", _head(b"Transfer-Encoding: chunked\x00") + _END, (400,), (400,)),
    Case("TE: in HTTP/1.0", _head(_TE, line=b"POST / HTTP/1.0") + _END, (400,), (400,)),
    Case("TE: underscore", _head(b"Transfer_Encoding: chunked", b"Content-Length: 0"), _BOTH, _BOTH),
    # -- chunks ----------------------------------------------------------------------------
    Case("chunk: 0x before the size", _chunked(b"0x1\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: sign before the size", _chunked(b"+1\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: negative size", _chunked(b"-1\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: underscore in the size", _chunked(b"1_0\r\n0123456789abcdef\r\n" + _END), (400,), (400,)),
    Case("chunk: size beyond 64 bits", _chunked(b"10000000000000001\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: no size", _chunked(b"\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: space before the size", _chunked(b" 1\r\na\r\n" + _END), (400,), (400,)),
    Case(
        "chunk: space after the size",
        _chunked(b"1 \r\na\r\n" + _END),
        (400,),
        _BOTH,
        "§7.1 has no space there (only before an extension)",
    ),
    Case("chunk: bare LF after the size", _chunked(b"1\na\r\n" + _END), (400,), _BOTH, _BARE_LF),
    Case("chunk: bare CR after the size", _chunked(b"1\ra\r\n" + _END), (400,), (400,)),
    Case("chunk: bare LF after the data", _chunked(b"1\r\na\n" + _END), (400,), _BOTH, _BARE_LF),
    Case("chunk: data longer than its size", _chunked(b"1\r\nab\r\n" + _END), (400,), (400,)),
    Case("chunk: bare LF in an extension", _chunked(b"1;a\nb\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: bare CR in an extension", _chunked(b"1;a\rb\r\na\r\n" + _END), (400,), (400,)),
    Case("chunk: NUL in an extension", _chunked(b"1;a\x00b\r\na\r\n" + _END), (400,), _BOTH, _DISCARDED),
    Case(
        "chunk: long extension",
        _chunked(b"1;" + b"a" * 5000 + b"\r\na\r\n" + _END),
        (400,),
        _BOTH,
        _DISCARDED,
    ),
    Case(
        "chunk: many extensions",
        _chunked(b"1;aaaaaaaaaaaaaaaa\r\na\r\n" * 500 + _END),
        (400,),
        _BOTH,
        _DISCARDED,
    ),
    Case("trailer: that is no field", _chunked(b"0\r\nno field\r\n\r\n"), (400,), _BOTH, _DISCARDED),
    Case("trailer: folded", _chunked(b"0\r\nA: b\r\n c\r\n\r\n"), (400,), _BOTH, _DISCARDED),
    Case("trailer: too long", _chunked(b"0\r\nA: " + b"a" * 20_000 + b"\r\n\r\n"), (400,), _BOTH, _DISCARDED),
    # -- the first line --------------------------------------------------------------------
    Case("line: bare LF", b"GET / HTTP/1.1\nHost: a.test\r\n\r\n", (400,), _BOTH, _BARE_LF),
    Case("line: bare LF everywhere", b"GET / HTTP/1.1\nHost: a.test\n\n", (400,), _BOTH, _BARE_LF),
    Case("line: empty line before it", b"\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", _BOTH, _BOTH),
    Case("line: two spaces", _head(line=b"GET  / HTTP/1.1"), (400,), _BOTH, _ONE_SPACE),
    Case("line: tab", _head(line=b"GET\t/ HTTP/1.1"), (400,), (400,)),
    Case("line: space at the end", _head(line=b"GET / HTTP/1.1 "), (400,), _BOTH, _ONE_SPACE),
    Case("line: space in the target", _head(line=b"GET /a b HTTP/1.1"), (400,), (400,)),
    Case("line: NUL in the target", _head(line=b"GET /a\x00b HTTP/1.1"), (400,), (400,)),
    Case("line: control character in the target", _head(line=b"GET /a\x01b HTTP/1.1"), (400,), (400,)),
    Case("line: bare CR in the target", _head(line=b"GET /a\rb HTTP/1.1"), (400,), (400,)),
    Case(
        "line: eight bits in the target",
        _head(line=b"GET /\xe9 HTTP/1.1"),
        (400,),
        _BOTH,
        "RFC 3986 §2: a URI is ASCII; servers disagree about what the bytes mean",
    ),
    Case(
        "line: fragment",
        _head(line=b"GET /a#b HTTP/1.1"),
        (400,),
        _BOTH,
        "RFC 3986 §3.5: a fragment is never sent; nginx cuts it off",
    ),
    Case(
        "line: no version",
        b"GET /\r\n",
        (400,),
        (0,),
        "HTTP/0.9: nginx asks the server and passes its answer on; the recorder's is none",
    ),
    Case("line: version 1.2", _head(line=b"GET / HTTP/1.2"), (505,), _BOTH, _VERSION),
    Case("line: version 2.0", _head(line=b"GET / HTTP/2.0"), (505,), (505,)),
    Case("line: version 1.10", _head(line=b"GET / HTTP/1.10"), (400,), _BOTH, _VERSION),
    Case("line: version in small letters", _head(line=b"GET / http/1.1"), (400,), (400,)),
    Case("line: HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,), (400,), "either will do"),
    Case("line: method with a colon", _head(line=b"GET: / HTTP/1.1"), (400,), (400,)),
    Case(
        "line: CONNECT",
        _head(line=b"CONNECT a.test:443 HTTP/1.1"),
        (405,),
        (400,),
        "RFC 9110 §15.5.6: the method is known and not allowed",
    ),
    Case("line: TRACE", _head(line=b"TRACE / HTTP/1.1"), (405,), (405,)),
    Case("line: target of a proxy", _head(line=b"GET a.test:443 HTTP/1.1"), (400,), (400,)),
    Case("line: * for GET", _head(line=b"GET * HTTP/1.1"), (400,), (400,)),
    Case(
        "line: another scheme",
        _head(line=b"GET ftp://a.test/ HTTP/1.1"),
        (400,),
        _BOTH,
        "RFC 9110 §7.4: this is no server of ftp",
    ),
    Case("line: absolute, as Host says", _head(line=b"GET http://a.test/ HTTP/1.1"), _BOTH, _BOTH),
    Case(
        "line: absolute, not as Host says",
        _head(line=b"GET http://b.test/ HTTP/1.1"),
        (400,),
        _BOTH,
        "§3.2.2 would have Host replaced; two hosts in a request are an attempt to be routed by one and served by the other",
    ),
    Case("line: absolute, with a user", _head(line=b"GET http://u@a.test/ HTTP/1.1"), (400,), (400,)),
    Case("line: splitting in an escape", _head(line=b"GET /a%0d%0aX:%20y HTTP/1.1"), _BOTH, _BOTH),
    # -- Host --------------------------------------------------------------------------------
    Case("host: none", _head(host=b""), (400,), (400,)),
    Case(
        "host: none in HTTP/1.0",
        _head(line=b"GET / HTTP/1.0", host=b""),
        (400,),
        (200,),
        "the proxy routes by Host, so there has to be one",
    ),
    Case("host: two that agree", _head(b"Host: a.test"), (400,), (400,)),
    Case("host: two that differ", _head(b"Host: b.test"), (400,), (400,)),
    Case("host: empty", _head(host=b"Host:"), (400,), (400,)),
    Case("host: with a user", _head(host=b"Host: u@a.test"), (400,), _BOTH, _HOST),
    Case("host: with a path", _head(host=b"Host: a.test/b"), (400,), (400,)),
    Case("host: with a list", _head(host=b"Host: a.test, b.test"), (400,), (400,)),
    Case("host: with a space", _head(host=b"Host: a.test b.test"), (400,), (400,)),
    Case("host: with a quote", _head(host=b'Host: "a.test"'), (400,), _BOTH, _HOST),
    Case("host: with a bad port", _head(host=b"Host: a.test:http"), (400,), _BOTH, _HOST),
    # -- fields --------------------------------------------------------------------------------
    Case("field: without a colon", _head(b"no colon"), (400,), (400,)),
    Case("field: without a name", _head(b": x"), (400,), (400,)),
    Case("field: space in the name", _head(b"X Y: z"), (400,), (400,)),
    Case("field: space before the first", b"GET / HTTP/1.1\r\n Host: a.test\r\n\r\n", (400,), (400,)),
    Case("field: folded", _head(b"X: a\r\n b"), (400,), (400,)),
    Case("field: NUL in the value", _head(b"X: a\x00b"), (400,), (400,)),
    Case("field: bare CR in the value", _head(b"X: a\rb"), (400,), (400,)),
    Case("field: bare LF in the value", _head(b"X: a\nY: b"), (400,), _BOTH, _BARE_LF),
    Case("field: control character in the value", _head(b"X: a\x01b"), (400,), _BOTH, _CONTROL),
    Case("field: DEL in the value", _head(b"X: a\x7fb"), (400,), _BOTH, _CONTROL),
    Case("field: eight bits in the value", _head(b"X: \xe9"), _BOTH, _BOTH),
    Case(
        "field: eight bits in the name",
        _head(b"X\xe9: a"),
        (400,),
        _BOTH,
        "§5.1: a name is a token; nginx drops the field",
    ),
    Case(
        "field: too many",
        _head(*[b"X: y"] * 101),
        (431,),
        _BOTH,
        "nginx has no limit of their number, only of their bytes",
    ),
    Case("field: too long", _head(b"X: " + b"y" * 40_000), (431,), (400,), "RFC 6585 §5 has a status for it"),
    Case("line: too long", _head(line=b"GET /" + b"y" * 40_000 + b" HTTP/1.1"), (414,), (414,)),
)
