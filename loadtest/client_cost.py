"""What a signature costs the client's process: python -m loadtest.client_cost [--rounds R] [--seconds S]

`hsm.client.ClusterClient` alone, its signatures not verified (cryptography takes 97 µs for P-256,
whoever asks), against a node in another process that answers at once. CPU time is getrusage(2)'s.
"""

from __future__ import annotations

import resource
import statistics
import sys
from typing import Annotated

import typer
import uvloop

from hsm import bench
from hsm.connect import connect
from hsm.errors import ConfigurationError
from hsm.options import Link
from hsm.signing import SCHEMES
from loadtest.figures import Bar, Figure, machine_facts
from loadtest.instant_node import SKI
from loadtest.targets.lab import Lab, LoadTestError, accepts_unix

BAR = 15_000
IN_FLIGHT = (64, 8, 1)
"""Signatures asked for at a time; the bar is for the first, as a busy worker has them.

The fewer, the fewer share a wake-up and a system call: one alone is mostly the price of those.
"""
_SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(node: str, in_flight: int, rounds: int, seconds: float) -> list[float]:
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


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds measured, after one to warm up.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Length of a round.")] = 1.0,
) -> None:
    """Say how many signatures a second of CPU is enough for."""
    try:
        with Lab() as lab:
            path = lab.directory / "instant.sock"
            server = lab.start("instant", [sys.executable, "-m", "loadtest.instant_node", str(path)])
            server.wait_until(lambda: accepts_unix(path))
            found = {
                in_flight: uvloop.run(measure(f"unix:{path}", in_flight, rounds, seconds))
                for in_flight in IN_FLIGHT
            }
    except (LoadTestError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    for key, value in machine_facts("none").items():
        print(f"{key}: {value}")
    for in_flight, rates in found.items():
        rate, name = statistics.median(rates), f"signatures a second of CPU, {in_flight} in flight"
        bar = Bar(BAR, at_most=False) if in_flight == IN_FLIGHT[0] else None
        print(f"- {Figure(name, rate, '', rate, bar=bar)}")
        print(f"  {1e6 / rate:.1f} µs a signature; rounds: {min(rates):,.0f} to {max(rates):,.0f}")


if __name__ == "__main__":
    app()
