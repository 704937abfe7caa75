"""The benches: what Offload costs beside nginx, as figures with their bars.

    python -m loadtest.benches NAME [--rounds N] [--scale 1.0] [--json FILE]

The peer is nginx `stream` with one worker and the key in its memory, the same cipher and the
same upstream. A missed bar is printed, not an error: figures depend on the machine.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from loadtest import procfs
from loadtest.bench import LATENCIES_MS, Bench, Measured, Servers, progress
from loadtest.figures import Bar, Figure, Report, machine_facts
from loadtest.harness import Options, Round, held_connections, settle
from loadtest.slow_signatures import slow_signatures
from loadtest.targets.agreement import LARGE_PATH
from loadtest.targets.lab import Lab, LoadTestError, raise_file_limit
from loadtest.targets.peers import Terminator, nginx_version, start_peer, start_upstream
from loadtest.targets.proxy import Proxy
from loadtest.tls_benches import many_certificates, resumption

CONNECTIONS, CONCURRENCY = 400, 32
"""Of a round of handshakes. Many short rounds: noise of the machine then evens out sooner."""

DOWNLOADS, SMALL_REQUESTS, MANY = 64, 2000, 16
"""Requests of one connection in a round: so many that its handshake is under 2 % of the CPU."""

IDLE_CONNECTIONS = 2000
CHURN_CONNECTIONS = 10_000
CHURN_AT_ONCE = 5000
"""Two files a connection in the worker: below a limit of 20,000 with room to spare."""

LINGER_TIMEOUT = 15.0
CHURN_ROUNDS = 4
"""The difference of the last two counts; those before bring the allocator to its plateau."""


def control(bench: Bench) -> None:
    """nginx against a second nginx: every ratio should be 1, and its spread is the method's error."""
    p256, rsa = bench.credentials("p256"), bench.credentials("rsa2048")
    upstream = start_upstream(bench.lab)
    terminators = [Terminator.in_memory(p256), Terminator.in_memory(rsa)]
    servers = {name: start_peer(bench.lab, name, upstream, terminators) for name in ("first", "second")}
    options: Options = {"connections": bench.work(CONNECTIONS), "concurrency": CONCURRENCY}
    for index, title in enumerate(("P-256", "RSA-2048")):
        both: Servers = {name: (server, server.ports[index]) for name, server in servers.items()}
        found = bench.interleave(both, "handshakes", options)
        bench.add_cpu(f"{title} connection", found, ("first", "second"), of=Round.per_connection)


def handshakes(bench: Bench) -> None:
    """CPU per connection: a full handshake, one small request, close."""
    p256, rsa = bench.credentials("p256"), bench.credentials("rsa2048")
    upstream = start_upstream(bench.lab)
    node = bench.node("a")
    always = bench.proxy("verify-always", [p256, rsa], upstream, node)
    only_rsa = bench.proxy("verify-rsa", [p256], upstream, node, verify="rsa")
    peer = start_peer(bench.lab, "peer", upstream, [Terminator.in_memory(p256), Terminator.in_memory(rsa)])
    servers: Servers = {
        "nginx P-256": (peer, peer.ports[0]),
        "offload P-256": (always, always.ports["p256"]),
        "offload P-256, verify rsa": (only_rsa, only_rsa.ports["p256"]),
        "nginx RSA-2048": (peer, peer.ports[1]),
        "offload RSA-2048": (always, always.ports["rsa2048"]),
    }
    options: Options = {"connections": bench.work(CONNECTIONS), "concurrency": CONCURRENCY}
    found = bench.interleave(servers, "handshakes", options)
    for title, sides, limit in (
        ("P-256, every signature verified", ("offload P-256", "nginx P-256"), 1.1),
        ("P-256, verify_signatures: rsa", ("offload P-256, verify rsa", "nginx P-256"), 0.9),
        ("RSA-2048, every signature verified", ("offload RSA-2048", "nginx RSA-2048"), 0.55),
    ):
        bench.add_cpu(f"connection, {title}", found, sides, of=Round.per_connection, bar=Bar(limit))


