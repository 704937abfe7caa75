"""What listeners can be told about TLS, each with `openssl s_client`: names, client certificates, OCSP, ALPN."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import TIMEOUT, TlsClient, Truncated, connect_tcp, request_bytes
from tests.integration.upstreams import Upstream, unique
from tests.offload.identities import Identities, LinkCredentials
from tests.support.hsm_support import require
from tests.support.proxy import Proxy, listener, running_proxy

VERSIONS = ("tls1_2", "tls1_3")
FAILURES = "offload_handshake_failures_total"


@dataclass
class Site:
    """A proxy with a listener for each option, in one worker."""

    proxy: Proxy
    identities: Identities
    upstream: Upstream

    def s_client(self, name: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """One request by s_client; whether it failed is the test's to say."""
        command = [
            require("openssl"), "s_client", "-connect", f"127.0.0.1:{self.proxy.ports[name]}",
            "-CAfile", str(self.identities.ca), "-verify_return_error", "-ign_eof", *options,
        ]  # fmt: skip
        request = request_bytes("GET", "/closes")
        return subprocess.run(command, input=request, capture_output=True, timeout=TIMEOUT, check=False)

    def page(self, name: str, *options: str) -> str:
        """What s_client tells when it gets the page."""
        ended = self.s_client(name, *options)
        output = ended.stdout.decode(errors="replace")
        assert ended.returncode == 0, output + ended.stderr.decode(errors="replace")
        assert "all of it" in output
        return output

    def refused(self, reason: str, name: str, *options: str) -> None:
        """s_client gets no page, and the reason is counted."""
        before = self.proxy.metrics().value(FAILURES, reason=reason)
        assert b"all of it" not in self.s_client(name, *options).stdout
        self.proxy.wait_metric(FAILURES, before + 1, reason=reason)


