"""The nodes of a cluster: which there are, what is thought of each, and who may get what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hsm.client import health, selection
from hsm.client.node import NodeClient
from hsm.client.options import ClusterOptions, NodeOptions
from hsm.client.reporting import ClientMetrics
from hsm.client.waiting import Line
from hsm.errors import HSMError, Source

_LACKING = ("key_not_found", "certificate_not_found")


class Listener(Protocol):
    """Who is told what happens to the nodes."""

    def nodes_changed(self) -> None:
        """One came, went, was judged otherwise, or holds other keys."""

    def node_added(self, node: NodeClient) -> None:
        """One is new: connect to it."""

    def node_silent(self, node: NodeClient, now: float) -> None:
        """One does not answer: its requests had better be asked elsewhere."""


class Roster:
    """The members, their health, and the order in which a key's nodes are asked."""

    def __init__(
        self,
        options: ClusterOptions,
        metrics: ClientMetrics,
        log: Callable[..., object],
        listener: Listener,
        clock: Callable[[], float],
    ) -> None:
        self.nodes: list[NodeClient] = []
        self.options = options
        self._metrics = metrics
        self._log = log
        self._listener = listener
        self._clock = clock
        self._ranked: dict[Line, tuple[list[list[NodeClient]], list[NodeClient]]] = {}
        self._were_ready: set[NodeClient] = set()
        self._disabled: set[str] = set()
        self._ticked_at = clock()

    # -- members --------------------------------------------------------------------------

    def set_nodes(self, wanted: Sequence[NodeOptions]) -> None:
        """The nodes from now on. What is in flight at one that goes may finish there."""
        left = {_identity(node.options): node for node in self.nodes}
        members: list[NodeClient] = []
        for options in wanted:
            node = left.pop(_identity(options), None)
            if node is None:
                node = NodeClient(options, self._on_node_change, self._clock)
                node.enabled = options.entry not in self._disabled
                self._listener.node_added(node)
            else:
                node.change(options)
            members.append(node)
        for node in left.values():
            node.retired = True
        self.nodes = members
        self._on_node_change()

    def set_enabled(self, name: str, enabled: bool) -> None:
        """The operator's wish for an entry's nodes; one that is enabled again starts afresh. Raises KeyError."""
        nodes = [node for node in self.nodes if node.options.entry == name]
        if not nodes:
            raise KeyError(name)
        (self._disabled.discard if enabled else self._disabled.add)(name)
        for node in nodes:
            if enabled and not node.enabled:
                node.forget_judgement()
            node.enabled = enabled
        self._on_node_change()

    def _on_node_change(self) -> None:
        self._ranked.clear()
        for node in self.nodes:
            if node.ready and node not in self._were_ready:
                self._were_ready.add(node)
                self._log("node_ready", node=node.name, keys=None if node.keys is None else len(node.keys))
            elif not node.ready and node in self._were_ready:
                self._were_ready.discard(node)
                self._log("node_lost", node=node.name, error=node.why_not_ready)
                if node.enabled:
                    self._note(node, node.health.failed("link_lost", self._clock(), may_eject=False))
        self._were_ready &= set(self.nodes)
        self._listener.nodes_changed()

    # -- who may get what -----------------------------------------------------------------

    def tiers(self, line: Line) -> list[list[NodeClient]]:
        """The nodes that can sign for a line now, in order of preference; ejected ones if there is no other."""
        usable, ejected = self._rank(line)
        return usable or ([ejected] if ejected else [])

    def last_resort(self, line: Line, asked: Sequence[NodeClient]) -> list[NodeClient]:
        """The ejected nodes, if all others that can sign for a line have been asked."""
        usable, ejected = self._rank(line)
        return ejected if all(node in asked for tier in usable for node in tier) else []

    def _rank(self, line: Line) -> tuple[list[list[NodeClient]], list[NodeClient]]:
        ranked = self._ranked.get(line)
        if ranked is None:
            able = [node for node in self.nodes if node.takes(*line)]
            ranked = self._ranked[line] = selection.tiers(able, self.options.zone)
        return ranked

    def hopefuls(self, line: Line) -> list[NodeClient]:
        """The nodes that can sign for a line now or perhaps later."""
        return [node for node in self.nodes if node.may_take(*line)]

    def capacity(self, line: Line) -> tuple[int, float]:
        """What the line's nodes may have in flight, and the signatures a second that they can do then.

        The rate follows from how long each takes (Little's law); both are 0 if that is not known.
        """
        in_flight, rate = 0, 0.0
        for tier in self.tiers(line):
            for node in tier:
                if node.latency.mean:
                    in_flight += node.limit.value
                    rate += node.limit.value / node.latency.mean
        return in_flight, rate

    # -- what is thought of them ----------------------------------------------------------

    def succeeded(self, node: NodeClient, now: float, *, test: bool = False) -> None:
        """It made a good signature."""
        if node.health.succeeded(now, test=test):
            self._note(node, True)

    def failed(self, node: NodeClient, failure: HSMError, ski: bytes, now: float) -> None:
        """It did not; whether that speaks against its health depends on the failure."""
        self._metrics.failed(node.name, failure.reason)
        if failure.reason in ("link_lost", "expired"):
            # A loss counts once for all that was in flight, when the node is seen to be lost;
            # work that nobody waits for any more is dropped by a busy node, not by a sick one.
            return
        if failure.reason == "bad_signature":
            self._metrics.signed_wrongly(node.name)
            self._log("node_signed_wrongly", node=node.name, ski=ski.hex())
            self._note(node, node.health.signed_wrongly(now, may_eject=self._may_eject()))
        elif failure.reason in _LACKING or (failure.reason == "internal_error" and node.may_lack(ski)):
            node.lacks(ski)
        elif failure.source is Source.NODE and not _is_about_key(failure, node):
            self._note(node, node.health.failed(failure.reason, now, may_eject=self._may_eject()))

    def check_silence(self, now: float) -> None:
        """Find nodes that owe an answer for too long."""
        for node in self.nodes:
            age = node.silence(now)
            if age and node.ready and node.health.is_silent(age, node.latency.mean):
                newly = node.health.silent(age, now, may_eject=self._may_eject())
                self._note(node, newly)
                if newly:
                    self._listener.node_silent(node, now)

    def tick(self, now: float) -> None:
        """Time went by: peaks settle, ejections end, outliers are looked for."""
        elapsed, self._ticked_at = now - self._ticked_at, now
        ready = [node for node in self.nodes if node.ready]
        typical = health.median(node.latency.mean for node in ready)
        for node in self.nodes:
            node.latency.settle(elapsed)
            self._note(node, node.health.tick(now))
            if node in ready and len(ready) > 1:
                self._note(node, node.health.compared(node.latency.mean, typical, now))

    def _may_eject(self) -> bool:
        enabled = [node for node in self.nodes if node.enabled]
        unusable = sum(not node.ready or node.is_ejected for node in enabled)
        return health.may_eject(unusable, len(enabled), self.options.max_ejected)

    def _note(self, node: NodeClient, changed: bool) -> None:
        if not changed:
            return
        judged = node.health
        if judged.is_ejected and judged.state is health.State.EJECTED:
            self._metrics.ejected(node.name, judged.cause)
        self._log(
            "node_" + judged.state.value, node=node.name, **({"cause": judged.cause} if judged.cause else {})
        )
        self._ranked.clear()
        self._listener.nodes_changed()

    def status(self) -> list[dict[str, Any]]:
        """Each node's state, for people."""
        now = self._clock()
        return [node.status(now) for node in self.nodes]


def _is_about_key(failure: HSMError, node: NodeClient) -> bool:
    """Whether a node of ours says by it that the key, not the token, is at fault."""
    return failure.reason == "crypto_error" and node.keys is not None


def _identity(options: NodeOptions) -> object:
    """What makes a node another one: the rest of its options can change while it runs."""
    return options.entry, options.address, options.tls, options.server_name, options.links
