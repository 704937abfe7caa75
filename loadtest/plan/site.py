"""A simulated second life of the proxy: workers with the real cluster client, HSMs of a profile, and what is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from cryptography.hazmat.primitives.asymmetric import ec

from hsm.client import ClusterClient, ClusterOptions, SignRequest
from hsm.client.node import NodeClient
from hsm.client.upkeep import PING_TIMEOUT, SILENCE_WHILE_BUSY
from hsm.signing import SCHEMES
from loadtest import simulation
from loadtest.generate.records import COMPLETED, Record
from loadtest.generate.schedule import Phase, arrival_times, length, poisson
from loadtest.plan.quantiles import Quantiles
from loadtest.simulation import Device, SimulatedKey

SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]
"""Which one is all the same here: the HSM's profile says how long it takes."""
DIGEST = bytes(SCHEME.digest_size)
BEFORE = 0.5
"""The share of a handshake's CPU that a worker spends before it asks for the signature."""
LOST_WITH_PROXY = "proxy_lost"


@dataclass(frozen=True, slots=True)
class Site:
    """What is simulated. Rates are a second, times in seconds.

    HSMs and workers are spread over `zones` in turn. `round_trips` are those to an HSM in a worker's own zone and in
    another, `costs` a worker's CPU for a full handshake and for a resumed one.
    """

    hsms: int
    rate_each: float
    latency: Quantiles
    parallel: int = 0
    zones: int = 1
    workers: int = 1
    round_trips: tuple[float, float] = (0.0, 0.0)
    costs: tuple[float, float] = (0.0, 0.0)
    options: ClusterOptions = field(default_factory=ClusterOptions)
    sign_timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What falls silent `at` seconds after the start, as when power or network fails, and does not come back.

    With a zone its workers are gone too, and new connections come to the others. The HSMs that are left do
    `rate_each` signatures a second from then on.
    """

    at: float
    rate_each: float
    whole_zone: bool = False


def simulate(
    site: Site, phases: Sequence[Phase], resumed: float = 0.0, loss: Loss | None = None, *, seed: int = 1
) -> list[Record]:
    """What became of each arrival; a `resumed` share of them needs no signature. The same seed gives the same."""
    return simulation.run(_Story(site, phases, resumed, random.Random(seed)).tell(loss))


class _Hsm(Device):
    """One HSM of the profile, as a node."""

    def __init__(self, number: int, site: Site, draw: Callable[[], float]) -> None:
        zone = _zone(number, site)
        super().__init__(f"hsm-{number + 1}", servers=site.parallel, rate=site.rate_each, zone=zone)
        self._latency = site.latency
        self._draw = draw
        self.keys = [_key()]

    def service_time(self) -> float:
        """Drawn from the profile's latencies."""
        return self._latency.at(self._draw())


class _Worker:
    """A worker: one core, and its own client of all HSMs."""

    def __init__(self, number: int, site: Site, hsms: Sequence[_Hsm], draw: Callable[[], float]) -> None:
        self.zone = _zone(number, site)
        self._site = site
        self._hsms = {hsm.options.name: hsm for hsm in hsms}
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0
        self._open: dict[float, None] = {}
        self._lost = False
        self.client = ClusterClient(
            [hsm.options for hsm in hsms], site.options, clock=self._loop.time, draw=draw, keep=self._keep
        )
        self.client.add_key(_key())
        self.client.start()

    async def _keep(self, node: NodeClient) -> None:
        hsm = self._hsms[node.name]
        own, other = self._site.round_trips
        hsm.connect(node, own if hsm.options.zone == self.zone else other)

    def resume(self, intended: float, told: Callable[[Record], None]) -> None:
        """A client that brings a ticket."""
        told(_record(intended, self._work(self._site.costs[1]), COMPLETED, resumed=True))

    def accept(self, intended: float, told: Callable[[Record], None]) -> None:
        """A client that needs a signature, unless it is refused at once as the proxy does."""
        if self.client.would_refuse(self._site.sign_timeout):
            told(_record(intended, self._loop.time(), "overloaded"))
            return
        self._open[intended] = None
        self._loop.call_at(self._work(self._site.costs[0] * BEFORE), self._ask, intended, told)

    def _ask(self, intended: float, told: Callable[[Record], None]) -> None:
        deadline = self._loop.time() + self._site.sign_timeout
        self.client.sign(_key().ski, SCHEME, DIGEST, deadline, partial(self._signed, intended, told))

    def _signed(self, intended: float, told: Callable[[Record], None], request: SignRequest) -> None:
        if self._lost:
            return
        del self._open[intended]
        if request.error is not None:
            told(_record(intended, self._loop.time(), f"signature_{request.error.reason}"))
        else:
            told(_record(intended, self._work(self._site.costs[0] * (1 - BEFORE)), COMPLETED))

    def _work(self, seconds: float) -> float:
        """Take the core for so long, after all that came before; when that is done."""
        self._free_at = max(self._loop.time(), self._free_at) + seconds
        return self._free_at

    def lose(self, told: Callable[[Record], None]) -> None:
        """It is gone, with the handshakes that it was at."""
        self._lost = True
        for intended in self._open:
            told(_record(intended, self._loop.time(), LOST_WITH_PROXY))


