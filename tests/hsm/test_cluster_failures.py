"""The client of a cluster whose nodes refuse, say nothing, or are not there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest

from hsm import errors, keyless
from hsm.client import SignRequest
from hsm.client.dispatch import QUEUE_LIMIT
from hsm.keyless import Message
from hsm.signing import PrivateKey, ski_of
from tests.hsm.scripted import (
    DIGEST,
    SCHEME,
    Peer,
    Script,
    ScriptedNode,
    answering,
    cluster,
    failure,
    in_turn,
    refusing,
    sign,
    signing,
    silent,
)
from tests.support.hsm_support import run


def test_done_is_never_called_before_sign_returns(run_directory: Path, key: PrivateKey) -> None:
    """Also a request that is hopeless from the start is told of later."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], silent) as node,
            cluster([node.options], key) as group,
        ):
            told: asyncio.Queue[SignRequest] = asyncio.Queue()
            request = group.client.sign(
                ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 9, told.put_nowait
            )
            assert told.empty()
            assert await told.get() is request
            assert request.error is not None

    run(main())


def test_the_deadline_is_met_when_no_node_answers(run_directory: Path, key: PrivateKey) -> None:
    """Nodes that take requests and never answer: the request fails at its deadline, not before."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as a,
            ScriptedNode(run_directory / "b", [key], silent) as b,
            cluster([a.options, b.options], key) as group,
        ):
            begun = monotonic()
            error = await failure(group, key, timeout=1.0)
            assert error.reason == "deadline"
            assert monotonic() - begun >= 1.0
            assert len(a.requests) == len(b.requests) == 1  # the second as soon as the first was slow
            assert group.errors("a") == group.errors("b") == {"timeout": 1}

    run(main())


def test_the_remaining_time_is_told(run_directory: Path, key: PrivateKey) -> None:
    """Each attempt carries what is left of the deadline, so that a node can drop late work."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], in_turn(refusing(8), signing(key))) as a,
            ScriptedNode(run_directory / "b", [key], in_turn(refusing(8), signing(key))) as b,
            cluster([a.options, b.options], key) as group,
        ):
            await failure(group, key, timeout=30.0)
            remaining = [message.remaining_ms() for _, message in (*a.requests, *b.requests)]
            assert all(ms is not None and 20_000 < ms <= 30_000 for ms in remaining)

    run(main())


@pytest.mark.parametrize("code", [0x01, 0x03, 0x07, 0x08, 0x0A, 0x0C])
def test_every_error_of_a_node_is_tried_elsewhere(run_directory: Path, key: PrivateKey, code: int) -> None:
    """Whatever a node answers instead of a signature, another one may do better."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], refusing(code)) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            requests = await asyncio.gather(*(sign(group, key) for _ in range(2)))
            assert {request.node for request in requests} == {"b"}
            assert group.errors("a") == {keyless.ERROR_WORDS.get(code, "error_0C"): 1}

    run(main())


def test_when_all_nodes_fail_the_last_reason_is_told(run_directory: Path, key: PrivateKey) -> None:
    """Each node is tried once; the request fails with what the last one said."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], refusing(keyless.ERR_CRYPTO)) as a,
            ScriptedNode(run_directory / "b", [key], refusing(keyless.ERR_CRYPTO)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            error = await failure(group, key)
            assert (error.reason, error.source, error.retryable) == ("crypto_error", "node", True)
            assert len(a.requests) == len(b.requests) == 1

    run(main())


def misplaced(peer: Peer, request: Message) -> None:
    """Answers with a request."""
    peer.write(keyless.encode(request.id, 0x15, DIGEST))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (answering(b""), "bad_signature"),
        (answering(b"\x30\x00"), "bad_signature"),
        (answering(bytes(60_000)), "bad_signature"),
        (misplaced, "protocol"),
        (lambda peer, request: peer.write(keyless.encode(request.id, keyless.OP_PONG)), "bad_signature"),
        (lambda peer, request: peer.write(keyless.encode(request.id, keyless.OP_ERROR)), "protocol"),
        (lambda peer, request: peer.write(keyless.encode(request.id, keyless.OP_ERROR, b"ab")), "protocol"),
    ],
)  # fmt: skip
def test_strange_answers_are_no_signatures(
    run_directory: Path, key: PrivateKey, script: Script, reason: str
) -> None:
    """Nothing but a right signature counts as one; the link lives on."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], in_turn(script, signing(key))) as node,
            cluster([node.options], key) as group,
        ):
            assert (await failure(group, key)).reason == reason
            assert (await sign(group, key)).signature
            assert len(node.peers) == 1

    run(main())


def test_requests_wait_for_the_first_node(run_directory: Path, key: PrivateKey) -> None:
    """What is asked for while no node is connected succeeds when one comes."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        async with cluster([node.options], key, ready=False) as group:
            waiting = [asyncio.create_task(sign(group, key)) for _ in range(5)]
            await group.changes.until(lambda: group.client._dispatcher._waiting.count == 5, look=0.01)
            group.client.update_gauges()
            assert group.store.snapshot()["hsm_client_queued"] == [((), 5)]
            async with node:
                assert {request.node for request in await asyncio.gather(*waiting)} == {"a"}
                group.client.update_gauges()
                assert group.store.snapshot()["hsm_client_queued"] == [((), 0)]

    run(main())


