"""The label values that docs/metrics.md lists are those that the code counts with: read off its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hsm import keyless
from hsm import metrics as hsm_metrics
from hsm.client.health import State
from hsm.metrics import NODE_SPECS, Spec
from offload import failures
from offload import metrics as m
from tests.support.hsm_support import ROOT
from tests.support.proxy import assert_documented

SPECS = (*m.WORKER_SPECS, *m.SUPERVISOR_SPECS, *NODE_SPECS)


def words(path: str, *callees: str) -> set[str]:
    """The words that are written as first argument of calls of these names, in a file or a directory."""
    files = (ROOT / path).rglob("*.py") if (ROOT / path).is_dir() else [ROOT / path]
    return {word for file in files for word in _words(file, callees)}


def _words(file: Path, callees: tuple[str, ...]) -> Iterator[str]:
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and call.args and _name(call.func) in callees:
            choices: list[Any] = [call.args[0]]
            if isinstance(call.args[0], ast.IfExp):
                choices = [call.args[0].body, call.args[0].orelse]
            yield from (str(each.value) for each in choices if isinstance(each, ast.Constant) and each.value)


def _name(callee: ast.expr) -> str:
    return callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")


def listed(spec: Spec, label: str) -> set[str]:
    """The values of a label in the reference."""
    return set(spec.values[label])


def test_only_labels_have_values() -> None:
    """A Spec lists no value of a label that it does not have, and none twice."""
    for spec in SPECS:
        assert spec.values.keys() <= set(spec.labels), spec.name
        assert all(len(set(values)) == len(values) for values in spec.values.values()), spec.name


def test_outcomes_of_connections() -> None:
    """Whatever ends a connection says with one of these words; each is said somewhere."""
    said = words("offload", "end", "relay_aborted", "upstream_failed", "abort_all")
    said |= words("offload/listener.py", "abort") | words("offload/proxy_intake.py", "abort")
    assert listed(m.CONNECTIONS, "outcome") == said


def test_reasons_of_failed_handshakes() -> None:
    """Those of the connection itself, of s2n, and of the signature."""
    said = words("offload/connection.py", "_fail")
    said |= {*failures._BY_NAME.values(), *failures._BY_KIND.values(), "internal"}
    said |= {f"signature_{reason}" for reason in hsm_metrics.SIGNATURE_FAILURES}
    assert listed(m.HANDSHAKE_FAILURES, "reason") == said


def test_reasons_of_failed_signatures() -> None:
    """The words of hsm.errors, and those of the wire format."""
    said = words("hsm", "HSMError") | {*keyless.ERROR_WORDS.values(), "error_XX"}
    assert set(hsm_metrics.SIGNATURE_FAILURES) == said


@pytest.mark.parametrize(
    ("spec", "label", "path", "callee"),
    [
        (m.REFUSED, "reason", "offload/connection.py", "refuse"),
        (m.REFUSED, "reason", "offload/proxy_intake.py", "refuse"),
        (m.ACCEPT_PAUSES, "reason", "offload/listener.py", "_pause"),
        (m.UPSTREAM_FAILURES, "reason", "offload/dialing.py", "_dial_next"),
        (hsm_metrics.NODE_REFUSED, "reason", "hsm/node/server.py", "refused"),
        (hsm_metrics.CLIENT_EJECTIONS, "cause", "hsm/client/health.py", "_eject"),
        (hsm_metrics.CLIENT_REFUSED, "reason", "hsm/client", "refused"),
    ],
)
def test_words_that_are_counted_are_listed(spec: Spec, label: str, path: str, callee: str) -> None:
    """Where only some of the words are written at the call."""
    assert words(path, callee) <= listed(spec, label)


def test_states_of_nodes() -> None:
    """Those of the enumeration."""
    assert listed(hsm_metrics.CLIENT_STATE, "state") == set(State)


def test_an_unlisted_value_is_noticed() -> None:
    """By every test that scrapes a running proxy."""
    assert_documented("offload_connections_total", {"listener": "web", "outcome": "relayed"})
    assert_documented("hsm_client_errors_total", {"node": "a", "reason": "error_0C"})
    with pytest.raises(AssertionError, match="outcome=lost is not among"):
        assert_documented("offload_connections_total", {"listener": "web", "outcome": "lost"})
    with pytest.raises(AssertionError, match="stage=tail"):
        assert_documented("offload_handshake_stage_seconds_bucket", {"stage": "tail", "le": "1.0"})
