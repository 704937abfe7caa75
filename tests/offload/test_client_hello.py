"""ClientHellos with and without a ticket, as real clients send them."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.tls import TLSError, asks_full_handshake
from offload.tls.client_hello import ClientHello


def first_flight(version: ssl.TLSVersion, session: ssl.SSLSession | None = None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="www.example", session=session)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_new_client_asks_for_a_full_handshake(version: ssl.TLSVersion) -> None:
    """It offers to take tickets, but brings none."""
    assert asks_full_handshake(first_flight(version))


def with_extension(hello: bytes, kind: int, content: bytes) -> bytes:
    """A ClientHello record with one more extension, as its last one."""
    extension = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    body = bytearray(hello[9:])  # after the headers of record and message
    offset = 2 + 32
    offset += 1 + body[offset]
    offset += 2 + int.from_bytes(body[offset : offset + 2], "big")
    offset += 1 + body[offset]
    size = int.from_bytes(body[offset : offset + 2], "big")
    body[offset : offset + 2] = (size + len(extension)).to_bytes(2, "big")
    message = b"\x01" + (len(body) + len(extension)).to_bytes(3, "big") + bytes(body) + extension
    return hello[:3] + len(message).to_bytes(2, "big") + message


def test_a_psk_is_a_ticket_of_tls13() -> None:
    """pre_shared_key (41) marks a client that wants to resume."""
    hello = first_flight(ssl.TLSVersion.TLSv1_3)
    assert not asks_full_handshake(with_extension(hello, 41, b"\0" * 60))
    assert asks_full_handshake(with_extension(hello, 0xFAFA, b"\0" * 60))


def test_what_is_cut_short_is_left_to_the_handshake() -> None:
    """Every prefix of a ClientHello may yet turn out to bring a ticket."""
    hello = first_flight(ssl.TLSVersion.TLSv1_3)
    assert not any(asks_full_handshake(hello[:size]) for size in range(len(hello)))


@given(st.binary(max_size=600))
def test_nonsense_is_left_to_the_handshake(data: bytes) -> None:
    """No bytes raise anything; what can't be parsed asks for nothing."""
    record = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data
    if asks_full_handshake(record):
        with ClientHello(data) as hello:
            assert not hello.has_ticket
    else:
        try:
            with ClientHello(data) as hello:
                assert hello.has_ticket
        except TLSError:
            pass


def test_nothing_is_no_client_hello() -> None:
    """An empty peek, or a record header alone."""
    assert not asks_full_handshake(b"")
    assert not asks_full_handshake(b"\x16\x03\x01\x00\x00")
