"""`offload-load plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hsm.errors import ConfigurationError
from loadtest.documents import Document, Origin, check_writable, writing
from loadtest.live import progress
from loadtest.mistakes import told_in_a_line
from loadtest.plan import settings as questions
from loadtest.plan.result import PlanResult
from loadtest.plan.search import Planner
from loadtest.plan.site import simulate
from loadtest.plan.tables import show_plan


@told_in_a_line()
def plan(
    file: Annotated[
        Path | None, typer.Argument(help="What is to be planned, as YAML; options replace what it says.")
    ] = None,
    hsm: Annotated[
        list[str] | None,
        typer.Option(help="cloudhsm-hsm1.medium …, a .yaml profile, or .json of `hsm bench` (repeatable)."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="p256 or rsa2048, as the profile calls it.")] = None,
    connections: Annotated[
        float | None, typer.Option(help="New TLS connections a second at the peak.")
    ] = None,
    resumed: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Share of them that need no signature.")
    ] = None,
    growth: Annotated[float | None, typer.Option(help="The peak is planned for so many times.")] = None,
    p99: Annotated[str | None, typer.Option(metavar="DURATION", help="Of handshakes; 50ms.")] = None,
    errors: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Connections that may fail; 0.1%.")
    ] = None,
    zones: Annotated[
        int | None, typer.Option(help="Zones over which HSMs and workers are spread; 1.")
    ] = None,
    survive: Annotated[
        str | None, typer.Option(help="What may be lost: nothing, hsm (N+1, if left out) or zone.")
    ] = None,
    results: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file.")] = None,
) -> None:
    """Say how many HSMs and workers a load needs, by a simulation of the proxy's own cluster client."""
    given = _given(
        {"hsm": hsm, "key": key, "zones": zones, "survive": survive},
        load={"connections": connections, "resumed": resumed, "growth": growth},
        objective={"p99": p99, "errors": errors},
    )
    if file is None and not given:
        raise ConfigurationError("give a file, or at least --hsm and --connections; see --help")
    _answer(file, given, results)


def _answer(file: Path | None, given: dict[str, Any], results: Path | None) -> None:
    """Plan, show it and keep it. Raises typer.Exit when no number of HSMs is enough."""
    settings, profile, kind = questions.load(file, given)
    if results is not None:
        check_writable("--json", results)
    origin = Origin.now(profile.name if file is None else str(file), None)
    planned = Planner(settings, profile, kind, simulate, progress).plan()
    found = PlanResult.of(planned, settings, profile, kind)
    show_plan(found, Console())
    if results is not None:
        with writing("--json", results):
            Document(origin, found).write(results)
    if planned.hsms is None:
        raise typer.Exit(1)


def _given(plain: dict[str, Any], **nested: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the file has them."""
    inner = {
        name: {key: value for key, value in part.items() if value is not None}
        for name, part in nested.items()
    }
    return {key: value for key, value in {**plain, **inner}.items() if value is not None and value != {}}
