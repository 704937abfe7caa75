"""Commands to a running proxy: each says what it did."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.offload.identities import Identities
from tests.operator.conftest import good_settings, write
from tests.support import eventually
from tests.support.proxy import Proxy, run_offload, running_proxy


@pytest.fixture(scope="module")
def proxy(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with two local nodes, which each test leaves as it found it."""
    settings = good_settings(identities)
    del settings["admin"]
    settings["runtime_directory"] = "run"
    nodes = settings["hsm"]["nodes"]
    nodes.append({**nodes[0], "name": "b"})
    with running_proxy(tmp_path_factory.mktemp("proxy"), settings) as running:
        eventually(lambda: running.status()["degraded"] == [], "both nodes ready")
        yield running


def tell(proxy: Proxy, *words: str) -> str:
    """A command's output; it must succeed."""
    done = run_offload(*words, "--config", str(proxy.directory / "offload.yaml"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(proxy: Proxy, *words: str) -> str:
    """What a command that must fail says, in one line."""
    done = run_offload(*words, "--config", str(proxy.directory / "offload.yaml"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_status(proxy: Proxy) -> None:
    """As tables, and as JSON the same that the admin address shows."""
    text = tell(proxy, "status")
    assert "ready" in text
    assert "accepting" in text
    assert "workers are confined by: no capabilities, " in text
    shown = json.loads(tell(proxy, "status", "--json"))
    assert shown["listeners"] == proxy.status()["listeners"]


def test_file_that_has_become_wrong(proxy: Proxy) -> None:
    """The proxy is found all the same, by its runtime directory's line; and a reload is its to refuse."""
    file = proxy.directory / "offload.yaml"
    good = file.read_text()
    try:
        file.write_text(f"{good}\nlisteners: [")
        assert "ready" in tell(proxy, "status")
        assert "not valid YAML" in refused(proxy, "reload")
        assert proxy.status()["reload"]["result"] == "refused"
    finally:
        file.write_text(good)


def test_a_node_is_taken_out_and_back(proxy: Proxy) -> None:
    """Workers send it nothing meanwhile; a worker that starts later knows too."""
    assert tell(proxy, "node", "disable", "a").startswith("node a gets no more requests")
    assert [node["enabled"] for node in proxy.status()["nodes"]] == [False, True]
    assert proxy.get("/readyz").json["degraded"] == ["node a: disabled by the operator"]
    assert proxy.status()["degraded"] == ["node a: disabled by the operator"]
    assert "NO node is left" in tell(proxy, "node", "disable", "b")
    assert "gets requests again" in tell(proxy, "node", "enable", "a")
    assert [node["enabled"] for node in proxy.status()["nodes"]] == [True, False]
    assert "gets requests again" in tell(proxy, "node", "enable", "b")
    assert proxy.status()["degraded"] == []


def test_a_node_that_is_not_there(proxy: Proxy) -> None:
    """The error names those that are."""
    assert refused(proxy, "node", "disable", "z") == "error: there is no node 'z'; there are a, b"


def test_log_level(proxy: Proxy) -> None:
    """It changes at once; a wrong word names the right ones."""
    assert "log from error on" in tell(proxy, "log-level", "error")
    assert "debug, info, warning, error" in refused(proxy, "log-level", "loud")
    assert "log from info on" in tell(proxy, "log-level", "info")


def test_it_runs_once(proxy: Proxy) -> None:
    """A second start with the same configuration is told so in one line."""
    line = refused(proxy, "serve")
    assert "runs already" in line
    assert "offload status" in line


def test_the_control_socket_is_the_users_own(proxy: Proxy) -> None:
    """Mode 0600 in a directory that nobody else can write to."""
    mode = (proxy.directory / "run" / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_drain_ends_it(good: dict[str, Any], tmp_path: Path) -> None:
    """The process ends with 0, says so, and leaves no socket."""
    del good["admin"]
    good["runtime_directory"] = "run"
    with running_proxy(tmp_path, good) as proxy:
        assert tell(proxy, "drain").startswith("draining")
        assert proxy.wait() == 0
    assert not (tmp_path / "run").exists()


def test_nobody_is_there(good: dict[str, Any], tmp_path: Path) -> None:
    """Without a running proxy the remedy is named."""
    done = run_offload("status", "--config", str(write(tmp_path, good)))
    assert done.returncode == 2
    assert "start it with `offload serve`" in done.stderr
