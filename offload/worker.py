"""One data-plane process: puts listeners, cluster client and metrics together.

Started by the supervisor as `python -m offload.worker CONTROL_FD`; everything else it needs
comes over the control channel. When that closes, the supervisor is gone: drain and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from time import monotonic, time
from typing import Any, cast

import structlog
import uvloop

from hsm import logs
from hsm.client import ClusterClient, ClusterOptions, NodeOptions, VerifyMode
from hsm.metrics import MetricStore
from hsm.process import forbid_dumps, process_usage
from hsm.transport import client_context
from offload import metrics as m
from offload.address_limits import AddressLimits
from offload.certificates import key_of
from offload.connection_log import ConnectionLog
from offload.contexts import make_context, ticket_keys
from offload.control import answer_questions
from offload.errors import ConfigurationError
from offload.listener import DataPlane, Gate, Listener
from offload.networks import Networks
from offload.settings import ListenerData, NodeData, UpstreamData, WorkerSettings
from offload.settings_tls import TicketKeyData
from offload.tls import TLSError
from offload.upstream import Upstream

TICK = 0.25
"""How often deadlines of connections are looked at, in seconds."""


class Worker:
    """Answers the supervisor's questions; owns the listeners of this process."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._store = MetricStore(m.WORKER_SPECS)
        self._listeners: list[Listener] = []
        self._sockets: dict[str, dict[int, socket.socket]] = {}
        self._cluster: ClusterClient | None = None
        self._plane: DataPlane | None = None
        self._drain_until: float | None = None
        self._drain_timeout = 0.0
        self._last_usage = process_usage()
        self.ended = asyncio.Event()

    async def answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One question of the supervisor."""
        try:
            return self._answer(operation, arguments)
        except (TLSError, ConfigurationError) as error:
            return {"error": str(error)}

    def _answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "configure":
                self._configure(WorkerSettings.model_validate(arguments["settings"]))
                return {}
            case "adopt":
                self._adopt(arguments["slot"])
                return {}
            case "release":
                self._release(arguments["slot"])
                return {}
            case "node":
                assert self._cluster is not None
                self._cluster.set_enabled(arguments["name"], arguments["enabled"])
                return {}
            case "upstream":
                self._update_upstream(
                    arguments["listener"], UpstreamData.model_validate(arguments["upstream"])
                )
                return {}
            case "tickets":
                self._renew_tickets(arguments["keys"])
                return {}
            case "log_level":
                logs.set_level(arguments["level"])
                return {}
            case "snapshot":
                return self._snapshot()
            case "drain":
                self.drain(timeout=arguments["timeout"])
                return {}
        return {"error": f"unknown operation {operation!r}"}

    def _configure(self, settings: WorkerSettings) -> None:
        logs.set_level(settings.log_level)
        logs.set_form(settings.log.format)
        self._log = self._log.bind(process=f"worker-{settings.slot}")
        nodes = [_node_options(node) for node in settings.nodes]
        self._cluster = cluster = ClusterClient(
            nodes,
            ClusterOptions(verify=cast("VerifyMode", settings.verify_signatures)),
            store=self._store,
            log=self._log_cluster,
        )
        self._plane = plane = DataPlane(
            self._loop,
            cluster,
            self._store,
            settings.limits,
            Gate(settings.connections_most),
            AddressLimits(settings.limits, settings.workers),
            self._log.warning,
            _connection_log(settings),
        )
        self._drain_timeout = settings.limits.drain_timeout
        for data in settings.listeners:
            for chain in data.tls.chains:
                cluster.add_key(key_of(chain.pem.encode()))
            self._listeners.append(_listener(data, settings.sign_timeout, plane))
            self._sockets[data.name] = {
                slot: socket.socket(fileno=fd) for slot, fd in enumerate(data.sockets)
            }
        for name in settings.disabled_nodes:
            cluster.set_enabled(name, False)
        cluster.start()
        self._adopt(settings.slot)
        self._loop.call_later(TICK, self._tick)
        # Nothing made so far will go: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def _log_cluster(self, event: str, **fields: Any) -> None:
        """Nodes that come and go are the supervisor's to tell, once and not by each worker."""
        if event not in ("node_ready", "node_lost"):
            self._log.warning(event, **fields)

    def _adopt(self, slot: int) -> None:
        for listener in self._listeners:
            listener.serve_slot(slot, self._sockets[listener.name][slot])

    def _release(self, slot: int) -> None:
        for listener in self._listeners:
            listener.leave_slot(slot)

    def _update_upstream(self, name: str, data: UpstreamData) -> None:
        for listener in self._listeners:
            if listener.name == name:
                listener.upstream.update(data, monotonic())

    def _renew_tickets(self, keys: dict[str, list[dict[str, Any]]]) -> None:
        for listener in self._listeners:
            if listener.name in keys:
                renewed = [TicketKeyData.model_validate(key) for key in keys[listener.name]]
                listener.context.set_ticket_keys(ticket_keys(renewed))

    def _snapshot(self) -> dict[str, Any]:
        assert self._cluster is not None
        self._cluster.update_gauges()
        self._store.value(m.LOG_LINES_LOST).value = logs.lost()
        return {
            "metrics": self._store.snapshot(),
            "nodes": self._cluster.status(),
            "slots": self._listeners[0].slots if self._listeners else [],
            "connections": {listener.name: len(listener.connections) for listener in self._listeners},
            "upstreams": {listener.name: listener.upstream.status() for listener in self._listeners},
            "draining": self._drain_until is not None,
            "usage": self._usage(),
        }

    def _usage(self) -> tuple[float, int, int]:
        """CPU, memory and files; those of the last time while no descriptor is free to look."""
        with contextlib.suppress(OSError):
            self._last_usage = process_usage()
        return self._last_usage

    def drain(self, *, timeout: float | None = None, for_good: bool = True) -> None:
        """Stop accepting, let connections end, and end when they have or time is up.

        `for_good` closes the listening sockets for all; otherwise somebody else takes over.
        """
        if self._drain_until is not None:
            return
        self._drain_until = monotonic() + (self._drain_timeout if timeout is None else timeout)
        for listener in self._listeners:
            for slot in listener.slots:
                if for_good:
                    listener.drain_slot(slot)
                else:
                    listener.leave_slot(slot)
        self._end_if_drained()

    def _tick(self) -> None:
        now = monotonic()
        for listener in self._listeners:
            listener.expire(now)
            for ski in listener.context.drop_expired_staples(time()):
                self._log.warning("ocsp_response_expired", listener=listener.name, ski=ski.hex())
        if self._plane is not None:
            self._plane.lingering.expire(now)
        if self._drain_until is not None:
            self._end_if_drained()
        self._loop.call_later(TICK, self._tick)

    def _end_if_drained(self) -> None:
        assert self._drain_until is not None
        busy = any(listener.connections for listener in self._listeners)
        lingering = self._plane is not None and len(self._plane.lingering) > 0
        if monotonic() >= self._drain_until:
            for listener in self._listeners:
                listener.abort_all("drain_timeout")
        elif busy or lingering:
            return
        self.ended.set()

    async def close(self) -> None:
        """Free what this process holds."""
        for listener in self._listeners:
            listener.abort_all("closed")
            listener.context.release()
        if self._plane is not None:
            self._plane.lingering.close()
            self._plane.poller.shut_down()
        if self._cluster is not None:
            await self._cluster.close()


