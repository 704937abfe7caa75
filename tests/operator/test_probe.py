"""`offload check --connect`: a node that does not answer in time is another thing than one that can't."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hsm import config
from hsm.signing import SCHEMES
from offload import plan, probe
from offload.certificates import Chain, load_chain
from offload.config import Config
from offload.demands import demand
from offload.probe import Cell, able, unanswered
from tests.offload.identities import Identities
from tests.operator.conftest import write

PSS = SCHEMES["rsa_pss_rsae_sha256"]


@pytest.fixture
def rsa(identities: Identities) -> Chain:
    """The chain of an RSA key."""
    return load_chain(identities["rsa2048"].chain_path)


def cells(chain: Chain, **answers: bool | None) -> list[Cell]:
    """What nodes made of one request for RSA-PSS: signed, refused, or (None) said nothing."""
    return [
        Cell(
            chain,
            PSS,
            node,
            0.001 if answer else None,
            "" if answer else f"node {node}: why",
            answer is not None,
        )
        for node, answer in answers.items()
    ]


def test_only_a_refusal_says_that_a_node_can_not(rsa: Chain) -> None:
    """A scheme that was not answered in time stays among those that a node lists."""
    listed = {rsa.ski: rsa.key.opcodes}
    (late,) = cells(rsa, a=None)
    assert able(listed, [late])[rsa.ski] == rsa.key.opcodes
    (refused,) = cells(rsa, a=False)
    assert able(listed, [refused])[rsa.ski] == rsa.key.opcodes - {PSS.opcode}


def test_what_no_node_answered_is_told(rsa: Chain) -> None:
    """In one line for all nodes; not if one signed, nor if nobody may ask for it."""
    wanted = [demand("web", "default", rsa)]
    (line,) = unanswered(cells(rsa, a=None, b=None, c=False), wanted)
    assert line == (
        f"{rsa.path}: no answer in time for rsa_pss_rsae_sha256 (node a: why; node b: why); "
        "try again when the nodes are less busy, or see their logs"
    )
    assert unanswered(cells(rsa, a=None, b=True), wanted) == []
    assert unanswered(cells(rsa, a=None), []) == []
    assert unanswered(cells(rsa, a=False), wanted) == []


def test_a_slow_node_beside_a_quick_one(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table tells them apart, and the certificate can be served."""
    (quick,) = good["hsm"]["nodes"]
    good["hsm"]["nodes"].append({"name": "b", "run": {**quick["run"], "emulate": {"latency": "1h"}}})
    path = write(tmp_path, good)
    settings = config.load(path, Config)
    monkeypatch.setattr(probe, "CONNECT_TIMEOUT", 30.0)
    monkeypatch.setattr(probe, "SIGN_TIMEOUT", 1.0)
    assert asyncio.run(probe.probe(settings, path, plan.plan_service(settings)[0])) == []
    shown = capsys.readouterr().out
    assert "no answer" in shown
    assert " ms" in shown
