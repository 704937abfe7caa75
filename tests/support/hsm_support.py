"""Real nodes, real clients and real certificates for tests of signatures and of what uses them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from prometheus_client.parser import text_string_to_metric_families

from hsm import keyless
from hsm.config import Address, LinkTLS
from hsm.signing import PrivateKey
from tests.support.forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40.0
"""Seconds after which a wait is a failure; far above what a loaded machine needs."""

T = TypeVar("T")


def missing(what: str) -> NoReturn:
    """Skip the test; under CI a missing real component is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI=true, so this is a failure)")
    pytest.skip(what)


def require(program: str) -> str:
    """The path of a real program that the test talks to."""
    path = shutil.which(program)
    return path if path is not None else missing(f"{program} is not installed")


def run(
    main: Coroutine[Any, Any, T],
    *,
    debug: bool = False,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> T:
    """Run a coroutine to its end; fail if it leaves a task or an unhandled exception behind."""

    async def limited() -> T:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        async with asyncio.timeout(LIMIT):
            result = await main
        assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left"
        assert complaints == []
        return result

    with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
        return runner.run(limited())


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that nobody else is given until the end of the block.

    It stays bound without listening: a server that sets SO_REUSEADDR may listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def new_key(kind: str) -> PrivateKey:
    """A fresh key: `p256`, `p384`, `p521`, or `rsa2048` and the like."""
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    if kind in curves:
        return ec.generate_private_key(curves[kind])
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def write_key(directory: Path, name: str, key: Any, *, mode: int = 0o600, password: bytes = b"") -> Path:
    """Put a private key into a PEM file, with the rights that a key file should have."""
    path = directory / name
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
        )
    )
    path.chmod(mode)
    return path


def write_public_key(directory: Path, name: str, key: PrivateKey) -> Path:
    """Put a key's public half into a PEM file."""
    path = directory / name
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(encoding, form))
    return path


class Authority:
    """A certificate authority of one test, and the link certificates that it issues."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(self._certificate(self._name, self._key.public_key(), is_ca=True))

    def issue(self, name: str) -> LinkTLS:
        """A certificate for one end of a link, good for `name`, localhost and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.DNSName(name), x509.DNSName("localhost")]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        path = self._directory / f"{name}.crt"
        alternative = x509.SubjectAlternativeName(names)
        path.write_bytes(self._certificate(subject, key.public_key(), alternative, is_ca=False))
        return LinkTLS(
            ca=self.ca, certificate=path, key=write_key(self._directory, f"{name}.key", key), server_name=None
        )

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *extensions: x509.ExtensionType,
        is_ca: bool,
    ) -> bytes:
        now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder(
                self._name, subject, key, x509.random_serial_number(), now - day, now + day
            )
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def child_environment() -> dict[str, str]:
    """For children: they import this checkout wherever they are started, and compile it once, not each time."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": path}


def hsm_command(*arguments: str) -> list[str]:
    """The command line of `hsm …` in this interpreter."""
    return [sys.executable, "-m", "hsm.cli", *arguments]


def run_hsm(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `hsm …` to its end."""
    return run_forked(
        "hsm.cli", *arguments, environment=child_environment(), directory=directory, timeout=LIMIT
    )


class NodeProcess:
    """A real `hsm node` process, and what it logs."""

    def __init__(self, listen: str, *options: str, command: list[str] | None = None) -> None:
        """Start it; `ready()` waits until it serves. `command` replaces the whole command line."""
        self.listen = listen
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command or [*hsm_command("node"), "--listen", listen, *options],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def address(self) -> Address:
        """Where it listens, as its clients take it."""
        if self.listen.startswith("unix:"):
            return Address(path=self.listen.removeprefix("unix:"))
        host, _, port = self.listen.removeprefix("tls://").rpartition(":")
        return Address(host=host, port=int(port))

    @property
    def log(self) -> str:
        """All it has logged until now."""
        with self._changed:
            return "".join(self._lines)

    def ready(self) -> Self:
        """Wait until it serves."""
        self.wait_event("node_ready")
        return self

    def wait_event(self, event: str) -> dict[str, Any]:
        """The first log entry of this name; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._find(event) is not None, LIMIT)
            entry = self._find(event)
        if entry is None:
            pytest.fail(f"the node did not log {event}, but:\n{self.log}")
        return entry

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait(LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _find(self, event: str) -> dict[str, Any] | None:
        for line in self._lines:
            entry: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if entry.get("event") == event:
                return entry
        return None


@contextlib.contextmanager
def running_nodes(directory: Path, keys: Path, **emulate: str) -> Iterator[list[NodeProcess]]:
    """Nodes on unix sockets in `directory`, one for each name, with its `--emulate` text."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                NodeProcess(
                    f"unix:{directory}/{name}.sock", "--name", name, "--keys", str(keys), "--emulate", text
                )
            )
            for name, text in emulate.items()
        ]
        yield [node.ready() for node in nodes]


class NodePool:
    """Nodes that many tests share, because starting one costs half a second of CPU time.

    For tests that neither end a node nor change it.
    """

    def __init__(self, directory: Path, keys: Path) -> None:
        self._directory = directory
        self._keys = keys
        self._nodes: dict[tuple[str, int], NodeProcess] = {}

    def get(self, *emulations: str) -> list[NodeProcess]:
        """A node for each `--emulate` text, never the same twice in a call."""
        wanted = [(text, emulations[:index].count(text)) for index, text in enumerate(emulations)]
        for text, number in wanted:
            if (text, number) not in self._nodes:
                listen = f"unix:{self._directory}/{len(self._nodes)}.sock"
                options = ["--keys", str(self._keys), "--emulate", text]
                self._nodes[text, number] = NodeProcess(listen, *options)
        return [self._nodes[which].ready() for which in wanted]

    def close(self) -> None:
        """End them all."""
        for node in self._nodes.values():
            node.__exit__()


class KeylessClient:
    """A plain blocking Keyless client over any connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        self.socket = sock
        self._decoder = keyless.Decoder()
        self._received: list[keyless.Message] = []

    @classmethod
    def connect(
        cls, address: Address, tls: ssl.SSLContext | None = None, *, server_name: str = "localhost"
    ) -> Self:
        """To a node's unix socket, or by TLS."""
        if address.path:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(address.path)
            except BaseException:
                sock.close()
                raise
            return cls(sock)
        plain = socket.create_connection((address.host, address.port), LIMIT)
        if tls is None:
            return cls(plain)
        with plain:  # wrap_socket takes the descriptor over
            return cls(tls.wrap_socket(plain, server_hostname=server_name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Send frames, or whatever bytes they are."""
        self.socket.sendall(b"".join(frames))

    def receive(self) -> keyless.Message:
        """The next message. Raises EOFError when the connection is closed instead."""
        while not self._received:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._received += self._decoder.feed(data)
        return self._received.pop(0)

    def ask(self, opcode: int, payload: bytes = b"", **items: Any) -> keyless.Message:
        """Send one request and take the next answer."""
        self.send(keyless.encode(7, opcode, payload, **items))
        return self.receive()

    def is_closed(self) -> bool:
        """Whether the other side ends the connection without a further byte; waits for that."""
        try:
            return self.socket.recv(1) == b""
        except (ConnectionResetError, ssl.SSLError):
            return True


class _UnixHTTPConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(self._path)


def get(path: str, socket_path: str) -> str:
    """The body of an HTTP resource on a unix socket."""
    with contextlib.closing(_UnixHTTPConnection(socket_path)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return body


def sample(exposition: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels; 0 if there are none."""
    return sum(
        found.value
        for family in text_string_to_metric_families(exposition)
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )
