"""Tells the application who its client is, in the headers of a request. Pure.

X-Forwarded-For, -Proto, -Host, -Port; Forwarded (RFC 7239); Client-Cert and Client-Cert-Chain (RFC
9440); X-Request-ID. What a trusted peer (a proxy in front) says in them is extended or kept where it
is well-formed; what anybody else says is dropped (`guarded`).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from offload.http.guarded import TOLD

CHAIN_MOST = 8192
"""Bytes of a Client-Cert-Chain at most; a longer one is left out, as applications limit heads."""

_TCHAR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_TOKEN = re.compile(_TCHAR + rb"+")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_PAIR = _TCHAR + rb"++=(?:" + _TCHAR + rb"++|" + _QUOTED + rb")"
_ELEMENT = _PAIR + rb"(?:[ \t]*+;[ \t]*+" + _PAIR + rb")*+"


def _list_of(item: bytes) -> re.Pattern[bytes]:
    return re.compile(item + rb"(?:[ \t]*+,[ \t]*+" + item + rb")*+")


_BYTE_SEQUENCE = rb":[0-9A-Za-z+/]++={0,2}:"
_WELL_FORMED = {
    b"forwarded": _list_of(_ELEMENT),
    b"x-forwarded-for": _list_of(rb"[0-9A-Za-z._:%\[\]-]++"),
    b"x-forwarded-proto": _list_of(rb"[A-Za-z][0-9A-Za-z+.-]*+"),
    b"x-forwarded-host": _list_of(rb"[0-9A-Za-z._:%\[\]-]++"),
    b"x-forwarded-port": _list_of(rb"[0-9]{1,5}+"),
    b"client-cert": re.compile(_BYTE_SEQUENCE),
    b"client-cert-chain": _list_of(_BYTE_SEQUENCE),
}


def quoted(value: bytes) -> bytes:
    """A token as it is, anything else as a quoted-string (RFC 9110 section 5.6.4)."""
    if _TOKEN.fullmatch(value):
        return value
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def told(fields: Iterable[tuple[bytes, bytes, bytes]]) -> dict[bytes, bytes]:
    """What a trusted peer says of its client, by name in lower case; several lines of one as one list.

    Fields are as in `Head.fields`: name in lower case, name, value.
    """
    found: dict[bytes, bytes] = {}
    for name, _, value in fields:
        if name in TOLD:
            found[name] = found[name] + b", " + value if name in found else value
    return found


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of whoever sends requests."""

    host: str
    """Its address, as accept(2) or a PROXY header tells it (`unix:PATH`, too)."""
    scheme: str
    """`https` or `http`."""
    port: int
    """That it connected to; 0 if it is none: a unix socket's, by a PROXY header."""
    chain: tuple[bytes, ...] = ()
    """The certificates that it showed (DER), the verified leaf first."""


@dataclass(frozen=True, slots=True)
class Told:
    """Which headers are written."""

    x_forwarded: bool = True
    forwarded: bool = False
    client_cert: bool = False
    request_id: bool = True


class ForwardedHeaders:
    """The lines for all requests of one connection; each ends with CRLF."""

    __slots__ = ("_address", "_certificates", "_client", "_end", "_host", "_node", "_told", "_unextended")

    def __init__(self, client: Client, which: Told) -> None:
        self._client = client
        self._told = which
        self._address = _plain_address(client.host)
        self._node = _node(self._address)
        self._certificates = _certificates(client.chain) if which.client_cert else b""
        self._end = b"X-Request-ID: " if which.request_id else b""
        self._host: bytes | None = None
        """Of the request before: nearly always that of the next, too."""
        self._unextended = b""

    def lines(self, host: bytes, incoming: Mapping[bytes, bytes] | None, request_id: bytes) -> bytes:
        """For a request with this Host (or none). `incoming`: `told` by a trusted peer, else None."""
        if incoming:
            fixed = self._extended(host, incoming)
        elif host == self._host:
            fixed = self._unextended
        else:
            fixed = self._unextended = self._extended(host, {})
            self._host = host
        return fixed + request_id + b"\r\n" if self._end else fixed

    def _extended(self, host: bytes, incoming: Mapping[bytes, bytes]) -> bytes:
        said = {name: value for name, value in incoming.items() if _is_well_formed(name, value)}
        lines = b""
        if self._told.x_forwarded:
            lines += self._x_forwarded(host, said)
        if self._told.forwarded:
            lines += _line(b"Forwarded", _appended(said.get(b"forwarded"), self._element(host)))
        if self._told.client_cert:
            lines += _kept_certificates(said) or self._certificates
        return lines + self._end

    def _x_forwarded(self, host: bytes, said: Mapping[bytes, bytes]) -> bytes:
        scheme, name = said.get(b"x-forwarded-proto"), said.get(b"x-forwarded-host", host)
        # Our port says nothing about a scheme that the proxy in front has told.
        ours = b"" if scheme or not self._client.port else str(self._client.port).encode()
        port = said.get(b"x-forwarded-port", ours)
        return (
            _line(b"X-Forwarded-For", _appended(said.get(b"x-forwarded-for"), self._address))
            + _line(b"X-Forwarded-Proto", scheme or self._client.scheme.encode())
            + (_line(b"X-Forwarded-Host", name) if name else b"")
            + (_line(b"X-Forwarded-Port", port) if port else b"")
        )

    def _element(self, host: bytes) -> bytes:
        named = b";host=" + quoted(host) if host else b""
        return b"for=" + self._node + named + b";proto=" + self._client.scheme.encode()


def _is_well_formed(name: bytes, value: bytes) -> bool:
    form = _WELL_FORMED.get(name)
    return form is not None and form.fullmatch(value) is not None


def _line(name: bytes, value: bytes) -> bytes:
    return name + b": " + value + b"\r\n"


def _appended(before: bytes | None, value: bytes) -> bytes:
    return value if before is None else before + b", " + value


def _plain_address(host: str) -> bytes:
    """Without zone, IPv4 as IPv4; `unknown` for a unix socket (RFC 7239 section 6.2)."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return b"unknown"
    return str((address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address).encode()


def _node(address: bytes) -> bytes:
    """An address as RFC 7239 section 6 has it: IPv6 in brackets, and so in quotes."""
    return quoted(b"[" + address + b"]") if b":" in address else address


def _certificates(chain: tuple[bytes, ...]) -> bytes:
    """RFC 9440 section 2: byte sequences of RFC 8941, the leaf apart from the rest of the chain."""
    if not chain:
        return b""
    leaf, *rest = (b":" + b64encode(certificate) + b":" for certificate in chain)
    others = b", ".join(rest)
    lines = _line(b"Client-Cert", leaf)
    return lines + _line(b"Client-Cert-Chain", others) if 0 < len(others) <= CHAIN_MOST else lines


def _kept_certificates(said: Mapping[bytes, bytes]) -> bytes:
    """Those of the client that a proxy in front speaks for; b"" if it tells none."""
    if b"client-cert" not in said:
        return b""
    others = said.get(b"client-cert-chain")
    lines = _line(b"Client-Cert", said[b"client-cert"])
    return lines if others is None else lines + _line(b"Client-Cert-Chain", others)
