"""Finds the number of HSMs that holds an objective, and what more would buy: pure; `Live` is told what to simulate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.capacity import Objective, RateSearch
from loadtest.generate.records import Record, Summary, summarise
from loadtest.generate.schedule import Phase
from loadtest.plan.profile import HsmProfile
from loadtest.plan.settings import PlanSettings
from loadtest.plan.site import Loss, Site
from loadtest.plan.sizing import Workers, hsms_lost, least_hsms, utilisation, workers_for

WARM_UP = 3.0
"""Seconds in which the clients of the HSMs learn what these can do."""
ARRIVALS, SHORTEST, LONGEST = 10_000, 8.0, 300.0
"""How long what counts takes: as long as so many arrivals, within bounds in seconds."""
IN_FLIGHT = 0.5
"""Seconds before a loss whose arrivals are counted with it: some of them are under way then."""
TRANSIENT = 8.0
"""Seconds after a loss that are told one by one; until then the clients have drawn all their conclusions."""
IDLE = 0.2
"""More HSMs are of no use when these are used so little after the loss: it is not they that are missing."""
MOST = 1000
PRECISION, STEP, BUSY = 0.02, 1.06, 85.0
"""How exactly the highest rate is found, a share; and by how much it is varied in search of that,
beginning where HSMs are so busy, in per cent."""
MORE_RESUMED = 0.1

Live = Callable[[Site, Sequence[Phase], float, Loss | None], Sequence[Record]]
"""What becomes of the arrivals at a site: `site.simulate`, or another in tests."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What a loss does: `seconds` are those right after it, `after` is what it settles to.

    `recovery` is after how many seconds the objective is held again; None if it never is.
    """

    hsms: int
    utilisation: float
    seconds: tuple[Summary, ...]
    after: Summary
    recovery: int | None

    @property
    def worst_p99(self) -> float:
        """Of the worst second after the loss."""
        return max(second.handshake.p99 for second in self.seconds)

    @property
    def failed(self) -> float:
        """Share of the connections of those seconds that failed."""
        return sum(second.failed for second in self.seconds) / max(1, sum(s.arrivals for s in self.seconds))


@dataclass(frozen=True, slots=True)
class Row:
    """So many HSMs, simulated. `met` says whether the objective is held, before a loss and after it."""

    hsms: int
    utilisation: float
    normal: Summary
    lost: Lost | None
    met: bool


@dataclass(frozen=True, slots=True)
class Gain:
    """Connections a second, at most, that hold the objective after the loss, when something is changed."""

    change: str
    connections: float
    none_resumed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: `hsms`, or None when no number of them is enough, and then `why`."""

    hsms: int | None
    why: str
    workers: Workers
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]

    @property
    def row(self) -> Row | None:
        """That of the answer."""
        return next((row for row in self.rows if row.hsms == self.hsms), None)


