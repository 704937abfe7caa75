"""Key files are checked by processes of their own: what they find, and that they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hsm.node import keycheck


def test_what_is_wrong_is_one_line_for_each_directory(key_directory: Path, tmp_path: Path) -> None:
    """In the order of the directories; one that several nodes share is told once, a good one not at all."""
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.mkdir()
    sources = [(empty, None), (key_directory, None), (missing, None), (empty, None)]
    first, second = keycheck.check_key_files(sources)
    assert first == f"{empty}: holds no private keys; put PEM files (*.pem, *.key) there"
    assert second == f"{missing}: cannot read the key directory: No such file or directory"


def test_a_check_that_hangs_is_given_up(
    key_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a file system does not answer: the time is one for all of them."""
    nobody_writes = tmp_path / "passphrase"
    os.mkfifo(nobody_writes, 0o600)
    monkeypatch.setattr(keycheck, "TIMEOUT", 0.2)
    lines = keycheck.check_key_files([(key_directory, nobody_writes), (tmp_path, nobody_writes)])
    assert [line.partition("; ")[0] for line in lines] == [
        f"{directory}: the keys could not be checked within 0.2 s" for directory in (key_directory, tmp_path)
    ]


def test_a_check_that_breaks_is_told(key_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends with an error: the last line of what it said."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (line,) = keycheck.check_key_files([(key_directory, None)])
    assert line == f"{key_directory}: the keys could not be checked: exit code 1"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (line,) = keycheck.check_key_files([(key_directory, None)])
    assert line.startswith(f"{key_directory}: the keys could not be checked: [Errno 2]")
