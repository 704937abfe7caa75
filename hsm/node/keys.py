"""Which keys a token holds, and by which names (SKI) they are asked for.

`KeyScanner` reads the token's objects; `match` decides (pure). An EC private key does not tell its
point, so its public half is looked for: a public-key object or a certificate with the same CKA_ID, or
a certificate file that the operator names. An RSA private key mostly tells modulus and exponent itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm.inventory import KeyDetails
from hsm.node import cryptoki as ck
from hsm.node.cryptoki import Attributes, Session
from hsm.node.mechanisms import MechanismInfo, served_opcodes
from hsm.signing import KeyType, PublicKey, key_type_of, ski_of, unsupported_reason

CURVE_BY_PARAMETERS: dict[bytes, ec.EllipticCurve] = {
    # CKA_EC_PARAMS: the DER of the curve's object identifier (RFC 5480 §2.1.1.1)
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}
_READ = (
    ck.CKA_KEY_TYPE, ck.CKA_ID, ck.CKA_LABEL, ck.CKA_SIGN, ck.CKA_EXTRACTABLE, ck.CKA_MODULUS,
    ck.CKA_PUBLIC_EXPONENT, ck.CKA_EC_PARAMS, ck.CKA_EC_POINT, ck.CKA_ALLOWED_MECHANISMS,
    ck.CKA_ALWAYS_AUTHENTICATE,
)  # fmt: skip
_READ_CERTIFICATE = (ck.CKA_ID, ck.CKA_LABEL, ck.CKA_VALUE)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key that can sign. `locator` finds its handle again in another session."""

    ski: bytes
    public_key: PublicKey = field(repr=False)
    label: str
    id: bytes
    opcodes: frozenset[int]
    is_extractable: bool
    handle: int = field(repr=False)
    locator: Attributes = field(repr=False)
    digest_most: int = field(repr=False)
    """Longest input of CKM_ECDSA in bytes: longer digests are cut, which ECDSA would do anyway."""

    def details(self) -> KeyDetails:
        """What may be told of it."""
        return KeyDetails(self.ski, self.opcodes, self.public_key, self.label, self.is_extractable)


@dataclass(frozen=True, slots=True)
class TokenObject:
    """An object of the token, as far as a crypto user may read it."""

    handle: int
    values: Mapping[int, bytes] = field(repr=False)

    @property
    def id(self) -> bytes:
        """CKA_ID."""
        return self.values.get(ck.CKA_ID, b"")

    @property
    def label(self) -> str:
        """CKA_LABEL."""
        return self.values.get(ck.CKA_LABEL, b"").decode(errors="replace")

    @property
    def key_type(self) -> KeyType | None:
        """CKA_KEY_TYPE, if it is one for TLS."""
        value = self.values.get(ck.CKA_KEY_TYPE)
        return {ck.CKK_RSA: KeyType.RSA, ck.CKK_EC: KeyType.EC}.get(ck.ulong(value)) if value else None

    def flag(self, kind: int, default: bool) -> bool:
        """An attribute of type CK_BBOOL."""
        value = self.values.get(kind)
        return default if not value else value != b"\0"

    def __str__(self) -> str:
        return f"{self.label!r} (CKA_ID {self.id.hex() or 'empty'})"


@dataclass(frozen=True, slots=True)
class Objects:
    """What a scan has read."""

    private: Sequence[TokenObject]
    public: Sequence[TokenObject]
    certificates: Sequence[TokenObject]


@dataclass(frozen=True, slots=True)
class Found:
    """The keys by SKI, and what is wrong with those left out: one line each, with the remedy."""

    keys: Mapping[bytes, TokenKey]
    problems: tuple[str, ...]


