"""The client of a cluster with real nodes: balance, death, silence, wrong signatures, TLS."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
import uvloop

from hsm import metrics as m
from hsm.client import NodeOptions, SignRequest
from hsm.client.link import MAX_PENDING
from hsm.errors import HSMError
from hsm.signing import SCHEMES, KeyType, PrivateKey, ski_of
from hsm.transport import client_context
from hsm.verification import VerificationKey
from tests.hsm.conftest import KINDS
from tests.hsm.scripted import Cluster, cluster
from tests.support.hsm_support import (
    LIMIT,
    Authority,
    NodePool,
    NodeProcess,
    free_port,
    run,
    running_nodes,
)

SCHEME = SCHEMES["ecdsa_secp256r1_sha256"]
DIGEST = hashlib.sha256(b"what a handshake signs").digest()
NodeFiles = tuple[Path, Path]


@pytest.fixture
def files(run_directory: Path, key_directory: Path) -> NodeFiles:
    """Where nodes put their sockets, and where they find their keys."""
    return run_directory, key_directory


def options(*nodes: NodeProcess) -> list[NodeOptions]:
    """The nodes, as their client takes them: a, b, c."""
    return [NodeOptions(name, node.address) for name, node in zip("abc", nodes, strict=False)]


async def sign(group: Cluster, key: PrivateKey) -> SignRequest:
    """One P-256 signature before its deadline, verified independently of the client."""
    request = await group.client.sign_async(ski_of(key.public_key()), SCHEME, DIGEST, LIMIT)
    assert request.signature is not None
    assert VerificationKey(key.public_key()).verify(SCHEME, DIGEST, request.signature)
    return request


async def sign_many(group: Cluster, key: PrivateKey, count: int) -> Counter[str]:
    """Signatures asked for all at once; how many each node made."""
    requests = await asyncio.gather(*(sign(group, key) for _ in range(count)))
    return Counter(request.node for request in requests)


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheme_is_signed(pool: NodePool, keys: dict[str, PrivateKey], kind: str) -> None:
    """A node's signature of each scheme of a key passes the client's verification."""
    key_type = KeyType.RSA if kind.startswith("rsa") else KeyType.EC
    schemes = [scheme for scheme in SCHEMES.values() if scheme.key_type is key_type]

    async def main() -> None:
        async with cluster(options(node), keys[kind]) as group:
            ski = ski_of(keys[kind].public_key())
            assert group.client.holders(ski) == ["a"]
            for scheme in schemes:
                digest = hashlib.new(scheme.hash.name, b"text").digest()
                request = await group.client.sign_async(ski, scheme, digest, 10.0)
                assert (request.node, request.error) == ("a", None)

    (node,) = pool.get("")
    run(main())


def test_requests_are_balanced(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """Requests at once are spread about evenly; one at a time, every node gets some."""

    async def main() -> None:
        async with cluster(options(*nodes), keys["p256"]) as group:
            shares = await sign_many(group, keys["p256"], 90)
            assert set(shares) == {"a", "b", "c"}
            assert max(shares.values()) <= 40
            seen: set[str] = set()
            while len(seen) < 3:
                seen.add((await sign(group, keys["p256"])).node)

    nodes = pool.get("latency=20ms", "latency=20ms", "latency=20ms")
    run(main())


def test_more_than_a_link_takes_are_all_signed(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """What exceeds the requests in flight on a link waits its turn."""

    async def main() -> None:
        async with cluster(options(node), keys["p256"], max_queue_wait=LIMIT) as group:
            assert await sign_many(group, keys["p256"], MAX_PENDING + 500) == {"a": MAX_PENDING + 500}

    (node,) = pool.get("latency=5ms")
    run(main())


def test_a_killed_nodes_requests_go_elsewhere(
    files: NodeFiles, pool: NodePool, keys: dict[str, PrivateKey]
) -> None:
    """A node dies with requests in flight: each of them succeeds at the other one."""

    async def main() -> None:
        async with cluster(options(a, b), keys["p256"]) as group:
            under_way = asyncio.gather(*(sign(group, keys["p256"]) for _ in range(20)))
            await group.changes.until(lambda: group.client.nodes[0].outstanding > 0, look=0.001)
            a.signal(signal.SIGKILL)
            assert {request.node for request in await under_way} == {"b"}
            assert group.errors("a")["link_lost"] > 0
            assert "connection to node a lost" in (await group.logged("node_lost", node="a"))["error"]

    (b,) = pool.get("")
    with running_nodes(*files, a="latency=30s") as (a,):
        run(main())


def test_a_node_that_comes_back_is_used_again(
    files: NodeFiles, pool: NodePool, keys: dict[str, PrivateKey]
) -> None:
    """A link is made anew after a node's restart; meanwhile the other node serves."""

    async def main() -> None:
        async with cluster(options(a, b), keys["p256"]) as group:
            a.signal(signal.SIGTERM)
            await group.ready("b")
            assert await sign_many(group, keys["p256"], 4) == {"b": 4}
            await asyncio.to_thread(a.wait)
            with running_nodes(*files, a=""):
                await group.ready("a", "b")
                assert set(await sign_many(group, keys["p256"], 40)) == {"a", "b"}

    (b,) = pool.get("")
    with running_nodes(*files, a="") as (a,):
        run(main())


