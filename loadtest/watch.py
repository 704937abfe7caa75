"""Looks at the metrics of a proxy of ours while it is loaded, and says what it did from look to look."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from loadtest import scrape
from loadtest.targets.lab import LoadTestError


class Look(NamedTuple):
    """What the metrics said, and when (time.monotonic())."""

    at: float
    metrics: scrape.Metrics


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the proxy did in the `seconds` from `begin`, which counts from the start of the schedule.

    `nodes` are the signatures that each gave, `outstanding` the requests that each had not answered
    at the end, `cores` the CPU that each process used.
    """

    begin: float
    seconds: float
    stages: list[scrape.Stage]
    nodes: list[scrape.Stage]
    outstanding: dict[str, float]
    cores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the proxy did in a whole run. `cpu_seconds` are those of each process, `counted` is for people."""

    stages: list[scrape.Stage]
    nodes: list[scrape.Stage]
    cpu_seconds: dict[str, float]
    counted: list[str]
    course: list[Stretch]


def observed(looks: Sequence[Look], start: float) -> Observed:
    """What two looks or more say of a schedule that began at `start`."""
    before, after = looks[0].metrics, looks[-1].metrics
    return Observed(
        stages=scrape.stages(before, after),
        nodes=scrape.nodes(before, after),
        cpu_seconds=scrape.cpu(before, after),
        counted=scrape.told(before, after),
        course=[_stretch(*pair, start) for pair in itertools.pairwise(looks)],
    )


def _stretch(earlier: Look, later: Look, start: float) -> Stretch:
    before, after, seconds = earlier.metrics, later.metrics, later.at - earlier.at
    return Stretch(
        begin=earlier.at - start,
        seconds=seconds,
        stages=scrape.stages(before, after),
        nodes=scrape.nodes(before, after),
        outstanding=dict(after.outstanding),
        cores={name: used / seconds for name, used in scrape.cpu(before, after).items()},
    )


class Watch:
    """Looks when its context begins, every `interval` seconds from then on, and when it ends.

    Only the first and the last look have to succeed: in between, a proxy may be too busy to answer.
    Without an address it sees nothing.
    """

    def __init__(self, address: str, interval: float) -> None:
        self._address = address
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self.looks: list[Look] = []

    def __enter__(self) -> Self:
        """Raises LoadTestError when the metrics can't be read."""
        if self._address:
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.looks:
            return
        self._ended.set()
        self._thread.join()
        if kind is None:
            if len(self.looks) > 1 and time.monotonic() - self.looks[-1].at < self._interval / 2:
                self.looks.pop()  # means of a moment would be noise
            self._look()

    def observed(self, start: float) -> Observed | None:
        """What was seen of a schedule that began at `start`, once the context has ended."""
        return observed(self.looks, start) if self.looks else None

    def _look(self) -> None:
        metrics = scrape.metrics(self._address)
        self.looks.append(Look(time.monotonic(), metrics))

    def _look_on(self) -> None:
        due = self.looks[0].at
        while True:
            due = max(due + self._interval, time.monotonic())
            if self._ended.wait(due - time.monotonic()):
                return
            try:
                self._look()
            except LoadTestError:
                continue
