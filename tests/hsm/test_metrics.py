"""Counting, adding up over processes, and what Prometheus is shown."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from hsm import metrics
from hsm.metrics import BUCKETS, CLIENT_SPECS, NODE_SPECS, MetricStore, Snapshot, Spec
from hsm.node.server import NodeServer
from hsm.node.software import SoftwareToken
from hsm.signing import SCHEMES

REQUESTS = Spec("app_requests_total", "counter", "Requests.", ("kind",))
OPEN = Spec("app_open", "gauge", "Open ones.")
SECONDS = Spec("app_wait_seconds", "histogram", "Time waited.", ("kind",))
SPECS = (REQUESTS, OPEN, SECONDS)

# Sums of these are exact: multiples of 1/1024 s.
seconds = st.integers(0, 20 * 1024).map(lambda n: n / 1024)
processes = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), seconds | st.sampled_from(BUCKETS[:3])), max_size=20),
    max_size=4,
)


def store_of(observations: list[tuple[str, float]]) -> MetricStore:
    """What one process has counted."""
    store = MetricStore(SPECS)
    for kind, duration in observations:
        store.value(REQUESTS, kind).value += 1
        store.value(OPEN).value += 1
        store.histogram(SECONDS, kind).observe(duration)
    return store


def sent(store: MetricStore) -> Snapshot:
    """A snapshot as the other process receives it."""
    received: Snapshot = json.loads(json.dumps(store.snapshot()))
    return received


def exposition(store: MetricStore) -> str:
    """The text that Prometheus scrapes."""

    class Source(Collector):
        def collect(self) -> Iterator[Metric]:
            return store.families()

    registry = CollectorRegistry()
    registry.register(Source())
    return generate_latest(registry).decode()


def samples(store: MetricStore) -> dict[tuple[str, ...], float]:
    """Name and label values of every sample, to its value."""
    return {
        (found.name, *found.labels.values()): found.value
        for family in text_string_to_metric_families(exposition(store))
        for found in family.samples
    }


@pytest.mark.parametrize("index", range(len(BUCKETS)))
def test_a_bound_belongs_to_its_bucket(index: int) -> None:
    """`le` means at most: a bound itself is in its bucket, anything above in the next."""
    histogram = MetricStore(SPECS).histogram(SECONDS, "a")
    histogram.observe(BUCKETS[index])
    histogram.observe(BUCKETS[index] * 1.0001)
    assert [i for i, count in enumerate(histogram.counts) if count] == [index, index + 1]


def test_buckets_run_from_100_microseconds_to_10_seconds() -> None:
    """The bounds rise from 100 µs to 10 s, and longer waits are still counted."""
    assert (BUCKETS[0], BUCKETS[-1]) == (0.0001, 10.0)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    store = store_of([("a", 3600.0)])
    assert samples(store)["app_wait_seconds_bucket", "a", "10.0"] == 0
    assert samples(store)["app_wait_seconds_bucket", "a", "+Inf"] == 1


@given(st.lists(seconds, min_size=1, max_size=30))
def test_buckets_are_cumulative(durations: list[float]) -> None:
    """Each exported bucket counts the observations up to its bound."""
    found = samples(store_of([("a", duration) for duration in durations]))
    for bound in BUCKETS:
        assert found["app_wait_seconds_bucket", "a", str(bound)] == sum(d <= bound for d in durations)
    assert found["app_wait_seconds_count", "a"] == len(durations)
    assert found["app_wait_seconds_sum", "a"] == pytest.approx(sum(durations))


@given(processes)
def test_merged_snapshots_are_the_sum(observed: list[list[tuple[str, float]]]) -> None:
    """Snapshots sent as JSON and merged equal one process that saw everything."""
    total = MetricStore(SPECS)
    for observations in observed:
        total.merge(sent(store_of(observations)))
    assert samples(total) == pytest.approx(samples(store_of([o for each in observed for o in each])))


@given(processes)
def test_totals_of_dead_processes_have_no_gauges(observed: list[list[tuple[str, float]]]) -> None:
    """Counters and histograms of a process outlive it, its gauges do not."""
    total = MetricStore(SPECS)
    for observations in observed:
        total.merge(sent(store_of(observations)), gauges=False)
    found = samples(total)
    assert not any(name == "app_open" for name, *_ in found)
    assert sum(v for (name, *_), v in found.items() if name == "app_requests_total") == sum(
        map(len, observed)
    )


def test_a_merge_leaves_the_snapshot_alone() -> None:
    """Counting on after a merge changes neither the snapshot nor its source."""
    source = store_of([("a", 0.5)])
    snapshot = source.snapshot()
    total = MetricStore(SPECS)
    total.merge(snapshot)
    total.merge(snapshot)
    assert samples(total)["app_wait_seconds_count", "a"] == 2
    assert sent(source) == json.loads(json.dumps(snapshot))


def test_a_snapshot_may_come_from_another_version() -> None:
    """Metrics that the receiving process does not know are passed over."""
    total = MetricStore((REQUESTS,))
    total.merge(sent(store_of([("a", 0.5)])))
    assert samples(total) == {("app_requests_total", "a"): 1}


def test_dropped_values_are_gone() -> None:
    """A gauge whose label values come and go can be emptied; the other metrics stay."""
    store = store_of([("a", 0.5)])
    store.drop(OPEN)
    assert "app_open" not in store.snapshot()
    assert samples(store)["app_requests_total", "a"] == 1


@pytest.mark.parametrize("labels", [(), ("a", "b")])
def test_a_wrong_number_of_labels_is_refused(labels: tuple[str, ...]) -> None:
    """A mistake in the code that counts is told at once, not when Prometheus scrapes."""
    with pytest.raises(ValueError, match="app_requests_total takes the labels"):
        MetricStore(SPECS).value(REQUESTS, *labels)


def test_a_value_is_kept_not_copied() -> None:
    """The same labels give the same counter, so that it can be held on to."""
    store = MetricStore(SPECS)
    assert store.value(REQUESTS, "a") is store.value(REQUESTS, "a")
    assert store.histogram(SECONDS, "a") is not store.histogram(SECONDS, "b")


@pytest.mark.parametrize("spec", [*CLIENT_SPECS, *NODE_SPECS], ids=lambda spec: spec.name)
def test_names_follow_the_conventions(spec: Spec) -> None:
    """Prefix, unit and suffix as Prometheus wants them, and a help text that is a sentence."""
    assert re.fullmatch(r"hsm_(client|node)(_[a-z]+)+", spec.name)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    if spec.kind == "histogram":
        assert spec.name.endswith(("_seconds", "_bytes"))
    assert re.fullmatch(r"[A-Z].{10,}\.", spec.help)
    assert all(re.fullmatch(r"[a-z]+", label) and label != "le" for label in spec.labels)


def test_names_are_given_once() -> None:
    """No two metrics have the same name, and every one is in a list that is exported."""
    specs = [value for value in vars(metrics).values() if isinstance(value, Spec)]
    assert sorted(s.name for s in specs) == sorted({s.name for s in (*CLIENT_SPECS, *NODE_SPECS)})


@pytest.mark.parametrize("specs", [CLIENT_SPECS, NODE_SPECS], ids=["client", "node"])
def test_the_exposition_parses(specs: tuple[Spec, ...]) -> None:
    """Prometheus' own parser reads every metric back: kind, help, labels and value."""
    store = MetricStore(specs)
    for spec in specs:
        values = tuple(f'odd "{label}"\n\\' for label in spec.labels)
        if spec.kind == "histogram":
            store.histogram(spec, *values).observe(0.002)
        else:
            store.value(spec, *values).value = 3
    families = {family.name: family for family in text_string_to_metric_families(exposition(store))}
    for spec in specs:
        family = families[spec.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.help)
        found = family.samples[-1]
        assert [found.labels[label] for label in spec.labels] == [f'odd "{n}"\n\\' for n in spec.labels]
        assert found.value == (0.002 if spec.kind == "histogram" else 3)


def test_metrics_without_values_keep_their_help() -> None:
    """A metric is announced before its first value, so that dashboards find it."""
    text = exposition(MetricStore(SPECS))
    for spec in SPECS:
        assert f"# HELP {spec.name} {spec.help}\n# TYPE {spec.name} {spec.kind}" in text


def test_a_scheme_shows_after_its_first_signature() -> None:
    """A node exports no series of zeros for what it was never asked to do."""

    async def signed() -> None:
        store = MetricStore(NODE_SPECS)
        server = NodeServer(SoftwareToken({}), store, print, lambda _uid: True)
        server.update_gauges()
        name = metrics.NODE_SIGN_SECONDS.name
        assert name not in store.snapshot()
        server.signed(SCHEMES["ecdsa_secp256r1_sha256"], 0.001)
        ((labels, _counts),) = store.snapshot()[name]
        assert labels == ("software", "ecdsa_secp256r1_sha256")

    asyncio.run(signed())
