"""What a service manager is told, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_states(manager: socket.socket) -> None:
    """Each state is one datagram of assignments; a reload carries the monotonic clock."""
    systemd.ready("2 workers accept")
    assert manager.recv(4096) == b"READY=1\nSTATUS=2 workers accept"
    systemd.reloading()
    assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    systemd.stopping("draining")
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a manager, or with one that is gone, nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.ready("x")


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come twice as often as they must, and only from the process that is meant."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval() is None
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert systemd.watchdog_interval() is None
