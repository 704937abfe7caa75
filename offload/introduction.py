"""The PROXY header that a web server gets first: who the client is, and how it speaks TLS."""

from __future__ import annotations

from typing import Any, Literal

from cryptography import x509

from offload.certificates import common_name
from offload.poller import RawSocket
from offload.proxy_protocol import TLV_ALPN, TLV_AUTHORITY, Endpoint, encode_v1, encode_v2, ssl_tlv
from offload.tls import TlsConnection

Version = Literal["v1", "v2"]


def introduction(version: Version, source: Any, destination: Any, tls: TlsConnection) -> bytes:
    """The header for a client whose handshake is done; addresses as of sockets, or `Endpoint`s."""
    ends = Endpoint(*source[:2]), Endpoint(*destination[:2])
    if version == "v1":
        return encode_v1(*ends)
    told = ((TLV_ALPN, tls.application_protocol), (TLV_AUTHORITY, tls.server_name))
    tlvs = [(kind, text.encode()) for kind, text in told if text]
    return encode_v2(*ends, [*tlvs, ssl_tlv(tls.version, tls.cipher, tls.group, _client_name(tls))])


def _client_name(tls: TlsConnection) -> str | None:
    """The CN of the client's certificate, which is verified by now; None if it showed none."""
    der = tls.client_certificate
    return None if der is None else common_name(x509.load_der_x509_certificate(der))


def send_introduction(upstream: RawSocket, header: bytes) -> bool:
    """Whether a fresh connection took all of the header: otherwise it is broken."""
    try:
        return upstream.send(header) == len(header)
    except OSError:
        return False
