"""Serves a token's keys over the Keyless format: each request is answered when its signature is there."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, cast

from hsm import keyless
from hsm import metrics as m
from hsm.inventory import DETAILS_FUNCTION, encode_details_response
from hsm.keyless import Message
from hsm.metrics import Histogram, MetricStore
from hsm.node.token import Expired, Result, Token, TokenError
from hsm.signing import SCHEME_BY_OPCODE, SignatureScheme
from hsm.transport import keep_alive

MAX_PENDING = 1024
"""Requests of one client under way; above it the client is not read from."""

MAX_CLIENTS = 1024
_UCRED = struct.Struct("3i")
_ANSWER_OPCODES = (keyless.OP_RESPONSE, keyless.OP_PONG, keyless.OP_ERROR)

_LISTS: dict[bytes, Callable[[int, Token, int], bytes]] = {
    keyless.KEYS_FUNCTION: lambda number, token, start: keyless.encode_keys_response(
        number, token.keys(), start
    ),
    DETAILS_FUNCTION: lambda number, token, start: encode_details_response(number, token.details(), start),
}
"""What may be asked about the keys: request id, token and first entry to one page of the answer."""

IsAllowed = Callable[[int], bool]
"""Whether a user id may connect to the unix socket."""


class NodeServer:
    """What the connections of one node share."""

    def __init__(
        self, token: Token, store: MetricStore, log: Callable[..., object], is_allowed: IsAllowed
    ) -> None:
        self.token = token
        self.store = store
        self.log = log
        self.is_allowed = is_allowed
        self.clients: set[ClientConnection] = set()
        self._sign_seconds: dict[int, Histogram] = {}
        self.loop = asyncio.get_running_loop()

    def connection(self) -> ClientConnection:
        """asyncio's protocol factory."""
        return ClientConnection(self)

    def signed(self, scheme: SignatureScheme, seconds: float) -> None:
        """Count a signature."""
        histogram = self._sign_seconds.get(scheme.opcode)
        if histogram is None:
            histogram = self.store.histogram(m.NODE_SIGN_SECONDS, self.token.kind, scheme.name)
            self._sign_seconds[scheme.opcode] = histogram
        histogram.observe(seconds)

    def refused(self, reason: str, **fields: Any) -> None:
        """Count and tell of a connection that was not served."""
        self.store.value(m.NODE_REFUSED, reason).value += 1
        self.log("connection_refused", reason=reason, **fields)

    def update_gauges(self) -> None:
        """Bring the gauges up to date, before they are exported."""
        self.store.value(m.NODE_CONNECTIONS).value = len(self.clients)
        self.token.update_gauges()
        self.store.value(m.NODE_PENDING).value = sum(client.pending for client in self.clients)


class ClientConnection(asyncio.Protocol):
    """One client: its requests are taken in order and answered in any."""

    def __init__(self, server: NodeServer) -> None:
        self._server = server
        self._decoder = keyless.Decoder()
        self._transport: asyncio.Transport | None = None
        self._answers: list[bytes] = []
        self._paused = False
        self._writable = True
        self.pending = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: check who it is."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            _pid, uid, _gid = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            if not self._server.is_allowed(uid):
                self._server.refused("user", uid=uid)
                self._transport.abort()
                return
        else:
            keep_alive(sock)
        if len(self._server.clients) >= MAX_CLIENTS:
            self._server.refused("too_many_clients")
            self._transport.abort()
            return
        self._server.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: requests arrived."""
        if self not in self._server.clients:
            return
        try:
            messages = self._decoder.feed(data)
        except keyless.KeylessError as error:
            self._server.refused("malformed", error=str(error))
            self._abort()
            return
        for message in messages:
            self._serve(message)
        self._pace()

    def _serve(self, message: Message) -> None:
        scheme = SCHEME_BY_OPCODE.get(message.opcode)
        if scheme is not None:
            self._sign(message, scheme)
        elif message.opcode == keyless.OP_PING:
            self._answer(keyless.encode(message.id, keyless.OP_PONG, message.payload))
        elif message.opcode == keyless.OP_CUSTOM and message.function in _LISTS:
            self._list_keys(message)
        elif message.opcode in _ANSWER_OPCODES:
            self._refuse(message.id, keyless.ERR_UNEXPECTED_OPCODE)
        else:  # RSA decryption (0x01) too: no forward secrecy, and a padding oracle
            self._refuse(message.id, keyless.ERR_BAD_OPCODE)

    def _sign(self, message: Message, scheme: SignatureScheme) -> None:
        if len(message.payload) != scheme.digest_size:
            self._refuse(message.id, keyless.ERR_FORMAT)
            return
        arrived = monotonic()

        def expires() -> float | None:
            remaining = message.remaining_ms()
            return None if remaining is None else arrived + remaining / 1000

        self.pending += 1
        self._server.token.sign(
            message.ski,
            scheme,
            message.payload,
            expires,
            partial(self._on_result, message.id, scheme, arrived),
        )

    def _on_result(self, id: int, scheme: SignatureScheme, arrived: float, result: Result) -> None:
        self.pending -= 1
        if isinstance(result, TokenError):
            if isinstance(result, Expired):
                self._server.store.value(m.NODE_DROPPED).value += 1
            self._refuse(id, result.code)
        else:
            self._server.signed(scheme, monotonic() - arrived)
            self._answer(keyless.encode_signature(id, result))
        if self._paused:
            self._pace()

    def _list_keys(self, message: Message) -> None:
        try:
            start = keyless.decode_keys_start(message.extra)
        except keyless.KeylessError:
            self._refuse(message.id, keyless.ERR_FORMAT)
            return
        self._answer(_LISTS[message.function](message.id, self._server.token, start))

    def _refuse(self, id: int, code: int) -> None:
        self._server.store.value(m.NODE_ERRORS, keyless.ERROR_WORDS[code]).value += 1
        self._answer(keyless.encode_error(id, code))

    def _answer(self, frame: bytes) -> None:
        if self._transport is None:
            return
        if not self._answers:
            self._server.loop.call_soon(self._flush)
        self._answers.append(frame)

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        if answers and self._transport is not None:
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))

    def _pace(self) -> None:
        """Read from the client only while it has few requests under way and takes its answers."""
        if self._transport is None:
            return
        pause = self.pending >= MAX_PENDING or not self._writable
        if pause != self._paused:
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def pause_writing(self) -> None:
        """asyncio: the client does not take its answers."""
        self._writable = False
        self._pace()

    def resume_writing(self) -> None:
        """asyncio: it does again."""
        self._writable = True
        self._pace()

    def close(self) -> None:
        """Flush what is answered, then close."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """asyncio: the client is gone; what it asked for is answered to nobody."""
        self._transport = None
        self._server.clients.discard(self)
