"""A node as its client sees it: kept connected, kept alive, and asked which keys it holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from hsm import errors, keyless
from hsm.client.link import MAX_PENDING, Answer, Link
from hsm.config import Address
from hsm.errors import HSMError
from hsm.transport import keep_alive

RECONNECT_FIRST, RECONNECT_MOST = 0.05, 5.0
"""Seconds between attempts to connect: doubled from the first to the most, with jitter."""

CONNECT_TIMEOUT = 5.0
PING_INTERVAL = 10.0
"""gokeyless closes connections that are idle for 30 s."""
SILENCE_WHILE_BUSY = 2.0
"""A node that owes answers and says nothing for this long is asked by a ping …"""
PING_TIMEOUT = 3.0
"""… and dropped when it does not answer that within this time."""
KEYS_INTERVAL = 30.0
"""How often the list of keys is asked for again."""
CHECK_INTERVAL = 0.5
MAX_KEYS = 100_000
"""A node that claims more is not believed."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Where a node is, and the TLS context for it if it is not a unix socket."""

    name: str
    address: Address
    tls: ssl.SSLContext | None = None
    server_name: str | None = None


class NodeClient:
    """Keeps one link to a node open; knows what the node holds and how it fares."""

    def __init__(self, options: NodeOptions, on_change: Callable[[], None]) -> None:
        self.name = options.name
        self.enabled = True
        self.keys: dict[bytes, frozenset[int]] | None = None
        """SKI to opcodes; None while unknown, or when the node can't list its keys."""
        self.last_error = "not connected yet"
        self._options = options
        self._on_change = on_change
        self._link: Link | None = None
        self._ready = False
        self._lacks: dict[bytes, float] = {}
        self._lost = asyncio.Event()
        self._list_again = asyncio.Event()

    def __repr__(self) -> str:
        state = "ready" if self.ready else f"not ready: {self.last_error}"
        return f"<NodeClient {self.name} {state}, {self.outstanding} outstanding>"

    @property
    def ready(self) -> bool:
        """Connected, and it said what it holds (or that it can't say)."""
        return self._ready and self.enabled

    @property
    def outstanding(self) -> int:
        """Requests sent and not answered."""
        return self._link.outstanding if self._link is not None else 0

    def takes(self, ski: bytes, opcode: int) -> bool:
        """Whether a request for this key can be sent now, as far as is known."""
        if not self._ready or not self.enabled or self._link is None or self._link.outstanding >= MAX_PENDING:
            return False
        if self.keys is None:
            return ski not in self._lacks
        return opcode in self.keys.get(ski, ())

    def may_take(self, ski: bytes, opcode: int) -> bool:
        """Whether such a request may be sent later: not connected now, or just too busy."""
        if not self._ready or not self.enabled:
            return self.enabled
        return ski not in self._lacks if self.keys is None else opcode in self.keys.get(ski, ())

    @property
    def link(self) -> Link:
        """The open link, for a request that `takes` allowed."""
        assert self._link is not None
        return self._link

    def lacks(self, ski: bytes) -> None:
        """It answered that it has no such key: ask it again what it has."""
        if self.keys is None:
            self._lacks[ski] = monotonic() + KEYS_INTERVAL
        else:
            self.keys.pop(ski, None)
        self._list_again.set()

    async def run(self) -> None:
        """Connect and reconnect until cancelled."""
        delay = RECONNECT_FIRST
        try:
            while True:
                try:
                    await self._connect()
                    await self._list_keys()
                    delay = RECONNECT_FIRST
                    self._set_ready(True)
                    await self._attend()
                except Exception as error:  # whatever it is, the node is to be connected again
                    self.last_error = _describe(error)
                finally:
                    self._disconnect(self.last_error)
                await asyncio.sleep(delay * random.uniform(0.75, 1.25))
                delay = min(delay * 2, RECONNECT_MOST)
        finally:
            self._disconnect("the client is closed")

    async def _connect(self) -> None:
        loop, options = asyncio.get_running_loop(), self._options
        self._lost.clear()

        def make() -> Link:
            return Link(self.name, self._on_lost)

        async with asyncio.timeout(CONNECT_TIMEOUT):
            if options.address.path:
                _, self._link = await loop.create_unix_connection(make, options.address.path)
                return
            assert options.tls is not None
            transport, self._link = await loop.create_connection(
                make,
                options.address.host,
                options.address.port,
                ssl=options.tls,
                server_hostname=options.server_name or options.address.host,
            )
            keep_alive(transport.get_extra_info("socket"))

    async def _list_keys(self) -> None:
        keys: dict[bytes, frozenset[int]] = {}
        start: int | None = 0
        while start is not None:
            answer = await self._ask_keys(start)
            if isinstance(answer, HSMError):
                if answer.reason in ("bad_opcode", "internal_error"):
                    self.keys = None  # some other Keyless server: it can't list keys
                    return
                raise answer
            page, following = keyless.decode_keys_response(answer)
            keys |= page
            if len(keys) > MAX_KEYS or (following is not None and following <= start):
                raise keyless.KeylessError("the list of keys does not end")
            start = following
        changed, self.keys = self.keys != keys, keys
        if changed and self._ready:
            self._on_change()

    async def _ask_keys(self, start: int) -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_answer(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        if self._link is None or not self._link.is_open:  # lost since the last answer
            raise errors.link_lost(self.last_error)
        self._link.request_keys(start, on_answer)
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await answered

    async def _attend(self) -> None:
        """Until the link is lost: pings, and the list of keys now and then."""
        list_at = monotonic() + KEYS_INTERVAL
        ping_sent: float | None = None
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._lost.wait()
            link, now = self._link, monotonic()
            if link is None:
                return
            silence = now - link.last_heard
            if ping_sent is not None and link.last_heard > ping_sent:
                ping_sent = None
            if ping_sent is not None and now - ping_sent > PING_TIMEOUT:
                raise errors.attempt_timed_out(self.name)
            if ping_sent is None and silence > (SILENCE_WHILE_BUSY if link.outstanding else PING_INTERVAL):
                link.ping(_ignore_pong)
                ping_sent = now
            if now >= list_at or self._list_again.is_set():
                self._list_again.clear()
                list_at = now + KEYS_INTERVAL
                self._lacks = {ski: until for ski, until in self._lacks.items() if until > now}
                await self._list_keys()

    def _on_lost(self, link: Link, reason: str) -> None:
        if link is self._link or self._link is None:
            self._link = None
            self.last_error = reason
            self._lost.set()
            self._set_ready(False)

    def _disconnect(self, reason: str) -> None:
        if self._link is not None:
            self._link.close(reason)
        self._set_ready(False)

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._on_change()


def _ignore_pong(_answer: Answer) -> None:
    """Any answer counts as heard; nothing more to do."""


def _describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