class KeyScanner:
    """Reads a token's objects; those it knows by their handles are not read again."""

    def __init__(
        self,
        mechanisms: Mapping[int, MechanismInfo],
        mapped: Mapping[str, PublicKey],
        wanted: Callable[[TokenObject], bool],
    ) -> None:
        """`mapped`: label of a private key to its public half; `wanted` chooses private keys."""
        self._mechanisms = mechanisms
        self._mapped = mapped
        self._wanted = wanted
        self._known: dict[int, TokenObject] = {}
        self._found: tuple[tuple[tuple[int, ...], ...], Found] | None = None

    def forget(self) -> None:
        """Handles known until now may mean something else: the token was away."""
        self._known, self._found = {}, None

    def scan(self, session: Session) -> Found:
        """Look for keys. Raises CryptokiError."""
        handles = tuple(
            tuple(session.find({ck.CKA_CLASS: kind}))
            for kind in (ck.CKO_PRIVATE_KEY, ck.CKO_PUBLIC_KEY, ck.CKO_CERTIFICATE)
        )
        if self._found is not None and self._found[0] == handles:
            return self._found[1]
        known = {
            handle: self._known.get(handle) or TokenObject(handle, session.attributes(handle, read))
            for group, read in zip(handles, (_READ, _READ, _READ_CERTIFICATE), strict=True)
            for handle in group
        }
        private, public, certificates = ([known[handle] for handle in group] for group in handles)
        wanted = [key for key in private if self._wanted(key)]
        found = match(Objects(wanted, public, certificates), self._mapped, self._mechanisms)
        self._known, self._found = known, (handles, found)
        return found


def match(
    objects: Objects, mapped: Mapping[str, PublicKey], mechanisms: Mapping[int, MechanismInfo]
) -> Found:
    """Pair private keys with their public halves; pure."""
    halves = [(half, key) for half in objects.public if (key := _public_of(half)) is not None]
    halves += [(half, key) for half in objects.certificates if (key := _certified(half)) is not None]
    keys: dict[bytes, TokenKey] = {}
    problems: list[str] = []
    for private in objects.private:
        found = _match_one(private, objects.private, halves, mapped, mechanisms)
        if isinstance(found, str):
            problems.append(f"key {private}: {found}")
        else:
            keys.setdefault(found.ski, found)
    labels = {private.label for private in objects.private}
    problems += [f"keys: the token has no private key {label!r}" for label in mapped if label not in labels]
    return Found(keys, tuple(problems))


def _match_one(
    private: TokenObject,
    others: Sequence[TokenObject],
    halves: Sequence[tuple[TokenObject, PublicKey]],
    mapped: Mapping[str, PublicKey],
    mechanisms: Mapping[int, MechanismInfo],
) -> TokenKey | str:
    """The key, or why it can't be used."""
    key_type = private.key_type
    if key_type is None:
        return "neither RSA nor EC; RSA and EC keys are supported"
    if not private.flag(ck.CKA_SIGN, default=True):
        return "CKA_SIGN is false; make a key that may sign"
    if private.flag(ck.CKA_ALWAYS_AUTHENTICATE, default=False):
        return "CKA_ALWAYS_AUTHENTICATE is true: it wants the PIN for each signature; make one without"
    public = _public_half(private, key_type, others, halves, mapped)
    if isinstance(public, str):
        return public
    if reason := unsupported_reason(public):
        return reason
    return _token_key(private, key_type, public, mechanisms)


def _token_key(
    private: TokenObject, key_type: KeyType, public: PublicKey, mechanisms: Mapping[int, MechanismInfo]
) -> TokenKey | str:
    listed = private.values.get(ck.CKA_ALLOWED_MECHANISMS)
    allowed = frozenset(ck.ulongs(listed)) if listed else None
    opcodes = served_opcodes(key_type, public.key_size, mechanisms, allowed)
    if not opcodes:
        return "the token offers no mechanism to sign with it (CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA)"
    locator: dict[int, bytes | int] = {ck.CKA_CLASS: ck.CKO_PRIVATE_KEY}
    locator |= {
        kind: private.values[kind]
        for kind in (ck.CKA_KEY_TYPE, ck.CKA_ID, ck.CKA_LABEL, ck.CKA_MODULUS)
        if private.values.get(kind)
    }
    return TokenKey(
        ski=ski_of(public),
        public_key=public,
        label=private.label,
        id=private.id,
        opcodes=opcodes,
        is_extractable=private.flag(ck.CKA_EXTRACTABLE, default=False),
        handle=private.handle,
        locator=locator,
        digest_most=(public.key_size + 7) // 8,
    )


