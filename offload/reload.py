"""Takes over a changed configuration while everything runs: make all of it first, then swap.

Whatever is wrong is found before anything changes, and then all stays as it was. No connection
is dropped: workers keep old ones with what they began with, and listening sockets of unchanged
addresses are the same ones as before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hsm import systemd
from hsm.client import ClusterClient
from hsm.client.membership import members
from hsm.errors import ConfigurationError
from offload import metrics as m
from offload import plan, watch
from offload.changes import check_fixed, describe
from offload.config import Config, load
from offload.keywatch import KeyWatch
from offload.nodes import Placement
from offload.plan import ListenerPlan, State
from offload.plan_upstreams import GroupPlan, keep_servers
from offload.settings import Links
from offload.sockets import steer

if TYPE_CHECKING:
    from offload.supervisor import Supervisor

TRIAL_TIMEOUT = 15.0
"""Longest wait, in seconds, for new local nodes to be ready and for new certificates' keys to be found."""
TRIAL_CHECK = 0.05
RETRY_FIRST, RETRY_MOST = 1.0, 120.0
"""Seconds until what may have mended is tried again: doubled each time."""


class NotYet(ConfigurationError):
    """What is wrong may mend by itself: a node is not ready, or none has the key."""


@dataclass(frozen=True)
class Outcome:
    """How a reload went."""

    result: Literal["done", "unchanged", "refused"]
    lines: tuple[str, ...]
    """What changed; or what is wrong."""
    cause: str
    at: datetime

    def as_data(self) -> dict[str, object]:
        """For /status."""
        return {
            "result": self.result, "lines": list(self.lines), "cause": self.cause, "at": self.at.isoformat()
        }  # fmt: skip


