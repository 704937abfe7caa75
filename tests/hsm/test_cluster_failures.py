"""The client of a cluster whose nodes answer what a test wants: refusals, nonsense, nothing."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from time import monotonic

import pytest

from hsm import errors, keyless
from hsm.client import SignRequest
from hsm.client import node as node_module
from hsm.client.cluster import QUEUE_LIMIT
from hsm.errors import HSMError
from hsm.keyless import Message
from hsm.signing import SCHEMES, PrivateKey, VerificationKey, ski_of
from tests.hsm.scripted import (
    Cluster,
    Peer,
    Script,
    ScriptedNode,
    answering,
    cluster,
    in_turn,
    refusing,
    signing,
    silent,
)
from tests.support.hsm_support import run

SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]
DIGEST = hashlib.sha256(b"what a handshake signs").digest()


@pytest.fixture
def key(keys: dict[str, PrivateKey]) -> PrivateKey:
    """The P-256 key."""
    return keys["p256"]


async def sign(group: Cluster, key: PrivateKey, *, timeout: float = 10.0) -> SignRequest:
    """One P-256 signature. Raises HSMError."""
    return await group.client.sign_async(ski_of(key.public_key()), SCHEME, DIGEST, timeout)


async def failure(group: Cluster, key: PrivateKey, *, timeout: float = 10.0) -> HSMError:
    """Why one P-256 signature can't be had."""
    with pytest.raises(HSMError) as caught:
        await sign(group, key, timeout=timeout)
    return caught.value


@pytest.mark.parametrize("code", [keyless.ERR_BAD_OPCODE, keyless.ERR_INTERNAL])
def test_a_foreign_keyless_server_is_used(run_directory: Path, key: PrivateKey, code: int) -> None:
    """A server that can't list its keys (it answers 05 or 08) is asked for signatures nevertheless."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], signing(key), lists=refusing(code)) as node,
            cluster([node.options], key) as group,
        ):
            assert group.client.holders(ski_of(key.public_key())) == ["a"]
            assert group.client.status()[0]["keys"] is None
            assert (await sign(group, key)).node == "a"

    run(main())


def test_a_node_that_refuses_to_list_its_keys_is_not_used(run_directory: Path, key: PrivateKey) -> None:
    """Another error than "I don't know that" is a fault of the node; the status tells it."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], signing(key), lists=refusing(0x03)) as node,
            cluster([node.options], key, ready=False) as group,
        ):
            await node.changes.until(lambda: len(node.listed) >= 2)
            assert group.client.status()[0]["error"] == "node a answered: read error"
            assert (await failure(group, key, timeout=0.1)).reason == "deadline"

    run(main())


