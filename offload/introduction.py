"""The PROXY header that a web server gets first: who the client is, and how it speaks TLS."""

from __future__ import annotations

from typing import Any, Literal

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
    return encode_v2(*ends, [*tlvs, ssl_tlv(tls.version, tls.cipher, tls.group)])