class Reloader:
    """Reloads, one at a time."""

    def __init__(self, supervisor: Supervisor, config: Config, path: Path) -> None:
        """`path` is the configuration's file, from which `config` was read."""
        self.path = path
        self.last: Outcome | None = None
        self._supervisor = supervisor
        self.lock = asyncio.Lock()
        """Held while a reload is under way."""
        self._suspended = ""
        self._asked = asyncio.Event()
        self._cause = ""
        """Of the reload that was asked for last."""
        self._retry_in = RETRY_FIRST
        self._files = watch.files_of(config, path)
        self._seen = watch.fingerprint(self._files)
        """Content of the files as of the last attempt."""

    def request(self, cause: str) -> None:
        """Reload soon; asked several times meanwhile, once."""
        self._cause = cause
        self._asked.set()

    @contextlib.contextmanager
    def suspended(self, why: str) -> Iterator[None]:
        """Meanwhile reloads are refused. Raises ConfigurationError while they are already, or one is under way."""
        if self._suspended:
            raise ConfigurationError(self._suspended)
        if self.lock.locked():
            raise ConfigurationError("a reload is under way; ask again when it is over")
        self._suspended = why
        try:
            yield
        finally:
            self._suspended = ""

    async def follow_requests(self) -> None:
        """Until cancelled: do what `request` asks for."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.reload(self._cause)

    async def follow_files(self) -> None:
        """Until cancelled: reload when a file has other content."""
        async for _ in watch.events(lambda: self._files):
            if not self._supervisor.state.config.watch_files:
                continue
            if await asyncio.to_thread(watch.fingerprint, self._files) != self._seen:
                await self.reload("files")

    async def reload(self, cause: str) -> Outcome:
        """Try it; the outcome is logged, counted and kept."""
        async with self.lock:
            self._supervisor.log.info("reloading", cause=cause)
            systemd.reloading()
            may_mend = False
            try:
                lines = await self._attempt()
            except ConfigurationError as error:
                may_mend = isinstance(error, NotYet)
                outcome = self._outcome("refused", str(error).splitlines(), cause)
            except Exception as error:  # a bug here must not end what runs well
                self._supervisor.log.exception("internal_error")
                outcome = self._outcome("refused", [f"internal error: {error!r}"], cause)
            else:
                outcome = self._outcome("done" if lines else "unchanged", lines, cause)
        supervisor = self._supervisor
        self.last = outcome
        systemd.ready(f"reload: {outcome.result}")
        supervisor.pool.retired.value(m.RELOADS, outcome.result).value += 1
        if outcome.result == "refused":
            supervisor.log.error("reload_refused", cause=cause, errors=list(outcome.lines))
        else:
            supervisor.log.info("reloaded", cause=cause, changes=list(outcome.lines))
        # Whoever gave a command was told, and decides what is next, unless files are followed anyway.
        if may_mend and (cause != "command" or supervisor.state.config.watch_files):
            self._try_again_after(outcome)
        else:
            self._retry_in = RETRY_FIRST
        return outcome

    def _try_again_after(self, outcome: Outcome) -> None:
        """Unless there has been another reload by then."""
        asyncio.get_running_loop().call_later(
            self._retry_in, lambda: self.request("retry") if self.last is outcome else None
        )
        self._retry_in = min(2 * self._retry_in, RETRY_MOST)

    @staticmethod
    def _outcome(
        result: Literal["done", "unchanged", "refused"], lines: Sequence[str], cause: str
    ) -> Outcome:
        return Outcome(result, tuple(lines), cause, datetime.now(UTC))

    async def _attempt(self) -> list[str]:
        """Returns what changed. Raises ConfigurationError; then nothing has."""
        if self._suspended:
            raise NotYet(self._suspended)
        supervisor, old = self._supervisor, self._supervisor.state
        # In a thread: names may have to be resolved, and heartbeats must go on.
        config, listeners, groups = await asyncio.to_thread(self._read, old.config)
        placement = supervisor.local_nodes.place(config.hsm.nodes)
        nodes = plan.plan_nodes(config, placement.addresses)
        lent = old.lent & {listener.place for listener in listeners}
        tickets = await asyncio.to_thread(old.tickets.follow, config.tickets)
        await supervisor.names.refresh(node.address for node in nodes)
        addresses = dict(supervisor.names.addresses)
        new = State(config, listeners, groups, nodes, tickets, addresses, old.generation + 1, lent)
        keep_servers(old.groups, groups)
        lines = describe(old, new)
        if not lines:
            return []
        plan.bind(listeners, config.worker_count, old.held)
        try:
            placement.start()
            await self._try_nodes(placement, new)
            await supervisor.pool.switch(new, lambda: self._swap(new, placement))
        except BaseException:
            if supervisor.state is old:
                plan.unbind(listeners, old.held)
                await placement.abandon()
            raise
        self._retire(old)
        return lines

    def _read(self, old: Config) -> tuple[Config, list[ListenerPlan], list[GroupPlan]]:
        self._seen = watch.fingerprint(self._files)  # before reading: what changes later is noticed
        config = load(self.path)
        if (files := watch.files_of(config, self.path)) != self._files:
            self._files, self._seen = files, watch.fingerprint(files)
        check_fixed(old, config)
        listeners, groups = plan.plan_service(config)
        plan.check_local_nodes(config.hsm.nodes)
        return config, listeners, groups

    async def _try_nodes(self, placement: Placement, new: State) -> None:
        """New local nodes are to be ready, and new keys found, before anything depends on them.

        Raises ConfigurationError; NotYet if waiting may help.
        """
        old, cluster = self._supervisor.state, self._supervisor.cluster
        known = {key.ski for key in old.keys}
        keys = [key for key in new.keys if key.ski not in known]
        demands = [demand for demand in new.demands if demand not in old.demands]
        awaited = {child.name for child in placement.fresh}
        absent: list[str] = []
        if not keys and not awaited:
            faults = _shortfalls(KeyWatch(cluster, [], demands))
        else:  # over links of its own, so that nodes tell anew what they hold
            trial = ClusterClient(members(Links().options(new.nodes, workers=1), new.addresses))
            found = KeyWatch(trial, keys, demands)
            trial.start()
            probing = asyncio.create_task(found.probe())
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TRIAL_TIMEOUT):
                        while not _is_settled(trial, found, awaited):  # noqa: ASYNC110
                            await asyncio.sleep(TRIAL_CHECK)
                absent = [f"node {name}: {_why(trial, name)}" for name in sorted(awaited - _ready(trial))]
                absent += _missing(found, new)
                faults = _shortfalls(found)
            finally:
                probing.cancel()
                await trial.close()
        if faults:
            raise ConfigurationError("\n".join([*absent, *faults]))
        if absent:
            raise NotYet("\n".join(absent))

    def _swap(self, new: State, placement: Placement) -> None:
        """All workers are prepared. Raises ConfigurationError; then nothing has changed."""
        supervisor = self._supervisor
        plan.start_listening(new.listeners)
        for listener in new.listeners:
            steer(listener.sockets, new.config.worker_count)
        supervisor.follow_nodes(new)
        supervisor.local_nodes.adopt(placement)
        supervisor.upstreams.watch(new.groups)
        supervisor.keys.replace(new.keys, new.demands)

    def _retire(self, old: State) -> None:
        """The workers have followed: what only the old state needs can go."""
        supervisor = self._supervisor
        plan.unbind(old.listeners, supervisor.state.held)
        supervisor.pool.resize()
        supervisor.pool.refresh_slots()
        supervisor.tell_certificates()


def _missing(found: KeyWatch, new: State) -> list[str]:
    return [
        f"{chain.path}: no ready node holds its key (SKI {chain.ski.hex()}); put the key into a node, then reload"
        for listener in new.listeners
        for chain in listener.chains
        if chain.ski in found.missing()
    ]


def _shortfalls(found: KeyWatch) -> list[str]:
    return [str(shortfall) for shortfall in found.shortfalls() if shortfall.is_final]


def _is_settled(trial: ClusterClient, found: KeyWatch, awaited: set[str]) -> bool:
    """Whether waiting any longer makes no difference; new nodes may find keys only after a while."""
    if awaited - _ready(trial):
        return False
    all_told = not awaited and all(node.ready and node.keys is not None for node in trial.nodes)
    return all_told or not found.missing()


def _ready(cluster: ClusterClient) -> set[str]:
    return {node.name for node in cluster.nodes if node.ready}


def _why(cluster: ClusterClient, name: str) -> str:
    return next(node.last_error for node in cluster.nodes if node.name == name)