def _public_half(
    private: TokenObject,
    key_type: KeyType,
    others: Sequence[TokenObject],
    halves: Sequence[tuple[TokenObject, PublicKey]],
    mapped: Mapping[str, PublicKey],
) -> PublicKey | str:
    """The public half, or why there is none to be sure of."""
    own = _public_of(private) if key_type is KeyType.RSA else None
    named = mapped.get(private.label)
    if named is not None:
        if key_type_of(named) is not key_type or (own is not None and ski_of(own) != ski_of(named)):
            return "the certificate that keys: names for it is another key's"
        return named
    if own is not None:
        return own
    candidates = [
        (half, key)
        for half, key in halves
        if private.id and half.id == private.id and key_type_of(key) is key_type and _same_curve(private, key)
    ]
    rivals = sum(o.id == private.id and o.key_type is key_type for o in others)
    if rivals > 1 or len({ski_of(key) for _, key in candidates}) > 1:
        candidates = [(half, key) for half, key in candidates if half.label == private.label]
        rivals = sum(o.id == private.id and o.label == private.label for o in others)
    distinct = {ski_of(key): key for _, key in candidates}
    if not distinct:
        return (
            "has no public key object and no certificate with the same CKA_ID; import one, or name its "
            "certificate: keys: [{object: LABEL, certificate: FILE}]"
        )
    if len(distinct) > 1 or rivals > 1:
        return "its CKA_ID and label are shared with another key; give each key a CKA_ID of its own"
    return next(iter(distinct.values()))


def _same_curve(private: TokenObject, key: PublicKey) -> bool:
    curve = CURVE_BY_PARAMETERS.get(private.values.get(ck.CKA_EC_PARAMS, b""))
    return curve is None or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name == curve.name


def _public_of(half: TokenObject) -> PublicKey | None:
    """The public key that an object's attributes tell, or None."""
    values = half.values
    try:
        if half.key_type is KeyType.RSA and ck.CKA_MODULUS in values and ck.CKA_PUBLIC_EXPONENT in values:
            modulus, exponent = values[ck.CKA_MODULUS], values[ck.CKA_PUBLIC_EXPONENT]
            return rsa.RSAPublicNumbers(
                int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
            ).public_key()
        curve = CURVE_BY_PARAMETERS.get(values.get(ck.CKA_EC_PARAMS, b""))
        if half.key_type is KeyType.EC and curve is not None and ck.CKA_EC_POINT in values:
            return ec.EllipticCurvePublicKey.from_encoded_point(curve, _point(values[ck.CKA_EC_POINT], curve))
    except ValueError:  # no key: an RSA key of 512 bits, a point off its curve
        pass
    return None


def _point(value: bytes, curve: ec.EllipticCurve) -> bytes:
    """CKA_EC_POINT is a DER OCTET STRING (PKCS#11 2.40 mechanisms §2.3.3); some tokens leave the wrapping out."""
    size = (curve.key_size + 7) // 8
    if len(value) in (1 + size, 1 + 2 * size):  # compressed or not, and bare
        return value
    return value[3:] if value[:2] == b"\x04\x81" else value[2:]


def _certified(half: TokenObject) -> PublicKey | None:
    try:
        key = x509.load_der_x509_certificate(half.values.get(ck.CKA_VALUE, b"")).public_key()
    except Exception:  # whatever it is, it is no certificate that could be of use here
        return None
    return key if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else None
