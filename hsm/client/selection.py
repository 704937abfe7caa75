"""Which node gets a request: pure functions of what is known now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What choosing needs to know of a node."""

    @property
    def load(self) -> float:
        """What one more request would cost there: see `load_of`."""

    @property
    def has_room(self) -> bool:
        """Whether it may have one more in flight."""


class Rankable(Protocol):
    """What sorting into tiers needs to know of a node."""

    @property
    def zone(self) -> str:
        """Where it stands; empty if that is not configured."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing speaks against it."""

    @property
    def is_ejected(self) -> bool:
        """Whether it is to get nothing while any other can."""


C = TypeVar("C", bound=Candidate)
R = TypeVar("R", bound=Rankable)

NOISE = 0.001
"""Seconds added to each latency, so that differences of microseconds decide nothing. A node that
has not answered yet counts as this quick: it is tried."""
ALIKE = 0.8
"""Loads that differ by less than this factor count as equal: chance decides, and all are used."""


def load_of(outstanding: int, latency: float, weight: float) -> float:
    """The cost of one more request at a node: who waits there × how long each takes.

    "Peak EWMA" of Finagle and Linkerd: with equal latency it is the least outstanding.
    """
    return (outstanding + 1) * (latency + NOISE) / weight


def tiers(nodes: Iterable[R], zone: str) -> tuple[list[list[R]], list[R]]:
    """Nodes in order of preference: own zone, other zones, suspects; and, apart, the ejected ones.

    Without zones the first tier holds all healthy nodes. A tier is used when those before it
    have no room; the ejected ones when there is no other node at all.
    """
    own: list[R] = []
    foreign: list[R] = []
    suspect: list[R] = []
    ejected: list[R] = []
    for node in nodes:
        if node.is_ejected:
            ejected.append(node)
        elif not node.is_healthy:
            suspect.append(node)
        elif node.zone == zone or not zone:
            own.append(node)
        else:
            foreign.append(node)
    return [tier for tier in (own, foreign, suspect) if tier], ejected


def choose(
    ranked: Sequence[Sequence[C]],
    randoms: tuple[float, float],
    excluded: Callable[[C], bool] | None = None,
) -> C | None:
    """The better of two random candidates of the first tier that has room; None if none has.

    Two choices are almost as good as looking at all, and several clients that know the same do
    not all run to the same node. `randoms` are in [0, 1).
    """
    first, second = randoms
    for tier in ranked:
        candidates = tier if excluded is None else [c for c in tier if not excluded(c)]
        count = len(candidates)
        if count > 1:
            index = int(first * count)
            other = int(second * (count - 1))
            a, b = candidates[index], candidates[other + (other >= index)]
            if a.has_room and b.has_room:
                return b if b.load < a.load * ALIKE else a
        best: C | None = None
        for candidate in candidates:
            if candidate.has_room and (best is None or candidate.load < best.load):
                best = candidate
        if best is not None:
            return best
    return None
