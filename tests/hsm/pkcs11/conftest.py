"""Tokens of SoftHSM2, and the module with faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm.signing import PrivateKey
from tests.support.hsm_support import NodeProcess
from tests.support.pkcs11 import Faults, SoftToken, TokenClient, compile_faults, running_node

IDS = {"rsa2048": "01", "p256": "02", "p384": "03", "p521": "04"}


@pytest.fixture(scope="session")
def filled_token(keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """A token `tls` with a key of each kind; not to be changed."""
    token = SoftToken(tmp_path_factory.mktemp("softhsm"))
    token.initialise()
    for label, id in IDS.items():
        token.import_key(label, keys[label], id)
    return token


@pytest.fixture
def token(filled_token: SoftToken, tmp_path: Path) -> SoftToken:
    """A copy of it, with a PIN file and a login guard of its own."""
    directory = tmp_path / "token"
    directory.mkdir()
    copy = SoftToken(directory, filled_token.pin)
    shutil.copytree(filled_token.directory / "tokens", directory / "tokens", dirs_exist_ok=True)
    return copy


@pytest.fixture(scope="session")
def faults_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module with faults, compiled once."""
    return compile_faults(tmp_path_factory.mktemp("module"))


@pytest.fixture
def faults(faults_module: Path, tmp_path: Path) -> Faults:
    """Its files, for one test."""
    directory = tmp_path / "faults"
    directory.mkdir()
    return Faults(faults_module, directory)


@pytest.fixture(scope="module")
def shared_node(filled_token: SoftToken, shared_directory: Path) -> Iterator[NodeProcess]:
    """A node with that token, for tests that leave it as it is."""
    with running_node(shared_directory, filled_token.environment, filled_token.uri()) as node:
        yield node


@pytest.fixture
def client(shared_node: NodeProcess, keys: dict[str, PrivateKey]) -> Iterator[TokenClient]:
    """A client of the shared node."""
    with TokenClient(shared_node, keys) as client:
        yield client
