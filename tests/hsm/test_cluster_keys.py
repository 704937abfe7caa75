"""Which node holds which key, as a cluster's client learns it, from good nodes and hostile ones."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from hsm import keyless
from hsm.client import upkeep
from hsm.keyless import Message
from hsm.signing import PrivateKey, ski_of
from hsm.verification import VerificationKey
from tests.hsm.scripted import (
    Peer,
    Script,
    ScriptedNode,
    cluster,
    failure,
    garbage,
    in_turn,
    refusing,
    sign,
    signing,
    silent,
)
from tests.support.hsm_support import run


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


def test_the_list_of_keys_is_followed(
    run_directory: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a node gets later is used once the node is asked for its list again."""
    monkeypatch.setattr(upkeep, "KEYS_INTERVAL", 0.05)
    monkeypatch.setattr(upkeep, "CHECK_INTERVAL", 0.05)

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
