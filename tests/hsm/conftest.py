"""Keys, and directories short enough for unix sockets."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm.signing import PrivateKey
from tests.hsm.simulation import Simulation
from tests.support.hsm_support import NodePool, new_key, write_key

KINDS = ("rsa2048", "p256", "p384", "p521")


@pytest.fixture(scope="session")
def keys() -> dict[str, PrivateKey]:
    """One private key of each kind, by kind."""
    return {kind: new_key(kind) for kind in KINDS}


@pytest.fixture(scope="session")
def key(keys: dict[str, PrivateKey]) -> PrivateKey:
    """The P-256 key."""
    return keys["p256"]


@pytest.fixture(scope="session")
def key_directory(keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of those keys."""
    directory = tmp_path_factory.mktemp("keys")
    for kind, key in keys.items():
        write_key(directory, f"{kind}.pem", key)
    return directory


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """An empty directory whose path is short: a unix socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hsm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """Like `run_directory`, for a node that the tests of a module share."""
    with tempfile.TemporaryDirectory(prefix="hsm") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def pool(key_directory: Path) -> Iterator[NodePool]:
    """Nodes that tests share."""
    with (
        tempfile.TemporaryDirectory(prefix="hsm") as name,
        contextlib.closing(NodePool(Path(name), key_directory)) as nodes,
    ):
        yield nodes


@pytest.fixture
def simulation(key: PrivateKey) -> Simulation:
    """Virtual time, for clients of devices that hold the P-256 key."""
    return Simulation(key)