def test_requests_that_wait_in_vain_meet_their_deadline(run_directory: Path, key: PrivateKey) -> None:
    """With no node at all a request fails at its deadline."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        async with cluster([node.options], key, ready=False) as group:
            assert (await failure(group, key, timeout=0.1)).reason == "deadline"

    run(main())


def test_the_queue_has_a_limit(run_directory: Path, key: PrivateKey) -> None:
    """One request more than may wait fails at once; those that wait are not harmed."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        done: list[SignRequest] = []
        async with cluster([node.options], key, ready=False) as group:
            for _ in range(QUEUE_LIMIT):
                group.client.sign(ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 99, done.append)
            assert (await failure(group, key)).reason == "queue_full"
            assert done == []

    run(main())


def test_closing_fails_what_is_under_way(run_directory: Path, key: PrivateKey) -> None:
    """Requests in flight and requests that wait are all told that the client is closed."""

    async def main() -> None:
        done: list[SignRequest] = []
        async with ScriptedNode(run_directory / "a", [key], silent) as a:
            b = ScriptedNode(run_directory / "b", [], silent)
            async with cluster([a.options, b.options], key, ready=False) as group:
                await group.ready("a")
                in_flight = group.client.sign(
                    ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 99, done.append
                )
                waiting = group.client.sign(bytes(20), SCHEME, DIGEST, monotonic() + 99, done.append)
                await a.received(1)
            assert sorted(done, key=id) == sorted([in_flight, waiting], key=id)
            assert [str(r.error) for r in done] == ["the client is closed"] * 2

    run(main())


def test_a_closed_client_refuses(run_directory: Path, key: PrivateKey) -> None:
    """A request made during or after the close fails too; it is not forgotten."""

    async def main() -> None:
        ski = ski_of(key.public_key())
        late: asyncio.Queue[SignRequest] = asyncio.Queue()
        async with ScriptedNode(run_directory / "a", [key], silent) as node:
            async with cluster([node.options], key) as group:

                def again(_request: SignRequest) -> None:
                    group.client.sign(ski, SCHEME, DIGEST, monotonic() + 0.2, late.put_nowait)

                group.client.sign(ski, SCHEME, DIGEST, monotonic() + 99, again)
                await node.received(1)
            assert (await failure(group, key, timeout=0.2)).reason == "no_node"
            assert repr((await late.get()).error) == repr(errors.no_node("the client is closed"))

    run(main())


def test_a_failing_callback_does_no_harm(run_directory: Path, key: PrivateKey) -> None:
    """A bug in one caller's `done` is logged; the others of the same answer have theirs."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as node,
            cluster([node.options], key) as group,
        ):

            def fail(_request: SignRequest) -> None:
                raise LookupError("a bug")

            group.client.sign(ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 9, fail)
            assert (await sign(group, key)).signature
            assert (await group.logged("callback_failed"))["exc_info"]
            assert len(node.peers) == 1

    run(main())


def test_a_disabled_node_gets_no_requests(run_directory: Path, key: PrivateKey) -> None:
    """The operator's wish counts: a disabled node is not asked until it is enabled again."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            group.client.set_enabled("a", False)
            assert [(await sign(group, key)).node for _ in range(3)] == ["b"] * 3
            group.client.set_enabled("a", True)
            again = await asyncio.gather(*(sign(group, key) for _ in range(40)))
            assert {request.node for request in again} == {"a", "b"}

    run(main())
