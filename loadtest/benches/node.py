"""One PKCS#11 node beside a bare loop of C_Sign with as many threads, and on signatures of 5 ms.

Sides take turns, so that what else the machine does hits both. The bare loop (`bare_sign.c`) has the
machine to itself, while the node shares it with its client: what that takes is noted.
"""

from __future__ import annotations

import resource
import secrets
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from hsm import keyless
from loadtest import procfs
from loadtest.figures import Bar, Figure, Findings, compare
from loadtest.stats import Sample
from loadtest.targets.lab import Lab, LoadTestError, require
from loadtest.targets.pkcs11 import compile_slowtoken, softhsm_module
from loadtest.targets.proxy import Node, start_token_node

CONCURRENCY = 64
THREADS = (1, 2)
BARS = {"p256": 0.8, "rsa2048": 0.95}
"""At least such a share of the bare loop's signatures a second, by kind of key."""
SECONDS, SLOW_SECONDS = 0.4, 2.0
"""Of a round on the module itself, and on one that takes 5 ms a signature."""
_TOKEN = "bench"
_OPCODES = {"p256": 0x15, "rsa2048": 0x35}
_KEY_TYPES = {"p256": "EC:prime256v1", "rsa2048": "rsa:2048"}
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Token:
    """A SoftHSM2 token with one key of each kind, and the module to reach it through."""

    module: Path
    slow_module: Path
    bare: Path
    pin: str
    pin_file: Path
    environment: dict[str, str]

    def uri(self, module: Path) -> str:
        """The token through a module."""
        return f"pkcs11:token={_TOKEN}?module-path={module}&pin-source=file:{self.pin_file}"


