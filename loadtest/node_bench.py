"""Benches of one PKCS#11 node: python -m loadtest.node_bench [--seconds S] [--rounds R]

- Throughput on SoftHSM2 against a bare C_Sign loop of the same number of threads (`bare_sign.c`).
- Throughput and added latency on slowtoken: SoftHSM2 behind 5 ms of waiting.

Sides take turns, so that what else the machine does hits both; the median round counts.
"""

from __future__ import annotations

import os
import resource
import secrets
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hsm import keyless
from loadtest.lab import Lab, LoadTestError, Server, require
from loadtest.pkcs11 import slowtoken_source, softhsm_module

CONCURRENCY = 64
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
        slow_module=directory / "slowtoken.so",
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
    slow = [compiler, "-shared", "-fPIC", "-O2", "-o", str(token.slow_module), str(slowtoken_source())]
    lab.run([*slow, "-ldl", "-lpthread"])
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


def start_node(lab: Lab, token: Token, module: Path, sessions: str, delay_us: int = 0) -> tuple[Server, Path]:
    """A node on the token, ready; and its socket."""
    path = lab.directory / f"node{len(lab.servers)}.sock"
    command = [sys.executable, "-m", "hsm.cli", "node", "--listen", f"unix:{path}", "--token", "pkcs11"]
    server = lab.start(
        path.stem,
        [*command, "--token-uri", token.uri(module), "--sessions", sessions],
        {**token.environment, "SLOWTOKEN_SIGN_US": str(delay_us)},
    )
    server.wait_until(path.exists)
    return server, path


class Client:
    """A client as cheap as it can be, for it shares the machine with the node."""

    def __init__(self, path: Path, kind: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
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


def _cpu(pid: int) -> tuple[float, float]:
    """CPU seconds of a process's first thread (a node's event loop) and of its others (sessions); proc(5)."""
    ticks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[int(task.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return ticks.pop(pid), sum(ticks.values())


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bench_softhsm(lab: Lab, token: Token, kind: str, threads: int, seconds: float, rounds: int) -> float:
    """Node throughput over the bare loop's, as the median of rounds."""
    server, path = start_node(lab, token, token.module, str(threads))
    client = Client(path, kind)
    client.saturate(0.5)  # all sessions open
    pairs, costs = [], []
    for _ in range(rounds):
        spent = _children_cpu()
        loop, _ = bare(lab, token, token.module, kind, threads, seconds)
        spent = (_children_cpu() - spent) / (loop * seconds)
        before, node = _cpu(server.pid), client.saturate(seconds)
        used = [(new - old) / (node * seconds) for new, old in zip(_cpu(server.pid), before, strict=True)]
        pairs.append((node, loop))
        costs.append((spent, *used))
    client.close()
    server.stop()
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(node / loop for node, loop in pairs)
    alone, main, signing = (statistics.median(side) * 1e6 for side in zip(*costs, strict=True))
    print(f"{kind} {threads} threads: node {ours:,.0f}/s, bare loop {theirs:,.0f}/s, ratio {ratio:.2f}")
    print(f"  CPU a signature: bare {alone:.0f} us; node's sessions {signing:.0f} us, its loop {main:.0f} us")
    return ratio


def bench_slowtoken(lab: Lab, token: Token, seconds: float) -> tuple[float, float]:
    """On 5 ms signatures: signatures a second at CONCURRENCY, and median added seconds at 200/s."""
    server, path = start_node(lab, token, token.slow_module, "auto", 5000)
    client = Client(path, "p256")
    client.saturate(0.5)
    rate = client.saturate(seconds)
    client.close()
    server.stop()
    server, path = start_node(lab, token, token.slow_module, "auto", 5000)
    client = Client(path, "p256")
    latencies = client.paced(200, seconds)
    client.close()
    server.stop()
    _, call = bare(lab, token, token.slow_module, "p256", 1, min(seconds, 2.0), 5000)
    added = statistics.median(latencies) - call
    p99 = statistics.quantiles(latencies, n=100)[98]
    print(f"slowtoken 5 ms: {rate:,.0f}/s at {CONCURRENCY} in flight")
    print(
        f"  at 200/s: bare call {call * 1e3:.2f} ms, added {added * 1e3:.2f} ms (median), p99 {p99 * 1e3:.2f} ms"
    )
    return rate, added


def main(
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="Rounds of each side.")] = 5,
    threads: Annotated[str, typer.Option(help="Numbers of threads, by comma.")] = "1,2",
) -> None:
    """Run all, print figures, and exit with 1 if a bar is missed."""
    missed: list[str] = []
    bars = {"p256": 0.8, "rsa2048": 0.95}
    try:
        with Lab() as lab:
            token = make_token(lab)
            for kind, bar in bars.items():
                missed += [
                    f"{kind} with {count} threads below {bar}"
                    for count in map(int, threads.split(","))
                    if bench_softhsm(lab, token, kind, count, seconds, rounds) < bar
                ]
            rate, added = bench_slowtoken(lab, token, seconds)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if rate < 1000:
        missed.append("slowtoken below 1,000/s")
    if added >= 0.001:
        missed.append("added latency 1 ms or more")
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
