"""What a connection tells of itself after the handshake: names, versions, schemes, as `ssl` sees them."""

from __future__ import annotations

import ssl

import pytest

from offload.tls import Context, Progress, TlsConnection
from tests.offload.handshakes import OpenSslClient, Pair, certificate_of, s2n_stepper, sign
from tests.offload.identities import Identities

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def shake_hands(pair: Pair, identities: Identities, client: OpenSslClient, kind: str = "p256") -> None:
    """A full handshake."""
    pair.server.apply_signature(sign(identities[kind], pair.until_signature(client.step)))
    pair.finish(client.step)


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["http/1.1", "h2"], "h2"),
        (["http/1.1"], "http/1.1"),
        (["spdy/3"], ""),
        ([], ""),
    ],
)
def test_alpn(identities: Identities, version: ssl.TLSVersion, offered: list[str], chosen: str) -> None:
    """The listener's order decides; without a common protocol the handshake goes on."""
    context = Context(
        policy="default", certificates=[certificate_of(identities["p256"])], protocols=["h2", "http/1.1"]
    )
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), version, protocols=offered)
        shake_hands(pair, identities, client)
        assert pair.server.application_protocol == chosen
        assert (client.tls.selected_alpn_protocol() or "") == chosen
        client.tls.close()
    context.release()


def test_no_alpn_configured(identities: Identities) -> None:
    """Then none is agreed on, whatever the client offers."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS13, protocols=["h2"])
        shake_hands(pair, identities, client)
        assert pair.server.application_protocol == ""
        client.tls.close()
    context.release()


@pytest.mark.parametrize(
    ("version", "kind", "scheme"),
    [
        (TLS12, "p256", "legacy_ecdsa_sha256"),
        (TLS13, "p256", "ecdsa_secp256r1_sha256"),
        (TLS13, "rsa2048", "rsa_pss_rsae_sha256"),
    ],
)
def test_signature_scheme_and_server_name(
    identities: Identities, version: ssl.TLSVersion, kind: str, scheme: str
) -> None:
    """They stay known after the handshake, whose memory is freed by then."""
    context = Context(policy="default", certificates=[certificate_of(identities[kind])])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), version)
        shake_hands(pair, identities, client, kind)
        server = pair.server
        assert (server.signature_scheme, server.server_name) == (scheme, "localhost")
        cipher = client.tls.cipher()
        assert cipher is not None
        assert (server.version, server.cipher) == (client.tls.version(), cipher[0])
        client.tls.close()
    context.release()


@pytest.mark.parametrize("name", ["", "Mixed.CASE.test", "a" * 255, "with space\x01", "n\xe4me"])
def test_server_name_is_whatever_the_client_sent(identities: Identities, name: str) -> None:
    """An s2n client sends anything, or nothing."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    other = Context(policy="default", client=True)
    with Pair(context) as pair:
        client = TlsConnection(other, pair.client_sock.fileno())
        if name:
            client.set_server_name(name)
        step = s2n_stepper(client)
        pair.server.apply_signature(sign(identities["p256"], pair.until_signature(step)))
        pair.finish(step)
        assert pair.server.server_name == name
        assert pair.server.negotiate() is Progress.DONE
        client.close()
    other.release()
    context.release()
