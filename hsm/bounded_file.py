"""Files that somebody configured: read once, and no more of them than makes sense."""

from __future__ import annotations

from pathlib import Path

from hsm.errors import ConfigurationError


def read_bounded(path: Path, most: int, what: str, too_large: str, *, remedy: str = "") -> bytes:
    """What a file holds, at most so many bytes.

    Raises ConfigurationError: `what` can't be read (with a `remedy`), or the file is `too_large`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read {what}: {error.strerror}{remedy}") from error
    if len(data) > most:
        raise ConfigurationError(f"{path}: {too_large}")
    return data
