"""How our programs start: quickly.

What is imported at a start stays until the end. To walk it for garbage, again and again while it grows,
takes a sixth of a start's CPU time: so the collector rests meanwhile, and leaves it alone afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For the imports at a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a process of its own that calls a module's `main` with these arguments."""
    return [sys.executable, "-m", "hsm.start", module, *arguments]


def main(module: str, *arguments: str) -> None:
    """What such a process does."""
    with importing():
        program = importlib.import_module(module)
    program.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
