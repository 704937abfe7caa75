"""The PROXY header that a web server gets first: who the client is, and how it speaks TLS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cryptography import x509

from offload import proxy_protocol as pp
from offload.certificates import common_name
from offload.poller import RawSocket
from offload.proxy_protocol import Endpoint, Version
from offload.tls import TlsConnection

if TYPE_CHECKING:
    from offload.connection import Connection
    from offload.connection_log import Record


def introduce(connection: Connection, version: Version, upstream: RawSocket) -> bool:
    """Begin a fresh connection to a server with a client's header; False if that is broken."""
    assert connection.tls is not None
    unique_id = _unique_id(connection.record) if version == "v2" else ""
    header = introduction(version, connection.peer, connection.local_address, connection.tls, unique_id)
    try:
        # A fresh connection has room for all of it.
        return upstream.send(header) == len(header)
    except OSError:
        return False


def _unique_id(record: Record | None) -> str:
    """A connection's name, by which a server's log and ours are matched: 128 random bits.

    Only what is recorded keeps it, for its further servers and its line in the log.
    """
    if record is None:
        return os.urandom(16).hex()
    record.unique_id = record.unique_id or os.urandom(16).hex()
    return record.unique_id


def introduction(
    version: Version, source: Any, destination: Any, tls: TlsConnection, unique_id: str
) -> bytes:
    """The header for a client whose handshake is done; addresses as of sockets, or `Endpoint`s."""
    ends = Endpoint(*source[:2]), Endpoint(*destination[:2])
    if version == "v1":
        return pp.encode_v1(*ends)
    if version == "v2-addresses":
        return pp.encode_v2(*ends)
    told = (
        (pp.TLV_ALPN, tls.application_protocol),
        (pp.TLV_AUTHORITY, tls.server_name),
        (pp.TLV_UNIQUE_ID, unique_id),
    )
    tlvs = [(kind, text.encode()) for kind, text in told if text]
    return pp.encode_v2(*ends, [*tlvs, _ssl_tlv(tls)])


def _ssl_tlv(tls: TlsConnection) -> pp.Tlv:
    key, signature = tls.certificate_algorithms
    told = (
        (pp.SSL_VERSION, tls.version),
        (pp.SSL_CIPHER, tls.cipher),
        (pp.SSL_SIGNATURE, signature),
        (pp.SSL_KEY, key),
        (pp.SSL_GROUP, tls.group),
        (pp.SSL_SIGNATURE_SCHEME, tls.signature_scheme),
    )
    return pp.ssl_tlv(told, _client_name(tls))


def _client_name(tls: TlsConnection) -> str | None:
    """The CN of the client's certificate, which is verified by now; None if it showed none."""
    der = tls.client_certificate
    return None if der is None else common_name(x509.load_der_x509_certificate(der))
