"""OCSP responses to staple (RFC 6960, RFC 6066 §8): read from a file, and checked to be of use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import Hash
from cryptography.x509 import ocsp

from hsm.bounded_file import read_bounded
from hsm.errors import ConfigurationError

_SIZE_MOST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Staple:
    """A response for a certificate: DER, what it says, and for how long (None: no end is given)."""

    path: Path
    response: bytes
    status: ocsp.OCSPCertStatus
    since: datetime
    until: datetime | None

    def fault(self, now: datetime) -> str:
        """Why it must not be stapled now; empty if it may."""
        if self.status is not ocsp.OCSPCertStatus.GOOD:
            return f"it says that the certificate is {self.status.name.lower()}"
        if now < self.since:
            return f"it is valid from {self.since:%Y-%m-%d %H:%M} UTC on"
        if self.until is not None and now >= self.until:
            return f"it expired on {self.until:%Y-%m-%d %H:%M} UTC"
        return ""


def load_staple(path: Path, certificate: x509.Certificate) -> Staple:
    """Read the response (DER) for a certificate. Raises ConfigurationError.

    Its signature is left to the clients, who have to check it anyway.
    """
    data = read_bounded(path, _SIZE_MOST, "the OCSP response", "larger than 64 KiB; that is no OCSP response")
    try:
        response = ocsp.load_der_ocsp_response(data)
        successful = response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
        answers = list(response.responses) if successful else []
        found = next((answer for answer in answers if _is_for(answer, certificate)), None)
    except Exception as error:  # ValueError, and others without a base of their own
        raise ConfigurationError(
            f"{path}: holds no OCSP response in DER; openssl ocsp writes one with -respout"
        ) from error
    if not successful:
        raise ConfigurationError(
            f"{path}: the OCSP responder answered {response.response_status.name.lower()}; ask it again"
        )
    if found is None:
        raise ConfigurationError(f"{path}: the OCSP response is for another certificate; fetch this one's")
    return Staple(path, data, found.certificate_status, found.this_update_utc, found.next_update_utc)


def _is_for(answer: ocsp.OCSPSingleResponse, certificate: x509.Certificate) -> bool:
    """Same serial number, of the same issuer (CertID, RFC 6960 §4.1.1)."""
    issuer = Hash(answer.hash_algorithm)
    issuer.update(certificate.issuer.public_bytes())
    return answer.serial_number == certificate.serial_number and issuer.finalize() == answer.issuer_name_hash
