"""A node on a real SoftHSM2 token: what it offers, and that its signatures are right."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hsm import keyless
from hsm.signing import KeyType, PrivateKey, opcodes_for, ski_of
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, get, new_key, sample
from tests.support.pkcs11 import SoftToken, TokenClient, configured_node, running_node, softhsm

RSA, EC = opcodes_for(KeyType.RSA), opcodes_for(KeyType.EC)


def test_every_key_and_scheme_signs(client: TokenClient, keys: dict[str, PrivateKey]) -> None:
    """What is offered is all that the keys can do, and each signature verifies."""
    expected = {client.ski(name): RSA if name == "rsa2048" else EC for name in keys}
    assert client.offered() == expected
    for name in keys:
        for opcode in expected[client.ski(name)]:
            client.sign(name, opcode)


def test_a_thousand_signatures_in_parallel_all_verify(client: TokenClient) -> None:
    """Keys and schemes are mixed, answers come in any order, none is another's."""
    names = ["p256", "p384", "rsa2048", "p256"]
    wanted = {id: names[id % 4] for id in range(1000)}
    opcodes = {"p256": 0x15, "p384": 0x16, "rsa2048": 0x35}
    client.client.send(*(client.request(id, name, opcodes[name]) for id, name in wanted.items()))
    while wanted:
        answer = client.client.receive()
        name = wanted.pop(answer.id)
        client.check(answer, name, opcodes[name])


def test_what_the_key_cannot_do_is_refused(client: TokenClient) -> None:
    """An RSA key makes no ECDSA signature, and an unknown key is not found."""
    assert client.error("rsa2048", 0x15) == keyless.ERR_CRYPTO
    answer = client.client.ask(0x15, bytes(32), ski=bytes(20))
    assert (answer.opcode, answer.payload) == (keyless.OP_ERROR, bytes([keyless.ERR_KEY_NOT_FOUND]))


def test_expired_work_does_not_reach_the_module(shared_node: NodeProcess, client: TokenClient) -> None:
    """A request that nobody waits for any more is dropped."""
    assert client.error("p256", 0x15, remaining_ms=0) == keyless.ERR_EXPIRED