@pytest.fixture(scope="module")
def site(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Shared by the whole file: it serves on, whatever clients show."""

    p256, rsa = identities["p256"], identities["rsa2048"]
    names = {
        name: [identities.issue(kind, name).chain_path for kind in ("p256", "rsa2048")]
        for name in ("exact.names.test", "*.names.test")
    }
    certificates = [p256.chain_path, rsa.chain_path, *(path for paths in names.values() for path in paths)]
    directory = tmp_path_factory.mktemp("certificates")
    for number, path in enumerate(certificates):
        (directory / f"{number}.{'crt' if number % 2 else 'pem'}").symlink_to(path)
    (directory / "README").write_text("no certificate")
    chain, later = str(p256.chain_path), dt.timedelta(hours=1)

    def stapled(**about: Any) -> dict[str, object]:
        return {"certificates": [{"chain": chain, "ocsp": str(identities.ocsp(p256, **about))}]}

    def option(name: str, **more: object) -> dict[str, object]:
        return listener(name, [identities["p256"].chain_path], [upstream.address]) | more

    clients = {"ca": str(identities.ca), "allow": {"dns": ["*.clients.test"], "uri": ["spiffe://prod/web"]}}
    settings = {
        "listeners": [
            option("plain"),
            option("required", client_certificates={"mode": "required", **clients}),
            option("optional", client_certificates={"mode": "optional", **clients}),
            option("alpn", tls={"alpn": ["h2", "http/1.1"]}),
            listener("names", certificates, [upstream.address]),
            option("directory", certificates=[{"directory": str(directory)}]),
            listener("strict", certificates, [upstream.address]) | {"tls": {"unknown_names": "refuse"}},
            option("stapled", **stapled(ends_in=later)),
            option("stale", **stapled(ends_in=-dt.timedelta(minutes=1))),
            option("revoked", **stapled(revoked=True)),
        ],
        "hsm": {"nodes": [{"name": "node", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
    }
    with running_proxy(tmp_path_factory.mktemp("tls-options"), settings) as proxy:
        yield Site(proxy, identities, upstream)


def shown(credentials: LinkCredentials) -> list[str]:
    """Options of s_client."""
    return ["-cert", str(credentials.certificate), "-key", str(credentials.key)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["required", "optional"])
def test_client_certificates(site: Site, version: str, mode: str) -> None:
    """Good by a DNS name or a URI; expired, of another CA, of another name: each is refused and counted."""
    client = site.identities.client
    stranger = Identities(site.identities.directory / f"stranger-{version}-{mode}")
    site.page(mode, f"-{version}", *shown(client("c", ["web1.clients.test"])))
    site.page(mode, f"-{version}", *shown(client("c", [], ["spiffe://prod/web"])))
    names = ["web1.clients.test"]
    for reason, credentials in {
        "expired": client("c", names, expired=True),
        "untrusted": stranger.client("c", names),
        "not_allowed": client("c", ["web1.others.test"]),
    }.items():
        site.refused(f"client_certificate_{reason}", mode, f"-{version}", *shown(credentials))


@pytest.mark.parametrize("version", VERSIONS)
def test_client_without_certificate(site: Site, version: str) -> None:
    """Refused where one is required, served where it is optional."""
    site.refused("client_certificate_missing", "required", f"-{version}")
    site.page("optional", f"-{version}")


def test_nothing_reaches_the_upstream_before_the_judgement(site: Site) -> None:
    """A TLS 1.3 client may send its request with a certificate that is refused: nobody sees it."""
    refused = site.identities.client("c", ["web1.others.test"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(site.identities.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(refused.certificate, refused.key)
    before = len(site.upstream.connections)
    for _ in range(5):
        with contextlib.closing(connect_tcp(site.proxy.ports["required"])) as sock:
            client = TlsClient(sock, context)
            client.handshake(request_bytes("GET", "/"))
            with contextlib.suppress(OSError, Truncated):
                assert client.recv() == b""
    # A later client's request is seen, and nothing has come before it.
    path = unique("/")
    good = site.identities.client("c", ["web1.clients.test"])
    context.load_cert_chain(good.certificate, good.key)
    with TlsClient.connect(site.proxy.ports["required"], context) as client:
        assert client.get(path).status == 200
    site.upstream.wait_for(path)
    assert len(site.upstream.connections) == before + 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["required", "optional"])
def test_listeners_with_client_certificates_do_not_resume(
    site: Site, version: str, mode: str, tmp_path: Path
) -> None:
    """They give out no tickets, and one from another listener does not replace the certificate."""
    good = shown(site.identities.client("c", ["web1.clients.test"]))
    alien = str(tmp_path / "alien")
    site.page("plain", f"-{version}", "-sess_out", alien)
    assert "\nReused, " in site.page("plain", f"-{version}", "-sess_in", alien)
    assert "\nNew, " in site.page(mode, f"-{version}", "-sess_in", alien, *good)
    assert "TLS session ticket:" not in site.page(mode, f"-{version}", *good)
    if mode == "required":
        site.refused("client_certificate_missing", mode, f"-{version}", "-sess_in", alien)


KINDS = {"id-ecPublicKey": "ECDSA+SHA256", "rsaEncryption": "rsa_pss_rsae_sha256"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["names", "directory", "strict"])
@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        ("exact.names.test", "exact.names.test"),
        ("EXACT.names.test", "exact.names.test"),
        ("other.names.test", "*.names.test"),
        ("localhost", "localhost"),
    ],
)
def test_certificate_by_name_and_key_type(
    site: Site, version: str, name: str, asked: str, subject: str
) -> None:
    """Exact before wildcard, and of each the one that the client can verify."""
    for kind, algorithms in KINDS.items():
        output = site.page(name, f"-{version}", "-servername", asked, "-sigalgs", algorithms)
        assert f"CN = {subject}\n" in output
        assert f"a:PKEY: {kind}" in output.partition(" 1 s:")[0]


@pytest.mark.parametrize("asked", ["names.test", "a.b.names.test", "unknown.test", ""])
def test_unknown_names(site: Site, asked: str) -> None:
    """The first certificate of the key type, or the alert that says what is wrong."""
    sni = ["-servername", asked] if asked else ["-noservername"]
    for version in VERSIONS:
        for algorithms in KINDS.values():
            output = site.page("names", f"-{version}", *sni, "-sigalgs", algorithms)
            assert "subject=CN = localhost" in output
        before = site.proxy.metrics().value(FAILURES, reason="unknown_name")
        ended = site.s_client("strict", f"-{version}", *sni)
        assert b"tlsv1 unrecognized name" in ended.stderr
        site.proxy.wait_metric(FAILURES, before + 1, reason="unknown_name")


def test_unknown_name_cannot_resume(site: Site, tmp_path: Path) -> None:
    """A ticket is no way around the names."""
    for version in VERSIONS:
        saved = str(tmp_path / version)
        site.page("strict", f"-{version}", "-servername", "localhost", "-sess_out", saved)
        again = ["-sess_in", saved, "-servername"]
        assert "\nReused, " in site.page("strict", f"-{version}", *again, "localhost")
        assert b"unrecognized name" in site.s_client("strict", f"-{version}", *again, "unknown.test").stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_ocsp_stapling(site: Site, version: str) -> None:
    """A valid response is stapled for who asks, an expired one or one that says revoked is not."""
    output = site.page("stapled", f"-{version}", "-status", "-servername", "localhost")
    assert "Cert Status: good" in output
    assert "OCSP response" not in site.page("stapled", f"-{version}", "-servername", "localhost")
    for name in ("stale", "revoked", "plain"):
        assert "OCSP response: no response sent" in site.page(name, f"-{version}", "-status")
    reasons = {entry["reason"] for entry in site.proxy.events("ocsp_not_stapled")}
    assert any(reason.startswith("it expired on ") for reason in reasons)
    assert "it says that the certificate is revoked" in reasons


@pytest.mark.parametrize("version", VERSIONS)
def test_alpn(site: Site, version: str) -> None:
    """The listener's order decides; a client with no such protocol is served without."""
    assert "ALPN protocol: h2" in site.page("alpn", f"-{version}", "-alpn", "http/1.1,h2")
    assert "ALPN protocol: http/1.1" in site.page("alpn", f"-{version}", "-alpn", "http/1.1")
    assert "No ALPN negotiated" in site.page("alpn", f"-{version}", "-alpn", "spdy/3")
