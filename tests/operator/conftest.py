"""What an operator starts from: a good configuration, to be spoilt in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.offload.identities import Identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority, and a certificate and key of each kind."""
    made = Identities(tmp_path_factory.mktemp("identities"))
    _add_root(made)
    return made


def _add_root(identities: Identities) -> None:
    """Chains that lead to the root, which no system trusts."""
    for kind in ("p256", "rsa2048"):
        identity = identities[kind]
        identity.chain_path.write_bytes(identity.pem + identities.ca.read_bytes())


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds another's control socket."""
    if os.geteuid() != 0:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def good(identities: Identities) -> dict[str, Any]:
    """A configuration without a mistake."""
    return good_settings(identities)


def good_settings(identities: Identities) -> dict[str, Any]:
    """A configuration without a mistake; the port is free because it is 0."""
    return {
        "listeners": [
            {
                "name": "web",
                "address": "127.0.0.1:0",
                "certificates": [{"chain": str(identities["p256"].chain_path)}],
                "upstream": {"servers": ["127.0.0.1:8080"]},
            }
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"token": "software", "keys": str(identities.keys)}}]},
        "admin": None,
        "workers": 1,
        "limits": {"max_connections": 100, "drain_timeout": "2s"},
    }


def write(directory: Path, settings: dict[str, Any]) -> Path:
    """The settings as a configuration file."""
    path = directory / "offload.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path
