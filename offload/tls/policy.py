"""Which signature schemes a security policy has.

s2n has no function that tells. But a client with the policy offers in its ClientHello all schemes
that a server with the same policy chooses from (signature_algorithms, RFC 8446 §4.2.3): ask one.
"""

from __future__ import annotations

import socket
import struct

from offload.tls import _s2n_cdef as c
from offload.tls.client_hello import RECORD_HEADER, RECORD_MOST, ClientHello
from offload.tls.connection import TlsConnection
from offload.tls.context import Context

_NAMES = {
    0x0401: "rsa_pkcs1_sha256",
    0x0501: "rsa_pkcs1_sha384",
    0x0601: "rsa_pkcs1_sha512",
    0x0403: "ecdsa_secp256r1_sha256",
    0x0503: "ecdsa_secp384r1_sha384",
    0x0603: "ecdsa_secp521r1_sha512",
    0x0804: "rsa_pss_rsae_sha256",
    0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512",
}
"""IANA's TLS SignatureScheme registry, without SHA-1, PSS certificates and what is no RSA or ECDSA."""


def policy_schemes(policy: str) -> frozenset[str]:
    """IANA's names of the RSA and ECDSA schemes of a policy, those for certificates in TLS 1.3 included.

    Raises TLSError if there is no such policy.
    """
    with ClientHello(_first_message(policy)) as hello:
        offered = hello.extension(c.EXTENSION_SIGNATURE_ALGORITHMS)
    codes = (code for (code,) in struct.iter_unpack(">H", offered[2:]))  # the first two bytes are its length
    return frozenset(_NAMES[code] for code in codes if code in _NAMES)


def _first_message(policy: str) -> bytes:
    """The handshake message that a client with this policy begins with."""
    context = Context(policy=policy, client=True)
    client, server = socket.socketpair()
    with client, server:
        client.setblocking(False)
        server.setblocking(False)
        try:
            connection = TlsConnection(context, client.fileno())
            try:
                connection.negotiate()
            finally:
                connection.close()
        finally:
            context.release()
        return server.recv(RECORD_MOST)[RECORD_HEADER:]
