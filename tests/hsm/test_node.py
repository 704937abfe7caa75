"""A node as a real process on a unix socket: what it signs, what it refuses, what it tells."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm import keyless
from hsm.config import Address
from hsm.inventory import DETAILS_FUNCTION, decode_details_response, encode_details_request
from hsm.node.admin import HEAD_MOST
from hsm.node.server import MAX_PENDING
from hsm.signing import SCHEME_BY_OPCODE, KeyType, Padding, PrivateKey, SignatureScheme, ski_of
from tests.hsm.conftest import KINDS
from tests.support.hsm_support import (
    LIMIT,
    KeylessClient,
    NodePool,
    NodeProcess,
    get,
    require,
    run_hsm,
    sample,
    write_public_key,
)

DIGEST = hashlib.sha256(b"what a handshake signs").digest()
P256 = 0x15


@pytest.fixture(scope="module")
def node(shared_directory: Path, key_directory: Path) -> Iterator[NodeProcess]:
    """A node that nobody stops or changes, with an admin socket."""
    listen, admin = f"unix:{shared_directory}/a.sock", f"unix:{shared_directory}/admin.sock"
    with NodeProcess(listen, "--name", "a", "--keys", str(key_directory), "--admin", admin) as process:
        yield process.ready()


@pytest.fixture
def client(node: NodeProcess) -> Iterator[KeylessClient]:
    """A connection to that node."""
    with KeylessClient.connect(node.address) as connection:
        yield connection


@pytest.fixture(scope="module")
def p256(keys: dict[str, PrivateKey]) -> bytes:
    """The SKI of the P-256 key."""
    return ski_of(keys["p256"].public_key())


def metrics_of(node: NodeProcess) -> str:
    """What the shared node exports."""
    return get("/metrics", f"{Path(node.address.path).parent}/admin.sock")


def padded(frame: bytes) -> bytes:
    """A frame padded to 1,024 bytes."""
    size = 1024 - len(frame) - 3
    return (
        frame[:2]
        + (1024 - 8).to_bytes(2, "big")
        + frame[4:]
        + b"\x20"
        + size.to_bytes(2, "big")
        + bytes(size)
    )


def error_code(message: keyless.Message) -> int:
    """The code of an error answer."""
    assert message.opcode == keyless.OP_ERROR
    return message.payload[0]


def openssl_accepts(
    key: PrivateKey, scheme: SignatureScheme, digest: bytes, signature: bytes, directory: Path
) -> bool:
    """Whether `openssl pkeyutl` finds the signature right."""
    public = write_public_key(directory, "public.pem", key)
    (directory / "digest").write_bytes(digest)
    (directory / "signature").write_bytes(signature)
    options = ["-pkeyopt", f"digest:{scheme.hash.name}"]
    if scheme.padding is Padding.PSS:
        options += ["-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", f"rsa_pss_saltlen:{scheme.digest_size}"]
    done = subprocess.run(
        [require("openssl"), "pkeyutl", "-verify", "-pubin", "-inkey", public, "-in", directory / "digest",
         "-sigfile", directory / "signature", *options],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheme_signs(
    client: KeylessClient, keys: dict[str, PrivateKey], kind: str, tmp_path: Path
) -> None:
    """openssl accepts a signature of each scheme that the key can do."""
    key_type = KeyType.RSA if kind.startswith("rsa") else KeyType.EC
    for opcode, scheme in SCHEME_BY_OPCODE.items():
        if scheme.key_type is key_type:
            digest = hashlib.new(scheme.hash.name, b"text").digest()
            answer = client.ask(opcode, digest, ski=ski_of(keys[kind].public_key()))
            assert (answer.id, answer.opcode) == (7, keyless.OP_RESPONSE)
            assert openssl_accepts(keys[kind], scheme, digest, answer.payload, tmp_path)


def test_requests_are_pipelined(client: KeylessClient, p256: bytes) -> None:
    """Many requests in one write are each answered once, by their id."""
    client.send(*(keyless.encode(id, P256, DIGEST, ski=p256) for id in range(300)))
    answers = [client.receive() for _ in range(300)]
    assert sorted(answer.id for answer in answers) == list(range(300))
    assert {answer.opcode for answer in answers} == {keyless.OP_RESPONSE}


def test_more_requests_than_may_be_pending_are_all_answered(pool: NodePool, p256: bytes) -> None:
    """A client with too many requests under way is not read from for a while, and loses none."""
    count = 2 * MAX_PENDING
    (node,) = pool.get("latency=20ms")
    with KeylessClient.connect(node.address) as client:
        client.send(*(padded(keyless.encode(id, P256, DIGEST, ski=p256)) for id in range(count)))
        assert {client.receive().id for _ in range(count)} == set(range(count))


def test_a_client_that_does_not_read_is_not_read_from(node: NodeProcess) -> None:
    """The node's memory is bounded: it takes no more requests while its answers pile up."""
    ping = keyless.encode(1, keyless.OP_PING, bytes(60_000))
    with KeylessClient.connect(node.address) as greedy, KeylessClient.connect(node.address) as other:
        greedy.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            greedy.send(ping * 500)
        assert other.ask(keyless.OP_PING).opcode == keyless.OP_PONG


