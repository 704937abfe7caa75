"""Nodes beside a proxy, and a proxy with two whose behaviour a test can change."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsm import keyless
from offload import runtime
from offload.commands import command
from offload.config import load
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support.hsm_support import KeylessClient, NodeProcess
from tests.support.proxy import Proxy, is_running, listener, running_proxy


def start_node(
    stack: contextlib.ExitStack, directory: Path, name: str, keys: Path, *options: str
) -> NodeProcess:
    """A node on a unix socket, beside the proxy."""
    listen = f"unix:{directory}/{name}.sock"
    return stack.enter_context(NodeProcess(listen, "--name", name, "--keys", str(keys), *options)).ready()


@dataclass
class Cluster:
    """A proxy with one worker and the nodes a and b, whose behaviour a test can change."""

    proxy: Proxy
    settings: dict[str, Any]
    nodes: dict[str, NodeProcess]
    directory: Path
    start: Callable[[str], NodeProcess]

    @property
    def port(self) -> int:
        """Of the listener with the P-256 certificate."""
        return self.proxy.ports["p256"]

    def emulate(self, name: str, **settings: Any) -> None:
        """Have a node behave like this from now on."""
        node = self.nodes[name]
        (self.directory / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        node.signal(signal.SIGUSR1)
        with KeylessClient.connect(node.address) as client:
            for _ in range(5):  # whatever turns it takes: by the last answer the file has been read
                assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG

    def kill(self, name: str) -> None:
        """Have a node die."""
        self.nodes[name].signal(signal.SIGKILL)
        self.nodes[name].wait()

    def revive(self) -> None:
        """Start the nodes that have died again."""
        for name, node in self.nodes.items():
            if not is_running(node.pid):
                self.nodes[name] = self.start(name)

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """In this block handshakes wait a short time for their signature."""
        hsm = {**self.settings["hsm"], "sign_timeout": "300ms"}
        self.proxy.write({**self.settings, "hsm": hsm})
        self.proxy.command("reload")
        try:
            yield
        finally:
            self.proxy.write(self.settings)
            self.proxy.command("reload")

    def pardon(self, name: str) -> None:
        """Have the proxy forget what it thinks of a node."""
        config = self.proxy.directory / "offload.yaml"
        control = runtime.directory_of(load(config), config) / runtime.CONTROL_SOCKET
        for enabled in (False, True):
            asyncio.run(command(control, "node", name=name, enabled=enabled))


@contextlib.contextmanager
def running_cluster(identities: Identities, upstream: Upstream, directory: Path) -> Iterator[Cluster]:
    """Two good nodes on unix sockets, each with an emulation file, and a proxy."""
    p256, rsa = identities["p256"].chain_path, identities["rsa2048"].chain_path
    with contextlib.ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-test-")))

        def start(name: str) -> NodeProcess:
            file = directory / f"{name}.yaml"
            file.write_text("{}")
            return start_node(stack, sockets, name, identities.keys, "--emulate-file", str(file))

        nodes = {name: start(name) for name in ("a", "b")}
        settings: dict[str, Any] = {
            "listeners": [
                listener("p256", [p256], [upstream.address]),
                listener("rsa2048", [rsa], [upstream.address]),
                listener("long", [identities.long_chain("p256", 45)], [upstream.address]),
            ],
            "hsm": {"nodes": [{"name": name, "address": node.listen} for name, node in nodes.items()]},
            "workers": 1,
            "watch_files": False,
        }
        proxy = stack.enter_context(running_proxy(directory / "proxy", settings))
        yield Cluster(proxy, settings, nodes, directory, start)
