"""Signatures from a cluster of nodes that looks like one that does not fail.

A request goes to the ready node with the fewest outstanding; when that node fails, answers
wrongly or takes too long, to another one, until the request's deadline. A signature is
idempotent, so asking twice is safe. Every signature is verified before it is handed out: one
faulty RSA-CRT signature sent to a client would give the key away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Literal

from hsm import errors
from hsm import metrics as m
from hsm.client.link import Answer, Link
from hsm.client.node import NodeClient, NodeOptions
from hsm.client.selection import least_outstanding
from hsm.errors import HSMError
from hsm.metrics import MetricStore
from hsm.signing import KeyType, SignatureScheme, VerificationKey

VerifyMode = Literal["always", "rsa", "never"]
"""Which signatures are verified. `never` is for tools that have no certificate."""

QUEUE_LIMIT = 10_000
"""Requests that may wait for a node at a time."""
ATTEMPT_SHARE, ATTEMPT_MOST = 0.5, 1.0
"""A node gets half of the time that is left, at most this many seconds, while another could try."""
ATTEMPTS_MOST = 5
CHECK_INTERVAL = 0.05
"""How often deadlines are looked at, in seconds; one timer serves all requests."""


def _log_nothing(event: str, **fields: object) -> None:  # the log's signature
    """For callers that want no log."""


class SignRequest:
    """One signature asked for. When `done` is called, `signature` or `error` is set.

    `node` is the name of the node that was asked last, `started` the time.monotonic()
    of the call, `deadline` the one after which nobody wants the signature.
    """

    __slots__ = (
        "_attempt_until", "_attempts", "_cluster", "_done", "_id", "_link", "_slow", "_tried",
        "deadline", "digest", "error", "key", "node", "scheme", "signature", "ski", "started",
    )  # fmt: skip

    def __init__(
        self,
        cluster: ClusterClient,
        key: tuple[bytes, VerificationKey | None],
        scheme: SignatureScheme,
        digest: bytes,
        times: tuple[float, float],
        done: Callable[[SignRequest], None],
    ) -> None:
        self._cluster = cluster
        self.ski, self.key = key
        self.scheme = scheme
        self.digest = digest
        self.started, self.deadline = times
        self._done: Callable[[SignRequest], None] | None = done
        self.signature: bytes | None = None
        self.error: HSMError | None = None
        self.node = ""
        self._tried: tuple[NodeClient, ...] = ()
        """Nodes that failed: not asked again."""
        self._slow: tuple[NodeClient, ...] = ()
        """Nodes that were given up for another: asked again when no other is left."""
        self._attempts = 0
        self._attempt_until = self.deadline
        self._link: Link | None = None
        self._id = 0

    def cancel(self) -> None:
        """Nobody waits for it any more; `done` will not be called. Idempotent."""
        if self._done is not None:
            self._done = None
            self._give_up_attempt()
            self._cluster.forget(self)

    def _give_up_attempt(self) -> None:
        if self._link is not None:
            self._link.give_up(self._id)
            self._link = None


class ClusterClient:
    """The nodes of a cluster, and the requests under way."""

    def __init__(
        self,
        nodes: Sequence[NodeOptions],
        *,
        verify: VerifyMode = "always",
        store: MetricStore | None = None,
        log: Callable[..., object] = _log_nothing,
    ) -> None:
        """`log(event, **fields)` is told of nodes that come, go, or sign wrongly."""
        self._verify = verify
        self._store = store or MetricStore(m.CLIENT_SPECS)
        self._log = log
        self._keys: dict[bytes, VerificationKey] = {}
        self._active: dict[SignRequest, None] = {}
        self._waiting: dict[SignRequest, None] = {}
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._were_ready: dict[str, bool] = {}
        self._closed = False
        self.nodes = [NodeClient(options, self._on_change) for options in nodes]
        self.on_change: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to connect to the nodes, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [self._loop.create_task(node.run()) for node in self.nodes]

    async def close(self) -> None:
        """Disconnect; requests under way fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._closed = True
        for request in list(self._active):
            self._finish(request, errors.no_node("the client is closed"))
        if self._timer is not None:
            self._timer.cancel()

    def set_enabled(self, name: str, enabled: bool) -> None:
        """The operator's wish for a node; what is in flight there goes on. Raises KeyError."""
        by_name = {node.name: node for node in self.nodes}
        by_name[name].enabled = enabled
        self._on_change()

    def add_key(self, key: VerificationKey) -> None:
        """A key that will be asked for; its signatures are verified with it."""
        self._keys[key.ski] = key

    def holders(self, ski: bytes) -> list[str]:
        """The ready nodes that say they hold a key, or can't say."""
        return [n.name for n in self.nodes if n.ready and (n.keys is None or ski in n.keys)]

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        deadline: float,
        done: Callable[[SignRequest], None],
    ) -> SignRequest:
        """Ask for a signature; `done(request)` is called once, never before this returns.

        `deadline` is a time.monotonic() time. `digest` is scheme.digest_size bytes.
        """
        request = SignRequest(self, (ski, self._keys.get(ski)), scheme, digest, (monotonic(), deadline), done)
        self._active[request] = None
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK_INTERVAL, self._check_deadlines)
        failure = self._dispatch(request)
        if failure is not None:
            self._loop.call_soon(self._finish, request, failure)
        return request

    async def sign_async(
        self, ski: bytes, scheme: SignatureScheme, digest: bytes, timeout: float
    ) -> SignRequest:
        """`sign` for coroutines: returns the finished request. Raises HSMError."""
        finished: asyncio.Future[SignRequest] = self._loop.create_future()

        def done(request: SignRequest) -> None:
            if not finished.done():
                finished.set_result(request)

        request = self.sign(ski, scheme, digest, monotonic() + timeout, done)
        try:
            await finished
        finally:
            request.cancel()
        if request.error is not None:
            raise request.error
        return request

    def status(self) -> list[dict[str, Any]]:
        """Each node's state, for people."""
        return [
            {
                "name": node.name,
                "enabled": node.enabled,
                "ready": node.ready,
                "outstanding": node.outstanding,
                "keys": None if node.keys is None else len(node.keys),
                **({} if node.ready else {"error": node.last_error}),
            }
            for node in self.nodes
        ]

    def update_gauges(self) -> None:
        """Bring the gauges up to date, before a snapshot."""
        for node in self.nodes:
            self._store.value(m.CLIENT_OUTSTANDING, node.name).value = node.outstanding
            self._store.value(m.CLIENT_LINKS, node.name).value = int(node.ready)
        self._store.value(m.CLIENT_QUEUED).value = len(self._waiting)

    def forget(self, request: SignRequest) -> None:
        """For SignRequest.cancel: it is no longer under way."""
        self._active.pop(request, None)
        self._waiting.pop(request, None)

    def _dispatch(self, request: SignRequest) -> HSMError | None:
        """Send to the best node, or let wait; an error if neither makes sense."""
        if self._closed:
            return errors.no_node("the client is closed")
        node = self._choose(request)
        if node is not None:
            self._send(request, node)
            return None
        ski, opcode, tried = request.ski, request.scheme.opcode, request._tried
        hopeful = any(node.may_take(ski, opcode) and node not in tried for node in self.nodes)
        if not hopeful or request._attempts >= ATTEMPTS_MOST:
            return errors.no_node(
                "no node is left that could sign" if request._attempts else "no node holds the key"
            )
        if len(self._waiting) >= QUEUE_LIMIT:
            return errors.queue_full(QUEUE_LIMIT)
        self._waiting[request] = None
        return None

    def _choose(self, request: SignRequest) -> NodeClient | None:
        if request._attempts >= ATTEMPTS_MOST:
            return None
        ski, opcode, tried = request.ski, request.scheme.opcode, request._tried
        able = [node for node in self.nodes if node.takes(ski, opcode) and node not in tried]
        self._turn += 1
        if request._slow:
            able = [node for node in able if node not in request._slow] or able
        return least_outstanding(able, self._turn)

    def _send(self, request: SignRequest, node: NodeClient) -> None:
        remaining = request.deadline - monotonic()
        request._attempts += 1
        request._attempt_until = request.deadline - remaining + min(remaining * ATTEMPT_SHARE, ATTEMPT_MOST)
        request.node = node.name
        attempt = request._attempts
        request._link = link = node.link

        def on_answer(answer: Answer) -> None:
            if request._attempts == attempt and request._link is not None:
                self._on_answer(request, node, answer)

        request._id = link.request_signature(
            request.scheme.opcode, request.ski, request.digest, max(0, int(remaining * 1000)), on_answer
        )

    def _on_answer(self, request: SignRequest, node: NodeClient, answer: Answer) -> None:
        request._link = None
        if not isinstance(answer, HSMError):
            signature = answer.payload
            if self._is_good(request, signature):
                request.signature = signature
                self._finish(request, None)
                self._retry_first()
                return
            answer = errors.bad_signature(node.name)
            self._store.value(m.CLIENT_BAD_SIGNATURES, node.name).value += 1
            self._log("node_signed_wrongly", node=node.name, ski=request.ski.hex())
        elif answer.reason == "key_not_found":
            node.lacks(request.ski)
        self._failed(request, node, answer)

    def _failed(self, request: SignRequest, node: NodeClient, failure: HSMError) -> None:
        self._store.value(m.CLIENT_ERRORS, node.name, failure.reason).value += 1
        # After a lost link the node may come back within the deadline: not counted as tried.
        if failure.reason != "link_lost":
            request._tried += (node,)
        hopeless = self._dispatch(request)
        if hopeless is not None:
            self._finish(request, failure)

    def _is_good(self, request: SignRequest, signature: bytes) -> bool:
        if self._verify == "never":
            return bool(signature)
        key = request.key
        if key is None:
            return False  # nothing to verify with: never hand it out
        if self._verify == "rsa" and key.key_type is not KeyType.RSA:
            return bool(signature)
        return key.verify(request.scheme, request.digest, signature)

    def _finish(self, request: SignRequest, error: HSMError | None) -> None:
        done, request._done = request._done, None
        if done is None:
            return
        request.error = error
        self._active.pop(request, None)
        self._waiting.pop(request, None)
        try:
            done(request)
        except Exception:  # a bug of one caller must not break the link that brought the answer
            self._log("callback_failed", exc_info=True)

    def _on_change(self) -> None:
        """A node came, went, or holds other keys: those who wait may go on."""
        for node in self.nodes:
            if self._were_ready.get(node.name, False) != node.ready:
                self._were_ready[node.name] = node.ready
                if node.ready:
                    count = None if node.keys is None else len(node.keys)
                    self._log("node_ready", node=node.name, keys=count)
                else:
                    self._log("node_lost", node=node.name, error=node.last_error)
        self._retry_waiting()
        self.on_change()

    def _retry_first(self) -> None:
        """An answer freed a place: the one that waits longest may have it."""
        request = next(iter(self._waiting), None)
        if request is not None:
            del self._waiting[request]
            failure = self._dispatch(request)
            if failure is not None:
                self._finish(request, failure)

    def _retry_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for request in waiting:
            if request not in self._active:  # cancelled by the one before
                continue
            failure = self._dispatch(request)
            if failure is not None:
                self._finish(request, failure)

    def _check_deadlines(self) -> None:
        now = monotonic()
        for request in list(self._active):
            if now >= request.deadline:
                if request.node and request._link is not None:
                    self._store.value(m.CLIENT_ERRORS, request.node, "deadline").value += 1
                request._give_up_attempt()
                self._finish(request, self._deadline_passed(request))
            elif now >= request._attempt_until and request._link is not None:
                self._try_elsewhere(request)
        if self._waiting:
            self._retry_waiting()
        self._timer = self._loop.call_later(CHECK_INTERVAL, self._check_deadlines) if self._active else None

    def _deadline_passed(self, request: SignRequest) -> HSMError:
        if request.node or any(node.ready for node in self.nodes):
            return errors.deadline_passed()
        return errors.deadline_passed("no node was connected before the deadline")

    def _try_elsewhere(self, request: SignRequest) -> None:
        """The node is slow: ask another if there is one, else go on waiting for it."""
        slow = next(node for node in self.nodes if node.name == request.node)
        before, request._slow = request._slow, (*request._slow, slow)
        other = self._choose(request)
        if other is None or other in request._slow:
            request._slow = before
            return
        self._store.value(m.CLIENT_ERRORS, slow.name, "timeout").value += 1
        request._give_up_attempt()
        self._send(request, other)