def relay(bench: Bench) -> None:
    """CPU per MB of large bodies, and per small request on a kept connection."""
    p256 = bench.credentials("p256")
    upstream = start_upstream(bench.lab)
    proxy = bench.proxy("proxy", [p256], upstream, bench.node("a"))
    peer = start_peer(bench.lab, "peer", upstream, [Terminator.in_memory(p256)])
    servers: Servers = {
        "nginx": (peer, peer.ports[0]),
        "offload": (proxy, proxy.ports["p256"]),
    }
    # One at a time, each request wakes everybody up; of many, a wake-up serves several.
    for at_once in (1, MANY):
        shared: Options = {"connections": at_once, "concurrency": at_once}
        large: Options = {**shared, "path": LARGE_PATH, "requests": bench.work(DOWNLOADS)}
        found = bench.interleave(servers, "download", large)
        title, both = f"MB in bodies of 1 MB, {at_once} at a time", ("offload", "nginx")
        bench.add_cpu(title, found, both, of=Round.per_megabyte, bar=Bar(0.75))
        small: Options = {**shared, "requests": bench.work(SMALL_REQUESTS)}
        found = bench.interleave(servers, "keepalive", small)
        title = f"small keep-alive request, {at_once} at a time"
        bench.add_cpu(title, found, both, of=Round.per_request, bar=Bar(1.25))


def idle(bench: Bench) -> None:
    """Memory of a worker per idle connection, and what many connections leave behind."""
    p256 = bench.credentials("p256")
    upstream = start_upstream(bench.lab)
    node = bench.node("a")
    count = bench.work(IDLE_CONNECTIONS)
    # New servers each: memory that closed connections gave back would be taken again unseen.
    for requests, title in ((0, "idle connection"), (1, "idle connection that made a request")):
        proxy = bench.proxy(f"proxy-{requests}", [p256], upstream, node)
        peer = start_peer(bench.lab, f"peer-{requests}", upstream, [Terminator.in_memory(p256)])
        ours = _idle_kilobytes(proxy, proxy.ports["p256"], count, requests)
        theirs = _idle_kilobytes(peer, peer.ports[0], count, requests)
        name = f"worker memory per {title}, of {count}, upstream socket included"
        bench.report.figures.append(Figure(name, ours, "KB", ours, theirs, bar=Bar(12.0)))
    _leavings(bench, proxy, proxy.ports["p256"])


def _idle_kilobytes(server: Measured, port: int, count: int, requests: int) -> float:
    """KB of worker memory for each of `count` idle connections. Raises LoadTestError."""
    options: Options = {"concurrency": CONCURRENCY, "requests": requests}
    files = _open_files(server)
    with held_connections(port, 100, options):
        pass  # what the first connections allocate is not theirs alone
    _files_after(server, files)
    before = _resident(server)
    with held_connections(port, count, options):
        after, opened = _resident(server), _open_files(server) - files
    # Its own socket and the upstream's: without the second the figure would be of something else.
    if opened < 2 * count:
        raise LoadTestError(f"{opened} open files for {count} idle connections; expected two for each")
    return (after - before) / count / 1024


def _leavings(bench: Bench, proxy: Proxy, port: int) -> None:
    """What rounds of many connections, opened and closed, leave behind in the worker."""
    count = bench.work(CHURN_CONNECTIONS)
    files = _open_files(proxy)
    sizes = []
    rounds = max(2, bench.rounds)
    for number in range(rounds):
        progress(f"connections opened and closed, round {number + 1} of {rounds}")
        for first in range(0, count, CHURN_AT_ONCE):
            with held_connections(port, min(CHURN_AT_ONCE, count - first), {"concurrency": CONCURRENCY}):
                pass
        left = _files_after(proxy, files) - files
        sizes.append(_resident(proxy))
    bench.note("worker memory after each round: " + ", ".join(f"{size / 1e6:.2f} MB" for size in sizes))
    growth = abs(sizes[-1] - sizes[-2]) / 1e6
    bench.report.figures += [
        Figure(f"two further rounds of {count} connections differ by", growth, "MB", growth, bar=Bar(1.0)),
        Figure("open files left behind", left, "files", left, bar=Bar(0)),
    ]


