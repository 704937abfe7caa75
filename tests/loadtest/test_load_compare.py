"""Other proxies, and how they are compared with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtest import cli, compare, documents
from loadtest.client import Plan, run
from loadtest.compare import Comparison, Measured, Side, judged
from loadtest.generate.connections import Target
from loadtest.generate.records import COMPLETED, Record
from loadtest.scenario import Scenario
from loadtest.stats import Sample
from loadtest.tables import show_comparison
from loadtest.targets.agreement import CIPHER, parse_s_client, s_client_command
from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import Lab, MissingToolError
from loadtest.targets.peers import start_upstream
from loadtest.targets.terminators import STARTERS


@pytest.mark.parametrize("name", STARTERS)
def test_what_other_proxies_negotiate_and_serve(lab: Lab, name: str) -> None:
    """The same cipher and group as all others; its version is known, its processes can be measured."""
    credentials = make_credentials(lab.directory, "p256")
    peer = STARTERS[name](lab, credentials, start_upstream(lab).ports[0])
    terms = parse_s_client(lab.run(s_client_command("openssl", peer.port)))
    assert (terms.version, terms.cipher, terms.group) == ("TLSv1.3", CIPHER, "X25519")
    result = run(Plan(Target(port=peer.port), connections=3, concurrency=3))
    assert (result.connections, result.errors) == (3, {})
    assert peer.version[0].isdigit()
    assert peer.server.pid in peer.processes()["worker"]


def measured(name: str, nanoseconds: float, version: str = "") -> Measured:
    """Three rounds of a hundred connections at so much CPU each, held against ours."""
    side = Side(name, 1, dict, compare.OURS, version=version)
    records = [Record(0.0, 0.0, 0.01, 0.02, COMPLETED, False), Record(0.1, 0.0, -1.0, 9.0, "timeout", False)]
    return Measured(side, [Sample(nanoseconds * 100, 100)] * 3, records)


@pytest.fixture
def found() -> Comparison:
    """Ours, one that takes twice the CPU, and one that is not installed."""
    sides = [measured(compare.OURS, 500_000), measured("nginx", 1_000_000, "1.22")]
    return judged(sides, ["hitch: hitch is missing: apt-get install hitch"])


def test_others_are_held_against_ours(found: Comparison) -> None:
    ours, nginx = found.sides
    assert ours.to_ours is None
    assert nginx.to_ours is not None
    assert (nginx.to_ours.value, nginx.cpu_us, nginx.rounds) == (2.0, 1000, [1000] * 3)
    assert nginx.failures == {"timeout": 1}
    assert nginx.handshake.count == 1


def test_the_table_names_what_is_missing(found: Comparison) -> None:
    """Nothing is left out silently: not a proxy that is not installed, nor a failure."""
    console = Console(width=120)
    with console.capture() as capture:
        show_comparison(found, console)
    text = capture.get()
    assert "nginx 1.22" in text
    assert "2.00 (2.00 to 2.00)" in text
    assert "missing: hitch: hitch is missing: apt-get install hitch" in text


def test_a_proxy_that_is_missing_is_noted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison goes on with the others."""

    def absent(*_arguments: object) -> object:
        raise MissingToolError("it is missing: apt-get install it")

    monkeypatch.setattr(compare, "STARTERS", dict.fromkeys(STARTERS, absent))
    monkeypatch.setattr(compare, "_nginx", absent)
    monkeypatch.setattr(compare, "_engine", absent)
    monkeypatch.setattr(compare, "_ours", lambda *_arguments: [measured(compare.OURS, 1.0).side])
    monkeypatch.setattr(compare, "_round", lambda one, *_: one.cpu.append(Sample(1.0, 1.0)))
    scenario = Scenario.model_validate({"phases": [{"name": "a", "duration": 1.0, "rate": 1}]})
    found = compare.compare(scenario, factor=1.0, rounds=1, processes=1, progress=lambda _line: None)
    names = ["nginx", *STARTERS, compare.ENGINE]
    assert found.missing == [f"{name}: it is missing: apt-get install it" for name in names]
    assert [one.name for one in found.sides] == [compare.OURS]


def test_a_comparison_is_written_as_json(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_compare", lambda *_arguments, **_options: found)
    written = tmp_path / "comparison.json"
    assert CliRunner().invoke(cli.app, ["compare", "--json", str(written)]).exit_code == 0
    assert documents.read(written).result == found
