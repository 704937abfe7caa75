"""Key pairs made inside a token: `hsm keygen --token-uri`.

The private half is sensitive, not extractable and may sign, nothing else. What the token made of that is
read back: some modules take an attribute and do not heed it. Both halves get one random CKA_ID in the call
that makes them. An id derived from the SKI could only be set afterwards: some tokens do not let it be
changed, and until then a node that looks for keys would find the halves unpaired.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hsm import keygen
from hsm.errors import ConfigurationError
from hsm.node import cryptoki as ck
from hsm.node.ckr import CryptokiError
from hsm.node.cryptoki import Attributes
from hsm.node.direct import DirectToken, sign
from hsm.node.keys import CURVE_BY_PARAMETERS, TokenKey
from hsm.node.mechanisms import CKM_EC_KEY_PAIR_GEN, CKM_RSA_PKCS_KEY_PAIR_GEN
from hsm.node.private_key import TokenECKey, TokenRSAKey, private_key
from hsm.signing import SCHEME_BY_OPCODE, Padding, SignatureScheme

_ID_SIZE = 16
_PARAMETERS = {curve.name: der for der, curve in CURVE_BY_PARAMETERS.items()}
_TEMPLATE_CODES = (0x10, 0x12, 0x13, 0xD1)
"""CKR_ATTRIBUTE_READ_ONLY, ATTRIBUTE_TYPE_INVALID, ATTRIBUTE_VALUE_INVALID, TEMPLATE_INCONSISTENT."""
_REQUIRED = {
    "CKA_TOKEN": (ck.CKA_TOKEN, True),
    "CKA_SENSITIVE": (ck.CKA_SENSITIVE, True),
    "CKA_EXTRACTABLE": (ck.CKA_EXTRACTABLE, False),
}
_UNWANTED = {
    "CKA_DECRYPT": ck.CKA_DECRYPT,
    "CKA_UNWRAP": ck.CKA_UNWRAP,
    "CKA_DERIVE": ck.CKA_DERIVE,
    "CKA_SIGN_RECOVER": ck.CKA_SIGN_RECOVER,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair that was just made, and can still be taken back."""

    key: TokenKey
    signer: TokenECKey | TokenRSAKey
    extras: list[str]
    """What else the token lets the private key do, though it was told not to: names of attributes."""
    discard: Callable[[], None]
    """Delete both halves. Raises ConfigurationError if the token does not."""

    @property
    def needs_pss(self) -> bool:
        """Whether it is an RSA key that can sign certificates with PSS only."""
        return {SCHEME_BY_OPCODE[o].padding for o in self.key.opcodes} == {Padding.PSS}


def templates(kind: str, label: str, id: bytes, *, strict: bool) -> tuple[int, Attributes, Attributes]:
    """The mechanism, and what is asked of the public and the private half; pure.

    `strict` also forbids the private key every other use, attribute by attribute, which not all modules
    understand. CKA_PRIVATE of the public half stays the token's own choice: CloudHSM allows only its own.
    """
    public: dict[int, bytes | bool | int] = {ck.CKA_TOKEN: True, ck.CKA_VERIFY: True}
    private: dict[int, bytes | bool | int] = {
        ck.CKA_TOKEN: True, ck.CKA_PRIVATE: True, ck.CKA_SENSITIVE: True, ck.CKA_EXTRACTABLE: False,
        ck.CKA_SIGN: True,
    }  # fmt: skip
    name: dict[int, bytes | bool | int] = {ck.CKA_LABEL: label.encode(), ck.CKA_ID: id}
    if kind in keygen.CURVES:
        mechanism = CKM_EC_KEY_PAIR_GEN
        public[ck.CKA_EC_PARAMS] = _PARAMETERS[keygen.CURVES[kind]().name]
        denied = {ck.CKA_DERIVE: False}
    else:
        mechanism = CKM_RSA_PKCS_KEY_PAIR_GEN
        public[ck.CKA_MODULUS_BITS] = keygen.rsa_bits(kind)
        public[ck.CKA_PUBLIC_EXPONENT] = keygen.PUBLIC_EXPONENT.to_bytes(3, "big")
        denied = {}  # no token derives from an RSA key, and CloudHSM does not know the attribute there
    if strict:
        public |= {ck.CKA_ENCRYPT: False, ck.CKA_WRAP: False}
        private |= {ck.CKA_DECRYPT: False, ck.CKA_UNWRAP: False, ck.CKA_SIGN_RECOVER: False, **denied}
    return mechanism, public | name, private | name


