"""The log: floods are cut, levels hold, a broken stream does no harm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsm.logs import FLOOD_TOLD, FLOOD_WINDOW, FloodGuard, _Gate


@given(st.lists(st.floats(0, 100), max_size=300).map(sorted))
def test_every_event_is_told_or_counted(times: list[float]) -> None:
    """Nothing disappears: what was not told is in a summary."""
    guard, told, counted = FloodGuard(), 0, 0
    for now in times:
        counted += sum(guard.take_suppressed(now).values())
        told += guard.admit(("event",), now)
    counted += sum(guard.take_suppressed(1000).values())
    assert told + counted == len(times)


def test_a_window_tells_the_first_few() -> None:
    """And after the window is over it begins again."""
    guard = FloodGuard()
    assert sum(guard.admit(("a", "b"), 1.0) for _ in range(100)) == FLOOD_TOLD
    assert guard.admit(("other",), 1.0)
    assert guard.take_suppressed(1.0 + FLOOD_WINDOW) == {"a b": 100 - FLOOD_TOLD}
    assert guard.admit(("a", "b"), 1.0 + FLOOD_WINDOW)


def test_two_slots_are_two_events() -> None:
    """What is told of one worker slot must not hide the same of another."""
    gate = _Gate()
    events = [{"event": "slot_adopted", "slot": slot} for slot in range(3 * FLOOD_TOLD)]
    assert [gate(None, "warning", event) for event in events] == events