def test_a_ping_is_echoed(client: KeylessClient) -> None:
    """The pong carries the ping's id and payload."""
    assert client.ask(keyless.OP_PING, b"are you there") == keyless.Message(7, 0xF2, payload=b"are you there")


def test_padded_requests_are_served(client: KeylessClient, p256: bytes) -> None:
    """gokeyless' padding to 1,024 bytes changes nothing."""
    client.send(padded(keyless.encode(7, P256, DIGEST, ski=p256)))
    assert client.receive().opcode == keyless.OP_RESPONSE


@pytest.mark.parametrize("opcode", [0x01, 0x02, 0x03, 0x04, 0x12, 0x13, 0x14, 0x18, 0x23, 0x24, 0x00, 0xEE])
def test_other_opcodes_are_refused(client: KeylessClient, p256: bytes, opcode: int) -> None:
    """RSA decryption, SHA-1 signatures, Ed25519 and unknown work are a bad opcode."""
    assert error_code(client.ask(opcode, bytes(256), ski=p256)) == keyless.ERR_BAD_OPCODE


@pytest.mark.parametrize("opcode", [keyless.OP_RESPONSE, keyless.OP_PONG, keyless.OP_ERROR])
def test_answers_are_unexpected(client: KeylessClient, opcode: int) -> None:
    """A client that sends answers is told that they are out of place."""
    assert error_code(client.ask(opcode, b"\x01")) == keyless.ERR_UNEXPECTED_OPCODE


@pytest.mark.parametrize("size", [0, 20, 31, 33, 48, 64, 1000])
def test_a_digest_of_the_wrong_length_is_refused(client: KeylessClient, p256: bytes, size: int) -> None:
    """What has not the length of the scheme's hash is no digest."""
    assert error_code(client.ask(P256, bytes(size), ski=p256)) == keyless.ERR_FORMAT


@pytest.mark.parametrize("ski", [b"", bytes(20), b"\xff" * 20])
def test_an_unknown_key_is_told(client: KeylessClient, ski: bytes) -> None:
    """No SKI and a SKI that the node does not hold: key not found."""
    assert error_code(client.ask(P256, DIGEST, ski=ski)) == keyless.ERR_KEY_NOT_FOUND


def test_a_scheme_of_another_key_type_is_refused(client: KeylessClient, p256: bytes) -> None:
    """An EC key makes no RSA signature."""
    assert error_code(client.ask(0x35, DIGEST, ski=p256)) == keyless.ERR_CRYPTO


def test_the_keys_are_listed(client: KeylessClient, keys: dict[str, PrivateKey]) -> None:
    """`offload.keys` tells each SKI and what the key can do."""
    client.send(keyless.encode_keys_request(1))
    found, following = keyless.decode_keys_response(client.receive())
    assert following is None
    assert set(found) == {ski_of(key.public_key()) for key in keys.values()}
    assert found[ski_of(keys["rsa2048"].public_key())] == {0x05, 0x06, 0x07, 0x35, 0x36, 0x37}


def test_more_is_told_of_the_keys(client: KeylessClient, keys: dict[str, PrivateKey]) -> None:
    """`offload.key-details` tells public key, label (the file's name) and that a file can be copied."""
    client.send(encode_details_request(1))
    found, following = decode_details_response(client.receive())
    assert following is None
    assert {key.label: (key.ski, key.is_extractable) for key in found} == {
        f"{kind}.pem": (ski_of(key.public_key()), True) for kind, key in keys.items()
    }
    assert {key.kind for key in found} == {"RSA-2048", "P-256", "P-384", "P-521"}


@pytest.mark.parametrize("function", [keyless.KEYS_FUNCTION, DETAILS_FUNCTION])
def test_a_strange_page_of_keys_is_refused(client: KeylessClient, function: bytes) -> None:
    """A page number that is not 4 bytes is a format error; one past the end is empty."""
    items = {"function": function}
    assert error_code(client.ask(keyless.OP_CUSTOM, extra=b"\x01", **items)) == keyless.ERR_FORMAT
    beyond = client.ask(keyless.OP_CUSTOM, extra=b"\xff\xff\xff\xff", **items)
    assert beyond.payload in (b"", b"[]")
    assert keyless.decode_next_page(beyond) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes.fromhex("0100 0003 00000001 11 0001"),
        bytes.fromhex("0100 0000 00000001"),
        b"\xff" * 100,
    ],
)
def test_malformed_bytes_end_the_connection_only(
    node: NodeProcess, client: KeylessClient, data: bytes
) -> None:
    """Who does not speak the format is cut off; the node and its other clients go on."""
    with KeylessClient.connect(node.address) as hostile:
        hostile.send(data)
        assert hostile.is_closed()
    assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG


