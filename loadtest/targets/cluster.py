"""The proxy and software nodes that can be broken, slowed and restarted while they are loaded."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import yaml
from pydantic import Field, PositiveInt

from hsm.config import Emulation, Section
from loadtest.targets.agreement import HOST
from loadtest.targets.certificates import make_credentials, renew
from loadtest.targets.lab import Lab, LoadTestError
from loadtest.targets.peers import start_upstream
from loadtest.targets.proxy import Node, Proxy, launch_node, start_proxy

LATENCY = 0.005
"""Seconds that a signature takes on a node that is well."""
LISTENER = "tls"
SERVED_WITHIN = 20.0
"""Seconds until new certificates must be served; a scenario may expect them sooner."""
_NAMES = "abcdefghijklmnopqrstuvwxyz"


KeyKind = Literal["p256", "rsa2048"]


def _one_key() -> list[KeyKind]:
    return ["p256"]


class ClusterSettings(Section):
    """Offload and its nodes, as they are started when no server is named."""

    nodes: int = Field(3, ge=1, le=len(_NAMES), description="Software nodes; they are named a, b, c …")
    emulate: Emulation = Field(
        default_factory=lambda: Emulation(latency=LATENCY),
        description="How each node imitates an HSM: keys as in a node's own configuration.",
    )
    workers: PositiveInt = Field(1, le=64, description="Processes of the proxy that serve clients.")
    keys: list[KeyKind] = Field(
        default_factory=_one_key, min_length=1, max_length=2, description="A certificate for each."
    )
    certificates: int = Field(
        0, ge=0, le=10_000, description="Further certificates, each for a name of its own."
    )
    verify: Literal["always", "rsa"] = Field("always", description="`hsm.verify_signatures` of the proxy.")

    @property
    def names(self) -> Sequence[str]:
        """Those of the nodes."""
        return list(_NAMES[: self.nodes])

    def __str__(self) -> str:
        many = f"{self.nodes} software nodes" if self.nodes > 1 else "one software node"
        workers = f"{self.workers} workers" if self.workers > 1 else "one worker"
        rate = self.emulate.signatures_per_second
        narrow = f", {rate:g} signatures a second each" if rate else ""
        return f"offload, {workers}, {many} at {self.emulate.latency * 1000:g} ms{narrow}"


class BreakableNode:
    """A software node in a process of its own. What it does wrong is told by `emulate`."""

    def __init__(self, lab: Lab, name: str, keys: Path, emulation: Emulation) -> None:
        self.name = name
        self._lab = lab
        self._keys = keys
        self._emulation = emulation
        self._file = lab.directory / f"{name}.emulate.yaml"
        self._write(emulation)
        self.node: Node
        self.launch()

    def launch(self) -> None:
        """Start it, again after it has ended; it is not ready until `wait` returns."""
        self.node = launch_node(self._lab, self.name, self._keys, emulate_file=self._file)

    def wait(self) -> None:
        """Wait until it can be connected to. Raises LoadTestError when it ends before."""
        self.node.wait()

    def emulate(self, emulation: Emulation | None = None) -> None:
        """From now on it differs so from how it was in the beginning; or not at all."""
        changes = emulation.model_dump(exclude_unset=True) if emulation else {}
        self._write(self._emulation.model_copy(update=changes))
        self._send(signal.SIGUSR1)

    def freeze(self) -> None:
        """SIGSTOP: it stays connected and says nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT. Nothing happens to one that is not frozen."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: its connections end without a word."""
        self._send(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator does: it answers what it was asked. Waits for its end."""
        self.node.server.stop()

    def replace(self) -> None:
        """Stop it, start another one in its place, and wait for it. Raises LoadTestError."""
        self.stop()
        self.launch()
        self.wait()

    def _write(self, emulation: Emulation) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(yaml.safe_dump(emulation.model_dump(mode="json")))
        written.replace(self._file)

    def _send(self, number: signal.Signals) -> None:
        server = self.node.server
        if server.ended() is None:  # not reaped before `stop`: the pid is still its own
            os.kill(server.pid, number)


class Cluster:
    """A web server, the proxy before it and its nodes, in a lab; leaving the context lets all end."""

    def __init__(self, lab: Lab, settings: ClusterSettings) -> None:
        """Starts them. Raises LoadTestError."""
        self.settings = settings
        self._lab = lab
        chains = lab.directory / "chains"
        chains.mkdir()
        self._credentials = [make_credentials(lab.directory, kind, chains=chains) for kind in settings.keys]
        for number in range(settings.certificates):
            make_credentials(lab.directory, settings.keys[0], f"host{number}.test", chains)
        self._secret = lab.directory / "tickets"
        self._new_ticket_secret()
        keys = lab.directory / "keys"
        self.nodes: Mapping[str, BreakableNode] = {
            name: BreakableNode(lab, name, keys, settings.emulate) for name in settings.names
        }
        for node in self.nodes.values():
            node.wait()
        self.proxy: Proxy = start_proxy(
            lab, "proxy", {LISTENER: chains}, start_upstream(lab).ports[0],
            [node.node for node in self.nodes.values()],
            verify=settings.verify, workers=settings.workers, tickets=self._secret,
        )  # fmt: skip
        self._successor: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.thaw()  # a frozen one would not hear that it is to end
        if self._successor is not None:
            os.kill(self._successor, signal.SIGTERM)

    @property
    def port(self) -> int:
        """Where clients connect to."""
        return self.proxy.ports[LISTENER]

    def reload(self) -> None:
        """New certificates for the same keys, and `offload reload`, until new clients get them.

        Raises LoadTestError when they do not.
        """
        for credentials in self._credentials:
            renew(credentials)
        wanted = {_fingerprint(credentials.chain.read_text()) for credentials in self._credentials}
        self._command("reload")
        deadline = time.monotonic() + SERVED_WITHIN
        in_a_row = 0
        # Any worker may take a client: so many new certificates in a row leave little chance for an old one.
        while in_a_row < 4 * self.settings.workers:
            in_a_row = in_a_row + 1 if _served(self.port) in wanted else 0
            if time.monotonic() > deadline:
                raise LoadTestError("offload reload has ended, and the new certificate is not served")

    def rotate_tickets(self) -> None:
        """Another ticket secret, and `offload reload`: no session from before can be resumed.

        Raises LoadTestError.
        """
        self._new_ticket_secret()
        self._command("reload")

    def upgrade(self) -> None:
        """`offload upgrade`: a new process takes over. Raises LoadTestError."""
        said = self._command("upgrade")
        found = re.search(r"process (\d+) ", said)
        if found is None:
            raise LoadTestError(f"offload upgrade names no process: {said.strip()}")
        self._successor = int(found[1])

    def _new_ticket_secret(self) -> None:
        self._secret.touch(0o600)
        self._secret.write_text(secrets.token_hex(32) + "\n")

    def _command(self, name: str) -> str:
        configuration = str(self._lab.directory / "proxy.yaml")
        return self._lab.run([sys.executable, "-m", "offload.cli", name, "--config", configuration])


def _fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _served(port: int) -> str:
    """The fingerprint of the certificate that a new client gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((HOST, port), timeout=5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()
