"""What a signature costs the client's process.

`hsm.client.ClusterClient` alone, its signatures not verified (cryptography takes 97 µs for P-256,
whoever asks), against a node in another process that answers at once. CPU time is getrusage(2)'s.
"""

from __future__ import annotations

import resource
import statistics
import sys

import uvloop

from hsm import bench
from hsm.connect import connect
from hsm.options import Link
from hsm.signing import SCHEMES
from loadtest.benches.instant_node import SKI
from loadtest.figures import Bar, Figure, Findings
from loadtest.targets.lab import Lab, LoadTestError, accepts_unix

BAR = 15_000
SECONDS = 1.0
"""Of a round."""
IN_FLIGHT = (64, 8, 1)
"""Signatures asked for at a time; the bar is for the first, as a busy worker has them.

The fewer, the fewer share a wake-up and a system call: one alone is mostly the price of those.
"""
_SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def signatures(node: str, in_flight: int, rounds: int, seconds: float) -> list[float]:
    """Signatures for each second of this process's CPU, in each round after one to warm up.

    Raises LoadTestError when some failed, ConfigurationError when the node does not answer.
    """
    cluster = await connect(Link().target(node), "never")
    found = []
    try:
        for _ in range(rounds + 1):
            before = cpu_seconds()
            result = await bench.run_bench(cluster, SKI, _SCHEME, in_flight, seconds)
            if result.errors:
                raise LoadTestError(f"signatures failed: {dict(result.errors)}")
            found.append(len(result.latencies) / (cpu_seconds() - before))
    finally:
        await cluster.close()
    return found[1:]


def measure(rounds: int) -> Findings:
    """Signatures for each second of CPU. Raises LoadTestError or ConfigurationError."""
    found = Findings("What a signature costs the client of the cluster, against a node that answers at once")
    with Lab() as lab:
        path = lab.directory / "instant.sock"
        server = lab.start("instant", [sys.executable, "-m", "loadtest.benches.instant_node", str(path)])
        server.wait_until(lambda: accepts_unix(path))
        for in_flight in IN_FLIGHT:
            rates = uvloop.run(signatures(f"unix:{path}", in_flight, rounds, SECONDS))
            rate, name = statistics.median(rates), f"signatures a second of CPU, {in_flight} in flight"
            bar = Bar(BAR, at_most=False) if in_flight == IN_FLIGHT[0] else None
            found.figures.append(Figure(name, rate, "", rate, bar=bar))
            spread = f"rounds: {min(rates):,.0f} to {max(rates):,.0f}"
            found.notes.append(f"{in_flight} in flight: {1e6 / rate:.1f} µs a signature; {spread}")
    return found
