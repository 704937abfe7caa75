"""Fixtures for the load tests' own tests: real servers on loopback, on ports of their own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import Lab, MissingToolError, require
from loadtest.targets.peers import Nginx, Terminator, start_peer, start_upstream

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.contextmanager
def real_components() -> Iterator[None]:
    """A real component that is missing skips the test; under CI it fails it."""
    try:
        yield
    except MissingToolError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab whose servers end with the test."""
    with Lab() as lab, real_components():
        yield lab


@pytest.fixture
def s_server(tmp_path: Path) -> Iterator[int]:
    """The port of an `openssl s_server` that answers /small with a whole response, and closes."""
    (tmp_path / "small").write_bytes(RESPONSE)
    credentials = make_credentials(tmp_path, "p256")
    with real_components():
        openssl = require("openssl", "apt-get install openssl")
    command = [openssl, "s_server", "-accept", "127.0.0.1:0", "-HTTP"]
    command += ["-cert", str(credentials.chain), "-key", str(credentials.key)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            ports = (re.match(rb"ACCEPT \S*:(\d+)", line) for line in process.stdout)
            yield next(int(match[1]) for match in ports if match)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def nginx() -> Iterator[Nginx]:
    """nginx terminating TLS (P-256, then RSA-2048) before a web server with the benches' pages."""
    with Lab() as lab, real_components():
        upstream = start_upstream(lab)
        chains = [make_credentials(lab.directory, kind) for kind in ("p256", "rsa2048")]
        yield start_peer(lab, "peer", upstream, [Terminator.in_memory(chain) for chain in chains])
