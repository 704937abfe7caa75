"""Scenario files: what load is made, as YAML.

arrivals: poisson
phases:
  - {name: steady, duration: 20s, rate: 200}
  - {name: ramp, duration: 30s, rate: 200, end_rate: 800}
  - {name: crowd, duration: 5s, rate: 800, burst: 300}
clients:
  - {name: browser, share: 4, resumed: 0.7, requests: 20}
  - {name: download, path: /large}
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from hsm import config
from hsm.config import Duration, Section
from hsm.errors import ConfigurationError
from loadtest.events import EventSettings
from loadtest.generate.generator import MOST_ARRIVALS, Order
from loadtest.generate.schedule import Phase, expected, length
from loadtest.generate.target import Target
from loadtest.targets.agreement import POLICY_TLS12, SMALL_PATH
from loadtest.targets.cluster import ClusterSettings
from loadtest.verdict import Expectations

SHIPPED = Path(__file__).parent / "scenarios"
"""Scenarios that come with the tool: named without a path."""
LONGEST = 3600.0
"""Seconds that a scenario may take."""

S = TypeVar("S", bound=Section)
Rate = Annotated[float, Field(ge=0, le=100_000)]


class PhaseSettings(Section):
    """A stretch of the load; the next begins where it ends."""

    name: str = Field(min_length=1, max_length=32, description="Name in the results.")
    duration: Duration = Field(gt=0, description="How long it takes.")
    rate: Rate = Field(description="Arrivals a second.")
    end_rate: Rate | None = Field(None, description="The rate changes evenly to this one.")
    burst: int = Field(0, ge=0, le=100_000, description="Arrivals that come all at once when it begins.")

    def phase(self, factor: float) -> Phase:
        """As the timetable has it, with all rates multiplied."""
        end_rate = None if self.end_rate is None else self.end_rate * factor
        return Phase(self.duration, self.rate * factor, end_rate, round(self.burst * factor))


class ClientSettings(Section):
    """A kind of client: what each of them does."""

    name: str = Field("client", min_length=1, max_length=32, description="Name in the results.")
    share: float = Field(1.0, gt=0, description="How many of all clients are such, as a weight.")
    tls: Literal["1.2", "1.3"] = Field(
        "1.3", description="Newest version that it knows; with 1.3, all agree on one cipher suite."
    )
    resumed: float = Field(
        0.0, ge=0, le=1, description="Share of these that resume a session, once servers gave some."
    )
    requests: int = Field(
        1, ge=0, le=1_000_000, description="Requests on each connection, one after another."
    )
    path: str = Field(SMALL_PATH, pattern=r"^/[!-~]*$", description="What is asked for.")
    server_name: str = Field(
        "localhost",
        description="Name that is asked for (SNI); in a cluster of ours also `rsa2048.localhost`, or another "
        "of its keys, for a signature by that key.",
    )
    timeout: Duration = Field(10.0, gt=0, description="Time for a handshake, and for each request.")
    hold: Duration = Field(0.0, description="The connection stays open for so long after its requests.")
    bytes_per_second: float = Field(
        0.0, ge=0, description="It sends and receives so slowly; 0 is as fast as it can."
    )
    again: bool = Field(
        False,
        description="As soon as it is done it comes again, until the load ends: a closed loop of so many clients.",
    )
    judged: bool = Field(True, description="Whether `expect` is about these.")

    def target(self, host: str, port: int) -> Target:
        """What a generator is told of it."""
        settings = self.model_dump(exclude={"name", "tls", "judged"})
        if self.tls == "1.2":
            settings |= {"policy": POLICY_TLS12, "cipher": ""}
        return Target(host=host, port=port, **settings)


class Load(Section):
    """When clients arrive, and what each of them does."""

    description: str = Field("", description="What it is to show, for people.")
    arrivals: Literal["poisson", "even"] = Field(
        "poisson", description="Independent of each other, as many clients are, or at even distances."
    )
    phases: list[PhaseSettings] = Field(min_length=1, max_length=100)
    clients: list[ClientSettings] = Field(
        default_factory=lambda: [ClientSettings()],
        min_length=1,
        max_length=20,
        description="The kinds of clients; one that makes a full handshake and a small request if left out.",
    )
    most_open: PositiveInt = Field(8000, le=60_000, description="Connections open at a time in one process.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for key, parts in (("phases", self.phases), ("clients", self.clients)):
            if len({part.name for part in parts}) < len(parts):
                raise ValueError(f"{key}: a name stands twice")
        if length(self.timetable()) > LONGEST:
            raise ValueError(f"phases: longer than {LONGEST:g} s together")
        if expected(self.timetable()) > MOST_ARRIVALS:
            raise ValueError(f"phases: more than {MOST_ARRIVALS:,} arrivals together")
        return self

    def timetable(self, factor: float = 1.0) -> tuple[Phase, ...]:
        """The phases, with all rates multiplied by `factor`."""
        return tuple(phase.phase(factor) for phase in self.phases)

    def order(self, host: str, port: int, *, factor: float = 1.0, seed: int = 1) -> Order:
        """What generators are told to do against a server."""
        targets = tuple(client.target(host, port) for client in self.clients)
        return Order(
            targets=targets, phases=self.timetable(factor), poisson=self.arrivals == "poisson", seed=seed,
            most_open=self.most_open,
        )  # fmt: skip


class Scenario(Load):
    """A load, what is loaded, what happens to that meanwhile, and what clients may notice of it."""

    cluster: ClusterSettings = Field(
        default_factory=ClusterSettings, description="What is loaded if no server is named."
    )
    events: list[EventSettings] = Field(
        default_factory=list, max_length=100, description="What happens to that cluster meanwhile."
    )
    expect: Expectations = Field(default_factory=Expectations, description="What clients may notice at most.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for event in self.events:
            if unknown := set(event.nodes) - set(self.cluster.names):
                raise ValueError(f"events: no node of the cluster is named {min(unknown)}")
            if event.at >= length(self.timetable()):
                raise ValueError(f"events: {event} comes after the end of the load")
        if self.expect.event_within is not None and not self.events:
            raise ValueError("expect.event_within: there are no events")
        return self

    @property
    def judged(self) -> Collection[int]:
        """The kinds of clients that are judged, by their place in the list."""
        return {index for index, client in enumerate(self.clients) if client.judged}


def load(name: str) -> Scenario:
    """A scenario by its path, or one of `SHIPPED` by its name. Raises ConfigurationError."""
    return load_file(name, SHIPPED, Scenario)


def load_file(name: str, shipped: Path, model: type[S]) -> S:
    """What a file says, given by its path, or by its name if it is one of a directory.

    Raises ConfigurationError.
    """
    path = Path(name)
    if not path.suffix and not path.exists():
        path = shipped / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
            kind = shipped.name.removesuffix("s")
            raise ConfigurationError(f"{name}: no such {kind}; give a file, or one of {known}")
    return config.load(path, model)
