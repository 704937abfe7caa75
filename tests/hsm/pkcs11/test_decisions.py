"""The pure parts of a PKCS#11 node: codes, mechanisms, growth, and which key is which."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import ConfigurationError
from hsm.node import ckr, growth
from hsm.node import cryptoki as ck
from hsm.node.ckr import Class, Step
from hsm.node.cryptoki import TokenInfo
from hsm.node.keeper import choose_token
from hsm.node.keys import Found, Objects, TokenObject, match
from hsm.node.mechanisms import CKF_SIGN, RECIPES, MechanismInfo, ecdsa_der, served_opcodes
from hsm.node.uri import parse
from hsm.signing import KeyType, PrivateKey, PublicKey, opcodes_for, ski_of

ALL = {kind: MechanismInfo(0, 0, CKF_SIGN) for kind in (0x1, 0xD, 0x1041)}


@pytest.mark.parametrize(
    ("code", "kind", "step"),
    [
        (0x0B3, Class.RETRY_HERE, Step.REOPEN),
        (0x060, Class.RETRY_HERE, Step.REFIND),
        (0x101, Class.RETRY_HERE, Step.LOGIN),
        (0x032, Class.RETRY_ELSEWHERE, Step.REOPEN),
        (0x006, Class.RETRY_ELSEWHERE, Step.NONE),
        (0x190, Class.RETRY_ELSEWHERE, Step.RESTART),
        (0x070, Class.KEY, Step.NONE),
        (0x0A0, Class.OPERATOR, Step.NONE),
        (0x0A4, Class.OPERATOR, Step.NONE),
    ],
)
def test_codes_are_classed(code: int, kind: Class, step: Step) -> None:
    """The codes that nodes meet most, and what is done about each."""
    row = ckr.meaning(code)
    assert (row.kind, row.step) == (kind, step)


def test_the_table_is_consistent() -> None:
    """Names are unique; what nobody here can put right has no step; what is tried again here has one."""
    names = [row.name for row in ckr.TABLE.values()]
    assert len(set(names)) == len(names)
    for row in ckr.TABLE.values():
        assert row.name.startswith("CKR_")
        if row.kind in (Class.KEY, Class.OPERATOR):
            assert row.step is Step.NONE, row
        if row.kind is Class.RETRY_HERE and row.name != "CKR_USER_ALREADY_LOGGED_IN":
            assert row.step in (Step.REFIND, Step.REOPEN, Step.LOGIN), row


def test_unknown_codes_are_faults_of_the_device() -> None:
    """A vendor's own code is named by its number, and another node is asked."""
    assert ckr.meaning(0x80000187).name == "CKR_VENDOR_DEFINED+0x187"
    assert ckr.meaning(0x80000187).kind is Class.RETRY_ELSEWHERE
    assert str(ckr.CryptokiError("C_Sign", 0x0FF)) == "C_Sign: CKR 0xFF"


@given(
    st.sampled_from([32, 48, 66]).flatmap(
        lambda n: st.tuples(st.just(n), *[st.integers(1, 2 ** (8 * n) - 1)] * 2)
    )
)
def test_raw_ecdsa_becomes_der(case: tuple[int, int, int]) -> None:
    """For every r and s, the same as cryptography's encoder."""
    size, r, s = case
    der = ecdsa_der(r.to_bytes(size, "big") + s.to_bytes(size, "big"))
    assert der == encode_dss_signature(r, s)
    assert decode_dss_signature(der) == (r, s)


def test_what_is_no_raw_ecdsa_signature_is_refused() -> None:
    """Nothing, or an odd number of bytes, is not r and s."""
    for raw in (b"", b"\x01", bytes(63)):
        with pytest.raises(ValueError, match="is not r and s"):
            ecdsa_der(raw)


def test_mechanisms_decide_the_opcodes() -> None:
    """Without PSS no 35 to 37; without CKF_SIGN or outside the sizes nothing; the key's own list counts too."""
    assert served_opcodes(KeyType.RSA, 2048, ALL, None) == opcodes_for(KeyType.RSA)
    assert served_opcodes(KeyType.EC, 256, ALL, None) == opcodes_for(KeyType.EC)
    assert served_opcodes(KeyType.RSA, 2048, {0x1: ALL[0x1]}, None) == {0x05, 0x06, 0x07}
    assert served_opcodes(KeyType.RSA, 2048, ALL, frozenset({0xD})) == {0x35, 0x36, 0x37}
    assert served_opcodes(KeyType.EC, 256, {0x1041: MechanismInfo(0, 0, 0)}, None) == frozenset()
    assert served_opcodes(KeyType.EC, 256, {0x1041: MechanismInfo(384, 521, CKF_SIGN)}, None) == frozenset()


