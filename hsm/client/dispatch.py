"""A request's way: to a node, to a second one if the first is slow or fails, or into the queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from hsm import errors
from hsm.client import selection
from hsm.client.budget import Budget
from hsm.client.link import Answer
from hsm.client.node import NodeClient
from hsm.client.options import ClusterOptions
from hsm.client.patience import GIVE_UP_LEAST, Patience, hedge_at
from hsm.client.reporting import ClientMetrics
from hsm.client.request import Attempt, Kind, SignRequest
from hsm.client.roster import Roster
from hsm.client.waiting import DeadlineQueue, Line
from hsm.client.wheel import TimerWheel
from hsm.errors import HSMError
from hsm.signing import KeyType

QUEUE_LIMIT = 10_000
"""Requests that may wait for a node at a time."""
ATTEMPTS_MOST = 5
TURN = 0.005
"""Seconds between two looks at who is due; one timer serves all requests."""
SILENCE_TURNS = 4
"""How many turns pass between two looks for silent nodes."""
PAUSE = 0.05
"""A turn that comes this late was held up in this process: silence meanwhile means nothing."""
PASS_OVER_MOST = 8
"""How many of a line who can't be served are passed over before those behind them wait for the next turn."""
RETRIES_PER_SECOND, RETRY_BURST, HEDGE_BURST = 10.0, 100.0, 20.0