def make_token(lab: Lab) -> Token:
    """A fresh token and the compiled helpers. Raises MissingToolError or LoadTestError."""
    compiler = require("cc", "apt-get install gcc libc6-dev")
    util = require("softhsm2-util", "apt-get install softhsm2")
    tool = require("pkcs11-tool", "apt-get install opensc")
    directory, pin = lab.directory, secrets.token_hex(8)
    (directory / "tokens").mkdir(mode=0o700)
    (directory / "softhsm2.conf").write_text(
        f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    token = Token(
        module=softhsm_module(),
        slow_module=compile_slowtoken(lab, directory),
        bare=directory / "bare_sign",
        pin=pin,
        pin_file=directory / "pin",
        environment={
            "SOFTHSM2_CONF": str(directory / "softhsm2.conf"),
            "SLOWTOKEN_MODULE": str(softhsm_module()),
            "HSM_STATE_DIRECTORY": str(directory),
        },
    )
    token.pin_file.touch(0o600)
    token.pin_file.write_text(pin)
    lab.run([compiler, "-O2", "-o", str(token.bare), str(_HERE / "bare_sign.c"), "-ldl", "-lpthread"])
    label = ["--label", _TOKEN, "--pin", pin, "--so-pin", secrets.token_hex(8)]
    lab.run([util, "--init-token", "--free", *label], token.environment)
    for number, (kind, key_type) in enumerate(_KEY_TYPES.items(), 1):
        options = ["--key-type", key_type, "--label", kind, "--id", f"{number:02}"]
        login = ["--module", str(token.module), "--token-label", _TOKEN, "--login", "--pin", pin]
        lab.run([tool, *login, "--keypairgen", *options], token.environment)
    return token


def bare(
    lab: Lab, token: Token, module: Path, kind: str, threads: int, seconds: float, delay_us: int = 0
) -> tuple[float, float]:
    """The C loop's signatures a second, and the median seconds of a call."""
    arguments = [str(token.bare), str(module), _TOKEN, token.pin, kind, str(threads), str(seconds)]
    output = lab.run(arguments, {**token.environment, "SLOWTOKEN_SIGN_US": str(delay_us)})
    rate, median = output.split()
    return float(rate), float(median) / 1e6


def start_node(lab: Lab, token: Token, module: Path, sessions: str, delay_us: int = 0) -> Node:
    """A node on the token, ready."""
    environment = {**token.environment, "SLOWTOKEN_SIGN_US": str(delay_us)}
    return start_token_node(lab, f"n{len(lab.servers)}", token.uri(module), environment, sessions)


class Client:
    """A client as cheap as it can be, for it shares the machine with the node."""

    def __init__(self, node: Node, kind: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(node.socket))
        self._rest = b""
        opcode = _OPCODES[kind]
        self._socket.sendall(keyless.encode_keys_request(0))
        (message,) = keyless.Decoder().feed(self._socket.recv(65536))
        keys, _ = keyless.decode_keys_response(message)
        ski = next(ski for ski, opcodes in keys.items() if opcode in opcodes)
        self._frames = [
            keyless.encode(id, opcode, bytes([id]) * 32, ski=ski, remaining_ms=10_000)
            for id in range(CONCURRENCY)
        ]

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def saturate(self, seconds: float) -> float:
        """Keep CONCURRENCY requests in flight; signatures a second."""
        self._socket.sendall(b"".join(self._frames))
        count, frames, send = 0, self._frames, self._socket.sendall
        start = time.perf_counter()
        end = start + seconds
        while time.perf_counter() < end:
            ids = self._answers()
            count += len(ids)
            send(b"".join([frames[id] for id in ids]))
        elapsed = time.perf_counter() - start
        outstanding = CONCURRENCY
        while outstanding:
            outstanding -= len(self._answers())
        return count / elapsed

    def paced(self, rate: float, seconds: float) -> list[float]:
        """A request each 1/rate seconds, whatever the answers; seconds from sending to answer."""
        sent: dict[int, float] = {}
        latencies: list[float] = []
        start = time.perf_counter()
        total = int(rate * seconds)
        number = 0
        while number < total or sent:
            due = start + number / rate
            wait = due - time.perf_counter()
            if number < total and wait <= 0:
                id = number % CONCURRENCY
                sent[id] = time.perf_counter()
                self._socket.sendall(self._frames[id])
                number += 1
                continue
            self._socket.settimeout(wait if number < total else 20)
            try:
                answered = self._answers()
            except TimeoutError:
                continue
            now = time.perf_counter()
            latencies += [now - sent.pop(id) for id in answered]
        self._socket.settimeout(20)
        return latencies

    def _answers(self) -> list[int]:
        """The ids of at least one answer. Raises LoadTestError for an error answer."""
        ids: list[int] = []
        while not ids:
            received = self._socket.recv(1 << 18)
            if not received:
                raise LoadTestError("the node closed the connection")
            data, offset = self._rest + received, 0
            while len(data) - offset >= 8:
                end = offset + 8 + int.from_bytes(data[offset + 2 : offset + 4], "big")
                if end > len(data):
                    break
                if data[offset + 11] != keyless.OP_RESPONSE:
                    raise LoadTestError(f"the node answered with an error: {data[offset:end].hex()}")
                ids.append(int.from_bytes(data[offset + 4 : offset + 8], "big"))
                offset = end
            self._rest = data[offset:]
        return ids


def _cpu(pid: int) -> tuple[int, int]:
    """CPU nanoseconds of a process's first thread (a node's event loop) and of its others (sessions)."""
    first = procfs.thread_cpu_ns(pid, pid)
    return first, procfs.cpu_ns(pid) - first


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Throughput:
    """Rounds of a node, and of the bare loop with as many threads, on the same key."""

    def __init__(self) -> None:
        self.node: list[Sample] = []
        self.bare: list[Sample] = []
        self._costs: list[tuple[float, float, float, float]] = []

    def measure(
        self, lab: Lab, token: Token, kind: str, threads: int, seconds: float, pid: int, client: Client
    ) -> None:
        """One round of each, and what CPU it took."""
        spent = _children_cpu()
        loop, _ = bare(lab, token, token.module, kind, threads, seconds)
        alone = (_children_cpu() - spent) / (loop * seconds)
        before, mine = _cpu(pid), time.process_time()
        node = client.saturate(seconds)
        count = node * seconds
        main, sessions = ((new - old) / count / 1e9 for new, old in zip(_cpu(pid), before, strict=True))
        self._costs.append((alone, sessions, main, (time.process_time() - mine) / count))
        self.node.append(Sample(count, seconds))
        self.bare.append(Sample(loop * seconds, seconds))

    def costs(self) -> str:
        """CPU a signature, on all sides. The bare loop has the machine to itself; the node shares it."""
        alone, sessions, main, client = (
            statistics.median(side) * 1e6 for side in zip(*self._costs, strict=True)
        )
        return (
            f"CPU a signature: bare {alone:.0f} us; "
            f"node's sessions {sessions:.0f} us, its loop {main:.0f} us; the client beside it {client:.0f} us"
        )


def beside_bare_loop(
    lab: Lab, token: Token, kind: str, bar: float, threads: int, rounds: int
) -> tuple[Figure, str]:
    """Node throughput beside the bare loop's, and what CPU a signature took."""
    node = start_node(lab, token, token.module, str(threads))
    client = Client(node, kind)
    client.saturate(0.5)  # all sessions open
    found = Throughput()
    for _ in range(rounds):
        found.measure(lab, token, kind, threads, SECONDS, node.server.pid, client)
    client.close()
    node.server.stop()
    title, goal = f"{kind}, {threads} threads", Bar(bar, at_most=False)
    figure = compare(title, "signatures/s", found.node, found.bare, bar=goal)
    return figure, f"{title}: {found.costs()}"


def on_slow_module(lab: Lab, token: Token) -> tuple[list[Figure], str]:
    """On 5 ms signatures: signatures a second at CONCURRENCY, and median added milliseconds at 200/s."""
    node = start_node(lab, token, token.slow_module, "auto", 5000)
    client = Client(node, "p256")
    client.saturate(0.5)
    rate = client.saturate(SLOW_SECONDS)
    client.close()
    node.server.stop()
    node = start_node(lab, token, token.slow_module, "auto", 5000)
    client = Client(node, "p256")
    latencies = client.paced(200, SLOW_SECONDS)
    client.close()
    node.server.stop()
    _, call = bare(lab, token, token.slow_module, "p256", 1, SLOW_SECONDS, 5000)
    added = (statistics.median(latencies) - call) * 1e3
    p99 = statistics.quantiles(latencies, n=100)[98]
    title = f"module that takes 5 ms, {CONCURRENCY} in flight"
    figures = [
        Figure(title, rate, "signatures/s", rate, bar=Bar(1000, at_most=False)),
        Figure("module that takes 5 ms, 200/s: added, median", added, "ms", added, bar=Bar(1.0)),
    ]
    return figures, f"the bare call takes {call * 1e3:.2f} ms; p99 through the node {p99 * 1e3:.2f} ms"


def measure(rounds: int) -> Findings:
    """All of it. Raises LoadTestError."""
    found = Findings("A PKCS#11 node beside a bare loop of C_Sign on the same SoftHSM2 key")
    with Lab() as lab:
        token = make_token(lab)
        for kind, bar in BARS.items():
            for threads in THREADS:
                figure, note = beside_bare_loop(lab, token, kind, bar, threads, rounds)
                found.figures.append(figure)
                found.notes.append(note)
        figures, note = on_slow_module(lab, token)
        found.figures += figures
        found.notes.append(note)
    return found
