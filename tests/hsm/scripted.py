"""A Keyless server whose answers a test decides, and a cluster client that a test watches."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import pytest

from hsm import keyless
from hsm import metrics as m
from hsm.client import ClusterClient, ClusterOptions, NodeOptions, SignRequest, VerifyMode
from hsm.config import Address
from hsm.errors import HSMError
from hsm.keyless import Message
from hsm.metrics import MetricStore
from hsm.node.software import NamedKey, SoftwareToken
from hsm.node.token import TokenError
from hsm.signing import SCHEME_BY_OPCODE, SCHEMES, PrivateKey, ski_of
from hsm.verification import VerificationKey

SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]
DIGEST = hashlib.sha256(b"what a handshake signs").digest()


class Changes:
    """Lets a test wait until something is so, looking again whenever something happened."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    def tell(self) -> None:
        """Something happened."""
        self._happened.set()

    async def until(self, condition: Callable[[], bool], *, look: float | None = None) -> None:
        """Wait until the condition holds (the test's own time limit is the limit).

        `look`: look again after this many seconds too, for what nobody tells of.
        """
        while not condition():
            self._happened.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look):
                    await self._happened.wait()


class Peer(asyncio.Protocol):
    """One connection of a client to a scripted node."""

    def __init__(self, node: ScriptedNode) -> None:
        self._node = node
        self._decoder = keyless.Decoder()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether the client is still there."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client came."""
        self._transport = cast("asyncio.Transport", transport)
        self._node.connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the client left."""
        self._transport = None
        self._node.changes.tell()

    def data_received(self, data: bytes) -> None:
        """asyncio: requests."""
        for message in self._decoder.feed(data):
            self._node.requested(self, message)

    def write(self, *frames: bytes) -> None:
        """Send frames, or whatever bytes they are, in one piece."""
        if self._transport is not None:
            self._transport.write(b"".join(frames))

    def answer(self, request: Message, payload: bytes) -> None:
        """Answer a request."""
        self.write(keyless.encode(request.id, keyless.OP_RESPONSE, payload))

    def refuse(self, request: Message, code: int) -> None:
        """Answer a request with an error."""
        self.write(keyless.encode_error(request.id, code))

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


Script = Callable[[Peer, Message], None]
"""What a node does with a request."""


def silent(_peer: Peer, _request: Message) -> None:
    """Never answers."""


def signing(*keys: PrivateKey) -> Script:
    """Signs as a node does."""
    token = SoftwareToken({ski_of(key.public_key()): NamedKey("", key) for key in keys})

    def script(peer: Peer, request: Message) -> None:
        def done(result: bytes | TokenError) -> None:
            if isinstance(result, bytes):
                peer.answer(request, result)
            else:
                peer.refuse(request, result.code)

        scheme = SCHEME_BY_OPCODE[request.opcode]
        token.sign(request.ski, scheme, request.payload, lambda: None, done)

    return script


def refusing(code: int) -> Script:
    """Answers with this error."""
    return lambda peer, request: peer.refuse(request, code)


def answering(*payload: bytes) -> Script:
    """Answers with these bytes instead of a signature."""
    return lambda peer, request: peer.answer(request, b"".join(payload))


def garbage(peer: Peer, request: Message) -> None:
    """Sends what is not the format."""
    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def in_turn(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one stays."""
    left = list(scripts)

    def script(peer: Peer, request: Message) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(peer, request)

    return script


