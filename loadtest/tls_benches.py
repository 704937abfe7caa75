"""Benches of Offload beside itself: resumed handshakes, and many certificates."""

from __future__ import annotations

from collections import Counter

from loadtest import procfs
from loadtest.bench import Bench, Servers, progress
from loadtest.figures import Bar, Figure
from loadtest.harness import Options, Round, Side, interleave, run_client, settle
from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import LoadTestError
from loadtest.targets.peers import start_upstream
from loadtest.targets.proxy import Proxy, start_proxy

CONNECTIONS, CONCURRENCY = 800, 16
RESUMED_LEAST = 0.95
CERTIFICATES = 200


def resumption(bench: Bench) -> None:
    """CPU of the worker per connection with one small request: resumed beside full handshakes."""
    p256 = bench.credentials("p256")
    proxy = bench.proxy("proxy", [p256], start_upstream(bench.lab), bench.node("a"))
    port = proxy.ports["p256"]
    bench.probe("offload", port)
    options: Options = {"connections": bench.work(CONNECTIONS), "concurrency": CONCURRENCY}
    found = interleave(
        [
            Side("full", lambda: run_client("handshakes", port, options), proxy.processes),
            Side(
                "resumed", lambda: run_client("handshakes", port, {**options, "resume": 1}), proxy.processes
            ),
        ],
        bench.rounds,
        progress,
    )
    for name, expected in (("full", 0.0), ("resumed", RESUMED_LEAST)):
        share = _resumed(found.rounds[name])
        bench.note(f"{name}: {share:.1%} resumed")
        if share < expected or (not expected and share):
            raise LoadTestError(f"{share:.1%} of the side {name!r} resumed a session")
    bench.add_cpu(
        "connection, P-256, resumed beside full", found, ("resumed", "full"),
        of=Round.per_connection, bar=Bar(0.75),
    )  # fmt: skip


def _resumed(rounds: list[Round]) -> float:
    """The share of connections that resumed a session: the first of a round have none."""
    counts = Counter[str]()
    for entry in rounds:
        counts.update(entry.result.negotiated)
    return sum(n for terms, n in counts.items() if terms.endswith(" resumed")) / counts.total()


def many_certificates(bench: Bench) -> None:
    """A worker with 200 certificates beside one with a single one: memory, and CPU per handshake."""
    p256 = bench.credentials("p256")
    directory = bench.lab.directory / "chains"
    directory.mkdir()
    for number in range(CERTIFICATES - 1):
        make_credentials(bench.lab.directory, "p256", f"host{number}.test", directory)
    (directory / "localhost.crt").symlink_to(p256.chain)
    upstream, node = start_upstream(bench.lab), bench.node("a")
    many = start_proxy(bench.lab, "many", {"p256": directory}, upstream.ports[0], [node])
    one = start_proxy(bench.lab, "one", {"p256": p256.chain}, upstream.ports[0], [node])
    servers: Servers = {"many": (many, many.ports["p256"]), "one": (one, one.ports["p256"])}
    options: Options = {"connections": bench.work(CONNECTIONS), "concurrency": CONCURRENCY}
    found = bench.interleave(servers, "handshakes", options)
    bench.add_cpu(
        "connection, P-256, 200 certificates beside one",
        found,
        ("many", "one"),
        of=Round.per_connection,
        bar=Bar(1.1),
    )
    ours, theirs = (_resident(proxy) / 1e6 for proxy in (many, one))
    bench.note(f"worker memory: {ours:.1f} MB, with one certificate {theirs:.1f} MB")
    ratio = ours / theirs
    bench.report.figures.append(Figure("worker memory, as a multiple", ratio, "times", ratio, bar=Bar(1.1)))


def _resident(proxy: Proxy) -> int:
    workers = proxy.workers()
    settle(workers)
    return sum(procfs.memory(pid).rss for pid in workers)
