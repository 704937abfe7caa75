"""How fast a node signs: `hsm bench`."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from hsm.client import ClusterClient, SignRequest
from hsm.connect import SIGN_TIMEOUT
from hsm.errors import ConfigurationError
from hsm.signing import SCHEME_BY_OPCODE, SCHEMES, SignatureScheme, scheme_names

TOLD = (0, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
"""Percentiles that `as_json` tells."""


@dataclass
class BenchResult:
    """Signatures made, and the time each took in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Signatures a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """The latency that `share` (0 to 1) of the signatures did not exceed, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def as_json(self) -> dict[str, Any]:
        """As JSON types; times in seconds."""
        return {
            "seconds": self.seconds,
            "signatures": len(self.latencies),
            "rate": self.rate,
            "errors": dict(self.errors),
            "latency": {f"p{percent:g}": self.percentile(percent / 100) for percent in TOLD},
        }


def choose(cluster: ClusterClient, ski: str | None, scheme: str | None) -> tuple[bytes, SignatureScheme]:
    """The key and scheme to sign with. Raises ConfigurationError naming what there is."""
    keys = cluster.nodes[0].keys
    if keys is None and ski is None:
        raise ConfigurationError("this node can't list its keys; name one with --ski")
    try:
        chosen = bytes.fromhex(ski) if ski else next(iter(keys or {}))
    except (ValueError, StopIteration) as error:
        raise ConfigurationError(f"--ski: {ski!r} is not 40 hex digits, or the node has no key") from error
    if keys is not None and chosen not in keys:
        raise ConfigurationError(f"--ski: the node has no key {chosen.hex()}; see `hsm keys`")
    able = sorted(keys[chosen]) if keys is not None else sorted(SCHEME_BY_OPCODE)
    if scheme is None:
        return chosen, SCHEME_BY_OPCODE[able[-1] if len(able) > 3 else able[0]]
    if scheme not in SCHEMES or SCHEMES[scheme].opcode not in able:
        raise ConfigurationError(
            f"--scheme: key {chosen.hex()} can't do {scheme!r}; it can do {scheme_names(able)}"
        )
    return chosen, SCHEMES[scheme]


async def run_bench(
    cluster: ClusterClient, ski: bytes, scheme: SignatureScheme, concurrency: int, duration: float
) -> BenchResult:
    """Keep `concurrency` requests in flight for `duration` seconds."""
    result = BenchResult()
    started = monotonic()
    until = started + duration
    running = concurrency
    ended = asyncio.Event()

    def one_more() -> None:
        nonlocal running
        now = monotonic()
        if now < until:
            cluster.sign(ski, scheme, os.urandom(scheme.digest_size), now + SIGN_TIMEOUT, done)
            return
        running -= 1
        if running == 0:
            ended.set()

    def done(request: SignRequest) -> None:
        if request.error is None:
            result.latencies.append(monotonic() - request.started)
        else:
            result.errors[request.error.reason] += 1
        one_more()

    for _ in range(concurrency):
        one_more()
    await ended.wait()
    result.seconds = monotonic() - started
    return result
