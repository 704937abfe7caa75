"""TLS by s2n-tls: contexts and connections that never wait and know no event loop."""

from offload.tls.client_hello import asks_full_handshake
from offload.tls.connection import (
    WOULD_BLOCK,
    Progress,
    SignatureRequest,
    TlsConnection,
    buffer_pointer,
    memory_at,
)
from offload.tls.context import Certificate, ClientVerification, Context, Tickets
from offload.tls.policy import policy_schemes
from offload.tls.s2n import LibraryInfo, TLSError, library_info

__all__ = [
    "WOULD_BLOCK",
    "Certificate",
    "ClientVerification",
    "Context",
    "LibraryInfo",
    "Progress",
    "SignatureRequest",
    "TLSError",
    "Tickets",
    "TlsConnection",
    "asks_full_handshake",
    "buffer_pointer",
    "library_info",
    "memory_at",
    "policy_schemes",
]
