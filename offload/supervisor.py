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

from hsm import logs, systemd
from hsm.client import ClusterClient
from hsm.client.membership import Names, members
from hsm.logs import Logger
from hsm.process import ProcessUsage, forbid_dumps, raise_file_limit
from offload import __version__, activation, plan, runtime
from offload.account import find_account
from offload.children import Child
from offload.config import Config
from offload.demands import Shortfall
from offload.entrances import Entrances
from offload.errors import ConfigurationError
from offload.handover import Upgrade
from offload.heritage import Heritage
from offload.keywatch import KeyWatch
from offload.nodes import LocalNodes, Placement
from offload.plan import ListenerPlan, State
from offload.pool import WorkerPool
from offload.reload import Reloader
from offload.rotation import TicketKeeper
from offload.settings import Links
from offload.sockets import steer
from offload.succession import Predecessor, until_served
from offload.tls import library_info
from offload.upstreams import Upstreams

READY_GRACE = 2.0
"""Seconds that `event=ready` waits for keys to be found, once all workers accept."""
READY_CHECK = 0.05
START_TIME = 30.0
"""Seconds in which own nodes whose keys can't serve are a failed start."""


class Supervisor:
    """One `offload serve`, from its configuration to its end."""

    def __init__(
        self,
        config: Config,
        path: Path,
        log: Logger,
        predecessor: Predecessor | None = None,
    ) -> None:
        """`path` is the configuration's file: the runtime directory follows from it."""
        self.log = log
        self.config = config
        """What it starts with; `state` has what it runs with."""
        self.draining = False
        self.on_ready: Callable[[], None] = lambda: None
        """Called once, right after `event=ready` is logged."""
        self.usage = ProcessUsage()
        self.reloader = Reloader(self, config, path)
        self.names = Names()
        """The addresses of nodes whose hosts are names."""
        self._links = Links()
        self.upgrade = Upgrade(self, path)
        self.directory = runtime.directory_of(config, path)
        """Where the control socket is."""
        self.stopping = asyncio.Event()
        """Set when it is to drain and end."""
        self._predecessor = predecessor
        self._was_ready = False
        self._stop_now = asyncio.Event()
        self._signalled = False

    @property
    def state(self) -> State:
        """What runs now."""
        return self.pool.state

    async def run(self) -> None:
        """Serve until told to stop.

        Raises ConfigurationError: before anything is started, or when the nodes that were found
        can't do what a listener may ask of its key."""
        forbid_dumps()  # it holds the keys of session tickets
        raise_file_limit()
        self._handle_signals()
        self._started = asyncio.get_running_loop().time()
        config = self.config
        account = find_account(config.user, config.group)
        listeners, groups = plan.plan_service(config)
        await asyncio.to_thread(plan.check_local_nodes, config.hsm.nodes)
        tickets = TicketKeeper(config.tickets)
        heritage = await self._inherit(listeners)
        tickets.restore(heritage.tickets)
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(runtime.make(self.directory, account))
            self.entrances = await stack.enter_async_context(Entrances(self, directory, heritage))
            self.local_nodes = LocalNodes(directory, self.log, self._count_restart, account)
            placement = self.local_nodes.place(config.hsm.nodes)
            nodes = plan.plan_nodes(config, placement.addresses)
            plan.bind(listeners, config.worker_count, heritage.held)
            stack.callback(lambda: plan.unbind(self.state.listeners, {}))
            await self.names.refresh(node.address for node in nodes)
            addresses = dict(self.names.addresses)
            state = State(config, listeners, groups, nodes, tickets, addresses, lent=heritage.lent)
            self.pool = WorkerPool(state, self.log, account)
            _listen(listeners, heritage)
            self.cluster = ClusterClient((), config.hsm.options(), log=self._log_node)
            self.follow_nodes(state)
            self.keys = KeyWatch(self.cluster, self.state.keys, self.state.demands)
            self._restore(heritage)
            if self._predecessor is None:
                await self.entrances.open()
            await stack.enter_async_context(self._running_nodes(placement))
            if self._predecessor is not None:
                await until_served(self, placement, heritage.seconds)
            await stack.enter_async_context(self._running_workers())
            self.upstreams = Upstreams(self.pool.tell_upstream, self.log)
            self.upstreams.watch(groups)
            stack.callback(self.upstreams.stop)
            self.tell_certificates()
            await self._until_stopped()
            await self._drain()

    async def _inherit(self, listeners: list[ListenerPlan]) -> Heritage:
        """What there is already. Raises ConfigurationError if it is of no use."""
        if self._predecessor is None:
            return activation.inherit(listeners)
        return await self._predecessor.inherit()

    def _restore(self, heritage: Heritage) -> None:
        """What operators have set since the process before began."""
        self.pool.log_level = heritage.log_level
        logs.set_level(heritage.log_level)
        self.pool.disabled_nodes = {node.name for node in self.cluster.nodes} & heritage.disabled_nodes
        for name in self.pool.disabled_nodes:
            self.cluster.set_enabled(name, False)

    def _count_restart(self, child: Child) -> None:
        self.pool.count_restart(child)

    def request_drain(self) -> None:
        """Drain and end; asked again, nothing more happens."""
        self.stopping.set()

    def stop(self) -> None:
        """A signal: drain and end; a second one: end at once. The first one changes nothing for who drains already."""
        if self._signalled:
            self._stop_now.set()
        self._signalled = True
        self.stopping.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reloader.request, "SIGHUP")

    @contextlib.asynccontextmanager
    async def _running_nodes(self, placement: Placement) -> AsyncIterator[None]:
        placement.start()
        self.local_nodes.adopt(placement)
        self.cluster.start()
        tasks = [asyncio.create_task(self.keys.probe()), asyncio.create_task(self._follow_names())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await self.cluster.close()
            await self.local_nodes.stop()

    def follow_nodes(self, state: State) -> None:
        """Be connected to the nodes of this state."""
        self.cluster.set_options(state.config.hsm.options())
        self.cluster.set_nodes(members(self._links.options(state.nodes, workers=1), state.addresses))

    async def _follow_names(self) -> None:
        """Until cancelled: look the names of nodes up again, and tell the workers of other addresses."""
        unknown: set[str] = set()
        while True:
            for host in self.names.failures.keys() - unknown:
                self.log.warning("node_name_not_found", name=host, error=self.names.failures[host])
            unknown = set(self.names.failures)
            await asyncio.sleep(self.state.config.hsm.resolve_interval)
            if await self.names.refresh(node.address for node in self.state.nodes):
                self.log.info("node_addresses", addresses=self.names.addresses)
                await self.pool.tell_addresses(self.names.addresses)
                self.follow_nodes(self.state)

    @contextlib.asynccontextmanager
    async def _running_workers(self) -> AsyncIterator[None]:
        self.pool.resize()
        rotating = asyncio.create_task(self.pool.keep_tickets())
        living = asyncio.create_task(self._show_life())  # while it drains too
        try:
            yield
        finally:
            rotating.cancel()
            living.cancel()
            await self.pool.stop()

    # -- readiness ----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Every worker accepts, and each key was found once, able to do what is asked of it.

        An outage of the cluster later does not end open connections, so it is no reason to be
        taken out of service."""
        if not self._was_ready:
            self._was_ready = self.pool.all_accept and not self.keys.missing() and not self.keys.shortfalls()
        return self._was_ready and self.pool.all_accept and not self.draining

    @property
    def degraded(self) -> list[str]:
        """What is wrong with nodes, keys and certificates, in words; empty when all is well."""
        faults = [f"node {node.name}: {node.why_not_ready}" for node in self.cluster.nodes if not node.ready]
        faults += [f"no ready node holds key {ski.hex()}" for ski in self.keys.missing()]
        faults += [str(shortfall) for shortfall in self.keys.shortfalls()]
        now = datetime.now(UTC)
        chains = (chain for listener in self.state.listeners for chain in listener.chains)
        return faults + [problem for chain in chains if (problem := chain.validity_problem(now))]

    async def _until_stopped(self) -> None:
        """Announce readiness and watch the keys. Raises ConfigurationError if they can't serve from the start."""
        stopping = asyncio.create_task(self.stopping.wait())
        watching = asyncio.create_task(self._watch_keys())
        reloading = [
            asyncio.create_task(work)
            for work in (self.reloader.follow_requests(), self.reloader.follow_files())
        ]
        done, _ = await asyncio.wait({stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, watching, *reloading):
            task.cancel()
        await asyncio.gather(*reloading, return_exceptions=True)
        if watching in done:
            self.draining = True  # what ends from now on is not to be replaced
            watching.result()

    async def _show_life(self) -> None:
        """Until cancelled: tell the service manager's watchdog that this loop turns."""
        interval = systemd.watchdog_interval()
        while interval is not None:
            systemd.notify(WATCHDOG=1)
            await asyncio.sleep(interval)

    async def _watch_keys(self) -> None:
        await self._announce_ready()
        await self.keys.tell_shortfalls(self._on_shortfalls)

    def _on_shortfalls(self, shortfalls: list[Shortfall]) -> None:
        """While starting, what is not going to mend itself is the operator's mistake, which ends the process."""
        refused = [str(found) for found in shortfalls if found.is_final and self._is_starting(found.nodes)]
        if refused:
            raise ConfigurationError("\n".join(refused))
        if self.pool.settled:
            for found in shortfalls:
                self.log.error("key_cannot_serve", listener=found.demand.listener, error=str(found))

    def _is_starting(self, nodes: Sequence[str]) -> bool:
        """Whether this is still the start for these nodes: own ones are given time to log in."""
        own = set(self.local_nodes.children)
        in_time = asyncio.get_running_loop().time() < self._started + START_TIME
        return not self._was_ready and (not self.pool.settled or (in_time and own.issuperset(nodes)))

    async def _announce_ready(self) -> None:
        while not self.pool.all_accept:  # noqa: ASYNC110  # only while starting
            await asyncio.sleep(READY_CHECK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_GRACE):
                while not self.ready:
                    self._on_shortfalls(self.keys.shortfalls())
                    await asyncio.sleep(READY_CHECK)
        self.pool.settled = True
        if self._predecessor is not None:
            await self._predecessor.take_over(self)
        missing = [ski.hex() for ski in self.keys.missing()]
        info = library_info()
        tell = self.log.info if self.ready else self.log.warning
        tell(
            "ready",
            version=__version__,
            tls=str(info),
            listeners={p.settings.name: str(p.bound) for p in self.state.listeners},
            workers=len(self.pool.workers),
            nodes=[node.name for node in self.state.nodes],
            **({"keys_missing": missing} if missing else {}),
        )
        self.log.info("workers_confined", by=self.pool.workers[0].snapshot.get("confined_by"))
        systemd.ready(f"{len(self.pool.workers)} workers accept")
        self.on_ready()

    def tell_certificates(self) -> None:
        """Log what is served, and what is not valid now."""
        now = datetime.now(UTC)
        for listener in self.state.listeners:
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
        if not self.upgrade.is_done:
            systemd.stopping("draining")
        timeout = self.state.config.limits.drain_timeout
        hint = f"{'another signal ends' if self._signalled else 'two signals end'} it at once"
        self.log.info("draining", timeout=timeout, hint=hint)
        drained = asyncio.create_task(self.pool.drain(timeout, keep=self.upgrade.places))
        stop_now = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({drained, stop_now}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            self.pool.kill()
        await drained
        stop_now.cancel()
        self.log.info("stopped")


def _listen(listeners: list[ListenerPlan], heritage: Heritage) -> None:
    """Accept on all sockets. Clients of the process before come to those that it has too, until it is over."""
    heritage.forget({listener.place for listener in listeners})
    for listener in listeners:
        if held := heritage.held.get(listener.place):
            steer(listener.sockets, len(held))
    plan.start_listening(listeners)
