"""A token behind a vendor's PKCS#11 module: `hsm.node.token.Token` on a keeper and a pool of sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from hsm import keyless
from hsm import metrics as m
from hsm.config import Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.inventory import KeyDetails
from hsm.logs import Logger
from hsm.metrics import MetricStore
from hsm.node import growth
from hsm.node.keeper import Keeper, KeyTable, Target
from hsm.node.keys import TokenKey
from hsm.node.ladder import Health, KeyRefusedError, TokenSigner
from hsm.node.mechanisms import RECIPES
from hsm.node.pin import Pin, read_pin, state_directory
from hsm.node.pkcs11_settings import mapped_keys, module_path, uri_of
from hsm.node.sessions import Job, PoolOptions, SessionPool
from hsm.node.token import OnResult, Result, TokenError
from hsm.signing import SCHEME_BY_OPCODE, SignatureScheme

CALL_MOST = 10.0
"""Seconds for a request that does not say how long its sender waits."""
RESCAN_INTERVAL = 1.0
"""Seconds between two looks for a key that is asked for and not known."""
CLOSE_TIMEOUT = 1.0


class Pkcs11Token:
    """Signs in a PKCS#11 token. Made on the running loop; `open` before use, `close` after."""

    kind = "pkcs11"

    def __init__(
        self,
        settings: Pkcs11Settings,
        log: Logger,
        store: MetricStore,
        on_fatal: Callable[[str], None],
    ) -> None:
        """`on_fatal(reason)` is called on the loop when only a fresh process helps.

        Raises ConfigurationError for settings that can't work.
        """
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._fatal_callback = on_fatal
        self._settings = settings
        self._store = store
        self._module_seconds = {
            opcode: store.histogram(m.NODE_MODULE_SECONDS, SCHEME_BY_OPCODE[opcode].name)
            for opcode in RECIPES
        }
        self._is_ending = False
        self._keys: dict[bytes, TokenKey] = {}
        self._refused: set[tuple[bytes, int]] = set()
        self._last_rescan = 0.0
        self._health = Health()
        self._pool: SessionPool | None = None
        self._keeper = Keeper(
            target_of(settings, log), self._report, partial(self._on_loop, self._set_keys), self._fatal
        )

    async def open(self) -> None:
        """Load the module, log in, find the keys, open sessions. Raises ConfigurationError."""
        self._keeper.start()
        token = await asyncio.wrap_future(self._keeper.opened)
        self._set_keys(self._keeper.table)
        if not self._keys:
            self._log.warning("no_keys", token=token.label, remedy="make or import a key; it is found then")
        settings = self._settings
        configured = None if settings.sessions == "auto" else settings.sessions
        options = PoolOptions(
            limit=growth.session_limit(configured, token.max_rw_sessions),
            stuck_after=settings.stuck_after,
            stuck_sessions=settings.stuck_sessions,
            keepalive=settings.keepalive,
            idle_timeout=settings.idle_timeout,
            cores=len(os.sched_getaffinity(0)),
        )
        self._pool = SessionPool(
            lambda: TokenSigner(self._keeper, self._health, self._report, self._fatal),
            options,
            lambda lost: self._fatal(f"{lost} calls of the module do not return"),
            self._on_signed,
        )
        self._pool.start()

    async def close(self) -> bool:
        """End all threads and the module's use; False if the module does not let go."""
        self._is_ending = True
        ended = self._pool is None or await self._pool.close(CLOSE_TIMEOUT)
        self._keeper.stop(finalize=ended)
        await self._loop.run_in_executor(None, self._keeper.join, CLOSE_TIMEOUT)
        return ended and not self._keeper.is_alive()

    def keys(self) -> list[tuple[bytes, frozenset[int]]]:
        """SKI and opcodes of each key."""
        return [(ski, key.opcodes - self._refusals(ski)) for ski, key in self._keys.items()]

    def details(self) -> list[KeyDetails]:
        """The same keys, and what else the token says of them."""
        return [key.details() for key in self._keys.values()]

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],
        on_result: OnResult,
    ) -> None:
        """Queue it for a session; `on_result` is called later, on the loop."""
        key = self._keys.get(ski)
        if self._is_ending or self._pool is None:
            on_result(TokenError(keyless.ERR_INTERNAL, "the node is about to end"))
            return
        if key is None:
            self._look_for(ski, scheme, digest, expires, on_result)
            return
        opcode = scheme.opcode
        if opcode not in key.opcodes or (self._refused and (ski, opcode) in self._refused):
            on_result(TokenError(keyless.ERR_CRYPTO, f"key {key.label!r} cannot do {scheme.name}"))
            return
        recipe = RECIPES[opcode]
        data = recipe.data(digest, key.digest_most)
        deadline = expires()
        if deadline is None:
            deadline = monotonic() + CALL_MOST
        self._pool.submit(Job(key, opcode, recipe, data, deadline, on_result))

    def _look_for(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],
        on_result: OnResult,
    ) -> None:
        """It may be new on the token: look, at most once a RESCAN_INTERVAL."""
        unknown = TokenError(keyless.ERR_KEY_NOT_FOUND, f"no key {ski.hex()}")
        now = monotonic()
        if now - self._last_rescan < RESCAN_INTERVAL:
            on_result(unknown)
            return
        self._last_rescan = now

        def looked(_done: object) -> None:
            self._set_keys(self._keeper.table)
            if ski in self._keys:
                self.sign(ski, scheme, digest, expires, on_result)
            else:
                on_result(unknown)

        asyncio.wrap_future(self._keeper.rescan()).add_done_callback(looked)

    def _refusals(self, ski: bytes) -> set[int]:
        return {opcode for refused, opcode in self._refused if refused == ski}

    def update_gauges(self) -> None:
        """Bring the gauges up to date, before they are exported."""
        if self._pool is not None:
            for state, count in self._pool.states().items():
                self._store.value(m.NODE_SESSIONS, state).value = count

    def _on_signed(self, job: Job, result: Result) -> None:
        if job.seconds:
            self._module_seconds[job.opcode].observe(job.seconds)
        if isinstance(result, KeyRefusedError) and result.is_for_good:
            self._refused.add((job.key.ski, job.opcode))

    def _set_keys(self, table: KeyTable) -> None:
        if table is self._keeper.table:  # else a newer one is on its way
            self._keys = dict(table.found.keys)

    def _count_error(self, name: str) -> None:
        self._store.value(m.NODE_TOKEN_ERRORS, name).value += 1

    # From any thread

    def _on_loop(self, callback: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _report(self, event: str, **fields: Any) -> None:
        if event == "signature_failed":
            self._on_loop(self._count_error, fields["reason"])
        level = self._log.info if event in ("token_open", "logged_in_again") else self._log.warning
        self._on_loop(partial(level, event, **fields))

    def _fatal(self, reason: str) -> None:
        self._on_loop(self._end, reason)

    def _end(self, reason: str) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._fatal_callback(reason)


def target_of(settings: Pkcs11Settings, log: Logger) -> Target:
    """Which token the settings mean, and its PIN's source. Raises ConfigurationError."""
    uri = uri_of(settings)
    source = settings.pin_source or uri.pin_source
    if settings.pin_source and (uri.pin_source or uri.pin_value):
        raise ConfigurationError("pin_source and the URI both name a PIN; keep one")
    if uri.pin_value is not None:
        log.warning("pin_in_uri", remedy="use pin-source=file:/path, so that the PIN is in no configuration")
    return Target(
        uri=uri,
        module_path=module_path(uri),
        pin=_pin_reader(source, uri.pin_value),
        mapped=mapped_keys(settings.keys),
        keepalive=settings.keepalive,
        state_directory=state_directory(),
    )


def _pin_reader(source: str | None, value: str | None) -> Callable[[], Pin | None]:
    if value is not None:
        pin = Pin(value.encode(), "the URI")
        return lambda: pin
    if source is None:
        return lambda: None
    if source.startswith(("file:", "/")):
        return lambda: read_pin(source)  # a changed file counts at the next login
    once = read_pin(source)  # a pipe can be read once
    return lambda: once
