"""The files that a configuration is made from, and waiting until their content changes.

Directories are watched, not files: Kubernetes swaps a symbolic link beside them, certbot and
editors replace them. What counts in the end is content, so that a touched file is no change.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from watchfiles import awatch

from hsm.config import Section, SoftwareSettings
from offload.config import Config

DEBOUNCE_MS, STEP_MS = 500, 100
"""A burst of events is over when none came for a step, at the latest after the debounce."""
LOOK_AGAIN = 10.0
"""Seconds after which content is compared without an event: network file systems tell none."""
HASHED_MOST = 1024 * 1024
"""Of larger files only size and time of change are compared."""

Fingerprint = dict[Path, bytes]


def files_of(config: Config, path: Path) -> set[Path]:
    """The configuration's file, all files it names, and key directories of software nodes."""
    found = {path.absolute()}
    for name, value in config:
        if name != "runtime_directory":
            found.update(_paths(value))
    for node in config.hsm.nodes:
        if isinstance(node.run, SoftwareSettings):
            found.add(node.run.keys)
    return found


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Section):
        for name, inner in value:
            if name != "run":  # a token's files are its node's business
                yield from _paths(inner)
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _paths(inner)


def fingerprint(paths: Iterable[Path]) -> Fingerprint:
    """What the files hold, and which files the directories hold; equal when nothing has changed."""
    return {path: _digest(path) for path in paths}


def _digest(path: Path) -> bytes:
    try:
        if path.is_dir():
            parts = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.iterdir())]
            return repr(parts).encode()
        found = path.stat()
        if found.st_size > HASHED_MOST:
            return f"{found.st_size} {found.st_mtime_ns}".encode()
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def directories_of(paths: Iterable[Path]) -> set[Path]:
    """Where events tell of these: beside each, and beside what it is a link to."""
    found: set[Path] = set()
    for path in paths:
        real = path.resolve()
        found |= {path.parent, real.parent} | ({real} if real.is_dir() else set())
    return {directory for directory in found if directory.is_dir()}


async def events(files: Callable[[], set[Path]]) -> AsyncIterator[None]:
    """Whenever something may have changed about the files, which may be others each time."""
    while True:
        # No watches left; a directory went away, or may not be read.
        with contextlib.suppress(OSError, RuntimeError):
            directories = directories_of(files())
            async for _ in awatch(
                *directories, recursive=False, watch_filter=None, debounce=DEBOUNCE_MS, step=STEP_MS,
                rust_timeout=int(LOOK_AGAIN * 1000), yield_on_timeout=True, raise_interrupt=False,
            ):  # fmt: skip
                yield
                if directories_of(files()) != directories:
                    break
            continue
        await asyncio.sleep(LOOK_AGAIN)
        yield
