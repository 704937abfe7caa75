"""Whether a directory's key files can be used, found out by a process of its own.

So the one that asks, the proxy's supervisor say, never has a key in its memory, nor a passphrase.

It is `main` here, with the directory and perhaps the passphrase's file.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

from hsm import start
from hsm.errors import ConfigurationError

TIMEOUT = 60.0
"""Seconds for all directories together; thousands of encrypted keys take a few."""

Source = tuple[Path, Path | None]
"""A directory of keys, and the file with their passphrase."""


def check_key_files(sources: Iterable[Source]) -> list[str]:
    """What `load_keys` would find wrong, one line for each source. Several are read at a time, each once."""
    deadline = monotonic() + TIMEOUT
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda source: _check(source, deadline), dict.fromkeys(sources))
        return [line for line in found if line]


def _check(source: Source, deadline: float) -> str:
    """What is wrong with one source; nothing when all is well."""
    directory = source[0]
    paths = [str(path) for path in source if path is not None]
    command = start.command("hsm.node.keycheck", *paths)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(0.0, deadline - monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{directory}: the keys could not be checked within {TIMEOUT:g} s; use fewer, or a faster disk"
    except OSError as error:
        return f"{directory}: the keys could not be checked: {error}"
    if done.returncode and not done.stdout:
        last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"{directory}: the keys could not be checked: {last}"
    return done.stdout.rstrip("\n")


def main(directory: str, passphrase_file: str | None = None) -> None:
    """Print what is wrong; nothing when all is well."""
    from hsm.node.software import load_keys
    from hsm.process import forbid_dumps

    forbid_dumps()
    try:
        load_keys(Path(directory), Path(passphrase_file) if passphrase_file else None)
    except ConfigurationError as error:
        print(error)
