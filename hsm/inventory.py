"""What a node or a token tells of its keys, beyond what signing needs; no I/O.

`hsm keys list` and `hsm doctor` show it. On the wire it is one more custom function of the Keyless
format, `offload.key-details`, beside `offload.keys`: asked page by page in the same way, answered with
JSON, whose unknown fields are skipped. A node that does not know the function answers with an error.
Nothing of it is secret: public keys, labels, and whether a key may be extracted.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm import keyless
from hsm.keyless import KeylessError, Message
from hsm.signing import PublicKey, scheme_list, ski_of, unsupported_reason

DETAILS_FUNCTION = b"offload.key-details"
DETAILS_PER_PAGE = 40
"""Keys in one answer, so that it fits a frame: an RSA-4096 key and the longest label take 1.6 KB."""
LABEL_MOST = 64
"""Characters of a label that are told."""

_CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class KeyDetails:
    """A key as people want to know it. None, or an empty label, is what the holder does not tell."""

    ski: bytes
    opcodes: frozenset[int]
    public_key: PublicKey | None = field(default=None, compare=False, repr=False)
    label: str = ""
    is_extractable: bool | None = None

    @property
    def kind(self) -> str:
        """`RSA-2048`, `P-256` …; empty if the public key is not known."""
        if self.public_key is None:
            return ""
        if isinstance(self.public_key, rsa.RSAPublicKey):
            return f"RSA-{self.public_key.key_size}"
        return _CURVE_NAMES.get(self.public_key.curve.name, self.public_key.curve.name)

    @property
    def shown_label(self) -> str:
        """The label for a terminal: it is others' text, and nothing of it may move the cursor."""
        return "".join(c if c.isprintable() else "?" for c in self.label)

    def __str__(self) -> str:
        """The key in a sentence: its label, or else its SKI."""
        return f"{self.shown_label!r} ({self.kind})" if self.label and self.kind else self.ski.hex()

    def as_json(self) -> dict[str, Any]:
        """The key for programs."""
        return {
            "ski": self.ski.hex(),
            "type": self.kind or None,
            "label": self.label or None,
            "extractable": self.is_extractable,
            "schemes": scheme_list(self.opcodes),
        }


def encode_details_request(id: int, start: int = 0) -> bytes:
    """Asks a node for the details of its keys, from the `start`-th on."""
    return keyless.encode_keys_request(id, start, DETAILS_FUNCTION)


def encode_details_response(id: int, keys: Sequence[KeyDetails], start: int) -> bytes:
    """One page of details; the extra item names the next page, if there is one."""
    told = [
        {
            "public_key": base64.b64encode(
                key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            ).decode(),
            "label": key.label[:LABEL_MOST],
            "extractable": key.is_extractable,
        }
        for key in keys[start : start + DETAILS_PER_PAGE]
        if key.public_key is not None
    ]
    return keyless.encode_page(id, json.dumps(told).encode(), start + DETAILS_PER_PAGE, len(keys))


def decode_details_response(message: Message) -> tuple[list[KeyDetails], int | None]:
    """The keys on this page, without opcodes, and where the next page starts or None.

    The SKI is computed from the public key, never believed. Raises KeylessError if it is malformed.
    """
    try:
        entries = json.loads(message.payload)
        if not isinstance(entries, list):
            raise TypeError("not a list")
        keys = [_decode_entry(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError, UnsupportedAlgorithm) as error:
        raise KeylessError("the details of keys are malformed") from error
    return keys, keyless.decode_next_page(message)


def _decode_entry(entry: dict[str, Any]) -> KeyDetails:
    der = base64.b64decode(entry["public_key"], validate=True)
    public_key: Any = serialization.load_der_public_key(der)
    if reason := unsupported_reason(public_key):
        raise ValueError(reason)
    label, extractable = entry.get("label", ""), entry.get("extractable")
    if not isinstance(label, str) or not isinstance(extractable, bool | None):
        raise TypeError("a label is text, and extractable true, false or null")
    return KeyDetails(ski_of(public_key), frozenset(), public_key, label[:LABEL_MOST], extractable)
