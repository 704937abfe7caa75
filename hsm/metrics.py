"""Metrics as plain integers: cheap to count, easy to send, added up elsewhere.

Processes on the hot path count in a `MetricStore`; `snapshot()` is plain data for JSON;
whoever exports merges snapshots into a store of its own and yields Prometheus families.
prometheus_client's multiprocess mode costs 4.5 µs an observation and makes counters fall
when the files of dead processes are removed; an observation here is a bisect and two adds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, cast

from hsm.keyless import ERROR_WORDS
from hsm.signing import SCHEMES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds in seconds, from 100 µs to 10 s; dense where HSMs answer (1 to 50 ms)."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a metric is: name, kind, help text and label names (Prometheus conventions)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """Of labels with a fixed set of values: those that may be counted with."""


class Value:
    """A counter or a gauge: add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Observations in seconds, counted by `BUCKETS` (the last count is for above them all)."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


Child = Value | Histogram
Snapshot = dict[str, list[tuple[Sequence[str], Any]]]
"""Metric name to (label values, number or [sum, counts…]); plain data for JSON."""


class MetricStore:
    """The values of a set of metrics in one process, or the sum over several."""

    def __init__(self, specs: Iterable[Spec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._children: dict[str, dict[tuple[str, ...], Child]] = {name: {} for name in self._specs}

    def value(self, spec: Spec, *labels: str) -> Value:
        """The counter or gauge with these label values; keep it, don't look it up each time."""
        return cast("Value", self._child(spec, labels))

    def histogram(self, spec: Spec, *labels: str) -> Histogram:
        """The histogram with these label values; keep it, don't look it up each time."""
        return cast("Histogram", self._child(spec, labels))

    def _child(self, spec: Spec, labels: tuple[str, ...]) -> Child:
        children = self._children[spec.name]
        child = children.get(labels)
        if child is None:
            if len(labels) != len(spec.labels):
                raise ValueError(f"{spec.name} takes the labels {spec.labels}, got {labels}")
            child = children[labels] = Histogram() if spec.kind == "histogram" else Value()
        return child

    def drop(self, spec: Spec) -> None:
        """Forget all values of a metric (a gauge whose label values come and go)."""
        self._children[spec.name].clear()

    def snapshot(self) -> Snapshot:
        """All values as plain data."""
        return {
            name: [
                (labels, child.value if isinstance(child, Value) else [child.sum, *child.counts])
                for labels, child in children.items()
            ]
            for name, children in self._children.items()
            if children
        }

    def merge(self, snapshot: Snapshot, *, gauges: bool = True) -> None:
        """Add a snapshot's values. Without `gauges`: for the totals of a process that is gone."""
        for name, rows in snapshot.items():
            spec = self._specs.get(name)
            if spec is None or (spec.kind == "gauge" and not gauges):
                continue
            for labels, data in rows:
                child = self._child(spec, tuple(labels))
                if isinstance(child, Value):
                    child.value += data
                else:
                    child.sum += data[0]
                    child.counts = [a + b for a, b in zip(child.counts, data[1:], strict=True)]

    def families(self) -> Iterator[Metric]:
        """Every metric as prometheus_client exports it, with a help text also when it has no value."""
        for spec in self._specs.values():
            yield _family(spec, self._children[spec.name])


def _family(spec: Spec, children: dict[tuple[str, ...], Child]) -> Metric:
    # A worker counts, and never exports: it need not spend 30 ms on this.
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        bounds = [*(repr(bound) for bound in BUCKETS), "+Inf"]
        for labels, child in children.items():
            assert isinstance(child, Histogram)
            cumulative = accumulate(child.counts)
            histogram.add_metric(labels, list(zip(bounds, cumulative, strict=True)), child.sum)
        return histogram
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = kind(spec.name, spec.help, labels=spec.labels)
    for labels, child in children.items():
        assert isinstance(child, Value)
        family.add_metric(labels, child.value)
    return family


_TOLD = (*ERROR_WORDS.values(), "error_XX")
"""Errors that a node answers with; XX stands for a code without a word of its own."""
_NODE_FAULTS = ("link_lost", "timeout", "bad_signature", "protocol", *_TOLD)
_REFUSALS = ("no_node", "queue_full", "overloaded", "queue_timeout")
SIGNATURE_FAILURES = ("deadline", *_REFUSALS, *_NODE_FAULTS)
"""Why a request for a signature fails: every `reason` of hsm.errors.HSMError."""

CLIENT_OUTSTANDING = Spec(
    "hsm_client_outstanding", "gauge", "Requests sent to a node and not answered yet.", ("node",)
)
CLIENT_ERRORS = Spec(
    "hsm_client_errors_total",
    "counter",
    "Requests that a node did not answer well.",
    ("node", "reason"),
    values={"reason": _NODE_FAULTS},
)
CLIENT_QUEUED = Spec("hsm_client_queued", "gauge", "Requests that wait for a node to be reachable.")
CLIENT_LINKS = Spec("hsm_client_links", "gauge", "Open connections to a node.", ("node",))
CLIENT_BAD_SIGNATURES = Spec(
    "hsm_client_bad_signatures_total",
    "counter",
    "Signatures that did not verify: the node is broken or hostile.",
    ("node",),
)
CLIENT_SECONDS = Spec(
    "hsm_client_seconds", "histogram", "Time from sending a request to a node to its signature.", ("node",)
)
CLIENT_QUEUE_SECONDS = Spec(
    "hsm_client_queue_seconds", "histogram", "Time that requests waited for a node with room, if they had to."
)
CLIENT_RETRIES = Spec(
    "hsm_client_retries_total",
    "counter",
    "Requests sent to another node, by what the first did.",
    ("reason",),
    values={"reason": ("silent", *_NODE_FAULTS)},
)
CLIENT_HEDGES = Spec(
    "hsm_client_hedges_total",
    "counter",
    "Requests sent to a second node because the first got nowhere: won if the second was faster.",
    ("result",),
    values={"result": ("won", "wasted")},
)
CLIENT_EJECTIONS = Spec(
    "hsm_client_ejections_total",
    "counter",
    "Nodes taken out of service for a while, by worker and cause.",
    ("node", "cause"),
    values={"cause": ("silent", *_NODE_FAULTS)},
)
CLIENT_REFUSED = Spec(
    "hsm_client_refused_total",
    "counter",
    "Requests refused because no node could take them in time.",
    ("reason",),
    values={"reason": _REFUSALS},
)
CLIENT_STATE = Spec(
    "hsm_client_node_state",
    "gauge",
    "Workers that are connected to a node and think so of it.",
    ("node", "state"),
    values={"state": ("healthy", "suspect", "ejected", "probing")},
)
CLIENT_LIMIT = Spec(
    "hsm_client_limit", "gauge", "Requests that a node may have in flight, all workers together.", ("node",)
)
CLIENT_SPECS = (
    CLIENT_OUTSTANDING, CLIENT_ERRORS, CLIENT_QUEUED, CLIENT_LINKS, CLIENT_BAD_SIGNATURES, CLIENT_SECONDS,
    CLIENT_QUEUE_SECONDS, CLIENT_RETRIES, CLIENT_HEDGES, CLIENT_EJECTIONS, CLIENT_REFUSED, CLIENT_STATE,
    CLIENT_LIMIT,
)  # fmt: skip

NODE_SIGN_SECONDS = Spec(
    "hsm_node_sign_seconds",
    "histogram",
    "Time from a request's arrival at the node to its signature.",
    ("token", "scheme"),
    values={"token": ("software", "pkcs11"), "scheme": tuple(SCHEMES)},
)
NODE_ERRORS = Spec(
    "hsm_node_errors_total",
    "counter",
    "Requests that the node answered with an error.",
    ("reason",),
    values={"reason": tuple(ERROR_WORDS.values())},
)
NODE_DROPPED = Spec(
    "hsm_node_dropped_total", "counter", "Requests dropped because nobody waits for them any more."
)
NODE_CONNECTIONS = Spec("hsm_node_connections", "gauge", "Clients connected to the node.")
NODE_PENDING = Spec("hsm_node_pending", "gauge", "Requests that the node works on.")
NODE_REFUSED = Spec(
    "hsm_node_refused_connections_total",
    "counter",
    "Connections refused by the node.",
    ("reason",),
    values={"reason": ("user", "too_many_clients", "malformed")},
)
NODE_MODULE_SECONDS = Spec(
    "hsm_node_module_seconds",
    "histogram",
    "Time of a signature in the PKCS#11 module, the node's own queue left out.",
    ("scheme",),
    values={"scheme": tuple(SCHEMES)},
)
NODE_SESSIONS = Spec(
    "hsm_node_sessions",
    "gauge",
    "PKCS#11 sessions by state; lost ones are in a call that hangs.",
    ("state",),
    values={"state": ("busy", "idle", "lost")},
)
NODE_TOKEN_ERRORS = Spec(
    "hsm_node_token_errors_total", "counter", "Answers of the PKCS#11 module that are errors.", ("code",)
)
NODE_SPECS = (
    NODE_SIGN_SECONDS, NODE_ERRORS, NODE_DROPPED, NODE_CONNECTIONS, NODE_PENDING, NODE_REFUSED,
    NODE_MODULE_SECONDS, NODE_SESSIONS, NODE_TOKEN_ERRORS,
)  # fmt: skip
