"""Offload beside nginx + OpenSSL's pkcs11 engine, on one slow token: handshakes a second and their times.

Both load the same module (`slowtoken.c`) with the same settings before the same SoftHSM2 key, and have one
worker. The module serves any number of calls at a time, to both; nginx makes one at a time, because its event
loop waits inside the call. That is what is compared.
"""

from __future__ import annotations

from statistics import median

from loadtest.bench import Bench, Servers
from loadtest.figures import Bar, compare, table
from loadtest.harness import Comparison, Options
from loadtest.stats import Sample
from loadtest.targets.certificates import Credentials
from loadtest.targets.peers import Nginx, Terminator, start_peer, start_upstream
from loadtest.targets.pkcs11 import make_slow_token
from loadtest.targets.proxy import start_token_node

CLIENTS, SECONDS = 64, 3.0
BARS = {2.0: 3.0, 5.0: 5.0, 20.0: 5.0}
"""At least so many times nginx's handshakes a second, by milliseconds of a signature."""
UNSLOWED_BAR = 0.9
"""At 5 ms, at least this part of our own handshakes a second at 0 ms."""


def slow_signatures(bench: Bench) -> None:
    """Handshakes per second when a signature takes its time: the loop must not wait for it."""
    latencies_ms = bench.latencies_ms
    p256 = bench.credentials("p256")
    upstream = start_upstream(bench.lab)
    servers: Servers = {
        name: side
        for latency in (0.0, *latencies_ms)
        for name, side in _sides(bench, p256, upstream, latency).items()
    }
    options: Options = {"duration": round(SECONDS * bench.scale, 3), "concurrency": CLIENTS}
    found = bench.interleave(servers, "handshakes", options)
    for line in table(_COLUMNS, [_row(found, latency) for latency in latencies_ms]):
        bench.note(line)
    for latency in latencies_ms:
        bar = Bar(BARS[latency], at_most=False) if latency in BARS else None
        _add_rates(bench, found, latency, _peer(latency), bar)
    if 5.0 in latencies_ms:
        _add_rates(bench, found, 5.0, _ours(0.0), Bar(UNSLOWED_BAR, at_most=False))


def _sides(bench: Bench, credentials: Credentials, upstream: Nginx, latency: float) -> Servers:
    """Offload, and nginx if there is any latency, on a token of that latency in milliseconds."""
    name = f"{latency:g}ms"
    token = make_slow_token(bench.lab, f"token-{name}", credentials, latency / 1000)
    node = start_token_node(bench.lab, f"node-{name}", token.node_uri, token.environment)
    proxy = bench.proxy(f"proxy-{name}", [credentials], upstream, node)
    ours: Servers = {_ours(latency): (proxy, proxy.ports[credentials.kind])}
    if not latency:
        return ours
    terminators = [Terminator.on_token(credentials, token)]
    peer = start_peer(bench.lab, f"engine-{name}", upstream, terminators, token.environment)
    return {**ours, _peer(latency): (peer, peer.ports[0])}


def _ours(latency: float) -> str:
    return f"offload at {latency:g} ms"


def _peer(latency: float) -> str:
    return f"nginx + engine at {latency:g} ms"


_COLUMNS = ("signature", "offload", "nginx", "ratio", "offload p50", "nginx p50", "offload p99", "nginx p99")


def _row(found: Comparison, latency: float) -> list[str]:
    """A line of the table: medians over the rounds."""
    both = found.rounds[_ours(latency)], found.rounds[_peer(latency)]
    ours, theirs = (median(entry.rate.amount / entry.rate.per for entry in side) for side in both)
    times = [
        f"{median(getattr(entry.result.handshake, part) for entry in side) * 1e3:,.1f} ms"
        for part in ("p50", "p99")
        for side in both
    ]
    return [f"{latency:g} ms", f"{ours:,.0f}/s", f"{theirs:,.0f}/s", f"{ours / theirs:.1f}", *times]


def _add_rates(bench: Bench, found: Comparison, latency: float, other: str, bar: Bar | None) -> None:
    def rates(side: str) -> list[Sample]:
        return found.samples(side, lambda entry: entry.rate)

    title = f"{latency:g} ms signatures, {CLIENTS} clients, against {other}"
    sides = rates(_ours(latency)), rates(other)
    bench.report.figures.append(compare(title, "handshakes/s", *sides, bar=bar))
