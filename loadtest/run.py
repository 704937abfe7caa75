"""Carries a scenario out against a server, and says what became of it, as a table and as JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest import scrape
from loadtest.figures import machine_facts
from loadtest.generate.fleet import Fleet, OnReport
from loadtest.generate.records import Record, Summary, summarise
from loadtest.generate.schedule import expected, length
from loadtest.scenario import Scenario

LATE = 0.02
"""A load client whose lag has a p99 above so many seconds was the limit itself."""


@dataclass(frozen=True, slots=True)
class Server:
    """What is loaded: any TLS server; `admin` is the admin address of a proxy of ours, or empty."""

    name: str
    host: str
    port: int
    admin: str = ""


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase of a scenario: arrivals a second that were asked for (on average), and what came of them."""

    name: str
    asked: float
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {"name": self.name, "asked": self.asked, **self.summary.to_json()}


@dataclass
class RunResult:
    """One run of a scenario. `stages` is where the time of handshakes went, if the proxy is ours."""

    scenario: Scenario
    server: Server
    facts: dict[str, str]
    started: str
    processes: int
    client_cpu_seconds: float
    phases: list[PhaseResult]
    seconds: list[Summary]
    total: Summary
    stages: list[scrape.Stage] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    @property
    def client_late(self) -> bool:
        """Whether the load client did not keep up with its timetable: then it was the limit."""
        return self.total.lag.p99 > LATE

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "tool": "offload-load",
            "started": self.started,
            "facts": self.facts,
            "scenario": self.scenario.model_dump(mode="json"),
            "server": asdict(self.server),
            "client": {
                "processes": self.processes,
                "cpu_seconds": self.client_cpu_seconds,
                "late": self.client_late,
            },
            "phases": [phase.to_json() for phase in self.phases],
            "seconds": [second.to_json() for second in self.seconds],
            "total": self.total.to_json(),
            "stages": [asdict(stage) for stage in self.stages],
            "counted": self.counted,
        }


def by_phase(scenario: Scenario, factor: float, records: Sequence[Record]) -> list[PhaseResult]:
    """The records, cut where the phases of the scenario meet."""
    results, begin = [], 0.0
    for settings, phase in zip(scenario.phases, scenario.timetable(factor), strict=True):
        end = begin + phase.seconds
        asked = expected([phase]) / phase.seconds
        results.append(PhaseResult(settings.name, asked, summarise(records, begin, end)))
        begin = end
    return results


def by_second(records: Sequence[Record], seconds: float) -> list[Summary]:
    """The records, cut at each full second."""
    return [summarise(records, second, min(second + 1, seconds)) for second in range(int(-(-seconds // 1)))]


def run(
    scenario: Scenario,
    server: Server,
    *,
    factor: float = 1.0,
    processes: int = 1,
    seed: int = 1,
    on_report: OnReport | None = None,
) -> RunResult:
    """Carry a scenario out, its rates multiplied by `factor`. Raises LoadTestError."""
    seconds = length(scenario.timetable(factor))
    order = scenario.order(server.host, server.port, factor=factor, seed=seed)
    started = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    before = scrape.metrics(server.admin) if server.admin else scrape.Metrics()
    with Fleet(order, processes, on_report or (lambda _count, _latencies: None)) as fleet:
        fleet.begin()
        records = fleet.wait(order.longest)
        cpu_seconds = fleet.cpu_seconds
    after = scrape.metrics(server.admin) if server.admin else before
    return RunResult(
        scenario=scenario,
        server=server,
        facts=machine_facts(server.name),
        started=started,
        processes=processes,
        client_cpu_seconds=cpu_seconds,
        phases=by_phase(scenario, factor, records),
        seconds=by_second(records, seconds),
        total=summarise(records, 0.0, seconds),
        stages=scrape.stages(before, after),
        counted=scrape.told(before, after),
    )
