"""Handshakes over a socket pair, step by step; the signature is made by the test, as a node would."""

from __future__ import annotations

import hashlib
import os
import ssl
from itertools import product

import pytest

from offload.tls import WOULD_BLOCK, Context, Progress, TlsConnection, TLSError
from tests.offload.handshakes import OpenSslClient, Pair, certificate_of, receive, s2n_stepper, sign
from tests.offload.identities import KINDS, Identities

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SCHEMES_EXPECTED = {
    ("p256", TLS12): "legacy_ecdsa_sha256",
    ("p384", TLS12): "legacy_ecdsa_sha",
    ("p521", TLS12): "legacy_ecdsa_sha",
    ("rsa2048", TLS12): "rsa_",
    ("p256", TLS13): "ecdsa_secp256r1_sha256",
    ("p384", TLS13): "ecdsa_secp384r1_sha384",
    ("p521", TLS13): "ecdsa_secp521r1_sha512",
    ("rsa2048", TLS13): "rsa_pss_rsae_sha256",
}
"""What the scheme begins with: TLS 1.3 ties it to the key, TLS 1.2 leaves the hash open."""


def connected(pair: Pair, identities: Identities, kind: str, version: ssl.TLSVersion) -> OpenSslClient:
    """A client whose handshake with the pair's server is done."""
    client = OpenSslClient(pair.client_sock, str(identities.ca), version)
    pair.server.apply_signature(sign(identities[kind], pair.until_signature(client.step)))
    pair.finish(client.step)
    return client


@pytest.mark.parametrize(("kind", "version"), list(product(KINDS, (TLS12, TLS13))))
def test_handshake_with_a_verifying_client(
    identities: Identities, kind: str, version: ssl.TLSVersion
) -> None:
    """OpenSSL accepts chain, name and signature for each kind of key, and data flows both ways."""
    identity = identities[kind]
    context = Context(policy="default", certificates=[certificate_of(identity)])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), version)
        request = pair.until_signature(client.step)
        assert request.ski == identity.ski
        assert request.scheme.startswith(SCHEMES_EXPECTED[kind, version])
        assert len(request.digest) in (32, 48, 64)
        assert pair.server.signature_request() == request, "asking again changes nothing"
        pair.server.apply_signature(sign(identity, request))
        pair.finish(client.step)

        assert pair.server.version == client.tls.version() == version.name.replace("_", ".")
        assert pair.server.cipher
        assert not pair.server.resumed
        assert pair.server.half_close == (version is TLS13)
        assert receive(pair.server) is None
        client.tls.send(b"to the server")
        assert receive(pair.server) == b"to the server"
        assert pair.server.send(b"to the client", 13) == 13
        assert client.tls.recv(100) == b"to the client"
        client.tls.close()
    context.release()


def test_pkcs1_signature_where_the_policy_has_no_pss(identities: Identities) -> None:
    """An old policy asks an RSA key for PKCS#1 v1.5, and OpenSSL takes it in TLS 1.2."""
    identity = identities["rsa2048"]
    context = Context(policy="20170210", certificates=[certificate_of(identity)])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS12, "ECDHE-RSA-AES128-GCM-SHA256")
        request = pair.until_signature(client.step)
        assert request.scheme.startswith("rsa_pkcs1_sha")
        pair.server.apply_signature(sign(identity, request))
        pair.finish(client.step)
        client.tls.close()
    context.release()


@pytest.mark.parametrize("policy", ["default", "default_pq"])
def test_post_quantum_key_exchange(identities: Identities, policy: str) -> None:
    """A client that has X25519MLKEM768 gets it, from the default policy too."""
    identity = identities["p256"]
    server = Context(policy=policy, certificates=[certificate_of(identity)])
    client = Context(policy="default_pq", client=True)
    with Pair(server) as pair:
        peer = TlsConnection(client, pair.client_sock.fileno())
        pair.server.apply_signature(sign(identity, pair.until_signature(s2n_stepper(peer))))
        pair.finish(s2n_stepper(peer))
        assert pair.server.group == peer.group == "X25519MLKEM768"
        peer.close()
    server.release()
    client.release()


@pytest.mark.parametrize("name", ["one.test", "two.test"])
def test_certificate_is_chosen_by_server_name(identities: Identities, name: str) -> None:
    """The SKI of the request belongs to the certificate for the name that the client asked for."""
    chosen = {dns: identities.issue("p256", dns) for dns in ("one.test", "two.test")}
    server = Context(policy="default", certificates=[certificate_of(i) for i in chosen.values()])
    client = Context(policy="default", client=True)
    with Pair(server) as pair:
        peer = TlsConnection(client, pair.client_sock.fileno())
        peer.set_server_name(name)
        assert pair.until_signature(s2n_stepper(peer)).ski == chosen[name].ski
        peer.close()
    server.release()
    client.release()


