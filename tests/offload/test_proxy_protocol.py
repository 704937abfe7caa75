"""PROXY protocol headers: round trips, each form the specification has, and what must be refused."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import proxy_protocol as pp
from offload.proxy_protocol import Endpoint, Header, Parsed, ProxyProtocolError, parse

PORTS = st.integers(0, 65535)
INET = st.builds(Endpoint, st.ip_addresses(v=4).map(str), PORTS)
INET6 = st.builds(Endpoint, st.ip_addresses(v=6).map(str), PORTS)
PATHS = st.binary(max_size=108).map(lambda path: path.rstrip(b"\0"))
UNIX = PATHS.map(lambda path: Endpoint("unix:" + path.decode(errors="surrogateescape"), 0))
INTERNET_PAIRS = st.tuples(INET, INET) | st.tuples(INET6, INET6)
TLVS = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind != pp.TLV_CRC32C), st.binary(max_size=300)),
    max_size=10,
)
CLIENT, SERVER = Endpoint("192.0.2.1", 56324), Endpoint("198.51.100.2", 443)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"


def v2(block: bytes, *, command: int = 0x21, kind: int = 0x11) -> bytes:
    """A version 2 header around any block."""
    return pp.V2_SIGNATURE + struct.pack("!BBH", command, kind, len(block)) + block


def whole(data: bytes) -> Header:
    """The header that these bytes are, all of them."""
    parsed = parse(data)
    assert parsed is not None
    assert parsed.size == len(data)
    return parsed.header


@given(INTERNET_PAIRS, st.binary(max_size=50))
def test_version_1_round_trip(pair: tuple[Endpoint, Endpoint], after: bytes) -> None:
    """What is encoded is read back, and what follows is left alone."""
    line = pp.encode_v1(*pair)
    assert len(line) <= pp.V1_SIZE_MOST
    assert parse(line + after) == Parsed(Header(*pair), len(line))


@given(INTERNET_PAIRS | st.tuples(UNIX, UNIX), TLVS, st.binary(max_size=50))
def test_version_2_round_trip(pair: tuple[Endpoint, Endpoint], tlvs: list[pp.Tlv], after: bytes) -> None:
    """Every address family, any TLVs."""
    header = pp.encode_v2(*pair, tlvs)
    assert parse(header + after) == Parsed(Header(*pair, tuple(tlvs)), len(header))


@given(INTERNET_PAIRS, TLVS, st.data())
def test_a_header_in_pieces(pair: tuple[Endpoint, Endpoint], tlvs: list[pp.Tlv], data: st.DataObject) -> None:
    """Any beginning of a header is waited with, never refused."""
    header = data.draw(st.sampled_from([pp.encode_v1(*pair), pp.encode_v2(*pair, tlvs)]))
    assert parse(header[: data.draw(st.integers(0, len(header) - 1))]) is None


@given(st.binary(max_size=400), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", pp.V2_SIGNATURE]))
def test_fuzz(data: bytes, start: bytes) -> None:
    """Whatever comes is a header, the beginning of one, or refused; and never read beyond its end."""
    try:
        parsed = parse(start + data)
    except ProxyProtocolError:
        return
    if parsed is None:
        assert len(start + data) < pp.SIZE_MOST
    else:
        assert 0 < parsed.size <= len(start + data)


@given(INTERNET_PAIRS, TLVS, st.data())
def test_fuzz_by_damage(pair: tuple[Endpoint, Endpoint], tlvs: list[pp.Tlv], data: st.DataObject) -> None:
    """A header with one byte changed raises nothing else either."""
    header = bytearray(data.draw(st.sampled_from([pp.encode_v1(*pair), pp.encode_v2(*pair, tlvs)])))
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(header))
    except ProxyProtocolError:
        pass


def test_the_line_of_the_specification() -> None:
    """Section 2.1 has it word for word."""
    assert whole(LINE) == Header(CLIENT, SERVER)
    assert pp.encode_v1(CLIENT, SERVER) == LINE


@pytest.mark.parametrize(
    "line",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", b"PROXY UNKNOWN ::1 what ever\r\n"],
)
def test_unknown_means_the_connection_itself(line: bytes) -> None:
    """The rest of the line is skipped, up to 107 bytes."""
    assert whole(line) == Header()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.000.002.001 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo ::2 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN a\rb\r\n",
        b"PROXY TCP4 " + b"1" * 96,
        b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    ],
)
def test_version_1_refused(line: bytes) -> None:
    """Any sequence that does not match exactly."""
    with pytest.raises(ProxyProtocolError):
        parse(line)


@pytest.mark.parametrize("block", [b"", b"rubbish", bytes(12)])
def test_local_says_nothing_of_a_client(block: bytes) -> None:
    """A health check: its block is skipped, whatever is in it."""
    assert whole(v2(block, command=0x20, kind=0)) == Header(local=True)


@pytest.mark.parametrize(
    ("kind", "block"), [(0x00, b""), (0x12, bytes(12)), (0x22, bytes(36)), (0x01, b""), (0x10, bytes(12))]
)
def test_what_is_no_stream_has_no_addresses(kind: int, block: bytes) -> None:
    """UNSPEC and datagrams: the connection's own ends count."""
    assert whole(v2(block, kind=kind)) == Header()


