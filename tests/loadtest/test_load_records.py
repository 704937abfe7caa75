"""Histograms and records: what is known of latencies afterwards."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generate.histogram import Histogram, bucket_of, highest_of
from loadtest.generate.records import COMPLETED, STRETCHES_MOST, Record, course, summarise

SECONDS = st.lists(st.floats(0, 3600), min_size=1, max_size=300)


def counted(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.integers(0, 2**50))
def test_a_bucket_holds_its_value_to_a_hundredth(value: int) -> None:
    """Its highest value is the value itself, or less than 0.8 % above it."""
    highest = highest_of(bucket_of(value))
    assert value <= highest <= value * 1.008


@given(st.integers(0, 2**50))
def test_buckets_are_in_order_and_without_gaps(value: int) -> None:
    """The next value after a bucket's highest is in the next bucket."""
    bucket = bucket_of(value)
    assert bucket_of(highest_of(bucket)) == bucket
    assert bucket_of(highest_of(bucket) + 1) == bucket + 1


@given(SECONDS, st.floats(0.001, 1))
def test_percentiles_are_those_of_the_values(values: list[float], share: float) -> None:
    """As many values as asked for are not above it, to a bucket's width."""
    found = counted(values).percentile(share)
    micros = sorted(round(value * 1e6) for value in values)
    exact = next(v for i, v in enumerate(micros, 1) if i >= share * len(micros))
    assert exact <= round(found * 1e6) <= exact * 1.008


@given(SECONDS, SECONDS)
def test_merging_is_counting_together(first: list[float], second: list[float]) -> None:
    merged = counted(first)
    merged.merge(counted(second))
    assert merged.to_json() == counted(first + second).to_json()


def test_a_histogram_survives_json() -> None:
    histogram = counted([0.0, 0.001, 5.0, 5.0])
    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert (len(again), again.percentile(0.5), again.percentile(1)) == (4, 0.001003, histogram.percentile(1))


def test_an_empty_histogram() -> None:
    assert Histogram().percentile(0.99) == 0.0


def record(intended: float, outcome: str = COMPLETED, handshake: float = 0.01) -> Record:
    return Record(intended, 0.001, handshake, handshake + 0.001, outcome, resumed=False)


def test_a_summary_cuts_by_the_time_that_was_intended() -> None:
    """An arrival belongs to the stretch it was due in, whenever it was answered."""
    records = [record(0.5, handshake=9.0), record(1.0), record(1.5, "timeout", -1.0), record(2.0)]
    summary = summarise(records, 1.0, 2.0)
    assert (summary.arrivals, summary.completed, summary.failures) == (2, 1, {"timeout": 1})
    assert summary.rate == 1.0
    assert summary.handshake.highest == 0.01
    assert summarise(records, 0.0, 1.0).handshake.highest == 9.0


def test_latencies_are_of_those_that_completed() -> None:
    """A failure is not counted as a quick answer, nor as a slow one."""
    summary = summarise([record(0.0), record(0.1, "econnreset", 7.0)], 0.0, 1.0)
    assert summary.handshake.count == 1
    assert summary.total.highest == pytest.approx(0.011)


def test_an_empty_stretch() -> None:
    summary = summarise([], 0.0, 5.0)
    assert (summary.arrivals, summary.failed, summary.rate, summary.handshake.count) == (0, 0, 0.0, 0)


@given(st.lists(st.floats(0, 2000), max_size=50), st.floats(0.1, 2000))
def test_a_course_is_the_run_in_stretches(times: list[float], seconds: float) -> None:
    """Each arrival is in one stretch, stretches meet, and there are never too many of them."""
    records = [Record(at, 0.0, 0.01, 0.02, COMPLETED, False) for at in sorted(times) if at < seconds]
    found = course(records, seconds)
    assert sum(stretch.arrivals for stretch in found) == len(records)
    assert sum(stretch.seconds for stretch in found) == pytest.approx(seconds)
    assert len(found) <= STRETCHES_MOST


def test_a_course_second_by_second() -> None:
    """The last one is as long as what is left."""
    records = [Record(at / 10, 0.0, 0.01, 0.02, COMPLETED, False) for at in range(10)]
    assert [stretch.arrivals for stretch in course(records, 0.95)] == [10]
    assert [stretch.seconds for stretch in course(records, 2.5)] == [1, 1, 0.5]
    assert {stretch.seconds for stretch in course(records, 3600.0)} == {12}
