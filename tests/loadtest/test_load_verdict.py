"""What is said of a run, from records that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.events import Happened
from loadtest.generate.records import COMPLETED, Record
from loadtest.verdict import Expectations, Span, judge, recovery

STRUCK, RESTORED = 7.0, 15.0
FAULT = Span(2.0, STRUCK, RESTORED, 20.0)


def record(intended: float, handshake: float, outcome: str = COMPLETED, resumed: bool = False) -> Record:
    return Record(intended, 0.0, handshake, handshake, outcome, resumed)


def load(during: float, *others: Record) -> list[Record]:
    """Ten arrivals a second for 20 s, at 10 ms; at `during` seconds while the fault lasts."""
    times = [number / 10 for number in range(200)]
    usual = [record(at, during if STRUCK <= at < RESTORED else 0.01) for at in times]
    return sorted([*usual, *others])


def verdicts(records: list[Record], span: Span = FAULT, **expected: Any) -> list[str]:
    return [figure.verdict for figure in judge(Expectations(**expected), records, span)]


@pytest.mark.parametrize(
    ("expected", "during", "verdict"),
    [
        ({"p99_times": 3}, 0.03, "met"),
        ({"p99_times": 3}, 0.0302, "missed"),
        ({"p99_plus": 0.1}, 0.11, "met"),
        ({"p99_plus": 0.1}, 0.12, "missed"),
        ({"p99": 0.02}, 0.02, "met"),
        ({"p99": 0.02, "p99_times": 3}, 0.03, "missed"),
    ],
)
def test_the_p99_while_it_lasts(expected: dict[str, Any], during: float, verdict: str) -> None:
    """Held against a limit of its own, against the one before, or against the strictest of several."""
    assert verdicts(load(during), **expected) == [verdict]


def test_one_failure_too_many_whenever_it_comes() -> None:
    """Also after the repair; but not in the warm-up."""
    assert verdicts(load(0.01, record(16.0, -1.0, "closed_early")), failed=0) == ["missed"]
    assert verdicts(load(0.01, record(16.0, -1.0, "closed_early")), failed=1) == ["met"]
    assert verdicts(load(0.01, record(1.0, -1.0, "closed_early")), failed=0) == ["met"]


def test_an_outage_excuses_those_that_no_node_could_serve() -> None:
    """Full handshakes whose wait was over before the nodes were in use again: no resumption, none later."""

    def verdict(failed: Record) -> list[str]:
        return verdicts(load(0.01, failed), failed=0, outage=True)

    early, late = record(8.0, -1.0, "closed_early"), record(RESTORED - 0.2, -1.0, "closed_early")
    assert verdict(early) == ["met"]
    assert verdict(late) == ["missed"]
    under_way = record(6.9, -1.0, "closed_early")
    assert verdict(under_way._replace(total=1.0)) == ["met"]
    assert verdict(under_way._replace(total=0.05)) == ["missed"]
    assert verdict(early._replace(resumed=True)) == ["missed"]


def test_nothing_is_judged_that_is_not_expected() -> None:
    assert judge(Expectations(), load(1.0, record(8.0, -1.0, "timeout")), FAULT) == []


OVERLOAD = Span(2.0, 7.0, 19.0, 29.0)


def overloaded(done: float, slow_until: float) -> list[Record]:
    """100/s before and after, and between so many completed a second; slow until `slow_until`."""
    begin, over, end = OVERLOAD.begin, OVERLOAD.over, OVERLOAD.end
    calm = [record(at / 100, 0.01) for at in range(int(begin * 100))]
    between = [record(begin + n / done, 1.0) for n in range(int(done * (over - begin)))]
    after = [over + n / 100 for n in range(int((end - over) * 100))]
    return calm + between + [record(at, 1.0 if at < slow_until else 0.01) for at in after]


def test_an_overload_is_judged_by_what_was_completed_in_it() -> None:
    """Those that came in its last second were answered after it: not counted."""
    expected = Expectations(completed=216, p99=1.5, recovered=2.0, growth_mb=64)
    p99, completed, back, growth = judge(expected, overloaded(240, OVERLOAD.over), OVERLOAD, growth=65e6)
    assert completed.value == pytest.approx(240 * 11 / 12, rel=0.01)
    assert p99.value == pytest.approx(1000)
    assert (back.value, growth.value) == (0.0, 65.0)
    assert [figure.verdict for figure in (completed, p99, back, growth)] == ["met", "met", "met", "missed"]


@pytest.mark.parametrize(("slow_for", "expected"), [(1.3, 1.5), (2.4, 2.5), (10.0, 10.0)])
def test_how_long_an_overload_is_felt(slow_for: float, expected: float) -> None:
    """Until the last half second in which arrivals fared worse than before."""
    records = overloaded(240, OVERLOAD.over + slow_for)
    assert recovery(records, OVERLOAD) == pytest.approx(expected)


def test_every_event_must_be_over_in_time() -> None:
    happened = [Happened("reload", 1.0, 1.5), Happened("reload", 3.0, 6.0)]
    (figure,) = judge(Expectations(event_within=2.0), [], FAULT, happened=happened)
    assert (figure.value, figure.verdict) == (3.0, "missed")


KILLED, STARTED = Happened("kill a", 7.1, 7.2), Happened("start a", 15.0, 15.9)


@pytest.mark.parametrize(
    ("phases", "happened", "span", "stretches"),
    [
        ([("warm-up", 2.0), ("steady", 20.0)], [KILLED, STARTED], Span(2.0, 7.1, 15.9, 22.0), "before during after"),
        ([("warm-up", 2.0), ("steady", 20.0)], [KILLED], Span(2.0, 7.1, 22.0, 22.0), "before during"),
        ([("before", 5.0), ("during", 12.0), ("after", 9.0)], [], Span(0.0, 5.0, 17.0, 26.0), "before during after"),
        ([("warm-up", 2.0), ("crowd", 9.0), ("after", 9.0)], [KILLED], Span(2.0, 7.1, 11.0, 20.0), "before during after"),
        ([("warm-up", 2.0), ("steady", 20.0)], [], Span(2.0, 2.0, 22.0, 22.0), ""),
    ],
)  # fmt: skip
def test_what_is_before_and_after(
    phases: list[tuple[str, float]], happened: list[Happened], span: Span, stretches: str
) -> None:
    """Around the events; without any, around the phase that says so; else nothing is cut."""
    found = Span.of(phases, happened)
    assert found == span
    assert " ".join(found.stretches) == stretches
