"""What happens to a cluster while it is loaded: timed events of a scenario, and when they were over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from hsm.config import Duration, Emulation, Section
from loadtest.targets.cluster import BreakableNode, Cluster

_NODE_ACTIONS = frozenset({"kill", "start", "replace", "freeze", "thaw", "emulate", "heal"})


class EventSettings(Section):
    """Something that is done to nodes, or to the proxy, at a time."""

    at: Duration = Field(description="When, counted from the beginning of the load.")
    do: Literal[
        "kill", "start", "replace", "freeze", "thaw", "emulate", "heal", "reload", "rotate_tickets", "upgrade"
    ] = Field(
        description="To nodes: kill (SIGKILL), start, replace (stopped in order, started anew), freeze (SIGSTOP), "
        "thaw, emulate (a fault), heal. To the proxy: reload (new certificates; over when clients get them), "
        "rotate_tickets (no session from before can be resumed), upgrade (to a new process).",
    )
    nodes: list[str] = Field(default_factory=list, description="Names of the nodes that it is done to.")
    emulate: Emulation | None = Field(
        None, description="With `do: emulate`: what the nodes do from then on, such as `{slow_factor: 20}`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.nodes) != (self.do in _NODE_ACTIONS):
            raise ValueError(f"{self.do}: {'nodes is missing' if not self.nodes else 'takes no nodes'}")
        if (self.emulate is not None) != (self.do == "emulate"):
            raise ValueError("emulate: goes with `do: emulate`, and only with that")
        return self

    def __str__(self) -> str:
        fault = self.emulate.model_dump(exclude_unset=True) if self.emulate else {}
        words = [
            self.do.replace("_", " "),
            *self.nodes,
            *(f"{key}={value:g}" for key, value in fault.items()),
        ]
        return " ".join(words)


class Happened(NamedTuple):
    """An event, and when it began and was over, in seconds from the beginning of the load."""

    what: str
    begun: float
    ended: float


def carry_out(events: Sequence[EventSettings], cluster: Cluster, start: float) -> list[Happened]:
    """Do them in their order, on a load that began at `start` (time.monotonic()).

    One that takes its time, such as the start of a node, delays the next. Raises LoadTestError.
    """
    happened = []
    for event in sorted(events, key=lambda event: event.at):
        time.sleep(max(0.0, start + event.at - time.monotonic()))
        begun = time.monotonic() - start
        _do(event, cluster)
        happened.append(Happened(str(event), begun, time.monotonic() - start))
    return happened


def _do(event: EventSettings, cluster: Cluster) -> None:
    if event.do in _TO_PROXY:
        _TO_PROXY[event.do](cluster)
        return
    nodes = [cluster.nodes[name] for name in event.nodes]
    for node in nodes:
        if event.emulate is not None:
            node.emulate(event.emulate)
        else:
            _TO_NODE[event.do](node)
    if event.do == "start":
        for node in nodes:  # all were launched at once: an outage is to last no longer than it says
            node.wait()


_TO_PROXY: Mapping[str, Callable[[Cluster], None]] = {
    "reload": Cluster.reload,
    "rotate_tickets": Cluster.rotate_tickets,
    "upgrade": Cluster.upgrade,
}
_TO_NODE: Mapping[str, Callable[[BreakableNode], None]] = {
    "kill": BreakableNode.kill,
    "start": BreakableNode.launch,
    "replace": BreakableNode.replace,
    "freeze": BreakableNode.freeze,
    "thaw": BreakableNode.thaw,
    "heal": BreakableNode.emulate,
}
