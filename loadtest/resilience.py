"""What clients notice when nodes of the cluster fail: three software nodes, the proxy, and faults.

    python -m loadtest.resilience [--only NAME] [--rate 300] [--docs docs/resilience.md]

Clients arrive by a timetable, whatever happens (`generator`); each makes a full handshake and one
small request. A missed bar is printed, not an error: figures depend on the machine.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loadtest import overload, scrape, verdict
from loadtest.bench import progress
from loadtest.faults import FAULTS, Fault
from loadtest.figures import machine_facts
from loadtest.generate.connections import Target
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import summarise
from loadtest.generate.schedule import Phase
from loadtest.resilience_page import write_page
from loadtest.run import LATE
from loadtest.targets.cluster import LATENCY, Cluster
from loadtest.targets.lab import Lab, LoadTestError, raise_file_limit
from loadtest.verdict import Finding

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run_fault(cluster: Cluster, fault: Fault, rate: float) -> Finding:
    """Strike the cluster while it is loaded, repair it, and judge. Raises LoadTestError."""
    finding = _new_finding(fault.name, fault.title, f"{rate:g} handshakes/s")
    length = verdict.duration(fault)
    target = Target(port=cluster.port, resumed=fault.resumed)
    order = Order(targets=(target,), phases=(Phase(length, rate),))
    before = scrape.metrics(cluster.proxy.admin)
    with Fleet(order) as fleet:
        fleet.begin()
        _sleep_until(fleet.start + verdict.WARM_UP + verdict.BEFORE)
        struck = time.monotonic() - fleet.start
        fault.strike(cluster)
        _sleep_until(fleet.start + struck + fault.seconds)
        fault.repair(cluster)
        restored = time.monotonic() - fleet.start
        records = fleet.wait(length)
    finding.stretches = verdict.stretches(records, struck, restored, length)
    finding.figures = verdict.judge(fault, records, struck, restored)
    finding.notes.append(f"the fault lasted {restored - struck:.1f} s")
    if fault.resumed:
        whole = summarise(records, verdict.WARM_UP, length)
        finding.notes.append(f"{whole.resumed:,} of {whole.arrivals:,} clients resumed a session")
    if failed := verdict.failures(records):
        finding.notes.append(f"clients saw: {verdict.reasons(failed)}")
    lag = summarise(records, verdict.WARM_UP, length).lag
    if lag.p99 > LATE:
        finding.notes.append(f"the load client itself was late: p99 {lag.p99 * 1000:.0f} ms")
    finding.notes += scrape.told(before, scrape.metrics(cluster.proxy.admin))
    return finding


def _run_fault(fault: Fault) -> Callable[[float], Finding]:
    def run(rate: float) -> Finding:
        with Lab() as lab, Cluster(lab, {"latency": f"{LATENCY * 1000:g}ms"}) as cluster:
            return run_fault(cluster, fault, rate)

    return run


def _run_overload(_rate: float) -> Finding:
    finding = _new_finding(overload.NAME, overload.TITLE, overload.LOAD)
    with Lab() as lab, Cluster(lab, overload.EMULATION) as cluster:
        overload.run(cluster, finding)
    return finding


SCENARIOS: dict[str, Callable[[float], Finding]] = {
    **{fault.name: _run_fault(fault) for fault in FAULTS},
    overload.NAME: _run_overload,
}


def _new_finding(name: str, title: str, load: str) -> Finding:
    return Finding(name, title, load, f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", machine_facts("none"))


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _say(finding: Finding) -> None:
    progress(f"{finding.name}: {finding.title}, at {finding.load}: {'met' if finding.met else 'MISSED'}")
    for name, stretch in finding.stretches.items():
        progress(
            f"  {name}: {stretch.arrivals} arrivals, {stretch.failed} failed, "
            f"p50 {stretch.p50 * 1000:.1f} ms, p99 {stretch.p99 * 1000:.1f} ms"
        )
    for line in (*map(str, finding.figures), *finding.notes):
        progress(f"  {line}")


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SCENARIOS)}; repeatable.")] = None,
    rate: Annotated[float, typer.Option(min=10, help="Full handshakes a second.")] = 300.0,
    results: Annotated[
        Path | None, typer.Option(help="Keep results in this JSON file, with those of earlier runs.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the page with all results here.")] = None,
) -> None:
    """Break nodes under load and say what clients noticed."""
    if unknown := [name for name in only or () if name not in SCENARIOS]:
        print(f"error: --only: {unknown[0]!r} is none of {', '.join(SCENARIOS)}", file=sys.stderr)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that labs are left in order
    raise_file_limit()
    try:
        findings = _read(results)
        for name in only or SCENARIOS:
            findings[name] = SCENARIOS[name](rate)
            _say(findings[name])
            if results is not None:
                results.write_text(json.dumps([found.to_json() for found in findings.values()], indent=1))
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if docs is not None:
        write_page(docs, [findings[name] for name in SCENARIOS if name in findings])


def _read(results: Path | None) -> dict[str, Finding]:
    """Results of earlier runs, by scenario. Raises LoadTestError when the file holds something else."""
    if results is None or not results.exists():
        return {}
    try:
        read = [Finding.from_json(data) for data in json.loads(results.read_text())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadTestError(f"{results}: holds no results of this tool; choose another file") from error
    return {finding.name: finding for finding in read}


if __name__ == "__main__":
    app()
