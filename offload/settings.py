"""What the supervisor tells a worker: all it needs, so that it reads no file of its own.

(The credentials of TLS links to remote nodes are the exception: `ssl` loads them from files,
once, while the worker starts.)
"""

from __future__ import annotations

from typing import Literal

from hsm.config import Address, Duration, LinkTLS, Section
from offload.config import LimitSettings, LogSettings, Network
from offload.settings_tls import TlsData


class ServerData(Section):
    """A resolved upstream server: a numeric host and port, or a socket's path."""

    label: str
    """As it was configured: a name has this in common with its other addresses."""
    host: str = ""
    port: int = 0
    path: str = ""
    weight: int = 1
    max_connections: int | None = None
    """Of all workers together."""
    up: bool = True
    """What the checks say."""

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.host, self.port, self.path)


class UpstreamData(Section):
    """The servers behind a listener, and how a connection gets to one."""

    servers: list[ServerData]
    balance: str
    connect_timeout: float
    attempts: int
    max_fails: int
    slow_start: float
    proxy_protocol: Literal["v1", "v2"] | None = None
    workers: int
    """Among whom `max_connections` is divided."""


class ListenerData(Section):
    """One listener; `sockets` are the inherited descriptors by slot."""

    name: str
    tls: TlsData
    upstream: UpstreamData
    trusted: list[Network] | None
    """Where PROXY headers come from; None expects none."""
    sockets: list[int]


class NodeData(Section):
    """A node's name and address."""

    name: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: LinkTLS | None = None

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.host, self.port, self.path)


class WorkerSettings(Section):
    """Everything a worker is told when it starts."""

    slot: int
    listeners: list[ListenerData]
    nodes: list[NodeData]
    sign_timeout: Duration
    verify_signatures: str
    limits: LimitSettings
    log: LogSettings
    connections_most: int
    workers: int
    disabled_nodes: tuple[str, ...] = ()
    log_level: str = "info"
