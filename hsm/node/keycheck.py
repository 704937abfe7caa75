"""Whether a directory's key files can be used, found out by a process of its own.

So the one that asks, the proxy's supervisor say, never has a key in its memory, nor a passphrase.

python -m hsm.node.keycheck DIRECTORY [PASSPHRASE_FILE]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hsm.errors import ConfigurationError

TIMEOUT = 60.0
"""Seconds; thousands of encrypted keys take a few."""


def check_key_files(directory: Path, passphrase_file: Path | None) -> None:
    """Raises ConfigurationError as `load_keys` would."""
    paths = [path for path in (directory, passphrase_file) if path is not None]
    command = [sys.executable, "-m", "hsm.node.keycheck", *map(str, paths)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{directory}: the keys could not be checked: {error}") from error
    if done.stdout:
        raise ConfigurationError(done.stdout.rstrip("\n"))
    if done.returncode:
        last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigurationError(f"{directory}: the keys could not be checked: {last}")


def _main(directory: str, passphrase_file: str | None = None) -> None:
    """Print what is wrong; nothing when all is well."""
    from hsm.node.software import load_keys
    from hsm.process import forbid_dumps

    forbid_dumps()
    try:
        load_keys(Path(directory), Path(passphrase_file) if passphrase_file else None)
    except ConfigurationError as error:
        print(error)


if __name__ == "__main__":
    _main(*sys.argv[1:])
