"""The client of a cluster of nodes: `ClusterClient.sign` is all a proxy needs."""

from hsm.client.cluster import ClusterClient
from hsm.client.options import ClusterOptions, NodeOptions, VerifyMode
from hsm.client.request import SignRequest

__all__ = ["ClusterClient", "ClusterOptions", "NodeOptions", "SignRequest", "VerifyMode"]
