"""Figures beside their bars, and what they were measured on: printed, and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.stats import Ratio, Sample, mean, ratio


@dataclass(frozen=True, slots=True)
class Bar:
    """A goal: at most, or at least, `limit`."""

    limit: float
    at_most: bool = True

    def met_by(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a report; `ours` and `theirs`, where there is another side, are in `unit`.

    `value` is what the bar is about: the ratio where there is a `spread`, else `ours`.
    """

    name: str
    value: float
    unit: str
    ours: float
    theirs: float | None = None
    spread: Ratio | None = None
    bar: Bar | None = None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or empty where there is no bar."""
        if self.bar is None:
            return ""
        return "met" if self.bar.met_by(self.value) else "missed"

    def __str__(self) -> str:
        text = f"{self.name}: {self.ours:,.1f} {self.unit}"
        if self.theirs is not None:
            text += f", against {self.theirs:,.1f}"
        if self.spread is not None:
            text += f"; ratio {self.spread}"
        if self.bar is not None:
            text += f"; bar: {self.bar}: {self.verdict.upper()}"
        return text


def compare(
    name: str,
    unit: str,
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    *,
    scale: float = 1.0,
    bar: Bar | None = None,
) -> Figure:
    """A figure of two sides' rounds; their means are multiplied by `scale` to be in `unit`."""
    spread = ratio(ours, theirs)
    return Figure(name, spread.value, unit, mean(ours) * scale, mean(theirs) * scale, spread, bar)


def single(
    name: str, unit: str, samples: Sequence[Sample], *, scale: float = 1.0, bar: Bar | None = None
) -> Figure:
    """A figure of one side's rounds."""
    value = mean(samples) * scale
    return Figure(name, value, unit, value, bar=bar)


@dataclass
class Report:
    """What one bench found. `notes` are lines such as what was negotiated."""

    name: str
    rounds: int
    facts: dict[str, str]
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Names of the figures that miss their bar."""
        return [figure.name for figure in self.figures if figure.verdict == "missed"]

    def write(self, line: Callable[[str], None]) -> None:
        """Print it, line by line."""
        line(f"bench {self.name}, {self.rounds} rounds")
        for key, value in self.facts.items():
            line(f"  {key}: {value}")
        for note in self.notes:
            line(f"  {note}")
        for figure in self.figures:
            line(f"- {figure}")

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        figures = [{**asdict(figure), "verdict": figure.verdict} for figure in self.figures]
        return {**asdict(self), "figures": figures}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its columns aligned to the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]


def machine_facts(peer: str) -> dict[str, str]:
    """The machine and the versions that figures depend on; `peer` is the peer's version."""
    cores = len(os.sched_getaffinity(0))
    packages = (f"{name} {_installed(name)}" for name in ("awscrt", "cryptography", "uvloop"))
    return {
        "machine": f"{cpu_model(_cpuinfo())}, {cores} cores, Linux {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "peer": peer,
    }


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo; `unknown CPU` where it has none."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown CPU"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
