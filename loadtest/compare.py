"""The same load for Offload and for other TLS-terminating proxies, in interleaved rounds.

With the key in memory, as those proxies are made for, and with the key in a token that takes 5 ms
a signature, as an HSM does. A proxy that is not installed is named, never silently left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Record
from loadtest.harness import settle
from loadtest.results import Latency
from loadtest.scenario import Scenario
from loadtest.stats import Ratio, Sample, mean, ratio
from loadtest.targets.agreement import HOST
from loadtest.targets.certificates import Credentials, make_credentials
from loadtest.targets.cluster import LATENCY
from loadtest.targets.lab import Lab, MissingToolError
from loadtest.targets.peers import Nginx, nginx_version, start_peer, start_upstream
from loadtest.targets.peers import Terminator as NginxTerminator
from loadtest.targets.pkcs11 import make_slow_token
from loadtest.targets.proxy import start_node, start_proxy
from loadtest.targets.terminators import STARTERS

OURS = "offload"
SLOW_SHARE = 1 / 3
"""Of the rate, for keys in a slow token: nginx's loop stands still while its engine signs."""
SLOW = f"at {LATENCY * 1000:g} ms a signature"
ENGINE = "nginx with the pkcs11 engine"

Processes = Callable[[], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Side:
    """A proxy that is compared, at a `share` of the rate. `reference` is the side of ours that it is held against."""

    name: str
    port: int
    processes: Processes
    reference: str
    share: float = 1.0
    version: str = ""


@dataclass(frozen=True)
class Compared:
    """What became of one side: CPU of all its processes (nodes included), and what clients saw.

    `cpu_us` is that of a connection, `rounds` the same of each round; `to_ours` is its ratio to that
    of `reference`, the side of ours that it is held against, and None for ours.
    """

    name: str
    version: str
    reference: str
    share: float
    connections: int
    cpu_us: float
    rounds: list[float]
    to_ours: Ratio | None
    handshake: Latency
    failures: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what could not be: a line for each proxy that is missing."""

    sides: list[Compared]
    missing: list[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass
class Measured:
    """All rounds of one side."""

    side: Side
    cpu: list[Sample] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def against(self, reference: Measured) -> Compared:
        """What became of it, beside the side of ours that it is held against: may be itself."""
        completed = [record.handshake for record in self.records if not record.failed]
        failures = Counter(record.outcome for record in self.records if record.failed)
        return Compared(
            name=self.side.name,
            version=self.side.version,
            reference=self.side.reference,
            share=self.side.share,
            connections=len(self.records),
            cpu_us=mean(self.cpu) / 1000,
            rounds=[mean([sample]) / 1000 for sample in self.cpu],
            to_ours=None if reference is self else ratio(self.cpu, reference.cpu),
            handshake=Latency.of(completed),
            failures=dict(failures.most_common()),
        )


def judged(sides: Sequence[Measured], missing: list[str]) -> Comparison:
    """All sides, each held against its reference among them."""
    ours = {one.side.name: one for one in sides}
    return Comparison([one.against(ours[one.side.reference]) for one in sides], missing)


def compare(
    scenario: Scenario, *, factor: float, rounds: int, processes: int, progress: Callable[[str], None]
) -> Comparison:
    """Start every proxy there is, load them in turn, and stop them. Raises LoadTestError."""
    with Lab() as lab:
        sides, missing = _start_all(lab)
        found = [Measured(side) for side in sides]
        for number in range(rounds + 1):
            progress(f"round {number} of {rounds}" if number else "warm-up")
            for measured in found if number % 2 else reversed(found):
                order = scenario.order(HOST, measured.side.port, factor=factor * measured.side.share)
                _round(measured, order, processes)
            if number == 0:
                found = [Measured(side) for side in sides]
    return judged(found, missing)


def _round(measured: Measured, order: Order, processes: int) -> None:
    pids = measured.side.processes()["tree"]
    with Fleet(order, processes) as fleet:
        before = settle(pids)
        fleet.begin()
        records = fleet.wait(order.longest)
    used = settle(pids) - before
    measured.cpu.append(Sample(used, len(records)))
    measured.records += records


def _start_all(lab: Lab) -> tuple[list[Side], list[str]]:
    """The sides that run, and a line for each that can't."""
    missing: list[str] = []
    credentials = make_credentials(lab.directory, "p256")
    upstream = start_upstream(lab)
    sides = _ours(lab, credentials, upstream)

    def attempt(name: str, start: Callable[[], Side]) -> None:
        try:
            sides.append(start())
        except MissingToolError as error:
            missing.append(f"{name}: {error}")

    attempt("nginx", partial(_nginx, lab, credentials, upstream))
    for name in STARTERS:
        attempt(name, partial(_other, lab, name, credentials, upstream))
    attempt(ENGINE, partial(_engine, lab, credentials, upstream))
    return sides, missing


def _ours(lab: Lab, credentials: Credentials, upstream: Nginx) -> list[Side]:
    keys, chains = lab.directory / "keys", {credentials.kind: credentials.chain}
    sides: list[Side] = []
    for name, emulate in ((OURS, ""), (f"{OURS} {SLOW}", f"latency={LATENCY * 1000:g}ms")):
        label = f"offload-{len(sides)}"
        proxy = start_proxy(
            lab, label, chains, upstream.ports[0], [start_node(lab, f"{label}-node", keys, emulate)]
        )
        share = SLOW_SHARE if emulate else 1.0
        sides.append(Side(name, proxy.ports[credentials.kind], proxy.processes, name, share))
    return sides


def _nginx(lab: Lab, credentials: Credentials, upstream: Nginx) -> Side:
    peer = start_peer(lab, "nginx", upstream, [NginxTerminator.in_memory(credentials)])
    return Side("nginx", peer.ports[0], peer.processes, OURS, version=nginx_version())


def _engine(lab: Lab, credentials: Credentials, upstream: Nginx) -> Side:
    token = make_slow_token(lab, "token", credentials, LATENCY)
    terminators = [NginxTerminator.on_token(credentials, token)]
    peer = start_peer(lab, "nginx-engine", upstream, terminators, token.environment)
    return Side(
        f"{ENGINE} {SLOW}", peer.ports[0], peer.processes, f"{OURS} {SLOW}", SLOW_SHARE, nginx_version()
    )


def _other(lab: Lab, name: str, credentials: Credentials, upstream: Nginx) -> Side:
    peer = STARTERS[name](lab, credentials, upstream.ports[0])
    return Side(name, peer.port, peer.processes, OURS, version=peer.version)
