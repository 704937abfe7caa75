"""Socket activation: a parent passes listening sockets, and clients are served on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.integration.clients import TlsClient, connect_tcp
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import child_environment, free_port
from tests.support.proxy import START_TIMEOUT, STOP_TIMEOUT, children_of, listener, offload_command

LAST_STEP = """
import os, sys
moves, command = sys.argv[1].split(","), sys.argv[2:]
for number, descriptor in enumerate(moves, start=3):
    os.dup2(int(descriptor), number)
    os.close(int(descriptor))
os.environ.update(LISTEN_FDS=str(len(moves)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="web:other")
os.execv(command[0], command)
"""
"""What a service manager does last: it becomes the service, with the sockets from descriptor 3 on."""


def listening() -> socket.socket:
    """A socket that listens on a free port, as a service manager makes it: without SO_REUSEPORT."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def write(path: Path, upstream: Upstream, identities: Identities, *ports: int) -> Path:
    """A configuration with a listener on each port."""
    names = ("web", "other")
    chain = identities["p256"].chain_path
    settings: dict[str, Any] = {
        "listeners": [
            listener(name, [chain], [upstream.address], address=f"127.0.0.1:{port}")
            for name, port in zip(names, ports, strict=False)
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 2,
        "limits": {"drain_timeout": "1s"},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def activated(sockets: Sequence[socket.socket], config: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """`offload serve` that inherits these as descriptors 3, 4, …"""
    numbers = [sock.fileno() for sock in sockets]
    assert min(numbers) >= 3 + len(numbers), "one would be overwritten"
    serve = offload_command("serve", "--config", str(config))
    return subprocess.Popen(
        [sys.executable, "-c", LAST_STEP, ",".join(map(str, numbers)), *serve],
        env=child_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=numbers,
    )  # fmt: skip


@contextlib.contextmanager
def stopped_at_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM in the end; it exits with code 0."""
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        process.terminate()
        code = process.wait(STOP_TIMEOUT)
    assert code == 0


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Two that listen, on descriptors that are not those they are passed on."""
    made = [listening() for _ in range(8)]
    try:
        yield made[-2:]
    finally:
        for sock in made:
            sock.close()


def patient(port: int) -> socket.socket:
    """A connection that waits as long as a service may take to start."""
    sock = connect_tcp(port)
    sock.settimeout(START_TIMEOUT)
    return sock


def served(port: int, context: ssl.SSLContext) -> bool:
    """Whether a client gets an answer."""
    with TlsClient(patient(port), context) as client:
        client.handshake()
        return client.get("/").status == 200


def test_clients_wait_for_the_service(
    sockets: list[socket.socket],
    identities: Identities,
    upstream: Upstream,
    any_version: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    """All workers share the socket, no node has it, and it outlives the service: nobody is refused in between."""
    sock, port = sockets[0], sockets[0].getsockname()[1]
    config = write(tmp_path / "offload.yaml", upstream, identities, port)
    for _ in range(2):
        early = patient(port)  # there is no service yet
        with (tmp_path / "log").open("wb") as log:
            process = activated([sock], config, log)
            with stopped_at_end(process), TlsClient(early, any_version) as client:
                client.handshake()
                assert client.get("/").status == 200
                assert all(served(port, any_version) for _ in range(6))
                children = {pid: command_line(pid) for pid in children_of(process.pid)}
                (node,) = [pid for pid, line in children.items() if b"hsm.node.main" in line]
                assert inode_of(sock) in files_of(process.pid)
                assert inode_of(sock) not in files_of(node)


def inode_of(sock: socket.socket) -> str:
    """How `/proc/PID/fd` shows a socket."""
    return f"socket:[{os.fstat(sock.fileno()).st_ino}]"


def files_of(pid: int) -> set[str]:
    """What a process has open; skips the test where nobody may look."""
    try:
        return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except PermissionError:
        pytest.skip("only root may look into a process that forbids dumps")


def command_line(pid: int) -> bytes:
    """Of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_systemd_socket_activate(
    identities: Identities, upstream: Upstream, any_version: ssl.SSLContext, tmp_path: Path
) -> None:
    """Where systemd is installed: its own tool starts the service with the first client."""
    if (tool := shutil.which("systemd-socket-activate")) is None:
        pytest.skip("systemd is not installed")
    with free_port() as port, (tmp_path / "log").open("wb") as log:
        config = write(tmp_path / "offload.yaml", upstream, identities, port)
        settings = [
            f"--setenv={name}" for name in ("PATH", "PYTHONPATH", "HOME") if name in child_environment()
        ]
        process = subprocess.Popen(
            [tool, f"--listen=127.0.0.1:{port}", *settings, *offload_command("serve", "--config", str(config))],
            env=child_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        with stopped_at_end(process):
            eventually(lambda: accepts(port), "the tool listens")
            assert served(port, any_version)


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_socket_of_no_listener_is_named(
    sockets: list[socket.socket], identities: Identities, upstream: Upstream, tmp_path: Path
) -> None:
    """It would listen and never be answered: that is a mistake, told in one line."""
    ports = [sock.getsockname()[1] for sock in sockets]
    config = write(tmp_path / "offload.yaml", upstream, identities, ports[0])
    with (tmp_path / "log").open("w+b") as log:
        assert activated(sockets, config, log).wait(STOP_TIMEOUT) == 2
        log.seek(0)
        said = log.read().decode()
    assert said == (
        f"error: LISTEN_FDS: socket 'other' on 127.0.0.1:{ports[1]} belongs to no listener; "
        "give a listener that address, or take it out of the .socket unit\n"
    )
