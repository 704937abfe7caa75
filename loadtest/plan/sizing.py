"""The arithmetic of a plan: how much CPU, how many workers, how much of an HSM. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loadtest.plan.settings import Load, PlanSettings, WorkerCosts

Survive = Literal["nothing", "hsm", "zone"]


@dataclass(frozen=True, slots=True)
class Workers:
    """How many worker processes there are to be.

    `cores` is the CPU that the load takes, in cores; `left` how many workers are there when what may be lost is lost.
    """

    count: int
    left: int
    cores: float
    machines: int

    @property
    def use(self) -> float:
        """The share of a core that each uses on average, all there."""
        return utilisation(self.cores, self.count)

    @property
    def use_left(self) -> float:
        """The same after the loss."""
        return utilisation(self.cores, self.left)


def workers_for(settings: PlanSettings) -> Workers:
    """So many that none is busier than it may be, in each zone as many, also when a zone is lost."""
    cores = cpu_cores(settings.load, settings.worker)
    zones_left = settings.zones - 1 if settings.survive == "zone" else settings.zones
    per_zone = math.ceil(cores / settings.worker.busy / zones_left)
    machines = settings.zones * math.ceil(per_zone / settings.worker.cores)
    return Workers(per_zone * settings.zones, per_zone * zones_left, cores, machines)


def cpu_cores(load: Load, costs: WorkerCosts) -> float:
    """CPU seconds a second that all connections take in workers."""
    return load.full * costs.full + (load.planned - load.full) * costs.resumed


def hsms_lost(hsms: int, zones: int, survive: Survive) -> int:
    """How many of them are gone at once, at worst: spread over zones in turn, the first zones have one more."""
    if survive == "nothing":
        return 0
    return 1 if survive == "hsm" else math.ceil(hsms / zones)


def least_hsms(settings: PlanSettings) -> int:
    """So few that something is left when what may be lost is lost."""
    return {"nothing": 1, "hsm": 2, "zone": settings.zones}[settings.survive]


def utilisation(wanted: float, capacity: float) -> float:
    """How busy HSMs or workers are: what is asked for, of what they can do; above 1 is overload."""
    return wanted / capacity if capacity else math.inf