def test_a_client_may_leave_in_the_middle(node: NodeProcess, client: KeylessClient, p256: bytes) -> None:
    """Half a frame, or requests whose answers nobody takes, do no harm."""
    for leftover in (b"\x01\x00\x00", keyless.encode(1, P256, DIGEST, ski=p256) * 50):
        with KeylessClient.connect(node.address) as leaving:
            leaving.send(leftover)
    assert client.ask(P256, DIGEST, ski=p256).opcode == keyless.OP_RESPONSE


def test_the_socket_is_for_its_owner_and_group(node: NodeProcess) -> None:
    """The socket file has mode 0660."""
    assert Path(node.address.path).stat().st_mode & 0o7777 == 0o660


def test_metrics_tell_the_time_inside_the_node(node: NodeProcess, client: KeylessClient, p256: bytes) -> None:
    """Each signature is observed under its token and scheme; refused requests are counted."""
    labels = {"token": "software", "scheme": "ecdsa_secp256r1_sha256"}
    before = metrics_of(node)
    assert client.ask(P256, DIGEST, ski=p256).opcode == keyless.OP_RESPONSE
    assert error_code(client.ask(0x01)) == keyless.ERR_BAD_OPCODE
    after = metrics_of(node)

    def grown(name: str, **more: str) -> float:
        return sample(after, name, **more) - sample(before, name, **more)

    assert grown("hsm_node_sign_seconds_count", **labels) == 1
    assert 0 < grown("hsm_node_sign_seconds_sum", **labels) < LIMIT
    assert grown("hsm_node_errors_total", reason="bad_opcode") == 1
    assert sample(after, "hsm_node_connections") >= 1
    assert sample(after, "hsm_node_pending") == 0


def test_refused_connections_are_counted_and_logged(node: NodeProcess) -> None:
    """A malformed client shows in the metrics and in the log."""
    before = sample(metrics_of(node), "hsm_node_refused_connections_total", reason="malformed")
    with KeylessClient.connect(node.address) as hostile:
        hostile.send(bytes(8))
        assert hostile.is_closed()
    assert sample(metrics_of(node), "hsm_node_refused_connections_total", reason="malformed") == before + 1
    assert node.wait_event("connection_refused")["reason"] == "malformed"


def test_probes(node: NodeProcess) -> None:
    """`/livez` and `/readyz` answer while the node serves."""
    admin = f"{Path(node.address.path).parent}/admin.sock"
    assert json.loads(get("/livez", admin)) == {"alive": True, "pid": node.pid}
    assert json.loads(get("/readyz", admin)) == {"ready": True, "keys": len(KINDS)}
    assert Path(admin).stat().st_mode & 0o777 == 0o600


def test_an_admin_client_that_says_too_much_is_closed(node: NodeProcess) -> None:
    """A head without an end is not gathered without bound; who says nothing keeps nobody else waiting."""
    path = f"{Path(node.address.path).parent}/admin.sock"
    with KeylessClient.connect(Address(path=path)), KeylessClient.connect(Address(path=path)) as talker:
        talker.send(b"GET /livez HTTP/1.1\r\n" + b"x" * (2 * HEAD_MOST + 1))
        assert talker.is_closed()
        assert json.loads(get("/livez", path))["alive"]


def test_a_wrong_signature_is_well_formed(
    pool: NodePool, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    """`wrong_rate` gives signatures of something else, as a faulty HSM would."""
    scheme = SCHEME_BY_OPCODE[P256]
    (node,) = pool.get("wrong_rate=1")
    with KeylessClient.connect(node.address) as client:
        answer = client.ask(P256, DIGEST, ski=ski_of(keys["p256"].public_key()))
        assert answer.opcode == keyless.OP_RESPONSE
        assert not openssl_accepts(keys["p256"], scheme, DIGEST, answer.payload, tmp_path)


def test_a_slow_signature_holds_up_nothing_else(pool: NodePool, p256: bytes) -> None:
    """While signatures wait for the emulated HSM the node answers pings and lists keys."""
    (node,) = pool.get("latency=20ms")
    with KeylessClient.connect(node.address) as client:
        client.send(
            keyless.encode(1, P256, DIGEST, ski=p256),
            keyless.encode(2, keyless.OP_PING),
            keyless.encode_keys_request(3),
        )
        assert [client.receive().id for _ in range(3)] == [2, 3, 1]


def test_a_second_node_on_the_same_socket_is_refused(node: NodeProcess, key_directory: Path) -> None:
    """The socket of a live node is not taken over: one line, exit code 2, and the first goes on."""
    second = run_hsm("node", "--listen", node.listen, "--keys", str(key_directory))
    assert second.returncode == 2
    assert second.stderr == (
        f"error: {node.listen}: another process listens there; stop it or choose another path\n"
    )
    with KeylessClient.connect(node.address) as client:
        assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG
