"""The client of a cluster of nodes: `ClusterClient.sign` is all a proxy needs."""

from hsm.client.cluster import ClusterClient, SignRequest, VerifyMode
from hsm.client.node import NodeOptions

__all__ = ["ClusterClient", "NodeOptions", "SignRequest", "VerifyMode"]
