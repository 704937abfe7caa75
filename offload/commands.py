"""Commands to a running proxy over its control socket: status, reload, upgrade, drain, node, log-level.

The socket is for the user who runs the proxy (mode 0600). Each answer has `said`: what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsm.errors import ConfigurationError
from offload.control import Channel, answer_questions
from offload.errors import WorkerLost

if TYPE_CHECKING:
    from offload.supervisor import Supervisor

ANSWER_TIMEOUT = 10.0
RELOAD_TIMEOUT = 120.0
UPGRADE_SLACK = 30.0
"""Seconds that an upgrade's answer may take beyond its time limit: the new process is ended first."""


@contextlib.asynccontextmanager
async def serve_commands(supervisor: Supervisor, sock: socket.socket) -> AsyncIterator[None]:
    """Answer commands on this listening socket while the context lasts."""

    async def answer(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await _answer(supervisor, operation, arguments)

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # at the end; asyncio would log it as an error
            await answer_questions(reader, writer, answer)

    server = await asyncio.start_unix_server(on_client, sock=sock)
    try:
        yield
    finally:
        server.close()


async def _answer(supervisor: Supervisor, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    match operation:
        case "status":
            from offload.admin import refreshed_status

            return {"status": await refreshed_status(supervisor)}
        case "drain":
            supervisor.request_drain()
            return {"said": "draining: no new connections, open ones may finish, then the proxy ends"}
        case "reload":
            outcome = await supervisor.reloader.reload("command")
            key = "error" if outcome.result == "refused" else "said"
            return {key: "\n".join(outcome.lines) or "nothing has changed"}
        case "upgrade":
            return await _upgrade(supervisor, arguments["program"], float(arguments["timeout"]))
        case "node":
            return await _set_node(supervisor, str(arguments["name"]), bool(arguments["enabled"]))
        case "log_level":
            return await _set_log_level(supervisor, str(arguments["level"]))
    return {"error": f"unknown command {operation!r}"}


async def _upgrade(supervisor: Supervisor, program: str | None, timeout: float) -> dict[str, Any]:
    try:
        return {"said": await supervisor.upgrade.run(program, timeout)}
    except ConfigurationError as error:
        return {"error": str(error)}


async def _set_node(supervisor: Supervisor, name: str, enabled: bool) -> dict[str, Any]:
    names = [node.name for node in supervisor.cluster.nodes]
    if name not in names:
        return {"error": f"there is no node {name!r}; there are {', '.join(names)}"}
    if enabled:
        supervisor.pool.disabled_nodes.discard(name)
    else:
        supervisor.pool.disabled_nodes.add(name)
    supervisor.cluster.set_enabled(name, enabled)
    await _tell_workers(supervisor, "node", name=name, enabled=enabled)
    supervisor.log.warning("node_enabled" if enabled else "node_disabled", node=name)
    rest = [n for n in names if n not in supervisor.pool.disabled_nodes]
    if not enabled and not rest:
        return {"said": f"node {name} gets no more requests; NO node is left: full handshakes will fail"}
    what = "gets requests again" if enabled else "gets no more requests; what it works on is finished"
    return {"said": f"node {name} {what}"}


async def _set_log_level(supervisor: Supervisor, level: str) -> dict[str, Any]:
    from hsm import logs

    if level not in logs.LEVELS:
        return {"error": f"there is no log level {level!r}; there are {', '.join(logs.LEVELS)}"}
    supervisor.pool.log_level = level
    logs.set_level(level)
    await _tell_workers(supervisor, "log_level", level=level)
    return {"said": f"supervisor and workers log from {level} on"}


async def _tell_workers(supervisor: Supervisor, operation: str, **arguments: Any) -> None:
    """Workers that start later, or again, learn it with their settings."""

    async def tell(worker: Any) -> None:
        with contextlib.suppress(WorkerLost):
            await worker.ask(operation, supervisor.state.config.limits.heartbeat_timeout, **arguments)

    await asyncio.gather(*(tell(worker) for worker in supervisor.pool.workers if worker.accepting))


async def command(
    path: Path, operation: str, within: float = ANSWER_TIMEOUT, **arguments: Any
) -> dict[str, Any]:
    """Send a command to the proxy at this control socket; its answer.

    Raises ConfigurationError if none runs there, or it says no.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise ConfigurationError(
            f"no proxy with this configuration runs (nobody listens on {path}); start it with `offload serve`; "
            "if it runs as another user or service, set runtime_directory in the configuration"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}; run this as the user who runs the proxy"
        ) from error
    channel = Channel(reader, writer)
    try:
        answer = await channel.ask(operation, within, arguments)
    except WorkerLost as error:
        raise ConfigurationError(f"the proxy at {path} did not answer: {error}") from error
    finally:
        await channel.close()
    if "error" in answer:
        raise ConfigurationError(answer["error"])
    return answer
