"""Where values lie on an axis, which of them are marked, and how they are written: pure functions.

Values are finite numbers of any size; positions are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LARGEST = 1e15
SMALLEST = 1e-9
"""Plots show values between these; what lies outside is drawn at their edge."""
_STEPS = (1, 2, 5, 10)
_DECADES_WITH_STEPS = 3
"""An axis of more powers of ten than this marks each power only."""

Scale = Callable[[float], float]
"""From a value to its position."""
Format = Callable[[float], str]
"""How a value is written, with its unit."""


@dataclass(frozen=True, slots=True)
class Span:
    """The values that an axis shows, the marks on it, and whether distances on it are ratios."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def scale(self, start: float, end: float) -> Scale:
        """Positions from `start`, where `low` lies, to `end`; values outside lie at the nearer of them."""

        def place(value: float) -> float:
            share = (measure(value) - low) / (measure(self.high) - low)
            return start + min(max(share, 0.0), 1.0) * (end - start)

        measure = _logarithm if self.logarithmic else float
        low = measure(self.low)
        return place


def _logarithm(value: float) -> float:
    return math.log10(max(value, SMALLEST))


def _bounded(values: Iterable[float]) -> list[float]:
    return [min(max(value, -LARGEST), LARGEST) for value in values]


def linear(values: Iterable[float], most: int = 6) -> Span:
    """An axis from 0, or the lowest value below it, to a round number above all values.

    It has at most `most` + 1 marks.
    """
    found = _bounded(values)
    low, high = min([0.0, *found]), max([0.0, *found])
    if high - low < SMALLEST:
        high = 1.0
    step = _step(high - low, most)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Span(ticks[0], ticks[-1], ticks)


def exact(low: float, high: float, most: int = 8) -> Span:
    """An axis that ends where the values do, such as one of time; its marks are round numbers."""
    low, high = _bounded((low, high))
    if high - low < SMALLEST * max(1.0, abs(low)):
        high = low + max(1.0, abs(low))
    step = _step(high - low, most)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Span(low, high, tuple(number * step for number in numbers))


def logarithmic(values: Iterable[float]) -> Span:
    """An axis of ratios, from a round number below all values that are above 0 to one above them."""
    found = [min(max(value, SMALLEST), LARGEST) for value in values if value > 0] or [1.0]
    low, high = _round_down(min(found)), _round_up(max(found))
    if low == high:
        high *= 10
    first, last = math.floor(_logarithm(low)), math.ceil(_logarithm(high))
    steps = _STEPS[:3] if last - first <= _DECADES_WITH_STEPS else _STEPS[:1]
    marks = (step * 10.0**power for power in range(first, last + 1) for step in steps)
    return Span(low, high, tuple(mark for mark in marks if _within(mark, low, high)), logarithmic=True)


def _within(value: float, low: float, high: float) -> bool:
    return low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


def _step(span: float, most: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that cuts a span into at most `most` parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(step * power for step in _STEPS if step * power * most >= span * (1 - 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max((step * power for step in _STEPS if step * power <= value * (1 + 1e-9)), default=power)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min((step * power for step in _STEPS if step * power >= value * (1 - 1e-9)), default=power * 10)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near those wanted, in the same order, `gap` apart and between `low` and `high`.

    Where there is no room for that they are evenly closer together.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    at = low
    for index in order:
        placed[index] = at = max(at, min(wanted[index], high))
        at += gap
    at = high
    for index in reversed(order):
        placed[index] = at = max(low, min(at, placed[index]))
        at -= gap
    return placed


def duration(seconds: float) -> str:
    """`350 µs`, `6.2 ms`, `1.5 s`: three digits, in the unit that fits."""
    size = abs(seconds)
    if size >= 1:
        return f"{_digits(seconds)} s"
    if size >= 1e-3:
        return f"{_digits(seconds * 1e3)} ms"
    return f"{_digits(seconds * 1e6)} µs" if size else "0"


def number(value: float) -> str:
    """`1,500`, `48.3`, `0.25`: three digits, and thousands set apart."""
    return _digits(value)


def percent(share: float) -> str:
    """`12.5 %`."""
    return f"{_digits(share * 100)} %"


def _digits(value: float) -> str:
    size = abs(value)
    if size >= LARGEST:
        return f"{value:.2e}"
    if size >= 99.95 or value == round(value):
        return f"{value:,.0f}"
    if size >= 0.001:
        return f"{value:.3g}"
    return f"{value:.1g}"
