"""Ratios of interleaved rounds, and their spread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.stats import Sample, mean, percentile, ratio


def test_mean_weighs_rounds_by_their_work() -> None:
    assert mean([Sample(100, 1), Sample(300, 9)]) == 40


def test_mean_of_no_work_is_an_error() -> None:
    with pytest.raises(ValueError, match="no work"):
        mean([Sample(5, 0)])


def test_ratio_is_of_sums_not_of_ratios() -> None:
    found = ratio([Sample(10, 1), Sample(90, 9)], [Sample(20, 1), Sample(45, 9)])
    assert found.value == pytest.approx(100 / 65)
    assert (found.lowest, found.highest) == (0.5, 2.0)
    assert found.median == 1.25


def test_ratio_of_steady_rounds_has_no_spread() -> None:
    found = ratio([Sample(30, 10)] * 8, [Sample(20, 10)] * 8)
    assert {found.value, found.median, found.lowest, found.highest, found.low95, found.high95} == {1.5}


def test_ratio_is_the_same_for_the_same_samples() -> None:
    ours = [Sample(value, 10) for value in (10, 12, 9, 14)]
    theirs = [Sample(value, 10) for value in (11, 10, 10, 9)]
    assert ratio(ours, theirs) == ratio(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param([Sample(1, 1)] * 2, [Sample(1, 1)], id="unpaired"),
        pytest.param([], [], id="none"),
        pytest.param([Sample(1, 1)], [Sample(0, 1)], id="other side idle"),
    ],
)
def test_ratio_refuses(ours: list[Sample], theirs: list[Sample]) -> None:
    with pytest.raises(ValueError, match=r"paired|nothing"):
        ratio(ours, theirs)


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1, 1e9)), min_size=1, max_size=8))
def test_spread_encloses_the_ratio(amounts: list[tuple[float, float]]) -> None:
    found = ratio([Sample(a, 1) for a, _ in amounts], [Sample(b, 1) for _, b in amounts])
    assert found.lowest <= found.value * (1 + 1e-9)
    assert found.value <= found.highest * (1 + 1e-9)
    assert found.low95 <= found.high95


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.75, 3.25), (1.0, 4.0)])
def test_percentile_interpolates(share: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == value


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
