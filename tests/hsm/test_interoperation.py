"""Other Keyless servers, other Keyless clients: frames written out byte by byte, as their format describes them.

The foreign server is made after gokeyless's behaviour: TLS 1.2 at most, answers padded to 1,024 bytes, idle
links closed, no list of keys, error 08 to an absent or all-zero SKI.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Self

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

from hsm import keyless
from hsm.client import NodeOptions, upkeep
from hsm.config import Address
from hsm.keyless import Message
from hsm.signing import PrivateKey, ski_of
from hsm.transport import client_context
from hsm.verification import VerificationKey
from tests.hsm.scripted import (
    DIGEST,
    SCHEME,
    Peer,
    Script,
    ScriptedNode,
    cluster,
    failure,
    refusing,
    sign,
    signing,
)
from tests.support.hsm_support import Authority, KeylessClient, NodePool, run, run_hsm

FOREIGN_PENDING = 1024
"""What such a server works on for one connection."""


def unhex(text: str) -> bytes:
    """Bytes from hex with blanks."""
    return bytes.fromhex(text)


def padded(frame: bytes) -> bytes:
    """The same message, filled up to 1,024 bytes by an item 0x20."""
    fill = 1024 - len(frame) - 3
    body = frame[8:] + b"\x20" + fill.to_bytes(2, "big") + bytes(fill)
    return frame[:2] + len(body).to_bytes(2, "big") + frame[4:8] + body


def padding_all(script: Script) -> Script:
    """What a script does, with every answer padded."""

    def padded_script(peer: Peer, request: Message) -> None:
        class Padding(Peer):
            def write(self, *frames: bytes) -> None:
                peer.write(*map(padded, frames))

        script(Padding(peer._node), request)

    return padded_script


class ForeignNode(ScriptedNode):
    """A server of another make, over mutual TLS."""

    def __init__(
        self, directory: Path, key: PrivateKey, script: Script, *, idle: float | None = None
    ) -> None:
        """`idle`: a link that says nothing for so many seconds is closed."""
        code = keyless.ERR_INTERNAL
        super().__init__(directory / "a", [key], script, lists=padding_all(refusing(code)))
        authority = Authority(directory, "authority")
        node = authority.issue("node.example")
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(node.certificate, node.key)
        self._tls.load_verify_locations(node.ca)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        self._tls.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384")
        self._client_tls = client_context(authority.issue("proxy"))
        self._idle = idle
        self._closing: dict[Peer, asyncio.TimerHandle] = {}

    def requested(self, peer: Peer, message: Message) -> None:
        """For Peer: a client wants something."""
        self._heard(peer)
        super().requested(peer, message)

    def connected(self, peer: Peer) -> None:
        """For Peer: a client came."""
        self._heard(peer)
        super().connected(peer)

    def _heard(self, peer: Peer) -> None:
        if self._idle is not None:
            if peer in self._closing:
                self._closing[peer].cancel()
            self._closing[peer] = asyncio.get_running_loop().call_later(self._idle, peer.close)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Peer(self), "127.0.0.1", 0, ssl=self._tls)
        self._server = server
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        self.options = NodeOptions("a", address, self._client_tls, "node.example")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._server is not None
        self._server.close()
        for timer in self._closing.values():
            timer.cancel()
        for peer in self.peers:
            peer.close()
        await self.changes.until(lambda: not any(peer.is_open for peer in self.peers))


def test_our_requests_are_the_formats(run_directory: Path, key: PrivateKey) -> None:
    """What the client sends first: the list of keys in the format's custom function, then a signature."""
    received = bytearray()
    answers = {
        0: "0100 0008 00000000 110001FF 120001 05",  # bad opcode: it knows no offload.keys
        1: "0100 0008 00000001 110001FF 120001 02",  # key not found
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers.values():
            header = await reader.readexactly(8)
            received.extend(header + await reader.readexactly(int.from_bytes(header[2:4], "big")))
            writer.write(unhex(answer))
        await reader.read()
        writer.close()

    async def main() -> None:
        path = run_directory / "a"
        server = await asyncio.start_unix_server(serve, path)
        async with cluster([NodeOptions("a", Address(path=str(path)))], key) as group:
            assert (await failure(group, key, timeout=5.0)).reason == "key_not_found"
        server.close()
        await asyncio.sleep(0.01)

    run(main())
    listing = unhex("0100 001A 00000000 11000124 13000C 6F66666C6F61642E6B657973 140004 00000000")
    assert received.startswith(listing)
    request = bytes(received[len(listing) :])
    context = unhex("160015") + b'{"remaining_ms":'
    head = unhex("0100 0056 00000001 11000115 040014") + ski_of(key.public_key()) + context
    assert (request[: len(head)], request[-36:]) == (head, b"}" + unhex("120020") + DIGEST)


@pytest.mark.parametrize("pad", [True, False])
def test_a_foreign_server_signs(tmp_path: Path, key: PrivateKey, pad: bool) -> None:
    """Over TLS 1.2, with padded answers or plain ones."""

    async def main() -> None:
        script = signing(key)
        async with (
            ForeignNode(tmp_path, key, padding_all(script) if pad else script) as node,
            cluster([node.options], key) as group,
        ):
            assert (await sign(group, key)).node == "a"
            assert group.client.status()[0]["keys"] is None
            transport = node.peers[0]._transport
            assert transport is not None
            name, version, _ = transport.get_extra_info("cipher")
            assert (name, version) == ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2")

    run(main())


def test_a_foreign_servers_answers_come_in_any_order(tmp_path: Path, key: PrivateKey) -> None:
    """The last question first: each request has its own signature."""

    async def main() -> None:
        def backwards(_peer: Peer, _request: Message) -> None:
            if len(node.requests) == 10:
                node.requests.reverse()
                node.release()

        async with ForeignNode(tmp_path, key, backwards) as node, cluster([node.options], key) as group:
            requests = await asyncio.gather(*(sign(group, key) for _ in range(10)))
            verifier = VerificationKey(key.public_key())
            assert all(verifier.verify(SCHEME, DIGEST, request.signature or b"") for request in requests)

    run(main())


def test_an_idle_limit_is_not_reached(
    tmp_path: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings keep a link open that the server closes when it is idle."""
    monkeypatch.setattr(upkeep, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(upkeep, "CHECK_INTERVAL", 0.02)

    async def main() -> None:
        async with (
            ForeignNode(tmp_path, key, signing(key), idle=0.5) as node,
            cluster([node.options], key) as group,
        ):
            await node.changes.until(lambda: len(node.pings) >= 12)
            assert (await sign(group, key)).node == "a"
            assert len(node.peers) == 1

    run(main())


def test_a_foreign_server_is_not_given_more_than_it_takes(tmp_path: Path, key: PrivateKey) -> None:
    """At most 1,024 requests are pending on its connection; the others wait here."""

    async def main() -> None:
        most = 0

        def counting(_peer: Peer, _request: Message) -> None:
            nonlocal most
            most = max(most, len(node.requests))
            if len(node.requests) == len(waiting) or len(node.requests) >= group.client.nodes[0].limit.value:
                node.release()
                node.requests.clear()

        waiting: list[asyncio.Task[object]] = []
        async with (
            ForeignNode(tmp_path, key, counting) as node,
            cluster([node.options], key, hedge_budget=0.0, max_queue_wait=9.0) as group,
        ):
            waiting += [asyncio.create_task(sign(group, key)) for _ in range(1500)]
            while not all(task.done() for task in waiting):
                node.release()
                node.requests.clear()
                await asyncio.sleep(0.01)
            assert 8 <= most <= FOREIGN_PENDING

    run(main())


@pytest.mark.parametrize(
    ("code", "reason"), [(0x02, "key_not_found"), (0x05, "bad_opcode"), (0x08, "internal_error")]
)
def test_a_foreign_servers_refusals_are_understood(
    tmp_path: Path, key: PrivateKey, code: int, reason: str
) -> None:
    """Padded errors too; the link lives on."""

    async def main() -> None:
        async with (
            ForeignNode(tmp_path, key, padding_all(refusing(code))) as node,
            cluster([node.options], key) as group,
        ):
            assert (await failure(group, key)).reason == reason
            assert len(node.peers) == 1

    run(main())


def test_tools_say_that_a_foreign_server_lists_no_keys(run_directory: Path, key: PrivateKey) -> None:
    """`hsm keys` and `hsm bench` end with one line."""

    async def main() -> None:
        refuse = refusing(keyless.ERR_INTERNAL)
        async with ScriptedNode(run_directory / "a", [key], signing(key), lists=refuse) as node:
            for command in ("keys", "bench"):
                done = await asyncio.to_thread(
                    run_hsm, command, "--node", f"unix:{node.options.address.path}"
                )
                assert done.returncode != 0
                (line,) = done.stderr.splitlines()
                assert "can't list" in line

    run(main())


# -- other clients and our node ------------------------------------------------------------------

RSA_DIGEST = hashlib.sha256(b"what another client signs").digest()


def asking(opcode: str, ski: bytes, *, more: str = "") -> bytes:
    """A signing request with id 0x01020304, as another client writes it; `more` are further items."""
    body = unhex("040014") + ski + unhex(more) + unhex(f"110001 {opcode} 120020") + RSA_DIGEST
    return unhex("0100") + len(body).to_bytes(2, "big") + unhex("01020304") + body


FORMS = {
    "plain": "",
    "with an unknown item": "7F0003 010203",
    "with an empty unknown item": "7F0000",
    "with items that are not ours": "010020 " + "AA" * 32 + " 030004 7F000001 050004 7F000001",
    "with a context that is not JSON": "160003 616263",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pad", [True, False])
def test_other_clients_are_signed_for(
    pool: NodePool, keys: dict[str, PrivateKey], form: str, pad: bool
) -> None:
    """RSA PKCS#1 v1.5 is deterministic: the whole answer is compared, byte for byte."""
    key = keys["rsa2048"]
    assert isinstance(key, rsa.RSAPrivateKey)
    signature = key.sign(RSA_DIGEST, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
    expected = unhex("0100 0107 01020304 110001F0 120100") + signature
    request = asking("05", ski_of(key.public_key()), more=FORMS[form])
    (node,) = pool.get("")
    with KeylessClient.connect(node.address) as client:
        client.send(padded(request) if pad else request)
        received = b""
        while len(received) < len(expected):
            received += client.socket.recv(65536)
        assert received == expected


@pytest.mark.parametrize(
    ("kind", "opcode", "scheme"),
    [("p256", "15", "ecdsa_secp256r1_sha256"), ("rsa2048", "35", "rsa_pss_rsae_sha256")],
)
def test_other_clients_get_signatures_that_verify(
    pool: NodePool, keys: dict[str, PrivateKey], kind: str, opcode: str, scheme: str
) -> None:
    """ECDSA in DER, PSS raw."""
    from hsm.signing import SCHEMES

    (node,) = pool.get("")
    with KeylessClient.connect(node.address) as client:
        client.send(padded(asking(opcode, ski_of(keys[kind].public_key()))))
        answer = client.receive()
    assert (answer.id, answer.opcode) == (0x01020304, 0xF0)
    assert VerificationKey(keys[kind].public_key()).verify(SCHEMES[scheme], RSA_DIGEST, answer.payload)


@pytest.mark.parametrize(
    ("request_hex", "answer_hex"),
    [
        ("0100 000B 0000000A 110001F1 120004 70696E67", "0100 000B 0000000A 110001F2 120004 70696E67"),
        ("0100 0004 0000000B 110001F1", "0100 0004 0000000B 110001F2"),
        ("0100 003E 0000000C 11000115 040014" + "5A" * 20 + "120020" + "00" * 32, "0100 0008 0000000C 110001FF 120001 02"),
        ("0100 0007 0000000D 110001F0 7F0000", "0100 0008 0000000D 110001FF 120001 06"),
    ],
)  # fmt: skip
def test_other_clients_are_answered_byte_for_byte(pool: NodePool, request_hex: str, answer_hex: str) -> None:
    """Pings with and without a payload, an unknown key, and an answer where a request belongs."""
    (node,) = pool.get("")
    expected = unhex(answer_hex)
    with KeylessClient.connect(node.address) as client:
        client.send(unhex(request_hex))
        received = b""
        while len(received) < len(expected):
            received += client.socket.recv(65536)
        assert received == expected
