"""Reads the metrics of a proxy of ours before and after load: what it counted, where time went."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtest.targets.lab import LoadTestError

TIMEOUT = 5.0
_TOLD = {"offload_handshake_failures": "the proxy's failures", "hsm_client_": "its cluster client"}
"""The counters that say what the proxy did about a fault or an overload, by how their names begin."""
_SPACES = str.maketrans("{,}", "   ")
_STAGES = {
    "offload_handshake_stage_seconds": "{stage}",
    "offload_handshake_seconds": "whole handshake, {kind}",
}
"""The histograms that say where a handshake's time goes, and what their series are called."""
_SIGNATURES = "offload_signature_seconds"
_OUTSTANDING = "hsm_client_outstanding"
_CPU = "offload_process_cpu_seconds{process="


@dataclass(frozen=True, slots=True)
class Total:
    """A histogram's sum, in seconds, and its count."""

    seconds: float = 0.0
    count: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """Counters by name and labels, such as `hsm_client_errors{node=a,reason=timeout}`; stages by title.

    `nodes` are the waits for signatures, and `outstanding` the requests not answered yet, by node.
    """

    counters: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, Total] = field(default_factory=dict)
    nodes: Mapping[str, Total] = field(default_factory=dict)
    outstanding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """How often a part of handshakes was gone through, and the mean seconds that it took."""

    title: str
    count: int
    mean: float


def metrics(address: str) -> Metrics:
    """What an admin address (`host:port`) says. Raises LoadTestError when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT) as response:
            return parse(response.read().decode())
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{address} gives no metrics: {error}") from error


def parse(text: str) -> Metrics:
    """The counters, without the `_total` that all their names end with, the stages and the nodes."""
    counters: dict[str, float] = {}
    stages: dict[str, Total] = {}
    nodes: dict[str, Total] = {}
    outstanding: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.type == "counter" and sample.name.endswith("_total"):
                counters[_name(sample)] = sample.value
            elif family.type == "histogram" and family.name in _STAGES:
                _add(stages, _STAGES[family.name].format(**sample.labels), sample)
            elif family.name == _SIGNATURES:
                _add(nodes, sample.labels["node"], sample)
            elif family.name == _OUTSTANDING:
                outstanding[sample.labels["node"]] = sample.value
    return Metrics(counters, stages, nodes, outstanding)


def _name(sample: Sample) -> str:
    name = sample.name.removesuffix("_total")
    inside = ",".join(f"{label}={value}" for label, value in sorted(sample.labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def _add(stages: dict[str, Total], title: str, sample: Sample) -> None:
    """Series that differ in other labels (listener, scheme) are added up."""
    so_far = stages.get(title, Total())
    if sample.name.endswith("_sum"):
        stages[title] = Total(so_far.seconds + sample.value, so_far.count)
    elif sample.name.endswith("_count"):
        stages[title] = Total(so_far.seconds, so_far.count + sample.value)


def stages(before: Metrics, after: Metrics) -> list[Stage]:
    """Where the time of handshakes went meanwhile; stages that none went through are left out."""
    return _means(before.stages, after.stages)


def nodes(before: Metrics, after: Metrics) -> list[Stage]:
    """The signatures that each node gave meanwhile, its name as title; those that gave none are left out."""
    return _means(before.nodes, after.nodes)


def cpu(before: Metrics, after: Metrics) -> dict[str, float]:
    """CPU seconds that each of the proxy's processes used meanwhile, by name, the most first."""
    used = growth(before, after, _CPU)
    return {name.removesuffix("}"): seconds for name, seconds in used.items()}


def _means(before: Mapping[str, Total], after: Mapping[str, Total]) -> list[Stage]:
    found = []
    for title, total in after.items():
        earlier = before.get(title, Total())
        count = total.count - earlier.count
        if count > 0:
            found.append(Stage(title, int(count), (total.seconds - earlier.seconds) / count))
    return found


def growth(before: Metrics, after: Metrics, prefix: str) -> dict[str, float]:
    """By how much the counters whose names begin with `prefix` have grown, the most first."""
    grown = {
        name.removeprefix(prefix): value - before.counters.get(name, 0.0)
        for name, value in after.counters.items()
        if name.startswith(prefix) and value > before.counters.get(name, 0.0)
    }
    return dict(sorted(grown.items(), key=lambda entry: -entry[1]))


def told(before: Metrics, after: Metrics) -> list[str]:
    """What the proxy did about faults meanwhile: `its cluster client: 3 retries link_lost`."""
    return [
        f"{title}: {', '.join(f'{value:g} {_words(name)}' for name, value in grown.items())}"
        for prefix, title in _TOLD.items()
        if (grown := growth(before, after, prefix))
    ]


def _words(name: str) -> str:
    """`errors{node=a,reason=timeout}` as `errors a timeout`."""
    return " ".join(re.sub(r"(?<=[{,])\w+=", "", name).translate(_SPACES).split())
