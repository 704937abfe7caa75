"""Carries out what belongs together, one after the other, and keeps each result in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsm.errors import ConfigurationError
from loadtest import compare
from loadtest import scenario as scenarios
from loadtest.benches import BENCHES
from loadtest.documents import Document, Origin, read, writing
from loadtest.run import run, started
from loadtest.targets.lab import LoadTestError

BENCH_ROUNDS = 5
"""Of a bench, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Names of scenarios, comparisons and benches, in the order that a page shows them.

    Only the `first` are carried out, in few `rounds`, unless all are asked for.
    """

    names: Sequence[str]
    first: int
    rounds: int | None = None

    def chosen(self, only: Sequence[str], everything: bool) -> Sequence[str]:
        """What is to be carried out. Raises ConfigurationError for an unknown name."""
        for name in only:
            if name not in self.names:
                raise ConfigurationError(f"--only: {name!r} is none of {', '.join(self.names)}")
        return only or (self.names if everything else self.names[: self.first])

    def results(self, directory: Path) -> list[Document]:
        """What is known of all of it, from this time or earlier. Raises ConfigurationError."""
        files = (directory / f"{name}.json" for name in self.names)
        return [read(file) for file in files if file.exists()]


_RESILIENCE = (
    "node-lost", "node-frozen", "node-slow", "node-errors", "node-wrong", "two-nodes-lost", "all-nodes-lost",
    "nodes-replaced", "overload", "flash-crowd", "slow-clients", "downloads", "reload", "upgrade",
)  # fmt: skip
_BENCH = (
    "handshakes", "bodies", "requests", "resumption", "peers", "idle",
    "lone-requests", "http-requests", "http-bodies", "many-certificates", "slow-signatures", "node", "client-cost",
    "silence", "generator", "control",
)  # fmt: skip
SUITES: Mapping[str, Suite] = {
    "resilience": Suite(_RESILIENCE, first=len(_RESILIENCE)),
    "bench": Suite(_BENCH, first=5, rounds=3),
}


def suite_of(name: str) -> Suite:
    """Raises ConfigurationError when there is none of this name."""
    if name not in SUITES:
        raise ConfigurationError(f"{name}: no such suite; there are {', '.join(SUITES)}")
    return SUITES[name]


def carry_out(
    names: Sequence[str],
    directory: Path,
    *,
    factor: float,
    rounds: int | None,
    progress: Callable[[str], None],
) -> Iterator[Document | LoadTestError]:
    """Run, compare or measure; each result is written to DIRECTORY/NAME.json.

    Gives why not, for what can't be carried out, and goes on. `rounds` are those of comparisons and
    benches, None as each of them says.
    """
    for name in names:
        progress(f"{name} …")
        try:
            document = _carry_out(name, factor, rounds, progress)
        except LoadTestError as error:
            yield LoadTestError(f"{name}: {error}")
            continue
        with writing("--results", directory):
            document.write(directory / f"{name}.json")
        yield document


def _carry_out(name: str, factor: float, rounds: int | None, progress: Callable[[str], None]) -> Document:
    if name in BENCHES:
        return Document(Origin.now(name, None), BENCHES[name](rounds or BENCH_ROUNDS))
    if (compare.SHIPPED / f"{name}.yaml").exists():
        origin, settings = Origin.now(name, None), compare.load(name)
        found = compare.compare(settings, factor=factor, rounds=rounds, processes=1, progress=progress)
        return Document(origin, found)
    load = scenarios.load(name)
    with started(load) as (server, cluster):
        return Document(Origin.now(name, server), run(load, server, cluster, factor=factor))
