"""Nodes that come, go and change while requests are under way, zones, and several links to one node."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from hsm.client import SignRequest, upkeep
from hsm.signing import PrivateKey, ski_of
from tests.hsm.scripted import DIGEST, SCHEME, Cluster, ScriptedNode, cluster, sign, signing, silent
from tests.hsm.simulation import Device, Simulation, failed
from tests.support.hsm_support import run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are looked after often."""
    monkeypatch.setattr(upkeep, "CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(upkeep, "RECONNECT_MOST", 0.05)


async def signers(group: Cluster, key: PrivateKey, count: int = 40) -> Counter[str]:
    """Who signs, when so much is asked for at once."""
    return Counter(
        request.node for request in await asyncio.gather(*(sign(group, key) for _ in range(count)))
    )


def test_a_removed_node_finishes_its_work(run_directory: Path, key: PrivateKey) -> None:
    """It gets nothing new, what is in flight comes through, then its link is closed and not made again."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options], key) as group,
        ):
            done: list[SignRequest] = []
            group.client.sign(ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 30, done.append)
            await a.received(1)
            group.client.set_nodes([b.options])
            await group.ready("b")
            assert set(await signers(group, key)) == {"b"}
            assert a.peers[0].is_open
            a.release()
            await group.changes.until(lambda: bool(done), look=0.01)
            assert (done[0].node, len(a.requests)) == ("a", 1)
            await a.changes.until(lambda: not a.peers[0].is_open)
            await group.changes.until(lambda: len(group.client._tasks) == 2, look=0.01)  # b's, and the tests
            assert len(a.peers) == 1

    run(main())


def test_a_removed_node_that_is_away_is_not_tried_any_more(run_directory: Path, key: PrivateKey) -> None:
    """Nothing is left of a node that could not be reached when it was removed."""

    async def main() -> None:
        a = ScriptedNode(run_directory / "a", [key], signing(key))
        async with (
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options, b.options], key, ready=False) as group,
        ):
            await group.ready("b")
            group.client.set_nodes([b.options])
            await group.changes.until(lambda: len(group.client._tasks) == 2, look=0.01)
            async with a:
                assert set(await signers(group, key)) == {"b"}
                assert a.peers == []

    run(main())


def test_an_added_node_is_used(run_directory: Path, key: PrivateKey) -> None:
    """Beside the one that was there, whose link stays."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], signing(key)) as a,
            ScriptedNode(run_directory / "b", [key], signing(key)) as b,
            cluster([a.options], key) as group,
        ):
            group.client.set_nodes([a.options, b.options])
            await group.ready("a", "b")
            assert set(await signers(group, key)) == {"a", "b"}
            assert len(a.peers) == 1

    run(main())


def test_a_changed_weight_keeps_the_link(run_directory: Path, key: PrivateKey) -> None:
    """Also capacity and zone: the node is the same, and what is in flight there is not touched."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as a,
            cluster([a.options], key) as group,
        ):
            done: list[SignRequest] = []
            group.client.sign(ski_of(key.public_key()), SCHEME, DIGEST, monotonic() + 30, done.append)
            await a.received(1)
            (node,) = group.client.nodes
            group.client.set_nodes([replace(a.options, weight=3.0, zone="z", capacity=5)])
            assert group.client.nodes == [node]
            assert (node.options.weight, node.zone, node.limit.value) == (3.0, "z", 5)
            a.release()
            await group.changes.until(lambda: bool(done), look=0.01)
            assert (done[0].node, len(a.peers)) == ("a", 1)

    run(main())


def test_two_links_share_the_requests(run_directory: Path, key: PrivateKey) -> None:
    """`links: 2` makes two connections with about as much in flight on each; losing one is not losing the node."""

    async def main() -> None:
        async with (
            ScriptedNode(run_directory / "a", [key], silent) as a,
            cluster([replace(a.options, links=2)], key) as group,
        ):
            await group.changes.until(lambda: len(group.client.nodes[0].links) == 2, look=0.01)
            waiting = [asyncio.create_task(sign(group, key)) for _ in range(20)]
            await a.received(20)
            assert sorted(Counter(id(peer) for peer, _ in a.requests).values()) == [10, 10]
            a.script = signing(key)
            a.peers[0].close()
            a.release()
            assert {request.node for request in await asyncio.gather(*waiting)} == {"a"}
            await a.changes.until(lambda: len(a.peers) == 3)
            assert [entry["event"] for entry in group.log] == ["node_ready"]

    run(main())


def test_the_own_zone_comes_first(simulation: Simulation, key: PrivateKey) -> None:
    """Others get what exceeds its capacity, and all while it is away."""
    own = Device("own", zone="here", capacity=8)
    other = Device("other", zone="there")

    async def main() -> None:
        async with simulation.cluster(own, other, zone="here") as group:
            nodes = [outcome.node for outcome in await group.load(key, 200.0, 2.0)]
            assert set(nodes) == {"own"}
            own.seconds = 0.02
            crowded = await group.load(key, 800.0, 2.0)
            assert failed(crowded) == []
            shares = Counter(outcome.node for outcome in crowded)
            assert shares["other"] > 400
            assert shares["own"] > 400
            own.kill()
            assert {outcome.node for outcome in await group.load(key, 200.0, 1.0)} == {"other"}
            own.start()
            await asyncio.sleep(3.0)
            assert {outcome.node for outcome in await group.load(key, 100.0, 1.0)} == {"own"}

    simulation.run(main())