@pytest.mark.parametrize(
    "header",
    [
        v2(bytes(12), command=0x22),
        v2(bytes(12), command=0x11),
        v2(bytes(11)),
        v2(bytes(35), kind=0x21),
        v2(bytes(215), kind=0x31),
        v2(bytes(216), kind=0x41),
        v2(bytes(12), kind=0x13),
        v2(bytes(12) + b"\x04\x00"),
        v2(bytes(12) + b"\x04\x00\x02x"),
        v2(bytes(pp.SIZE_MOST)),
        b"\r\n\r\n\0\r\nQUIX\n",
    ],
)
def test_version_2_refused(header: bytes) -> None:
    """Unknown commands and families, blocks too short for their addresses, TLVs that don't fit, excess."""
    with pytest.raises(ProxyProtocolError):
        parse(header)


def test_too_long_a_header_is_refused_before_it_has_come() -> None:
    """The announced length decides: nothing is gathered for it."""
    with pytest.raises(ProxyProtocolError, match="above"):
        parse(v2(bytes(60_000))[:16])


def test_checksum() -> None:
    """RFC 3720's check value; a header with its checksum is taken, one that was changed is not."""
    assert pp.crc32c(b"123456789") == 0xE3069283
    tlvs = [(pp.TLV_NOOP, b"abc"), (pp.TLV_CRC32C, bytes(4)), (pp.TLV_UNIQUE_ID, b"7")]
    blank = pp.encode_v2(CLIENT, SERVER, tlvs)
    tlvs[1] = (pp.TLV_CRC32C, pp.crc32c(blank).to_bytes(4))
    header = pp.encode_v2(CLIENT, SERVER, tlvs)
    assert whole(header).tlvs == tuple(tlvs)
    for wrong in (blank, header[:-1] + b"8"):
        with pytest.raises(ProxyProtocolError, match="checksum"):
            parse(wrong)
    with pytest.raises(ProxyProtocolError, match="twice"):
        parse(pp.encode_v2(CLIENT, SERVER, [tlvs[1], tlvs[1]]))


def test_ends_of_two_families() -> None:
    """Version 4 becomes an IPv4-mapped address; a zone has no place in a header."""
    source, destination = Endpoint("192.0.2.1", 1), Endpoint("fe80::1%lo", 2)
    found = whole(pp.encode_v2(source, destination))
    assert found.source == Endpoint(str(IPv6Address("::ffff:192.0.2.1")), 1)
    assert found.destination == Endpoint("fe80::1", 2)
    assert whole(pp.encode_v1(source, destination)) == found


def test_unix_sockets_have_no_line() -> None:
    """Version 1 knows TCP only."""
    end = Endpoint("unix:/run/x.sock", 0)
    assert pp.encode_v1(end, end) == b"PROXY UNKNOWN\r\n"


def test_tls_of_the_client() -> None:
    """Section 2.2.6: bits, verify, then vectors; without a certificate `verify` is not zero."""
    told = [(0x21, "TLSv1.3"), (0x23, "TLS_AES_128_GCM_SHA256"), (0x24, ""), (0x26, "x25519")]
    kind, value = pp.ssl_tlv(told)
    assert (kind, value[:5]) == (0x20, b"\x01\0\0\0\x01")
    assert dict(pp.parse_tlvs(value[5:])) == {
        0x21: b"TLSv1.3", 0x23: b"TLS_AES_128_GCM_SHA256", 0x26: b"x25519"
    }  # fmt: skip
    _, value = pp.ssl_tlv([(0x21, "TLSv1.2"), (0x23, "AES")], client_name="alice")
    assert value[:5] == b"\x07\0\0\0\0"
    assert dict(pp.parse_tlvs(value[5:]))[0x22] == b"alice"


def test_who_connects_for_himself() -> None:
    """A health check of ours reads as one that comes to us."""
    assert whole(pp.encode_local("v1")) == Header()
    assert whole(pp.encode_local("v2")) == Header(local=True)


@given(st.ip_addresses(v=4))
def test_addresses_as_in_the_header(address: IPv4Address | IPv6Address) -> None:
    """An address is four bytes in network order, at a place of its own."""
    header = pp.encode_v2(Endpoint(str(address), 1), SERVER)
    assert header[16:20] == address.packed
    assert header[12:16] == b"\x21\x11\x00\x0c"
