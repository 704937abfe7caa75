"""What a node signs with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hsm import keyless
from hsm.inventory import KeyDetails
from hsm.signing import SignatureScheme


class TokenError(Exception):
    """A signature could not be made; `code` is the Keyless error to answer with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Expired(TokenError):
    """The request was dropped: its deadline would have passed before its turn."""

    def __init__(self) -> None:
        super().__init__(keyless.ERR_EXPIRED, "nobody waits for it any more")


Result = bytes | TokenError
OnResult = Callable[[Result], None]


class Token(Protocol):
    """Holds keys and signs digests with them."""

    kind: str
    """`software`, `pkcs11` …; a metric label."""

    def keys(self) -> list[tuple[bytes, frozenset[int]]]:
        """What it holds: SKI and the opcodes that the key can serve."""

    def details(self) -> list[KeyDetails]:
        """The same keys, with what people want to know of them."""

    def update_gauges(self) -> None:
        """Bring the token's own gauges up to date, if it has any."""

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],
        on_result: OnResult,
    ) -> None:
        """Call `on_result` once, at once or later: RSA raw, ECDSA DER, or what went wrong.

        `expires` tells the time.monotonic() after which nobody waits, or None; it is asked
        only by a token that makes requests wait.
        """
