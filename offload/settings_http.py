"""What a worker is told of how a listener speaks HTTP."""

from __future__ import annotations

from hsm.config import Section
from offload.config_http import HttpSettings


class HttpData(Section):
    """All of it."""

    settings: HttpSettings
    names: list[tuple[str, ...]]
    """Those of each certificate, the default one first; none without TLS."""
    asks_certificates: bool
    """Of clients."""
    pages: dict[int, str]
    """HTML of error pages by status."""
    default: str
    """The group of requests that no route takes; empty if there is none."""

    @property
    def tls(self) -> bool:
        """Whether clients speak TLS; else they are sent to https."""
        return bool(self.names)
