"""One node process, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import pwd
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from hsm import config, logs, systemd
from hsm import metrics as m
from hsm.config import Emulation, NodeSettings, Pkcs11Node, Pkcs11Settings, SoftwareNode
from hsm.errors import ConfigurationError
from hsm.logs import Logger
from hsm.metrics import MetricStore
from hsm.node import environment
from hsm.node.emulation import EmulatedToken
from hsm.node.server import NodeServer
from hsm.node.software import SoftwareToken, load_keys
from hsm.node.token import Token
from hsm.process import PARENT_STOPS, die_with_parent, forbid_dumps
from hsm.terminal import fail
from hsm.transport import listen_tcp, listen_unix, server_context

SWITCH_INTERVAL = 0.0002
"""Seconds after which a thread that computes must let others in (sys.setswitchinterval; 5 ms by default)."""
FINISH_TIMEOUT = 5.0
"""Seconds for requests under way when the node is asked to stop."""


RESTART_CODE = 75
"""Exit code of a node that wants to be started again (EX_TEMPFAIL, sysexits.h)."""


def main(settings_file: str, log_level: str, parent: str) -> None:
    """A node that another process runs: it ends with `parent`, and its settings are plain data, as JSON."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(int(parent), PARENT_STOPS)
    os.environ.pop("NOTIFY_SOCKET", None)  # the service manager waits for the parent
    try:
        data = json.loads(Path(settings_file).read_bytes())
        settings = config.validate(data, NodeSettings, "hsm node", Path.cwd())
        run_node(settings, logs.configure(f"node {settings.name}", log_level), stops=(PARENT_STOPS,))
    except ConfigurationError as error:
        raise SystemExit(fail(error).exit_code) from error


def run_node(
    settings: NodeSettings, log: Logger, stops: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
) -> None:
    """Serve until one of the signals `stops`. Raises ConfigurationError.

    Ends the process with RESTART_CODE when only a fresh one can go on.
    """
    if isinstance(settings, Pkcs11Settings):
        environment.apply(settings)
        sys.setswitchinterval(SWITCH_INTERVAL)
    forbid_dumps()
    outcome = uvloop.run(_run(settings, log, stops))
    if outcome.module_hangs:
        # Threads are still in the module: its own end-of-process code must not run beside them.
        sys.stderr.flush()
        os._exit(outcome.code)
    if outcome.code:
        raise SystemExit(outcome.code)


@dataclass(slots=True)
class _Outcome:
    """How the process ends."""

    code: int = 0
    module_hangs: bool = False


async def _run(settings: NodeSettings, log: Logger, stops: Sequence[int]) -> _Outcome:
    outcome, stop = _Outcome(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stops:
        loop.add_signal_handler(number, stop.set)

    def restart(reason: str) -> None:
        log.error("node_restarts", node=settings.name, cause=reason)
        outcome.code = RESTART_CODE
        stop.set()

    allowed = _allowed(settings.allow_users)
    async with contextlib.AsyncExitStack() as stack:
        store = MetricStore(m.NODE_SPECS)
        token = await _open_token(settings, store, log, stop, restart, stack, outcome)
        if token is not None:
            server = NodeServer(token, store, log.warning, allowed)
            await _serve(server, settings, log, stop, stack)
    log.info("node_stopped", node=settings.name)
    return outcome


async def _serve(
    server: NodeServer,
    settings: NodeSettings,
    log: Logger,
    stop: asyncio.Event,
    stack: contextlib.AsyncExitStack,
) -> None:
    if settings.admin:
        from hsm.node.admin import serve_admin  # prometheus_client takes a moment to import

        admin = await serve_admin(server, settings.admin)
        stack.callback(admin.close)
        if settings.admin.path:
            stack.callback(Path(settings.admin.path).unlink, missing_ok=True)
    listening = await _listen(server, settings)
    keys = len(server.token.keys())
    log.info("node_ready", node=settings.name, listen=str(settings.listen), keys=keys)
    systemd.ready(f"serves; keys: {keys}")
    await stop.wait()
    systemd.stopping("finishing what is under way")
    listening.close()
    await _finish(server)
    if settings.listen.path:
        Path(settings.listen.path).unlink(missing_ok=True)


async def _open_token(
    settings: NodeSettings,
    store: MetricStore,
    log: Logger,
    stop: asyncio.Event,
    restart: Callable[[str], None],
    stack: contextlib.AsyncExitStack,
    outcome: _Outcome,
) -> Token | None:
    """The token, ready to sign; None if the process was asked to stop meanwhile."""
    if isinstance(settings, SoftwareNode):
        software = EmulatedToken(
            SoftwareToken(load_keys(settings.keys, settings.passphrase_file)), _emulation(settings)
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, _reload_emulation, software, settings, log
        )
        return software
    assert isinstance(settings, Pkcs11Node)
    from hsm.node.pkcs11 import Pkcs11Token  # the module is loaded by `open`, in a process that is up

    token = Pkcs11Token(settings, log, store, restart)

    async def close() -> None:
        outcome.module_hangs = not await token.close()

    stack.push_async_callback(close)
    opening, stopping = asyncio.ensure_future(token.open()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return None
        await opening
        return token
    finally:
        opening.cancel()
        stopping.cancel()


async def _listen(server: NodeServer, settings: NodeSettings) -> asyncio.AbstractServer:
    loop = asyncio.get_running_loop()
    if settings.listen.path:
        sock = listen_unix(settings.listen.path, 0o660, _group(settings.socket_group))
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


def _group(name: str | None) -> int | None:
    """A group's number. Raises ConfigurationError if it is not there."""
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigurationError(f"socket_group: there is no group {name!r} on this machine") from error


def _emulation(settings: SoftwareNode) -> Emulation:
    if settings.emulate_file is None:
        return settings.emulate
    return config.load(settings.emulate_file, Emulation)


def _reload_emulation(token: EmulatedToken, settings: SoftwareNode, log: Logger) -> None:
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
