"""From an empty token to a handshake, as an operator does it: keygen, check, doctor's part of it, serve."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.upstreams import Upstream
from tests.operator.conftest import write
from tests.support import eventually
from tests.support.hsm_support import LIMIT, require
from tests.support.pkcs11 import Faults, SoftToken, run_hsm_with, running_node
from tests.support.proxy import listener, run_offload, running_proxy

KINDS = {"ec": "p256", "rsa": "rsa2048"}


@dataclass
class Site:
    """A token with the keys of two certificates, and a configuration that serves both."""

    token: SoftToken
    directory: Path
    settings: dict[str, Any]

    def check(self) -> subprocess.CompletedProcess[str]:
        """`offload check --connect`."""
        path = write(self.directory, {**self.settings, "admin": None})
        return run_offload("check", "--connect", "--config", str(path))


@pytest.fixture(scope="module")
def made_token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """Keys and certificates are made by `hsm keygen`: the former in the token, the latter beside it."""
    token = SoftToken(tmp_path_factory.mktemp("made"))
    token.initialise()
    for label, kind in KINDS.items():
        papers = ["--type", kind, "--certificate", f"{label}.pem", "--name", f"{label}.test"]
        arguments = ["--token-uri", token.uri(), "--label", label, *papers]
        done = run_hsm_with(token.environment, "keygen", *arguments, directory=token.directory)
        assert done.returncode == 0, done.stderr
    return token


@pytest.fixture
def site(made_token: SoftToken, tmp_path: Path, faults: Faults) -> Iterator[Site]:
    """Both are served through the module with faults."""
    token = made_token
    chains = [token.directory / f"{label}.pem" for label in KINDS]
    environment = token.environment | faults.environment
    run = {"token": "pkcs11", "uri": token.uri(faults.module), "env": environment}
    with Upstream() as upstream:
        settings = {
            "listeners": [listener("web", chains, [upstream.address])],
            "hsm": {"nodes": [{"name": "p", "run": run}]},
            "workers": 1,
            "limits": {"max_connections": 100, "drain_timeout": "2s"},
        }
        yield Site(token, tmp_path, settings)


def client(*command: str) -> str:
    """What a real client prints; it has to succeed."""
    done = subprocess.run(
        [require(command[0]), *command[1:]],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_an_empty_token_to_a_handshake(site: Site) -> None:
    """The check is content, and OpenSSL and curl are served with signatures made in the token."""
    checked = site.check()
    assert checked.returncode == 0, checked.stderr
    assert "node p: its token and each of its keys were examined (hsm doctor)" in checked.stdout
    assert checked.stdout.count(" ms ") >= 1 + 6
    with running_proxy(site.directory / "proxy", site.settings) as proxy:
        eventually(lambda: proxy.get("/readyz").status == 200, "readiness")
        port = proxy.ports["web"]
        for label in KINDS:
            ca = str(site.token.directory / f"{label}.pem")
            said = client(
                "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", f"{label}.test",
                "-CAfile", ca, "-verify_return_error", "-verify_hostname", f"{label}.test",
            )  # fmt: skip
            assert "Verify return code: 0 (ok)" in said
            resolve = ["--resolve", f"{label}.test:{port}:127.0.0.1", "--noproxy", "*"]
            page = f"https://{label}.test:{port}/size/5"
            client("curl", "--silent", "--show-error", "--cacert", ca, *resolve, page)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("race", "node p: module: "),
        ("segfault", "node p: module: ended its process by SIGSEGV while signing"),
    ],
)
def test_check_survives_a_bad_module(site: Site, faults: Faults, fault: str, told: str) -> None:
    """It is an error of the check, which is not its end; the message names the node."""
    faults.set(fault)
    checked = site.check()
    assert checked.returncode == 2
    assert f"error: {told}" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_check_tells_what_a_node_elsewhere_says(site: Site, faults: Faults, run_directory: Path) -> None:
    """Of a node that somebody else runs there is what it tells of its keys: one of them can be copied."""
    run = site.settings["hsm"]["nodes"][0]["run"]
    faults.set("lie", "162")
    with running_node(run_directory, run["env"], run["uri"]) as node:
        site.settings["hsm"]["nodes"] = [{"name": "far", "address": node.listen}]
        checked = site.check()
    assert checked.returncode == 0, checked.stderr
    for label, kind in (("ec", "P-256"), ("rsa", "RSA-2048")):
        assert f"warning: node far: key '{label}' ({kind}): it can be extracted" in checked.stdout