class Planner:
    """Answers one question. What is simulated takes long, so nothing is simulated twice."""

    def __init__(
        self,
        settings: PlanSettings,
        profile: HsmProfile,
        key: str,
        live: Live,
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._settings = settings
        self._profile = profile
        self._key = key
        self._live = live
        self._progress = progress
        self._objective: Objective = settings.objective.objective
        self._rows: dict[int, Row] = {}

    def plan(self) -> Plan:
        """The fewest HSMs that hold the objective, those around them, and what more would buy."""
        answer, why = self._fewest()
        gains: tuple[Gain, ...] = ()
        if answer is not None:
            for hsms in (answer - 1, answer + 1):
                if self._least <= hsms <= self._most:
                    self._row(hsms)
            gains = tuple(self._gains(answer))
        rows = sorted(self._rows.values(), key=lambda row: row.hsms)
        around = [row for row in rows if answer is None or abs(row.hsms - answer) <= 2]
        return Plan(answer, why, workers_for(self._settings), tuple(around), gains)

    @property
    def _least(self) -> int:
        return least_hsms(self._settings)

    @property
    def _most(self) -> int:
        return self._profile.most or MOST

    def _fewest(self) -> tuple[int | None, str]:
        """Ever more until the objective is held, then halved between."""
        missed = self._least - 1
        hsms = next((n for n in range(self._least, self._most + 1) if self._left(n)[1] < 1), None)
        while hsms is not None and not self._row(hsms).met:
            missed = hsms
            if self._left(hsms)[1] < IDLE:
                return (
                    None,
                    "the HSMs are hardly used then: their own latency, or the workers, miss the objective",
                )
            hsms = min(hsms + max(1, hsms // 10), self._most) if hsms < self._most else None
        if hsms is None:
            return None, f"{self._profile.name} takes at most {self._most} in a cluster: use several clusters"
        while hsms - missed > 1 and self._left(hsms - 1)[1] < 1:
            middle = (hsms + missed) // 2
            if self._left(middle)[1] < 1 and self._row(middle).met:
                hsms = middle
            else:
                missed = middle
        return hsms, ""

    def _left(self, hsms: int) -> tuple[int, float]:
        """How many of them are left after the loss, and how busy these are."""
        left = hsms - hsms_lost(hsms, self._settings.zones, self._settings.survive)
        return left, utilisation(self._settings.load.full, left * self._rate_each(left))

    def _rate_each(self, hsms: int) -> float:
        return self._profile.rate(self._key, hsms) / hsms

    # -- simulated --------------------------------------------------------------------------

    def _row(self, hsms: int) -> Row:
        if hsms not in self._rows:
            self._progress(f"simulating a cluster of {hsms}")
            self._rows[hsms] = self._simulated(hsms)
        return self._rows[hsms]

    def _simulated(self, hsms: int) -> Row:
        settings = self._settings
        begin, stretch = WARM_UP, stretch_for(settings.load.planned)
        loses = settings.survive != "nothing"
        end = begin + stretch
        at, seconds = end + IN_FLIGHT, end + (IN_FLIGHT + TRANSIENT + stretch if loses else 0.0)
        left, _ = self._left(hsms)
        loss = Loss(at, self._rate_each(left), whole_zone=settings.survive == "zone") if loses else None
        site = self._site(settings, hsms, self._rate_each(hsms))
        phases = [Phase(seconds, settings.load.planned)]
        records = self._live(site, phases, settings.load.resumed, loss)
        normal = summarise(records, begin, end)
        lost = self._lost(hsms, records, at, seconds) if loses else None
        met = self._objective.met_by(normal) and (lost is None or self._objective.met_by(lost.after))
        use = utilisation(settings.load.full, hsms * self._rate_each(hsms))
        return Row(hsms, use, normal, lost, met)

    def _lost(self, hsms: int, records: Sequence[Record], at: float, end: float) -> Lost:
        edges = [at - IN_FLIGHT, *(at + second for second in range(1, int(TRANSIENT) + 1))]
        seconds = [summarise(records, *between) for between in pairwise(edges)]
        after = summarise(records, at + TRANSIENT, end)
        bad = [
            number for number, one in enumerate(seconds) if one.arrivals and not self._objective.met_by(one)
        ]
        recovery = (bad[-1] + 1 if bad else 0) if self._objective.met_by(after) else None
        gone = hsms_lost(hsms, self._settings.zones, self._settings.survive)
        return Lost(gone, self._left(hsms)[1], tuple(seconds), after, recovery)

    def _site(self, settings: PlanSettings, hsms: int, rate_each: float) -> Site:
        network, costs = settings.network, settings.worker
        return Site(
            hsms=hsms,
            rate_each=rate_each,
            latency=self._profile.quantiles(),
            parallel=self._profile.parallel,
            zones=settings.zones,
            workers=workers_for(settings).count,
            round_trips=(network.own_zone, network.other_zone),
            costs=(costs.full, costs.resumed),
            options=settings.cluster.options(),
            sign_timeout=settings.cluster.sign_timeout,
        )

    # -- what more would buy ----------------------------------------------------------------

    def _gains(self, hsms: int) -> list[Gain]:
        resumed, zones = self._settings.load.resumed, self._settings.zones
        losing_zone = self._settings.survive == "zone"
        more = ("one more HSM in each zone", hsms + zones) if losing_zone else ("one more HSM", hsms + 1)
        asked = [("as planned", hsms, resumed), (*more, resumed)]
        if resumed <= 1 - MORE_RESUMED - 0.01:
            asked.append((f"{resumed + MORE_RESUMED:.0%} resumed", hsms, resumed + MORE_RESUMED))
        if resumed:
            asked.append(("none resumed, as after lost ticket keys", hsms, 0.0))
        gains: list[Gain] = []
        for change, count, share in asked:
            if count <= self._most and share < 1:
                self._progress(f"searching for the highest rate: {change}")
                rate = self.highest_rate(count, share)
                if not gains:  # that much is held: the answer rests on it
                    rate = max(rate, self._settings.load.planned)
                gains.append(Gain(change, rate, none_resumed=share < resumed))
        return gains

    def highest_rate(self, hsms: int, resumed: float) -> float:
        """Connections a second that hold the objective with what is left after the loss, however many workers."""
        left, _ = self._left(hsms)
        load, rate_each = self._settings.load, self._rate_each(left)
        bound = left * rate_each / (1 - resumed)
        search = RateSearch(BUSY, PRECISION, STEP)  # in per cent of what the HSMs can sign
        while (share := search.next) is not None:
            connections = bound * share / 100
            changed = load.model_copy(update={"connections": connections, "growth": 1.0, "resumed": resumed})
            zones = max(1, self._settings.zones - (self._settings.survive == "zone"))
            settings = self._settings.model_copy(
                update={"load": changed, "zones": zones, "survive": "nothing"}
            )
            seconds = WARM_UP + stretch_for(connections)
            site = self._site(settings, left, rate_each)
            records = self._live(site, [Phase(seconds, connections)], resumed, None)
            search.tell(self._objective.met_by(summarise(records, WARM_UP, seconds)))
        return bound * search.met / 100


def stretch_for(rate: float) -> float:
    """How many seconds are simulated for a figure."""
    return math.ceil(min(max(ARRIVALS / rate, SHORTEST), LONGEST))
