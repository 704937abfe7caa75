"""The parent process: binds sockets, runs nodes and workers, replaces what dies, drains.

It touches no client's bytes and no private key. The admin server asks it for state.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from hsm.client import ClusterClient
from hsm.cluster_config import NodeEntry
from hsm.config import Address
from hsm.metrics import MetricStore
from hsm.process import raise_file_limit
from offload import __version__, plan, runtime
from offload import metrics as m
from offload.children import Child, LocalNodeChild
from offload.commands import serve_commands
from offload.config import Config
from offload.demands import Shortfall
from offload.errors import ConfigurationError, WorkerLost
from offload.keywatch import KeyWatch
from offload.rotation import TicketKeeper
from offload.settings import WorkerSettings
from offload.tls import library_info
from offload.upstreams import Upstreams
from offload.workers import WorkerChild

READY_GRACE = 2.0
"""Seconds that `event=ready` waits for keys to be found, once all workers accept."""
READY_CHECK = 0.05
START_TIME = 30.0
"""Seconds in which own nodes whose keys can't serve are a failed start."""


class Supervisor:
    """One `offload serve`, from its configuration to its end."""

    def __init__(self, config: Config, path: Path, log: structlog.typing.FilteringBoundLogger) -> None:
        """`path` is the configuration's file: the runtime directory follows from it."""
        self.config = config
        self._directory = runtime.directory_of(config, path)
        self.log = log
        self.plans: list[plan.ListenerPlan] = []
        self.workers: list[WorkerChild] = []
        self.local_nodes: list[LocalNodeChild] = []
        self.retired = MetricStore((*m.WORKER_SPECS, *m.SUPERVISOR_SPECS))
        """Totals of workers that are gone, and restarts."""
        self.draining = False
        self.disabled_nodes: set[str] = set()
        self.log_level = "info"
        self.upstreams = Upstreams(self._tell_upstream, log)
        self.on_ready: Callable[[], None] = lambda: None
        """Called once, right after `event=ready` is logged."""
        self._was_ready = self._announced = False
        self._nodes: list[tuple[NodeEntry, Address]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises ConfigurationError: before anything is started, or when the nodes that were found
        can't do what a listener may ask of its key."""
        raise_file_limit()
        self._started = asyncio.get_running_loop().time()
        self.plans = plan.plan_listeners(self.config)
        for entry in self.config.hsm.nodes:
            plan.check_local_node(entry)
        self.tickets = TicketKeeper(self.config.tickets)
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(runtime.make(self._directory))
            await stack.enter_async_context(serve_commands(self, directory / runtime.CONTROL_SOCKET))
            self._place_nodes(str(directory))
            options = [plan.node_options(entry, address) for entry, address in self._nodes]
            plan.bind(self.plans, self.config.worker_count)
            stack.callback(self._close_sockets)
            self._handle_signals()
            self.cluster = ClusterClient(options, log=self._log_node)
            self.keys = KeyWatch(
                self.cluster,
                [chain.key for p in self.plans for chain in p.chains],
                [demand for p in self.plans for demand in p.demands],
            )
            if self.config.admin is not None:
                from offload.admin import serve_admin

                await stack.enter_async_context(serve_admin(self, self.config.admin.address))
            await stack.enter_async_context(self._running_nodes())
            await stack.enter_async_context(self._running_workers())
            self.upstreams.watch(self.plans)
            stack.callback(self.upstreams.stop)
            self._tell_certificates()
            await self._until_stopped()
            await self._drain()

    def request_drain(self) -> None:
        """Drain and end; asked again, nothing more happens."""
        self._stop.set()

    def stop(self) -> None:
        """Drain and end; asked again, end at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    # -- set-up -------------------------------------------------------------------------------

    def _place_nodes(self, directory: str) -> None:
        for entry in self.config.hsm.nodes:
            if entry.run is None:
                assert entry.address is not None
                self._nodes.append((entry, entry.address))
                continue
            child = LocalNodeChild(entry.name, entry.run, directory, self.log)
            child.on_restart = self._count_restart
            self.local_nodes.append(child)
            self._nodes.append((entry, child.address))

    @contextlib.asynccontextmanager
    async def _running_nodes(self) -> AsyncIterator[None]:
        for node in self.local_nodes:
            node.start()
        self.cluster.start()
        probing = asyncio.create_task(self.keys.probe())
        try:
            yield
        finally:
            probing.cancel()
            await self.cluster.close()
            await asyncio.gather(*(node.stop() for node in self.local_nodes))

    @contextlib.asynccontextmanager
    async def _running_workers(self) -> AsyncIterator[None]:
        for slot in range(self.config.worker_count):
            worker = WorkerChild(slot, self._worker_settings, self.log, self._on_worker_change)
            worker.on_restart = self._count_restart
            self.workers.append(worker)
            worker.start()
        rotating = asyncio.create_task(self.tickets.keep(self._tell_rotation))
        try:
            yield
        finally:
            rotating.cancel()
            await asyncio.gather(*(worker.stop() for worker in self.workers))

    def _worker_settings(self, slot: int) -> WorkerSettings:
        settings = plan.worker_settings(self.config, self.plans, self._nodes, self.tickets, slot)
        changes = {"disabled_nodes": tuple(sorted(self.disabled_nodes)), "log_level": self.log_level}
        return settings.model_copy(update=changes)

    def _close_sockets(self) -> None:
        for listener in self.plans:
            for sock in listener.sockets:
                sock.close()

    # -- workers ------------------------------------------------------------------------------

    def _on_worker_change(self, worker: WorkerChild) -> None:
        """A worker began or ceased to accept: see that its slot is served by somebody."""
        if worker.accepting:
            self.log.info("worker_accepting", worker=worker.slot, pid=worker.pid)
            # What was told while it started, it missed.
            asyncio.get_running_loop().create_task(self._tell_tickets(worker))
            asyncio.get_running_loop().create_task(self._tell_upstreams(worker))
        else:
            self.retired.merge(worker.metrics, gauges=False)
        if not self.draining:
            task = asyncio.get_running_loop().create_task(self._serve_slots())
            self._tasks.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._on_slots_served)

    def _on_slots_served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("internal_error", where="slots", exc_info=error)

    async def _serve_slots(self) -> None:
        """Slots of absent workers are adopted by siblings, and given back."""
        alive = [worker for worker in self.workers if worker.accepting]
        served = {worker.slot for worker in alive}
        for worker in alive:
            for slot in sorted(worker.adopted & served):
                worker.adopted.discard(slot)
                await self._tell(worker, "release", slot=slot)
        adopted = {slot for worker in alive for slot in worker.adopted}
        for absent in self.workers:
            if alive and absent.slot not in served | adopted:
                sibling = min(alive, key=lambda worker: len(worker.adopted))
                sibling.adopted.add(absent.slot)
                tell = self.log.warning if self._announced else self.log.info  # while starting it is usual
                tell("slot_adopted", slot=absent.slot, by=sibling.slot)
                await self._tell(sibling, "adopt", slot=absent.slot)

    async def _tell_rotation(self) -> None:
        self.retired.value(m.TICKET_ROTATIONS).value += 1
        await asyncio.gather(*(self._tell_tickets(worker) for worker in self.workers if worker.accepting))

    async def _tell_tickets(self, worker: WorkerChild) -> None:
        await self._tell(worker, "tickets", keys=self.tickets.update(self.config))

    async def _tell(self, worker: WorkerChild, operation: str, **arguments: Any) -> None:
        try:
            await worker.ask(operation, self.config.limits.heartbeat_timeout, **arguments)
        except WorkerLost as error:
            # Its heartbeat fails too: then it is replaced, and this is called again.
            self.log.warning("worker_unresponsive", worker=worker.slot, error=str(error))

    async def _tell_upstream(self, listener: plan.ListenerPlan) -> None:
        """Tell all workers of a listener's servers."""
        alive = [worker for worker in self.workers if worker.accepting]
        await asyncio.gather(*(self._tell_servers(worker, listener) for worker in alive))

    async def _tell_upstreams(self, worker: WorkerChild) -> None:
        for listener in self.plans:
            await self._tell_servers(worker, listener)

    async def _tell_servers(self, worker: WorkerChild, listener: plan.ListenerPlan) -> None:
        data = plan.upstream_data(listener, self.config.worker_count).model_dump(mode="json")
        await self._tell(worker, "upstream", listener=listener.settings.name, upstream=data)

    def _count_restart(self, child: Child) -> None:
        self.retired.value(m.RESTARTS, child.kind, child.name).value += 1

    # -- readiness ----------------------------------------------------------------------------

    @property
    def all_accept(self) -> bool:
        """Whether every worker accepts."""
        return all(worker.accepting for worker in self.workers) and bool(self.workers)

    @property
    def ready(self) -> bool:
        """Every worker accepts, and each key was found once, able to do what is asked of it.

        An outage of the cluster later does not end open connections, so it is no reason to be
        taken out of service."""
        if not self._was_ready:
            self._was_ready = self.all_accept and not self.keys.missing() and not self.keys.shortfalls()
        return self._was_ready and self.all_accept and not self.draining

    @property
    def degraded(self) -> list[str]:
        """What is wrong with nodes, keys and certificates, in words; empty when all is well."""
        faults = [f"node {node.name}: {node.why_not_ready}" for node in self.cluster.nodes if not node.ready]
        faults += [f"no ready node holds key {ski.hex()}" for ski in self.keys.missing()]
        faults += [str(shortfall) for shortfall in self.keys.shortfalls()]
        now = datetime.now(UTC)
        chains = (chain for listener in self.plans for chain in listener.chains)
        return faults + [problem for chain in chains if (problem := chain.validity_problem(now))]

    async def _until_stopped(self) -> None:
        """Announce readiness and watch the keys. Raises ConfigurationError if they can't serve from the start."""
        stopping = asyncio.create_task(self._stop.wait())
        watching = asyncio.create_task(self._watch_keys())
        await asyncio.wait({stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, watching):
            task.cancel()
        if watching.done():
            self.draining = True  # what ends from now on is not to be replaced
            watching.result()

    async def _watch_keys(self) -> None:
        await self._announce_ready()
        await self.keys.tell_shortfalls(self._on_shortfalls)

    def _on_shortfalls(self, shortfalls: list[Shortfall]) -> None:
        """While starting, what is not going to mend itself is the operator's mistake, which ends the process."""
        refused = [str(found) for found in shortfalls if found.is_final and self._is_starting(found.nodes)]
        if refused:
            raise ConfigurationError("\n".join(refused))
        if self._announced:
            for found in shortfalls:
                self.log.error("key_cannot_serve", listener=found.demand.listener, error=str(found))

    def _is_starting(self, nodes: Sequence[str]) -> bool:
        """Whether this is still the start for these nodes: own ones are given time to log in."""
        own = {node.name for node in self.local_nodes}
        in_time = asyncio.get_running_loop().time() < self._started + START_TIME
        return not self._was_ready and (not self._announced or (in_time and own.issuperset(nodes)))

    async def _announce_ready(self) -> None:
        while not self.all_accept:  # noqa: ASYNC110  # only while starting
            await asyncio.sleep(READY_CHECK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_GRACE):
                while not self.ready:
                    self._on_shortfalls(self.keys.shortfalls())
                    await asyncio.sleep(READY_CHECK)
        self._announced = True
        missing = [ski.hex() for ski in self.keys.missing()]
        info = library_info()
        tell = self.log.info if self.ready else self.log.warning
        tell(
            "ready",
            version=__version__,
            tls=str(info),
            listeners={p.settings.name: str(p.bound) for p in self.plans},
            workers=len(self.workers),
            nodes=[entry.name for entry, _ in self._nodes],
            **({"keys_missing": missing} if missing else {}),
        )
        self.on_ready()

    def _tell_certificates(self) -> None:
        now = datetime.now(UTC)
        for listener in self.plans:
            for chain in listener.chains:
                valid = chain.validity_problem(now) is None
                (self.log.info if valid else self.log.warning)(
                    "certificate" if valid else "certificate_not_valid_now",
                    listener=listener.settings.name,
                    names=list(chain.names) or [chain.subject],
                    not_after=chain.not_after.isoformat(),
                    ski=chain.ski.hex(),
                )
                if chain.staple is not None and (fault := chain.staple.fault(now)):
                    self.log.warning("ocsp_not_stapled", file=str(chain.staple.path), reason=fault)

    def _log_node(self, event: str, **fields: object) -> None:
        log = self.log.info if event == "node_ready" else self.log.warning
        if not self.draining:
            log(event, **fields)

    # -- end ----------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self.draining = True
        timeout = self.config.limits.drain_timeout
        self.log.info("draining", timeout=timeout, hint="signal again to end at once")
        drained = asyncio.create_task(self._drain_workers(timeout))
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({drained, stop_now}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            for worker in self.workers:
                worker.kill()
        await drained
        stop_now.cancel()
        self.log.info("stopped")

    async def _drain_workers(self, timeout: float) -> None:
        await asyncio.gather(*(worker.drain(timeout) for worker in self.workers))


def worker_store(supervisor: Supervisor) -> MetricStore:
    """The sum of what all workers counted, those that are gone included."""
    store = MetricStore((*m.WORKER_SPECS, *m.SUPERVISOR_SPECS))
    store.merge(supervisor.retired.snapshot())
    for worker in supervisor.workers:
        store.merge(worker.metrics)
    return store
