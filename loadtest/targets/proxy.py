"""Starts Offload as its users do: `hsm node` and `offload serve` with a configuration file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest import procfs
from loadtest.targets.agreement import HOST, POLICY
from loadtest.targets.lab import Lab, LoadTestError, Server, accepts_unix, free_port

WORKER_MODULE = "offload.worker"


@dataclass(frozen=True)
class Node:
    """A running HSM node."""

    name: str
    server: Server
    socket: Path

    @property
    def address(self) -> str:
        """As the proxy's configuration names it."""
        return f"unix:{self.socket}"

    def wait(self) -> None:
        """Wait until it can be connected to. Raises LoadTestError when it ends before."""
        self.server.wait_until(lambda: accepts_unix(self.socket))


@dataclass(frozen=True)
class Proxy:
    """A running `offload serve`; `ports` by listener name, `admin` is host:port. The nodes run beside it."""

    server: Server
    ports: Mapping[str, int]
    admin: str
    nodes: Sequence[Node]

    def workers(self) -> list[int]:
        """Pids of its worker processes."""
        return [
            pid
            for pid in procfs.process_tree(self.server.pid)
            if any(WORKER_MODULE in part for part in procfs.command_line(pid))
        ]

    def processes(self) -> dict[str, list[int]]:
        """Groups to measure: `worker`, `node`, and `tree`, which is supervisor, workers and nodes."""
        nodes = [pid for node in self.nodes for pid in procfs.process_tree(node.server.pid)]
        return {
            "worker": self.workers(),
            "node": nodes,
            "tree": procfs.process_tree(self.server.pid) + nodes,
        }


def start_node(lab: Lab, name: str, keys: Path, emulate: str = "") -> Node:
    """A node with the software token on a unix socket, ready; `emulate` as on the command line.

    Raises LoadTestError.
    """
    node = launch_node(lab, name, keys, emulate)
    node.wait()
    return node


def launch_node(lab: Lab, name: str, keys: Path, emulate: str = "", emulate_file: Path | None = None) -> Node:
    """The same, not ready yet; `emulate_file` as on the command line too."""
    options = ["--token", "software", "--keys", str(keys)]
    if emulate:
        options += ["--emulate", emulate]
    if emulate_file is not None:
        options += ["--emulate-file", str(emulate_file)]
    return _launch(lab, name, options, {})


def start_token_node(
    lab: Lab, name: str, uri: str, environment: Mapping[str, str], sessions: str = "auto"
) -> Node:
    """A node with a PKCS#11 token on a unix socket, ready; the module gets `environment`.

    Raises LoadTestError.
    """
    node = _launch(lab, name, ["--token", "pkcs11", "--token-uri", uri, "--sessions", sessions], environment)
    node.wait()
    return node


def _launch(lab: Lab, name: str, options: Sequence[str], environment: Mapping[str, str]) -> Node:
    socket_path = lab.directory / f"{name}.sock"
    command = [sys.executable, "-m", "hsm.cli", "node", "--name", name, "--listen", f"unix:{socket_path}"]
    return Node(name, lab.start(f"node-{name}", [*command, *options], environment), socket_path)


def start_proxy(
    lab: Lab,
    name: str,
    chains: Mapping[str, Path],
    upstream_port: int,
    nodes: Sequence[Node],
    *,
    verify: str = "always",
    mode: str = "relay",
    workers: int = 1,
    gives_tickets: bool = True,
    tickets: Path | None = None,
) -> Proxy:
    """`offload serve` with a listener for each of `chains`; returns when it is ready.

    `verify` is `verify_signatures` of the configuration, `mode` that of its listeners, `tickets` the
    file of its ticket secrets, if it `gives_tickets`. Raises LoadTestError.
    """
    ports = {listener: free_port() for listener in chains}
    addresses = {node.name: node.address for node in nodes}
    configuration = settings(chains, ports, upstream_port, addresses, verify, workers)
    for listener in configuration["listeners"]:
        listener["mode"] = mode
    configuration["tickets"] = {"enabled": gives_tickets}
    if tickets is not None:
        configuration["tickets"]["secret_file"] = str(tickets)
    path = lab.directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(configuration, sort_keys=False))
    server = lab.start(name, [sys.executable, "-m", "offload.cli", "serve", "--config", str(path)])
    server.wait_until(lambda: has_event(server.log.read_text(errors="replace"), "ready"))
    proxy = Proxy(server, ports, configuration["admin"]["address"], tuple(nodes))
    if (count := len(proxy.workers())) != workers:
        raise LoadTestError(f"{name}: {count} worker processes instead of {workers}: {server.tail()}")
    return proxy


def settings(
    chains: Mapping[str, Path],
    ports: Mapping[str, int],
    upstream_port: int,
    nodes: Mapping[str, str],
    verify: str,
    workers: int = 1,
) -> dict[str, Any]:
    """A configuration with one listener for each of `chains` (files, or directories of them).

    `nodes` are addresses by name.
    """
    return {
        "listeners": [
            {
                "name": listener,
                "address": f"{HOST}:{ports[listener]}",
                "certificates": [{"directory" if chain.is_dir() else "chain": str(chain)}],
                "tls": {"policy": POLICY},
                "upstream": {"servers": [f"{HOST}:{upstream_port}"]},
            }
            for listener, chain in chains.items()
        ],
        "hsm": {
            "nodes": [{"name": name, "address": address} for name, address in nodes.items()],
            "verify_signatures": verify,
        },
        "admin": {"address": f"{HOST}:{free_port()}"},
        "workers": workers,
        "limits": {"max_connections": 10_000, "drain_timeout": "1s"},
    }


def has_event(log: str, event: str) -> bool:
    """Whether a log of JSON lines (other lines are skipped) tells of `event`."""
    for line in log.splitlines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == event:
            return True
    return False
