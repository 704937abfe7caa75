"""Reads the metrics of a proxy of ours while it is loaded: what it counted, and how that changed."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from loadtest.lab import LoadTestError

TIMEOUT = 5.0
_SUFFIX = "_total"
_TOLD = ("offload_handshake_failures", "hsm_client_")
"""The counters that say what the proxy did about a fault or an overload."""

Counters = Mapping[str, float]
"""Values by name and labels, such as `hsm_client_errors{node=a,reason=timeout}`."""


def counters(address: str) -> dict[str, float]:
    """All counters at an admin address (`host:port`). Raises LoadTestError when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT) as response:
            return parse_counters(response.read().decode())
    except (OSError, urllib.error.URLError) as error:
        raise LoadTestError(f"{address} gives no metrics: {error}") from error


def parse_counters(text: str) -> dict[str, float]:
    """The counters in a text of metrics, without the `_total` that all their names end with."""
    return {
        _name(sample.name.removesuffix(_SUFFIX), sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        if family.type == "counter"
        for sample in family.samples
        if sample.name.endswith(_SUFFIX)
    }


def _name(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def growth(before: Counters, after: Counters, prefix: str) -> dict[str, float]:
    """By how much the counters whose names begin with `prefix` have grown, the most first."""
    grown = {
        name.removeprefix(prefix): value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith(prefix) and value > before.get(name, 0.0)
    }
    return dict(sorted(grown.items(), key=lambda entry: -entry[1]))


def told(before: Counters, after: Counters) -> list[str]:
    """What the proxy did about faults meanwhile, a line for each kind: `hsm_client_: retries{node=a} 3`."""
    return [
        f"{prefix}: {', '.join(f'{name} {value:g}' for name, value in grown.items())}"
        for prefix in _TOLD
        if (grown := growth(before, after, prefix))
    ]
