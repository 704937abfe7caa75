"""Memory of a worker for each idle connection, beside nginx, and what many connections leave behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest import procfs
from loadtest.figures import Bar, Figure, Findings
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.schedule import Phase
from loadtest.generate.target import Target
from loadtest.targets.lab import Lab, LoadTestError
from loadtest.targets.sides import ServerSettings, Sides, Started

CONNECTIONS, WARM_UP = 2000, 100
"""What the first connections allocate is not theirs alone: so many come before."""
CHURN = 2000
"""Connections opened and closed in a round, after those of the first rounds brought the allocator to its plateau."""
RATE = 300.0
"""Connections a second, so that few are in their handshake at a time."""
HOLD = 120.0
"""Seconds that they stay open at most: longer than everything takes."""
OPEN_TIMEOUT = 30.0
"""Seconds within which all must be open."""
LINGER_TIMEOUT = 20.0
"""Servers keep closed connections for a while, so that the last bytes arrive."""
KILOBYTES_BAR, LEAK_BAR = 12.0, 1.0


def measure(rounds: int) -> Findings:
    """All of it; connections come and go in so many rounds, at least four. Raises LoadTestError."""
    found = Findings(f"A worker's memory with {CONNECTIONS:,} idle connections, upstream sockets included")
    with Lab() as lab:
        sides = Sides(lab)
        # New servers each: memory that closed connections gave back would be taken again unseen.
        for requests, title in ((0, "idle connection"), (1, "idle connection that made a request")):
            ours, theirs = (
                kilobytes(sides.start(ServerSettings(server=server)), requests)
                for server in ("offload", "nginx")
            )
            found.figures.append(Figure(title, ours, "KB", ours, theirs, bar=Bar(KILOBYTES_BAR)))
        leavings(sides.start(ServerSettings(server="offload")), max(4, rounds), found)
    return found


def kilobytes(server: Started, requests: int) -> float:
    """KB of worker memory for each idle connection. Raises LoadTestError."""
    procfs.settle(_workers(server))  # connections that found out whether it is ready are closed
    files = _open_files(server)
    with held(server, WARM_UP, requests, files):
        pass
    _files_after(server, files)
    before = _resident(server)
    with held(server, CONNECTIONS, requests, files):
        each = (_resident(server) - before) / CONNECTIONS / 1024
    _files_after(server, files)
    return each


@contextmanager
def held(server: Started, count: int, requests: int, files: int) -> Iterator[None]:
    """So many connections that stay open within the context, on a worker that had `files` open before.

    Raises LoadTestError when they can't be opened, or the server ends some meanwhile.
    """
    target = Target(port=server.port, requests=requests, hold=HOLD)
    order = Order(targets=(target,), phases=(Phase(count / RATE, RATE),), most_open=count)
    failed: list[int] = []
    with Fleet(
        order, on_report=lambda count, _: failed.append(count.failed)
    ) as fleet:  # whose end closes them
        fleet.begin()
        deadline = fleet.start + OPEN_TIMEOUT
        while not _all_open(server, count, files):
            if time.monotonic() > deadline:
                opened = _open_files(server) - files
                what = f"{opened} files for {count} connections, of which {sum(failed)} failed"
                raise LoadTestError(f"{server.version}: {what}")
            time.sleep(0.1)
        yield
        if not _all_open(server, count, files):
            raise LoadTestError(f"{server.version}: it ended idle connections")


def _all_open(server: Started, count: int, files: int) -> bool:
    """Its own socket and the upstream's: without the second, the figure would be of something else."""
    return _open_files(server) >= files + 2 * count


def leavings(server: Started, rounds: int, found: Findings) -> None:
    procfs.settle(_workers(server))
    files, sizes, left = _open_files(server), [], 0
    order = Order(targets=(Target(port=server.port),), phases=(Phase(CHURN / RATE, RATE),))
    for _ in range(rounds):
        with Fleet(order) as fleet:
            fleet.begin()
            fleet.wait(order.longest)
        left = _files_after(server, files) - files
        sizes.append(_resident(server))
    found.notes.append(
        "worker's memory after each round: " + ", ".join(f"{size / 1e6:.2f} MB" for size in sizes)
    )
    grown = (sizes[-1] - sizes[-2]) / 1e6
    title = f"growth in a further round of {CHURN:,} connections"
    found.figures += [
        Figure(title, grown, "MB", grown, bar=Bar(LEAK_BAR)),
        Figure("open files left behind", left, "", left, bar=Bar(0)),
    ]


def _workers(server: Started) -> list[int]:
    return list(server.processes()["worker"])


def _resident(server: Started) -> int:
    """Bytes, once the worker is at rest."""
    workers = _workers(server)
    procfs.settle(workers)
    return sum(procfs.memory(pid).rss for pid in workers)


def _open_files(server: Started) -> int:
    return sum(procfs.open_files(pid) for pid in _workers(server))


def _files_after(server: Started, wanted: int) -> int:
    """Open files when there are `wanted` again, or when lingering is over."""
    deadline = time.monotonic() + LINGER_TIMEOUT
    while (count := _open_files(server)) > wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return count
