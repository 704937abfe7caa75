"""PROXY protocol: whose connection this is, said by the load balancer in front. Sans I/O.

Follows `doc/proxy-protocol.txt` of HAProxy: version 1 is a line of text, version 2 binary with
optional TLVs. Only a configured, trusted sender may be asked for a header: whoever else sends
one could claim any address.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Literal, NamedTuple

V1_SIZE_MOST = 107
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
SIZE_MOST = 8192
"""Longest header that is read, in bytes; one with a whole client certificate in it fits."""

_V1_PREFIX = b"PROXY "
_V1_LINE = re.compile(
    rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _INET, _INET6, _UNIX = range(4)
_STREAM = 1
_UNIX_PATH = 108
_ADDRESS_SIZES = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 2 * _UNIX_PATH}
_UNIX_MARK = "unix:"

TLV_ALPN, TLV_AUTHORITY, TLV_CRC32C, TLV_NOOP, TLV_UNIQUE_ID = range(1, 6)
TLV_SSL = 0x20
(
    SSL_VERSION, SSL_COMMON_NAME, SSL_CIPHER, SSL_SIGNATURE, SSL_KEY, SSL_GROUP, SSL_SIGNATURE_SCHEME
) = range(0x21, 0x28)  # fmt: skip
"""Inside of TLV_SSL. The name is the client's; SIGNATURE and KEY are of the server's certificate."""
CLIENT_SSL, CLIENT_CERT_CONN, CLIENT_CERT_SESS = 1, 2, 4
"""Bits of TLV_SSL's first byte."""


Version = Literal["v1", "v2", "v2-addresses"]
"""Which header is sent: the last one is of version 2, without TLVs."""


class ProxyProtocolError(ValueError):
    """These bytes are no PROXY header."""


class Endpoint(NamedTuple):
    """One end of a connection: a numeric address and a port, or `unix:PATH` and 0."""

    host: str
    port: int


Tlv = tuple[int, bytes]
"""Type and value."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. Without endpoints, those of the connection itself count."""

    source: Endpoint | None = None
    destination: Endpoint | None = None
    tlvs: tuple[Tlv, ...] = ()
    local: bool = False
    """The sender speaks for itself, as it does to see whether we live."""


class Parsed(NamedTuple):
    """A whole header and its size in bytes."""

    header: Header
    size: int


def parse(data: bytes) -> Parsed | None:
    """The header that `data` begins with; None while some of it has not come.

    As long as it is None, every byte of `data` belongs to the header. Raises ProxyProtocolError.
    """
    if V2_SIGNATURE.startswith(data[:12]):
        return _parse_v2(data)
    if _V1_PREFIX.startswith(data[:6]):
        return _parse_v1(data)
    raise ProxyProtocolError("neither version's signature")


def _parse_v1(data: bytes) -> Parsed | None:
    size = data.find(b"\n", 0, V1_SIZE_MOST) + 1
    if not size:
        if len(data) >= V1_SIZE_MOST:
            raise ProxyProtocolError(f"version 1: no end within {V1_SIZE_MOST} bytes")
        return None
    line = data[:size]
    if _V1_UNKNOWN.fullmatch(line):
        return Parsed(Header(), size)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise ProxyProtocolError("version 1: not the line it should be")
    family = IPv4Address if match[1] == b"4" else IPv6Address
    try:
        source, destination = (str(family(text.decode())) for text in match.group(2, 3))
    except AddressValueError as error:
        raise ProxyProtocolError(f"version 1: {error}") from error
    source_port, destination_port = int(match[4]), int(match[5])
    if max(source_port, destination_port) > 0xFFFF:
        raise ProxyProtocolError("version 1: a port above 65535")
    return Parsed(Header(Endpoint(source, source_port), Endpoint(destination, destination_port)), size)


def _parse_v2(data: bytes) -> Parsed | None:
    if len(data) < _V2_FIXED:
        return None
    command, kind, length = struct.unpack_from("!BBH", data, 12)
    size = _V2_FIXED + length
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"version 2: unknown version or command {command:#04x}")
    if size > SIZE_MOST:
        raise ProxyProtocolError(f"version 2: {size} bytes, above {SIZE_MOST}")
    if len(data) < size:
        return None
    if command == _LOCAL:  # what follows has no meaning: section 2.2
        return Parsed(Header(local=True), size)
    family, transport = kind >> 4, kind & 15
    start = _V2_FIXED + _ADDRESS_SIZES.get(family, 0)
    if family not in _ADDRESS_SIZES or transport > 2 or start > size:
        raise ProxyProtocolError(f"version 2: addresses of kind {kind:#04x} in {length} bytes")
    tlvs = parse_tlvs(data[start:size])
    _check_crc32c(data[:size], start, tlvs)
    if transport != _STREAM:  # no such connection can have come over TCP
        return Parsed(Header(tlvs=tlvs), size)
    source, destination = _parse_addresses(family, data[_V2_FIXED:start])
    return Parsed(Header(source, destination, tlvs), size)