def test_key_not_found_moves_on(run_directory: Path, key: PrivateKey) -> None:
    """A node that lists a key and then does not have it: another signs, and it is asked for its list again."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], refusing(keyless.ERR_KEY_NOT_FOUND)) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            requests = await asyncio.gather(*(sign(group, key) for _ in range(4)))
            assert {request.node for request in requests} == {"b"}
            assert group.errors("a") == {"key_not_found": 2}
            assert group.client.holders(ski_of(key.public_key())) == ["b"]
            await a.changes.until(lambda: len(a.listed) == 2)

    run(main())


def test_a_key_that_a_foreign_server_lacks_is_not_asked_of_it_again(
    run_directory: Path, key: PrivateKey
) -> None:
    """Of a server that can't list its keys, "key not found" is remembered for a while."""

    async def main() -> None:
        lacking = refusing(keyless.ERR_KEY_NOT_FOUND)
        foreign = refusing(keyless.ERR_BAD_OPCODE)
        async with (
            ScriptedNode(run_directory / "a", [], lacking, lists=foreign) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            for _ in range(6):
                assert (await sign(group, key)).node == "b"
            assert len(a.requests) == 1
            group.client.set_enabled("b", False)
            assert (await failure(group, key)).reason == "no_node"

    run(main())


def test_a_key_that_no_node_holds_fails_at_once(
    run_directory: Path, key: PrivateKey, keys: dict[str, PrivateKey]
) -> None:
    """When every node has listed its keys there is nothing to wait for."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [keys["p384"]], silent) as node,
            cluster([node.options], key) as group,
        ):
            error = await failure(group, key)
            assert (error.reason, error.retryable) == ("no_node", False)
            assert node.requests == []

    run(main())


def test_a_scheme_that_no_node_can_do_fails_at_once(run_directory: Path, key: PrivateKey) -> None:
    """A token may lack a mechanism of its key (old HSMs have no PSS): waiting would not help."""
    listed = [(ski_of(key.public_key()), (0x16, 0x17))]

    def lists(peer: Peer, request: Message) -> None:
        peer.write(keyless.encode_keys_response(request.id, listed, 0))

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], signing(key), lists=lists) as node,
            cluster([node.options], key) as group,
        ):
            assert (await failure(group, key)).reason == "no_node"
            assert node.requests == []

    run(main())


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
            assert 1.0 <= monotonic() - begun < 5
            assert len(a.requests) == len(b.requests) == 1  # each had its share of the time
            assert sorted([*group.errors("a"), *group.errors("b")]) == ["deadline", "timeout"]

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


def garbage(peer: Peer, request: Message) -> None:
    """Sends what is not the format."""
    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def twice(peer: Peer, request: Message) -> None:
    """Answers the same request twice."""
    answer = keyless.encode_error(request.id, keyless.ERR_INTERNAL)
    peer.write(answer, answer)


def unasked(peer: Peer, request: Message) -> None:
    """Answers a request that was never made."""
    peer.write(keyless.encode_error(request.id + 1000, keyless.ERR_INTERNAL))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [(garbage, "malformed answer: version 72"), (twice, "not made"), (unasked, "not made")],
)
def test_nonsense_closes_the_link(
    run_directory: Path, key: PrivateKey, script: Script, complaint: str
) -> None:
    """After a malformed, doubled or unasked answer the link is dropped, made anew, and used again."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], in_turn(script, signing(key))) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key) as group,
        ):
            requests = await asyncio.gather(*(sign(group, key) for _ in range(2)))
            assert {request.node for request in requests} == {"b"}
            assert complaint in (await group.logged("node_lost", node="a"))["error"]
            await group.ready("a", "b")
            assert not a.peers[0].is_open
            nodes = {(await sign(group, key)).node for _ in range(4)}
            assert nodes == {"a", "b"}

    run(main())


def test_a_lost_link_is_tried_again_on_the_same_node(run_directory: Path, key: PrivateKey) -> None:
    """With one node only, a request whose link broke is sent again once the link is back."""

    async def main() -> None:
        async with (
            ScriptedNode(
                run_directory / "a", [key], in_turn(lambda peer, _: peer.close(), signing(key))
            ) as node,
            cluster([node.options], key) as group,
        ):
            request = await sign(group, key)
            assert (request.node, len(node.requests), len(node.peers)) == ("a", 2, 2)
            assert group.errors("a") == {"link_lost": 1}

    run(main())


def test_a_node_that_drops_every_link_is_not_asked_for_ever(run_directory: Path, key: PrivateKey) -> None:
    """A request is sent five times at most."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], lambda peer, _: peer.close()) as node,
            cluster([node.options], key) as group,
        ):
            assert (await failure(group, key)).reason == "link_lost"
            assert len(node.requests) == 5

    run(main())


def test_requests_wait_for_the_first_node(run_directory: Path, key: PrivateKey) -> None:
    """What is asked for while no node is connected succeeds when one comes."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        async with cluster([node.options], key, ready=False) as group:
            waiting = [asyncio.create_task(sign(group, key)) for _ in range(5)]
            await group.changes.until(lambda: len(group.client._waiting) == 5, look=0.01)
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


