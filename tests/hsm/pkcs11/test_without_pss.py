"""A token that can't do RSA-PSS: the proxy refuses what could not work, and serves with a policy that does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offload.demands import POLICIES_WITHOUT_PSS
from tests.integration.clients import TLS13, TlsClient, client_context
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.operator.conftest import write
from tests.support import eventually
from tests.support.hsm_support import LIMIT, NodeProcess, require
from tests.support.pkcs11 import Faults, SoftToken, node_command
from tests.support.proxy import listener, run_offload, running_proxy

CKM_RSA_PKCS_PSS = "d"


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority, and an RSA certificate whose chain is complete."""
    made = Identities(tmp_path_factory.mktemp("identities"))
    made["rsa2048"].chain_path.write_bytes(made["rsa2048"].pem + made.ca.read_bytes())
    return made


@pytest.fixture
def old_token(identities: Identities, tmp_path: Path, faults: Faults) -> SoftToken:
    """A token with the certificate's key, in a module that does not list PSS."""
    (tmp_path / "old-token").mkdir()
    token = SoftToken(tmp_path / "old-token")
    token.initialise()
    token.import_key("web", identities["rsa2048"].key, "01")
    faults.set("hide", CKM_RSA_PKCS_PSS)
    return token


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The web server."""
    with Upstream() as server:
        yield server


@pytest.fixture
def settings(
    identities: Identities, old_token: SoftToken, faults: Faults, upstream: Upstream
) -> dict[str, Any]:
    """One RSA listener, and one node of its own with that token."""
    run = {
        "token": "pkcs11",
        "uri": old_token.uri(faults.module),
        "env": old_token.environment | faults.environment,
    }
    return {
        "listeners": [listener("web", [identities["rsa2048"].chain_path], [upstream.address])],
        "hsm": {"nodes": [{"name": "old", "run": run}]},
        "workers": 1,
        "limits": {"max_connections": 100, "drain_timeout": "2s"},
    }


def assert_refused(done: subprocess.CompletedProcess[str], identities: Identities) -> None:
    """Exit code 2, and one line with all that is needed to put it right."""
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    identity = identities["rsa2048"]
    for part in (
        "listener web",
        str(identity.chain_path),
        identity.ski.hex(),
        "node old",
        "rsa_pss_rsae_sha256",
    ):
        assert part in line
    for policy in POLICIES_WITHOUT_PSS:
        assert policy in line
    assert "Traceback" not in done.stderr


def test_a_listener_that_could_choose_pss_does_not_start(
    settings: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """`serve` ends; `check --connect` says the same."""
    config = write(tmp_path, settings | {"admin": None})
    assert_refused(run_offload("serve", "--config", str(config)), identities)
    assert_refused(run_offload("check", "--connect", "--config", str(config)), identities)


def test_the_named_policies_serve(settings: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """OpenSSL's client is served by the token, its signature by PKCS#1 v1.5, at a listener of each policy."""
    (web,) = settings["listeners"]
    settings["listeners"] = [
        {**web, "name": policy, "tls": {"policy": policy}} for policy in POLICIES_WITHOUT_PSS
    ]
    with running_proxy(tmp_path / "proxy", settings) as proxy:
        eventually(lambda: proxy.get("/readyz").status == 200, "readiness")
        for policy in POLICIES_WITHOUT_PSS:
            command = [
                require("openssl"), "s_client", "-connect", f"127.0.0.1:{proxy.ports[policy]}", "-tls1_2",
                "-CAfile", str(identities.ca), "-verify_return_error", "-verify_hostname", "localhost",
            ]  # fmt: skip
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
            )
            assert done.returncode == 0, done.stderr
            assert "Peer signature type: RSA\n" in done.stdout
            assert "Verify return code: 0 (ok)" in done.stdout


def test_a_node_that_comes_later_keeps_the_proxy_from_being_ready(
    settings: dict[str, Any], identities: Identities, tmp_path: Path, run_directory: Path
) -> None:
    """It is logged and in /status; a node that can do PSS puts it right."""
    listen = f"unix:{run_directory}/late.sock"
    run = settings["hsm"]["nodes"][0]["run"]
    late = node_command(run["env"], "--listen", listen, "--token", "pkcs11", "--token-uri", run["uri"])
    settings["hsm"]["nodes"] = [{"name": "late", "address": listen}]
    with running_proxy(tmp_path / "proxy", settings) as proxy:
        with NodeProcess(listen, command=late):
            told = proxy.wait_event("key_cannot_serve")
            assert POLICIES_WITHOUT_PSS[0] in told["error"]
            assert told["error"] in proxy.status()["degraded"]
            assert proxy.get("/readyz").status == 503
        with NodeProcess(listen, "--keys", str(identities.keys)) as good:
            good.ready()
            eventually(lambda: proxy.get("/readyz").status == 200, "readiness")
            with TlsClient.connect(proxy.ports["web"], client_context(identities.ca, TLS13)):
                pass
