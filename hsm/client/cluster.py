"""Signatures from a cluster of nodes that looks like one that does not fail.

A request goes to the better of two random nodes; when that one fails, answers wrongly or is slow,
to another one, until the request's deadline. A signature is idempotent, so asking twice is safe;
budgets keep the extra work within bounds. When all nodes are full, requests wait, earliest
deadline first, or are refused at once if waiting is of no use. Every signature is verified before
it is handed out: one faulty RSA-CRT signature sent to a client would give the key away.

This is what callers see. `dispatch` is the way of a request, `roster` the nodes and what is thought
of them; `upkeep` and `probing` keep links open and nodes tested. What is decided is decided by
pure modules: `selection`, `health`, `limit`, `latency`, `patience`, `budget`, `waiting`, `wheel`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from time import monotonic
from typing import Any

from hsm import errors
from hsm import metrics as m
from hsm.client import probing, upkeep
from hsm.client.dispatch import Dispatcher
from hsm.client.link import Answer
from hsm.client.node import NodeClient
from hsm.client.options import ClusterOptions, NodeOptions
from hsm.client.reporting import ClientMetrics
from hsm.client.request import SignRequest
from hsm.client.roster import Roster
from hsm.errors import HSMError
from hsm.metrics import MetricStore
from hsm.signing import SignatureScheme
from hsm.verification import VerificationKey


def _log_nothing(event: str, **fields: object) -> None:  # the log's signature
    """For callers that want no log."""


class ClusterClient:
    """A cluster of nodes as one signer."""

    def __init__(
        self,
        nodes: Sequence[NodeOptions],
        options: ClusterOptions | None = None,
        *,
        store: MetricStore | None = None,
        log: Callable[..., object] = _log_nothing,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
        keep: Callable[[NodeClient], Coroutine[Any, Any, None]] = upkeep.keep,
    ) -> None:
        """`log(event, **fields)` is told of nodes that come, go, or are judged otherwise.

        Simulations have another clock, draw (uniform in [0, 1)) and way to keep nodes connected.
        """
        options = options or ClusterOptions()
        self.clock = clock
        self._keep = keep
        self.on_change: Callable[[], None] = lambda: None
        """Called when a node came, went, was judged otherwise, or holds other keys."""
        self._keys: dict[bytes, VerificationKey] = {}
        self._metrics = ClientMetrics(store or MetricStore(m.CLIENT_SPECS))
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = self._closed = False
        self._roster = Roster(options, self._metrics, log, self, clock)
        self._dispatcher = Dispatcher(self._roster, options, self._metrics, log, clock, draw)
        self._roster.set_nodes(nodes)

    # -- life and members -----------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect to the nodes, on the running loop."""
        self._started = True
        self._run(probing.watch(self))
        for node in self.nodes:
            self.node_added(node)

    async def close(self) -> None:
        """Disconnect; requests under way fail."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._dispatcher.close()

    def _run(self, story: Any) -> None:
        task = asyncio.get_running_loop().create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def nodes(self) -> list[NodeClient]:
        """The members."""
        return self._roster.nodes

    def set_nodes(self, nodes: Sequence[NodeOptions]) -> None:
        """The members from now on. What is in flight at one that goes may finish there."""
        self._roster.set_nodes(nodes)

    def set_options(self, options: ClusterOptions) -> None:
        """How the cluster is used from now on."""
        if options != self._roster.options:
            self._roster.options = options
            self._dispatcher.set_options(options)

    def set_enabled(self, name: str, enabled: bool) -> None:
        """The operator's wish for a node (all of them that an entry's name leads to). Raises KeyError."""
        self._roster.set_enabled(name, enabled)

    # -- what callers ask -----------------------------------------------------------------

    def add_key(self, key: VerificationKey) -> None:
        """A key that will be asked for; its signatures are verified with it."""
        self._keys[key.ski] = key

    @property
    def keys(self) -> Iterable[VerificationKey]:
        """The keys that were added."""
        return self._keys.values()

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

        `deadline` is a time of the clock. `digest` is scheme.digest_size bytes.
        """
        now = self.clock()
        key = self._keys.get(ski)
        request = SignRequest(self._dispatcher, (ski, key), scheme, digest, (now, deadline), done)
        if self._closed:
            refusal = errors.no_node("the client is closed")
            asyncio.get_running_loop().call_soon(self._dispatcher.finish, request, refusal)
        else:
            self._dispatcher.begin(request, now)
        return request

    async def sign_async(
        self, ski: bytes, scheme: SignatureScheme, digest: bytes, timeout: float
    ) -> SignRequest:
        """`sign` for coroutines: returns the finished request. Raises HSMError."""
        finished: asyncio.Future[SignRequest] = asyncio.get_running_loop().create_future()

        def done(request: SignRequest) -> None:
            if not finished.done():
                finished.set_result(request)

        request = self.sign(ski, scheme, digest, self.clock() + timeout, done)
        try:
            await finished
        finally:
            request.cancel()
        if request.error is not None:
            raise request.error
        return request

    def would_refuse(self, timeout: float) -> bool:
        """Whether requests made now, due within `timeout` seconds, would be refused for overload.

        For callers that can refuse their own client before work is spent on it.
        """
        return self._dispatcher.waiting > 0 and self._dispatcher.would_refuse(timeout)

    def status(self) -> list[dict[str, Any]]:
        """Each node's state, for people."""
        return self._roster.status()

    def update_gauges(self) -> None:
        """Bring the gauges up to date, before a snapshot."""
        self._metrics.update(self.nodes, self._dispatcher.waiting)

    # -- what the roster and the probes tell -----------------------------------------------

    def nodes_changed(self) -> None:
        """For Roster: those who wait may go on."""
        if self._started and not self._closed:
            self._dispatcher.nodes_changed(self.clock())
        self.on_change()

    def node_added(self, node: NodeClient) -> None:
        """For Roster: keep it connected."""
        if self._started:
            self._run(self._keep(node))

    def node_silent(self, node: NodeClient, now: float) -> None:
        """For Roster: its requests go elsewhere."""
        self._dispatcher.rescue(node, now)

    def tick(self, now: float) -> None:
        """For `probing.watch`: time went by."""
        self._roster.tick(now)
        self._roster.check_silence(now)

    def on_tested(self, probe: probing.Probe, answer: Answer) -> None:
        """For Probe: a node answered its test, or its link was lost."""
        now, node = self.clock(), probe.node
        if probe.ski:
            node.answered(probe, answer, now)
        else:
            node.in_flight.pop(probe, None)  # a pong does not tell that it signs
        if isinstance(answer, HSMError):
            self._roster.failed(node, answer, probe.ski, now)
        elif probe.is_good(answer.payload):
            node.latency.observe(now - probe.sent)
            self._roster.succeeded(node, now, test=True)
        else:
            self._roster.failed(node, errors.bad_signature(node.name), probe.ski, now)
