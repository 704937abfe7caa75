"""Where a running proxy keeps its sockets: local nodes and the control socket.

The directory follows from the configuration file's path, so that `offload status --config FILE`
finds the process that `offload serve --config FILE` started.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hsm.errors import ConfigurationError

if TYPE_CHECKING:
    from offload.account import Account
    from offload.config import Config

CONTROL_SOCKET = "control.sock"


def directory_of(config: Config, path: Path) -> Path:
    """The runtime directory for a configuration that was read from `path`."""
    if config.runtime_directory is not None:
        return config.runtime_directory
    return _default_directory(path)


def _default_directory(path: Path) -> Path:
    return _base() / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def find_directory(path: Path) -> Path:
    """The runtime directory of the proxy that this file is, or was, the configuration of.

    First where a line `runtime_directory:` of it says: that finds one also when the file has become
    wrong, and saves the start of a command most of its CPU, which on a busy machine clients would
    miss. Raises ConfigurationError for a wrong file of no proxy that runs.
    """
    try:
        text = path.read_text(errors="replace") if path.is_file() else ""
    except OSError:
        text = ""  # what is wrong is told below
    lines = re.findall(r"^runtime_directory:(.*)$", text, re.MULTILINE)
    named = lines[0].partition(" #")[0].strip().strip("\"'") if lines else ""
    found = path.parent.absolute() / named if named else _default_directory(path)
    if is_running(found):
        return found
    from offload.config import load

    return directory_of(load(path), path)


def _base() -> Path:
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run/offload")
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "offload"
    return Path(tempfile.gettempdir()) / f"offload-{os.geteuid()}"


def is_running(directory: Path) -> bool:
    """Whether a proxy answers on the control socket there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(directory / CONTROL_SOCKET))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def make(directory: Path, account: Account | None = None) -> Iterator[Path]:
    """The directory, made if it is not there, and removed in the end if it is empty.

    `account` can reach sockets in it. Raises ConfigurationError if it can't be made so, or others
    could put sockets into it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        safe = _is_safe(directory) and _is_safe(directory.parent)
    except OSError as error:
        raise ConfigurationError(
            f"runtime_directory: cannot make {directory}: {error.strerror}; name another one"
        ) from error
    if not safe:
        raise ConfigurationError(
            f"runtime_directory: {directory} or the directory above it belongs to somebody else or is writable "
            "for everybody; name another one"
        )
    if account is not None and not account.is_own:
        _admit(account, directory)
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _admit(account: Account, directory: Path) -> None:
    """Let the account's group pass through the directory. Raises ConfigurationError if one above is in the way."""
    mode = directory.stat().st_mode
    if not mode & stat.S_IXOTH:
        os.chown(directory, -1, account.gid)
        directory.chmod(stat.S_IMODE(mode) | stat.S_IXGRP)
    for parent in directory.resolve().parents:
        if not account.can_enter(parent.stat()):
            raise ConfigurationError(
                f"runtime_directory: user {account.name!r} can't get to {directory}, because {parent} is closed to "
                "him; name another one, or open that with chmod a+x"
            )


def _is_safe(directory: Path) -> bool:
    """Whether no other user but root can replace what is in it, nor the directory itself where it is a link."""
    found = directory.stat()
    owners = {found.st_uid, directory.lstat().st_uid}
    is_open = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    return owners <= {os.geteuid(), 0} and not is_open
