"""The nodes that `offload serve` runs itself: started, replaced, stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from hsm.cluster_config import LocalNode, NodeEntry
from hsm.config import Address, SoftwareSettings
from hsm.logs import Logger
from offload.account import Account
from offload.children import Child, LocalNodeChild


@dataclass
class Placement:
    """Where a configuration's nodes are reached, and which processes that takes."""

    addresses: list[Address] = field(default_factory=list)
    """By position in the configuration."""
    children: dict[str, LocalNodeChild] = field(default_factory=dict)
    """All local nodes by name."""
    fresh: list[LocalNodeChild] = field(default_factory=list)
    """Those of them that don't run yet."""

    def start(self) -> None:
        """Start what does not run yet."""
        for child in self.fresh:
            child.start()

    async def abandon(self) -> None:
        """Stop what was started for it."""
        await asyncio.gather(*(child.stop() for child in self.fresh))


class LocalNodes:
    """The local nodes that run now."""

    def __init__(
        self,
        directory: Path,
        log: Logger,
        on_restart: Callable[[Child], None],
        account: Account | None = None,
    ) -> None:
        """Their sockets are in `directory`, and open to `account`."""
        self.children: dict[str, LocalNodeChild] = {}
        self._directory = directory
        self._log = log
        self._on_restart = on_restart
        self._account = account
        self._stopping: set[asyncio.Task[None]] = set()

    def place(self, entries: Sequence[NodeEntry]) -> Placement:
        """Where these nodes are to be reached. A local one that is configured as before goes on."""
        placement = Placement()
        for entry in entries:
            if entry.run is None:
                assert entry.address is not None
                placement.addresses.append(entry.address)
                continue
            child = self.children.get(entry.name)
            if child is None or child.made_from != made_from(entry.run):
                child = self._make(entry.name, entry.run)
                placement.fresh.append(child)
            placement.children[entry.name] = child
            placement.addresses.append(child.address)
        return placement

    def _make(self, name: str, settings: LocalNode) -> LocalNodeChild:
        path = self._free_socket(name)
        child = LocalNodeChild(name, settings, path, self._log, made_from=made_from(settings))
        child.account = None if self._account is None or self._account.is_own else self._account
        child.on_restart = self._on_restart
        return child

    def _free_socket(self, name: str) -> Path:
        """A path that no node listens on: one that is to be replaced still does."""
        taken = {child.address.path for child in self.children.values()}
        paths = _sockets(self._directory, name)
        return next(path for path in paths if str(path) not in taken and not _is_listening(path))

    def adopt(self, placement: Placement) -> None:
        """Its processes are the ones that run; others finish what is under way, and end."""
        gone = [child for child in self.children.values() if child not in placement.children.values()]
        self.children = placement.children
        for child in gone:
            task = asyncio.get_running_loop().create_task(child.stop())
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(child.stop() for child in self.children.values()), *self._stopping)


def made_from(settings: LocalNode) -> object:
    """What a node follows from: its settings, and the key files of a software token.

    Two that are equal make the same node.
    """
    if not isinstance(settings, SoftwareSettings):
        return settings
    try:
        files = sorted(
            (file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in settings.keys.iterdir()
        )
    except OSError:
        files = []
    return settings, files


def running_socket(directory: Path, name: str) -> Path:
    """Where the local node `name` of a proxy that runs already listens, as far as can be seen."""
    return next(
        (path for path in islice(_sockets(directory, name), 8) if _is_listening(path)),
        directory / f"{name}.sock",
    )


def _sockets(directory: Path, name: str) -> Iterator[Path]:
    """The paths that a local node's socket may have: several while one replaces another."""
    yield directory / f"{name}.sock"
    yield from (directory / f"{name}~{number}.sock" for number in count(2))  # no name holds a tilde


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
