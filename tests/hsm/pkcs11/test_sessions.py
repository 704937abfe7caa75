"""The pool of sessions, with scripted signers instead of a module: each job is answered once, on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic

import pytest

from hsm.node.keys import TokenKey
from hsm.node.mechanisms import RECIPES
from hsm.node.sessions import Job, PoolOptions, SessionPool, is_gathered
from hsm.node.token import Expired, Result
from tests.support.hsm_support import new_key, run

KEY = TokenKey(b"k" * 20, new_key("p256").public_key(), "web", b"", frozenset({0x15}), False, 1, {}, 32)
OPTIONS = PoolOptions(limit=4, stuck_after=60, stuck_sessions=2, keepalive=60, idle_timeout=60, cores=2)


class Script:
    """What all signers of a pool do: sign with `act`, and tell how they were used."""

    def __init__(self, act: Callable[[Job], Result]) -> None:
        self.act = act
        self.opened = 0
        self.closed = 0
        self.probed = threading.Semaphore(0)
        self.settled = 0
        self.spoiled = False

    def make(self) -> Signer:
        """A signer."""
        return Signer(self)


class Signer:
    """One of them."""

    def __init__(self, script: Script) -> None:
        self._script = script

    @property
    def is_spoiled(self) -> bool:
        return self._script.spoiled

    def open(self) -> None:
        self._script.opened += 1

    def sign(self, job: Job) -> Result:
        return self._script.act(job)

    def settle(self) -> None:
        self._script.spoiled = False
        self._script.settled += 1

    def probe(self) -> None:
        self._script.probed.release()

    def close(self) -> None:
        self._script.closed += 1


class Client:
    """Submits jobs and collects their results."""

    def __init__(self, pool: SessionPool) -> None:
        self.pool = pool
        self.results: dict[int, Result] = {}
        self.changed = asyncio.Event()
        self._thread = threading.get_ident()

    def submit(self, number: int, deadline: float = 1e12) -> None:
        """Ask for one."""

        def on_result(result: Result) -> None:
            assert threading.get_ident() == self._thread
            assert number not in self.results, "answered twice"
            self.results[number] = result
            self.changed.set()

        self.pool.submit(Job(KEY, 0x15, RECIPES[0x15], b"%d" % number, deadline, on_result))

    async def answered(self, count: int) -> None:
        """Wait until so many are."""
        while len(self.results) < count:
            self.changed.clear()
            await self.changed.wait()


def test_every_job_is_answered_once() -> None:
    """Two thousand jobs, faster than the loop turns: each result is its own job's."""

    async def main() -> None:
        script = Script(lambda job: b"signed " + job.data)
        pool = SessionPool(script.make, OPTIONS, lambda _lost: None)
        pool.start()
        client = Client(pool)
        for number in range(2000):
            client.submit(number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await client.answered(2000)
        assert client.results == {number: b"signed %d" % number for number in range(2000)}
        assert await pool.close(10)
        assert script.opened == script.closed

    run(main())


def test_expired_jobs_do_not_reach_a_signer() -> None:
    """A job whose time is up when its turn comes is answered, and not signed."""

    async def main() -> None:
        signed: list[bytes] = []

        def act(job: Job) -> Result:
            signed.append(job.data)
            return b"ok"

        pool = SessionPool(Script(act).make, OPTIONS, lambda _lost: None)
        pool.start()
        client = Client(pool)
        client.submit(1, monotonic() - 1)
        client.submit(2)
        await client.answered(2)
        assert isinstance(client.results[1], Expired)
        assert signed == [b"2"]
        assert await pool.close(10)

    run(main())


def test_a_call_that_hangs_is_answered_at_its_deadline() -> None:
    """Its late result goes to nobody; the thread is lost, and counts again when it comes back."""

    async def main() -> None:
        gate = threading.Event()

        def act(job: Job) -> Result:
            if job.data == b"1":
                job.deadline = monotonic() + 0.1
                gate.wait()
            return b"ok"

        options = PoolOptions(
            limit=4, stuck_after=0.05, stuck_sessions=3, keepalive=60, idle_timeout=60, cores=2
        )
        stuck: list[int] = []
        pool = SessionPool(Script(act).make, options, stuck.append)
        pool.start()
        client = Client(pool)
        client.submit(1)
        await client.answered(1)
        assert isinstance(client.results[1], Expired)
        while pool.states()["lost"] != 1:
            await asyncio.sleep(0.005)
        client.submit(2)
        await client.answered(2)
        gate.set()
        while pool.lost:
            await asyncio.sleep(0.005)
        assert stuck == []
        assert await pool.close(10)

    run(main())


def test_too_many_lost_sessions_are_told_once() -> None:
    """The owner learns how many; a pool with a hanging thread does not close."""

    async def main() -> None:
        gate, told = threading.Event(), asyncio.Event()
        lost: list[int] = []

        def act(_job: Job) -> Result:
            gate.wait()
            return b"late"

        def on_stuck(count: int) -> None:
            lost.append(count)
            told.set()

        options = PoolOptions(
            limit=4, stuck_after=0.05, stuck_sessions=2, keepalive=60, idle_timeout=60, cores=2
        )
        pool = SessionPool(Script(act).make, options, on_stuck)
        pool.start()
        client = Client(pool)
        for number in range(4):
            client.submit(number)
        await told.wait()
        for job in list(pool._outstanding):
            job.deadline = monotonic()
        await client.answered(4)
        assert len(lost) == 1
        assert lost[0] >= 2
        assert not await pool.close(0.01)
        gate.set()
        assert await pool.close(10)

    run(main())


def test_the_pool_grows_to_its_limit_and_shrinks() -> None:
    """While four calls wait for the device four sessions are open; idle ones end, but for the first two."""

    async def main() -> None:
        together = threading.Barrier(4)

        def act(_job: Job) -> Result:
            together.wait(20)
            return b"ok"

        options = PoolOptions(
            limit=4, stuck_after=60, stuck_sessions=4, keepalive=0.02, idle_timeout=0.05, cores=2
        )
        script = Script(act)
        pool = SessionPool(script.make, options, lambda _lost: None)
        pool.start()
        client = Client(pool)
        for number in range(8):
            client.submit(number)
        await client.answered(8)
        assert script.opened == 4
        while len(pool.threads) > 2:
            await asyncio.sleep(0.005)
        await asyncio.get_running_loop().run_in_executor(None, script.probed.acquire)
        assert len(pool.threads) == 2
        assert await pool.close(10)
        assert script.closed == 4

    run(main())


ONE = PoolOptions(limit=1, stuck_after=60, stuck_sessions=2, keepalive=60, idle_timeout=60, cores=2)


@pytest.mark.parametrize(
    ("done", "waiting", "seconds", "gathered"),
    [
        (1, 0, 0.0001, False),
        (1, 1, 0.0001, False),
        (1, 2, 0.0001, True),
        (31, 32, 0.0001, True),
        (32, 32, 0.0001, False),
        (1, 1000, 0.005, False),
    ],
)
def test_results_are_gathered_while_more_jobs_wait(
    done: int, waiting: int, seconds: float, gathered: bool
) -> None:
    """Results of quick calls wait for each other; never when nothing else is to come."""
    assert is_gathered(done, waiting, seconds) is gathered


def test_gathered_results_do_not_wait_for_a_call_that_hangs() -> None:
    """One result is ready and jobs wait, but no other result follows: the next tick delivers it."""

    async def main() -> None:
        gate = threading.Event()

        def act(job: Job) -> Result:
            if job.data == b"1":
                gate.wait()
            return b"ok"

        pool = SessionPool(Script(act).make, ONE, lambda _lost: None)
        pool.start()
        client = Client(pool)
        for number in range(8):
            client.submit(number)
        await client.answered(1)
        assert list(client.results) == [0]
        gate.set()
        await client.answered(8)
        assert await pool.close(10)

    run(main())


def test_expired_jobs_among_gathered_ones_are_told_so() -> None:
    """A job whose time is up is not signed, though it is answered together with those that were."""

    async def main() -> None:
        signed: list[bytes] = []

        def act(job: Job) -> Result:
            signed.append(job.data)
            return b"ok"

        pool = SessionPool(Script(act).make, ONE, lambda _lost: None)
        pool.start()
        client = Client(pool)
        for number in range(9):
            client.submit(number, monotonic() - 1 if number % 3 == 0 else 1e12)
        await client.answered(9)
        assert signed == [b"1", b"2", b"4", b"5", b"7", b"8"]
        assert [isinstance(client.results[number], Expired) for number in range(9)] == [
            True,
            False,
            False,
        ] * 3
        assert await pool.close(10)

    run(main())


def test_a_spoiled_session_is_put_in_order_after_the_answer() -> None:
    """The client does not wait for that."""

    async def main() -> None:
        script = Script(lambda _job: b"ok")
        script.spoiled = True
        pool = SessionPool(script.make, OPTIONS, lambda _lost: None)
        pool.start()
        client = Client(pool)
        client.submit(1)
        await client.answered(1)
        assert await pool.close(10)
        assert script.settled == 1

    run(main())


def test_closing_finishes_what_is_queued() -> None:
    """Jobs that were taken before the end are still signed."""

    async def main() -> None:
        pool = SessionPool(Script(lambda _job: b"ok").make, OPTIONS, lambda _lost: None)
        pool.start()
        client = Client(pool)
        for number in range(20):
            client.submit(number)
        assert await pool.close(10)
        await client.answered(20)

    run(main())
