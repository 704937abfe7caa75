"""Which node gets a request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hsm.client.selection import least_outstanding


@dataclass(frozen=True)
class Node:
    """A candidate."""

    name: int
    outstanding: int


candidates = st.lists(st.integers(0, 5), max_size=8).map(
    lambda counts: [Node(name, outstanding) for name, outstanding in enumerate(counts)]
)


@given(candidates, st.integers(0, 10**9))
def test_the_least_outstanding_is_chosen(nodes: list[Node], turn: int) -> None:
    """Nobody has fewer outstanding requests than the one chosen; nobody is chosen of none."""
    chosen = least_outstanding(nodes, turn)
    assert (chosen is None) == (nodes == [])
    assert chosen is None or chosen.outstanding == min(node.outstanding for node in nodes)


@given(candidates, st.integers(0, 10**9))
def test_equals_take_turns(nodes: list[Node], turn: int) -> None:
    """Over as many turns as there are equals each of them is chosen once."""
    equals = [n for n in nodes if n.outstanding == min(n.outstanding for n in nodes)]
    chosen = Counter(least_outstanding(nodes, turn + i) for i in range(len(equals)))
    assert chosen == Counter(equals)