def test_every_opcode_has_a_recipe() -> None:
    """DigestInfo goes before PKCS#1 digests alone; PSS takes the salt of the hash's length."""
    assert {opcode for opcode, recipe in RECIPES.items() if recipe.prefix} == {0x05, 0x06, 0x07}
    assert [RECIPES[opcode].mechanism.pss for opcode in (0x35, 0x36, 0x37)] == [
        (0x250, 2, 32), (0x260, 3, 48), (0x270, 4, 64),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("configured", "token_most", "limit"),
    [(None, None, 64), (None, 1024, 64), (None, 16, 15), (8, None, 8), (8, 4, 3), (8, 1, 1), (1, None, 1)],
)
def test_the_limit_of_sessions(configured: int | None, token_most: int | None, limit: int) -> None:
    """The setting, and what the token allows less the login's session."""
    assert growth.session_limit(configured, token_most) == limit


def open_now(**changed: int | bool) -> int:
    """Growth of a pool of four of 64 with ten jobs waiting, but for what is changed."""
    usual = {"waiting": 10, "sessions": 4, "opening": 0, "limit": 64, "computes": False, "cores": 2}
    return growth.sessions_to_open(**{**usual, **changed})  # type: ignore[arg-type]  # by name


def test_a_pool_grows_while_work_waits() -> None:
    """It doubles at most, opens no more than wait, stays below the limit, and waits for those that open."""
    assert open_now() == 4
    assert open_now(waiting=1) == 1
    assert open_now(waiting=0) == 0
    assert open_now(limit=6) == 2
    assert open_now(limit=4) == 0
    assert open_now(opening=1) == 0


def test_a_module_that_computes_gets_no_more_threads_than_cores() -> None:
    """More would only fight for the cores."""
    assert open_now(computes=True) == 0
    assert open_now(computes=True, cores=8) == 4
    assert open_now(computes=True, sessions=1, cores=1) == 1


def test_waiting_and_computing_modules_are_told_apart() -> None:
    """One call that was not disturbed is enough to see that a module computes."""
    network, software = growth.Workload(), growth.Workload()
    assert not network.computes
    for _ in range(40):
        network.add(0.005, 0.0001)
        software.add(0.005, 0.0001)
    software.add(0.0001, 0.00009)
    assert software.computes
    assert not network.computes


def ulong(value: int) -> bytes:
    """A CK_ULONG."""
    return value.to_bytes(8, "little")


