"""A node's life as a real process: its start, its end, and what changes it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm import keyless, start
from hsm.metrics import NODE_SPECS, MetricStore
from hsm.node.server import NodeServer
from hsm.node.software import SoftwareToken, load_keys
from hsm.signing import PrivateKey, ski_of
from tests.support.hsm_support import (
    KeylessClient,
    NodeProcess,
    free_port,
    get,
    hsm_command,
    require,
    run,
    running_nodes,
    sample,
)

DIGEST = hashlib.sha256(b"what a handshake signs").digest()
P256 = 0x15


@pytest.fixture(scope="module")
def p256(keys: dict[str, PrivateKey]) -> bytes:
    """The SKI of the P-256 key."""
    return ski_of(keys["p256"].public_key())


def error_code(message: keyless.Message) -> int:
    """The code of an error answer."""
    assert message.opcode == keyless.OP_ERROR
    return message.payload[0]


def test_the_admin_address_may_be_tcp(run_directory: Path, key_directory: Path) -> None:
    """Prometheus scrapes a node over TCP."""
    with (
        free_port() as port,
        NodeProcess(
            f"unix:{run_directory}/a.sock", "--keys", str(key_directory), "--admin", f"127.0.0.1:{port}"
        ) as node,
    ):
        node.ready()
        command = [require("curl"), "-sSf", f"http://127.0.0.1:{port}/metrics"]
        scraped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "# TYPE hsm_node_sign_seconds histogram" in scraped


def test_a_node_runs_from_a_file(run_directory: Path, key_directory: Path, p256: bytes) -> None:
    """`--config` takes the same settings from YAML, with paths relative to the file."""
    (run_directory / "keys").symlink_to(key_directory)
    config = run_directory / "node.yaml"
    config.write_text("{name: f, listen: 'unix:f.sock', keys: keys, emulate: {latency: 1ms}}\n")
    command = hsm_command("node", "--config", str(config))
    with NodeProcess(f"unix:{run_directory}/f.sock", command=command) as node:
        assert node.ready().wait_event("node_ready")["node"] == "f"
        with KeylessClient.connect(node.address) as client:
            assert client.ask(P256, DIGEST, ski=p256).opcode == keyless.OP_RESPONSE


def test_the_socket_of_a_dead_node_is_replaced(run_directory: Path, key_directory: Path) -> None:
    """After a kill the file is still there; the next node takes its place."""
    with running_nodes(run_directory, key_directory, a="") as (killed,):
        killed.signal(signal.SIGKILL)
        killed.wait()
        assert Path(killed.address.path).is_socket()
        with (
            running_nodes(run_directory, key_directory, a="") as (fresh,),
            KeylessClient.connect(fresh.address) as client,
        ):
            assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG


def test_sigterm_finishes_what_is_pending(run_directory: Path, key_directory: Path, p256: bytes) -> None:
    """Requests under way are answered, then the socket is removed and the node ends with 0."""
    with (
        running_nodes(run_directory, key_directory, a="latency=300ms") as (node,),
        KeylessClient.connect(node.address) as client,
    ):
        client.send(*(keyless.encode(id, P256, DIGEST, ski=p256) for id in range(5)))
        assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG  # so the node has the others too
        node.signal(signal.SIGTERM)
        assert {client.receive().id for _ in range(5)} == set(range(5))
        assert client.is_closed()
        assert node.wait() == 0
        assert not Path(node.address.path).exists()
        assert "Traceback" not in node.log


def test_a_close_sends_what_is_answered(run_directory: Path, key_directory: Path, p256: bytes) -> None:
    """An answer of the very turn of the loop in which the node closes a connection still goes out."""
    path = str(run_directory / "a.sock")

    async def main() -> None:
        token = SoftwareToken(load_keys(key_directory))
        server = NodeServer(token, MetricStore(NODE_SPECS), print, lambda _uid: True)
        listening = await asyncio.get_running_loop().create_unix_server(server.connection, path)
        reader, writer = await asyncio.open_unix_connection(path)
        pong = keyless.encode(1, keyless.OP_PONG)
        writer.write(keyless.encode(1, keyless.OP_PING))
        assert await reader.readexactly(len(pong)) == pong
        (connection,) = server.clients
        connection.data_received(keyless.encode(2, P256, DIGEST, ski=p256))
        connection.close()
        (answer,) = keyless.Decoder().feed(await reader.read())
        assert (answer.id, answer.opcode) == (2, keyless.OP_RESPONSE)
        writer.close()
        listening.close()
        await asyncio.gather(writer.wait_closed(), listening.wait_closed())

    run(main())


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What a service manager reads of the processes started meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_node_ends_at_once(
    run_directory: Path, key_directory: Path, manager: socket.socket, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end a node with 0, its sockets are gone, and a service manager was told."""
    admin = run_directory / "admin.sock"
    listen = f"unix:{run_directory}/a.sock"
    with NodeProcess(listen, "--keys", str(key_directory), "--admin", f"unix:{admin}") as node:
        node.ready().signal(number)
        assert node.wait() == 0
        assert list(run_directory.iterdir()) == []
        assert node.wait_event("node_stopped")
    assert manager.recv(4096).startswith(b"READY=1\nSTATUS=serves; keys: ")
    assert manager.recv(4096).startswith(b"STOPPING=1\n")