def generate(token: DirectToken, kind: str, label: str) -> Pair:
    """A new key pair of one of `hsm.keygen.KINDS` in the token. Raises ConfigurationError."""
    where = f"token {token.info.label!r}"
    try:
        for kept in (ck.CKO_PRIVATE_KEY, ck.CKO_PUBLIC_KEY):
            if token.session.find({ck.CKA_CLASS: kept, ck.CKA_LABEL: label.encode()}):
                raise ConfigurationError(f"{where}: a key {label!r} is there already; choose another --label")
        id = secrets.token_bytes(_ID_SIZE)
        handles = _make(token, kind, label, id)
    except CryptokiError as error:
        raise ConfigurationError(
            f"{where}: can't make a {kind} key: {error}; may this user make keys, and does the token know the type?"
        ) from error
    discard = partial(_discard, token, handles, f"{where}: key {label!r}")
    with discarding(discard):
        try:
            extras = _read_back(token, handles[1])
            found = token.keys(lambda made: made.id == id)
        except CryptokiError as error:
            raise ConfigurationError(f"{where}: the new key can't be read: {error}") from error
        key = next(iter(found.keys.values()), None)
        if key is None:
            told = "; ".join(found.problems) or "it is not there"
            raise ConfigurationError(f"{where}: a node could not use the new key: {told}")
        return Pair(
            key, private_key(key.public_key, key.opcodes, partial(_sign, token, key)), extras, discard
        )


@contextlib.contextmanager
def discarding(discard: Callable[[], None]) -> Iterator[None]:
    """Take a pair back if the block fails, however it does."""
    try:
        yield
    except BaseException as error:
        try:
            discard()
        except ConfigurationError as left:
            raise ConfigurationError(f"{error}\n{left}") from error
        raise


def _make(token: DirectToken, kind: str, label: str, id: bytes) -> tuple[int, int]:
    try:
        return token.session.generate_pair(*templates(kind, label, id, strict=True))
    except CryptokiError as error:
        if error.code not in _TEMPLATE_CODES:
            raise
    return token.session.generate_pair(*templates(kind, label, id, strict=False))


def _read_back(token: DirectToken, handle: int) -> list[str]:
    """Check what must be, return what should not be. What the token does not tell counts as asked for."""
    wanted = [kind for kind, _ in _REQUIRED.values()] + list(_UNWANTED.values())
    values = token.session.attributes(handle, wanted)
    for name, (kind, value) in _REQUIRED.items():
        if values.get(kind) and (values[kind] != b"\0") is not value:
            raise ConfigurationError(
                f"token {token.info.label!r} made a key whose {name} is {not value}, though told otherwise; "
                "such a key is not safe there, and was not kept"
            )
    return [name for name, kind in _UNWANTED.items() if values.get(kind, b"\0") not in (b"", b"\0")]


def _sign(token: DirectToken, key: TokenKey, scheme: SignatureScheme, digest: bytes) -> bytes:
    try:
        return sign(token.session, key, scheme, digest)
    except (CryptokiError, ValueError) as error:
        raise ConfigurationError(f"token {token.info.label!r}: the new key does not sign: {error}") from error


def _discard(token: DirectToken, handles: tuple[int, int], what: str) -> None:
    try:
        for handle in reversed(handles):  # the private half first
            token.session.destroy(handle)
    except CryptokiError as error:
        raise ConfigurationError(
            f"{what} is of no use and could not be deleted again: {error}; delete it"
        ) from error
