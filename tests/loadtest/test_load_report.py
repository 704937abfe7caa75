"""Reports of recorded results: what they say, and that every result can be told."""

from __future__ import annotations

import html.parser
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from hsm.errors import ConfigurationError
from loadtest.capacity import Capacity
from loadtest.cli import app
from loadtest.compare import Comparison
from loadtest.documents import LARGEST
from loadtest.figures import Findings
from loadtest.plan.result import PlanResult
from loadtest.report import images
from loadtest.report.canvas import NARROW, WIDE
from loadtest.report.contents import Contents
from loadtest.report.markup import svg, tag
from loadtest.report.page import POLICY, contents_of, render
from loadtest.run import RunResult
from tests.loadtest.report_results import FILES, KINDS, changed, hostile, recorded

PNG = b"\x89PNG\r\n\x1a\n"


class Outline(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def titles(contents: Contents) -> list[str]:
    return [panel.title for panel in contents.panels]


def told(contents: Contents) -> dict[str, str]:
    """The headlines, by label."""
    return {headline.label: headline.value for headline in contents.headlines}


def test_a_run() -> None:
    """What clients saw comes first, then what the proxy told; warnings say what can't be trusted."""
    document = recorded("run")
    result = document.result
    assert isinstance(result, RunResult)
    found = contents_of(document)
    assert titles(found) == [
        "Latency over time",
        "Rate over time",
        "Expectations",
        "Events",
        "Phases",
        "Around the events",
        "Kinds of clients",
        "Latency against rate",
        "Failures",
        "Where a handshake's time goes",
        "Load of each node",
        "Wait for each node",
        "CPU of the proxy",
    ]
    assert told(found)["Failed"] == f"{result.total.failed}"
    late, failed, unexpected, one_machine = found.warnings
    assert late.startswith("The load client was late")
    assert failed.endswith("of the connections failed: 440 tls_s2n_err_io.")
    assert unexpected == "failed: 440, and should be at most 0."
    assert "CPU for each connection is the figure that holds" in one_machine
    tables = {panel.title: panel.table.rows for panel in found.panels}
    assert [row[0] for row in tables["Events"]] == ["kill b", "start b"]
    assert [row[0] for row in tables["Phases"]] == ["calm", "crowd"]
    assert [row[0] for row in tables["Around the events"]] == ["before", "during", "after"]
    assert [row[0] for row in tables["Kinds of clients"]] == ["first visit", "returning"]
    assert len(tables["Latency over time"]) == len(result.course)
    assert "burst: 900" in found.details[0][1]


def test_a_run_against_a_server_elsewhere() -> None:
    """It tells nothing of itself, and shares no machine with the client."""
    document = changed("run", lambda value: "tls.example" if value == "127.0.0.1" else value)
    assert isinstance(document.result, RunResult)
    found = contents_of(replace(document, result=replace(document.result, observed=None)))
    assert titles(found)[-1] == "Failures"
    assert not any("one machine" in warning for warning in found.warnings)


def test_a_search() -> None:
    """Each trial is a row; rates that met the objective, and those that did not, look different."""
    document = recorded("capacity")
    assert isinstance(document.result, Capacity)
    found = contents_of(document)
    assert told(found)["Highest rate"] == f"{document.result.rate:.0f}/s"
    latency, use = found.panels
    assert len(latency.table.rows) == len(use.table.rows) == len(document.result.trials)
    assert {row[-1] for row in latency.table.rows} == {"met", "missed"}
    assert latency.drawing is not None
    drawn = svg(latency.drawing.draw(WIDE, "x"))
    assert drawn.count("<circle") == 2 * sum(trial.met for trial in document.result.trials)
    assert "objective: 50 ms" in drawn


def test_a_comparison() -> None:
    """Who takes more CPU than what it is held against, who less, and who could not be compared."""
    document = recorded("compare")
    assert isinstance(document.result, Comparison)
    found = contents_of(document)
    nginx = next(side for side in document.result.sides if side.name == "nginx")
    assert nginx.to_reference is not None
    assert told(found)["nginx"] == f"{nginx.to_reference.value:.2f} ×"
    assert titles(found) == [
        "Goals",
        "CPU of a connection, compared",
        "CPU of a connection",
        "Handshake latency",
    ]
    assert found.warnings[0] == "Missing: hitch: hitch is missing: apt-get install hitch."
    assert found.panels[1].text.startswith(
        "More than what it is held against: stunnel. Less: nginx, haproxy, nginx RSA-2048."
    )
    assert [row[0] for row in found.panels[2].table.rows] == [side.name for side in document.result.sides]


def test_a_bench() -> None:
    """Figures beside their goals; those that are ratios are drawn too."""
    document = recorded("bench")
    assert isinstance(document.result, Findings)
    found = contents_of(document)
    (panel,) = found.panels
    assert [row[0] for row in panel.table.rows] == [figure.name for figure in document.result.figures]
    assert [row[-1] for row in panel.table.rows] == ["met"] * 3
    assert panel.drawing is not None
    assert svg(panel.drawing.draw(NARROW, "x")).count("<rect") == 2
    assert "began late" in found.details[0][1]


def test_a_plan() -> None:
    """How many HSMs, what their loss does second by second, what more would buy, and what is assumed."""
    document = recorded("plan")
    assert isinstance(document.result, PlanResult)
    found = contents_of(document)
    assert told(found) == {
        "HSMs": "4", "Workers": "2", "Handshake p99": "13.9 ms", "p99, a zone lost": "16.6 ms"
    }  # fmt: skip
    clusters, loss, gains = found.panels
    assert [(row[0], row[-1]) for row in clusters.table.rows] == [
        ("3", "missed"),
        ("4", "held"),
        ("5", "held"),
    ]
    assert clusters.drawing is not None
    drawn = svg(clusters.drawing.draw(WIDE, "x"))
    assert drawn.count("<circle") == 9
    assert all(text in drawn for text in ("planned", "objective: 50 ms", "worst second"))
    assert len(loss.table.rows) == 8
    assert gains.table.rows[-1] == ["none resumed, as after lost ticket keys", "401/s", "0.67 × planned"]
    assert found.warnings == document.result.warnings
    assert "AWS publishes none" in found.details[-1][1]


def test_a_plan_without_an_answer() -> None:
    """It says why in the place of a number."""
    document = recorded("plan")
    assert isinstance(document.result, PlanResult)
    plan = replace(document.result.plan, hsms=None, why="use several clusters", gains=())
    found = contents_of(replace(document, result=replace(document.result, plan=plan)))
    assert [(line.value, line.note) for line in found.headlines] == [
        ("no number is enough", "use several clusters")
    ]
    assert titles(found) == ["Numbers of HSMs"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_else(kind: str) -> None:
    """No script, no address but its own parts; every plot says in words what it shows, under one name."""
    outline = Outline(render([contents_of(recorded(kind))]))
    names = [name for name, _ in outline.elements]
    assert {"script", "link", "img", "iframe", "object", "base", "form"}.isdisjoint(names)
    attributes = [found for _, found in outline.elements]
    assert not any("src" in found for found in attributes)
    assert all((found.get("href") or "#").startswith("#") for found in attributes)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in attributes
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    named = {name for found in attributes for name in (found.get("aria-labelledby") or "").split()}
    assert named <= set(ids)


def test_a_page_of_several_results() -> None:
    """They are listed first, and each can be gone to."""
    outline = Outline(render([contents_of(recorded(kind)) for kind in KINDS]))
    assert [given["href"] for name, given in outline.elements if name == "a"] == [
        f"#r{number}" for number in range(1, len(KINDS) + 1)
    ]
    assert [given["id"] for name, given in outline.elements if name == "article"] == [
        f"r{number}" for number in range(1, len(KINDS) + 1)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_a_hostile_result_are_texts(kind: str) -> None:
    """The page has the elements that it has anyway, and its images are well-formed."""
    contents = contents_of(hostile(kind))
    names = {name for name, _ in Outline(render([contents])).elements}
    assert names <= {
        name for kind in KINDS for name, _ in Outline(render([contents_of(recorded(kind))])).elements
    }
    for panel in contents.panels:
        for size in (WIDE, NARROW) if panel.drawing else ():
            assert panel.drawing is not None
            fromstring(svg(panel.drawing.draw(size, "x")))


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=30, deadline=None)
def test_numbers_of_any_size_can_be_told(kind: str, data: st.DataObject) -> None:
    """A result with wrong numbers gives a wrong report, but a page, and no position that is none."""
    floats = itertools.cycle(data.draw(st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=40)))
    wholes = itertools.cycle(data.draw(st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=10)))

    def change(value: Any) -> Any:
        if isinstance(value, bool | str) or value is None or value == 127:
            return value
        return next(floats) if isinstance(value, float) else next(wholes)

    page = render([contents_of(changed(kind, change))])
    positions = {
        value
        for name, given in Outline(page).elements
        for key, value in given.items()
        if key in {"x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "width", "height", "d"}
    }
    assert not any("nan" in (value or "") or "inf" in (value or "") for value in positions)


def test_text_that_no_document_can_hold() -> None:
    assert svg(tag("p", "a\0b\ud800c", class_="x\x1b")) == '<p class="x\ufffd">a\ufffdb\ufffdc</p>'


def offload_load(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_report_is_written(tmp_path: Path) -> None:
    """As a page, and its plots as images, which are not empty."""
    page, directory = tmp_path / "out.html", tmp_path / "png"
    results = [FILES / f"{kind}.json" for kind in ("capacity", "compare")]
    found = offload_load(*results, "--html", page, "--png", directory)
    assert found.exit_code == 0, found.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    written = sorted(directory.iterdir())
    assert [path.name for path in written] == [
        "01-latency-against-rate.png",
        "02-what-was-busy.png",
        "03-goals.png",
        "04-cpu-of-a-connection-compared.png",
        "05-cpu-of-a-connection.png",
        "06-handshake-latency.png",
    ]
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 4000 for path in written)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ([], "nothing to write: give --html FILE, --png DIRECTORY, or both"),
        (["--html", "/dev/null/x.html"], "--html: cannot write /dev/null/x.html: Not a directory"),
        (["--png", "/dev/null/png"], "--png: cannot write /dev/null/png: Not a directory"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], mistake: str) -> None:
    found = offload_load(FILES / "run.json", *arguments)
    assert (found.exit_code, found.stderr) == (2, f"error: {mistake}\n")


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    found = offload_load(path, "--html", tmp_path / "out.html")
    assert found.exit_code == 2
    assert (
        found.stderr
        == f"error: {path}: no result of offload-load; make one with offload-load run … --json FILE\n"
    )


def test_images_without_the_package_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says which; the page needs none."""

    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(images, "import_module", absent)
    found = offload_load(FILES / "run.json", "--png", tmp_path / "png")
    assert found.exit_code == 2
    assert found.stderr.endswith("not installed: pip install 'offload[report]'\n")


def test_images_without_fonts() -> None:
    """Plots without their text would mislead."""
    with pytest.raises(ConfigurationError, match="no font to write with: apt-get install"):
        images.renderer(skip_system_fonts=True)