def _resident(server: Measured) -> int:
    workers = server.processes()["worker"]
    settle(workers)
    return sum(procfs.memory(pid).rss for pid in workers)


def _open_files(server: Measured) -> int:
    return sum(procfs.open_files(pid) for pid in server.processes()["worker"])


def _files_after(server: Measured, wanted: int) -> int:
    """Open files when there are `wanted` again, or after 15 s: servers linger on closed connections."""
    deadline = time.monotonic() + LINGER_TIMEOUT
    while (count := _open_files(server)) > wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return count


class Entry(NamedTuple):
    """A bench, and how many rounds it takes for a steady figure (the bars ask for at least 8)."""

    run: Callable[[Bench], None]
    rounds: int


BENCHES = {
    "control": Entry(control, 32),
    "handshakes": Entry(handshakes, 32),
    "slow-signatures": Entry(slow_signatures, 8),
    "relay": Entry(relay, 24),
    "idle": Entry(idle, CHURN_ROUNDS),
    "resumption": Entry(resumption, 16),
    "many-certificates": Entry(many_certificates, 16),
}


class Name(StrEnum):
    """Benches by name."""

    CONTROL = "control"
    HANDSHAKES = "handshakes"
    SLOW_SIGNATURES = "slow-signatures"
    RELAY = "relay"
    IDLE = "idle"
    RESUMPTION = "resumption"
    MANY_CERTIFICATES = "many-certificates"
    ALL = "all"
    """Those that have bars, one after the other."""


app = typer.Typer(add_completion=False)
_LATENCIES = ",".join(f"{latency:g}" for latency in LATENCIES_MS)


@app.command()
def main(
    name: Annotated[Name, typer.Argument(help="Which bench.")],
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Interleaved rounds.")] = None,
    scale: Annotated[float, typer.Option(min=0.001, max=100.0, help="Work per round, as a factor.")] = 1.0,
    latencies: Annotated[
        str, typer.Option(help="Milliseconds of a signature, by comma (slow-signatures).")
    ] = _LATENCIES,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, too.")] = None,
) -> None:
    """Compare Offload with nginx: run one bench and print its figures beside their bars."""
    if json_file is not None and not json_file.parent.is_dir():
        raise typer.BadParameter(f"{json_file.parent} is no directory", param_hint="--json")
    latencies_ms = _milliseconds(latencies)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    raise_file_limit()
    names = [other for other in BENCHES if other != Name.CONTROL] if name is Name.ALL else [name.value]
    reports = []
    for each in names:
        try:
            report = run_bench(each, rounds, scale, latencies_ms)
        except LoadTestError as error:
            print(f"error: {each}: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        report.write(print)
        reports.append(report.to_json())
        if json_file is not None:
            json_file.write_text(json.dumps(reports, indent=2) + "\n")


def _milliseconds(text: str) -> tuple[float, ...]:
    try:
        latencies = tuple(float(part) for part in text.split(","))
    except ValueError:
        latencies = ()
    if not latencies or not all(0 < latency <= 1000 for latency in latencies):
        raise typer.BadParameter(
            f"{text!r} is no list of milliseconds such as {_LATENCIES}", param_hint="--latencies"
        )
    return latencies


def run_bench(
    name: str,
    rounds: int | None = None,
    scale: float = 1.0,
    latencies_ms: Sequence[float] = LATENCIES_MS,
) -> Report:
    """Run one bench. Raises LoadTestError when it can't be run, or its figures would be wrong."""
    entry = BENCHES[name]
    report = Report(name, rounds or entry.rounds, machine_facts(nginx_version()))
    with Lab() as lab:
        try:
            entry.run(Bench(lab, report.rounds, scale, report, latencies_ms))
        except procfs.ProcessGoneError as error:
            raise LoadTestError(f"{error}: {lab.obituary()}") from error
    return report


if __name__ == "__main__":
    app()
