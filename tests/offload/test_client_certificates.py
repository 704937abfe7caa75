"""The allow list, and the judgement of clients in handshakes with CPython's `ssl`."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hsm.errors import ConfigurationError
from offload.client_certificates import is_allowed, judge_of, load_authorities
from offload.config_tls import AllowedClients, ClientCertificateSettings
from offload.failures import failure_word
from offload.tls import ClientVerification, Context, TlsConnection, TLSError
from offload.tls.callbacks import Judge
from tests.offload.handshakes import OpenSslClient, Pair, certificate_of, sign
from tests.offload.identities import Identities, LinkCredentials

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def allowed(**names: Any) -> AllowedClients:
    """An allow list."""
    return AllowedClients.model_validate({key: list(value) for key, value in names.items()})


def der(credentials: LinkCredentials) -> bytes:
    """A client's certificate as s2n has it."""
    return x509.load_pem_x509_certificate(credentials.certificate.read_bytes()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a.example.org", "a.example.org", True),
        ("A.example.ORG", "a.Example.org", True),
        ("a.example.org", "b.example.org", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "*.example.org", False),
        ("a.example.org", "*.example.org", False),
        ("localhost", "localhost", True),
    ],
)
def test_dns_names(identities: Identities, pattern: str, name: str, matches: bool) -> None:
    """`*` stands for one label of the client's name; a wildcard that a client brings is nobody's name."""
    client = der(identities.client("common name", dns=[name]))
    assert is_allowed(client, allowed(dns=[pattern])) is matches


def test_uris_and_subjects(identities: Identities) -> None:
    """Both exact; the common name is no DNS name; any name on the list is enough."""
    client = der(identities.client("client.test", ["other.test"], ["spiffe://prod/web"]))
    assert is_allowed(client, allowed(uri=["spiffe://prod/web"]))
    assert not is_allowed(client, allowed(uri=["spiffe://prod/we", "spiffe://prod/web2"]))
    assert is_allowed(client, allowed(subject=["CN=client.test"]))
    assert not is_allowed(client, allowed(subject=["CN=client.tes"]))
    assert not is_allowed(client, allowed(dns=["client.test"]))
    assert is_allowed(client, allowed(dns=["nobody.test"], uri=["urn:nobody"], subject=["CN=client.test"]))


def test_certificate_without_names(identities: Identities) -> None:
    """One that has but a subject is judged by that."""
    client = der(identities.client("client.test"))
    assert is_allowed(client, allowed(subject=["CN=client.test"]))
    assert not is_allowed(client, allowed(dns=["client.test"]))


@given(st.binary(max_size=300))
def test_rubbish_is_not_allowed(data: bytes) -> None:
    """What is no certificate raises nothing and lets nobody in."""
    assert not is_allowed(data, allowed(dns=["a"], uri=["urn:a"], subject=["CN=a"]))


@given(st.data())
def test_damaged_certificates_never_gain_a_name(certificate: bytes, data: st.DataObject) -> None:
    """Whatever byte is changed: no exception, and no name that the certificate did not have."""
    position = data.draw(st.integers(0, len(certificate) - 1))
    damaged = bytearray(certificate)
    damaged[position] ^= data.draw(st.integers(1, 255))
    assert not is_allowed(bytes(damaged), allowed(dns=["admin.example.org"], subject=["CN=admin"]))


