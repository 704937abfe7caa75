"""What the supervisor tells a worker: all it needs, so that it reads no file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from hsm.client import NodeOptions
from hsm.config import Address, Duration, Section
from hsm.transport import LinkCredentials
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
    """One listener. `address` says which listening sockets are its own."""

    name: str
    address: str
    tls: TlsData
    upstream: UpstreamData
    trusted: list[Network] | None
    """Where PROXY headers come from; None expects none."""


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

    def options(self) -> NodeOptions:
        """For the cluster's client. Raises ssl.SSLError for credentials that were not checked before."""
        address, link = Address(self.host, self.port, self.path), self.link
        if link is None:
            return NodeOptions(self.name, address)
        context = LinkCredentials(link.ca, link.certificate, link.key).client_context()
        return NodeOptions(self.name, address, context, link.server_name)


class SocketsData(Section):
    """How many listening sockets, by slot, come along for an address."""

    address: str
    count: int
    lent: bool
    """Another process has them too, so they must not be shut down."""


def node_options(
    nodes: Sequence[NodeData], before: Mapping[NodeData, NodeOptions] | None = None
) -> dict[NodeData, NodeOptions]:
    """For the cluster's client; the same objects as `before` for what is the same, so that it keeps those links.

    Raises ssl.SSLError as `NodeData.options`.
    """
    known = before or {}
    return {node: known.get(node) or node.options() for node in nodes}


class WorkerSettings(Section):
    """Everything a worker is told, when it starts and at each reload."""

    generation: int
    slot: int
    sockets: list[SocketsData]
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
