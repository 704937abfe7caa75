"""The `offload-load` command."""

from __future__ import annotations

import signal
import sys

if sys.argv[0].rpartition("/")[2] in ("offload-load", "cli.py"):
    # The rest takes a moment to import: Ctrl-C meanwhile ends it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hsm.config import Address, parse_duration, parse_host_port
from hsm.errors import ConfigurationError
from hsm.terminal import fail
from hsm.terminal import run as run_command
from loadtest import documents
from loadtest import scenario as scenarios
from loadtest.benches import BENCHES
from loadtest.capacity import Objective, Use, find
from loadtest.compare import compare as run_compare
from loadtest.compare import load as load_comparison
from loadtest.documents import Document, Origin, check_writable, writing
from loadtest.generate.records import Summary
from loadtest.generate.schedule import length
from loadtest.live import Board, progress
from loadtest.mistakes import told_in_a_line
from loadtest.pages import write_section
from loadtest.plan.command import plan
from loadtest.report import images
from loadtest.report.page import contents_of, render
from loadtest.run import Server, started
from loadtest.run import run as run_scenario
from loadtest.suite import BENCH_ROUNDS, SUITES, carry_out, suite_of
from loadtest.tables import screen, show_capacity, show_comparison, show_document, show_run
from loadtest.targets.cluster import Cluster
from loadtest.targets.lab import LoadTestError, raise_file_limit
from loadtest.trial import Trials

app = typer.Typer(
    help="Load for TLS servers, by a timetable: what they hold, and at which latency.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

REACH_TIMEOUT = 5.0
"""Seconds in which a target has to take a connection."""

ScenarioName = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a scenario that comes with it.")
]
Target = Annotated[
    str | None,
    typer.Option(help="host:port of a TLS server; if left out, Offload is started as the scenario says."),
]
Admin = Annotated[str | None, typer.Option(help="Admin address (host:port) of the target, if it is Offload.")]
Processes = Annotated[int, typer.Option(min=1, max=64, help="Load generators.")]
Factor = Annotated[float, typer.Option(min=0.001, help="All rates are multiplied by this.")]
Rounds = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Of each side, if not as the comparison says.")
]
Results = Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")]
Page = Annotated[Path | None, typer.Option("--html", help="Write a report to this file.")]


@app.callback()
def _main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that labs are left in order


def _writable(results: Path | None, page: Path | None) -> None:
    """Told before a long run, not after it. Raises ConfigurationError."""
    for option, path in (("--json", results), ("--html", page)):
        if path is not None:
            check_writable(option, path)


def _keep(document: Document, results: Path | None, page: Path | None) -> None:
    if results is not None:
        with writing("--json", results):
            document.write(results)
    if page is not None:
        with writing("--html", page):
            page.write_text(render([contents_of(document)]), encoding="utf-8")


@contextlib.contextmanager
def loaded_server(
    scenario: scenarios.Scenario, target: str | None, admin: str | None
) -> Iterator[tuple[Server, Cluster | None]]:
    """What is to be loaded: a server that runs, or the scenario's own for as long as the context lasts.

    Raises ConfigurationError for an address where nobody listens, LoadTestError when ours does not start.
    """
    if target is None:
        with started(scenario) as ours:
            yield ours
        return
    address = _reached("--target", target)
    if admin is not None:
        _reached("--admin", admin)
    yield Server(target, address.host, address.port, admin or ""), None


def _reached(option: str, text: str) -> Address:
    """The address, if it can be connected to. Raises ConfigurationError."""
    try:
        address = parse_host_port(text)
        socket.create_connection((address.host, address.port), REACH_TIMEOUT).close()
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot connect to {text}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from error
    return address


@app.command()
@told_in_a_line()
def run(
    scenario: ScenarioName,
    target: Target = None,
    admin: Admin = None,
    processes: Processes = 1,
    factor: Factor = 1.0,
    seed: Annotated[int, typer.Option(help="Of the arrivals; the same seed gives the same timetable.")] = 1,
    results: Results = None,
    html: Page = None,
) -> None:
    """Carry a scenario out and say what became of it; exit code 1 if it expects something else."""
    console = Console(stderr=True)
    raise_file_limit()
    _writable(results, html)
    load = scenarios.load(scenario)
    with (
        loaded_server(load, target, admin) as (loaded, cluster),
        Board(length(load.timetable()), console) as board,
    ):
        origin = Origin.now(scenario, loaded)
        result = run_scenario(
            load, loaded, cluster, factor=factor, processes=processes, seed=seed, on_report=board.report
        )
    show_run(result, origin, screen())
    _keep(Document(origin, result), results, html)
    if not result.met:
        raise typer.Exit(1)