@pytest.fixture(scope="module")
def certificate(identities: Identities) -> bytes:
    """One to damage."""
    return der(identities.client("client.test", ["a.test", "b.test"], ["spiffe://prod/web"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "required"}, "mode required needs ca"),
        ({"mode": "optional", "ca": "/ca", "allow": {}}, "nobody would be allowed"),
        ({"mode": "optional", "ca": "/ca", "allow": {"dns": ["a b"]}}, "is no DNS name"),
        ({"mode": "optional", "ca": "/ca", "allow": {"dns": ["*"]}}, "is no DNS name"),
        ({"mode": "optional", "ca": "/ca", "allow": {"dns": ["a.*.b"]}}, "is no DNS name"),
        ({"mode": "optional", "ca": "/ca", "allow": {"subject": ["client"]}}, "is no subject"),
        ({"mode": "optional", "ca": "/ca", "allow": {"uri": ["no uri"]}}, "pattern"),
        ({"mode": "sometimes", "ca": "/ca"}, "'off', 'optional' or 'required'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    """Each mistake says what would be right."""
    with pytest.raises(ValidationError, match=said):
        ClientCertificateSettings.model_validate(settings)


def test_yaml_off_is_off() -> None:
    """YAML reads `off` as a boolean."""
    assert ClientCertificateSettings.model_validate({"mode": False}).mode == "off"


def test_bundle_of_authorities(identities: Identities, tmp_path: Path) -> None:
    """A CA certificate is needed: one of a client itself is a mistake."""
    assert load_authorities(identities.ca) == identities.ca.read_bytes()
    leaf = identities.client("client.test").certificate
    with pytest.raises(ConfigurationError, match=r"certificate 1 \(CN=client.test\) is no CA certificate"):
        load_authorities(leaf)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match="holds no valid PEM certificates"):
        load_authorities(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="cannot read the CA certificates: No such file"):
        load_authorities(tmp_path / "nowhere")


def shake_hands(
    identities: Identities,
    judge: Judge,
    credentials: LinkCredentials | None,
    version: ssl.TLSVersion,
    *,
    required: bool = True,
    look: Callable[[TlsConnection], Any] = lambda server: server.client_certificate,
) -> Any:
    """A handshake in which the client shows this: the certificate that the server knows, or how it failed.

    s2n has no alerts that say why; but the client sees at once that the connection is over.
    """
    context = Context(
        policy="default",
        certificates=[certificate_of(identities["p256"])],
        clients=ClientVerification(required, identities.ca.read_bytes(), judge),
    )
    try:
        with Pair(context) as pair:
            client = OpenSslClient(pair.client_sock, str(identities.ca), version, credentials=credentials)
            try:
                pair.server.apply_signature(sign(identities["p256"], pair.until_signature(client.step)))
                pair.finish(client.step)
                return look(pair.server)
            except TLSError as error:
                assert pair.server.blinding_delay == 0
                assert pair.server.shutdown_send()
                assert is_over(client)
                return failure_word(error)
            finally:
                client.tls.close()
    finally:
        context.release()
        assert context.references == 0


def is_over(client: OpenSslClient) -> bool:
    """Whether the client sees an end: in TLS 1.3 of the connection, in TLS 1.2 of the handshake."""
    try:
        return client.step() and client.tls.recv(1) == b""
    except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
        return True


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("required", [True, False])
def test_good_certificate(identities: Identities, version: ssl.TLSVersion, required: bool) -> None:
    """The judge sees the very certificate, and the connection knows it."""
    seen: list[bytes] = []
    client = identities.client("client.test", ["client.test"])
    judge: Judge = lambda leaf: not seen.append(leaf)  # type: ignore[func-returns-value]  # noqa: E731
    assert shake_hands(identities, judge, client, version, required=required) == der(client)
    assert seen == [der(client)]


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_only_what_was_verified_is_in_the_chain(identities: Identities, version: ssl.TLSVersion) -> None:
    """Not a certificate that the client shows besides; nor the authority, which everybody has."""
    stranger = Identities(identities.directory / f"besides-{version}")
    client = identities.client("client.test", shown=[stranger.ca.read_bytes()])
    leaf, middle, _ = x509.load_pem_x509_certificates(client.certificate.read_bytes())
    chain = shake_hands(identities, lambda _: True, client, version, look=lambda server: server.client_chain)
    assert chain == [leaf.public_bytes(Encoding.DER), middle.public_bytes(Encoding.DER)]
    assert shake_hands(
        identities, lambda _: True, None, version, required=False, look=lambda server: server.client_chain
    ) == []  # fmt: skip


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_no_certificate_where_it_is_optional(identities: Identities, version: ssl.TLSVersion) -> None:
    """Nobody is judged."""
    assert shake_hands(identities, lambda _: False, None, version, required=False) is None


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("required", [True, False])
def test_refused_certificates(identities: Identities, version: ssl.TLSVersion, required: bool) -> None:
    """Each fault has its word in the metric."""
    judge = judge_of(allowed(dns=["good.test"]))
    good, stranger = ["good.test"], Identities(identities.directory / f"stranger-{version}-{required}")
    cases = {
        "not_allowed": identities.client("good.test", ["other.test"]),
        "expired": identities.client("c", good, expired=True),
        "untrusted": stranger.client("c", good),
        "purpose": identities.client("c", good, purpose=ExtendedKeyUsageOID.SERVER_AUTH),
    }
    for fault, client in cases.items():
        said = shake_hands(identities, judge, client, version, required=required)
        assert said == f"client_certificate_{fault}"


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_missing_certificate(identities: Identities, version: ssl.TLSVersion) -> None:
    """A client without one is refused where it is required."""
    assert shake_hands(identities, lambda _: True, None, version) == "client_certificate_missing"


def test_judge_that_fails_lets_nobody_in(identities: Identities) -> None:
    """A bug in the judge comes out where s2n was called; to the client it is a refusal."""

    def judge(_leaf: bytes) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shake_hands(identities, judge, identities.client("client.test"), TLS13)
