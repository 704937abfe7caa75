"""One node process, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from pathlib import Path
from typing import Any

import structlog
import uvloop

from hsm import config
from hsm import metrics as m
from hsm.config import Emulation, NodeSettings
from hsm.errors import ConfigurationError
from hsm.metrics import MetricStore
from hsm.node.emulation import EmulatedToken
from hsm.node.server import NodeServer
from hsm.node.software import SoftwareToken, load_keys
from hsm.process import forbid_dumps
from hsm.transport import listen_tcp, listen_unix, server_context

FINISH_TIMEOUT = 2.0
"""Seconds for requests under way when the node is asked to stop."""


def run_node(settings: NodeSettings, log: structlog.typing.FilteringBoundLogger) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError."""
    forbid_dumps()
    uvloop.run(_run(settings, log))


async def _run(settings: NodeSettings, log: structlog.typing.FilteringBoundLogger) -> None:
    token = EmulatedToken(
        SoftwareToken(load_keys(settings.keys, settings.passphrase_file)), _emulation(settings)
    )
    server = NodeServer(token, MetricStore(m.NODE_SPECS), log.warning, _allowed(settings.allow_users))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _reload_emulation, token, settings, log)
    async with contextlib.AsyncExitStack() as stack:
        if settings.admin:
            from hsm.node.admin import serve_admin  # aiohttp takes a third of a second to import

            runner = await serve_admin(server, settings.admin)
            stack.push_async_callback(runner.cleanup)
            if settings.admin.path:
                stack.callback(Path(settings.admin.path).unlink, missing_ok=True)
        listening = await _listen(server, settings)
        log.info("node_ready", node=settings.name, listen=str(settings.listen), keys=len(token.keys()))
        await stop.wait()
        listening.close()
        await _finish(server)
    if settings.listen.path:
        Path(settings.listen.path).unlink(missing_ok=True)
    log.info("node_stopped", node=settings.name)


async def _listen(server: NodeServer, settings: NodeSettings) -> asyncio.AbstractServer:
    loop = asyncio.get_running_loop()
    if settings.listen.path:
        sock = listen_unix(settings.listen.path, 0o660)
        return await loop.create_unix_server(server.connection, sock=sock)
    assert settings.tls is not None
    context = server_context(settings.tls)
    sock = listen_tcp(settings.listen, "listen")
    return await loop.create_server(server.connection, sock=sock, ssl=context)


async def _finish(server: NodeServer) -> None:
    """Let requests under way be answered, for a while, then close."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_TIMEOUT):
            while any(client.pending for client in server.clients):  # noqa: ASYNC110  # once, at the end
                await asyncio.sleep(0.01)
    for client in list(server.clients):
        client.close()


def _emulation(settings: NodeSettings) -> Emulation:
    if settings.emulate_file is None:
        return settings.emulate
    return config.load(settings.emulate_file, Emulation)


def _reload_emulation(
    token: EmulatedToken, settings: NodeSettings, log: structlog.typing.FilteringBoundLogger
) -> None:
    try:
        token.emulation = _emulation(settings)
    except ConfigurationError as error:
        log.error("emulation_unchanged", error=str(error))
        return
    log.info("emulation_changed", **_fields(token.emulation))


def _fields(emulation: Emulation) -> dict[str, Any]:
    return emulation.model_dump(exclude_defaults=True)


def _allowed(users: list[str]) -> Any:
    """The users that may connect: root, the node's own, and those named."""
    uids = {0, os.geteuid()}
    for name in users:
        try:
            uids.add(int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid)
        except KeyError as error:
            raise ConfigurationError(f"allow_users: there is no user {name!r} on this machine") from error
    return uids.__contains__
