"""What a module finds when it is loaded: its environment, its working directory, and no PIN in sight."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from hsm.config import Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.node.uri import UriError, parse

_READ_AT_START = ("LD_", "GLIBC_TUNABLES", "MALLOC_")
"""Variables that the dynamic linker and the C library look at when a program starts, and never again."""


def apply(settings: Pkcs11Settings) -> None:
    """Give this process the module's environment and directory; before the module is loaded.

    Starts the program anew, in place, if a variable counts only at its start (LD_LIBRARY_PATH).
    Raises ConfigurationError.
    """
    late = {
        name: value
        for name, value in settings.env.items()
        if name.startswith(_READ_AT_START) and os.environ.get(name) != value
    }
    if late:
        _execute(sys.orig_argv, {**os.environ, **late})
    os.environ.update(settings.env)
    if settings.directory is not None:
        try:
            os.chdir(settings.directory)
        except OSError as error:
            raise ConfigurationError(
                f"directory: cannot work in {settings.directory}: {error.strerror}"
            ) from error


def hide_pin(warn: Callable[..., object], option: str = "--token-uri") -> None:
    """Start this program anew with the PIN of `--token-uri pkcs11:…?pin-value=…` out of its command line.

    Whoever may list processes reads command lines. The PIN is moved to a file in memory that only this
    process has open. It could be seen until now, so `warn` is told.
    """
    found = _with_hidden_pin(sys.orig_argv, option)
    if found is not None:
        warn(option=option, remedy="other users could see the PIN: use pin-source=file:/path")
        _execute(found, os.environ)


def _with_hidden_pin(arguments: Sequence[str], option: str) -> list[str] | None:
    """The same arguments with the PIN moved elsewhere; None if there is none."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            place, prefix, text = index + 1, "", arguments[index + 1]
        elif argument.startswith(option + "="):
            place, prefix, text = index, option + "=", argument.removeprefix(option + "=")
        else:
            continue
        try:
            uri = parse(text)
        except UriError:
            return None  # it will be told, without what it holds
        if uri.pin_value is None:
            return None
        hidden = os.memfd_create("pin", 0)  # inherited: not MFD_CLOEXEC
        os.write(hidden, uri.pin_value.encode())
        shown = uri.without_pin()
        joint = "&" if "?" in shown else "?"
        return [
            *arguments[:place],
            f"{prefix}{shown}{joint}pin-source=fd:{hidden}",
            *arguments[place + 1 :],
        ]
    return None


def _execute(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # Its whole path as its name: the interpreter finds its virtual environment by that.
    os.execve(sys.executable, [sys.executable, *arguments[1:]], environment)  # noqa: S606  # no shell is wanted
