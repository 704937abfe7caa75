"""Changes under load: what is judged, and the certificate that a reload takes over."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from loadtest.changes import judge
from loadtest.generate.records import COMPLETED, Record
from loadtest.targets.certificates import make_credentials, renew


def test_failures_and_latency_of_the_time_after() -> None:
    """What failed in the warm-up does not count; the p99 before gives the goal for the one after."""
    records = [Record(1.0, 0.0, -1.0, 0.1, "refused", False)]
    records += [Record(3.0 + n / 100, 0.0, 0.002, 0.003, COMPLETED, False) for n in range(100)]
    records += [Record(7.0 + n / 100, 0.0, 0.005, 0.006, COMPLETED, False) for n in range(100)]
    failed, latency = judge(records, 7.0, 12.0)
    assert (failed.value, failed.verdict) == (0, "met")
    assert (round(latency.value, 3), latency.verdict) == (5.0, "missed")
    records.append(Record(8.0, 0.0, -1.0, 0.1, "reset", False))
    assert judge(records, 7.0, 12.0)[0].verdict == "missed"


def test_renewed_certificate_has_the_same_key(tmp_path: Path) -> None:
    """Another serial number, the same public key."""
    credentials = make_credentials(tmp_path, "p256")
    old = x509.load_pem_x509_certificate(credentials.chain.read_bytes())
    renew(credentials)
    new = x509.load_pem_x509_certificate(credentials.chain.read_bytes())
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
