"""What every bench needs: a lab, sides to compare, and a report to fill."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.figures import Bar, Report, compare, single
from loadtest.harness import Comparison, Options, Round, Side, interleave, run_client
from loadtest.stats import Sample
from loadtest.targets.agreement import CIPHER, parse_s_client, s_client_command
from loadtest.targets.certificates import Credentials, make_credentials
from loadtest.targets.lab import Lab, LoadTestError, require
from loadtest.targets.peers import Nginx
from loadtest.targets.proxy import Node, Proxy, start_node, start_proxy

MICROSECONDS = 1e-3
"""Scale from nanoseconds."""

LATENCIES_MS = (2.0, 5.0, 20.0)
"""Of a signature, in the bench of slow ones: a fast network HSM, a usual one, a busy one."""


class Measured(Protocol):
    """A server whose processes are measured, by group; each has a group `worker`."""

    def processes(self) -> dict[str, list[int]]: ...


Servers = Mapping[str, tuple[Measured, int]]
"""What is compared: by name, a server and the port to load."""


@dataclass
class Bench:
    """One run: where servers live, how much to do, what was found."""

    lab: Lab
    rounds: int
    scale: float
    report: Report
    latencies_ms: Sequence[float] = LATENCIES_MS

    def work(self, count: int) -> int:
        """So much work a round, scaled."""
        return max(1, round(count * self.scale))

    def credentials(self, kind: str) -> Credentials:
        """A new certificate; its key (`p256`, `rsa2048`) is offered by nodes started after this."""
        return make_credentials(self.lab.directory, kind)

    def node(self, name: str, emulate: str = "") -> Node:
        """A node with every key made so far. Raises LoadTestError."""
        return start_node(self.lab, name, self.lab.directory / "keys", emulate)

    def proxy(
        self, name: str, chains: Sequence[Credentials], upstream: Nginx, node: Node, verify: str = "always"
    ) -> Proxy:
        """Offload with a listener for each certificate, named as its kind. Raises LoadTestError."""
        by_kind = {credentials.kind: credentials.chain for credentials in chains}
        return start_proxy(self.lab, name, by_kind, upstream.ports[0], [node], verify=verify)

    def interleave(self, servers: Servers, mode: str, options: Options) -> Comparison:
        """Run all rounds of the load client, and check that every server agreed on the same.

        Raises LoadTestError.
        """
        for name, (_, port) in servers.items():
            self.probe(name, port)
        work = ", ".join(f"{key} {value}" for key, value in options.items())
        self.note(f"a round: {mode}, {work}")
        comparison = interleave(
            [_side(name, server, port, mode, options) for name, (server, port) in servers.items()],
            self.rounds,
            progress,
        )
        agreed = {
            terms
            for rounds in comparison.rounds.values()
            for entry in rounds
            for terms in entry.result.negotiated
        }
        if len(agreed) != 1:
            raise LoadTestError(f"the sides did not agree on the same: {', '.join(sorted(agreed))}")
        self.note(f"clients negotiated: {agreed.pop()}")
        return comparison

    def note(self, text: str) -> None:
        """Add a line to the report, once."""
        if text not in self.report.notes:
            self.report.notes.append(text)

    def probe(self, name: str, port: int) -> None:
        """Note what a server agrees on with `openssl s_client`, given the same choice as our client.

        Raises LoadTestError when it is not the cipher that all sides must use.
        """
        openssl = require("openssl", "apt-get install openssl")
        try:
            terms = parse_s_client(self.lab.run(s_client_command(openssl, port)))
        except ValueError as error:
            raise LoadTestError(f"{name}: {error}") from error
        if terms.cipher != CIPHER:
            raise LoadTestError(f"{name}: negotiates {terms.cipher} instead of {CIPHER}")
        self.note(f"{name}: {terms}")

    def add_cpu(
        self,
        title: str,
        found: Comparison,
        sides: tuple[str, str],
        *,
        of: Callable[[Round, str], Sample],
        bar: Bar | None = None,
    ) -> None:
        """Figures of `sides` (ours, theirs): CPU of the worker (for the bar) and of the whole tree.

        Where nodes are measured, a third says how much of the tree's they take.
        """

        def samples(side: str, group: str) -> list[Sample]:
            return found.samples(side, lambda entry: of(entry, group))

        ours, theirs = sides
        add = self.report.figures.append
        for group, name, goal in (("worker", "worker CPU", bar), ("tree", "CPU of the whole tree", None)):
            both = samples(ours, group), samples(theirs, group)
            add(compare(f"{title}: {name}", "µs", *both, scale=MICROSECONDS, bar=goal))
        if all("node" in entry.cpu for entry in found.rounds[ours]):
            add(single(f"{title}: of that, nodes", "µs", samples(ours, "node"), scale=MICROSECONDS))


def _side(name: str, server: Measured, port: int, mode: str, options: Options) -> Side:
    return Side(name, lambda: run_client(mode, port, options), server.processes)


def progress(line: str) -> None:
    """Say what goes on, apart from the report."""
    print(line, file=sys.stderr, flush=True)
