"""Session tickets of a running proxy: over workers, rotations, restarts and replicas, and without any node."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import TIMEOUT, TlsClient, request_bytes
from tests.integration.clusters import start_node
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, require
from tests.support.proxy import Proxy, listener, running_proxy

VERSIONS = ("tls1_2", "tls1_3")
RESUMPTIONS = "offload_resumptions_total"


@dataclass
class Site:
    """A proxy with two workers and one node that runs beside it."""

    proxy: Proxy
    identities: Identities
    settings: dict[str, Any]
    start_node: Callable[[], NodeProcess]
    node: NodeProcess

    def session(self, context: ssl.SSLContext, name: str = "web") -> ssl.SSLSession:
        """What a full handshake gives."""
        with TlsClient.connect(self.proxy.ports[name], context) as client:
            assert client.get("/").status == 200
            assert not client.tls.session_reused
            assert client.tls.session is not None
            assert client.tls.session.has_ticket
            return client.tls.session

    def resumes(self, context: ssl.SSLContext, session: ssl.SSLSession, name: str = "web") -> bool:
        """Whether a handshake with this session resumes; the request after it is answered either way."""
        with TlsClient.connect(self.proxy.ports[name], context, session=session) as client:
            assert client.get("/").status == 200
            return bool(client.tls.session_reused)

    @contextlib.contextmanager
    def without_node(self) -> Iterator[None]:
        """While the only node is killed."""
        os.kill(self.node.pid, signal.SIGKILL)
        eventually(lambda: self.proxy.status()["degraded"], "the outage is seen", TIMEOUT)
        try:
            yield
        finally:
            self.node = self.start_node()
            eventually(lambda: not self.proxy.status()["degraded"], "the node is back", TIMEOUT)


@pytest.fixture(scope="module")
def site(
    identities: Identities,
    upstream: Upstream,
    socket_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Keys that rotate every second, so that tests see it."""
    directory = tmp_path_factory.mktemp("resumption")
    secrets = directory / "tickets.secret"
    secrets.touch(mode=0o600)
    secrets.write_text("5" * 64 + "\n")
    chain = identities["p256"].chain_path
    with contextlib.ExitStack() as stack:
        start = partial(start_node, stack, socket_directory, "resumption", identities.keys)
        node = start()
        settings = {
            "listeners": [listener(name, [chain], [upstream.address]) for name in ("web", "other")],
            "hsm": {"nodes": [{"name": "node", "address": node.listen}], "sign_timeout": "1s"},
            "tickets": {"rotate": "1s", "lifetime": "40s", "secret_file": str(secrets)},
            "workers": 2,
        }
        proxy = stack.enter_context(running_proxy(directory / "first", settings))
        # Keys that are about to be replaced as it starts encrypt nothing any more.
        proxy.wait_metric("offload_ticket_rotations_total", 1)
        yield Site(proxy, identities, settings, start, node)


def s_client(site: Site, port: int, *options: str) -> str:
    """What `openssl s_client` says of one request."""
    ended = subprocess.run(
        [
            require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost",
            "-CAfile", str(site.identities.ca), "-verify_return_error", "-ign_eof", *options,
        ],
        input=request_bytes("GET", "/closes"), capture_output=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    output = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, output + ended.stderr.decode(errors="replace")
    assert "all of it" in output
    return output


@pytest.mark.parametrize("version", VERSIONS)
def test_openssl_resumes(site: Site, version: str, tmp_path: Path) -> None:
    """s_client saves its session and resumes with it; on another listener the handshake is full."""
    saved = str(tmp_path / "session")
    assert "\nNew, " in s_client(site, site.proxy.ports["web"], f"-{version}", "-sess_out", saved)
    assert "\nReused, " in s_client(site, site.proxy.ports["web"], f"-{version}", "-sess_in", saved)
    assert "\nNew, " in s_client(site, site.proxy.ports["other"], f"-{version}", "-sess_in", saved)


def test_every_worker_resumes_also_its_successor(
    site: Site, tls12: ssl.SSLContext, tls13: ssl.SSLContext
) -> None:
    """Whichever worker has the connection knows the ticket; so does one that started later."""
    sessions = [(context, site.session(context)) for context in (tls12, tls13)]
    assert all(site.resumes(*session) for session in sessions * 12)
    before = site.proxy.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: len(now := site.proxy.worker_pids()) == 2 and not set(now) & set(before) and _all_accept(site),
        "two new workers", TIMEOUT,
    )  # fmt: skip
    assert all(site.resumes(*session) for session in sessions * 12)


def _all_accept(site: Site) -> bool:
    return site.proxy.get("/readyz").status == 200


def test_ticket_outlives_rotations(site: Site, either: ssl.SSLContext) -> None:
    """Live workers get new keys, and accept tickets of the ones before; how old those are is counted."""
    session = site.session(either)
    before = site.proxy.metrics()
    site.proxy.wait_metric(
        "offload_ticket_rotations_total", before.value("offload_ticket_rotations_total") + 2
    )
    assert all(site.resumes(either, session) for _ in range(6))
    now = site.proxy.metrics()
    gained = [
        now.value(RESUMPTIONS, rotations=str(age)) - before.value(RESUMPTIONS, rotations=str(age))
        for age in range(60)
    ]
    assert sum(gained) == 6
    assert gained[0] == 0
    assert sum(gained[2:]) > 0


def test_replica_with_the_same_secret_resumes(site: Site, tls13: ssl.SSLContext, tmp_path: Path) -> None:
    """Another proxy that shares the secret file, and nothing else, accepts the ticket; resumptions count."""
    session = site.session(tls13)
    with running_proxy(tmp_path / "second", {**site.settings, "workers": 1}) as second:
        replica = replace(site, proxy=second)
        assert replica.resumes(tls13, session)
        assert not replica.resumes(tls13, session, "other")
        second.wait_metric("offload_handshake_seconds_count", 1, listener="web", kind="resumed")
        second.wait_metric("offload_handshake_seconds_count", 1, listener="other", kind="full")


def test_resumption_needs_no_node(site: Site, tls12: ssl.SSLContext, tls13: ssl.SSLContext) -> None:
    """With the only node gone, who has a ticket is served, every time; who has none is not."""
    sessions = [(context, site.session(context)) for context in (tls12, tls13)]
    with site.without_node():
        for context, session in sessions:
            assert all(site.resumes(context, session) for _ in range(10))
            with pytest.raises((ssl.SSLError, OSError)):
                site.session(context)


def test_secrets_are_in_no_log_and_no_status(site: Site) -> None:
    """Neither the shared secret nor a key of a listener shows."""
    assert "5555" not in site.proxy.log + site.proxy.get("/status").text + site.proxy.get("/metrics").text