class ScriptedNode:
    """A Keyless server on a unix socket: pongs and lists keys by itself, signs by its script."""

    def __init__(
        self, path: Path, keys: Sequence[PrivateKey], script: Script, *, lists: Script | None = None
    ) -> None:
        """`lists`, if given, is what it does when it is asked for its keys."""
        self.options = NodeOptions(path.stem, Address(path=str(path)))
        self.script = script
        self.pongs = True
        self.requests: list[tuple[Peer, Message]] = []
        self.probes: list[Message] = []
        self.listed: list[Message] = []
        self.pings: list[Message] = []
        self.peers: list[Peer] = []
        self.changes = Changes()
        self.keys = list(keys)
        self.lists = lists or self.list_keys
        self._server: asyncio.AbstractServer | None = None

    def connected(self, peer: Peer) -> None:
        """For Peer: a client came."""
        self.peers.append(peer)
        self.changes.tell()

    def requested(self, peer: Peer, message: Message) -> None:
        """For Peer: a client wants something."""
        if message.opcode == keyless.OP_PING:
            self.pings.append(message)
            if self.pongs:
                peer.write(keyless.encode(message.id, keyless.OP_PONG, message.payload))
        elif message.function == keyless.KEYS_FUNCTION:
            self.listed.append(message)
            self.lists(peer, message)
        elif message.payload != DIGEST:
            self.probes.append(message)  # the client's test signatures are over random digests
            self.script(peer, message)
        else:
            self.requests.append((peer, message))
            self.script(peer, message)
        self.changes.tell()

    def list_keys(self, peer: Peer, request: Message) -> None:
        """Tells what it holds, as a node does."""
        keys = [VerificationKey(key.public_key()) for key in self.keys]
        peer.write(keyless.encode_keys_response(request.id, [(key.ski, key.opcodes) for key in keys], 0))

    async def received(self, count: int) -> None:
        """Wait until this many signatures have been asked for."""
        await self.changes.until(lambda: len(self.requests) >= count)

    def release(self) -> None:
        """Sign everything that was asked for and not answered by a silent script."""
        script = signing(*self.keys)
        for peer, request in self.requests:
            script(peer, request)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Peer(self), self.options.address.path)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self.peers:
            peer.close()
        await self.changes.until(lambda: not any(peer.is_open for peer in self.peers))
        Path(self.options.address.path).unlink(missing_ok=True)


class Cluster:
    """A started ClusterClient with its metrics and its log."""

    def __init__(
        self,
        nodes: Iterable[NodeOptions],
        keys: Iterable[PrivateKey],
        options: ClusterOptions,
        **surroundings: Any,
    ) -> None:
        """`surroundings` are the client's clock, draw and keep, where they are simulated."""
        self.store = MetricStore(m.CLIENT_SPECS)
        self.log: list[dict[str, Any]] = []
        self.changes = Changes()
        self.client = ClusterClient(list(nodes), options, store=self.store, log=self._log, **surroundings)
        self.client.on_change = self.changes.tell
        for key in keys:
            self.client.add_key(VerificationKey(key.public_key()))

    def _log(self, event: str, **fields: object) -> None:
        self.log.append({"event": event, **fields})
        self.changes.tell()

    async def ready(self, *names: str) -> None:
        """Wait until exactly these nodes are ready."""
        await self.changes.until(lambda: [node.name for node in self.client.nodes if node.ready] == [*names])

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for a log entry; the first one."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.log if {"event": event, **fields}.items() <= entry.items()]

        await self.changes.until(lambda: bool(found()))
        return found()[0]

    def errors(self, node: str) -> dict[str, float]:
        """How often a node did not answer well, by reason."""
        rows = self.store.snapshot().get(m.CLIENT_ERRORS.name, [])
        return {labels[1]: count for labels, count in rows if labels[0] == node}

    def bad_signatures(self, node: str) -> float:
        """How many wrong signatures a node gave."""
        return self.store.value(m.CLIENT_BAD_SIGNATURES, node).value

    def is_idle(self) -> bool:
        """Whether nothing is under way, here or on a link, as far as the client knows."""
        client = self.client
        dispatcher = client._dispatcher
        return not (
            dispatcher.under_way or dispatcher.waiting or any(node.outstanding for node in client.nodes)
        )


@contextlib.asynccontextmanager
async def cluster(
    nodes: Sequence[NodeOptions],
    *keys: PrivateKey,
    verify: VerifyMode = "always",
    ready: bool = True,
    **options: Any,
) -> AsyncIterator[Cluster]:
    """A client of these nodes, all of them ready (or none awaited); closed at the end.

    `options` are those of ClusterOptions.
    """
    started = Cluster(nodes, keys, ClusterOptions(verify=verify, **options))
    started.client.start()
    try:
        if ready:
            await started.ready(*(node.name for node in nodes))
        yield started
    finally:
        await started.client.close()
        await asyncio.sleep(0)  # what was asked for meanwhile fails in the next turn
        assert started.is_idle()


async def sign(group: Cluster, key: PrivateKey, *, timeout: float = 10.0) -> SignRequest:
    """One P-256 signature. Raises HSMError."""
    return await group.client.sign_async(ski_of(key.public_key()), SCHEME, DIGEST, timeout)


async def failure(group: Cluster, key: PrivateKey, *, timeout: float = 10.0) -> HSMError:
    """Why one P-256 signature can't be had."""
    with pytest.raises(HSMError) as caught:
        await sign(group, key, timeout=timeout)
    return caught.value