class _Story:
    """One simulation, from the first arrival to the last end."""

    def __init__(self, site: Site, phases: Sequence[Phase], resumed: float, chance: random.Random) -> None:
        self._site = site
        self._seconds = length(phases)
        self._times = arrival_times(phases, poisson(chance.random))
        self._resumed = resumed
        self._chance = chance
        self._records: list[Record] = []
        self._workers: list[_Worker] = []
        self._awaited = 0
        self._all_came = False
        self._ended = asyncio.Event()

    async def tell(self, loss: Loss | None) -> list[Record]:
        """Live through it."""
        loop, draw = asyncio.get_running_loop(), self._chance.random
        hsms = [_Hsm(number, self._site, draw) for number in range(self._site.hsms)]
        workers = [_Worker(number, self._site, hsms, draw) for number in range(self._site.workers)]
        self._workers = list(workers)
        await asyncio.sleep(0)
        if loss is not None:
            loop.call_at(simulation.START + loss.at, self._lose, loss, hsms)
        self._expect_next()
        await self._ended.wait()
        for worker in workers:
            await worker.client.close()
        return self._records

    def _expect_next(self) -> None:
        at = next(self._times, None)
        if at is None:
            self._all_came = True
            self._end_if_done()
        else:
            asyncio.get_running_loop().call_at(simulation.START + at, self._arrive, simulation.START + at)

    def _arrive(self, at: float) -> None:
        worker = self._workers[int(self._chance.random() * len(self._workers))]
        self._awaited += 1
        if self._chance.random() < self._resumed:
            worker.resume(at, self._told)
        else:
            worker.accept(at, self._told)
        self._expect_next()

    def _told(self, record: Record) -> None:
        self._records.append(record)
        self._awaited -= 1
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._all_came and not self._awaited:
            self._ended.set()

    def _lose(self, loss: Loss, hsms: Sequence[_Hsm]) -> None:
        gone = (
            [hsm for hsm in hsms if hsm.options.zone == hsms[0].options.zone] if loss.whole_zone else hsms[:1]
        )
        for hsm in gone:
            hsm.stop()
            # What `upkeep` does to a link that owes answers, stays silent, and gives no pong.
            asyncio.get_running_loop().call_later(SILENCE_WHILE_BUSY + PING_TIMEOUT, hsm.kill)
        for hsm in hsms:
            hsm.schedule.pace(loss.rate_each)
        if loss.whole_zone:
            for worker in [worker for worker in self._workers if worker.zone == hsms[0].options.zone]:
                self._workers.remove(worker)
                worker.lose(self._told)


def _record(intended: float, ended: float, outcome: str, *, resumed: bool = False) -> Record:
    seconds = ended - intended
    return Record(
        intended=intended - simulation.START,
        lag=0.0,
        handshake=seconds if outcome == COMPLETED else -1,
        total=seconds,
        outcome=outcome,
        resumed=resumed,
    )


def _zone(number: int, site: Site) -> str:
    return f"zone-{number % site.zones + 1}" if site.zones > 1 else ""


@lru_cache(maxsize=1)
def _key() -> SimulatedKey:
    return SimulatedKey(ec.generate_private_key(ec.SECP256R1()).public_key())
