"""How requests are counted, and that nobody can make ever new label values."""

from __future__ import annotations

from hsm.metrics import MetricStore
from offload import metrics as m
from offload.http.metrics import HttpMetrics


def test_counts() -> None:
    """By listener, route, method and code."""
    store = MetricStore(m.WORKER_SPECS)
    metrics = HttpMetrics(store, "web")
    route = metrics.route("api")
    for status in (200, 200, 404):
        route.done(b"GET", status, 0.01)
    metrics.failed("host")
    metrics.failed("host")
    assert store.value(m.HTTP_REQUESTS, "web", "api", "GET", "200").value == 2
    assert store.value(m.HTTP_REQUESTS, "web", "api", "GET", "404").value == 1
    assert store.value(m.HTTP_ERRORS, "web", "host").value == 2
    assert sum(store.histogram(m.HTTP_SECONDS, "web", "api").counts) == 3


def test_label_values_are_bounded() -> None:
    """Whatever methods clients invent, and whatever codes web servers do."""
    store = MetricStore(m.WORKER_SPECS)
    route = HttpMetrics(store, "web").route("api")
    for index in range(2000):
        route.done(b"M%d" % index, 200, 0.0)
        route.done(b"GET", index + 600, 0.0)
    route.done(b"GET", 0, 0.0)
    rows = store.snapshot()[m.HTTP_REQUESTS.name]
    assert {tuple(labels): count for labels, count in rows} == {
        ("web", "api", "other", "200"): 2000,
        ("web", "api", "GET", "000"): 2001,
    }