def test_the_list_of_keys_is_followed(
    run_directory: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a node gets later is used once the node is asked for its list again."""
    monkeypatch.setattr(node_module, "KEYS_INTERVAL", 0.05)
    monkeypatch.setattr(node_module, "CHECK_INTERVAL", 0.05)

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], signing(key)) as node,
            cluster([node.options], key) as group,
        ):
            assert (await failure(group, key)).reason == "no_node"
            node.keys.append(key)
            await group.changes.until(lambda: bool(group.client.holders(ski_of(key.public_key()))))
            assert (await sign(group, key)).node == "a"

    run(main())


def test_long_lists_of_keys_are_read_in_pages(run_directory: Path, key: PrivateKey) -> None:
    """A node with thousands of keys is asked page by page."""
    verifier = VerificationKey(key.public_key())
    many = [(hashlib.sha1(b"%d" % i).digest(), verifier.opcodes) for i in range(4000)]
    many.append((verifier.ski, verifier.opcodes))

    def lists(peer: Peer, request: Message) -> None:
        start = keyless.decode_keys_start(request.extra)
        peer.write(keyless.encode_keys_response(request.id, many, start))

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [], signing(key), lists=lists) as node,
            cluster([node.options], key) as group,
        ):
            assert group.client.status()[0]["keys"] == 4001
            assert len(node.listed) == 3
            assert (await sign(group, key)).node == "a"

    run(main())


def endless(peer: Peer, request: Message) -> None:
    """Names the same page again and again."""
    peer.write(keyless.encode(request.id, keyless.OP_RESPONSE, extra=bytes(4)))


def cut_short(peer: Peer, request: Message) -> None:
    """A key entry without its opcodes."""
    peer.write(keyless.encode(request.id, keyless.OP_RESPONSE, bytes(20) + b"\x05"))


def more_and_nonsense(peer: Peer, request: Message) -> None:
    """A first page that names a second, and in the same piece an answer nobody asked for."""
    page = keyless.encode(request.id, keyless.OP_RESPONSE, extra=b"\0\0\0\x05")
    peer.write(page, keyless.encode_error(request.id + 1000, keyless.ERR_INTERNAL))


@pytest.mark.parametrize(
    "hostile", [endless, cut_short, garbage, more_and_nonsense, lambda peer, _request: peer.close()]
)
def test_a_hostile_list_of_keys_ends_the_link_only(
    run_directory: Path, key: PrivateKey, hostile: Script
) -> None:
    """A node that lists nonsense is tried again after a while, and used once it is well."""

    async def main() -> None:
        node = ScriptedNode(run_directory / "a", [key], signing(key))
        node.lists = in_turn(hostile, node.list_keys)
        async with node, cluster([node.options], key, ready=False) as group:
            request = await sign(group, key)
            assert (request.node, len(node.peers)) == ("a", 2)

    run(main())


def test_a_node_that_says_nothing_is_given_up(
    run_directory: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that owes an answer and does not even pong loses its link, and is tried again."""
    monkeypatch.setattr(node_module, "SILENCE_WHILE_BUSY", 0.05)
    monkeypatch.setattr(node_module, "PING_TIMEOUT", 0.1)
    monkeypatch.setattr(node_module, "CHECK_INTERVAL", 0.02)

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], in_turn(silent, signing(key))) as node,
            cluster([node.options], key) as group,
        ):
            node.pongs = False
            request = await sign(group, key)
            assert request.node == "a"
            assert (len(node.pings) >= 1, len(node.peers) >= 2) == (True, True)
            assert "did not answer in time" in (await group.logged("node_lost"))["error"]

    run(main())


def test_an_idle_link_is_kept_alive(
    run_directory: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gokeyless closes links idle for 30 s: a ping goes out in time, and its pong is enough."""
    assert node_module.PING_INTERVAL + node_module.CHECK_INTERVAL < 20
    monkeypatch.setattr(node_module, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(node_module, "CHECK_INTERVAL", 0.02)

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as node,
            cluster([node.options], key) as group,
        ):
            await node.changes.until(lambda: len(node.pings) >= 3)
            assert (await sign(group, key)).node == "a"
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
            assert {(await sign(group, key)).node for _ in range(4)} == {"a", "b"}

    run(main())