def _node_options(node: NodeData) -> NodeOptions:
    context = client_context(node.tls) if node.tls is not None else None
    server_name = node.tls.server_name if node.tls is not None else None
    return NodeOptions(node.name, node.address, context, server_name)


def _connection_log(settings: WorkerSettings) -> ConnectionLog | None:
    if settings.log.connections == "none":
        return None
    return ConnectionLog(settings.log, logs.every_line(f"worker-{settings.slot}"))


def _listener(data: ListenerData, sign_timeout: float, plane: DataPlane) -> Listener:
    upstream = Upstream(data.upstream, plane.store, monotonic())
    trusted = None if data.trusted is None else Networks(data.trusted)
    return Listener(data.name, make_context(data.tls), upstream, sign_timeout, plane, trusted)


async def _run(control: socket.socket, log: structlog.typing.FilteringBoundLogger) -> None:
    worker = Worker(log)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: worker.drain(for_good=False))
    # A terminal's Ctrl-C reaches every process of the group; the supervisor decides.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    questions = loop.create_task(answer_questions(reader, writer, worker.answer))
    questions.add_done_callback(lambda _task: worker.drain())
    await worker.ended.wait()
    questions.cancel()
    await worker.close()


def main() -> None:
    """The process's entry point."""
    forbid_dumps()
    log = logs.configure("worker")
    uvloop.run(_run(socket.socket(fileno=int(sys.argv[1])), log))


if __name__ == "__main__":
    main()
