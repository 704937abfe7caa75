"""`offload-load`: scenarios, and runs against a real server."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from hsm.errors import ConfigurationError
from loadtest import documents, scenario
from loadtest.capacity import Capacity, Objective
from loadtest.cli import app
from loadtest.generate.generator import Count
from loadtest.generate.histogram import Histogram
from loadtest.generate.records import COMPLETED, Record
from loadtest.generate.schedule import Phase
from loadtest.generate.target import Target
from loadtest.live import Board, row
from loadtest.run import RunResult, by_phase
from loadtest.targets.agreement import POLICY_TLS12
from loadtest.targets.peers import Nginx

SHORT = """\
arrivals: even
phases:
  - {name: calm, duration: 500ms, rate: 20}
  - {name: crowd, duration: 500ms, rate: 40, burst: 5}
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A scenario of one second."""
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return path


def offload_load(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("path", sorted(scenario.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_scenarios_that_come_with_the_tool(path: Path) -> None:
    """Each is found by its name, says what it is to show, and keeps within a few minutes."""
    found = scenario.load(path.stem)
    assert found.description
    assert sum(phase.duration for phase in found.phases) < 120


def test_an_order_is_what_the_scenario_says(short: Path) -> None:
    """With all rates multiplied, bursts too."""
    kinds = "[{name: old, tls: '1.2', resumed: 0.25}, {name: large, share: 3, path: /large, timeout: 2s}]"
    short.write_text(f"{SHORT}clients: {kinds}\n")
    order = scenario.load(str(short)).order("::1", 8443, factor=2.0, seed=3)
    assert order.phases == (Phase(0.5, 40), Phase(0.5, 80, burst=10))
    assert (order.poisson, order.seed) == (False, 3)
    assert order.targets == (
        Target(host="::1", port=8443, policy=POLICY_TLS12, cipher="", resumed=0.25),
        Target(host="::1", port=8443, share=3, path="/large", timeout=2),
    )
    assert order.longest == 1 + 20


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("phases: []", "phases: "),
        ("phases: [{name: a, duration: 1s, rate: 1, rat: 2}]", "unknown key; did you mean 'rate'?"),
        ("phases: [{name: a, duration: 0s, rate: 1}]", r"phases\[0\].duration: expected a number above 0"),
        ("phases: [{name: a, duration: 2h, rate: 1}]", "phases: longer than 3600 s together"),
        ("phases: [{name: a, duration: 1h, rate: 900}]", "phases: more than 1,000,000 arrivals together"),
        (
            "phases: [{name: a, duration: 1s, rate: 1}, {name: a, duration: 1s, rate: 1}]",
            "a name stands twice",
        ),
        (
            "clients: [{path: 'a b'}]\nphases: [{name: a, duration: 1s, rate: 1}]",
            r"clients\[0\].path: expected text of the form",
        ),
        (
            "events: [{at: 1s, do: kill, nodes: [z]}]\nphases: [{name: a, duration: 2s, rate: 1}]",
            "no node of the cluster is named z",
        ),
        (
            "events: [{at: 3s, do: reload}]\nphases: [{name: a, duration: 2s, rate: 1}]",
            "reload comes after the end of the load",
        ),
        (
            "events: [{at: 1s, do: kill}]\nphases: [{name: a, duration: 2s, rate: 1}]",
            r"events\[0\]: kill: nodes is missing",
        ),
        (
            "events: [{at: 1s, do: reload, emulate: {}}]\nphases: [{name: a, duration: 2s, rate: 1}]",
            r"events\[0\]: emulate: goes with `do: emulate`",
        ),
        ("expect: {event_within: 2s}\nphases: [{name: a, duration: 2s, rate: 1}]", "there are no events"),
        ("clients: [{}, {}]\nphases: [{name: a, duration: 1s, rate: 1}]", "clients: a name stands twice"),
    ],
)
def test_mistakes_in_a_scenario(tmp_path: Path, text: str, mistake: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"bad.yaml: .*{mistake}"):
        scenario.load(str(path))


def test_an_unknown_scenario_names_those_there_are() -> None:
    found = offload_load("run", "nonsense")
    assert found.exit_code == 2
    assert found.stderr.startswith(
        "error: nonsense: no such scenario; give a file, or one of all-nodes-lost, "
    )


def test_a_run_against_a_server(nginx: Nginx, short: Path, tmp_path: Path) -> None:
    """Every arrival is in the results: by phase, by second, and in all."""
    written = tmp_path / "result.json"
    found = offload_load("run", short, "--target", f"127.0.0.1:{nginx.ports[0]}", "--json", written)
    assert found.exit_code == 0, found.output
    assert "calm" in found.stdout
    document = documents.read(written)
    result = document.result
    assert isinstance(result, RunResult)
    assert [(phase.name, phase.asked, phase.summary.completed) for phase in result.phases] == [
        ("calm", 20.0, 10),
        ("crowd", 50.0, 25),
    ]
    assert [second.completed for second in result.course] == [35]
    assert (result.total.completed, result.total.failures) == (35, {})
    assert (result.scenario, result.observed) == (scenario.load(str(short)), None)
    assert (document.origin.scenario, document.origin.one_machine) == (str(short), True)


def test_a_capacity_search_against_a_server(nginx: Nginx, short: Path, tmp_path: Path) -> None:
    """An objective that no server can meet: lower and lower rates are tried, and it says so."""
    written = tmp_path / "capacity.json"
    options = ["--first", 4, "--p99", "1us", "--settle", "0s", "--measure", "300ms", "--repeat", 1]
    target = f"127.0.0.1:{nginx.ports[0]}"
    found = offload_load("capacity", short, "--target", target, "--json", written, *options)
    assert found.exit_code == 0, found.output
    assert "the objective was met at no rate" in found.stdout
    assert json.loads(written.read_text())["result"]["rate"] == 0
    result = documents.read(written).result
    assert isinstance(result, Capacity)
    assert (result.objective, result.rate) == (Objective(p99=1e-6, errors=0.001), 0)
    assert [trial.met for trial in result.trials] == [False] * 4


@pytest.mark.parametrize(
    ("option", "value", "mistake"),
    [
        ("--errors", "0.1", "not a percentage"),
        ("--p99", "50", "not a duration"),
        ("--errors", "x%", "percentage"),
    ],
)
def test_mistakes_on_the_command_line(option: str, value: str, mistake: str) -> None:
    found = offload_load("capacity", option, value)
    assert found.exit_code == 2
    assert mistake in found.stderr


@pytest.mark.parametrize("command", ["run", "capacity"])
def test_results_that_cannot_be_written_are_told_before_anything_starts(command: str) -> None:
    found = offload_load(command, "steady", "--json", "/dev/null/result.json")
    assert found.exit_code == 2
    assert found.stderr == "error: --json: cannot write /dev/null/result.json: Not a directory\n"


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_results_that_find_no_room(nginx: Nginx, short: Path, option: str) -> None:
    """They were shown before; the line says what could not be written."""
    target = f"127.0.0.1:{nginx.ports[0]}"
    found = offload_load("run", short, "--target", target, option, "/dev/full")
    assert found.exit_code == 2
    assert "calm" in found.stdout
    assert found.stderr.endswith(f"error: {option}: cannot write /dev/full: No space left on device\n")


def test_a_run_that_does_not_begin_leaves_no_result(short: Path, tmp_path: Path) -> None:
    """An empty file would pass for one."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        port = silent.getsockname()[1]
        found = offload_load(
            "run", short, "--target", f"127.0.0.1:{port}", "--json", tmp_path / "result.json"
        )
    assert found.exit_code == 2
    assert found.stderr == f"error: --target: cannot connect to 127.0.0.1:{port}: Connection refused\n"
    assert not (tmp_path / "result.json").exists()


