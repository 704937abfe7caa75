"""Whether the load client is fit to measure others: its CPU beside `openssl s_time`, and its punctuality."""

from __future__ import annotations

import contextlib
import re
import resource

from loadtest.figures import Bar, Figure, Findings, compare
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Record
from loadtest.generate.schedule import Phase
from loadtest.generate.target import Target
from loadtest.stats import Sample
from loadtest.targets.agreement import CIPHER, HOST
from loadtest.targets.lab import Lab, LoadTestError, free_port, require
from loadtest.targets.sides import ServerSettings, Sides

RATES = (900.0, 300.0)
"""Handshakes a second by a timetable: at the higher one, several share a wake-up of the client."""
SECONDS = 3
"""Of a round; s_time takes whole ones."""
CHEAPER, PUNCTUAL = 2.0, 1.0
"""At least so many times the handshakes of s_time in a second of CPU; at most so many percent off the rate."""
CONCURRENCY = 32
"""Clients without a pause."""


def measure(rounds: int) -> Findings:
    """Both, in so many rounds, the sides by turns. Raises LoadTestError."""
    found = Findings(
        "The load client: handshakes in a second of its CPU beside openssl s_time, and its timetable"
    )
    with Lab() as lab:
        port = Sides(lab).start(ServerSettings(server="nginx")).port
        theirs: list[Sample] = []
        flat_out: list[Sample] = []
        timed: dict[float, list[Sample]] = {rate: [] for rate in RATES}
        for _ in range(rounds):
            theirs.append(s_time(lab, port))
            flat_out.append(_handshakes(port, Phase(SECONDS, 0, burst=CONCURRENCY), again=True))
            for rate in RATES:
                timed[rate].append(_handshakes(port, Phase(SECONDS, rate)))
        # s_time goes as fast as it can; by a timetable the client pays for each wake-up besides.
        title, goal = "handshakes in a second of CPU", Bar(CHEAPER, at_most=False)
        found.figures.append(compare(f"{title}, without a pause", "", flat_out, theirs, bar=goal))
        for rate, samples in timed.items():
            found.figures.append(compare(f"{title}, at {rate:g}/s", "", samples, theirs, bar=goal))
        punctuality(port, found)
    return found


def s_time(lab: Lab, port: int) -> Sample:
    """Handshakes of `openssl s_time`, and the seconds of CPU that they took it. Raises LoadTestError.

    What it takes to start is left out, as it is of the load client.
    """
    openssl = require("openssl", "apt-get install openssl")
    command = [openssl, "s_time", "-new", "-time", str(SECONDS), "-ciphersuites", CIPHER, "-connect"]
    before = _children_cpu()
    with contextlib.suppress(LoadTestError):  # it gives up as soon as it has started: nobody answers
        lab.run([*command, f"{HOST}:{free_port()}"])
    ready = _children_cpu()
    said = lab.run([*command, f"{HOST}:{port}"])
    found = re.search(r"^(\d+) connections in ", said, re.MULTILINE)
    if found is None:
        raise LoadTestError(f"openssl s_time tells of no connections: {said.strip()[-200:]}")
    return Sample(int(found[1]), _children_cpu() - ready - (ready - before))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _handshakes(port: int, phase: Phase, *, again: bool = False) -> Sample:
    target = Target(port=port, requests=0, again=again)
    records, cpu_seconds = _run(Order(targets=(target,), phases=(phase,)))
    return Sample(len(records), cpu_seconds)


def punctuality(port: int, found: Findings) -> None:
    """At half of what clients get who come without a pause."""
    loop = Target(port=port, again=True)
    records, _ = _run(Order(targets=(loop,), phases=(Phase(SECONDS, 0, burst=CONCURRENCY),)))
    capacity = len(records) / SECONDS
    asked, seconds = capacity / 2, 2.0 * SECONDS
    records, _ = _run(Order(targets=(Target(port=port),), phases=(Phase(seconds, asked),)))
    achieved = sum(record.intended + record.total < seconds for record in records) / seconds
    off = abs(achieved / asked - 1) * 100
    title = f"off the rate asked for, at half of capacity ({asked:,.0f}/s)"
    found.figures.append(Figure(title, off, "%", off, bar=Bar(PUNCTUAL)))
    late = sorted(record.lag for record in records)[int(0.99 * len(records))]
    found.notes.append(
        f"half of capacity: connections began late by {late * 1000:.1f} ms at the 99th percentile"
    )


def _run(order: Order) -> tuple[list[Record], float]:
    """Completed connections, and the seconds of CPU that the client used. Raises LoadTestError."""
    with Fleet(order) as fleet:
        fleet.begin()
        records = [record for record in fleet.wait(order.longest) if not record.failed]
        if not records:
            raise LoadTestError("no connection was completed")
        return records, fleet.cpu_seconds
