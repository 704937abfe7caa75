"""The timer wheel: nobody is due early, nobody more than a slot late, nobody forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsm.client.wheel import TimerWheel

SLOT = 0.005
STARTS = st.floats(0, 1e6)


@given(
    start=STARTS,
    waits=st.lists(st.floats(0, 3), max_size=60),
    pauses=st.lists(st.floats(0.0001, 2), min_size=1, max_size=60),
)
def test_all_are_due_in_time(start: float, waits: list[float], pauses: list[float]) -> None:
    """Never early, and told by the first look that comes a slot or more after the time."""
    wheel: TimerWheel[int] = TimerWheel(SLOT, start)
    for number, wait in enumerate(waits):
        wheel.add(number, start + wait)
    due_at: dict[int, float] = {}
    before, now = start, start
    for pause in [*pauses, 4.0]:
        before, now = now, now + pause
        for number in wheel.due(now):
            assert number not in due_at
            due_at[number] = now
            assert now >= start + waits[number] - 1e-9
            assert before <= start + waits[number] + SLOT + 1e-9
    assert len(due_at) == len(waits)
    assert len(wheel) == 0


@given(start=STARTS, waits=st.lists(st.floats(0, 3), max_size=60), data=st.data())
def test_the_removed_are_never_due(start: float, waits: list[float], data: st.DataObject) -> None:
    """Also when they are removed twice, or after they were due."""
    wheel: TimerWheel[int] = TimerWheel(SLOT, start)
    slots = [wheel.add(number, start + wait) for number, wait in enumerate(waits)]
    removed = data.draw(st.sets(st.sampled_from(range(len(waits))))) if waits else set()
    for number in (*removed, *removed):
        wheel.remove(number, slots[number])
    assert len(wheel) == len(waits) - len(removed)
    assert sorted(wheel.due(start + 4)) == sorted(set(range(len(waits))) - removed)
    for number, slot in enumerate(slots):
        wheel.remove(number, slot)
    assert wheel.due(start + 8) == []


def test_the_past_is_due_in_the_next_slot() -> None:
    """Who comes late does not wait for a turn of the whole wheel."""
    wheel: TimerWheel[str] = TimerWheel(SLOT, 100.0)
    assert wheel.due(200.0) == []
    wheel.add("late", 150.0)
    assert wheel.due(200.0) == []
    assert wheel.due(200.0 + SLOT) == ["late"]


def test_the_earliest_come_first() -> None:
    """Also after a pause that is longer than the wheel has slots."""
    wheel: TimerWheel[float] = TimerWheel(SLOT, 0.0)
    for at in (7.0, 3.0, 5.0, 1.0):
        wheel.add(at, at)
    assert wheel.due(1e6) == [1.0, 3.0, 5.0, 7.0]
