"""What is said of a fault, from records that are made up; the page and the store of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest import overload, resilience, verdict
from loadtest.faults import FAULTS, Fault, Limit
from loadtest.figures import Figure
from loadtest.generate.records import COMPLETED, Record
from loadtest.resilience_page import write_page
from loadtest.verdict import Finding, Stretch, duration, judge

STRUCK, RESTORED = 7.0, 15.0
BY_NAME = {fault.name: fault for fault in FAULTS}


def record(intended: float, handshake: float, outcome: str = COMPLETED, resumed: bool = False) -> Record:
    return Record(intended, 0.0, handshake, handshake, outcome, resumed)


def load(during: float, *others: Record) -> list[Record]:
    """Ten arrivals a second for 20 s, at 10 ms; at `during` seconds while the fault lasts."""
    times = [number / 10 for number in range(200)]
    usual = [record(at, during if STRUCK <= at < RESTORED else 0.01) for at in times]
    return sorted([*usual, *others])


def verdicts(fault: Fault, records: list[Record]) -> list[str]:
    return [figure.verdict for figure in judge(fault, records, STRUCK, RESTORED)]


@pytest.mark.parametrize(
    ("name", "during", "expected"),
    [
        ("killed", 0.03, "met"),
        ("killed", 0.0301, "missed"),
        ("slow", 0.11, "met"),
        ("slow", 0.12, "missed"),
        ("rolling", 0.02, "met"),
        ("rolling", 0.03, "missed"),
    ],
)
def test_the_p99_is_held_against_the_one_before(name: str, during: float, expected: str) -> None:
    """Three times, 100 ms more, or twice as long, each as the fault says."""
    assert verdicts(BY_NAME[name], load(during)) == ["met", expected]


def test_one_failure_misses_the_bar_whenever_it_comes() -> None:
    """Also after the repair; but not in the warm-up."""
    killed = BY_NAME["killed"]
    assert verdicts(killed, load(0.01, record(16.0, -1.0, "closed_early"))) == ["missed", "met"]
    assert verdicts(killed, load(0.01, record(1.0, -1.0, "closed_early"))) == ["met", "met"]


def test_an_outage_excuses_those_that_no_node_could_serve() -> None:
    """Full handshakes whose wait was over before the nodes were in use again: no resumption, none later."""
    outage = BY_NAME["outage"]
    early, late = record(8.0, -1.0, "closed_early"), record(RESTORED - 0.2, -1.0, "closed_early")
    assert verdicts(outage, load(0.01, early)) == ["met", "met"]
    assert verdicts(outage, load(0.01, late)) == ["missed", "met"]
    under_way, ended = record(6.9, -1.0, "closed_early"), record(6.9, -1.0, "closed_early")
    assert verdicts(outage, load(0.01, under_way._replace(total=1.0))) == ["met", "met"]
    assert verdicts(outage, load(0.01, ended._replace(total=0.05))) == ["missed", "met"]
    assert verdicts(outage, load(0.01, early._replace(resumed=True))) == ["missed", "missed"]


def test_every_fault_of_the_list_has_its_own_name_and_time() -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert all(duration(fault) > verdict.BEFORE + verdict.AFTER for fault in FAULTS)
    assert str(Limit(plus=0.1)) == "≤ before + 100 ms"
    assert str(Limit(times=3)) == "≤ 3 × before"


BEGIN, OVER, END = 7.0, 19.0, 29.0


def overloaded(done: float, slow_until: float) -> list[Record]:
    """100/s before and after, and between so many completed a second; slow until `slow_until`."""
    calm = [record(at / 100, 0.01) for at in range(int(BEGIN * 100))]
    between = [record(BEGIN + n / done, 1.0) for n in range(int(done * (OVER - BEGIN)))]
    after = [OVER + n / 100 for n in range(int((END - OVER) * 100))]
    return calm + between + [record(at, 1.0 if at < slow_until else 0.01) for at in after]


def test_an_overload_is_judged_by_what_was_completed_in_it() -> None:
    """Those that came in its last second were answered after it: not counted."""
    completed, p99, back = overload.figures(overloaded(240, OVER), BEGIN, OVER, END)
    assert completed.value == pytest.approx(240 * 11 / 12, rel=0.01)
    assert p99.value == pytest.approx(1000)
    assert back.value == 0.0
    assert [figure.verdict for figure in (completed, p99, back)] == ["met"] * 3


@pytest.mark.parametrize(("slow_until", "expected"), [(OVER + 1.3, 1.5), (OVER + 2.4, 2.5), (END, 10.0)])
def test_how_long_an_overload_is_felt(slow_until: float, expected: float) -> None:
    """Until the last half second in which arrivals fared worse than before."""
    assert overload.recovery(overloaded(240, slow_until), BEGIN, OVER, END) == pytest.approx(expected)


def finding(name: str, **changes: object) -> Finding:
    facts = {"machine": "a machine", "versions": "versions", "peer": "none"}
    stretch = Stretch(1500, 0, 0.0066, 0.0087)
    found = Finding(
        name, BY_NAME[name].title if name in BY_NAME else name, "300 handshakes/s", "2026-01-31", facts
    )
    found.stretches = dict.fromkeys(("before", "during", "after"), stretch)
    found.figures = judge(BY_NAME.get(name, FAULTS[0]), load(0.01), STRUCK, RESTORED)
    found.notes = ["the fault lasted 8.0 s"]
    return found


def test_the_page(tmp_path: Path) -> None:
    """A row for each fault with its verdict, and what it was measured on."""
    missed = finding("slow")
    missed.figures = judge(BY_NAME["slow"], load(0.5), STRUCK, RESTORED)
    over = finding(overload.NAME)
    over.figures = overload.figures(overloaded(100, OVER), BEGIN, OVER, END)
    write_page(tmp_path / "page.md", [finding("killed"), missed, finding("outage"), over])
    page = (tmp_path / "page.md").read_text()
    latency = "6.6 / 8.7 ms"
    killed = f"| one of three nodes killed (SIGKILL) | 0 | {latency} | {latency} | {latency} |"
    assert f"{killed} 0 failed; p99 ≤ 3 × before | met |" in page
    assert "0 failed; p99 ≤ before + 100 ms | **missed** |" in page
    assert "| those past their deadline only; resumptions 0 | met |" in page
    assert "| at least 216 | **missed** |" in page
    assert page.count("2026-01-31, a machine; versions, at 300 handshakes/s.") == 1


def test_results_of_earlier_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one scenario replaces that one's result in the file, and the page shows all."""
    store, page = tmp_path / "results.json", tmp_path / "page.md"
    store.write_text(json.dumps([finding("killed").to_json(), finding("slow").to_json()]))
    new = finding("slow")
    new.notes = ["measured again"]
    monkeypatch.setitem(resilience.SCENARIOS, "slow", lambda _rate: new)
    arguments = ["--only", "slow", "--results", str(store), "--docs", str(page)]
    assert CliRunner().invoke(resilience.app, arguments).exit_code == 0
    kept = [Finding.from_json(data) for data in json.loads(store.read_text())]
    assert kept == [finding("killed"), new]
    assert isinstance(kept[0].figures[0], Figure)
    assert "one of three nodes killed" in page.read_text()
    assert "measured again" in page.read_text()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """An unknown scenario, and a file that holds something else."""
    unknown = CliRunner().invoke(resilience.app, ["--only", "flood"])
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("error: --only: 'flood' is none of killed, stopped")
    store = tmp_path / "other.json"
    store.write_text('{"a": 1}')
    other = CliRunner().invoke(resilience.app, ["--only", "slow", "--results", str(store)])
    assert other.exit_code == 1
    assert other.stderr == f"error: {store}: holds no results of this tool; choose another file\n"
