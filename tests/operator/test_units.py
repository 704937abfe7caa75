"""The systemd units in `configs/systemd`, judged by systemd's own tool, which needs no running systemd."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from offload.cli import app
from tests.support.hsm_support import ROOT, require

UNITS = sorted((ROOT / "configs" / "systemd").iterdir())
SERVICE = ROOT / "configs" / "systemd" / "offload.service"
INSTALLED = "/usr/bin/offload"
EXPOSURE_MOST = 20
"""Tenths of systemd's scale from 0 to 10; 1.9 at this time."""


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """The units, for a program that is there."""
    made = [tmp_path / unit.name for unit in UNITS]
    for unit, copy in zip(UNITS, made, strict=True):
        copy.write_text(unit.read_text().replace(INSTALLED, "/bin/true"))
    return made


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze`; it exits with 0 also where it has warnings."""
    command = [require("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_units_have_no_mistake(copies: list[Path]) -> None:
    """No unknown setting, no wrong value."""
    done = analyze("verify", *map(str, copies))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mistakes_would_be_found(copies: list[Path]) -> None:
    """The tool reads what it is given."""
    (service,) = [copy for copy in copies if copy.name == SERVICE.name]
    service.write_text(service.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "'NoNewPrivilege'" in analyze("verify", str(service)).stderr


def test_service_has_few_rights(copies: list[Path]) -> None:
    """As `systemd-analyze security` sees it."""
    (service,) = [copy for copy in copies if copy.name == SERVICE.name]
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", "--no-pager", str(service))
    assert done.returncode == 0, done.stdout[-500:]


def test_commands_are_those_of_the_program() -> None:
    """Each has `--config`, and the service's and the socket's names go together."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    used = re.findall(rf"^Exec\w+={INSTALLED} (\w+) --config \S+$", SERVICE.read_text(), re.MULTILINE)
    assert used == ["serve", "reload"]
    assert set(used) <= commands.keys()
    assert [unit.name for unit in UNITS] == ["offload.service", "offload.socket"]