def _parse_addresses(family: int, block: bytes) -> tuple[Endpoint | None, Endpoint | None]:
    if family == _INET:
        source, destination, *ports = struct.unpack("!4s4sHH", block)
        return Endpoint(str(IPv4Address(source)), ports[0]), Endpoint(str(IPv4Address(destination)), ports[1])
    if family == _INET6:
        source, destination, *ports = struct.unpack("!16s16sHH", block)
        return Endpoint(str(IPv6Address(source)), ports[0]), Endpoint(str(IPv6Address(destination)), ports[1])
    if family == _UNIX:
        paths = (block[:_UNIX_PATH], block[_UNIX_PATH:])
        source, destination = (
            _UNIX_MARK + path.rstrip(b"\0").decode(errors="surrogateescape") for path in paths
        )
        return Endpoint(source, 0), Endpoint(destination, 0)
    return None, None


def parse_tlvs(data: bytes) -> tuple[Tlv, ...]:
    """The vectors in a header's tail, or inside another. Raises ProxyProtocolError."""
    tlvs: list[Tlv] = []
    position = 0
    while position < len(data):
        value = position + 3
        if value > len(data):
            raise ProxyProtocolError("version 2: a TLV is cut off")
        kind, length = struct.unpack_from("!BH", data, position)
        position = value + length
        if position > len(data):
            raise ProxyProtocolError(f"version 2: TLV {kind:#04x} is longer than the header")
        tlvs.append((kind, data[value:position]))
    return tuple(tlvs)


def encode_tlvs(tlvs: Iterable[Tlv]) -> bytes:
    """The wire form of vectors. Raises struct.error for one above 65,535 bytes."""
    return b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)


def encode_v1(source: Endpoint, destination: Endpoint) -> bytes:
    """The line for a connection; `PROXY UNKNOWN` for unix sockets, which it has no form for."""
    try:
        ends = _same_family(source.host, destination.host)
    except ValueError:
        return b"PROXY UNKNOWN\r\n"
    ports = f"{source.port} {destination.port}"
    return f"PROXY TCP{ends[0].version} {ends[0]} {ends[1]} {ports}\r\n".encode()


def encode_local(version: Version) -> bytes:
    """The header of who connects for himself, as health checks do."""
    return b"PROXY UNKNOWN\r\n" if version == "v1" else V2_SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)


def encode_v2(source: Endpoint, destination: Endpoint, tlvs: Iterable[Tlv] = ()) -> bytes:
    """The header for a connection. Raises ValueError for what is no address."""
    if source.host.startswith(_UNIX_MARK):
        kind = _UNIX << 4 | _STREAM
        paths = [
            end.host.removeprefix(_UNIX_MARK).encode(errors="surrogateescape")
            for end in (source, destination)
        ]
        block = b"".join(path[:_UNIX_PATH].ljust(_UNIX_PATH, b"\0") for path in paths)
    else:
        ends = _same_family(source.host, destination.host)
        kind = (_INET if ends[0].version == 4 else _INET6) << 4 | _STREAM
        block = ends[0].packed + ends[1].packed + struct.pack("!HH", source.port, destination.port)
    block += encode_tlvs(tlvs)
    return V2_SIGNATURE + struct.pack("!BBH", _PROXY, kind, len(block)) + block


def ssl_tlv(told: Iterable[tuple[int, str]], client_name: str | None = None) -> Tlv:
    """TLV_SSL for a client's TLS connection: texts by `SSL_…`, of which empty ones are left out.

    `client_name` is the CN of its verified certificate. The field `verify` is zero for such a one only
    (section 2.2.6).
    """
    client, inner = CLIENT_SSL, list(told)
    if client_name is not None:
        client |= CLIENT_CERT_CONN | CLIENT_CERT_SESS
        inner.append((SSL_COMMON_NAME, client_name))
    value = struct.pack("!BI", client, client_name is None)
    return TLV_SSL, value + encode_tlvs((kind, text.encode()) for kind, text in inner if text)


def _same_family(source: str, destination: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """Both as addresses of one family: IPv4-mapped ones where they differ. Raises ValueError."""
    ends = (ip_address(source.partition("%")[0]), ip_address(destination.partition("%")[0]))
    if ends[0].version == ends[1].version:
        return ends
    return tuple(IPv6Address(f"::ffff:{end}") if end.version == 4 else end for end in ends)


def _check_crc32c(header: bytes, start: int, tlvs: tuple[Tlv, ...]) -> None:
    position, seen = start, False
    for kind, value in tlvs:
        position += 3
        if kind == TLV_CRC32C:
            zeroed = header[:position] + bytes(len(value)) + header[position + len(value) :]
            if seen or len(value) != 4 or crc32c(zeroed) != int.from_bytes(value):
                raise ProxyProtocolError("version 2: the checksum does not fit, or stands twice")
            seen = True
        position += len(value)


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960 appendix B (Castagnoli), as the header's CRC32C TLV has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc32c_entry(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (0x82F63B78 if index & 1 else 0)
    return index


_CRC32C = tuple(_crc32c_entry(index) for index in range(256))
