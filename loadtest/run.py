"""Carries a scenario out against a server, and says what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.generate.fleet import Fleet, OnReport
from loadtest.generate.records import Record, Summary, course, stretch_length, summarise
from loadtest.generate.schedule import expected, length
from loadtest.scenario import Scenario
from loadtest.watch import Observed, Watch

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


@dataclass(frozen=True)
class RunResult:
    """One run of a scenario: in all, by phase, and its course second by second (`records.course`).

    `observed` is what the server told of itself, if it is a proxy of ours.
    """

    scenario: Scenario
    processes: int
    client_cpu_seconds: float
    phases: list[PhaseResult]
    course: list[Summary]
    total: Summary
    observed: Observed | None = None

    @property
    def client_late(self) -> bool:
        """Whether the load client did not keep up with its timetable: then it was the limit."""
        return self.total.lag.p99 > LATE

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "scenario": self.scenario.model_dump(mode="json"),
            "processes": self.processes,
            "client_cpu_seconds": self.client_cpu_seconds,
            "client_late": self.client_late,
            "phases": [asdict(phase) for phase in self.phases],
            "course": [asdict(stretch) for stretch in self.course],
            "total": asdict(self.total),
            "observed": None if self.observed is None else asdict(self.observed),
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
    with (
        Fleet(order, processes, on_report or (lambda _count, _latencies: None)) as fleet,
        Watch(server.admin, stretch_length(seconds)) as watch,
    ):
        fleet.begin()
        records = fleet.wait(order.longest)
    return RunResult(
        scenario=scenario,
        processes=processes,
        client_cpu_seconds=fleet.cpu_seconds,
        phases=by_phase(scenario, factor, records),
        course=course(records, seconds),
        total=summarise(records, 0.0, seconds),
        observed=watch.observed(fleet.start),
    )