def test_a_node_ends_with_its_parent(
    run_directory: Path, key_directory: Path, manager: socket.socket
) -> None:
    """A node started by a supervisor does not outlive it, however that ends; only the parent is a service."""
    listen = f"unix:{run_directory}/a.sock"
    script = (
        "import os, subprocess, sys\n"
        "node = subprocess.Popen([*sys.argv[1:], str(os.getpid())])\n"
        "node.wait()\n"
    )
    settings = run_directory / "settings"
    settings.write_text(json.dumps({"listen": listen, "keys": str(key_directory)}))
    node = start.command("hsm.node.main", str(settings), "info")
    with (
        NodeProcess(listen, command=[sys.executable, "-c", script, *node]) as parent,
        KeylessClient.connect(parent.ready().address) as client,
        orphan_of(client),
    ):
        parent.signal(signal.SIGKILL)
        assert client.is_closed()
        assert parent.wait_event("node_stopped")
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


@contextlib.contextmanager
def orphan_of(client: KeylessClient) -> Iterator[None]:
    """Ends the process at the other end of a unix socket after the block, if it is still there."""
    credentials = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    process = os.pidfd_open(struct.unpack("3i", credentials)[0])
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def test_sigusr1_reads_the_emulation_again(run_directory: Path, key_directory: Path, p256: bytes) -> None:
    """The file's new content holds from the signal on; a broken file changes nothing."""
    file = run_directory / "emulate.yaml"
    file.write_text("{}\n")
    with (
        NodeProcess(
            f"unix:{run_directory}/a.sock", "--keys", str(key_directory), "--emulate-file", str(file)
        ) as node,
        KeylessClient.connect(node.ready().address) as client,
    ):
        assert client.ask(P256, DIGEST, ski=p256).opcode == keyless.OP_RESPONSE
        file.write_text("error_rate: 1.0\n")
        node.signal(signal.SIGUSR1)
        assert node.wait_event("emulation_changed")["error_rate"] == 1.0
        assert error_code(client.ask(P256, DIGEST, ski=p256)) == keyless.ERR_INTERNAL
        file.write_text("error_rate: [\n")
        node.signal(signal.SIGUSR1)
        assert str(file) in node.wait_event("emulation_unchanged")["error"]
        assert error_code(client.ask(P256, DIGEST, ski=p256)) == keyless.ERR_INTERNAL


def test_expired_work_is_dropped_and_counted(run_directory: Path, key_directory: Path, p256: bytes) -> None:
    """Work that nobody will wait for is refused at once; the rest is served in turn."""
    admin = f"{run_directory}/admin.sock"
    with (
        NodeProcess(
            f"unix:{run_directory}/a.sock", "--keys", str(key_directory), "--admin", f"unix:{admin}",
            "--emulate", "latency=200ms,parallel=1",
        ) as node,
        KeylessClient.connect(node.ready().address) as client,
    ):  # fmt: skip
        client.send(
            keyless.encode(1, P256, DIGEST, ski=p256, remaining_ms=5000),
            keyless.encode(2, P256, DIGEST, ski=p256, remaining_ms=50),
            keyless.encode(3, P256, DIGEST, ski=p256, remaining_ms=5000),
            keyless.encode(4, P256, DIGEST, ski=p256),
            keyless.encode(5, P256, DIGEST, ski=p256, remaining_ms=0),
        )
        answers = [client.receive() for _ in range(5)]
        assert [(a.id, a.opcode) for a in answers] == [(2, 0xFF), (5, 0xFF), (1, 0xF0), (3, 0xF0), (4, 0xF0)]
        metrics = get("/metrics", admin)
        assert sample(metrics, "hsm_node_dropped_total") == 2
        assert sample(metrics, "hsm_node_sign_seconds_count") == 3
        assert sample(metrics, "hsm_node_sign_seconds_sum") > 0.9 * (0.2 + 0.4 + 0.6)
