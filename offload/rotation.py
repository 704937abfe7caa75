"""The supervisor's session-ticket keys: turned in time, told to every worker, never on disk."""

from __future__ import annotations

import os
import time
from typing import Any

from hsm.errors import ConfigurationError
from hsm.secret_file import read_secret
from offload.config import Config
from offload.config_listener import ListenerSettings
from offload.config_tls import TicketSettings
from offload.settings_tls import TicketData, TicketKeyData
from offload.tickets import SECRET_SIZE, TicketRing

LOOK_INTERVAL = 15.0
"""Seconds at most between two looks at the wall clock: it may jump, and not run while suspended."""
_SECRET_LINE_LEAST = 32
"""Characters: of a line of hex, 128 bits."""


def read_shared_secrets(settings: TicketSettings) -> list[bytes]:
    """The lines of `secret_file`; none without one. Raises ConfigurationError."""
    path = settings.secret_file
    if path is None:
        return []
    lines = [line.strip() for line in read_secret(path, "secret").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) < _SECRET_LINE_LEAST:
            raise ConfigurationError(
                f"{path}: secret {number} is shorter than {_SECRET_LINE_LEAST} characters; "
                "make one with: openssl rand -hex 32"
            )
        if line in lines[: number - 1]:
            raise ConfigurationError(f"{path}: secret {number} stands twice; delete one")
    return lines


def make_ring(settings: TicketSettings) -> TicketRing | None:
    """The ring that the settings ask for; None without tickets. Raises ConfigurationError."""
    if not settings.enabled:
        return None
    secrets = read_shared_secrets(settings)
    try:
        return TicketRing(int(settings.rotate), int(settings.lifetime), secrets)
    except ValueError as error:
        raise ConfigurationError(
            f"tickets: {error}; make rotate longer, lifetime shorter, or have fewer secrets"
        ) from error


class TicketKeeper:
    """Keeps the ring at the present time. `export` and `restore` pass it on to the next process."""

    def __init__(self, settings: TicketSettings) -> None:
        """Raises ConfigurationError for a bad secret file, or more keys than possible."""
        self._settings = settings
        self._ring = make_ring(settings)
        self._secrets = read_shared_secrets(settings)
        self.turn()

    def turn(self) -> bool:
        """Bring the ring to the present; True if keys have changed."""
        return self._ring is not None and self._ring.turn(time.time(), lambda: os.urandom(SECRET_SIZE))

    def data(self, listener: ListenerSettings) -> TicketData | None:
        """What a worker is told for a listener; None: no tickets there."""
        if self._ring is None or listener.client_certificates.mode != "off":
            return None
        keys = self._ring.keys(listener.name, f"client certificates {listener.client_certificates.mode}")
        return TicketData(
            rotate=self._ring.rotate,
            lifetime=self._ring.lifetime,
            tls12=self._settings.tls12,
            keys=[
                TicketKeyData(
                    name=key.name.hex(), key=key.key.hex(), introduced=key.introduced, epoch=key.epoch
                )
                for key in keys
            ],
        )

    def update(self, config: Config) -> dict[str, list[dict[str, Any]]]:
        """The keys of each listener that gives out tickets, as a `tickets` question carries them."""
        found = {listener.name: self.data(listener) for listener in config.listeners}
        return {name: data.model_dump()["keys"] for name, data in found.items() if data is not None}

    def export(self) -> dict[str, Any]:
        """The ring's state, for a pipe to the process that takes over; empty if it needs none."""
        return self._ring.export() if self._ring is not None else {}

    def restore(self, exported: dict[str, Any]) -> None:
        """Go on with the keys of the process before, so that its tickets are good here."""
        if self._ring is not None:
            self._ring.restore(exported)
            self.turn()

    def until_next(self) -> float:
        """Seconds after which to `turn` again."""
        if self._ring is None:
            return LOOK_INTERVAL
        return min(self._ring.rotate - time.time() % self._ring.rotate, LOOK_INTERVAL)

    def follow(self, settings: TicketSettings) -> TicketKeeper:
        """The keeper for these settings: this one, or one that goes on with its keys as far as it can.

        Raises ConfigurationError.
        """
        if settings == self._settings and read_shared_secrets(settings) == self._secrets:
            return self
        successor = TicketKeeper(settings)
        successor.restore(self.export())
        return successor
