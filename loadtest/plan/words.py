"""A plan in sentences: the answer, why, and what is assumed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.plan.profile import HsmProfile
from loadtest.plan.search import Gain, Plan
from loadtest.plan.settings import PlanSettings

LOSSES = {"nothing": "nothing lost", "hsm": "one HSM lost", "zone": "a zone lost"}
LEFT_OUT = (
    "Clients arrive independently of each other; growth has to cover what comes in waves.",
    "An HSM begins signatures at even distances, at most at its rate, in the order in which they came.",
    "An HSM has no other users, and is a node of its own to the proxy.",
    "What is lost falls silent, as when power or network fails, and does not come back.",
    "Times are those inside the proxy: the network to clients, their round trips and web servers are left out.",
    "A worker's CPU is that of a connection with one small request; worker.full and worker.resumed say otherwise.",
    "Left out too: machines lost otherwise than with their zone, slow logins, a library's own retries, backups.",
)
"""What the model takes for granted, whatever is planned."""


def answer(plan: Plan, settings: PlanSettings, profile: HsmProfile, key: str) -> str:
    """The plan in one sentence."""
    goal = f"p99 at most {milliseconds(settings.objective.p99)}, {settings.objective.errors:.2%} errors"
    row, workers = plan.row, plan.workers
    if row is None:
        return f"No number of HSMs ({profile.name}, {key}) holds {_load(settings)} ({goal}): {plan.why}."
    lost = (
        f", and {milliseconds(row.lost.after.handshake.p99)} with {LOSSES[settings.survive]}"
        if row.lost
        else ""
    )
    return (
        f"{_many(row.hsms, 'HSM')} ({profile.name}, {key}) and {_many(workers.count, 'worker')} on "
        f"{_many(workers.machines, 'machine')} hold {_load(settings)}: "
        f"p99 {milliseconds(row.normal.handshake.p99)}{lost} (wanted: {goal})."
    )


def workers(plan: Plan, settings: PlanSettings) -> str:
    """How many, and why."""
    load, costs, found = settings.load, settings.worker, plan.workers
    why = f"{load.full:,.0f} full handshakes at {microseconds(costs.full)}"
    if load.resumed:
        why += f" and {load.planned - load.full:,.0f} resumed ones at {microseconds(costs.resumed)}"
    left = f" ({found.use_left:.0%} with a zone lost)" if found.left < found.count else ""
    return (
        f"Workers: {why} take {found.cores:.2f} cores; {_many(found.count, 'worker')} use {found.use:.0%} of a core "
        f"each{left}, at most {costs.busy:.0%} is wanted; {_many(found.machines, 'machine')} with "
        f"{_many(costs.cores, 'core')}, in {_many(settings.zones, 'zone')}."
    )


def loss(plan: Plan, settings: PlanSettings) -> str:
    """What happens in the seconds after the loss; empty if nothing is to be lost."""
    if plan.row is None or plan.row.lost is None:
        return ""
    lost = plan.row.lost
    many = f" ({_many(lost.hsms, 'HSM')})" if settings.survive == "zone" else ""
    again = "at once" if lost.recovery == 0 else f"after {lost.recovery} s"
    return (
        f"With {LOSSES[settings.survive]}{many}, in the {len(lost.seconds)} s after it: the worst "
        f"second's p99 is {milliseconds(lost.worst_p99)}, {lost.failed:.2%} of the connections fail; the objective is "
        f"held again {again}."
    )


def warnings(plan: Plan, settings: PlanSettings, profile: HsmProfile, key: str) -> Iterator[str]:
    """What the planner should look at twice."""
    known = profile.known(key)
    if plan.hsms is not None and not known[0] <= plan.hsms <= known[-1]:
        told = ", ".join(map(str, known))
        yield f"Nothing is known of the rate of {plan.hsms} HSMs: it is inferred from that of {told}."
    unresumed = next((gain for gain in plan.gains if gain.none_resumed), None)
    if unresumed is not None and unresumed.connections < settings.load.planned:
        yield (
            f"When ticket keys are lost, or all clients are new, {unresumed.connections:,.0f} connections a second are "
            f"held instead of {settings.load.planned:,.0f}; the rest is refused until clients have tickets again."
        )


def assumptions(profile: HsmProfile) -> Iterator[str]:
    """Where figures come from, and what the model leaves out."""
    yield f"Rates: {profile.source}."
    times = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in profile.latency.items())
    yield f"Latency of an idle HSM ({times}): {profile.latency_source}."
    yield from profile.notes
    yield from LEFT_OUT


def gain(one: Gain, base: Gain, settings: PlanSettings) -> tuple[str, str, str]:
    """A line of the table: what is changed, connections a second, and how much that is beside the plan."""
    difference = one.connections / base.connections - 1
    beside = (
        f"{difference:+.0%}"
        if one is not base
        else f"{one.connections / settings.load.planned:.2f} × planned"
    )
    return one.change, f"{one.connections:,.0f}", beside


def milliseconds(seconds: float) -> str:
    """`12.3 ms`."""
    return f"{in_milliseconds(seconds)} ms"


def in_milliseconds(seconds: float) -> str:
    """The same where the unit is told elsewhere: `12.3`."""
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:,.0f}"


def microseconds(seconds: float) -> str:
    """`485 µs`."""
    return f"{seconds * 1e6:,.0f} µs"


def _load(settings: PlanSettings) -> str:
    load = settings.load
    notes = [f"the peak of {load.connections:,.0f} × {load.growth:g}"] if load.growth != 1 else []
    notes += [f"{load.resumed:.0%} of them resumed"] if load.resumed else []
    return f"{load.planned:,.0f} connections a second" + (f" ({', '.join(notes)})" if notes else "")


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
