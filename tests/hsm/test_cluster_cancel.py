"""Cancelling a request at each point of its life: `done` is never called and nothing is left."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from time import monotonic

import pytest

from hsm import keyless
from hsm.client import SignRequest
from hsm.signing import PrivateKey, ski_of
from tests.hsm.scripted import DIGEST, SCHEME, Cluster, ScriptedNode, cluster, refusing, signing, silent
from tests.support.hsm_support import run


class Caller:
    """Asks for signatures of one key, and writes down which of its requests were answered."""

    def __init__(self, group: Cluster, key: PrivateKey) -> None:
        self._group = group
        self._ski = ski_of(key.public_key())
        self.done: list[SignRequest] = []

    def sign(self, *, timeout: float = 10.0) -> SignRequest:
        """A request whose `done` writes it down."""
        return self._group.client.sign(self._ski, SCHEME, DIGEST, monotonic() + timeout, self.done.append)

    async def barrier(self) -> None:
        """A request after all the others: when it is done the answers before it have come."""
        request = await self._group.client.sign_async(self._ski, SCHEME, DIGEST, 10.0)
        assert request.signature


def test_cancel_before_it_is_sent(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled in the loop turn in which it was made, before its frame has left."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            caller.sign().cancel()
            await caller.barrier()
            assert caller.done == []
            assert group.is_idle()

    run(main())


def test_cancel_in_flight(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled while a node works on it: the late answer is taken and forgotten."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            request = caller.sign()
            await node.received(1)
            request.cancel()
            assert [n.outstanding for n in group.client.nodes] == [1]  # the node still works on it
            node.release()
            node.script = signing(key)
            await caller.barrier()
            assert caller.done == []
            assert group.is_idle()
            assert len(node.peers) == 1

    run(main())


def test_cancel_when_the_link_breaks(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled in flight, and then the link is lost: it is not sent to another node."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            request = caller.sign()
            await node.received(1)
            request.cancel()
            node.peers[0].close()
            await node.changes.until(lambda: len(node.peers) == 2)
            node.script = signing(key)
            await caller.barrier()
            assert (caller.done, len(node.requests)) == ([], 2)
            assert group.is_idle()

    run(main())


def test_cancel_while_queued(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled while it waits for a node: when one comes, it is not asked."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        async with cluster([node.options], key, ready=False) as group:
            caller = Caller(group, key)
            for request in [caller.sign() for _ in range(3)]:
                request.cancel()
            assert group.is_idle()
            async with node:
                await caller.barrier()
                assert (caller.done, len(node.requests)) == ([], 1)

    run(main())


def test_cancel_between_attempts(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled after one node failed and while the next one works on it."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], refusing(keyless.ERR_INTERNAL)) as a,
            ScriptedNode(run_directory / "b", [key], silent) as b,
            cluster([a.options, b.options], key) as group,
        ):
            caller = Caller(group, key)
            requests = [caller.sign(), caller.sign()]
            await b.received(2)
            for request in requests:
                request.cancel()
            b.release()
            b.script = signing(key)
            await caller.barrier()
            assert caller.done == []
            assert group.is_idle()

    run(main())


def test_cancel_after_it_was_tried_elsewhere(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled when a second node has it because the first was slow: both answers are forgotten."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as a,
            ScriptedNode(run_directory / "b", [key], silent) as b,
            cluster([a.options, b.options], key) as group,
        ):
            caller = Caller(group, key)
            request = caller.sign(timeout=1.2)
            await a.received(1)
            await b.received(1)
            request.cancel()
            a.script = b.script = signing(key)
            a.release()
            b.release()
            await asyncio.gather(*(caller.barrier() for _ in range(4)))
            assert caller.done == []
            assert group.is_idle()

    run(main())


def test_cancel_when_its_failure_is_on_its_way(run_directory: Path, key: PrivateKey) -> None:
    """Cancelled between a hopeless `sign` and the call of `done` that it has scheduled."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            caller.sign().cancel()
            kept = caller.sign()
            await group.changes.until(lambda: bool(caller.done), look=0.01)
            assert caller.done == [kept]
            assert group.is_idle()

    run(main())


def test_cancel_after_it_is_done(run_directory: Path, key: PrivateKey) -> None:
    """Cancelling a finished request, even twice, changes nothing about it."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            request = caller.sign()
            await caller.barrier()
            request.cancel()
            request.cancel()
            assert caller.done == [request]
            assert request.signature is not None
            assert group.is_idle()

    run(main())


def test_cancel_after_the_deadline(run_directory: Path, key: PrivateKey) -> None:
    """A request that has run into its deadline was told so once, and a cancel adds nothing."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            request = caller.sign(timeout=0.05)
            await group.changes.until(lambda: bool(caller.done), look=0.01)
            request.cancel()
            node.release()
            node.script = signing(key)
            await caller.barrier()
            assert caller.done == [request]
            assert request.signature is None
            assert group.is_idle()

    run(main())


def test_cancel_of_another_from_done(run_directory: Path, key: PrivateKey) -> None:
    """One request's `done` cancels another whose answer came in the same piece."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller, ski = Caller(group, key), ski_of(key.public_key())
            others: list[SignRequest] = []

            def cancel_others(_request: SignRequest) -> None:
                for other in others:
                    other.cancel()

            group.client.sign(ski, SCHEME, DIGEST, monotonic() + 9, cancel_others)
            others += [caller.sign(), caller.sign()]
            await node.received(3)
            node.release()
            node.script = signing(key)
            await caller.barrier()
            assert caller.done == []
            assert group.is_idle()

    run(main())


def test_cancel_of_another_that_waits_from_done(
    run_directory: Path, key: PrivateKey, keys: dict[str, PrivateKey]
) -> None:
    """When a node comes, a request that fails cancels one that it could have had: it is not sent."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        async with cluster([node.options], key, ready=False) as group:
            caller, unknown = Caller(group, key), ski_of(keys["p384"].public_key())
            others: list[SignRequest] = []
            group.client.sign(unknown, SCHEME, DIGEST, monotonic() + 9, lambda _: others[0].cancel())
            others.append(caller.sign())
            async with node:
                await caller.barrier()
                assert (caller.done, len(node.requests)) == ([], 1)
                assert group.is_idle()

    run(main())


@pytest.mark.parametrize("waits_for", ["a node", "an answer"])
def test_cancel_of_a_coroutine(run_directory: Path, key: PrivateKey, waits_for: str) -> None:
    """A cancelled task gives its request up, queued or in flight."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], silent)
        async with cluster([node.options], key, ready=False) as group:
            caller = Caller(group, key)
            task = asyncio.create_task(caller.barrier())
            if waits_for == "a node":
                await group.changes.until(lambda: group.client._dispatcher.waiting > 0, look=0.01)
                task.cancel()
                assert isinstance(
                    (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
                )
                assert group.is_idle()
            async with node:
                if waits_for == "an answer":
                    await node.received(1)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    node.release()
                node.script = signing(key)
                await caller.barrier()
                assert group.is_idle()

    run(main())


def test_cancelled_requests_are_freed(run_directory: Path, key: PrivateKey) -> None:
    """Neither the client nor a link keeps a cancelled request, also while its answer is owed."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as node,
            cluster([node.options], key) as group,
        ):
            caller = Caller(group, key)
            requests = [caller.sign() for _ in range(30)]
            await node.received(30)
            for request in requests:
                request.cancel()
            del request
            requests.clear()
            gc.collect()
            assert not [alive for alive in gc.get_objects() if isinstance(alive, SignRequest)]
            assert group.client.nodes[0].outstanding == 30

    run(main())
