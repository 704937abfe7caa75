"""Runs several scenarios one after the other, and keeps each one's result in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hsm.errors import ConfigurationError
from loadtest import scenario as scenarios
from loadtest.documents import Document, Origin, read
from loadtest.run import run, started

SUITES: Mapping[str, Sequence[str]] = {
    "resilience": (
        "node-lost", "node-frozen", "node-slow", "node-errors", "node-wrong", "two-nodes-lost",
        "all-nodes-lost", "nodes-replaced", "overload", "flash-crowd", "slow-clients", "reload", "upgrade",
    ),
}  # fmt: skip
"""Scenarios that belong together, in the order that a page shows them."""


def chosen(suite: str, only: Sequence[str]) -> Sequence[str]:
    """The scenarios of a suite, or some of them. Raises ConfigurationError for an unknown name."""
    if suite not in SUITES:
        raise ConfigurationError(f"{suite}: no such suite; there are {', '.join(SUITES)}")
    for name in only:
        if name not in SUITES[suite]:
            raise ConfigurationError(f"--only: {name!r} is none of {', '.join(SUITES[suite])}")
    return only or SUITES[suite]


def carry_out(names: Sequence[str], directory: Path, *, factor: float) -> Iterator[Document]:
    """Run scenarios; each result is written to DIRECTORY/NAME.json. Raises LoadTestError."""
    for name in names:
        load = scenarios.load(name)
        with started(load) as (server, cluster):
            origin = Origin.now(name, server)
            document = Document(origin, run(load, server, cluster, factor=factor))
        document.write(directory / f"{name}.json")
        yield document


def results(suite: str, directory: Path) -> list[Document]:
    """What is known of a suite's scenarios, from this run or earlier ones. Raises ConfigurationError."""
    files = (directory / f"{name}.json" for name in SUITES[suite])
    return [read(file) for file in files if file.exists()]
