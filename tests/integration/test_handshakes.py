"""Handshakes with real clients: OpenSSL's s_client and `ssl`, curl, and s2n itself."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess

import pytest

from offload.tls import Context, TlsConnection
from tests.integration.clients import TIMEOUT, Load, TlsClient, connect_tcp, many_clients, request_bytes
from tests.integration.conftest import Shared, has_ipv6
from tests.offload.handshakes import receive, s2n_stepper
from tests.support import eventually
from tests.support.hsm_support import require

VERSIONS = ("tls1_2", "tls1_3")


def s_client(shared: Shared, name: str, *options: str) -> str:
    """What `openssl s_client` tells of one request; the chain and the name are verified."""
    command = [
        require("openssl"), "s_client", "-connect", f"127.0.0.1:{shared.proxy.ports[name]}",
        "-CAfile", str(shared.identities.ca), "-servername", "localhost", "-verify_hostname", "localhost",
        "-verify_return_error", "-ign_eof", *options,
    ]  # fmt: skip
    ended = subprocess.run(
        command, input=request_bytes("GET", "/closes"), capture_output=True, timeout=TIMEOUT, check=False
    )
    output = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, output + ended.stderr.decode(errors="replace")
    assert "Verify return code: 0 (ok)" in output or "Verification: OK" in output
    assert "all of it" in output
    return output


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["p256", "p384", "p521", "rsa2048"])
def test_openssl_s_client(world: Shared, name: str, version: str) -> None:
    """s_client verifies the chain and each kind of signature, in TLS 1.2 and 1.3, and gets the page."""
    output = s_client(world, name, f"-{version}")
    assert f"TLSv1.{version[-1]}" in output
    assert ("RSA" if name == "rsa2048" else "ECDSA") in output.upper()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("digest", ["256", "384", "512"])
def test_pss_signatures(world: Shared, version: str, digest: str) -> None:
    """An RSA certificate signs by PSS with whichever hash the client takes."""
    output = s_client(world, "rsa2048", f"-{version}", "-sigalgs", f"rsa_pss_rsae_sha{digest}")
    assert re.search(r"Peer signature type: RSA-PSS", output)
    assert f"Peer signing digest: SHA{digest}" in output


@pytest.mark.parametrize("digest", ["256", "384", "512"])
def test_pkcs1_signatures(world: Shared, digest: str) -> None:
    """A TLS 1.2 client without PSS gets PKCS#1 v1.5."""
    output = s_client(world, "rsa2048", "-tls1_2", "-sigalgs", f"RSA+SHA{digest}")
    assert re.search(r"Peer signature type: RSA\b(?!-PSS)", output)
    assert f"Peer signing digest: SHA{digest}" in output


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "rsaEncryption"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "id-ecPublicKey"),
        (["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "rsaEncryption"),
        (["-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"], "id-ecPublicKey"),
    ],
)
def test_certificate_by_what_the_client_can_verify(world: Shared, options: list[str], kind: str) -> None:
    """A listener with an RSA and an ECDSA certificate serves clients that know only one of them."""
    output = s_client(world, "both", *options)
    leaf = re.search(r"\n 0 s:.*\n.*\n   a:PKEY: (\w|-)+", output)
    assert leaf is not None
    assert leaf[0].endswith(kind)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("name", ["p256", "rsa2048"])
