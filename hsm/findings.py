"""What an examination finds: `hsm doctor`, `offload check --connect`. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from hsm.inventory import KeyDetails
from hsm.signing import SCHEME_BY_OPCODE, KeyType, Padding, SignatureScheme


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works; somebody should know."""
    BROKEN = "broken"
    """Handshakes that need it fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report: about what, and what."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"

    @property
    def is_broken(self) -> bool:
        """Whether handshakes fail for it."""
        return self.level is Level.BROKEN

    def as_json(self) -> dict[str, Any]:
        """The finding for programs."""
        return {"level": self.level.value, "subject": self.subject, "text": self.text}


def ok(subject: str, text: str) -> Finding:
    """Something is as it should be."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """Something works, but."""
    return Finding(Level.WARNING, subject, text)


def broken(subject: str, text: str) -> Finding:
    """Something does not work."""
    return Finding(Level.BROKEN, subject, text)


def signed(key: KeyDetails, scheme: SignatureScheme, seconds: list[float]) -> Finding:
    """Signatures of one scheme were made and verified, in so many seconds each."""
    return ok(f"key {key}", f"{scheme.name} signs and verifies, {median(seconds) * 1000:.2f} ms a signature")


def key_warnings(key: KeyDetails) -> Iterator[Finding]:
    """What is not as it should be with a key that signs."""
    if key.is_extractable:
        yield warning(
            f"key {key}",
            "it can be extracted (CKA_EXTRACTABLE, or a key file): whoever gets at the token may copy it; "
            "make one inside a token with 'hsm keygen --token-uri'",
        )
    schemes = [SCHEME_BY_OPCODE[opcode] for opcode in key.opcodes if opcode in SCHEME_BY_OPCODE]
    is_rsa = any(scheme.key_type is KeyType.RSA for scheme in schemes)
    if is_rsa and all(scheme.padding is not Padding.PSS for scheme in schemes):
        yield warning(
            f"key {key}",
            "it can't do RSA-PSS, which TLS 1.3 needs: give listeners that use it a policy without, or use an EC key",
        )
