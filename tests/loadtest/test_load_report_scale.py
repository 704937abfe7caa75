"""Where values lie on axes, what is marked there, and how it is written."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.canvas import shortened
from loadtest.report.chart import Point, Series, stacked
from loadtest.report.scale import (
    LARGEST,
    SMALLEST,
    Span,
    duration,
    exact,
    linear,
    logarithmic,
    number,
    percent,
    spread,
)

ANY = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.lists(ANY, max_size=20)


def check(span: Span) -> None:
    """What holds for every axis: marks rise, lie on it, and are few; positions rise with values."""
    assert span.low < span.high
    assert list(span.ticks) == sorted(set(span.ticks))
    assert len(span.ticks) <= 26
    tolerance = (span.high - span.low) * 1e-6
    assert all(span.low - tolerance <= tick <= span.high + tolerance for tick in span.ticks)
    place = span.scale(0.0, 100.0)
    assert place(span.low) == 0
    assert place(span.high) == 100
    assert all(one <= other for one, other in itertools.pairwise(map(place, span.ticks)))


@given(VALUES)
def test_linear_axes(values: list[float]) -> None:
    """They hold 0 and every value that is not beyond all measure."""
    span = linear(values)
    check(span)
    assert span.low <= 0 <= span.high
    assert all(span.low <= value <= span.high for value in values if abs(value) < LARGEST)


@given(VALUES)
def test_logarithmic_axes(values: list[float]) -> None:
    """They hold every value that has a logarithm; others lie at the low end."""
    span = logarithmic(values)
    check(span)
    shown = [value for value in values if SMALLEST < value < LARGEST]
    assert all(span.low * (1 - 1e-6) <= value <= span.high * (1 + 1e-6) for value in shown)
    assert span.scale(0, 1)(-1.0) == 0


@given(ANY, ANY)
def test_exact_axes(low: float, high: float) -> None:
    """They end where they are told, if that is an axis at all."""
    span = exact(low, high)
    check(span)
    if -LARGEST < low < high < LARGEST and high - low > 1e-6 * max(1.0, abs(low)):
        assert (span.low, span.high) == (low, high)


def test_marks_are_round() -> None:
    assert linear([3.0, 47.0]).ticks == (0, 10, 20, 30, 40, 50)
    assert linear([]).ticks == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1))
    assert exact(0, 45.4).ticks == (0, 10, 20, 30, 40)
    assert logarithmic([0.004, 0.08]).ticks == pytest.approx((0.002, 0.005, 0.01, 0.02, 0.05, 0.1))
    assert logarithmic([0.0011, 9.0]).ticks == pytest.approx((0.001, 0.01, 0.1, 1, 10))


@given(st.lists(st.floats(-50, 150), max_size=30), st.floats(0, 30))
def test_names_are_spread(wanted: list[float], gap: float) -> None:
    """They keep their order and the room there is, and are apart, if there is room for that."""
    placed = spread(wanted, gap, 0.0, 100.0)
    assert all(0 <= at <= 100 for at in placed)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    least = min(gap, 100 / max(1, len(wanted) - 1))
    for one, other in itertools.pairwise(order):
        assert placed[other] - placed[one] >= least - 1e-6


def test_names_with_room_stay_where_they_are_wanted() -> None:
    assert spread([80.0, 10.0, 50.0], 15, 0, 100) == [80, 10, 50]
    assert spread([50.0, 50.0], 15, 0, 100) == [50, 65]
    assert spread([100.0, 100.0], 15, 0, 100) == [85, 100]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(0.00035), "350 µs"),
        (duration(0.0062), "6.2 ms"),
        (duration(1.5), "1.5 s"),
        (duration(0), "0"),
        (number(1500), "1,500"),
        (number(48.34), "48.3"),
        (number(99.97), "100"),
        (number(0.25), "0.25"),
        (percent(0.125), "12.5 %"),
        (shortened("worker-0", 12), "worker-0"),
        (shortened("a-node-with-a-long-name-1", 12), "a-node…ame-1"),
    ],
)
def test_how_values_are_written(text: str, expected: str) -> None:
    assert text == expected


@given(ANY)
def test_values_of_any_size_stay_short(value: float) -> None:
    """A plot has little room for text."""
    assert max(len(duration(value)), len(number(value)), len(percent(value))) < 24
    assert not math.isnan(value)


def test_layers_lie_on_each_other() -> None:
    """What is missing has no height."""
    below = Series("a", "c1", [Point(0, 1.0), Point(1, None)])
    above = Series("b", "c2", [Point(0, 2.0), Point(1, 3.0)])
    assert [[point.y for point in one.points] for one in stacked([below, above])] == [[1, 0], [3, 3]]
