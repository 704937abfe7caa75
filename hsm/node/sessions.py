"""A pool of PKCS#11 sessions, each with a thread of its own; the event loop hands out work.

The loop appends jobs to one queue and wakes an idle thread if there is one; threads take from the queue
as long as there is work, and put results into another queue, which the loop empties: one wake-up of the
loop delivers all that is done by then. Answers are given on the loop only, each once: a job whose time
is up is answered there even while its call hangs in the module.

A C call can't be interrupted. A thread whose call lasts longer than `stuck_after` counts as lost; the
pool goes on with the others until too many are (`on_stuck`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Protocol

from hsm.node import growth
from hsm.node.keys import TokenKey
from hsm.node.mechanisms import Recipe
from hsm.node.token import Expired, OnResult, Result

TICK = 0.01
"""Seconds between looks at growth, deadlines, stuck calls and gathered results, while there is work."""
_SAMPLE_EVERY = 16
GATHER_CALL = 0.002
"""Seconds: results of slower calls are handed over at once."""


class Job:
    """One signature to make. `deadline` is a time.monotonic() time; `on_result` None once answered."""

    __slots__ = ("data", "deadline", "key", "on_result", "opcode", "recipe", "seconds")

    def __init__(
        self, key: TokenKey, opcode: int, recipe: Recipe, data: bytes, deadline: float, on_result: OnResult
    ) -> None:
        self.key = key
        self.opcode = opcode
        self.recipe = recipe
        self.data = data
        self.deadline = deadline
        self.on_result: OnResult | None = on_result
        self.seconds = 0.0
        """Time in the module."""


class Signer(Protocol):
    """What a thread signs with: a session and its recovery (`hsm.node.ladder`)."""

    def open(self) -> None:
        """Open the session; raises nothing that is not a bug: a signer may open later."""

    def sign(self, job: Job) -> Result:
        """Make the signature, or say what went wrong."""

    @property
    def is_spoiled(self) -> bool:
        """Whether `settle` has something to do, now that the job is answered."""

    def settle(self) -> None:
        """Put the session in order again."""

    def probe(self) -> None:
        """Use the session a little, so that nothing on the way forgets it."""

    def close(self) -> None:
        """Close the session."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Times in seconds."""

    limit: int
    stuck_after: float
    stuck_sessions: int
    keepalive: float
    idle_timeout: float
    cores: int


def is_gathered(done: int, waiting: int, seconds: float) -> bool:
    """Whether a result stays with others that are done, while jobs wait: its own call took `seconds`.

    A wake-up of the loop costs more than a P-256 signature in software: its caches are cold, and it takes
    the interpreter's lock from the sessions. What a result waits for is less than what the jobs behind it
    wait for anyway, and at most a TICK.
    """
    return done < waiting and seconds < GATHER_CALL


class SessionThread(threading.Thread):
    """One session's thread. `since` tells the loop since when it is in the module (0.0: it is not)."""

    def __init__(self, pool: SessionPool, signer: Signer, number: int) -> None:
        # A daemon: the process must be able to end while the module does not return.
        super().__init__(name=f"session-{number}", daemon=True)
        self.wake = threading.Lock()
        self.wake.acquire()
        self.since = 0.0
        self.lost_since = 0.0
        self.is_open = False
        self._pool = pool
        self._signer = signer

    def run(self) -> None:
        """Open the session, then work until told to end."""
        pool, signer = self._pool, self._signer
        self.since = monotonic()
        signer.open()
        self.since = 0.0
        self.is_open = True
        take, count = pool.jobs.popleft, 0
        while True:
            try:
                job = take()
            except IndexError:
                if self._wait():
                    continue
                break
            started = monotonic()
            if job.deadline < started:
                pool.deliver(job, Expired())
                continue
            self.since = started
            count += 1
            if count % _SAMPLE_EVERY == 1:
                cpu = thread_time()
                result = signer.sign(job)
                pool.workload.add(monotonic() - started, thread_time() - cpu)
            else:
                result = signer.sign(job)
            job.seconds = monotonic() - started
            pool.deliver(job, result)
            if signer.is_spoiled:
                signer.settle()
            self.since = 0.0
        signer.close()
        pool.ended(self)

    def _wait(self) -> bool:
        """Sleep until there is work; False to end."""
        pool, idle_since = self._pool, monotonic()
        while not pool.closing:
            pool.idle.append(self)
            if pool.jobs or pool.closing:  # came between: go and take it, unless somebody woke us already
                if not self._leave_idle():
                    self.wake.acquire()
                return True
            if self.wake.acquire(timeout=pool.options.keepalive):
                return True
            if not self._leave_idle():
                self.wake.acquire()
                return True
            if monotonic() - idle_since >= pool.options.idle_timeout and pool.may_end(self):
                return False
            self.since = monotonic()
            self._signer.probe()
            self.since = 0.0
        return False

    def _leave_idle(self) -> bool:
        """Whether it was still in the list: whoever takes it out of there wakes it."""
        try:
            self._pool.idle.remove(self)
        except ValueError:
            return False
        return True