def test_certificate_is_chosen_by_what_the_client_can_verify(identities: Identities) -> None:
    """With an RSA and an ECDSA certificate, a client that takes RSA only gets the RSA one."""
    both = [certificate_of(identities["p256"]), certificate_of(identities["rsa2048"])]
    context = Context(policy="default", certificates=both)
    ciphers = {"p256": "ECDHE-ECDSA-AES128-GCM-SHA256", "rsa2048": "ECDHE-RSA-AES128-GCM-SHA256"}
    for kind, cipher in ciphers.items():
        with Pair(context) as pair:
            client = OpenSslClient(pair.client_sock, str(identities.ca), TLS12, cipher)
            assert pair.until_signature(client.step).ski == identities[kind].ski
            client.tls.close()
    context.release()


def test_wrong_signature_is_for_the_caller_to_catch(identities: Identities) -> None:
    """s2n sends what it is given (FAST mode): the client refuses, so signatures must be verified before."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS13)
        request = pair.until_signature(client.step)
        wrong = sign(identities["p256"], request._replace(digest=os.urandom(len(request.digest))))
        pair.server.apply_signature(wrong)
        pair.server.negotiate()
        with pytest.raises(ssl.SSLError, match=r"(?i)signature"):
            client.step()
        with pytest.raises(TLSError) as caught:
            pair.server.negotiate()
        assert not caught.value.caused_by_peer, "an alert needs no blinding"
        client.tls.close()
    context.release()


def test_rsa_key_exchange_is_refused(identities: Identities) -> None:
    """A decrypt operation is never passed on: no forward secrecy, and a padding oracle."""
    context = Context(policy="20170210", certificates=[certificate_of(identities["rsa2048"])])
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS12, "AES128-GCM-SHA256")
        with pytest.raises(TLSError, match="RSA key exchange") as caught:
            pair.until_signature(client.step)
        assert caught.value.name == "RSA_KEY_EXCHANGE"
        client.tls.close()
    context.release()


def test_bad_client_hello_is_blamed_on_the_peer_with_a_bounded_delay(identities: Identities) -> None:
    """After garbage s2n wants the close delayed; here that is at most three seconds, and never slept."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        pair.client_sock.send(b"\x16\x03\x01\x00\x05" + b"\x01\x00\x00\x01\xff")
        with pytest.raises(TLSError) as caught:
            pair.server.negotiate()
        assert caught.value.caused_by_peer
        assert 0 < pair.server.blinding_delay <= 3
    context.release()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_goodbye_and_truncation_are_told_apart(identities: Identities, version: ssl.TLSVersion) -> None:
    """close_notify reads as an end, a bare FIN as a truncated stream."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        client = connected(pair, identities, "p256", version)
        with pytest.raises(ssl.SSLWantReadError):  # says goodbye, and would wait for ours
            client.tls.unwrap()
        assert receive(pair.server) == b""
        client.tls.close()
    with Pair(context) as pair:
        client = connected(pair, identities, "p256", version)
        client.tls.close()
        with pytest.raises(TLSError) as caught:
            receive(pair.server)
        assert caught.value.truncated
    context.release()


def test_half_close_in_tls_1_3(identities: Identities) -> None:
    """Each side can end its direction first and still read the other's."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        client = connected(pair, identities, "p256", TLS13)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        assert receive(pair.server) == b""
        assert pair.server.send(b"the rest", 8) == 8
        assert client.tls.recv(100) == b"the rest"
        client.tls.close()
    with Pair(context) as pair:
        client = connected(pair, identities, "p256", TLS13)
        assert pair.server.shutdown_send()
        client.tls.send(b"more")
        assert receive(pair.server) == b"more"
        assert client.tls.recv(100) == b""
        client.tls.close()
    context.release()


def test_interrupted_sends_lose_and_repeat_nothing(identities: Identities) -> None:
    """What `send` did not take is offered again from where it stopped, until all has arrived."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    data = os.urandom(3_000_000)
    received = hashlib.sha256()
    blocked = arrived = 0
    with Pair(context) as pair:
        client = connected(pair, identities, "p256", TLS13)
        rest = memoryview(data)
        while arrived < len(data):
            if rest:
                sent = pair.server.send(bytes(rest[:65536]), min(65536, len(rest)))
                if sent != WOULD_BLOCK:
                    rest = rest[sent:]
                    continue
                blocked += 1
            part = client.tls.recv(200_000)
            received.update(part)
            arrived += len(part)
        client.tls.close()
    context.release()
    assert blocked > 1
    assert received.digest() == hashlib.sha256(data).digest()


def test_silence_wants_read_and_half_a_hello_too(identities: Identities) -> None:
    """A handshake that lacks bytes asks for more of them and is content to wait."""
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])])
    with Pair(context) as pair:
        assert pair.server.negotiate() is Progress.WANT_READ
        pair.client_sock.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert pair.server.negotiate() is Progress.WANT_READ
    context.release()
