"""The same load for several proxies, in interleaved rounds: what it costs each, and how they compare.

Rounds of the sides alternate, so that whatever else the machine does falls on all of them; one round
of each warms it up and is discarded. A proxy that is not installed is named, never silently left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from loadtest import procfs
from loadtest.figures import Bar, Figure
from loadtest.figures import compare as compare_samples
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Latency, Record
from loadtest.generate.schedule import length
from loadtest.scenario import ClientSettings, Load, load_file
from loadtest.stats import Ratio, Sample, mean, ratio
from loadtest.targets.agreement import HOST
from loadtest.targets.lab import Lab, LoadTestError, MissingToolError
from loadtest.targets.sides import ServerSettings, Sides, Started

SHIPPED = Path(__file__).parent / "comparisons"
"""Comparisons that come with the tool: named without a path."""

_SPOILED = 0.02
"""So large a share of failures, and the CPU of a connection is no figure that holds."""


class SideSettings(ServerSettings):
    """One of the proxies, how it is loaded, and what it is held against."""

    share: float = Field(1.0, gt=0, le=1, description="Of the rates, for this side.")
    clients: list[ClientSettings] | None = Field(
        None, min_length=1, max_length=20, description="What clients do here, if not as on other sides."
    )
    against: str | None = Field(None, description="The side that it is held against.")
    at_most: float | None = Field(None, gt=0, description="Goal for the ratio to that.")
    at_least: float | None = Field(None, gt=0, description="Goal for the ratio to that.")
    memory_at_most: float | None = Field(None, gt=0, description="Goal for the ratio of workers' memory.")


class ComparisonSettings(Load):
    """A load for several proxies."""

    of: Literal["connection", "request", "megabyte", "rate"] = Field(
        "connection",
        description="What goals are about: the CPU of a worker for each connection, request, or 10^6 bytes of "
        "bodies; or the handshakes completed a second.",
    )
    rounds: PositiveInt = Field(5, le=1000, description="Of each side, after one to warm up.")
    sides: dict[str, SideSettings] = Field(min_length=1, max_length=20, description="By name.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, side in self.sides.items():
            if side.against is not None and side.against not in self.sides:
                raise ValueError(f"sides.{name}: held against {side.against!r}, which is no side")
            if side.against is None and (side.at_most or side.at_least or side.memory_at_most):
                raise ValueError(f"sides.{name}: has a goal, but is held against nothing")
            resuming = any(client.resumed for client in side.clients or self.clients)
            if resuming and not side.tickets:
                raise ValueError(
                    f"sides.{name}: clients resume sessions, but it gives no tickets; add tickets: true"
                )
        return self

    def order_for(self, side: SideSettings, port: int, factor: float) -> Order:
        """What generators do to a side."""
        load = self if side.clients is None else self.model_copy(update={"clients": side.clients})
        return load.order(HOST, port, factor=factor * side.share)


def load(name: str) -> ComparisonSettings:
    """A comparison by its path, or one of `SHIPPED` by its name. Raises ConfigurationError."""
    return load_file(name, SHIPPED, ComparisonSettings)


@dataclass(frozen=True)
class Compared:
    """What became of one side. CPU is in microseconds for each unit of the comparison (`rate`: a connection).

    `cpu_us` is that of all its processes, `rounds` the same of each round, `to_reference` its ratio to
    that of the side `reference`; None for one that is held against nothing. `rate` counts handshakes.
    """

    name: str
    version: str
    negotiated: str
    reference: str | None
    share: float
    connections: int
    resumed: int
    cpu_us: float
    rounds: list[float]
    to_reference: Ratio | None
    worker_us: float
    worker_mb: float
    rate: float
    handshake: Latency
    failures: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what could not be: a line for each proxy that is missing.

    `figures` have the goals.
    """

    description: str
    unit: str
    sides: list[Compared]
    missing: list[str]
    figures: list[Figure]

    @property
    def cpu_unit(self) -> str:
        """What CPU is counted for."""
        return "connection" if self.unit == "rate" else self.unit

    @property
    def terms(self) -> list[str]:
        """The versions of the proxies, and what they agree on with `openssl s_client`, each once."""
        return list(dict.fromkeys(f"{one.version}: {one.negotiated}" for one in self.sides))

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass
class Measured:
    """All rounds of one side: CPU nanoseconds of each group of processes, and what clients saw."""

    name: str
    settings: SideSettings
    started: Started
    negotiated: str = ""
    cpu: dict[str, list[Sample]] = field(default_factory=dict)
    rates: list[Sample] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    memory: int = 0
    """Bytes, of the worker."""

    def against(self, reference: Measured | None) -> Compared:
        """What became of it, beside the side that it is held against."""
        completed = [record.handshake for record in self.records if not record.failed]
        failures = Counter(record.outcome for record in self.records if record.failed)
        tree = self.cpu["tree"]
        return Compared(
            name=self.name,
            version=self.started.version,
            negotiated=self.negotiated,
            reference=self.settings.against,
            share=self.settings.share,
            connections=len(self.records),
            resumed=sum(record.resumed for record in self.records),
            cpu_us=mean(tree) / 1000,
            rounds=[mean([sample]) / 1000 for sample in tree],
            to_reference=None if reference is None else ratio(tree, reference.cpu["tree"]),
            worker_us=mean(self.cpu["worker"]) / 1000,
            worker_mb=self.memory / 1e6,
            rate=mean(self.rates),
            handshake=Latency.of(completed),
            failures=dict(failures.most_common()),
        )

    def figures(self, reference: Measured, unit: str) -> list[Figure]:
        """One for each goal."""
        found, settings = [], self.settings
        for limit, at_most in ((settings.at_most, True), (settings.at_least, False)):
            if limit is None:
                continue
            bar = Bar(limit, at_most=at_most)
            if unit == "rate":
                found.append(compare_samples(self.name, "handshakes/s", self.rates, reference.rates, bar=bar))
                continue
            both = self.cpu["worker"], reference.cpu["worker"]
            found.append(compare_samples(f"{self.name}: {unit}", "µs", *both, scale=1e-3, bar=bar))
        if settings.memory_at_most is not None:
            ours, theirs = self.memory / 1e6, reference.memory / 1e6
            bar = Bar(settings.memory_at_most)
            found.append(Figure(f"{self.name}: worker's memory", ours / theirs, "MB", ours, theirs, bar=bar))
        return found