class Dispatcher:
    """All requests under way. What happens next to one is decided here, and nowhere else."""

    def __init__(
        self,
        roster: Roster,
        options: ClusterOptions,
        metrics: ClientMetrics,
        log: Callable[..., object],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        now = clock()
        self._roster = roster
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._draw = draw
        self._active: dict[SignRequest, None] = {}
        self._waiting: DeadlineQueue[SignRequest] = DeadlineQueue()
        self._wheel: TimerWheel[SignRequest] = TimerWheel(TURN, now)
        self._stranded: set[Line] = set()
        """Lines in which requests wait and no node is there at all."""
        self._rates_known_at: dict[Line, float] = {}
        """Nodes that come back after an outage come one by one, and cold: what they do is known only then."""
        self._patience = Patience()
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0
        self._turned_at = now
        self._begun = 0  # requests so far
        self.set_options(options)

    def set_options(self, options: ClusterOptions) -> None:
        """From now on; budgets start anew."""
        now, begun = self._clock(), self._begun
        self._options = options
        self._retries = Budget(options.retry_budget, RETRIES_PER_SECOND, RETRY_BURST, now, begun)
        self._hedges = Budget(options.hedge_budget, 0.0, HEDGE_BURST * bool(options.hedge_budget), now, begun)

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._active)} under way, {self._waiting.count} waiting>"

    @property
    def under_way(self) -> list[SignRequest]:
        """Every request whose `done` is still to be called."""
        return list(self._active)

    @property
    def waiting(self) -> int:
        """How many requests wait for a node with room."""
        return self._waiting.count

    # -- the beginning --------------------------------------------------------------------

    def begin(self, request: SignRequest, now: float) -> None:
        """Send it to a node, let it wait, or refuse it in the loop's next turn."""
        self._active[request] = None
        self._begun += 1
        if self._timer is None:
            self._turned_at = now
            self._timer = asyncio.get_running_loop().call_later(TURN, self._turn)
        node = selection.choose(self._roster.tiers(request.line), (self._draw(), self._draw()))
        if node is not None:
            self._send(request, node, "first", now)
            return
        refusal = self._refusal(request, now)
        if refusal is None:
            self._wait(request, now)
        else:
            self._metrics.refused(refusal.reason)
            asyncio.get_running_loop().call_soon(self.finish, request, refusal)

    def _refusal(self, request: SignRequest, now: float) -> HSMError | None:
        """Why waiting for a node would be of no use, or None."""
        if not self._roster.hopefuls(request.line):
            return errors.no_node("no node holds the key")
        if self._waiting.count >= QUEUE_LIMIT:
            return errors.queue_full(QUEUE_LIMIT)
        if self._is_too_long(request.line, request.deadline, now):
            return errors.overloaded()
        return None

    def _is_too_long(self, line: Line, deadline: float, now: float) -> bool:
        in_flight, rate = self._roster.capacity(line)
        if not rate or now < self._rates_known_at.get(line, now):
            return False
        wait = (self._waiting.ahead(line, deadline) + 1) / rate
        return wait > self._options.max_queue_wait or wait + in_flight / rate > deadline - now

    def would_refuse(self, timeout: float) -> bool:
        """Whether requests made now would be refused because too many wait already."""
        now = self._clock()
        return any(self._is_too_long(line, now + timeout, now) for line in self._waiting.lines)

    def _send(self, request: SignRequest, node: NodeClient, kind: Kind, now: float) -> None:
        attempt = Attempt(self, request, node, kind, now)
        request.asked += 1
        request.node = node.options.name
        request.live.append(attempt)
        scheme, remaining = request.scheme, request.deadline - now
        node.send(attempt, scheme.opcode, request.ski, request.digest, max(0, int(remaining * 1000)))
        patience = self._patience
        pause = patience.usual(scheme.opcode) if kind == "first" else patience.most(scheme.opcode)
        request.slot = self._wheel.add(request, now + min(pause, remaining))

    # -- answers --------------------------------------------------------------------------

    def on_answer(self, attempt: Attempt, answer: Answer) -> None:
        """For Attempt: a node answered, or its link was lost."""
        now = self._clock()
        node, request = attempt.node, attempt.request
        node.answered(attempt, answer, now)
        failure = answer if isinstance(answer, HSMError) else None
        if not isinstance(answer, HSMError):
            seconds = now - attempt.sent
            node.latency.observe(seconds)
            node.limit.observe(seconds, len(node.in_flight), now)
            self._metrics.answered(node.options.name, seconds)
            if request is not None:
                self._patience.observe(request.scheme.opcode, seconds)
                failure = self._accept(request, attempt, answer.payload, now)
        if failure is not None:
            self._roster.failed(node, failure, attempt.ski, now)
            if request is not None:
                self._failed(request, attempt, failure, now)
        if self._waiting.count:
            self.serve_waiting(now)

    def _accept(
        self, request: SignRequest, attempt: Attempt, signature: bytes, now: float
    ) -> HSMError | None:
        """Finish the request with a good signature; a bad one is a failure of the node."""
        node = attempt.node
        if not self._is_good(request, signature):
            return errors.bad_signature(node.name)
        node.signed(request.ski)
        self._roster.succeeded(node, now)
        request.signature, request.node = signature, node.options.name
        if request.asked > 1:
            self._decide_race(request, attempt)
        self.finish(request, None)
        return None

    def _decide_race(self, request: SignRequest, winner: Attempt) -> None:
        for attempt in request.live:
            attempt.could_be_signed = True
        if winner.kind == "hedge":
            self._metrics.hedge_won()
        elif any(attempt.kind == "hedge" for attempt in request.live):
            self._metrics.hedge_wasted()

    def _is_good(self, request: SignRequest, signature: bytes) -> bool:
        verify = self._options.verify
        if verify == "never":
            return bool(signature)
        key = request.key
        if key is None:
            return False  # nothing to verify with: never hand it out
        if verify == "rsa" and key.key_type is not KeyType.RSA:
            return bool(signature)
        return key.verify(request.scheme, request.digest, signature)

    # -- failures -------------------------------------------------------------------------

    def _failed(self, request: SignRequest, attempt: Attempt, failure: HSMError, now: float) -> None:
        """An attempt failed: on to another node, or into the queue, or the end."""
        attempt.request = None
        request.live.remove(attempt)
        # After a lost link the node may come back within the deadline: not counted as failed.
        if failure.reason != "link_lost":
            request.failed += (attempt.node,)
        if request.live:
            return
        self._wheel.remove(request, request.slot)
        others = [node for node in self._roster.hopefuls(request.line) if node not in request.failed]
        if not failure.retryable or not others or request.asked >= ATTEMPTS_MOST:
            self.finish(request, failure)
        elif not self._ask_another(request, "retry", failure.reason, now):
            # No room, or no budget. A lost link's requests may wait for both, a node's errors for room.
            if failure.reason == "link_lost" or self._another(request) is None:
                self._wait(request, now)
            else:
                self.finish(request, failure)

    def _ask_another(self, request: SignRequest, kind: Kind, reason: str, now: float) -> bool:
        """Ask a node that did not fail it and does not work on it; False if none has room, or the budget is spent."""
        node = self._quicker(request, now) if kind == "hedge" else self._another(request)
        if node is None or not (self._hedges if kind == "hedge" else self._retries).spend(now, self._begun):
            return False
        if kind == "retry":
            self._metrics.retried(reason)
        self._wheel.remove(request, request.slot)
        self._send(request, node, kind, now)
        return True

    def _another(self, request: SignRequest) -> NodeClient | None:
        asked = [*request.failed, *(attempt.node for attempt in request.live)]
        ranked = [*self._roster.tiers(request.line), self._roster.last_resort(request.line, asked)]
        return selection.choose(ranked, (self._draw(), self._draw()), asked.__contains__)

    def _quicker(self, request: SignRequest, now: float) -> NodeClient | None:
        """Another node, if it answers sooner, now and as a rule, than this request has waited already."""
        node, age = self._another(request), now - request.live[-1].sent
        return node if node and node.latency.last <= age and node.latency.mean <= age else None

    def rescue(self, node: NodeClient, now: float) -> None:
        """A node fell silent: what waits for it alone is asked elsewhere too."""
        for attempt in list(node.in_flight):
            request = attempt.request
            if request is not None and len(request.live) == 1:
                self._ask_another(request, "retry", "silent", now)

    # -- the queue ------------------------------------------------------------------------

    def _wait(self, request: SignRequest, now: float) -> None:
        request.waits_since = now
        request.place = self._waiting.add(request.line, request.deadline, request)
        if not self._roster.tiers(request.line):
            self._stranded.add(request.line)
        self._wait_until(request, now + self._options.max_queue_wait)

    def _wait_until(self, request: SignRequest, until: float) -> None:
        request.slot = self._wheel.add(request, min(request.deadline, until))

    def nodes_changed(self, now: float) -> None:
        """Some who wait may go on, others need not wait any longer."""
        for line in self._waiting.lines:
            if not self._roster.hopefuls(line):
                for request in self._waiting.of(line):
                    self.finish(request, errors.no_node("no node holds the key"))
            elif not self._roster.tiers(line):
                self._stranded.add(line)
            elif line in self._stranded:
                self._rates_known_at[line] = now + self._options.max_queue_wait
                for request in self._waiting.of(line):
                    self._wheel.remove(request, request.slot)
                    self._wait_until(request, now + self._options.max_queue_wait)
        self._stranded = {line for line in self._stranded if not self._roster.tiers(line)}
        self.serve_waiting(now)

    def serve_waiting(self, now: float) -> None:
        """Send those who wait, as long as there is a node with room for them."""
        passed_over: list[SignRequest] = []
        stuck: Counter[Line] = Counter()

        def can_be_served(line: Line) -> bool:
            return stuck[line] < PASS_OVER_MOST and self._has_room(line)

        while (request := self._waiting.pop(can_be_served)) is not None:
            request.place = None
            node = self._another(request)
            if node is None or (request.asked and not self._retries.spend(now, self._begun)):
                passed_over.append(request)  # only nodes that failed it have room
                stuck[request.line] += 1
                continue
            self._wheel.remove(request, request.slot)
            waited = now - request.waits_since
            request.queued += waited
            self._metrics.waited(waited)
            self._send(request, node, "retry" if request.asked else "first", now)
        for request in passed_over:
            request.place = self._waiting.add(request.line, request.deadline, request)

    def _has_room(self, line: Line) -> bool:
        return any(node.has_room for tier in self._roster.tiers(line) for node in tier)

    # -- time -----------------------------------------------------------------------------

    def _turn(self) -> None:
        now = self._clock()
        for request in self._wheel.due(now):
            self._is_due(request, now)
        self._turns += 1
        held_up = now - self._turned_at > TURN + PAUSE
        self._turned_at = now
        if self._turns % SILENCE_TURNS == 0 and not held_up:
            self._roster.check_silence(now)
        if self._waiting.count:
            self.serve_waiting(now)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TURN, self._turn) if self._active else None

    def _is_due(self, request: SignRequest, now: float) -> None:
        """Its deadline passed, it waited too long in the queue, or its node takes long."""
        if request.done is None:
            return
        if now >= request.deadline:
            for attempt in request.live if not request.is_poison else ():
                self._overdue(attempt, now)
            self.finish(request, errors.deadline_passed(self._why_late(request)))
        elif request.place is not None:
            self._waited_long(request, now)
        else:
            self._is_slow(request, now)

    def _waited_long(self, request: SignRequest, now: float) -> None:
        """In the queue. While no node is there at all, waiting costs nobody anything: till the deadline."""
        if request.line in self._stranded:
            self._wait_until(request, now + self._options.max_queue_wait)
        else:
            self._metrics.refused("queue_timeout")
            self.finish(request, errors.queue_timeout(self._options.max_queue_wait))

    def _is_slow(self, request: SignRequest, now: float) -> None:
        latest, opcode = request.live[-1], request.scheme.opcode
        age, most = now - latest.sent, self._patience.most(opcode)
        again = now + GIVE_UP_LEAST if age >= most else latest.sent + most
        if request.asked == 1 and not self._waiting.count:
            node = latest.node
            due = hedge_at(latest.sent, node.answered_at, node.newest_answered, self._patience.usual(opcode))
            if due <= now and self._ask_another(request, "hedge", "slow", now):
                return
            again = min(again, max(due, now + age / 2))  # half as old again: few looks, however long it takes
        if age >= most and not request.is_poison:
            self._overdue(latest, now)
            if request.asked < ATTEMPTS_MOST and self._ask_another(request, "retry", "timeout", now):
                return
        request.slot = self._wheel.add(request, min(again, request.deadline))

    def _overdue(self, attempt: Attempt, now: float) -> None:
        if not attempt.overdue:
            attempt.overdue = True
            failure = errors.attempt_timed_out(attempt.node.name)
            self._roster.failed(attempt.node, failure, attempt.ski, now)

    def _why_late(self, request: SignRequest) -> str:
        if request.asked or any(node.ready for node in self._roster.nodes):
            return "no signature before the deadline"
        return "no node was connected before the deadline"

    # -- the end --------------------------------------------------------------------------

    def finish(self, request: SignRequest, error: HSMError | None) -> None:
        """Tell the caller, unless he cancelled."""
        done, request.done = request.done, None
        if done is None:
            return
        request.error = error
        self.forget(request)
        try:
            done(request)
        except Exception:  # a bug of one caller must not break the link that brought the answer
            self._log("callback_failed", exc_info=True)

    def forget(self, request: SignRequest) -> None:
        """For SignRequest.cancel: it is no longer under way. Its attempts go on without it."""
        self._active.pop(request, None)
        self._wheel.remove(request, request.slot)
        for attempt in request.live:
            attempt.request = None
        request.live.clear()
        if request.place is not None:
            self._waiting.remove(request.line, request.place)
            request.place = None

    def close(self) -> None:
        """Fail everything under way, and look at nothing any more."""
        for request in self.under_way:
            self.finish(request, errors.no_node("the client is closed"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
