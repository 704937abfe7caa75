"""Files that hold a secret: read once, and not when everybody else can read them too."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hsm.errors import ConfigurationError

_SIZE_MOST = 64 * 1024


def read_secret(path: Path, what: str) -> bytes:
    """What the file holds, less white space around it; `what` names it in errors ("passphrase").

    Raises ConfigurationError for a file that can't be read, is empty, too large, or readable or
    writable for everybody.
    """
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read(_SIZE_MOST + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read the {what}: {error.strerror}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigurationError(f"{path}: everybody may read or write this {what}; chmod 600 {path}")
    if len(data) > _SIZE_MOST:
        raise ConfigurationError(f"{path}: larger than 64 KiB; that is no {what}")
    data = data.strip()
    if not data:
        raise ConfigurationError(f"{path}: holds no {what}")
    return data
