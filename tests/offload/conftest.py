"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from tests.offload.identities import Identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority, and a certificate and key of each kind."""
    return Identities(tmp_path_factory.mktemp("identities"))
