"""Other proxies, and how they are compared with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hsm.errors import ConfigurationError
from loadtest import cli, compare
from loadtest.compare import ComparisonSettings, Measured, SideSettings, judged, start_all, units
from loadtest.documents import Document, Origin, read
from loadtest.generate.records import COMPLETED, Record
from loadtest.pages import section
from loadtest.stats import Sample
from loadtest.tables import show_comparison
from loadtest.targets.lab import Lab, LoadTestError, MissingToolError
from loadtest.targets.pkcs11 import SOURCE_VARIABLE
from loadtest.targets.sides import ServerSettings, Sides, Started
from tests.loadtest.conftest import real_components


@pytest.mark.parametrize(
    "settings",
    [
        {"server": "haproxy"},
        {"server": "stunnel"},
        {"server": "hitch"},
        {"server": "nginx", "key": "rsa2048"},
        {"server": "nginx", "mode": "http"},
        {"server": "offload", "certificates": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_what_each_side_negotiates(lab: Lab, settings: dict[str, Any]) -> None:
    """The same version, cipher and group as all others; its version is known, its processes can be measured."""
    sides = Sides(lab)
    started = sides.start(ServerSettings.model_validate(settings))
    terms = sides.negotiated(started)
    assert (terms.version, terms.group) == ("TLSv1.3", "X25519")
    assert terms.signature == ("RSA-PSS" if settings.get("key") else "ECDSA")
    assert started.version.startswith(settings["server"])
    groups = started.processes()
    assert groups["worker"]
    assert set(groups["worker"]) <= set(groups["tree"])


def measured(name: str, nanoseconds: float, **settings: Any) -> Measured:
    """Three rounds of a hundred connections at so much CPU each."""
    side = SideSettings(server="nginx", **settings)
    records = [Record(0.0, 0.0, 0.01, 0.02, COMPLETED, False), Record(0.1, 0.0, -1.0, 9.0, "timeout", False)]
    cpu = {group: [Sample(nanoseconds * 100, 100)] * 3 for group in ("worker", "tree")}
    started = Started(1, dict, "nginx/1.22")
    rates = [Sample(nanoseconds, 1)] * 3
    return Measured(name, side, started, "TLSv1.3", cpu, rates, records, memory=round(nanoseconds))


def comparison(unit: str = "connection", **goals: Any) -> compare.Comparison:
    """Ours, one that takes twice the CPU, and one that is not installed."""
    sides = [measured("nginx", 1_000_000), measured("offload", 500_000, against="nginx", **goals)]
    return judged("What a connection costs.", unit, sides, ["hitch: hitch is missing: apt-get install hitch"])


def test_a_side_is_held_against_another() -> None:
    nginx, offload = comparison().sides
    assert (nginx.reference, nginx.to_reference) == (None, None)
    assert offload.to_reference is not None
    assert (offload.to_reference.value, offload.cpu_us, offload.rounds) == (0.5, 500, [500] * 3)
    assert offload.failures == {"timeout": 1}
    assert offload.handshake.count == 1


def test_goals_are_about_the_worker_the_rate_or_memory() -> None:
    (cpu,) = comparison(at_most=0.4).figures
    assert (cpu.value, cpu.ours, cpu.theirs, cpu.verdict) == (0.5, 500, 1000, "missed")
    (rate,) = comparison("rate", at_least=0.4).figures
    assert (rate.value, rate.unit, rate.verdict) == (0.5, "handshakes/s", "met")
    (memory,) = comparison(memory_at_most=0.5).figures
    assert (memory.value, memory.ours, memory.verdict) == (0.5, 0.5, "met")


def test_work_is_counted_in_the_unit() -> None:
    done = [Record(0.0, 0.0, 0.1, 0.2, COMPLETED, False, 0, 5, 2_000_000)] * 3
    assert [units(unit, done) for unit in ("connection", "request", "megabyte", "rate")] == [3, 15, 6, 3]


def test_the_table_names_what_is_missing() -> None:
    """Nothing is left out silently: not a proxy that is not installed, nor a failure."""
    console = Console(width=120)
    with console.capture() as capture:
        show_comparison(comparison(at_most=0.4), console)
    text = capture.get()
    assert "nginx/1.22" in text
    assert "0.50 (0.50–0.50)" in text
    assert "MISSED" in text
    assert "missing: hitch: hitch is missing: apt-get install hitch" in text


def test_a_comparison_in_a_page() -> None:
    origin = Origin("handshakes", None, "2026-01-31T12:00:00Z", "offload-load", "a machine", "versions")
    text = section([Document(origin, comparison(at_most=0.4))])
    goal = "| `handshakes` | worker's CPU, offload: connection | 500 µs | 1,000 µs | 0.50 (0.50–0.50) |"
    assert f"{goal} at most 0.4 | **missed** |" in text
    assert "| offload | 500 | 500 | nginx | 0.50 (0.50–0.50) |" in text
    assert "Not compared: hitch: hitch is missing" in text


def test_a_proxy_that_is_missing_is_noted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison goes on with the others; with none, there is nothing to compare."""
    absent = MissingToolError("it is missing: apt-get install it")

    def start(_sides: Sides, settings: ServerSettings) -> Started:
        if settings.server == "hitch":
            raise absent
        return Started(1, dict, "nginx/1.22")

    monkeypatch.setattr(Sides, "start", start)
    monkeypatch.setattr(Sides, "negotiated", lambda *_arguments: "TLSv1.3")
    sides = Sides(lab)
    wanted = {"one": SideSettings(server="nginx"), "two": SideSettings(server="hitch")}
    found, missing = start_all(sides, wanted)
    assert [one.name for one in found] == ["one"]
    assert missing == ["two: it is missing: apt-get install it"]
    with pytest.raises(LoadTestError, match="nothing to compare: two: it is missing"):
        start_all(sides, {"two": wanted["two"]})


