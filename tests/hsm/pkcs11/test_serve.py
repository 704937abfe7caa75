"""`offload serve` with PKCS#11 nodes as its children: what happens to handshakes when a token misbehaves."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offload import landlock
from tests.integration.clients import Load, client_context
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.pkcs11 import Faults, SoftToken
from tests.support.proxy import Proxy, children_of, listener, running_proxy


@dataclass
class Served:
    """A proxy whose node `bad` has a module with faults, and `good` has not."""

    proxy: Proxy
    faults: Faults
    context: ssl.SSLContext

    def load(self) -> Load:
        """Clients that make one connection after the other."""
        return Load(self.proxy.ports["p256"], self.context)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority and certificates."""
    return Identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="module")
def token(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """A token with the certificate's key."""
    token = SoftToken(tmp_path_factory.mktemp("serve-token"))
    token.initialise()
    token.import_key("web", identities["p256"].key, "01")
    return token


@pytest.fixture(scope="module")
def served(
    identities: Identities, token: SoftToken, faults_module: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Both nodes share the token; each test leaves them well."""
    faults = Faults(faults_module, tmp_path_factory.mktemp("faults"))
    environment = token.environment
    nodes: list[dict[str, Any]] = [
        {
            "name": "bad",
            "run": {
                "token": "pkcs11",
                "uri": token.uri(faults.module),
                "env": environment | faults.environment,
                "stuck_after": "500ms",
                "stuck_sessions": 1,
            },
        },
        {"name": "good", "run": {"token": "pkcs11", "uri": token.uri(), "env": environment, "sessions": 2}},
    ]
    with Upstream() as upstream:
        settings = {
            "listeners": [listener("p256", [identities["p256"].chain_path], [upstream.address])],
            "hsm": {"nodes": nodes},
            "workers": 1,
            **({"user": "nobody"} if os.geteuid() == 0 else {}),
        }
        with running_proxy(tmp_path_factory.mktemp("proxy"), settings) as proxy:
            eventually(lambda: all(n["ready"] for n in proxy.status()["nodes"]), "both nodes ready")
            yield Served(proxy, faults, client_context(identities.ca))


def test_a_token_taken_away_and_put_back_fails_no_handshake(served: Served) -> None:
    """While one token answers CKR_DEVICE_REMOVED the other node signs; afterwards both do."""
    with served.load() as load:
        load.wait_done(10)
        served.faults.set("C_Sign", "32")
        load.wait_done(20)
        served.faults.clear("C_Sign")
        load.wait_done(20)
    assert load.failed == []
    confined_by = served.proxy.status()["workers"][0]["confined_by"]
    assert ("can't open files" in confined_by) == (landlock.abi() > 0), "modules are in the nodes only"


@pytest.mark.parametrize("fault", ["segfault", "stall"])
def test_a_module_that_crashes_or_hangs_costs_its_node_only(served: Served, fault: str) -> None:
    """No handshake fails; the node is replaced, and signs again once the fault is gone."""
    proxy, before = served.proxy, set(children_of(served.proxy.pid))
    ended = len(proxy.events("child_ended"))
    with served.load() as load:
        load.wait_done(10)
        served.faults.set(fault)
        eventually(lambda: len(proxy.events("child_ended")) > ended, "the node's end", 60)
        served.faults.clear(fault)
        eventually(lambda: set(children_of(proxy.pid)) - before, "another process", 60)
        eventually(lambda: all(n["ready"] for n in proxy.status()["nodes"]), "both nodes ready", 60)
        load.wait_done(10)
    assert load.failed == []


def test_no_pin_shows_in_any_process_or_log(identities: Identities, token: SoftToken, tmp_path: Path) -> None:
    """A PIN in the configuration's URI reaches the node without passing a command line."""
    secret = token.pin.partition(":")[2]
    uri = token.uri().partition("pin-source")[0] + "pin-value=" + token.pin.replace(":", "%3A")
    run = {"token": "pkcs11", "uri": uri, "env": token.environment}
    with Upstream() as upstream:
        settings = {
            "listeners": [listener("p256", [identities["p256"].chain_path], [upstream.address])],
            "hsm": {"nodes": [{"name": "a", "run": run}]},
            "workers": 1,
        }
        with running_proxy(tmp_path / "proxy", settings) as proxy:
            eventually(lambda: all(n["ready"] for n in proxy.status()["nodes"]), "the node ready")
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    assert secret.encode() not in entry.read_bytes()
                except OSError:
                    continue  # it has ended
            assert secret not in proxy.get("/status").text
            assert "pin_in_uri" in proxy.log
        assert secret not in proxy.log
