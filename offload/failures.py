"""Why handshakes fail, as labels of a metric: a fixed, small set of words."""

from __future__ import annotations

from offload.tls import TLSError
from offload.tls import _s2n_cdef as c

_BY_KIND = {
    c.ERR_T_IO: "io",
    c.ERR_T_CLOSED: "peer_left",
    c.ERR_T_ALERT: "peer_alert",
    c.ERR_T_PROTO: "protocol",
}
UNKNOWN_NAME = "unknown_name"
_BY_NAME = {
    "RSA_KEY_EXCHANGE": "rsa_key_exchange",
    "S2N_ERR_CANCELLED": UNKNOWN_NAME,  # by the ClientHello callback; nothing else cancels
    "S2N_ERR_MISSING_CLIENT_CERT": "client_certificate_missing",
    "S2N_ERR_CERT_UNTRUSTED": "client_certificate_untrusted",
    "S2N_ERR_CERT_EXPIRED": "client_certificate_expired",
    "S2N_ERR_CERT_NOT_YET_VALID": "client_certificate_not_yet_valid",
    "S2N_ERR_CERT_INTENT_INVALID": "client_certificate_purpose",
    "S2N_ERR_CERT_REJECTED": "client_certificate_not_allowed",
    "S2N_ERR_CERT_INVALID": "client_certificate_invalid",
    "S2N_ERR_CERT_MAX_CHAIN_DEPTH_EXCEEDED": "client_certificate_invalid",
    "S2N_ERR_CERT_TYPE_UNSUPPORTED": "client_certificate_invalid",
    "S2N_ERR_CERT_UNHANDLED_CRITICAL_EXTENSION": "client_certificate_invalid",
    "S2N_ERR_DECODE_CERTIFICATE": "client_certificate_invalid",
    "S2N_ERR_SECURITY_POLICY_INCOMPATIBLE_CERT": "client_certificate_invalid",
}
"""Of s2n's errors those that tell an operator what to do."""

UNRECOGNIZED_NAME_ALERT = bytes((21, 3, 3, 0, 2, 2, 112))
"""A fatal alert as a record of its own (RFC 8446 §5.1, RFC 6066 §3): before a ServerHello all are in the clear.
s2n would say handshake_failure."""


def failure_word(error: TLSError) -> str:
    """A TLS failure as a metric label."""
    if word := _BY_NAME.get(error.name):
        return word
    return "protocol" if error.caused_by_peer else _BY_KIND.get(error.kind, "internal")