def test_a_stopped_nodes_requests_go_elsewhere(
    files: NodeFiles, pool: NodePool, keys: dict[str, PrivateKey]
) -> None:
    """A node that hangs holds requests up until it is found silent, not until their deadline."""

    async def main() -> None:
        async with cluster(options(a, b), keys["p256"]) as group:
            a.signal(signal.SIGSTOP)
            assert await sign_many(group, keys["p256"], 10) == {"b": 10}
            await group.logged("node_suspect", node="a", cause="silent")
            assert await sign_many(group, keys["p256"], 4) == {"b": 4}
            a.signal(signal.SIGCONT)
            await group.logged("node_healthy", node="a")

    (b,) = pool.get("")
    with running_nodes(*files, a="") as (a,):
        run(main())


def test_wrong_signatures_are_made_elsewhere(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """A node that signs wrongly is found out, counted and ejected, and another one's is used."""

    async def main() -> None:
        async with cluster(options(*nodes), keys["p256"]) as group:
            assert await sign_many(group, keys["p256"], 10) == {"b": 10}
            wrong = group.bad_signatures("a")
            assert wrong > 0
            assert group.bad_signatures("b") == 0
            assert group.errors("a") == {"bad_signature": wrong}
            assert (await group.logged("node_signed_wrongly"))["node"] == "a"
            assert (await group.logged("node_ejected"))["cause"] == "bad_signature"
            assert await sign_many(group, keys["p256"], 10) == {"b": 10}
            assert group.bad_signatures("a") == wrong

    nodes = pool.get("wrong_rate=1", "")
    run(main())


def test_with_wrong_signatures_only_the_request_fails(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """No wrong signature is ever handed out."""

    async def main() -> None:
        async with cluster(options(*nodes), keys["p256"]) as group:
            with pytest.raises(HSMError) as caught:
                await sign(group, keys["p256"])
            assert (caught.value.reason, caught.value.source) == ("bad_signature", "node")
            assert group.bad_signatures("a") + group.bad_signatures("b") == 2

    nodes = pool.get("wrong_rate=1", "wrong_rate=1")
    run(main())


@pytest.mark.parametrize(("kind", "scheme"), [("rsa2048", "rsa_pss_rsae_sha256"), ("p256", SCHEME.name)])
def test_verify_rsa_leaves_ecdsa_alone(
    pool: NodePool, keys: dict[str, PrivateKey], kind: str, scheme: str
) -> None:
    """With `verify_signatures: rsa` wrong RSA signatures are refused, ECDSA ones not looked at."""

    async def main() -> None:
        async with cluster(options(node), keys[kind], verify="rsa") as group:
            asked = group.client.sign_async(ski_of(keys[kind].public_key()), SCHEMES[scheme], DIGEST, 10.0)
            if kind == "p256":
                assert (await asked).signature
            else:
                with pytest.raises(HSMError, match="wrong signature"):
                    await asked

    (node,) = pool.get("wrong_rate=1")
    run(main())


def test_a_signature_that_cannot_be_verified_is_not_handed_out(
    pool: NodePool, keys: dict[str, PrivateKey]
) -> None:
    """Without a certificate for the key the client has nothing to verify with."""

    async def main() -> None:
        async with cluster(options(node)) as group:
            with pytest.raises(HSMError, match="wrong signature"):
                await sign(group, keys["p256"])

    (node,) = pool.get("")
    run(main())


def test_a_failing_nodes_requests_go_elsewhere(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """An HSM's error is answered by another node's signature."""

    async def main() -> None:
        async with cluster(options(*nodes), keys["p256"]) as group:
            assert await sign_many(group, keys["p256"], 10) == {"b": 10}
            assert group.errors("a")["internal_error"] > 0
            await group.logged("node_suspect", node="a", cause="internal_error")

    nodes = pool.get("error_rate=1", "")
    run(main())


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_nothing_is_left_behind(
    files: NodeFiles,
    pool: NodePool,
    keys: dict[str, PrivateKey],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """In debug mode, on both kinds of loop: no task, no timer, no complaint after a close."""

    async def main() -> None:
        async with cluster(options(a, b), keys["p256"]) as group:
            await sign_many(group, keys["p256"], 20)
            under_way = [asyncio.create_task(sign(group, keys["p256"])) for _ in range(20)]
            await sign_many(group, keys["p256"], 1)
            a.signal(signal.SIGKILL)
            await asyncio.gather(*under_way)
        assert group.client._dispatcher._timer is None

    (b,) = pool.get("")
    with running_nodes(*files, a="latency=100ms") as (a,):
        run(main(), debug=True, new_loop=new_loop)


def test_gauges_tell_what_is_under_way(pool: NodePool, keys: dict[str, PrivateKey]) -> None:
    """Outstanding requests and open links are exported per node."""

    async def main() -> None:
        async with cluster(options(*nodes), keys["p256"]) as group:
            for _ in range(6):
                group.client.sign(ski_of(keys["p256"].public_key()), SCHEME, DIGEST, monotonic() + 9, print)
            group.client.update_gauges()
            values = {
                spec.name: [group.store.value(spec, name).value for name in "ab"]
                for spec in (m.CLIENT_OUTSTANDING, m.CLIENT_LINKS)
            }
            assert values == {"hsm_client_outstanding": [3, 3], "hsm_client_links": [1, 1]}
            assert [(s["name"], s["outstanding"], s["keys"]) for s in group.client.status()] == [
                ("a", 3, len(KINDS)),
                ("b", 3, len(KINDS)),
            ]

    nodes = pool.get("latency=30s", "latency=30s")
    run(main())


def test_links_by_tls(tmp_path: Path, key_directory: Path, keys: dict[str, PrivateKey]) -> None:
    """Over mutual TLS a node signs; a client of another authority, or that expects another name, has none."""
    right, wrong = Authority(tmp_path, "right"), Authority(tmp_path, "wrong")
    node_tls = right.issue("node.example")
    client_tls = client_context(right.issue("proxy"))
    stranger_tls = client_context(wrong.issue("stranger"))
    stranger_tls.load_verify_locations(right.ca)

    async def main() -> None:
        address = node.address
        nodes = [
            NodeOptions("good", address, client_tls, "node.example"),
            NodeOptions("address", address, client_tls),
            NodeOptions("name", address, client_tls, "other.example"),
            NodeOptions("issuer", address, client_context(wrong.issue("proxy2")), "node.example"),
            NodeOptions("stranger", address, stranger_tls, "node.example"),
        ]
        async with cluster(nodes, keys["p256"], ready=False) as group:
            await group.ready("good", "address")
            assert set(await sign_many(group, keys["p256"], 4)) == {"good", "address"}
            refused = {
                "name": "certificate is not valid for",
                "issuer": "self-signed",
                "stranger": "does it accept our certificate",
            }

            def are_told() -> bool:
                told = {state["name"]: state.get("error", "") for state in group.client.status()}
                return all(why in told[name] for name, why in refused.items())

            await group.changes.until(are_told, look=0.02)
            await group.ready("good", "address")

    with (
        free_port() as port,
        NodeProcess(
            f"tls://127.0.0.1:{port}", "--keys", str(key_directory), "--tls-ca", str(node_tls.ca),
            "--tls-certificate", str(node_tls.certificate), "--tls-key", str(node_tls.key),
        ) as node,
    ):  # fmt: skip
        node.ready()
        run(main())
