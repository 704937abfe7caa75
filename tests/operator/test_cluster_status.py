"""`hsm cluster status`: the nodes as a running proxy sees them, or as they look from here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.offload.identities import Identities
from tests.operator.conftest import write
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, run_hsm
from tests.support.proxy import running_proxy


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which a node's line is one line."""
    monkeypatch.setenv("COLUMNS", "250")


def status(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, for the configuration in a directory."""
    return run_hsm("cluster", "status", "--config", str(directory / "offload.yaml"), *options)


def lines(text: str) -> dict[str, str]:
    """The table's line of each node."""
    rows = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    return {row.split()[0]: row for row in rows}


def test_by_a_running_proxy(good: dict[str, Any], tmp_path: Path) -> None:
    """The node that it runs is healthy, one that nobody runs is not connected, and why."""
    del good["admin"]
    good["hsm"]["nodes"].append({"name": "b", "address": f"unix:{tmp_path}/b.sock"})
    with running_proxy(tmp_path, good) as proxy:
        eventually(lambda: proxy.status()["nodes"][0]["ready"], "the node that it runs")
        eventually(lambda: "No such file" in proxy.get("/status").text, "why the other is not there")
        done = status(tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("as seen by the proxy at ")
        shown = lines(done.stdout)
        assert "healthy" in shown["a"]
        assert "not connected" in shown["b"]
        assert "No such file" in shown["b"]


def test_without_a_proxy(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """Where the proxy has no admin address the nodes are asked from here."""
    with NodeProcess(f"unix:{tmp_path}/b.sock", "--keys", str(identities.keys)) as node:
        node.ready()
        good["hsm"]["nodes"].append({"name": "b", "address": f"unix:{tmp_path}/b.sock"})
        write(tmp_path, good)
        done = status(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("as seen from here")
    shown = lines(done.stdout)
    assert "started by `offload serve`, which does not run" in shown["a"]
    assert "healthy" in shown["b"]


def test_with_nothing_there(good: dict[str, Any], tmp_path: Path) -> None:
    """Neither the proxy nor a node: the exit code says so."""
    good["admin"] = {"address": f"unix:{tmp_path}/admin.sock"}
    write(tmp_path, good)
    done = status(tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("as seen from here (no proxy answered)")
    assert "not connected" in lines(done.stdout)["a"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("hsm: {nodes: []}", "hsm"),
        ("hsm: [", "offload.yaml"),
        ("hsm: {nodes: [{name: a, address: 'unix:/a'}]}\nadmin: {address: nonsense}", "admin"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str | None, told: str) -> None:
    """With the file's name, and no traceback."""
    if text is not None:
        (tmp_path / "offload.yaml").write_text(text)
    done = status(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