class Tokens:
    """Makes the objects that a token would show."""

    def __init__(self) -> None:
        self.handle = 0

    def private(self, key: PrivateKey, label: str, id: bytes, **more: bytes) -> TokenObject:
        """A private key; an RSA one tells modulus and exponent."""
        values = self._common(key.public_key(), label, id)
        del_point = {kind: value for kind, value in values.items() if kind != ck.CKA_EC_POINT}
        extra = {getattr(ck, name): value for name, value in more.items()}
        return self._make({**del_point, ck.CKA_SIGN: b"\1", **extra})

    def public(self, key: PrivateKey, label: str, id: bytes) -> TokenObject:
        """A public-key object."""
        return self._make(self._common(key.public_key(), label, id))

    def certificate(self, key: PrivateKey, label: str, id: bytes) -> TokenObject:
        """A certificate object."""
        return self._make({ck.CKA_ID: id, ck.CKA_LABEL: label.encode(), ck.CKA_VALUE: self_signed(key)})

    def _make(self, values: Mapping[int, bytes]) -> TokenObject:
        self.handle += 1
        return TokenObject(self.handle, values)

    def _common(self, key: PublicKey, label: str, id: bytes) -> dict[int, bytes]:
        values = {ck.CKA_ID: id, ck.CKA_LABEL: label.encode()}
        numbers = key.public_numbers()
        if hasattr(numbers, "n"):
            values |= {
                ck.CKA_KEY_TYPE: ulong(0),
                ck.CKA_MODULUS: numbers.n.to_bytes(key.key_size // 8, "big"),
            }
            return values | {ck.CKA_PUBLIC_EXPONENT: b"\1\0\1"}
        curves = {
            "secp256r1": "06082a8648ce3d030107",
            "secp384r1": "06052b81040022",
            "secp521r1": "06052b81040023",
        }
        point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        wrapped = b"\x04" + (b"\x81" if len(point) > 127 else b"") + bytes([len(point)]) + point
        parameters = bytes.fromhex(curves[numbers.curve.name])
        return values | {ck.CKA_KEY_TYPE: ulong(3), ck.CKA_EC_PARAMS: parameters, ck.CKA_EC_POINT: wrapped}


def self_signed(key: PrivateKey) -> bytes:
    """A certificate of this key, DER."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    number = x509.random_serial_number()
    builder = x509.CertificateBuilder(name, name, key.public_key(), number, now - day, now + day)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def found(
    private: list[TokenObject],
    public: tuple[TokenObject, ...] = (),
    certificates: tuple[TokenObject, ...] = (),
    mapped: Mapping[str, PublicKey] | None = None,
) -> Found:
    """What a node makes of these objects."""
    return match(Objects(private, public, certificates), mapped or {}, ALL)


def test_ec_keys_are_matched_by_id(keys: dict[str, PrivateKey]) -> None:
    """By a public-key object or a certificate, of every curve, in whatever order they come."""
    tokens = Tokens()
    private = [tokens.private(keys[kind], kind, kind.encode()) for kind in ("p256", "p384", "p521")]
    public = (tokens.public(keys["p521"], "x", b"p521"), tokens.public(keys["p256"], "y", b"p256"))
    certificates = (tokens.certificate(keys["p384"], "z", b"p384"),)
    result = found(private, public, certificates)
    assert result.problems == ()
    for kind in ("p256", "p384", "p521"):
        assert result.keys[ski_of(keys[kind].public_key())].label == kind


def test_an_rsa_key_needs_no_public_half(keys: dict[str, PrivateKey]) -> None:
    """It tells modulus and exponent itself."""
    result = found([Tokens().private(keys["rsa2048"], "web", b"")])
    assert list(result.keys) == [ski_of(keys["rsa2048"].public_key())]


def test_a_key_without_a_public_half_is_named_with_the_remedy(keys: dict[str, PrivateKey]) -> None:
    """An EC key alone can't be offered; the operator can name its certificate."""
    tokens = Tokens()
    private = tokens.private(keys["p256"], "web", b"\x01")
    (problem,) = found([private], (tokens.public(keys["p384"], "web", b"\x02"),)).problems
    assert problem.startswith(
        "key 'web' (CKA_ID 01): has no public key object and no certificate with the same"
    )
    assert "keys: [{object: LABEL, certificate: FILE}]" in problem
    mapped = found([private], mapped={"web": keys["p256"].public_key()})
    assert list(mapped.keys) == [ski_of(keys["p256"].public_key())]


def test_a_mapping_that_is_wrong_is_told(keys: dict[str, PrivateKey]) -> None:
    """Another kind's certificate, another RSA key's, or a label that the token has not."""
    private = Tokens().private(keys["rsa2048"], "web", b"\x01")
    result = found([private], mapped={"web": keys["p256"].public_key(), "wep": keys["p256"].public_key()})
    assert result.keys == {}
    assert result.problems == (
        "key 'web' (CKA_ID 01): the certificate that keys: names for it is another key's",
        "keys: the token has no private key 'wep'",
    )


def test_a_shared_id_pairs_no_key_with_anothers_half(keys: dict[str, PrivateKey]) -> None:
    """Two EC keys under one CKA_ID are told apart by their labels, or not offered at all."""
    tokens, other = Tokens(), keys["p521"]
    private = [tokens.private(keys["p384"], "a", b"\x01"), tokens.private(other, "b", b"\x01")]
    public = (tokens.public(other, "b", b"\x01"), tokens.public(keys["p384"], "a", b"\x01"))
    labels = {key.label: ski for ski, key in found(private, public).keys.items()}
    assert labels == {"a": ski_of(keys["p384"].public_key()), "b": ski_of(other.public_key())}
    twins = [tokens.private(keys["p256"], "", b"\x01"), tokens.private(keys["p256"], "", b"\x01")]
    result = found(twins, (tokens.public(keys["p256"], "", b"\x01"),))
    assert result.keys == {}
    assert all("give each key a CKA_ID of its own" in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("attribute", "value", "complaint"),
    [
        ("CKA_SIGN", b"\0", "CKA_SIGN is false; make a key that may sign"),
        ("CKA_ALWAYS_AUTHENTICATE", b"\1", "it wants the PIN for each signature"),
        ("CKA_KEY_TYPE", (0x40).to_bytes(8, "little"), "neither RSA nor EC"),
        (
            "CKA_ALLOWED_MECHANISMS",
            (0x3).to_bytes(8, "little"),
            "the token offers no mechanism to sign with it",
        ),
    ],
)
def test_keys_that_cannot_serve_are_told(
    keys: dict[str, PrivateKey], attribute: str, value: bytes, complaint: str
) -> None:
    """Each is left out with its reason."""
    (problem,) = found([Tokens().private(keys["rsa2048"], "web", b"\x01", **{attribute: value})]).problems
    assert complaint in problem


def token(label: str, serial: str, slot_id: int) -> TokenInfo:
    """A token as the module shows it."""
    return TokenInfo(slot_id, "slot", label, "maker", "model", serial, 0, None)


def test_a_uri_chooses_one_token() -> None:
    """By label, serial number or slot; several or none are errors that list what there is."""
    tokens = [token("tls", "1", 7), token("tls", "2", 8), token("web", "3", 9)]
    assert choose_token(tokens, parse("pkcs11:token=web")).serial == "3"
    assert choose_token(tokens, parse("pkcs11:token=tls;serial=2")).slot_id == 8
    assert choose_token(tokens, parse("pkcs11:slot-id=7")).serial == "1"
    with pytest.raises(ConfigurationError, match=r"several tokens fit; add serial= or slot-id="):
        choose_token(tokens, parse("pkcs11:token=tls"))
    with pytest.raises(ConfigurationError, match=r"no such token; the module has: .*serial='3' slot-id=9"):
        choose_token(tokens, parse("pkcs11:token=none"))
    with pytest.raises(ConfigurationError, match="no token at all"):
        choose_token([], parse("pkcs11:token=none"))
