"""Which node gets a request: a pure function of what is known now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What choosing needs to know of a node."""

    @property
    def outstanding(self) -> int:
        """Requests sent to it and not answered yet."""


C = TypeVar("C", bound=Candidate)


def least_outstanding(candidates: Iterable[C], turn: int) -> C | None:
    """The candidate with the fewest outstanding requests; None when there is none.

    Equals take turns: `turn` is any counter that grows with each request, so that
    an idle cluster does not send everything to its first node.
    """
    best: C | None = None
    ties: list[C] = []
    for candidate in candidates:
        if best is None or candidate.outstanding < best.outstanding:
            best, ties = candidate, [candidate]
        elif candidate.outstanding == best.outstanding:
            ties.append(candidate)
    return ties[turn % len(ties)] if ties else None