def judged(description: str, unit: str, sides: Sequence[Measured], missing: list[str]) -> Comparison:
    """All sides, each held against its reference, if that is there."""
    by_name = {one.name: one for one in sides}
    pairs = [(one, by_name.get(one.settings.against or "")) for one in sides]
    figures = [figure for one, other in pairs if other is not None for figure in one.figures(other, unit)]
    return Comparison(description, unit, [one.against(other) for one, other in pairs], missing, figures)


def compare(
    settings: ComparisonSettings,
    *,
    factor: float,
    rounds: int | None,
    processes: int,
    progress: Callable[[str], None],
) -> Comparison:
    """Start every proxy there is, load them in turn, and stop them. Raises LoadTestError."""
    rounds = rounds or settings.rounds
    with Lab() as lab:
        found, missing = start_all(Sides(lab), settings.sides)
        try:
            for number in range(rounds + 1):
                progress(f"round {number} of {rounds}" if number else "warm-up")
                for measured in found if number % 2 else reversed(found):
                    order = settings.order_for(measured.settings, measured.started.port, factor)
                    load_round(measured, order, processes, settings.of, keep=number > 0)
            for measured in found:
                workers = measured.started.processes()["worker"]
                measured.memory = sum(procfs.memory(pid).rss for pid in workers)
        except procfs.ProcessGoneError as error:
            raise LoadTestError(f"{error}: {lab.obituary()}") from error
    return judged(settings.description, settings.of, found, missing)


def start_all(sides: Sides, wanted: Mapping[str, SideSettings]) -> tuple[list[Measured], list[str]]:
    """The sides that run, and a line for each whose program is missing. Raises LoadTestError."""
    found, missing = [], []
    for name, settings in wanted.items():
        try:
            started = sides.start(settings)
        except MissingToolError as error:
            missing.append(f"{name}: {error}")
            continue
        found.append(Measured(name, settings, started, str(sides.negotiated(started))))
    if not found:
        raise LoadTestError(f"nothing to compare: {'; '.join(missing)}")
    return found, missing


def load_round(measured: Measured, order: Order, processes: int, unit: str, *, keep: bool) -> None:
    """One round of a side; `keep` is False for one that only warms it up."""
    groups = measured.started.processes()
    with Fleet(order, processes) as fleet:
        procfs.settle(groups["tree"])
        before = {name: procfs.total_cpu_ns(pids) for name, pids in groups.items()}
        fleet.begin()
        records = fleet.wait(order.longest)
    procfs.settle(groups["tree"])
    used = {name: procfs.total_cpu_ns(pids) - before[name] for name, pids in groups.items()}
    if measured.started.processes() != groups:
        raise LoadTestError(f"{measured.name}: a process was replaced during the round")
    completed = [record for record in records if not record.failed]
    if unit != "rate" and len(completed) < (1 - _SPOILED) * len(records):
        reasons = Counter(record.outcome for record in records if record.failed)
        raise LoadTestError(f"{measured.name}: of {len(records)} clients there failed {dict(reasons)}")
    if not keep:
        return
    work = units(unit, completed)
    for name, nanoseconds in used.items():
        measured.cpu.setdefault(name, []).append(Sample(nanoseconds, work))
    seconds = length(order.phases)
    in_time = sum(record.intended + record.handshake < seconds for record in completed)
    measured.rates.append(Sample(in_time, seconds))
    measured.records += records


def units(unit: str, completed: Sequence[Record]) -> float:
    """How much work connections were, in the unit of a comparison."""
    if unit == "request":
        return sum(record.requests for record in completed)
    if unit == "megabyte":
        return sum(record.body_bytes for record in completed) / 1e6
    return len(completed)
