"""The systemd units in `configs/systemd`, judged by systemd's own tool, which needs no running systemd."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from hsm import cli as hsm_cli
from hsm.config import NodeSettings, SoftwareNode, validate
from offload import cli as offload_cli
from tests.support.hsm_support import ROOT, require

UNITS = sorted((ROOT / "configs" / "systemd").iterdir())
SERVICE, NODE = (ROOT / "configs" / "systemd" / name for name in ("offload.service", "hsm-node@.service"))
PROGRAMS = re.compile(r"/usr/bin/(?:offload|hsm)\b")
EXPOSURE_MOST = 20
"""Tenths of systemd's scale from 0 to 10; 1.9 at this time."""


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """The units, for programs that are there."""
    made = [tmp_path / unit.name for unit in UNITS]
    for unit, copy in zip(UNITS, made, strict=True):
        copy.write_text(PROGRAMS.sub("/bin/true", unit.read_text()))
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


@pytest.mark.parametrize("name", ["offload.service", "hsm-node@.service"])
def test_services_have_few_rights(copies: list[Path], name: str) -> None:
    """As `systemd-analyze security` sees it."""
    (service,) = [copy for copy in copies if copy.name == name]
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", "--no-pager", str(service))
    assert done.returncode == 0, done.stdout[-500:]


def test_commands_are_those_of_the_programs() -> None:
    """Each has `--config`, and the service's and the socket's names go together."""
    programs = {"offload": offload_cli.app, "hsm": hsm_cli.app}
    text = "\n".join(unit.read_text() for unit in UNITS)
    used = re.findall(r"^Exec\w+=/usr/bin/(\w+) (\w+) --config \S+$", text, re.MULTILINE)
    assert used == [("hsm", "node"), ("offload", "serve"), ("offload", "reload")]
    for program, command in used:
        assert command in get_command(programs[program]).commands  # type: ignore[attr-defined]
    assert [unit.name for unit in UNITS] == ["hsm-node@.service", "offload.service", "offload.socket"]


def test_settings_in_the_node_unit_are_a_node() -> None:
    """What its comment says belongs into the node's file is accepted there, and names the unit's directories."""
    unit = NODE.read_text()
    commented = re.findall(r"^#   (.*)$", unit, re.MULTILINE)
    settings = validate(yaml.safe_load("\n".join(commented)), NodeSettings, "node-a.yaml", Path("/"))
    assert settings.listen.path == "/run/hsm-a/node.sock"
    assert isinstance(settings, SoftwareNode)
    assert settings.keys.is_relative_to("/var/lib/hsm")
    assert "RuntimeDirectory=hsm-%i\n" in unit
    assert "StateDirectory=hsm\n" in unit
