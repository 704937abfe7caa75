"""The chain by which s2n has verified a client's certificate."""

from __future__ import annotations

from typing import Any

from offload.tls.s2n import check, check_pointer, ffi, lib

_certificate: Any = ffi.new("struct s2n_cert **")
_length: Any = ffi.new("uint32_t *")
_bytes: Any = ffi.new("const uint8_t **")


def verified_chain(connection: Any) -> list[bytes]:
    """DER, from the client's own certificate to the authority's. Raises TLSError if nothing was verified.

    s2n_connection_get_peer_cert_chain: into a chain of ours, which is to be freed.
    """
    chain = check_pointer(lib.s2n_cert_chain_and_key_new(), "s2n_cert_chain_and_key_new")
    try:
        check(lib.s2n_connection_get_peer_cert_chain(connection, chain), "s2n_connection_get_peer_cert_chain")
        check(lib.s2n_cert_chain_get_length(chain, _length), "s2n_cert_chain_get_length")
        return [_der(chain, index) for index in range(_length[0])]
    finally:
        lib.s2n_cert_chain_and_key_free(chain)


def _der(chain: Any, index: int) -> bytes:
    check(lib.s2n_cert_chain_get_cert(chain, _certificate, index), "s2n_cert_chain_get_cert")
    check(lib.s2n_cert_get_der(_certificate[0], _bytes, _length), "s2n_cert_get_der")
    return bytes(ffi.buffer(_bytes[0], _length[0]))
