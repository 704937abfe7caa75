"""A TLS load client: many connections on one epoll loop, in a process of its own.

    python -m loadtest.client handshakes --port 8443 --connections 2000 --concurrency 32
    python -m loadtest.client keepalive  --port 8443 --requests 5000
    python -m loadtest.client download   --port 8443 --requests 100 --path /large
    python -m loadtest.client idle       --port 8443 --connections 2000

It prints one line of JSON (`results.LoadResult`). `idle` prints it when all connections are
open, holds them until its standard input ends or says a line, and then prints another: the
`errors` there are connections that the server closed meanwhile.

The loop is closed: a connection that ends makes room for the next (`generator` is the open one).
Nothing hangs: a handshake and each request have a time limit, the whole run has one, and so
many failures end it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from loadtest.generate.connections import Connection, Connections, Target, errno_name
from loadtest.results import Latency, LoadResult
from loadtest.targets.agreement import CIPHER, POLICY, SMALL_PATH


class Mode(StrEnum):
    """What the connections do after the handshake."""

    HANDSHAKES = "handshakes"
    KEEPALIVE = "keepalive"
    DOWNLOAD = "download"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run against `target`; times in seconds.

    It ends after `connections` connections or `duration`, whichever comes first and is not None.
    """

    target: Target
    mode: Mode = Mode.HANDSHAKES
    connections: int | None = 1
    duration: float | None = None
    concurrency: int = 1
    limit: float = 120.0
    max_errors: int = 100


class LoadClient:
    """Runs one plan. `run` opens connections until it is done; `hold` is for idle ones."""

    def __init__(self, plan: Plan) -> None:
        """Raises TLSError for an unknown policy."""
        self.plan = plan
        self._connections = Connections([plan.target], self)
        self._started = self._finished = self._requests = self._body_bytes = 0
        self._errors: Counter[str] = Counter()
        self._negotiated: Counter[str] = Counter()
        self._handshakes: list[float] = []
        self._answers: list[float] = []
        self._start = time.monotonic()
        self._seconds = 0.0

    def run(self) -> None:
        """Carry the plan out. In idle mode the connections stay open."""
        self._start = time.monotonic()
        self._fill()
        while self._connections:
            self._connections.poll(0.25)
            self._expire(time.monotonic())
            self._fill()
        self._seconds = time.monotonic() - self._start

    def hold(self, until: int) -> None:
        """Keep idle connections until the descriptor `until` is readable, or the run's time limit.

        What the server closes or sends meanwhile is counted as an error.
        """
        self._connections.watch(until)
        while time.monotonic() < self._start + self.plan.limit:
            if until in self._connections.poll(1.0):
                break
        self._connections.unwatch(until)

    def close(self) -> None:
        """Close what is open, idle connections with a close_notify, and free everything."""
        self._connections.close()

    def result(self) -> LoadResult:
        """The counts so far."""
        return LoadResult(
            mode=self.plan.mode.value,
            connections=self._finished + self._connections.held,
            requests=self._requests,
            body_bytes=self._body_bytes,
            seconds=self._seconds,
            errors=dict(self._errors),
            negotiated=dict(self._negotiated),
            handshake=Latency.of(self._handshakes),
            request=Latency.of(self._answers),
        )

    def _may_start(self, now: float) -> bool:
        plan = self.plan
        return (
            len(self._connections) < plan.concurrency
            and (plan.connections is None or self._started < plan.connections)
            and now < self._start + plan.limit
            and (plan.duration is None or now < self._start + plan.duration)
            and self._errors.total() < plan.max_errors
        )

    def _fill(self) -> None:
        while self._may_start(now := time.monotonic()):
            self._started += 1
            try:
                self._connections.open(now, now, resume=self.plan.target.resumed > 0)
            except OSError as error:  # no descriptors, no ports
                self._errors[errno_name(error.errno)] += 1

    def _expire(self, now: float) -> None:
        if now >= self._start + self.plan.limit:
            self._connections.fail_all("timeout")
        self._connections.expire(now)

    def established(self, connection: Connection, now: float) -> None:  # noqa: ARG002  # the owner's signature
        """`connections.Owner`: the handshake is complete."""
        tls = connection.tls
        self._handshakes.append(connection.handshake)
        resumed = " resumed" if tls.resumed else ""
        self._negotiated[f"{tls.version} {tls.cipher} {tls.group}{resumed}"] += 1

    def answered(self, connection: Connection, now: float) -> None:
        """`connections.Owner`: a request was answered."""
        self._answers.append(now - connection.began)
        self._requests += 1
        self._body_bytes += connection.reader.body_bytes

    def completed(self, connection: Connection) -> None:  # noqa: ARG002  # the owner's signature
        """`connections.Owner`: all requests are answered."""
        self._finished += 1

    def failed(self, connection: Connection, reason: str) -> None:  # noqa: ARG002  # the owner's signature
        """`connections.Owner`: it came to another end."""
        self._errors[reason] += 1


def run(plan: Plan) -> LoadResult:
    """Carry out a plan in this process; idle connections are closed at once."""
    client = LoadClient(plan)
    try:
        client.run()
        return client.result()
    finally:
        client.close()


def parse_arguments(arguments: list[str]) -> Plan:
    """The plan that a command line asks for. Raises SystemExit as argparse does."""
    # argparse, not typer: a bench starts this process hundreds of times on the cores it measures.
    parser = argparse.ArgumentParser(prog="python -m loadtest.client", description="TLS load client")
    parser.add_argument("mode", type=Mode, choices=list(Mode))
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--connections", type=int, help="how many in all (1 unless --duration is given)")
    parser.add_argument("--duration", type=float, help="seconds after which no connection is started")
    parser.add_argument("--concurrency", type=int, default=1, help="connections at a time")
    parser.add_argument("--requests", type=int, help="requests on each connection (idle: 0, else 1)")
    parser.add_argument("--path", default=SMALL_PATH)
    parser.add_argument("--policy", default=POLICY, help="s2n policy; a dated one never changes")
    parser.add_argument("--cipher", default=CIPHER, help="must be negotiated; empty: any")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a handshake, a request")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for the whole run")
    parser.add_argument("--max-errors", type=int, default=100, help="so many failures end the run")
    parser.add_argument(
        "--resume", type=int, choices=(0, 1), default=0, help="1: resume the sessions of those before"
    )
    options = vars(parser.parse_args(arguments))
    if options["connections"] is None and options["duration"] is None:
        options["connections"] = 1
    if options["requests"] is None:
        options["requests"] = 0 if options["mode"] is Mode.IDLE else 1
    target = {name: options.pop(name) for name in ("port", "requests", "path", "policy", "cipher", "timeout")}
    hold = math.inf if options["mode"] is Mode.IDLE else 0.0
    return Plan(Target(**target, resumed=options.pop("resume"), hold=hold), **options)


def main(arguments: list[str]) -> int:
    """Run the command line, print JSON; 0 unless connections failed (then 1)."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    client = LoadClient(parse_arguments(arguments))
    gc.freeze()  # what is there by now stays: not worth looking at again
    try:
        client.run()
        if client.plan.mode is Mode.IDLE:
            print(json.dumps(client.result().to_json()), flush=True)
            client.hold(sys.stdin.fileno())
        print(json.dumps(client.result().to_json()), flush=True)
        return 1 if client.result().failed else 0
    finally:
        client.close()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
