"""Carries a scenario out against a server, and says what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hsm.errors import ConfigurationError
from loadtest.events import Happened, carry_out
from loadtest.figures import Figure
from loadtest.generate.fleet import Fleet, OnReport, ignore
from loadtest.generate.records import Record, Summary, course, stretch_length, summarise
from loadtest.generate.schedule import expected, length
from loadtest.growth import Growth
from loadtest.scenario import Scenario
from loadtest.targets.agreement import HOST
from loadtest.targets.cluster import Cluster
from loadtest.targets.lab import Lab
from loadtest.verdict import Span, judge
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


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the arrivals by itself: those of a kind of clients, or before, during and after events."""

    name: str
    summary: Summary


@dataclass(frozen=True)
class RunResult:
    """One run of a scenario: in all, by phase, and its course second by second (`records.course`).

    `observed` is what the server told of itself, if it is a proxy of ours. `clients` are the kinds of
    clients, if there are several, `stretches` before, during and after what `happened`; `figures`
    have a bar for each thing that the scenario expects.
    """

    scenario: Scenario
    processes: int
    client_cpu_seconds: float
    phases: list[PhaseResult]
    course: list[Summary]
    total: Summary
    observed: Observed | None = None
    clients: list[Part] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)
    stretches: list[Part] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether all is as the scenario expects."""
        return all(figure.verdict != "missed" for figure in self.figures)

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
            "clients": [asdict(part) for part in self.clients],
            "happened": [event._asdict() for event in self.happened],
            "stretches": [asdict(part) for part in self.stretches],
            "figures": [asdict(figure) for figure in self.figures],
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


def by_client(scenario: Scenario, records: Sequence[Record], seconds: float) -> list[Part]:
    """The records of each kind of clients; none where there is one kind only."""
    if len(scenario.clients) == 1:
        return []
    return [
        Part(client.name, summarise([record for record in records if record.kind == kind], 0.0, seconds))
        for kind, client in enumerate(scenario.clients)
    ]


def around_events(
    scenario: Scenario,
    factor: float,
    records: Sequence[Record],
    happened: Sequence[Happened],
    growth: int | None,
) -> tuple[list[Part], list[Figure]]:
    """The arrivals that are judged before, during and after what happened, and beside what is expected of them.

    `growth` is that of the workers' memory, in bytes, if they are ours.
    """
    judged = [record for record in records if record.kind in scenario.judged]
    phases = zip(scenario.phases, scenario.timetable(factor), strict=True)
    span = Span.of([(settings.name, phase.seconds) for settings, phase in phases], happened)
    parts = [Part(name, summarise(judged, *edge)) for name, edge in span.stretches.items()]
    return parts, judge(scenario.expect, judged, span, happened=happened, growth=growth)


@contextlib.contextmanager
def started(scenario: Scenario) -> Iterator[tuple[Server, Cluster]]:
    """The cluster that a scenario asks for, as long as the context lasts. Raises LoadTestError."""
    with Lab() as lab, Cluster(lab, scenario.cluster) as cluster:
        yield Server(str(scenario.cluster), HOST, cluster.port, cluster.proxy.admin), cluster


def run(
    scenario: Scenario,
    server: Server,
    cluster: Cluster | None = None,
    *,
    factor: float = 1.0,  # multiplies its rates
    processes: int = 1,
    seed: int = 1,
    on_report: OnReport = ignore,
) -> RunResult:
    """Carry a scenario out. Raises LoadTestError; ConfigurationError when it has events, but no `cluster`."""
    if scenario.events and cluster is None:
        raise ConfigurationError("events: happen to a cluster that is started for them: leave out --target")
    seconds = length(scenario.timetable(factor))
    order = scenario.order(server.host, server.port, factor=factor, seed=seed)
    with (
        Fleet(order, processes, on_report) as fleet,
        Watch(server.admin, stretch_length(seconds)) as watch,
        Growth(cluster.proxy.workers() if cluster else ()) as growth,
    ):
        fleet.begin()
        happened = carry_out(scenario.events, cluster, fleet.start) if cluster else []
        records = fleet.wait(order.longest)
    stretches, figures = around_events(scenario, factor, records, happened, growth.bytes if cluster else None)
    return RunResult(
        scenario=scenario,
        processes=processes,
        client_cpu_seconds=fleet.cpu_seconds,
        phases=by_phase(scenario, factor, records),
        course=course(records, seconds),
        total=summarise(records, 0.0, seconds),
        observed=watch.observed(fleet.start),
        clients=by_client(scenario, records, seconds),
        happened=happened,
        stretches=stretches,
        figures=figures,
    )
