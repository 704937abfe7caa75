"""Figures beside their bars, and what they were measured on: printed, and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
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


@dataclass
class Findings:
    """What a bench found: figures, and lines that explain them."""

    description: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def machine_facts() -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    cores = len(os.sched_getaffinity(0))
    packages = (f"{name} {_installed(name)}" for name in ("awscrt", "cryptography", "uvloop"))
    return {
        "machine": f"{cpu_model(_cpuinfo())}, {cores} cores, Linux {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
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
