"""What is told of keys beyond signing: on the wire, from hostile nodes, and to people."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.listing import key_details
from hsm.inventory import (
    DETAILS_FUNCTION,
    DETAILS_PER_PAGE,
    KeyDetails,
    decode_details_response,
    encode_details_request,
    encode_details_response,
)
from hsm.keyless import ERR_BAD_OPCODE, ERR_CRYPTO, Decoder, KeylessError, Message, decode_keys_start
from hsm.signing import PrivateKey, PublicKey, ski_of
from tests.hsm.scripted import Peer, ScriptedNode, cluster, signing
from tests.support.hsm_support import new_key, run

P256 = new_key("p256").public_key()


def details(key: PublicKey, label: str = "web", extractable: bool | None = False) -> KeyDetails:
    """A key as a token tells of it."""
    return KeyDetails(ski_of(key), frozenset({0x15}), key, label, extractable)


def told(payload: object) -> Message:
    """An answer with this payload."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Message(1, 0xF0, payload=data)


def der(key: Any) -> str:
    """A public key as the answer has it."""
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


@given(st.text(max_size=80), st.sampled_from([True, False, None]), st.integers(0, 3))
def test_details_round_trip(label: str, extractable: bool | None, start: int) -> None:
    """Asked for from any entry on, they come back; labels at most 64 characters long, whatever is in them."""
    (request,) = Decoder().feed(encode_details_request(5, start))
    assert request.function == DETAILS_FUNCTION
    asked = decode_keys_start(request.extra)
    (answer,) = Decoder().feed(encode_details_response(5, [details(P256, label, extractable)] * 2, asked))
    found, following = decode_details_response(answer)
    assert following is None
    assert len(found) == max(0, 2 - start)
    for key in found:
        assert (key.ski, key.label, key.is_extractable) == (ski_of(P256), label[:64], extractable)
        assert key.shown_label.isprintable()


def test_the_largest_keys_and_labels_fit_their_pages() -> None:
    """RSA-4096 keys whose labels take the most bytes that JSON can make of a character."""
    key = new_key("rsa4096").public_key()
    keys = [details(key, "\U0010ffff" * 100)] * (2 * DETAILS_PER_PAGE + 1)
    start: int | None = 0
    sizes = []
    while start is not None:
        (answer,) = Decoder().feed(encode_details_response(1, keys, start))
        page, start = decode_details_response(answer)
        sizes.append(len(page))
    assert sizes == [DETAILS_PER_PAGE, DETAILS_PER_PAGE, 1]


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_hostile_details_raise_nothing_else(payload: bytes) -> None:
    """Whatever a node answers: keys or a KeylessError."""
    try:
        decode_details_response(told(payload))
    except KeylessError:
        return
    assert isinstance(json.loads(payload), list)


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 50_000,
        {},
        [1],
        [{}],
        [{"public_key": 1}],
        [{"public_key": "AAAA"}],
        [{"public_key": der(P256)[:-4]}],
        [{"public_key": der(ed25519.Ed25519PrivateKey.generate().public_key())}],
        [{"public_key": der(ec.generate_private_key(ec.SECP256K1()).public_key())}],
        [{"public_key": der(P256), "label": ["web"]}],
        [{"public_key": der(P256), "extractable": "no"}],
    ],
    ids=range(11),
)
def test_malformed_details_are_refused(payload: object) -> None:
    """Each by a KeylessError, also keys that TLS has no use for."""
    with pytest.raises(KeylessError, match="malformed"):
        decode_details_response(told(payload))


def test_fields_of_tomorrow_are_skipped() -> None:
    """What is not known is no error, and what is left out is not known."""
    ((key,), _) = decode_details_response(told([{"public_key": der(P256), "colour": "blue"}]))
    assert (key.label, key.is_extractable, key.kind) == ("", None, "P-256")


@pytest.mark.parametrize("code", [ERR_BAD_OPCODE, ERR_CRYPTO])
def test_a_node_that_does_not_know_the_question(run_directory: Path, key: PrivateKey, code: int) -> None:
    """One of an older version answers 05: its keys are listed with what is known of them. Other errors are told."""

    def script(peer: Peer, request: Message) -> None:
        peer.refuse(request, code) if request.function == DETAILS_FUNCTION else signing(key)(peer, request)

    async def main() -> None:
        async with ScriptedNode(run_directory / "a", [key], script) as node, cluster([node.options]) as group:
            if code == ERR_BAD_OPCODE:
                (found,) = await key_details(group.client.nodes[0]) or []
                assert (found.ski, found.kind, found.is_extractable) == (ski_of(key.public_key()), "", None)
                assert found.opcodes == {0x15, 0x16, 0x17}
            else:
                with pytest.raises(Exception, match="crypto error"):
                    await key_details(group.client.nodes[0])

    run(main())
