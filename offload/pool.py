"""The workers: how many there are, who serves which slot, and their steps from one configuration to the next."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from hsm.errors import ConfigurationError
from hsm.logs import Logger
from hsm.metrics import MetricStore
from offload import metrics as m
from offload.account import Account
from offload.children import Child
from offload.errors import WorkerLost
from offload.plan import State, worker_settings
from offload.plan_upstreams import GroupPlan
from offload.settings import WorkerSettings
from offload.workers import START_TIMEOUT, WorkerChild


class WorkerPool:
    """All worker processes of a supervisor."""

    def __init__(self, state: State, log: Logger, account: Account | None = None) -> None:
        """Workers become `account`."""
        self.state = state
        """What workers that start are told."""
        self.workers: list[WorkerChild] = []
        """By slot."""
        self.retired = MetricStore((*m.WORKER_SPECS, *m.SUPERVISOR_SPECS))
        """Totals of workers that are gone, and restarts."""
        self.disabled_nodes: set[str] = set()
        self.log_level = "info"
        self.settled = False
        """From now on a slot that is adopted is worth a warning."""
        self._log = log
        self._account = account
        self._leaving: dict[WorkerChild, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def all_accept(self) -> bool:
        """Whether every worker accepts."""
        return all(worker.accepting for worker in self.workers) and bool(self.workers)

    def metrics(self) -> MetricStore:
        """The sum of what all workers counted, those that are gone included."""
        store = MetricStore((*m.WORKER_SPECS, *m.SUPERVISOR_SPECS))
        store.merge(self.retired.snapshot())
        for worker in (*self.workers, *self._leaving):
            store.merge(worker.metrics)
        return store

    def count_restart(self, child: Child) -> None:
        """A child was started again."""
        self.retired.value(m.RESTARTS, child.kind, child.name).value += 1

    # -- numbers ----------------------------------------------------------------------------

    def resize(self) -> None:
        """Start workers, or have the last ones drain, until there are as many as configured."""
        wanted = self.state.config.worker_count
        for slot in range(len(self.workers), wanted):
            worker = WorkerChild(slot, self._told, self._log, self._on_worker_change)
            worker.on_restart = self.count_restart
            self.workers.append(worker)
            worker.start()
        leaving, self.workers = self.workers[wanted:], self.workers[:wanted]
        for worker in leaving:
            self._leaving[worker] = asyncio.get_running_loop().create_task(self._leave(worker))

    async def _leave(self, worker: WorkerChild) -> None:
        """A worker too many: a sibling takes over its slot, then it drains."""
        try:
            await self._serve_slots()
            await worker.drain(self.state.config.limits.drain_timeout)
        finally:
            del self._leaving[worker]

    async def drain(self, timeout: float, keep: list[str]) -> None:
        """Have all finish what is open, and end. Sockets of places to `keep` stay open."""
        self._draining = True
        drains = (worker.drain(timeout, keep) for worker in self.workers)
        await asyncio.gather(*drains, *self._leaving.values())

    def kill(self) -> None:
        """End all at once."""
        for worker in (*self.workers, *self._leaving):
            worker.kill()

    async def stop(self) -> None:
        """End all that are left."""
        await asyncio.gather(*(worker.stop() for worker in (*self.workers, *self._leaving)))

    # -- configuration ----------------------------------------------------------------------

    def _told(self, slot: int) -> tuple[WorkerSettings, list[socket.socket]]:
        return self._settings(self.state, slot), self.state.sockets

    def _settings(self, state: State, slot: int) -> WorkerSettings:
        changes = {
            "disabled_nodes": tuple(sorted(self.disabled_nodes)),
            "log_level": self.log_level,
            "account": self._account,
        }
        return worker_settings(state, slot).model_copy(update=changes)

    async def switch(self, state: State, swap: Callable[[], None]) -> None:
        """Bring all workers to `state`, or none: all have prepared before the first commits.

        `swap()` is called in between; if it raises, all stays as it was. Workers that start
        meanwhile follow. Raises ConfigurationError when a worker can't.
        """
        accepting = [worker for worker in self.workers if worker.accepting]
        try:
            prepared = await self._prepare(accepting, state)
            swap()
        except BaseException:
            await asyncio.gather(*(self._abort(worker) for worker in accepting))
            raise
        self.state = state
        await asyncio.gather(*(self._commit(worker, prepared[worker]) for worker in accepting))
        late = [worker for worker in self.workers if worker.accepting and worker not in prepared]
        await asyncio.gather(*(self._follow(worker) for worker in late))
        await self._tell_all_tickets()
        await asyncio.gather(*(self.tell_upstream(group) for group in state.groups))

    async def _prepare(self, workers: list[WorkerChild], state: State) -> dict[WorkerChild, WorkerSettings]:
        answers = await asyncio.gather(
            *(
                worker.prepare(self._settings(state, worker.slot), state.sockets, START_TIMEOUT)
                for worker in workers
            ),
            return_exceptions=True,
        )
        prepared: dict[WorkerChild, WorkerSettings] = {}
        faults: list[str] = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, WorkerSettings):
                prepared[worker] = answer
            elif isinstance(answer, WorkerLost):
                faults.append(f"{worker.name} can't take it over: {answer}")
            else:
                raise answer
        if faults:
            raise ConfigurationError("\n".join(faults))
        return prepared

    async def _abort(self, worker: WorkerChild) -> None:
        with contextlib.suppress(WorkerLost):
            await worker.ask("abort", self._heartbeat_timeout)

    async def _commit(self, worker: WorkerChild, settings: WorkerSettings) -> None:
        """One that was lost meanwhile is replaced, by one that is told the new state."""
        try:
            await worker.commit(settings)
        except WorkerLost as error:
            self._log.error("worker_lost", name=worker.name, error=str(error))
            worker.kill()

    async def _follow(self, worker: WorkerChild) -> None:
        settings, sockets = self._told(worker.slot)
        try:
            await worker.prepare(settings, sockets, START_TIMEOUT)
        except WorkerLost:
            worker.kill()
        else:
            await self._commit(worker, settings)

    # -- what changes apart from the configuration --------------------------------------------

    async def tell_upstream(self, group: GroupPlan) -> None:
        """Tell all workers of a group's servers."""
        alive = [worker for worker in self.workers if worker.accepting]
        await asyncio.gather(*(self._tell_servers(worker, group) for worker in alive))

    async def _tell_upstreams(self, worker: WorkerChild) -> None:
        for group in self.state.groups:
            await self._tell_servers(worker, group)

    async def _tell_servers(self, worker: WorkerChild, group: GroupPlan) -> None:
        data = group.data(self.state.config.worker_count).model_dump(mode="json")
        await self._tell(worker, "upstream", upstream=data)

    async def tell_addresses(self, addresses: dict[str, list[str]]) -> None:
        """Tell all workers, those that start later too, what the names of nodes stand for."""
        self.state.addresses.update(addresses)
        alive = [worker for worker in self.workers if worker.accepting]
        await asyncio.gather(*(self._tell(worker, "addresses", addresses=addresses) for worker in alive))

    async def keep_tickets(self) -> None:
        """Until cancelled: turn the session-ticket keys in time, and tell the workers."""
        while True:
            keeper = self.state.tickets
            await asyncio.sleep(keeper.until_next())
            if keeper.turn():
                self.retired.value(m.TICKET_ROTATIONS).value += 1
                await self._tell_all_tickets()

    async def _tell_all_tickets(self) -> None:
        await asyncio.gather(*(self._tell_tickets(worker) for worker in self.workers if worker.accepting))

    async def _tell_tickets(self, worker: WorkerChild) -> None:
        await self._tell(worker, "tickets", keys=self.state.tickets.update(self.state.config))

    async def tell_heir(self, exists: bool) -> None:
        """Tell all workers whether another process has their listening sockets too, should this one be killed."""
        alive = [worker for worker in self.workers if worker.accepting]
        await asyncio.gather(*(self._tell(worker, "heir", exists=exists) for worker in alive))

    # -- slots ------------------------------------------------------------------------------

    def _on_worker_change(self, worker: WorkerChild) -> None:
        """A worker began or ceased to accept: see that its slot is served by somebody."""
        if worker.accepting:
            self._log.info("worker_accepting", worker=worker.slot, pid=worker.pid)
            # What was told while it started, it missed.
            self._begin(self._tell_tickets(worker))
            self._begin(self._tell_upstreams(worker))
        else:
            self.retired.merge(worker.metrics, gauges=False)
        if not self._draining:
            self.refresh_slots()

    def refresh_slots(self) -> None:
        """Soon see that each slot is served."""
        self._begin(self._serve_slots())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("internal_error", where="workers", exc_info=error)

    async def _serve_slots(self) -> None:
        """Slots without a worker are adopted by others, and given back."""
        alive = [worker for worker in self.workers if worker.accepting]
        served = {worker.slot for worker in alive}
        for worker in alive:
            for slot in sorted(worker.adopted & served):
                worker.adopted.discard(slot)
                await self._tell(worker, "release", slot=slot)
        adopted = {slot for worker in alive for slot in worker.adopted}
        for slot in range(self.state.slots):
            if alive and slot not in served | adopted:
                sibling = min(alive, key=lambda worker: len(worker.adopted))
                sibling.adopted.add(slot)
                # While starting it is usual, and so it is for slots that no worker is meant for.
                tell = self._log.warning if self.settled and slot < len(self.workers) else self._log.info
                tell("slot_adopted", slot=slot, by=sibling.slot)
                await self._tell(sibling, "adopt", slot=slot)

    async def _tell(self, worker: WorkerChild, operation: str, **arguments: Any) -> None:
        try:
            await worker.ask(operation, self._heartbeat_timeout, **arguments)
        except WorkerLost as error:
            # Its heartbeat fails too: then it is replaced, and this is called again.
            self._log.warning("worker_unresponsive", worker=worker.slot, error=str(error))

    @property
    def _heartbeat_timeout(self) -> float:
        return self.state.config.limits.heartbeat_timeout
