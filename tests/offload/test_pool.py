"""What the pool of workers does beside everything else is not lost when it fails."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import structlog
from structlog.testing import capture_logs

from hsm.config import validate
from offload.config import Config
from offload.plan import ListenerPlan, State
from offload.plan_tls import TlsPlan
from offload.pool import WorkerPool
from offload.rotation import TicketKeeper
from offload.workers import WorkerChild

CONFIG = {
    "listeners": [
        {
            "name": "web",
            "address": "127.0.0.1:0",
            "certificates": [{"chain": "none.pem"}],
            "upstream": {"servers": ["127.0.0.1:1"]},
        }
    ],
    "hsm": {"nodes": [{"name": "a", "address": "unix:/none.sock"}]},
    "workers": 2,
}


class BrokenWorker(WorkerChild):
    """A worker slot; asking it anything runs into a bug."""

    async def ask(self, operation: str, within: float, **arguments: Any) -> dict[str, Any]:
        """Never answers."""
        raise RuntimeError(f"a bug in {operation}")


def test_slots_that_can_not_be_handed_over_are_logged() -> None:
    """With the exception, and once: the hand-over runs in a task that nobody waits for."""
    config = validate(CONFIG, Config, "offload.yaml", Path("/"))
    log = structlog.get_logger()

    async def lose_a_worker(logs: list[Any]) -> None:
        settings = config.listeners[0]
        with socket.socket() as first, socket.socket() as second:
            listener = ListenerPlan(settings, TlsPlan(settings, [], b""), [first, second])
            pool = WorkerPool(State(config, [listener], [], [], TicketKeeper(config.tickets)), log)
            pool.workers = [BrokenWorker(slot, pool._told, log, lambda _worker: None) for slot in range(2)]
            alive, absent = pool.workers
            alive.accepting = True
            pool._on_worker_change(absent)
            async with asyncio.timeout(10):
                while pool._tasks:
                    await asyncio.sleep(0)

    with capture_logs() as logs:
        asyncio.run(lose_a_worker(logs))
    (entry,) = [entry for entry in logs if entry["event"] == "internal_error"]
    assert entry["log_level"] == "error"
    assert str(entry["exc_info"]) == "a bug in adopt"