class SessionPool:
    """The threads, the queue before them and the one behind. Made and used on the loop's thread."""

    def __init__(
        self,
        make_signer: Callable[[], Signer],
        options: PoolOptions,
        on_stuck: Callable[[int], None],
        on_signed: Callable[[Job, Result], None] = lambda _job, _result: None,
    ) -> None:
        """`on_stuck(lost)` is called once, on the loop; `on_signed` for every result that comes back."""
        self.jobs: deque[Job] = deque()
        self.idle: list[SessionThread] = []
        self.threads: list[SessionThread] = []
        self.workload = growth.Workload()
        self.options = options
        self.closing = False
        self._make_signer = make_signer
        self._on_stuck = on_stuck
        self._on_signed = on_signed
        self._done: deque[tuple[Job, Result]] = deque()
        self._signalled = False
        self._ending = threading.Lock()
        self._numbers = 0
        self._stuck = False
        self._timer: asyncio.TimerHandle | None = None
        self._outstanding: set[Job] = set()
        self._some_ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Open the first sessions."""
        for _ in range(min(growth.FIRST, self.options.limit)):
            self._open()

    @property
    def lost(self) -> int:
        """Threads whose call does not return."""
        return sum(thread.lost_since > 0 for thread in self.threads)

    def states(self) -> dict[str, int]:
        """How many sessions are busy, idle and lost."""
        lost, idle = self.lost, len(self.idle)
        return {"busy": max(0, len(self.threads) - idle - lost), "idle": idle, "lost": lost}

    def submit(self, job: Job) -> None:
        """Queue a job. Its `on_result` is called later, on the loop."""
        self._outstanding.add(job)
        self.jobs.append(job)
        with contextlib.suppress(IndexError):  # all are busy: one of them will take it
            self.idle.pop().wake.release()
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)

    async def close(self, timeout: float) -> bool:
        """End the threads; False if some are still in the module after `timeout` seconds."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        while self.idle:
            with contextlib.suppress(IndexError):
                self.idle.pop().wake.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.threads:
                    await self._some_ended.wait()
                    self._some_ended.clear()
        return not self.threads

    # On the threads

    def deliver(self, job: Job, result: Result) -> None:
        """Hand a result to the loop, at once or together with those that follow."""
        self._done.append((job, result))
        if self._signalled or is_gathered(len(self._done), len(self.jobs), job.seconds):
            return
        self._signalled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._drain)

    def may_end(self, thread: SessionThread) -> bool:
        """Whether an idle thread's session can be given back; it is out of the count if so."""
        with self._ending:
            if len(self.threads) <= growth.FIRST:
                return False
            self.threads.remove(thread)
            return True

    def ended(self, thread: SessionThread) -> None:
        """A thread is about to end."""
        with self._ending, contextlib.suppress(ValueError):
            self.threads.remove(thread)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._some_ended.set)

    # On the loop

    def _open(self) -> None:
        self._numbers += 1
        thread = SessionThread(self, self._make_signer(), self._numbers)
        with self._ending:
            self.threads.append(thread)
        thread.start()

    def _drain(self) -> None:
        self._signalled = False  # before the queue is empty: what comes later signals again
        take = self._done.popleft
        while True:
            try:
                job, result = take()
            except IndexError:
                return
            self._on_signed(job, result)
            self._answer(job, result)

    def _answer(self, job: Job, result: Result) -> None:
        on_result, job.on_result = job.on_result, None
        if on_result is not None:
            self._outstanding.discard(job)
            on_result(result)

    def _tick(self) -> None:
        now = monotonic()
        self._drain()  # what was to come with a result that does not come
        self._look_for_stuck(now)
        expired = [job for job in self._outstanding if job.deadline < now]
        for job in expired:
            self._answer(job, Expired())
        self._grow()
        self._timer = self._loop.call_later(TICK, self._tick) if self._outstanding or self.lost else None

    def _look_for_stuck(self, now: float) -> None:
        for thread in self.threads:
            since = thread.since
            if thread.lost_since and thread.lost_since != since:
                thread.lost_since = 0.0  # it came back after all
            elif since and not thread.lost_since and now - since > self.options.stuck_after:
                thread.lost_since = since
        lost = self.lost
        if lost >= min(self.options.stuck_sessions, self.options.limit) and not self._stuck:
            self._stuck = True
            self._on_stuck(lost)

    def _grow(self) -> None:
        sessions = len(self.threads)
        wanted = growth.sessions_to_open(
            waiting=len(self.jobs),
            sessions=sessions,
            opening=sum(not (thread.is_open or thread.lost_since) for thread in self.threads),
            limit=self.options.limit,
            computes=self.workload.computes,
            cores=self.options.cores,
        )
        for _ in range(wanted):
            self._open()
