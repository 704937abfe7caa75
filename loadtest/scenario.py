"""Scenario files: what load is made, as YAML.

arrivals: poisson
phases:
  - {name: steady, duration: 20s, rate: 200}
  - {name: ramp, duration: 30s, rate: 200, end_rate: 800}
  - {name: crowd, duration: 5s, rate: 800, burst: 300}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from hsm import config
from hsm.config import Duration, Section
from hsm.errors import ConfigurationError
from loadtest.generate.connections import Target
from loadtest.generate.generator import MOST_ARRIVALS, Order
from loadtest.generate.schedule import Phase, expected, length
from loadtest.targets.agreement import CIPHER, POLICY, SMALL_PATH

SHIPPED = Path(__file__).parent / "scenarios"
"""Scenarios that come with the tool: named without a path."""
LONGEST = 3600.0
"""Seconds that a scenario may take."""

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


class Scenario(Section):
    """A load: when clients arrive, and what each of them does."""

    description: str = Field("", description="What it is to show, for people.")
    arrivals: Literal["poisson", "even"] = Field(
        "poisson", description="Independent of each other, as many clients are, or at even distances."
    )
    phases: list[PhaseSettings] = Field(min_length=1, max_length=100)
    resumed: float = Field(
        0.0, ge=0, le=1, description="Share of connections that resume a session, once servers gave some."
    )
    requests: int = Field(
        1, ge=0, le=1_000_000, description="Requests on each connection, one after another."
    )
    path: str = Field(SMALL_PATH, pattern=r"^/[!-~]*$", description="What is asked for.")
    policy: str = Field(
        POLICY, description="Security policy of s2n-tls for the clients; a dated one never changes."
    )
    cipher: str = Field(CIPHER, description="Cipher suite that must be agreed on; empty allows any.")
    server_name: str = Field("localhost", description="Name that clients ask for (SNI).")
    timeout: Duration = Field(10.0, gt=0, description="Time for a handshake, and for each request.")
    most_open: PositiveInt = Field(8000, le=60_000, description="Connections open at a time in one process.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError("phases: a name stands twice")
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
        target = Target(
            port=port, host=host, requests=self.requests, path=self.path, policy=self.policy,
            cipher=self.cipher, server_name=self.server_name, timeout=self.timeout,
        )  # fmt: skip
        poisson = self.arrivals == "poisson"
        return Order(
            target=target, phases=self.timetable(factor), poisson=poisson, seed=seed, resumed=self.resumed,
            most_open=self.most_open,
        )  # fmt: skip


def load(name: str) -> Scenario:
    """A scenario by its path, or one of `SHIPPED` by its name. Raises ConfigurationError."""
    path = Path(name)
    if not path.suffix and not path.exists():
        path = SHIPPED / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise ConfigurationError(f"{name}: no such scenario; give a file, or one of {known}")
    return config.load(path, Scenario)
