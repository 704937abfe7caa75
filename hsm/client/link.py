"""One connection to a node: requests are pipelined, answers come in any order.

Frames written in one turn of the event loop leave in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import cast

from hsm import errors, keyless
from hsm.errors import HSMError, Source

Answer = keyless.Message | HSMError
OnAnswer = Callable[[Answer], None]

MAX_PENDING = 1000
"""Requests in flight on one connection; gokeyless serves up to 1,024."""


class Link(asyncio.Protocol):
    """The protocol of one connection. Each request's callback is called exactly once."""

    def __init__(self, node: str, on_lost: Callable[[Link, str], None]) -> None:
        """`on_lost(link, why)` is called before the callbacks of what was pending."""
        self._node = node
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._decoder = keyless.Decoder()
        self._pending: dict[int, OnAnswer] = {}
        self._next_id = 0
        self._unsent: list[bytes] = []
        self._began = self.last_heard = monotonic()
        self.lost = asyncio.Event()
        self.lost_because = ""

    def __repr__(self) -> str:
        return f"<Link to {self._node}, {len(self._pending)} outstanding>"

    @property
    def outstanding(self) -> int:
        """Requests without an answer, pings included."""
        return len(self._pending)

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._transport is not None

    def request_signature(
        self, opcode: int, ski: bytes, digest: bytes, remaining_ms: int, on_answer: OnAnswer
    ) -> None:
        """Ask for a signature. Never calls back at once."""
        self._send(keyless.encode_sign_request(self._reserve(on_answer), opcode, ski, digest, remaining_ms))

    def ping(self, on_answer: OnAnswer) -> None:
        """Ask for a sign of life."""
        self._send(keyless.encode(self._reserve(on_answer), keyless.OP_PING))

    def request_keys(self, function: bytes, start: int, on_answer: OnAnswer) -> None:
        """Ask for one page of the keys that the node holds, or of what else `function` tells of them."""
        self._send(keyless.encode_keys_request(self._reserve(on_answer), start, function))

    def close(self, reason: str) -> None:
        """Drop the connection at once; pending requests fail with `link_lost`."""
        if self._transport is not None:
            self._transport.abort()
            self._lost(reason)

    def _reserve(self, on_answer: OnAnswer) -> int:
        if self._transport is None:
            raise RuntimeError("the link is closed")
        id = self._next_id
        self._next_id = (id + 1) & 0xFFFFFFFF
        self._pending[id] = on_answer
        return id

    def _send(self, frame: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        frames, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is up."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: answers arrived."""
        self.last_heard = monotonic()
        try:
            messages = self._decoder.feed(data)
        except keyless.KeylessError as error:
            self.close(f"node {self._node} sent a malformed answer: {error}")
            return
        for message in messages:
            on_answer = self._pending.pop(message.id, None)
            if on_answer is None:
                self.close(f"node {self._node} answered a request that was not made")
                return
            if message.opcode == keyless.OP_RESPONSE or message.opcode == keyless.OP_PONG:
                on_answer(message)
            else:
                on_answer(_error_of(message, self._node))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is gone."""
        why = f": {error}" if error else ""
        if self.last_heard == self._began:  # TLS 1.3 lets a client believe that it is in until then
            why += " before the first answer; does it accept our certificate (its CA, its dates), or user?"
        self._lost(f"connection to node {self._node} lost{why}")

    def _lost(self, reason: str) -> None:
        if self._transport is None:
            return
        self._transport = None
        self.lost_because = reason
        self.lost.set()
        pending, self._pending = self._pending, {}
        self._on_lost(self, reason)
        failure = errors.link_lost(reason)
        for on_answer in pending.values():
            on_answer(failure)


_KEY_ERRORS = (
    keyless.ERR_KEY_NOT_FOUND, keyless.ERR_CERTIFICATE_NOT_FOUND, keyless.ERR_BAD_OPCODE,
    keyless.ERR_UNEXPECTED_OPCODE,
)  # fmt: skip
"""What a node can't do with a key: no fault of its own."""


def _error_of(message: keyless.Message, node: str) -> HSMError:
    """What a node's error means. All are retryable elsewhere: another node may be well."""
    if message.opcode != keyless.OP_ERROR or len(message.payload) != 1:
        return HSMError("protocol", f"node {node} sent no answer", source=Source.NODE, retryable=True)
    code = message.payload[0]
    word = keyless.ERROR_WORDS.get(code, f"error_{code:02X}")
    source = Source.KEY if code in _KEY_ERRORS else Source.NODE
    return HSMError(word, f"node {node} answered: {word.replace('_', ' ')}", source=source, retryable=True)
