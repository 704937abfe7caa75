"""Benches of what a load cannot show, as small as can be."""

from __future__ import annotations

import socket
import sys

import pytest
import uvloop
from typer.testing import CliRunner

from loadtest.benches import BENCHES, client_cost, generator, idle, silence
from loadtest.benches.silence import Crowd
from loadtest.cli import app
from loadtest.figures import Findings
from loadtest.targets.lab import Lab, LoadTestError, accepts_unix
from loadtest.targets.sides import ServerSettings, Sides, Started
from tests.support import eventually


@pytest.fixture
def peer(lab: Lab) -> Started:
    """nginx terminating TLS."""
    return Sides(lab).start(ServerSettings(server="nginx"))


def test_idle_connections_are_held_and_counted(peer: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some memory each, and nothing is left open afterwards."""
    for name, value in {"CONNECTIONS": 60, "WARM_UP": 20}.items():
        monkeypatch.setattr(idle, name, value)
    assert idle.kilobytes(peer, requests=1) > 0
    monkeypatch.setattr(idle, "CHURN", 30)
    found = Findings("")
    idle.leavings(peer, 2, found)
    assert [figure.value for figure in found.figures][1] == 0


def test_connections_that_the_server_ends_are_no_figure(
    peer: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More are waited for than come."""
    monkeypatch.setattr(idle, "OPEN_TIMEOUT", 0.3)
    with pytest.raises(LoadTestError, match="files for 5 connections"), idle.held(peer, 5, 0, 10_000):
        pass


def test_a_crowd_stays_and_comes_again() -> None:
    """Whoever is hung up on connects again, as often as need be; in the end all are gone."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as server:
        with Crowd(server.getsockname()[1], 5, seconds=0.01) as crowd:
            first = [server.accept()[0] for _ in range(5)]
            for sock in first[:3]:
                sock.close()
            again = [server.accept()[0] for _ in range(3)]
            eventually(lambda: crowd.returned == 3, "three have come again")
            assert len(crowd) == 5
        for sock in (*first[3:], *again):
            assert sock.recv(1) == b""
            sock.close()


def test_ordinary_clients_beside_a_crowd(peer: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """None fails, and their handshakes and the worker's CPU are what is compared."""
    for name, value in {"RATE": 50.0, "SETTLE": 0.1, "SECONDS": 0.2}.items():
        monkeypatch.setattr(silence, name, value)
    with Crowd(peer.port, 20, seconds=0.1) as crowd:
        seen = silence.load_round(peer)
        assert len(crowd) == 20
    found = Findings("")
    silence.judge([seen], [seen], found)
    p50, p99, cost = found.figures
    assert 0 < p50.ours <= p99.ours
    assert (p50.value, cost.value) == (1.0, 0.0)


def test_the_load_client_beside_openssl(lab: Lab, peer: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "SECONDS", 1)
    handshakes, cpu_seconds = generator.s_time(lab, peer.port)
    assert handshakes > 10
    assert cpu_seconds > 0
    found = Findings("")
    monkeypatch.setattr(generator, "CONCURRENCY", 2)
    generator.punctuality(peer.port, found)
    assert found.figures[0].unit == "%"


def test_what_a_signature_costs_is_measured(lab: Lab) -> None:
    """Against a node that answers at once: none fails, and each round gives a figure."""
    path = lab.directory / "instant.sock"
    server = lab.start("instant", [sys.executable, "-m", "loadtest.benches.instant_node", str(path)])
    server.wait_until(lambda: accepts_unix(path))
    found = uvloop.run(client_cost.signatures(f"unix:{path}", in_flight=8, rounds=2, seconds=0.05))
    assert len(found) == 2
    assert min(found) > 0


def test_an_unknown_bench_names_those_there_are() -> None:
    done = CliRunner().invoke(app, ["bench", "nonsense"])
    assert done.exit_code == 2
    assert done.stderr == f"error: nonsense: no such bench; there are {', '.join(BENCHES)}\n"
