"""How a command of ours ends that can't go on: in a line, without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hsm.errors import ConfigurationError
from hsm.terminal import fail
from loadtest.targets.lab import LoadTestError


@contextlib.contextmanager
def told_in_a_line() -> Iterator[None]:
    """Decorates a command: a mistake of its user, or a lab that fails, is a line and exit code 2."""
    try:
        yield
    except (ConfigurationError, LoadTestError) as error:
        raise fail(error) from error