SMALL = """\
description: As small as can be.
phases: [{name: all, duration: 200ms, rate: 0, burst: 4}]
clients: [{requests: 2}]
of: request
rounds: 1
sides:
  one: {server: nginx}
  other: {server: nginx, clients: [{requests: 3}], against: one, at_most: 100, memory_at_most: 100}
"""


def test_a_comparison_from_end_to_end(tmp_path: Path) -> None:
    """nginx beside nginx: figures are there, whatever they are, and can be read back."""
    path, written = tmp_path / "small.yaml", tmp_path / "result.json"
    path.write_text(SMALL)
    with real_components():
        done = CliRunner().invoke(cli.app, ["compare", str(path), "--json", str(written)])
    assert done.exit_code == 0, done.output
    found = read(written).result
    assert isinstance(found, compare.Comparison)
    assert [side.connections for side in found.sides] == [4, 4]
    assert [figure.verdict for figure in found.figures] == ["met", "met"]
    assert all(side.worker_us > 0 and side.negotiated for side in found.sides)


def test_a_round_with_failures_gives_no_figure(lab: Lab) -> None:
    settings = ComparisonSettings.model_validate(
        {
            "phases": [{"name": "all", "duration": 0.1, "rate": 0, "burst": 2}],
            "clients": [{"path": "/absent"}],
            "sides": {"one": {"server": "nginx"}},
        }
    )
    side = Measured("one", settings.sides["one"], Sides(lab).start(settings.sides["one"]))
    order = settings.order_for(side.settings, side.started.port, 1.0)
    with pytest.raises(LoadTestError, match=r"one: of 2 clients there failed .*http_404"):
        compare.load_round(side, order, 1, "connection", keep=True)


@pytest.mark.parametrize("path", sorted(compare.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_comparisons_that_come_with_the_tool(path: Path) -> None:
    """Each is found by its name, and has something to compare."""
    found = compare.load(path.stem)
    assert found.description.endswith(".")
    assert any(side.against for side in found.sides.values())


@pytest.mark.parametrize(
    ("sides", "mistake"),
    [
        ("{a: {server: nginx, against: b}}", "sides.a: held against 'b', which is no side"),
        ("{a: {server: nginx, at_most: 1}}", "sides.a: has a goal, but is held against nothing"),
        ("{a: {server: hitch, mode: http}}", "hitch is compared as it passes plaintext on"),
        ("{a: {server: hitch, signature: 5ms}}", "hitch takes no key from a token"),
        ("{a: {server: nginx, verify: rsa}}", "are for offload"),
        ("{a: {server: nginx, tickets: true}}", "are for offload"),
        (
            "{a: {server: offload, clients: [{resumed: 1}]}}",
            "clients resume sessions, but it gives no tickets",
        ),
        ("{a: {server: apache}}", "server"),
    ],
)
def test_mistakes_in_a_comparison(tmp_path: Path, sides: str, mistake: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"phases: [{{name: a, duration: 1s, rate: 1}}]\nsides: {sides}\n")
    with pytest.raises(ConfigurationError, match=f"bad.yaml: .*{mistake}"):
        compare.load(str(path))


def test_sides_without_the_slow_token_are_missing_one_by_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is named; the ones whose key needs no token are compared."""
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path / "absent.c"))
    wanted = {
        "ours": SideSettings(server="offload", signature=0.005),
        "other": SideSettings(server="nginx", signature=0.005),
        "memory": SideSettings(server="nginx"),
    }
    found, missing = start_all(Sides(lab), wanted)
    assert [one.name for one in found] == ["memory"]
    assert [line.partition(",")[0] for line in missing] == ["ours: slowtoken.c", "other: slowtoken.c"]
    assert all(" is missing" in line for line in missing)
