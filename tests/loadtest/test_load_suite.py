"""Several scenarios in a row, and the page that is written of what is known of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtest import cli, compare, scenario, suite
from loadtest.benches import BENCHES
from loadtest.cli import app
from loadtest.documents import Document, Origin
from loadtest.figures import Bar, Figure, Findings
from loadtest.generate.records import COMPLETED, Record, summarise
from loadtest.pages import section
from loadtest.run import Part, RunResult, by_phase
from loadtest.targets.lab import LoadTestError

PAGE = "# Resilience\n\nProse.\n\n<!-- begin resilience -->\nold\n<!-- end resilience -->\n\nMore prose.\n"


def document(name: str, verdict: float = 0.0) -> Document:
    """A result of a scenario that expects no failures."""
    load = scenario.load(name)
    records = [Record(at / 10, 0.0, 0.0066, 0.0087, COMPLETED, False) for at in range(220)]
    records.append(Record(21.95, 0.0, -1.0, 0.1, "timeout", False))
    total = summarise(records, 0.0, 22.0)
    stretches = [Part(stretch, total) for stretch in ("before", "during")]
    figures = [Figure("failed", verdict, "", verdict, bar=Bar(0))]
    phases = by_phase(load, 1.0, records)
    found = RunResult(load, 1, 1.0, phases, [], total, stretches=stretches, figures=figures)
    origin = Origin(name, None, "2026-01-31T12:00:00Z", "offload-load", "a machine", "versions")
    return Document(origin, found)


def test_a_row_for_each_run() -> None:
    """With its verdict, what clients saw, and what it was measured on."""
    text = section([document("node-lost"), document("node-slow", 3.0)])
    lost = "One of three nodes is killed (SIGKILL), and started again after 8 s"
    assert f"| {lost} | 1 of 221 | 6.6 / 6.6 ms | 6.6 / 6.6 ms | – | failed 0 (at most 0) | met |" in text
    assert "failed 3 (at most 0) | **missed** |" in text
    assert "- `node-slow`: warm-up 300/s, steady 300/s; clients saw 1 timeout." in text
    assert text.count("2026-01-31, a machine; versions.") == 1


def suite_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["suite", *map(str, arguments)])


def test_earlier_results_stay_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one scenario replaces that one's result; the prose around the section stays as it is."""
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(PAGE)
    results.mkdir()
    document("node-lost").write(results / "node-lost.json")

    def run_again(names: list[str], directory: Path, **_options: object) -> list[Document]:
        assert names == ["node-slow"]
        document("node-slow").write(directory / "node-slow.json")
        return [document("node-slow")]

    monkeypatch.setattr(cli, "carry_out", run_again)
    done = suite_command("resilience", "--only", "node-slow", "--results", results, "--page", page)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith("# Resilience\n\nProse.\n\n<!-- begin resilience -->\n| what happens |")
    assert text.endswith("<!-- end resilience -->\n\nMore prose.\n")
    assert "old" not in text
    assert text.index("is killed") < text.index("20 times slower")


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["flood"], "flood: no such suite; there are resilience"),
        (["resilience", "--only", "flood"], "--only: 'flood' is none of node-lost, "),
    ],
)
def test_unknown_names(arguments: list[str], mistake: str) -> None:
    done = suite_command(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {mistake}")


def test_a_page_without_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n")
    monkeypatch.setattr(cli, "carry_out", lambda *_arguments, **_options: [])
    done = suite_command("resilience", "--results", tmp_path / "new", "--page", page)
    assert done.exit_code == 2
    assert "has no lines <!-- begin resilience --> and <!-- end resilience -->" in done.stderr
    assert page.read_text() == "# Nothing\n"


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_rounds: int) -> Findings:
        raise LoadTestError("cc is missing: apt-get install gcc")

    found = Findings("Two things", [Figure("thing", 2.0, "KB", 2.0)], ["a note"])
    monkeypatch.setattr(suite, "BENCHES", {"node": broken, "idle": lambda _rounds: found})
    done = suite_command("bench", "--only", "node", "--only", "idle", "--results", tmp_path)
    assert done.exit_code == 1
    assert "error: node: cc is missing: apt-get install gcc" in done.stderr
    assert "thing: 2.0 KB" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["idle.json"]
    assert "| `idle` | thing | 2.0 KB |" in section(suite.SUITES["bench"].results(tmp_path))


def test_every_scenario_of_a_suite_is_there() -> None:
    """And one that breaks something expects something."""
    for name in suite.SUITES["resilience"].names:
        load = scenario.load(name)
        assert load.expect.model_fields_set or not load.events
    for name in suite.SUITES["bench"].names:
        assert name in BENCHES or compare.load(name).sides
