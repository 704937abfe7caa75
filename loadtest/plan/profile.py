"""What is known of a type of HSM: how fast it signs, how many there may be, and who says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from hsm import config
from hsm.config import Duration, Section
from hsm.errors import ConfigurationError
from loadtest.plan.quantiles import Quantiles

SHIPPED = Path(__file__).parent / "hsms"
"""Profiles that come with the tool: named without a path."""
BENCH_TOOL = "hsm bench"
SATURATED = 1.25
"""A bench whose signatures took so many times as long on average as with fewer in flight kept the HSM busy."""
_BENCH_MOST = 1 << 20

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Percentile = Annotated[str, Field(pattern=r"^p(?:100|[0-9]{1,2}(?:\.[0-9]{1,3})?)$")]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Rate = Annotated[float, Field(gt=0, le=10_000_000)]


class HsmProfile(Section):
    """A type of HSM."""

    name: str = Field(min_length=1, max_length=100, description="What it is called.")
    source: str = Field(min_length=1, max_length=1000, description="Where the rates come from.")
    signatures_per_second: dict[KeyName, Annotated[dict[PositiveInt, Rate], Field(min_length=1)]] = Field(
        min_length=1, description="By key type: number of HSMs to what all of them do together."
    )
    latency: Annotated[dict[Percentile, Duration], Field(min_length=1)] = Field(
        description="Of one signature while the HSM is idle, by percentile: p50, p99 …"
    )
    latency_source: str = Field(min_length=1, max_length=1000, description="Where the latency comes from.")
    parallel: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Signatures at a time in one HSM (sessions); 0: only its rate limits it.",
    )
    most: PositiveInt | None = Field(None, le=1000, description="HSMs that a cluster may have.")
    notes: list[str] = Field(default_factory=list, description="What a planner should know beside that.")

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        self.quantiles()
        for key, table in self.signatures_per_second.items():
            rates = [rate for _, rate in sorted(table.items())]
            if rates != sorted(rates):
                raise ValueError(f"signatures_per_second: {key}: more HSMs do less")
        return self

    def quantiles(self) -> Quantiles:
        """The latency as a distribution, in seconds."""
        return Quantiles.named(self.latency)

    def rate(self, key: str, hsms: int) -> float:
        """Signatures a second of so many HSMs together: what is known of them, or what their sessions can do.

        Between the known numbers of HSMs it grows evenly, and beyond the last as it did before that;
        fewer than the first do their share of it.
        """
        known = self._told_rate(key, hsms)
        mean = self.quantiles().mean
        return min(known, hsms * self.parallel / mean) if self.parallel and mean else known

    def _told_rate(self, key: str, hsms: int) -> float:
        points = sorted(self.signatures_per_second[key].items())
        count, rate = points[0]
        if hsms <= count:
            return rate * hsms / count
        slope = rate / count
        for (low, low_rate), (high, high_rate) in pairwise(points):
            count, rate = high, high_rate
            slope = (high_rate - low_rate) / (high - low)
            if hsms <= high:
                break
        return rate + (hsms - count) * slope

    def known(self, key: str) -> list[int]:
        """The numbers of HSMs for which the rate is not inferred from others."""
        return sorted(self.signatures_per_second[key])


def load(names: Sequence[str], directory: Path = Path()) -> HsmProfile:
    """One that comes with the tool, one from a YAML file, or one from results of `hsm bench --json`.

    Relative files are looked for in `directory`. Raises ConfigurationError.
    """
    paths = [directory / name for name in names]
    if all(path.suffix == ".json" for path in paths):
        return measured(paths)
    if len(names) > 1:
        raise ConfigurationError(
            f"{', '.join(names)}: several files can only be results of `hsm bench --json`"
        )
    path = paths[0]
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{names[0]}.yaml"
        if "/" in names[0] or not path.exists():
            known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise ConfigurationError(
                f"{names[0]}: no such type of HSM; give a .yaml file, results of `hsm bench --json`, or one of {known}"
            )
    return config.load(path, HsmProfile)


class Bench(Section):
    """What `hsm bench --json` prints."""

    tool: str
    node: str
    key: str
    scheme: KeyName
    concurrency: PositiveInt
    seconds: float = Field(gt=0)
    signatures: PositiveInt
    errors: dict[str, int]
    rate: Rate
    latency: Annotated[dict[Percentile, Seconds], Field(min_length=1)]


def measured(paths: Sequence[Path]) -> HsmProfile:
    """The profile of an HSM that was benched twice or more: alone for its latency, with many in flight for its rate.

    Raises ConfigurationError.
    """
    benches = sorted(((_read(path), path) for path in paths), key=lambda one: one[0].concurrency)
    (idle, first), (busy, last) = benches[0], benches[-1]
    if idle.concurrency == busy.concurrency:
        raise ConfigurationError(
            f"{first}: one more result of `hsm bench --json` is needed, with another --concurrency: 1 for the latency "
            "of a signature, and as many as raise the rate no more (64, say) for the rate"
        )
    if idle.scheme != busy.scheme:
        raise ConfigurationError(f"{last}: it is about {busy.scheme}, and {first} about {idle.scheme}")
    best = max(bench.rate for bench, _ in benches)
    notes = []
    if busy.concurrency / busy.rate < SATURATED * idle.concurrency / idle.rate:
        notes.append(
            f"With {busy.concurrency} in flight it was not busy yet: it may do more than {best:.0f} a second."
        )
    return HsmProfile(
        name=f"{idle.node}, measured",
        source=f"`hsm bench` with {busy.concurrency} in flight, {busy.seconds:.0f} s: {last.name}",
        signatures_per_second={idle.scheme: {1: best}},
        latency=dict(idle.latency),
        latency_source=f"`hsm bench` with {idle.concurrency} in flight: {first.name}",
        notes=notes,
    )


def _read(path: Path) -> Bench:
    try:
        with path.open("rb") as file:
            data: Any = json.loads(file.read(_BENCH_MOST))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not JSON; write it with `hsm bench --json`") from error
    if not isinstance(data, dict) or data.get("tool") != BENCH_TOOL:
        raise ConfigurationError(f"{path}: not a result of `hsm bench --json`")
    return config.validate(data, Bench, str(path), path.parent)
