"""The proxy and software nodes that can be broken, slowed and restarted while they are loaded."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import Lab
from loadtest.targets.peers import start_upstream
from loadtest.targets.proxy import Node, Proxy, launch_node, start_proxy

NODES = ("a", "b", "c")
LATENCY = 0.005
"""Seconds that a signature takes on a node that is well."""

Emulation = Mapping[str, Any]
"""Keys of a software node's `emulate`."""


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

    def emulate(self, **changes: Any) -> None:
        """From now on it behaves so; without arguments as it did in the beginning."""
        self._write({**self._emulation, **changes})
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

    def _write(self, emulation: Emulation) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(yaml.safe_dump(dict(emulation)))
        written.replace(self._file)

    def _send(self, number: signal.Signals) -> None:
        server = self.node.server
        if server.ended() is None:  # not reaped before `stop`: the pid is still its own
            os.kill(server.pid, number)


class Cluster:
    """A lab with three nodes, a web server, and the proxy before it; leaving the context ends all."""

    def __init__(self, lab: Lab, emulation: Emulation) -> None:
        """Starts them. Raises LoadTestError."""
        self._lab = lab
        credentials = make_credentials(lab.directory, "p256")
        upstream = start_upstream(lab)
        keys = lab.directory / "keys"
        self.nodes: Sequence[BreakableNode] = [BreakableNode(lab, name, keys, emulation) for name in NODES]
        for node in self.nodes:
            node.wait()
        self.proxy: Proxy = start_proxy(
            lab, "proxy", {"p256": credentials.chain}, upstream.ports[0], [node.node for node in self.nodes]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.thaw()  # a frozen one would not hear that it is to end

    @property
    def port(self) -> int:
        """Where clients connect to."""
        return self.proxy.ports["p256"]

    @property
    def worker(self) -> int:
        """The pid of the proxy's one worker."""
        return self.proxy.workers()[0]