def test_curl(world: Shared, name: str, version: str) -> None:
    """curl verifies the certificate and gets the page."""
    ended = subprocess.run(
        [
            require("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*",
            "--cacert", str(world.identities.ca), f"--tlsv{version}", "--tls-max", version,
            "--resolve", f"localhost:{world.proxy.ports[name]}:127.0.0.1",
            "--write-out", "\n%{http_code} %{ssl_verify_result}",
            f"https://localhost:{world.proxy.ports[name]}/",
        ],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "hello from upstream\n200 0"


@pytest.mark.parametrize("policy", ["default_pq", "default"])
def test_post_quantum_key_exchange(world: Shared, policy: str) -> None:
    """A client that has X25519MLKEM768 agrees on it with a listener of the default policy."""
    context = Context(policy=policy, client=True)
    with contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock:
        sock.setblocking(False)
        client = TlsConnection(context, sock.fileno())
        eventually(s2n_stepper(client), "the handshake", TIMEOUT)
        assert client.group == "X25519MLKEM768"
        assert client.version == "TLSv1.3"
        request = request_bytes("GET", "/closes")
        assert client.send(request, len(request)) == len(request)
        answer = b"".join(iter(lambda: eventually(lambda: _received(client), "the answer", TIMEOUT)[0], b""))
        assert answer.endswith(b"all of it")
        client.close()
    context.release()


def _received(client: TlsConnection) -> list[bytes]:
    data = receive(client)
    return [] if data is None else [data]


def test_every_node_signs_whatever_its_link(world: Shared, any_version: ssl.SSLContext) -> None:
    """A node run by the proxy, one on a unix socket and one behind mutual TLS share the signatures."""
    before = world.proxy.metrics()
    names = ("local", "unix", "tls")
    signed = "offload_signature_seconds_count"

    def all_signed() -> bool:
        for _ in range(6):
            with world.connect("p256", any_version) as client:
                assert client.get("/").status == 200
        now = world.proxy.metrics()
        return all(now.value(signed, node=n) > before.value(signed, node=n) for n in names)

    eventually(all_signed, "each node signed", TIMEOUT)
    assert {node["name"]: node["ready"] for node in world.proxy.status()["nodes"]} == dict.fromkeys(
        names, True
    )


def test_rsa_key_exchange_is_refused_and_counted(world: Shared, tls12: ssl.SSLContext) -> None:
    """Where an old policy allows it, a client that insists on RSA key exchange gets nothing."""
    before = world.proxy.metrics().value("offload_handshake_failures_total", reason="rsa_key_exchange")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(world.identities.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256")
    with pytest.raises((ssl.SSLError, OSError)):
        world.connect("rsa-old", context)
    world.proxy.wait_metric("offload_handshake_failures_total", before + 1, reason="rsa_key_exchange")
    with world.connect("rsa-old", tls12) as client:
        assert client.get("/").status == 200


def test_hundreds_of_connections_at_a_time(world: Shared, any_version: ssl.SSLContext) -> None:
    """All of 200 clients that are connected at once are served, whichever worker has them."""
    with many_clients(world.proxy.ports["p256"], any_version, 200) as clients:
        assert world.proxy.metrics().value("offload_connections_active") == 200
        for client in clients:
            client.send(request_bytes("GET", "/"))
        assert {client.response().body for client in clients} == {b"hello from upstream"}


def test_concurrent_handshakes(world: Shared, any_version: ssl.SSLContext) -> None:
    """Clients that come at the same time fail neither in the handshake nor after it."""
    with Load(world.proxy.ports["rsa2048"], any_version) as load:
        load.wait_done(100)
    assert load.failed == []


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback on this machine")
def test_ipv6_listener(world: Shared, any_version: ssl.SSLContext) -> None:
    """A listener on [v6]:port serves like any other."""
    with socket.create_connection(("::1", world.proxy.ports["v6"]), TIMEOUT) as sock:
        client = TlsClient(sock, any_version)
        client.handshake()
        assert client.get("/").status == 200


def test_unknown_server_name_gets_a_certificate_all_the_same(world: Shared) -> None:
    """A client that asks for another name, or for none, is left to judge what it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(world.identities.ca)
    context.check_hostname = False
    for name in ("other.test", None):
        with contextlib.closing(connect_tcp(world.proxy.ports["both"])) as sock:
            client = TlsClient(sock, context, name)
            client.handshake()
            assert client.get("/").status == 200


def test_small_reads_of_a_handshake(world: Shared, tls13: ssl.SSLContext) -> None:
    """A ClientHello that comes byte by byte is as good as one in a piece."""
    with contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock:
        sock.setsockopt(6, 1, 1)  # TCP_NODELAY
        client = TlsClient(sock, tls13)
        for byte in client.client_hello():
            sock.sendall(bytes([byte]))
        client.handshake()
        assert client.get("/").status == 200