def test_a_new_key_is_found_without_a_restart(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """A key imported while the node runs is found when it is asked for, and offered from then on."""
    fresh = new_key("p256")
    with (
        running_node(run_directory, token.environment, token.uri()) as node,
        TokenClient(node, {**keys, "fresh": fresh}) as client,
    ):
        assert client.ski("fresh") not in client.offered()
        token.import_key("fresh", fresh, "77")
        client.sign("fresh", 0x15)
        assert client.ski("fresh") in client.offered()


def test_new_keys_are_looked_for_by_themselves(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path, tmp_path: Path
) -> None:
    """A client that asks only for listed keys sees a new one at the next look of the keeper."""
    fresh = new_key("p384")
    settings = {"uri": token.uri(), "keepalive": "200ms"}
    with (
        configured_node(run_directory, tmp_path, token.environment, settings) as node,
        TokenClient(node, {**keys, "fresh": fresh}) as client,
    ):
        token.import_key("fresh", fresh, "77")
        eventually(lambda: client.ski("fresh") in client.offered(), "the new key in the list")


def test_one_object_of_the_token_can_be_chosen(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """`object=` in the URI leaves the token's other keys alone."""
    uri = token.uri().replace("token=tls", "token=tls;object=p384")
    with running_node(run_directory, token.environment, uri) as node, TokenClient(node, keys) as client:
        assert set(client.offered()) == {client.ski("p384")}


_SECOND_CLIENT = """
import sys, pkcs11
from pkcs11 import Mechanism, ObjectClass
module, pin, digest, signature = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])
token = pkcs11.lib(module).get_token(token_label="tls")
with token.open(user_pin=pin) as session:
    key = session.get_key(object_class=ObjectClass.PUBLIC_KEY, label="rsa2048")
    print(key.verify(digest, signature, mechanism=Mechanism.RSA_PKCS_PSS,
                     mechanism_param=(Mechanism.SHA256, pkcs11.MGF.SHA256, 32)))
"""


def test_the_token_itself_verifies_the_nodes_signature(
    filled_token: SoftToken, client: TokenClient, keys: dict[str, PrivateKey]
) -> None:
    """python-pkcs11, another binding in another process, has the token verify a PSS signature."""
    pytest.importorskip("pkcs11")
    digest = b"\x07" * 32
    answer = client.client.ask(0x35, digest, ski=ski_of(keys["rsa2048"].public_key()))
    arguments = [str(softhsm()), filled_token.pin, digest.hex(), answer.payload.hex()]
    assert filled_token.run(sys.executable, "-c", _SECOND_CLIENT, *arguments).strip() == "True"


def test_a_key_that_is_kept_from_pss(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """CKA_ALLOWED_MECHANISMS of one key: the token refuses it PSS, and the node does not offer that."""
    kept = new_key("rsa2048")
    token.import_rsa_key("kept", kept, "78", "--allowed-mechanisms", "RSA-PKCS")
    (token.directory / "digest").write_bytes(bytes(32))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        token.tool(
            "--sign", "--mechanism", "RSA-PKCS-PSS", "--hash-algorithm", "SHA256", "--id", "78",
            "--input-file", str(token.directory / "digest"), "--output-file", str(token.directory / "signature"),
        )  # fmt: skip
    assert "C_SignInit failed: rv = CKR_MECHANISM_INVALID" in refused.value.stderr
    with (
        running_node(run_directory, token.environment, token.uri()) as node,
        TokenClient(node, {**keys, "kept": kept}) as client,
    ):
        assert client.offered()[client.ski("kept")] == {0x05, 0x06, 0x07}
        assert client.offered()[client.ski("rsa2048")] == RSA
        assert client.error("kept", 0x35) == keyless.ERR_CRYPTO
        client.sign("kept", 0x05)


_FORBID_SIGNING = """
import sys, pkcs11
from pkcs11 import Attribute, ObjectClass
module, pin = sys.argv[1:]
token = pkcs11.lib(module).get_token(token_label="tls")
with token.open(rw=True, user_pin=pin) as session:
    session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="rsa2048")[Attribute.SIGN] = False
"""


def test_a_key_that_may_not_sign_any_more(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """CKR_KEY_FUNCTION_NOT_PERMITTED: each scheme that is refused is withdrawn, for this key alone."""
    pytest.importorskip("pkcs11")
    with (
        running_node(run_directory, token.environment, token.uri()) as node,
        TokenClient(node, keys) as client,
    ):
        client.sign("rsa2048", 0x35)
        token.run(sys.executable, "-c", _FORBID_SIGNING, str(softhsm()), token.pin)
        assert client.error("rsa2048", 0x35) == keyless.ERR_CRYPTO
        assert "CKR_KEY_FUNCTION_NOT_PERMITTED" in str(node.wait_event("signature_failed"))
        assert client.offered()[client.ski("rsa2048")] == RSA - {0x35}
        client.sign("p256", 0x15)


def test_the_admin_address_tells_sessions_and_module_time(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """Sessions by state, and the module's time apart from the node's, are metrics."""
    admin = f"{run_directory}/admin.sock"
    options = ("--admin", f"unix:{admin}", "--sessions", "3")
    with (
        running_node(run_directory, token.environment, token.uri(), *options) as node,
        TokenClient(node, keys) as client,
    ):
        client.sign("p256", 0x15)
        text = get("/metrics", admin)
        assert sample(text, "hsm_node_sessions") == 2
        assert sample(text, "hsm_node_module_seconds_count", scheme="ecdsa_secp256r1_sha256") == 1
        assert sample(text, "hsm_node_sign_seconds_count", token="pkcs11") == 1


def test_pkcs11_tool_and_the_node_share_a_token(filled_token: SoftToken, client: TokenClient) -> None:
    """An outside client logs in and out while the node goes on signing."""
    for _ in range(2):
        assert "Private Key Object" in filled_token.tool("--list-objects", "--type", "privkey")
        client.sign("p256", 0x15)


def test_the_node_ends_cleanly(token: SoftToken, run_directory: Path) -> None:
    """SIGTERM closes the sessions and the module; the exit code is 0."""
    with running_node(run_directory, token.environment, token.uri()) as node:
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        assert node.wait_event("node_stopped")
