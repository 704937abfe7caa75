"""The queue of requests: earliest deadline first, ties in order, each key's line for itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsm.client.waiting import DeadlineQueue, Line

LINES: list[Line] = [(bytes((number,)) * 20, 0x15) for number in range(3)]
WAITING = st.lists(st.tuples(st.sampled_from(LINES), st.integers(0, 5)), max_size=40)
"""Who comes, in this order: line and deadline."""


def fill(waiting: list[tuple[Line, int]]) -> tuple[DeadlineQueue[int], list[tuple[float, int]]]:
    """A queue in which each waits under the number of his coming, and everybody's place."""
    queue: DeadlineQueue[int] = DeadlineQueue()
    return queue, [queue.add(line, deadline, number) for number, (line, deadline) in enumerate(waiting)]


def drain(queue: DeadlineQueue[int], *lines: Line) -> list[int]:
    """Everybody who can be served, in order, when only these lines' nodes have room."""
    served: list[int] = []
    while (number := queue.pop(lines.__contains__)) is not None:
        served.append(number)
    return served


@given(waiting=WAITING)
def test_the_earliest_deadline_is_served_first(waiting: list[tuple[Line, int]]) -> None:
    """Over all lines; of equal deadlines the first who came."""
    queue, _ = fill(waiting)
    assert drain(queue, *LINES) == sorted(range(len(waiting)), key=lambda number: waiting[number][1])
    assert queue.count == 0
    assert queue.lines == []


@given(waiting=WAITING, open_lines=st.sets(st.sampled_from(LINES)))
def test_a_line_without_a_node_holds_up_no_other(
    waiting: list[tuple[Line, int]], open_lines: set[Line]
) -> None:
    """Everybody whose line can be served is; the others stay, in their order."""
    queue, _ = fill(waiting)
    served = drain(queue, *open_lines)
    assert set(served) == {number for number, (line, _) in enumerate(waiting) if line in open_lines}
    left = [
        number for number in sorted(range(len(waiting)), key=lambda n: waiting[n][1]) if number not in served
    ]
    assert queue.count == len(left)
    assert drain(queue, *LINES) == left


@given(waiting=WAITING, data=st.data())
def test_who_leaves_is_not_served(waiting: list[tuple[Line, int]], data: st.DataObject) -> None:
    """And who leaves twice takes nobody with him."""
    queue, places = fill(waiting)
    leavers = data.draw(st.sets(st.sampled_from(range(len(waiting))))) if waiting else set()
    for number in (*leavers, *leavers):
        queue.remove(waiting[number][0], places[number])
    assert queue.count == len(waiting) - len(leavers)
    assert set(drain(queue, *LINES)) == set(range(len(waiting))) - leavers


@given(waiting=WAITING, line=st.sampled_from(LINES), deadline=st.integers(0, 5))
def test_ahead_counts_who_is_served_before(
    waiting: list[tuple[Line, int]], line: Line, deadline: int
) -> None:
    """A newcomer stands behind all of his line that have the same deadline or an earlier one."""
    queue, _ = fill(waiting)
    ahead = queue.ahead(line, deadline)
    queue.add(line, deadline, -1)
    assert queue.of(line).index(-1) == ahead
    assert drain(queue, line).index(-1) == ahead
