"""What the cluster client counts. Children of metrics are looked up once, not on each request."""

from __future__ import annotations

from collections.abc import Iterable

from hsm import metrics as m
from hsm.client.health import State
from hsm.client.node import NodeClient
from hsm.metrics import Histogram, MetricStore


class ClientMetrics:
    """The cluster client's metrics (`CLIENT_SPECS` of hsm.metrics)."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store
        self._seconds: dict[str, Histogram] = {}
        self._queue = store.histogram(m.CLIENT_QUEUE_SECONDS)
        self._won = store.value(m.CLIENT_HEDGES, "won")
        self._wasted = store.value(m.CLIENT_HEDGES, "wasted")

    def answered(self, node: str, seconds: float) -> None:
        """A node answered with a signature, right or wrong."""
        histogram = self._seconds.get(node)
        if histogram is None:
            histogram = self._seconds[node] = self._store.histogram(m.CLIENT_SECONDS, node)
        histogram.observe(seconds)

    def failed(self, node: str, reason: str) -> None:
        """A node did not answer well."""
        self._store.value(m.CLIENT_ERRORS, node, reason).value += 1

    def signed_wrongly(self, node: str) -> None:
        """A node's signature did not verify."""
        self._store.value(m.CLIENT_BAD_SIGNATURES, node).value += 1

    def retried(self, reason: str) -> None:
        """A request was sent to another node because of this."""
        self._store.value(m.CLIENT_RETRIES, reason).value += 1

    def hedge_won(self) -> None:
        """The second node asked was the first to answer."""
        self._won.value += 1

    def hedge_wasted(self) -> None:
        """The first node answered after all."""
        self._wasted.value += 1

    def waited(self, seconds: float) -> None:
        """A request left the queue for a node."""
        self._queue.observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was refused without having been at any node, or given up in the queue."""
        self._store.value(m.CLIENT_REFUSED, reason).value += 1

    def ejected(self, node: str, cause: str) -> None:
        """A node was ejected."""
        self._store.value(m.CLIENT_EJECTIONS, node, cause).value += 1

    def update(self, nodes: Iterable[NodeClient], waiting: int) -> None:
        """Set the gauges. Those of nodes that are gone vanish."""
        store = self._store
        for spec in (m.CLIENT_OUTSTANDING, m.CLIENT_LINKS, m.CLIENT_LIMIT, m.CLIENT_STATE):
            store.drop(spec)
        store.value(m.CLIENT_QUEUED).value = waiting
        for node in nodes:
            store.value(m.CLIENT_OUTSTANDING, node.name).value = node.outstanding
            store.value(m.CLIENT_LINKS, node.name).value = len(node.links)
            store.value(m.CLIENT_LIMIT, node.name).value = node.limit.value
            for state in State:
                is_so = node.ready and node.health.state is state
                store.value(m.CLIENT_STATE, node.name, state.value).value = int(is_so)
