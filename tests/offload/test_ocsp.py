"""OCSP responses: whose they are, whether they are good now, and that they go when their time is over."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import ConfigurationError
from offload.ocsp import load_staple
from offload.tls import Certificate, Context
from tests.offload.identities import Identities

HOUR = dt.timedelta(hours=1)


def leaf(identities: Identities, kind: str = "p256") -> x509.Certificate:
    """The certificate of an identity."""
    return x509.load_pem_x509_certificates(identities[kind].pem)[0]


def test_response_and_its_time(identities: Identities) -> None:
    """Not before, not after, and good in between."""
    path = identities.ocsp(identities["p256"], ends_in=HOUR)
    staple = load_staple(path, leaf(identities))
    now = dt.datetime.now(dt.UTC)
    assert staple.response == path.read_bytes()
    assert staple.fault(now) == ""
    assert staple.until is not None
    assert staple.fault(staple.until).startswith("it expired on ")
    assert staple.fault(staple.until - dt.timedelta(seconds=1)) == ""
    assert staple.fault(now - 2 * HOUR).startswith("it is valid from ")


def test_revoked(identities: Identities) -> None:
    """That is told, and not stapled."""
    staple = load_staple(identities.ocsp(identities["p256"], revoked=True), leaf(identities))
    assert staple.fault(dt.datetime.now(dt.UTC)) == "it says that the certificate is revoked"


def test_response_for_another_certificate(identities: Identities, tmp_path: Path) -> None:
    """Another serial number, and the same number of another issuer."""
    path = identities.ocsp(identities["rsa2048"])
    with pytest.raises(ConfigurationError, match="is for another certificate; fetch this one's"):
        load_staple(path, leaf(identities))
    stranger = Identities(tmp_path / "stranger")
    certificate = leaf(identities)
    assert load_staple(identities.ocsp(identities["p256"]), certificate).until is not None
    with pytest.raises(ConfigurationError, match="is for another certificate"):
        load_staple(stranger.ocsp(stranger["p256"]), certificate)


def test_answer_that_is_none(identities: Identities, tmp_path: Path) -> None:
    """A responder that was busy, a file that is something else, and one that is not there."""
    busy = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    (tmp_path / "busy").write_bytes(busy.public_bytes(Encoding.DER))
    with pytest.raises(ConfigurationError, match="answered try_later; ask it again"):
        load_staple(tmp_path / "busy", leaf(identities))
    with pytest.raises(ConfigurationError, match="holds no OCSP response in DER"):
        load_staple(identities["p256"].chain_path, leaf(identities))
    with pytest.raises(ConfigurationError, match="cannot read the OCSP response: No such file"):
        load_staple(tmp_path / "nowhere", leaf(identities))
    (tmp_path / "huge").write_bytes(bytes(64 * 1024 + 1))
    with pytest.raises(ConfigurationError, match="larger than 64 KiB; that is no OCSP response"):
        load_staple(tmp_path / "huge", leaf(identities))


@pytest.fixture(scope="module")
def response(identities: Identities) -> bytes:
    """One to damage."""
    return identities.ocsp(identities["p256"]).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write it to."""
    return tmp_path_factory.mktemp("ocsp") / "damaged"


@given(st.data())
def test_damaged_response(
    identities: Identities, response: bytes, scratch: Path, data: st.DataObject
) -> None:
    """Whatever is changed or cut off: a staple or one clear error, no other exception."""
    damaged = bytearray(response[: data.draw(st.integers(0, len(response)))])
    if damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    with contextlib.suppress(ConfigurationError):
        load_staple(scratch, leaf(identities)).fault(dt.datetime.now(dt.UTC))


def test_staple_goes_when_its_time_is_over(identities: Identities) -> None:
    """A running context drops it, once, and says whose it was."""
    now = time.time()
    chains = [(identities["p256"], now + 5), (identities["rsa2048"], None)]
    context = Context(
        policy="default",
        certificates=[Certificate(each.pem, each.ski, b"response", until) for each, until in chains],
    )
    assert context.drop_expired_staples(now) == []
    assert context.drop_expired_staples(now + 5) == [identities["p256"].ski]
    assert context.drop_expired_staples(now + 1e9) == []
    context.release()
