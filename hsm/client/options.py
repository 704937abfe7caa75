"""What a cluster client is told: where its nodes are, and how far it may go."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Literal

from hsm.config import Address

VerifyMode = Literal["always", "rsa", "never"]
"""Which signatures are verified. `never` is for tools that have no certificate."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """One node: a unix socket, or a numeric address with the TLS context for it.

    `group` is the configuration's entry that it comes from, when a name there has several
    addresses; `capacity` the most requests in flight that this client may have there.
    """

    name: str
    address: Address
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    group: str = ""
    zone: str = ""
    weight: float = 1.0
    capacity: int | None = None
    links: int = 1

    @property
    def entry(self) -> str:
        """The name that the operator gave it."""
        return self.group or self.name


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How the cluster is used. Shares are of 1, times in seconds."""

    verify: VerifyMode = "always"
    zone: str = ""
    """Where this client is: nodes there come first."""
    max_ejected: float = 0.5
    """At most this share of the nodes is ejected at a time."""
    retry_budget: float = 0.2
    """Retries per request, in the long run."""
    hedge_budget: float = 0.05
    """Second requests sent because the first gets nowhere, per request; 0 for none."""
    max_queue_wait: float = 1.0
    """Longest wait for a node with room; who would wait longer is refused at once."""
