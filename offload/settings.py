"""What the supervisor tells a worker: all it needs, so that it reads no file of its own."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from hsm.client import NodeOptions
from hsm.cluster_config import ClusterPolicy
from hsm.config import Address, Section
from hsm.transport import LinkCredentials
from offload.account import Account
from offload.config import LimitSettings, LogSettings
from offload.networks import Network
from offload.proxy_protocol import Version
from offload.settings_http import HttpData
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
    """A group of servers, and how a connection gets to one."""

    name: str
    servers: list[ServerData]
    balance: str
    connect_timeout: float
    attempts: int
    max_fails: int
    slow_start: float
    proxy_protocol: Version | None = None
    workers: int
    """Among whom `max_connections` is divided."""


class ListenerData(Section):
    """One listener. `address` says which listening sockets are its own."""

    name: str
    address: str
    tls: TlsData | None
    """None: no TLS."""
    upstream: str
    """The name of its group; empty if there is none."""
    trusted: list[Network] | None
    """Where PROXY headers come from; None expects none."""
    http: HttpData | None = None
    """None: a relay."""


class LinkData(Section):
    """The credentials of a TLS link to a node, as PEM text."""

    model_config = ConfigDict(hide_input_in_errors=True)

    ca: str
    certificate: str
    key: str = Field(repr=False)
    server_name: str | None


class NodeData(Section):
    """A node's name and address, and how to speak TLS with it if it is remote."""

    name: str
    host: str = ""
    port: int = 0
    path: str = ""
    link: LinkData | None = None
    zone: str = ""
    weight: float = 1.0
    capacity: int | None = None
    """Of all workers together."""
    links: int = 1

    @property
    def address(self) -> Address:
        """Where it is; the host may be a name."""
        return Address(self.host, self.port, self.path)


class SocketsData(Section):
    """How many listening sockets, by slot, come along for an address."""

    address: str
    count: int
    lent: bool
    """Another process has them too, so they must not be shut down."""


class Links:
    """The TLS contexts of links to nodes: one for the same credentials, so that the client keeps those links."""

    def __init__(self) -> None:
        self._contexts: dict[LinkData, ssl.SSLContext] = {}

    def options(self, nodes: Sequence[NodeData], workers: int) -> list[NodeOptions]:
        """The nodes for the client of one of so many workers.

        Raises ssl.SSLError for credentials that were not checked before.
        """
        needed = {node.link for node in nodes if node.link is not None}
        self._contexts = {link: self._contexts.get(link) or _context(link) for link in needed}
        return [
            NodeOptions(
                name=node.name,
                address=node.address,
                tls=None if node.link is None else self._contexts[node.link],
                server_name=None if node.link is None else node.link.server_name,
                zone=node.zone,
                weight=node.weight,
                capacity=None if node.capacity is None else -(-node.capacity // workers),
                links=node.links,
            )
            for node in nodes
        ]


def _context(link: LinkData) -> ssl.SSLContext:
    return LinkCredentials(link.ca, link.certificate, link.key).client_context()


class WorkerSettings(Section):
    """Everything a worker is told, when it starts and at each reload."""

    generation: int
    slot: int
    sockets: list[SocketsData]
    listeners: list[ListenerData]
    upstreams: list[UpstreamData]
    nodes: list[NodeData]
    addresses: dict[str, list[str]]
    """Of the nodes whose hosts are names."""
    cluster: ClusterPolicy
    limits: LimitSettings
    log: LogSettings
    connections_most: int
    workers: int
    disabled_nodes: tuple[str, ...] = ()
    log_level: str = "info"
    account: Account | None = None
    """Whom to become; None: nobody else."""
    sandbox: Literal["auto", "off"] = "auto"
