"""A node as its client sees it: its links, what it holds, how it fares. Kept up by `upkeep`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from hsm.client import selection
from hsm.client.health import NodeHealth
from hsm.client.latency import NodeLatency
from hsm.client.limit import ConcurrencyLimit
from hsm.client.link import MAX_PENDING, Answer, Link
from hsm.client.options import NodeOptions
from hsm.errors import HSMError

if TYPE_CHECKING:
    from hsm.client.request import SignRequest

PASSED_OVER = 0.25
"""Seconds: an answer to a request sent so much later says that the node does not get to the earlier one. Less says
nothing: signatures take unequally long, and of two in flight when a node dies the later one may be answered."""
LACKS_FOR = 30.0
"""Seconds for which a node that can't list its keys is not asked again for one that it lacked."""


class InFlight(Protocol):
    """An attempt or a probe: called with the answer; `sent` is a time of the client's clock.

    `could_be_signed` tells that another node has signed the same.
    """

    sent: float
    request: SignRequest | None
    could_be_signed: bool

    def __call__(self, answer: Answer) -> None:
        """For the link."""


class NodeClient:
    """What is known of a node, and the way to send to it."""

    def __init__(
        self, options: NodeOptions, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        """`on_change` is called when it gets or loses its readiness or keys."""
        self.options = options
        self._clock = clock
        self.enabled = True
        """The operator's wish."""
        self.retired = False
        """No longer part of the cluster: what is in flight may finish."""
        self.keys: dict[bytes, frozenset[int]] | None = None
        """SKI to opcodes; None while unknown, or when the node can't list its keys."""
        self.last_error = "not connected yet"
        self.health = NodeHealth(self._clock())
        self.latency = NodeLatency()
        self.limit = ConcurrencyLimit(self._ceiling())
        self.in_flight: dict[InFlight, None] = {}
        """Unanswered requests, oldest first; given-up ones too: the node works on them."""
        self.answered_at = 0.0
        """When it got on with anything last, on the clock."""
        self.newest_answered = 0.0
        """When the last sent of those requests that it has answered was sent."""
        self.links: list[Link] = []
        self.wants_keys_listed = False
        self._listed = False
        self._lacks: dict[bytes, float] = {}
        self._signed: set[bytes] = set()
        self._on_change = on_change

    def __repr__(self) -> str:
        state = str(self.health.state) if self.ready else f"not ready: {self.last_error}"
        return f"<NodeClient {self.name} {state}, {self.outstanding} outstanding>"

    @property
    def name(self) -> str:
        """Its name in logs and metrics."""
        return self.options.name

    @property
    def zone(self) -> str:
        """Where it stands."""
        return self.options.zone

    @property
    def connected(self) -> bool:
        """A link is open, and the node said what it holds (or that it can't say)."""
        return self._listed and bool(self.links)

    @property
    def ready(self) -> bool:
        """Connected and enabled."""
        return self.connected and self.enabled

    @property
    def outstanding(self) -> int:
        """Requests sent and not answered."""
        return len(self.in_flight)

    def forget_judgement(self) -> None:
        """The operator says that it is well: think nothing of it any more."""
        self.health = NodeHealth(self._clock())
        self.latency = NodeLatency()

    # -- for selection --------------------------------------------------------------------

    @property
    def is_healthy(self) -> bool:
        """Nothing speaks against it."""
        return self.health.is_healthy

    @property
    def is_ejected(self) -> bool:
        """It is to get nothing while any other node can."""
        return self.health.is_ejected

    @property
    def load(self) -> float:
        """What one more request would cost here."""
        return selection.load_of(len(self.in_flight), self.latency.peak, self.options.weight)

    @property
    def has_room(self) -> bool:
        """Whether one more may be in flight."""
        return len(self.in_flight) < self.limit.value

    def takes(self, ski: bytes, opcode: int) -> bool:
        """Whether it can sign with this key now, as far as is known."""
        return self.ready and not self.retired and self._may_hold(ski, opcode)

    def may_take(self, ski: bytes, opcode: int) -> bool:
        """Whether it may sign with this key now or later: perhaps it is only not connected."""
        if not self.enabled or self.retired:
            return False
        return self._may_hold(ski, opcode) if self.connected else True

    def _may_hold(self, ski: bytes, opcode: int) -> bool:
        if self.keys is None:
            return ski not in self._lacks
        return opcode in self.keys.get(ski, ())

    # -- requests -------------------------------------------------------------------------

    def send(self, request: InFlight, opcode: int, ski: bytes, digest: bytes, remaining_ms: int) -> None:
        """Ask for a signature over the link with the fewest pending; it must be `ready`."""
        links = self.links
        link = links[0] if len(links) == 1 else min(links, key=_pending)
        self.in_flight[request] = None
        link.request_signature(opcode, ski, digest, remaining_ms, request)

    def ping(self, request: InFlight) -> None:
        """Ask for a sign of life, as if it were a signature."""
        self.in_flight[request] = None
        self.links[0].ping(request)

    def answered(self, request: InFlight, answer: Answer, now: float) -> None:
        """A request is no longer in flight.

        A lost link, or that a request expired before its turn, does not tell that the node gets on.
        """
        self.in_flight.pop(request, None)
        if isinstance(answer, HSMError) and answer.reason in ("link_lost", "expired"):
            return
        self.answered_at = now
        self.newest_answered = max(self.newest_answered, request.sent)

    def oldest_age(self, now: float) -> float:
        """How long the oldest unanswered request has been waiting, in seconds."""
        for request in self.in_flight:
            return now - request.sent
        return 0.0

    def silence(self, now: float) -> float:
        """How many seconds it has owed an answer without giving any; 0 if it owes none.

        A request that it has passed over does not count: the node answers, it is that request which gets nowhere.
        Unless another node has signed it.
        """
        for request in self.in_flight:
            if request.could_be_signed:
                return now - request.sent
            if not self.has_passed_over(request):
                return now - max(request.sent, self.answered_at)
        return 0.0

    def has_passed_over(self, request: InFlight) -> bool:
        """Whether it has answered what was sent well after this request, which it still owes."""
        return self.newest_answered > request.sent + PASSED_OVER

    def signed(self, ski: bytes) -> None:
        """It made a good signature with this key (noted of nodes that can't list theirs)."""
        if self.keys is None:
            self._signed.add(ski)

    def may_lack(self, ski: bytes) -> bool:
        """Whether an error of it may mean that it has no such key: it can't list its keys."""
        return self.keys is None and ski not in self._signed

    def lacks(self, ski: bytes) -> None:
        """It answered that it has no such key: ask it again what it has."""
        if self.keys is None:
            self._lacks[ski] = self._clock() + LACKS_FOR
            self._signed.discard(ski)
        else:
            self.keys.pop(ski, None)
        self.wants_keys_listed = True
        self._on_change()

    # -- for upkeep -----------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        """A link is ready for use."""
        if link.is_open:
            self.links.append(link)
            self._on_change()

    def unlinked(self, link: Link, reason: str) -> None:
        """A link is gone."""
        if link in self.links:
            self.links.remove(link)
            self.last_error = reason
            self._listed = self._listed and bool(
                self.links
            )  # what it holds may be other things when it is back
            self._on_change()

    def listed(self, keys: dict[bytes, frozenset[int]] | None) -> None:
        """It said what it holds; None if it can't."""
        now = self._clock()
        lacks = {ski: until for ski, until in self._lacks.items() if until > now}
        changed = not self._listed or keys != self.keys or len(lacks) != len(self._lacks)
        self._listed, self.keys, self._lacks = True, keys, lacks
        if changed:
            self._on_change()

    @property
    def why_not_ready(self) -> str:
        """In words; empty while it is ready."""
        if not self.enabled:
            return "disabled by the operator"
        return "" if self.ready else self.last_error

    def status(self, now: float) -> dict[str, Any]:
        """Its state, for people; `since` is how many seconds ago it was entered."""
        judged = self.health
        return {
            "name": self.name,
            "enabled": self.enabled,
            "ready": self.ready,
            "state": judged.state.value,
            **({"cause": judged.cause} if judged.cause else {}),
            "since": round(now - judged.since, 1),
            "zone": self.zone,
            "outstanding": self.outstanding,
            "limit": self.limit.value,
            "latency_ms": round(self.latency.mean * 1000, 3),
            "links": len(self.links),
            "keys": None if self.keys is None else len(self.keys),
            **({} if self.ready else {"error": self.why_not_ready}),
        }

    def change(self, options: NodeOptions) -> None:
        """Other weight, zone, name or capacity; the address stays."""
        self.options = options
        self.limit.set_ceiling(self._ceiling())

    def _ceiling(self) -> int:
        most = MAX_PENDING * self.options.links
        return min(most, self.options.capacity or most)


def _pending(link: Link) -> int:
    return link.outstanding
