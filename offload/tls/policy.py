"""Which signature schemes a security policy has.

s2n has no function that tells. But a client with the policy offers in its ClientHello all schemes
that a server with the same policy chooses from (signature_algorithms, RFC 8446 §4.2.3): ask one.
"""

from __future__ import annotations

import socket
import struct

from offload.tls import _s2n_cdef as c
from offload.tls.connection import TlsConnection
from offload.tls.context import Context
from offload.tls.s2n import check, check_pointer, ffi, lib

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

_RECORD_HEADER = 5
_RECORD_MOST = _RECORD_HEADER + 0x4000


def policy_schemes(policy: str) -> frozenset[str]:
    """IANA's names of the RSA and ECDSA schemes of a policy, those for certificates in TLS 1.3 included.

    Raises TLSError if there is no such policy.
    """
    message = _client_hello(policy)
    hello = check_pointer(
        lib.s2n_client_hello_parse_message(message, len(message)), "s2n_client_hello_parse_message"
    )
    try:
        offered = _extension(hello, c.EXTENSION_SIGNATURE_ALGORITHMS)
    finally:
        lib.s2n_client_hello_free(ffi.new("struct s2n_client_hello **", hello))
    codes = (code for (code,) in struct.iter_unpack(">H", offered[2:]))  # the first two bytes are its length
    return frozenset(_NAMES[code] for code in codes if code in _NAMES)


def _client_hello(policy: str) -> bytes:
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
        return server.recv(_RECORD_MOST)[_RECORD_HEADER:]


def _extension(hello: object, kind: int) -> bytes:
    size = check(
        lib.s2n_client_hello_get_extension_length(hello, kind), "s2n_client_hello_get_extension_length"
    )
    data = bytearray(size)
    if size:
        check(
            lib.s2n_client_hello_get_extension_by_id(hello, kind, ffi.from_buffer(data), size),
            "s2n_client_hello_get_extension_by_id",
        )
    return bytes(data)
