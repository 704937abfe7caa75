"""All groups of web servers, in the supervisor: which servers there are, and which are up.

Names are looked up again and servers checked here, once for all workers; the workers are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from time import monotonic
from typing import Any

from hsm.logs import Logger
from offload.config_upstream import HealthSettings, ServerSettings
from offload.plan_upstreams import GroupPlan
from offload.prober import check
from offload.proxy_protocol import encode_local
from offload.resolver import Lookup, is_name, look_up, look_up_aside, servers_at
from offload.settings import ServerData
from offload.upstream_health import CheckHealth

Tell = Callable[[GroupPlan], Awaitable[None]]
"""Tells all workers of a group's servers."""


class Upstreams:
    """Keeps `servers` of each group's plan true."""

    def __init__(self, tell: Tell, log: Logger, lookup: Lookup = look_up) -> None:
        self._tell, self._log, self._lookup = tell, log, lookup
        self._watches: dict[str, UpstreamWatch] = {}

    def watch(self, plans: Iterable[GroupPlan]) -> None:
        """Watch these groups' servers from now on, and no others; servers that stay keep their state."""
        before, self._watches = self._watches, {}
        for plan in plans:
            watch = UpstreamWatch(plan, self._tell, self._log.bind(upstream=plan.name), self._lookup)
            self._watches[plan.name] = watch
            old = before.get(plan.name)
            watch.start(old.checks if old is not None else {})
        for old in before.values():
            old.stop()

    def checks(self, group: str) -> dict[str, CheckHealth]:
        """What the checks say of a group's servers, by address; empty without checks."""
        watch = self._watches.get(group)
        return watch.checks if watch is not None else {}

    def stop(self) -> None:
        """Watch nothing any more."""
        self.watch([])


class UpstreamWatch:
    """The servers of one group."""

    def __init__(self, plan: GroupPlan, tell: Tell, log: Logger, lookup: Lookup) -> None:
        self._plan, self._tell, self._log, self._lookup = plan, tell, log, lookup
        self._settings = plan.settings
        self._unresolved: set[str] = set()
        self._resolving: asyncio.Task[None] | None = None
        self._checking: dict[str, asyncio.Task[None]] = {}
        self.checks: dict[str, CheckHealth] = {}
        """By address."""

    def start(self, checks: dict[str, CheckHealth]) -> None:
        """Begin; `checks` is what is known already."""
        if self._settings.health is not None:
            self.checks = dict(checks)
        self._set_servers(self._plan.servers)
        if self._settings.resolve_interval and any(is_name(s.address) for s in self._settings.servers):
            self._resolving = _begin(self._resolve_regularly())

    def stop(self) -> None:
        """End all that was begun."""
        for task in (self._resolving, *self._checking.values()):
            if task is not None:
                task.cancel()

    def _set_servers(self, servers: list[ServerData]) -> None:
        """These there are; each is checked, and up as far as is known."""
        there = {str(server.address): server for server in servers}
        for address in self._checking.keys() - there.keys():
            self._checking.pop(address).cancel()
        self.checks = {address: health for address, health in self.checks.items() if address in there}
        health = self._settings.health
        if health is not None:
            for address, server in there.items():
                if address not in self._checking:
                    self._checking[address] = _begin(self._check_regularly(server, health))
        self._plan.servers = [self._judged(server) for server in servers]

    def _judged(self, server: ServerData) -> ServerData:
        health = self.checks.get(str(server.address))
        return server.model_copy(update={"up": health is None or health.up})

    # -- names --------------------------------------------------------------------------------

    async def _resolve_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resolve_interval)
            await self.resolve()

    async def resolve(self) -> None:
        """Look all names up once, and tell the workers if something changed."""
        configured = self._settings.servers
        found = await asyncio.gather(*(self._servers_of(server) for server in configured))
        servers = [self._judged(server) for several in found for server in several]
        if servers != self._plan.servers:
            self._set_servers(servers)
            self._log.info("upstream_servers", servers=[str(server.address) for server in servers])
            await self._tell(self._plan)

    async def _servers_of(self, configured: ServerSettings) -> list[ServerData]:
        """What a configured server stands for now; what it stood for, if that can't be found out."""
        name = str(configured.address)
        if is_name(configured.address):
            try:
                hosts = await look_up_aside(configured.address.host, self._lookup)
            except OSError as error:
                if name not in self._unresolved:
                    self._log.warning("upstream_unresolved", server=name, error=str(error))
                self._unresolved.add(name)
            else:
                self._unresolved.discard(name)
                return servers_at(configured, hosts)
        return [server for server in self._plan.servers if server.label == name]

    # -- checks -------------------------------------------------------------------------------

    async def _check_regularly(self, server: ServerData, settings: HealthSettings) -> None:
        address = str(server.address)
        health = self.checks.setdefault(address, CheckHealth(settings.rise, settings.fall, monotonic()))
        version = self._settings.proxy_protocol
        first = b"" if version is None else encode_local(version)
        while True:
            fault = await check(server.address, settings, first)
            if health.observe(fault, monotonic()):
                self._plan.servers = [self._judged(server) for server in self._plan.servers]
                if health.up:
                    self._log.info("upstream_up", server=address)
                else:
                    self._log.warning("upstream_down", server=address, reason=fault)
                await self._tell(self._plan)
            await asyncio.sleep(settings.interval)


def _begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
