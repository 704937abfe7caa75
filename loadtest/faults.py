"""What can happen to a cluster's nodes under load, and what clients may notice of it at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.targets.cluster import Cluster

ROLLING_PAUSE = 1.0
"""Seconds between one node's replacement and the next."""
START_SECONDS = 0.8
"""About what a node takes to start on a machine under load."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much longer handshakes may take at the 99th percentile while the fault lasts."""

    times: float = 1.0
    plus: float = 0.0

    def of(self, before: float) -> float:
        """The highest p99, in seconds, when it was `before`."""
        return before * self.times + self.plus

    def __str__(self) -> str:
        if self.plus:
            return f"≤ before + {self.plus * 1000:g} ms"
        return f"≤ {self.times:g} × before"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that lasts `seconds` between `strike` and `repair`, which may take their time too.

    `resumed` is the share of clients that resume, and so need no node.
    `limit` is for the p99 while it lasts; None where there is no node for a while (`outage`):
    then handshakes may fail that no node could have served within their deadline.
    """

    name: str
    title: str
    strike: Callable[[Cluster], None]
    repair: Callable[[Cluster], None]
    limit: Limit | None
    seconds: float = 8.0
    resumed: float = 0.0

    @property
    def outage(self) -> bool:
        """Whether there is no node at all while it lasts."""
        return self.limit is None


def _nothing(_cluster: Cluster) -> None:
    """For a fault that is over by itself."""


def _kill(count: int) -> Callable[[Cluster], None]:
    def strike(cluster: Cluster) -> None:
        for node in cluster.nodes[:count]:
            node.kill()

    return strike


def _start(count: int) -> Callable[[Cluster], None]:
    def repair(cluster: Cluster) -> None:
        for node in cluster.nodes[:count]:
            node.launch()  # all at once: an outage is to last no longer than it says
        for node in cluster.nodes[:count]:
            node.wait()

    return repair


def _emulate(**changes: float) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.nodes[0].emulate(**changes)


def _replace_all(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.stop()
        node.launch()
        node.wait()
        time.sleep(ROLLING_PAUSE)


FAULTS = (
    Fault("killed", "one of three nodes killed (SIGKILL)", _kill(1), _start(1), Limit(times=3)),
    Fault(
        "stopped",
        "one node stopped (SIGSTOP) for 20 s",
        lambda cluster: cluster.nodes[0].freeze(),
        lambda cluster: cluster.nodes[0].thaw(),
        Limit(plus=0.1),
        seconds=20.0,
    ),
    Fault("slow", "one node 20 × slower", _emulate(slow_factor=20.0), _emulate(), Limit(plus=0.1)),
    Fault("errors", "one node answers 30 % errors", _emulate(error_rate=0.3), _emulate(), Limit(times=3)),
    Fault("wrong", "one node returns wrong signatures", _emulate(wrong_rate=1.0), _emulate(), Limit(times=3)),
    Fault("two-killed", "two of three killed, capacity still enough", _kill(2), _start(2), Limit(times=3)),
    Fault(
        "outage",
        "all nodes gone for 3 s, then back",
        _kill(3),
        _start(3),
        None,
        seconds=3.0 - START_SECONDS,
        resumed=0.3,
    ),
    Fault(
        "rolling", "nodes replaced one by one (rolling)", _replace_all, _nothing, Limit(times=2), seconds=0.0
    ),
)