@app.command()
@told_in_a_line()
def suite(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(SUITES)}.")],
    only: Annotated[list[str] | None, typer.Option(help="One of its parts; repeatable.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the parts that take long.")] = False,
    rounds: Rounds = None,
    factor: Factor = 1.0,
    directory: Annotated[
        Path, typer.Option("--results", help="Directory for the result of each part.")
    ] = Path("loadtest-results"),
    page: Annotated[
        Path | None, typer.Option(help="A page to write what is known of all its parts into.")
    ] = None,
) -> None:
    """Carry out what belongs together; exit code 1 if a part can't be. What misses its goal is said, not an error.

    Without --all or --only, comparisons and benches have few rounds: the figures are rougher.
    """
    raise_file_limit()
    chosen = suite_of(name)
    names = chosen.chosen(only or (), everything)
    with writing("--results", directory):
        directory.mkdir(parents=True, exist_ok=True)
    few = None if everything or only else chosen.rounds
    failures = 0
    for found in carry_out(names, directory, factor=factor, rounds=rounds or few, progress=progress):
        if isinstance(found, LoadTestError):
            failures += 1
            fail(found)
        else:
            show_document(found, screen())
    if page is not None:
        with writing("--page", page):
            write_section(page, name, chosen.results(directory))
    if failures:
        raise typer.Exit(1)


@app.command()
@told_in_a_line()
def bench(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(BENCHES)}.")],
    rounds: Annotated[
        int, typer.Option(min=1, max=1000, help="How often each side is measured.")
    ] = BENCH_ROUNDS,
    results: Results = None,
    html: Page = None,
) -> None:
    """Measure what no load shows: memory of idle connections, one node, the load client itself."""
    raise_file_limit()
    _writable(results, html)
    if name not in BENCHES:
        raise ConfigurationError(f"{name}: no such bench; there are {', '.join(BENCHES)}")
    document = Document(Origin.now(name, None), BENCHES[name](rounds))
    show_document(document, screen())
    _keep(document, results, html)


def _percent(text: str) -> float:
    """`0.1%` → 0.001. Raises typer.BadParameter."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share <= 1:
        raise typer.BadParameter(f"{text!r} is not a percentage; write one like 0.1%")
    return share


def _seconds(text: str) -> float:
    """`50ms` → 0.05. Raises typer.BadParameter."""
    try:
        return float(parse_duration(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
@told_in_a_line()
def capacity(
    scenario: ScenarioName = "steady",
    p99: Annotated[float, typer.Option(parser=_seconds, metavar="DURATION", help="Of handshakes.")] = "50ms",  # type: ignore[assignment]
    errors: Annotated[
        float, typer.Option(parser=_percent, metavar="PERCENT", help="Arrivals that may fail.")
    ] = "0.1%",  # type: ignore[assignment]
    target: Target = None,
    admin: Admin = None,
    processes: Processes = 1,
    first: Annotated[float, typer.Option(min=1, help="Arrivals a second to begin with.")] = 100.0,
    precision: Annotated[float, typer.Option(parser=_percent, metavar="PERCENT", help="Of the rate.")] = "5%",  # type: ignore[assignment]
    settle: Annotated[float, typer.Option(parser=_seconds, metavar="DURATION", help="Not counted.")] = "2s",  # type: ignore[assignment]
    measure: Annotated[float, typer.Option(parser=_seconds, metavar="DURATION", help="Of each rate.")] = "5s",  # type: ignore[assignment]
    repeat: Annotated[int, typer.Option(min=1, max=20, help="Searches, for a spread.")] = 3,
    results: Results = None,
    html: Page = None,
) -> None:
    """Find the highest rate that meets an objective; the scenario says what each connection does."""
    raise_file_limit()
    _writable(results, html)
    load = scenarios.load(scenario)
    with loaded_server(load, target, admin) as (loaded, _):
        origin = Origin.now(scenario, loaded)
        order = load.order(loaded.host, loaded.port)
        trials = Trials(loaded, order, processes=processes, settle=settle, measure=measure)
        objective = Objective(p99, errors)

        def tried(rate: float) -> tuple[Summary, Use]:
            progress(f"trying {rate:.0f} connections a second")
            return trials.measure(rate)

        found = find(tried, objective, first=first, precision=precision, repeat=repeat)
    show_capacity(found, screen())
    _keep(Document(origin, found), results, html)


@app.command()
@told_in_a_line()
def compare(
    comparison: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a comparison that comes with it.")
    ] = "peers",
    rounds: Rounds = None,
    factor: Factor = 1.0,
    processes: Processes = 1,
    results: Results = None,
    html: Page = None,
) -> None:
    """Load Offload and other proxies in turn; those that are not installed are named."""
    raise_file_limit()
    _writable(results, html)
    origin = Origin.now(comparison, None)
    found = run_compare(
        load_comparison(comparison), factor=factor, rounds=rounds, processes=processes, progress=progress
    )
    show_comparison(found, screen())
    _keep(Document(origin, found), results, html)


@app.command()
@told_in_a_line()
def report(
    results: Annotated[list[Path], typer.Argument(help="Files that --json of the other commands wrote.")],
    html: Page = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots as images into this directory.")] = None,
) -> None:
    """Write a report of results: a page that needs nothing else, or its plots as images."""
    if html is None and png is None:
        raise ConfigurationError("nothing to write: give --html FILE, --png DIRECTORY, or both")
    _writable(None, html)
    found = [contents_of(documents.read(path)) for path in results]
    if html is not None:
        with writing("--html", html):
            html.write_text(render(found), encoding="utf-8")
    if png is not None:
        images.write(found, png)


app.command()(plan)


def main() -> None:
    """The `offload-load` command."""
    run_command(app)


if __name__ == "__main__":
    main()
