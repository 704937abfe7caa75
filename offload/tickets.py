"""Session-ticket encryption keys (STEKs): which exist at a time, and what each listener's are.

Time is divided into epochs of `rotate` seconds. An epoch's key encrypts during that epoch, is
there one epoch early (for clocks that differ, and a rotation that comes late), and decrypts
until the last ticket made with it has lived its `lifetime`.

Pure: time and randomness are arguments. Decisions hang on the wall clock, since that is what
s2n-tls and other replicas go by; whatever it does, nothing far from `now` is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NAME_SIZE, KEY_SIZE = 16, 32
"""Bytes of a STEK's name (in each ticket, in the clear) and of the STEK."""
KEYS_MOST = 48
"""S2N_MAX_TICKET_KEYS."""
SECRET_SIZE = 32


@dataclass(frozen=True, slots=True)
class TicketKey:
    """A STEK as s2n-tls takes it. It encrypts for `rotate` seconds from `introduced` (Unix time) on.

    `epoch` is the one it belongs to, by whichever secret: Unix time divided by `rotate`.
    """

    name: bytes
    key: bytes = field(repr=False)
    introduced: int
    epoch: int


class TicketRing:
    """The epochs' secrets; each listener's STEKs are derived from them by HKDF (RFC 5869).

    Without `shared` secrets each epoch's is random. With them it is derived from the first; those
    of the others only decrypt, so that replicas can be given a new secret one after the other.
    """

    def __init__(self, rotate: int, lifetime: int, shared: Sequence[bytes] = ()) -> None:
        """`rotate` and `lifetime` in seconds. Raises ValueError for more keys than s2n-tls takes."""
        self.rotate, self.lifetime = rotate, lifetime
        self._shared = tuple(shared)
        self._secrets: dict[int, bytes] = {}
        self._epoch: int | None = None
        # Decrypting ones for each epoch that a lifetime touches, the current one, and the next.
        count = (self._epochs_kept + 2) * max(1, len(self._shared))
        if count > KEYS_MOST:
            raise ValueError(f"{count} ticket keys would be needed at a time; {KEYS_MOST} are possible")

    @property
    def _epochs_kept(self) -> int:
        return -(-self.lifetime // self.rotate)

    def turn(self, now: float, new_secret: Callable[[], bytes]) -> bool:
        """Bring the ring to `now` (Unix time); True if its keys have changed.

        After a jump of the clock only what belongs to the new time remains.
        """
        epoch = int(now // self.rotate)
        if epoch == self._epoch:
            return False
        self._epoch = epoch
        if not self._shared:
            kept = {number: self._secrets[number] for number in self._alive() if number in self._secrets}
            for number in (epoch, epoch + 1):
                kept.setdefault(number, new_secret())
            self._secrets = kept
        return True

    def _alive(self) -> range:
        assert self._epoch is not None, "turn the ring first"
        return range(max(0, self._epoch - self._epochs_kept), self._epoch + 2)

    def keys(self, listener: str, setting: str) -> list[TicketKey]:
        """The STEKs of a listener now, oldest first.

        `setting` is what a ticket must not outlive or leave: another one gives other keys.
        """
        info = b"\0".join((b"offload listener", listener.encode(), setting.encode()))
        return [
            _ticket_key(secret, info, max(1, introduced), epoch)  # s2n-tls takes 0 for now
            for epoch, secret, introduced in self._epoch_secrets()
        ]

    def _epoch_secrets(self) -> Iterator[tuple[int, bytes, int]]:
        """Each epoch, its secret, and when its keys begin to encrypt."""
        for epoch in self._alive():
            if not self._shared:
                if epoch in self._secrets:
                    yield epoch, self._secrets[epoch], epoch * self.rotate
                continue
            info = b"offload epoch %d of %d" % (epoch, self.rotate)
            first, *others = self._shared
            yield epoch, _derive(first, info, SECRET_SIZE), epoch * self.rotate
            for other in others:
                assert self._epoch is not None
                # Its time to encrypt is over already, and is not yet when the keys are next renewed.
                introduced = (min(epoch, self._epoch) - 1) * self.rotate
                yield epoch, _derive(other, info, SECRET_SIZE), introduced

    def export(self) -> dict[str, Any]:
        """The state as plain data, for a process that takes over. Secret, and never to be stored."""
        secrets = {str(epoch): secret.hex() for epoch, secret in self._secrets.items()}
        return {"rotate": self.rotate, "secrets": secrets}

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Take over what another ring exported, unless its epochs were others; then turn this one."""
        if not self._shared and exported.get("rotate") == self.rotate:
            secrets = exported["secrets"].items()
            self._secrets = {int(epoch): bytes.fromhex(secret) for epoch, secret in secrets}
        self._epoch = None


def _ticket_key(secret: bytes, info: bytes, introduced: int, epoch: int) -> TicketKey:
    data = _derive(secret, info, NAME_SIZE + KEY_SIZE)
    return TicketKey(data[:NAME_SIZE], data[NAME_SIZE:], introduced, epoch)


def _derive(secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt=None, info=info).derive(secret)