def test_events_are_for_a_cluster_of_ours(nginx: Nginx) -> None:
    found = offload_load("run", "node-lost", "--target", f"127.0.0.1:{nginx.ports[0]}")
    assert found.exit_code == 2
    assert found.stderr.startswith("error: events: happen to a cluster that is started for them")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--target", "nowhere"], "--target: 'nowhere' is not an address; write host:port, or [v6]:port"),
        (["--target", "{target}", "--admin", "9443"], "--admin: '9443' is not an address; write host:port"),
    ],
)
def test_addresses_that_are_none(nginx: Nginx, options: list[str], line: str) -> None:
    """Told by the option, before any load."""
    target = f"127.0.0.1:{nginx.ports[0]}"
    found = offload_load("run", "steady", *(option.format(target=target) for option in options))
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {line}")
    assert found.stderr.count("\n") == 1


def test_records_are_cut_by_phase(short: Path) -> None:
    records = [Record(at / 10, 0.0, 0.01, 0.02, COMPLETED, False) for at in range(10)]
    phases = by_phase(scenario.load(str(short)), 1.0, records)
    assert [phase.summary.completed for phase in phases] == [5, 5]


def text_of(table: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_board_adds_up_what_processes_report() -> None:
    """Rates are of the last seconds, failures of the whole run."""
    latencies = Histogram()
    latencies.record(0.02)
    reports = [(1.0, Count(30, 20, 0), latencies), (2.0, Count(30, 40, 2), latencies)]
    shown = text_of(row(2.0, 10.0, reports, 7)).splitlines()[1].split()
    assert shown == ["2", "of", "10", "s", "30", "30", "20.1", "ms", "20.1", "ms", "7"]


def test_the_board_takes_reports_while_it_is_shown() -> None:
    """From other threads, at any time; nothing is left on the terminal afterwards."""
    console = Console(file=io.StringIO(), force_terminal=True)
    with Board(1.0, console) as board:
        board.report(Count(1, 1, 0), Histogram())
