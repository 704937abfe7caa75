"""How a command ends that went wrong: one line for each mistake on stderr, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer


def fail(error: Exception | str) -> typer.Exit:
    """Print an operator's mistakes, one line each, and end with exit code 2."""
    import typer  # a node that a proxy runs has no other need of it

    with contextlib.suppress(OSError):  # the exit code is told all the same
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    return typer.Exit(2)


def counted(number: int, noun: str, several: str = "") -> str:
    """So many of them, as it is said: 1 key, 2 keys."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


class OutputError(Exception):
    """stdout can't be written; the cause says why."""


class _Output(io.TextIOWrapper):
    """stdout whose errors are told apart from those of other files."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError from error


def run(app: typer.Typer) -> None:
    """Run a command. Output that can't be written is one line and exit code 1; a reader that left is not even that."""
    _open_standard_streams()
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper):
        sys.stdout = _Output(output.detach(), output.encoding, output.errors)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OutputError as error:
        _give_up(error.__cause__)


def _open_standard_streams() -> None:
    """Where there is none (`>&-`), /dev/null is one: else the next file that is opened would be taken for it."""
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # has the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _give_up(error: BaseException | None) -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
    sys.exit(1)
