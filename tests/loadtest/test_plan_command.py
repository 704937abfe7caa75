"""`offload-load plan`: a question as file and options, the answer as table and JSON, and mistakes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from hsm.errors import ConfigurationError
from loadtest import documents
from loadtest.cli import app
from loadtest.plan import search
from loadtest.plan import settings as questions
from loadtest.plan.result import PlanResult

PROFILE = """\
name: a small HSM
source: its data sheet
signatures_per_second: {p256: {1: 50}}
latency: {p50: 4ms, p99: 8ms}
latency_source: its data sheet
"""
QUESTION = """\
hsm: small.yaml
load: {connections: 40, resumed: 20%, growth: 1.5}
objective: {p99: 150ms, errors: 1%}
survive: nothing
"""


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *(str(argument) for argument in arguments)])


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """A question about a profile beside it."""
    (tmp_path / "small.yaml").write_text(PROFILE)
    path = tmp_path / "plan.yaml"
    path.write_text(QUESTION)
    return path


def test_a_plan(question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One HSM of 50 a second is too little for 48, two are enough; the JSON file has what was asked and assumed."""
    monkeypatch.setattr(search, "ARRIVALS", 1000)
    written = tmp_path / "plan.json"
    result = plan(question, "--json", written)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        "2 HSMs (a small HSM, p256) and 1 worker on 1 machine hold 60 connections a"
    )
    assert isinstance(documents.read(written).result, PlanResult)
    told = json.loads(written.read_text())["result"]
    assert told["plan"]["hsms"] == 2
    assert [row["met"] for row in told["plan"]["rows"]] == [False, True, True]
    assert told["question"]["load"] == {"connections": 40.0, "resumed": 0.2, "growth": 1.5}
    assert any("its data sheet" in line for line in told["assumptions"])
    assert all(
        line in result.output.replace("\n", " ").replace("  ", " ") for line in ("Assumed:", "one more HSM")
    )


def test_options_replace_what_the_file_says(question: Path) -> None:
    """Each alone: the rest of its section stays."""
    settings, profile, key = questions.load(
        question, {"load": {"resumed": "50%"}, "zones": 2, "survive": "zone"}
    )
    assert (settings.load.connections, settings.load.resumed, settings.zones) == (40, 0.5, 2)
    assert settings.objective.objective.p99 == 0.15
    assert (profile.name, key) == ("a small HSM", "p256")


def test_an_objective_that_no_hsm_holds(question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an answer too, with an exit code of its own."""
    monkeypatch.setattr(search, "ARRIVALS", 1000)
    result = plan(question, "--p99", "2ms")
    assert result.exit_code == 1
    assert result.stdout.startswith("No number of HSMs (a small HSM, p256) holds 60 connections a second")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give a file, or at least --hsm and --connections"),
        (["none.yaml"], "none.yaml: cannot read it"),
        (["--connections", "5"], "--hsm: required, but missing"),
        (["--hsm", "cloudhsm-hsm1.medium"], "--connections: required, but missing"),
        (["--hsm", "cloudhsm-hsm1.medium", "--connections", "0"], "--connections: expected a number above 0"),
        (["--hsm", "cloudhsm-hsm1.medium", "--connections", "5"], "--key: AWS CloudHSM hsm1.medium has several"),
        (["--hsm", "cloudhsm-hsm1.medium", "--connections", "5", "--key", "p384"], "--key: nothing is known of p384"),
        (["--hsm", "cloudhsm", "--connections", "5"], "cloudhsm: no such type of HSM; give a .yaml file"),
        (["{question}", "--resumed", "much"], "load.resumed: 'much' is not a share; write one like 0.1%"),
        (["{question}", "--resumed", "120%"], "load.resumed"),
        (["{question}", "--resumed", "100%"], "load.resumed: expected a number of at most 0.99"),
        (["{question}", "--p99", "50"], "objective.p99: '50' is not a duration"),
        (["{question}", "--errors", "nan"], "objective.errors"),
        (["{question}", "--survive", "all"], "survive"),
        (["{question}", "--survive", "zone"], "a zone can only be lost where zones is 2 or more"),
        (["{question}", "--zones", "0"], "zones"),
        (["{question}", "--connections", "49000", "--growth", "9"], "connections × growth is more than 50,000"),
        (["{question}", "--json", "/nowhere/plan.json"], "--json: cannot write /nowhere/plan.json"),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], fault: str, question: Path) -> None:
    """Each is one line that names the file or option, the key and the remedy; never a traceback."""
    result = plan(*(argument.format(question=question) for argument in arguments))
    assert result.exit_code == 2
    assert fault in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hsm", "load", "connections", "resumed", "zones", "survive", "cluster"]), inner, max_size=4
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)  # fmt: skip
def test_any_question(given_keys: dict[str, object]) -> None:
    """Is understood, or a mistake that is told."""
    with contextlib.suppress(ConfigurationError):
        questions.load(None, given_keys)
