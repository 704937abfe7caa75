"""The `hsm:` section of a configuration: the nodes of a cluster, and how they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from hsm import config
from hsm.client.options import ClusterOptions
from hsm.config import Address, Duration, LinkTLS, NodeAddress, Section
from hsm.errors import ConfigurationError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]

LocalNode = config.TokenSettings
"""A node that `offload serve` starts and stops itself."""


class NodeEntry(Section):
    """A node of the cluster: reached at an address, or run by `offload serve`."""

    name: Name = Field(description="Name in logs and metrics.")
    address: NodeAddress | None = Field(
        None,
        description="unix:/path or tls://host:port. A name with several addresses stands for as many nodes.",
    )
    tls: LinkTLS | None = Field(None, description="Needed with tls://.")
    run: LocalNode | None = Field(None, description="Start this node as a child process.")
    zone: str = Field("", max_length=64, description="Where the node stands; see hsm.zone.")
    weight: float = Field(1.0, gt=0, le=1000, description="Share of the requests, beside the other nodes'.")
    capacity: PositiveInt | None = Field(
        None,
        description="Most signatures in flight there, all workers together; if left out, learned from its "
        "latency alone.",
    )
    links: PositiveInt = Field(1, le=16, description="Connections to the node, per worker.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.address is None) == (self.run is None):
            raise ValueError("give either address (a node that runs elsewhere) or run (start it here)")
        if self.address is not None and (self.tls is not None) == bool(self.address.path):
            raise ValueError("tls goes with tls:// addresses, and only with them")
        return self


class ClusterPolicy(Section):
    """How the nodes are used."""

    sign_timeout: Duration = Field(5.0, gt=0, description="Longest wait of a handshake for its signature.")
    verify_signatures: Literal["always", "rsa"] = Field(
        "always",
        description="Which signatures are verified before they are sent. A wrong RSA one gives the key away.",
    )
    zone: str = Field(
        "",
        max_length=64,
        description="Where this proxy stands: nodes of the same zone are asked first, others when those have "
        "no room or are not well.",
    )
    max_queue_wait: Duration = Field(
        1.0,
        gt=0,
        description="Longest wait for a node with room. Handshakes that would wait longer are refused at once. "
        "(While no node is connected at all, they wait up to sign_timeout.)",
    )
    retry_budget: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Retries per signature in the long run, so that a sick cluster is spared.",
    )
    hedge_budget: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Second requests, sent because the first gets nowhere at its node, per signature; 0: none.",
    )
    max_ejected: float = Field(
        0.5, ge=0, le=1, description="At most this share of the nodes is taken out of service as unhealthy."
    )

    def options(self) -> ClusterOptions:
        """The same for the cluster client."""
        return ClusterOptions(
            verify=self.verify_signatures,
            zone=self.zone,
            max_ejected=self.max_ejected,
            retry_budget=self.retry_budget,
            hedge_budget=self.hedge_budget,
            max_queue_wait=self.max_queue_wait,
        )


class ClusterSettings(ClusterPolicy):
    """The cluster that signs."""

    nodes: list[NodeEntry] = Field(min_length=1)
    resolve_interval: Duration = Field(
        30.0, ge=1.0, description="How often the names of nodes are looked up again."
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [node.name for node in self.nodes]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"nodes: {name!r} stands twice")
        return self


ADMIN_ADDRESS = Address("127.0.0.1", 9443)
"""Where the proxy's admin server listens if it is not configured."""


class AdminAddress(Section):
    """The `admin:` section, as far as it concerns the cluster."""

    address: config.StreamAddress = ADMIN_ADDRESS


def load_cluster(path: Path) -> tuple[ClusterSettings, Address | None]:
    """The cluster of a proxy's configuration file, and where that proxy's admin server is, if it has one.

    Raises ConfigurationError.
    """
    data = config.read(path)
    cluster = config.validate(_mapping(data, "hsm", path), ClusterSettings, f"{path}: hsm", path.parent)
    if data.get("admin", {}) is None:
        return cluster, None
    admin = config.validate(_mapping(data, "admin", path), AdminAddress, f"{path}: admin", path.parent)
    return cluster, admin.address


def _mapping(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: {key}: expected keys and values")
    return value
