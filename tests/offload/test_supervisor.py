"""What the supervisor does beside everything else is not lost when it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import structlog
from structlog.testing import capture_logs

from hsm.config import validate
from offload import plan
from offload.config import Config
from offload.rotation import TicketKeeper
from offload.settings import WorkerSettings
from offload.supervisor import Supervisor
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

    def settings(slot: int) -> WorkerSettings:
        return plan.worker_settings(config, [], [], TicketKeeper(config.tickets), slot)

    async def lose_a_worker(logs: list[Any]) -> None:
        supervisor = Supervisor(config, Path("/none/offload.yaml"), log)
        supervisor.workers = [BrokenWorker(slot, settings, log, lambda _worker: None) for slot in range(2)]
        alive, absent = supervisor.workers
        alive.accepting = True
        supervisor._on_worker_change(absent)
        async with asyncio.timeout(10):
            while not any(entry["event"] == "internal_error" for entry in logs):
                await asyncio.sleep(0)
        assert not supervisor._tasks

    with capture_logs() as logs:
        asyncio.run(lose_a_worker(logs))
    (entry,) = [entry for entry in logs if entry["event"] == "internal_error"]
    assert entry["log_level"] == "error"
    assert str(entry["exc_info"]) == "a bug in adopt"
