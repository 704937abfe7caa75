"""The links of a cluster's client: broken, silent, idle, and full of nonsense."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hsm import keyless
from hsm.client import upkeep
from hsm.keyless import Message
from hsm.signing import PrivateKey
from tests.hsm.scripted import (
    Peer,
    Script,
    ScriptedNode,
    cluster,
    failure,
    garbage,
    in_turn,
    sign,
    signing,
    silent,
)
from tests.support.hsm_support import run


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
            a_node = group.client.nodes[0]
            requests = await asyncio.gather(*(sign(group, key) for _ in range(20)))
            assert {request.node for request in requests} == {"b"}
            assert complaint in (await group.logged("node_lost", node="a"))["error"]
            await group.ready("a", "b")
            assert not a.peers[0].is_open
            await group.changes.until(lambda: a_node.is_healthy, look=0.02)
            again = await asyncio.gather(*(sign(group, key) for _ in range(40)))
            assert {request.node for request in again} == {"a", "b"}

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


def test_a_node_that_says_nothing_is_given_up(
    run_directory: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that owes an answer and does not even pong loses its link, and is tried again."""
    monkeypatch.setattr(upkeep, "SILENCE_WHILE_BUSY", 0.05)
    monkeypatch.setattr(upkeep, "PING_TIMEOUT", 0.1)
    monkeypatch.setattr(upkeep, "CHECK_INTERVAL", 0.02)

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
    assert upkeep.PING_INTERVAL + upkeep.CHECK_INTERVAL < 20
    monkeypatch.setattr(upkeep, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(upkeep, "CHECK_INTERVAL", 0.02)

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as node,
            cluster([node.options], key) as group,
        ):
            await node.changes.until(lambda: len(node.pings) >= 3)
            assert (await sign(group, key)).node == "a"
            assert len(node.peers) == 1

    run(main())
