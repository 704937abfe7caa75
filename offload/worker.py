"""One data-plane process: puts listeners, cluster client and metrics together.

Started by the supervisor with two descriptors, of its control channel and of the one that sockets come
through; everything else it needs comes over these two. When that closes, the supervisor is gone: drain and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from time import monotonic, time
from typing import Any

import uvloop

from hsm import logs
from hsm.client import ClusterClient, NodeOptions
from hsm.client.membership import members
from hsm.logs import Logger
from hsm.metrics import MetricStore
from hsm.process import ProcessUsage, forbid_dumps
from offload import descriptors, sandbox
from offload import metrics as m
from offload.address_limits import AddressLimits
from offload.config import LogSettings
from offload.connection_log import ConnectionLog
from offload.control import answer_questions
from offload.errors import ConfigurationError
from offload.listener import DataPlane, Gate
from offload.listeners import ListenerSet, Prepared
from offload.settings import Links, UpstreamData, WorkerSettings
from offload.tls import TLSError

TICK = 0.25
"""How often deadlines of connections are looked at, in seconds."""


class Worker:
    """Answers the supervisor's questions; owns the listeners of this process."""

    def __init__(self, sockets: socket.socket, log: Logger) -> None:
        """`sockets` is where listening sockets come from (`offload.descriptors`)."""
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._store = MetricStore(m.WORKER_SPECS)
        self._listeners = ListenerSet()
        self._descriptors = sockets
        self._prepared: tuple[Prepared, list[NodeOptions]] | None = None
        self._links = Links()
        self._nodes: list[NodeOptions] = []
        """As configured: what they stand for follows from the addresses of their names."""
        self._log_settings: LogSettings | None = None
        self._cluster: ClusterClient | None = None
        self._plane: DataPlane | None = None
        self._drain_until: float | None = None
        self._drain_timeout = 0.0
        self._usage = ProcessUsage()
        self._last_usage = self._usage.read()
        self._has_heir = False
        """Another process has the listening sockets too."""
        self._confined_by: list[str] | None = None
        """What is in force, in words; None before anything is."""
        self.ended = asyncio.Event()

    async def answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One question of the supervisor."""
        try:
            return self._answer(operation, arguments)
        except (TLSError, ConfigurationError, OSError) as error:
            return {"error": str(error)}

    def _answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "prepare":
                self._prepare(WorkerSettings.model_validate(arguments["settings"]))
            case "commit":
                self._commit()
            case "abort":
                self._abort()
            case "snapshot":
                return self._snapshot()
            case "drain":
                self.drain(timeout=arguments["timeout"], keep=arguments["keep"])
            case _:
                return self._change(operation, arguments)
        return {}

    def _change(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Something that changes apart from the configuration."""
        match operation:
            case "adopt":
                self._listeners.serve_slot(arguments["slot"])
            case "release":
                self._listeners.leave_slot(arguments["slot"])
            case "node":
                assert self._cluster is not None
                self._cluster.set_enabled(arguments["name"], arguments["enabled"])
            case "addresses":
                assert self._cluster is not None
                self._cluster.set_nodes(members(self._nodes, arguments["addresses"]))
            case "upstream":
                self._listeners.update_upstream(UpstreamData.model_validate(arguments["upstream"]))
            case "heir":
                self._has_heir = arguments["exists"]
            case "tickets":
                self._listeners.renew_tickets(arguments["keys"])
            case "log_level":
                logs.set_level(arguments["level"])
            case _:
                return {"error": f"unknown operation {operation!r}"}
        return {}

    def _prepare(self, settings: WorkerSettings) -> None:
        """Make all that can fail; the sockets have been sent before. What was prepared before is void."""
        if self._confined_by is None:
            self._confined_by = sandbox.confine(settings.account, settings.sandbox)
        sockets = descriptors.receive(self._descriptors, sum(each.count for each in settings.sockets))
        self._abort()
        prepared = self._listeners.prepare(settings, sockets)
        try:
            self._prepared = prepared, self._links.options(settings.nodes, settings.workers)
        except BaseException:
            prepared.discard()
            raise

    def _abort(self) -> None:
        if self._prepared is not None:
            self._prepared[0].discard()
            self._prepared = None

    def _commit(self) -> None:
        if self._prepared is None:
            raise ConfigurationError("nothing was prepared")
        (prepared, nodes), self._prepared = self._prepared, None
        settings = prepared.settings
        self._nodes = nodes
        if self._plane is None:
            self._start(settings)
        assert self._cluster is not None
        assert self._plane is not None
        self._cluster.set_options(settings.cluster.options())
        self._cluster.set_nodes(members(nodes, settings.addresses))
        for key in prepared.keys:
            self._cluster.add_key(key)
        for node in settings.nodes:
            self._cluster.set_enabled(node.name, node.name not in settings.disabled_nodes)
        self._drain_timeout = settings.limits.drain_timeout
        if settings.log != self._log_settings:
            self._log_settings = settings.log
            logs.set_form(settings.log.format)
            self._plane.connection_log = _connection_log(settings)
        self._listeners.commit(prepared, self._plane)

    def _start(self, settings: WorkerSettings) -> None:
        """The first commit: begin to work."""
        logs.set_level(settings.log_level)
        self._log = self._log.bind(process=f"worker-{settings.slot}")
        self._cluster = ClusterClient(
            (), settings.cluster.options(), store=self._store, log=self._log_cluster
        )
        self._cluster.start()
        self._plane = DataPlane(
            self._loop,
            self._cluster,
            self._store,
            settings.limits,
            Gate(settings.connections_most),
            AddressLimits(settings.limits, settings.workers),
            self._log.warning,
            None,
        )
        self._listeners.slots.add(settings.slot)
        self._loop.call_later(TICK, self._tick)
        # Nothing made so far will go: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def _log_cluster(self, event: str, **fields: Any) -> None:
        """Nodes that come and go are the supervisor's to tell, once and not by each worker."""
        if event not in ("node_ready", "node_lost"):
            self._log.warning(event, **fields)

    def _snapshot(self) -> dict[str, Any]:
        assert self._cluster is not None
        self._cluster.update_gauges()
        self._store.value(m.LOG_LINES_LOST).value = logs.lost()
        return {
            "metrics": self._store.snapshot(),
            "nodes": self._cluster.status(),
            "slots": sorted(self._listeners.slots),
            "connections": self._listeners.connections,
            "upstreams": self._listeners.upstreams,
            "draining": self._drain_until is not None,
            "usage": self._current_usage(),
            "confined_by": self._confined_by,
        }

    def _current_usage(self) -> tuple[float, int, int]:
        """CPU, memory and files; those of the last time while no descriptor is free to look."""
        with contextlib.suppress(OSError):
            self._last_usage = self._usage.read()
        return self._last_usage

    def drain(self, *, timeout: float | None = None, keep: list[str] | None = None) -> None:
        """Stop accepting, let connections end, and end when they have or time is up.

        Sockets of addresses to `keep` (None: all) stay open, for somebody else takes over.
        """
        if self._drain_until is not None:
            return
        self._drain_until = monotonic() + (self._drain_timeout if timeout is None else timeout)
        self._listeners.drain(keep)
        self._end_if_drained()

    def orphaned(self) -> None:
        """The supervisor is gone: drain, and turn clients away, unless somebody else serves them."""
        self.drain(keep=None if self._has_heir else [])

    def _tick(self) -> None:
        now = monotonic()
        more = self._listeners.expire(now)
        for listener in self._listeners:
            expired = listener.context.drop_expired_staples(time()) if listener.context is not None else ()
            for ski in expired:
                self._log.warning("ocsp_response_expired", listener=listener.name, ski=ski.hex())
        assert self._plane is not None
        self._plane.lingering.expire(now)
        if self._drain_until is not None:
            self._end_if_drained()
        self._loop.call_later(0 if more else TICK, self._tick)

    def _end_if_drained(self) -> None:
        assert self._drain_until is not None
        busy = any(listener.connections for listener in self._listeners)
        lingering = self._plane is not None and len(self._plane.lingering) > 0
        if monotonic() >= self._drain_until:
            self._listeners.abort_all("drain_timeout")
        elif busy or lingering:
            return
        self.ended.set()

    async def close(self) -> None:
        """Free what this process holds."""
        self._abort()
        self._listeners.close()
        if self._plane is not None:
            self._plane.lingering.close()
            self._plane.poller.shut_down()
        if self._cluster is not None:
            await self._cluster.close()


def _connection_log(settings: WorkerSettings) -> ConnectionLog | None:
    if settings.log.connections == "none":
        return None
    return ConnectionLog(settings.log, logs.every_line(f"worker-{settings.slot}"))


async def _run(control: socket.socket, sockets: socket.socket, log: Logger) -> None:
    worker = Worker(sockets, log)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.drain)
    # A terminal's Ctrl-C reaches every process of the group; the supervisor decides.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    questions = loop.create_task(answer_questions(reader, writer, worker.answer))
    questions.add_done_callback(lambda _task: worker.orphaned())
    await worker.ended.wait()
    questions.cancel()
    await worker.close()


def main(control: str, sockets: str) -> None:
    """The process's entry point; the arguments are the two descriptors."""
    forbid_dumps()
    log = logs.configure("worker")
    uvloop.run(_run(socket.socket(fileno=int(control)), socket.socket(fileno=int(sockets)), log))
