"""What is to be planned, as YAML.

hsm: cloudhsm-hsm2m.medium
key: p256
load: {connections: 4000, resumed: 60%, growth: 1.5}
objective: {p99: 50ms, errors: 0.1%}
zones: 3
survive: zone
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from hsm import config
from hsm.cluster_config import ClusterPolicy
from hsm.config import Duration, Section
from hsm.errors import ConfigurationError
from loadtest.capacity import Objective
from loadtest.plan import profile
from loadtest.plan.profile import HsmProfile, KeyName

MOST_CONNECTIONS = 50_000.0
"""New connections a second, growth included, that are simulated in bearable time."""


def _parse_share(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a share; write one like 0.1%") from error


Share = Annotated[float, BeforeValidator(_parse_share, json_schema_input_type=Any), Field(ge=0, le=1)]
"""Of 1; may be written as a percentage."""

Names = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=Any),
    Field(min_length=1, max_length=20),
]


class Load(Section):
    """The clients."""

    connections: float = Field(
        gt=0, le=MOST_CONNECTIONS, description="New TLS connections a second at the peak."
    )
    resumed: Share = Field(
        0.0, le=0.99, description="Share of them that resume a session: no signature. Some always come anew."
    )
    growth: float = Field(
        1.0,
        ge=0.01,
        le=1000,
        description="What is planned for is so many times the peak: growth, and bursts.",
    )

    @property
    def planned(self) -> float:
        """New connections a second that are planned for."""
        return self.connections * self.growth

    @property
    def full(self) -> float:
        """Those of them that need a signature."""
        return self.planned * (1 - self.resumed)


class Goal(Section):
    """What is to be held, in normal operation and some seconds after a loss."""

    p99: Duration = Field(0.050, gt=0, description="Of handshakes, without the network to the client.")
    errors: Share = Field(0.001, description="Share of connections that may fail or be refused.")

    @property
    def objective(self) -> Objective:
        """As `offload-load capacity` judges it."""
        return Objective(self.p99, self.errors)


class Network(Section):
    """Round trips between workers and HSMs."""

    own_zone: Duration = Field(0.0005, le=10, description="To an HSM in the worker's zone.")
    other_zone: Duration = Field(0.0015, le=10, description="To an HSM in another zone.")


class WorkerCosts(Section):
    """CPU of a worker process; the defaults are of docs/benchmarks.md, P-256 with a small request on a 2-core EPYC."""

    full: Duration = Field(485e-6, gt=0, le=1, description="For a connection with a full handshake.")
    resumed: Duration = Field(296e-6, gt=0, le=1, description="For one that resumes its session.")
    busy: float = Field(
        0.6, gt=0, le=0.95, description="Share of a core that a worker may use at the planned peak."
    )
    cores: PositiveInt = Field(4, le=1024, description="Cores, and so workers, of a machine.")


class PlanSettings(Section):
    """A plan's question."""

    hsm: Names = Field(
        description="A type that comes with the tool, a .yaml profile, or .json results of `hsm bench --json`."
    )
    key: KeyName | None = Field(None, description="Type of key, if the profile knows several.")
    load: Load
    objective: Goal = Field(default_factory=Goal)
    zones: PositiveInt = Field(1, le=16, description="Zones over which HSMs and workers are spread evenly.")
    survive: Literal["nothing", "hsm", "zone"] = Field(
        "hsm", description="What may be lost while the objective is held: nothing, one HSM (N+1), or a zone."
    )
    network: Network = Field(default_factory=Network)
    worker: WorkerCosts = Field(default_factory=WorkerCosts)
    cluster: ClusterPolicy = Field(
        default_factory=ClusterPolicy,
        description="How the proxy uses its nodes: as in its own `hsm:`.",
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.load.planned > MOST_CONNECTIONS:
            raise ValueError(f"load: connections × growth is more than {MOST_CONNECTIONS:,.0f} a second")
        if self.survive == "zone" and self.zones == 1:
            raise ValueError("survive: a zone can only be lost where zones is 2 or more")
        return self


def load(path: Path | None, given: dict[str, Any]) -> tuple[PlanSettings, HsmProfile, str]:
    """The question, the profile it names, and the key's type; `given` (nested keys) replaces what the file says.

    Raises ConfigurationError.
    """
    data = _merged(config.read(path) if path is not None else {}, given)
    if path is not None:
        directory, key_place = path.parent, f"{path}: key"
        settings = config.validate(data, PlanSettings, str(path), directory)
    else:
        directory, key_place = Path(), "--key"
        settings = config.validate(data, PlanSettings, "", directory, _spell_option)
    known = profile.load(settings.hsm, Path() if "hsm" in given else directory)
    keys = sorted(known.signatures_per_second)
    if settings.key is None and len(keys) > 1:
        raise ConfigurationError(f"{key_place}: {known.name} has several; give one of {', '.join(keys)}")
    key = settings.key or keys[0]
    if key not in keys:
        raise ConfigurationError(
            f"{key_place}: nothing is known of {key} with {known.name}, only of {', '.join(keys)}"
        )
    return settings, known, key


def _spell_option(key: str) -> str:
    """The option that sets a key of a question: --p99 for `objective.p99`."""
    return "--connections" if key == "load" else f"--{key.rpartition('.')[2]}"


def _merged(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return data | {
        key: _merged(before, value)
        if isinstance(value, dict) and isinstance(before := data.get(key), dict)
        else value
        for key, value in given.items()
    }
