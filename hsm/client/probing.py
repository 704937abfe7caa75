"""Active health checks: a real signature by each node now and then, the more often the less it is trusted."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from hsm.client.link import Answer
from hsm.signing import SignatureScheme
from hsm.verification import VerificationKey

if TYPE_CHECKING:
    from hsm.client.cluster import ClusterClient
    from hsm.client.node import NodeClient
    from hsm.client.request import SignRequest

INTERVAL = 0.1
"""Seconds between two looks at the nodes; how often each is tested is `health`'s to say."""
REMAINING_MS = 2000


class Probe:
    """One test at a node: a random digest signed, or a ping where no key is known to both."""

    __slots__ = ("_digest", "_key", "_scheme", "cluster", "could_be_signed", "node", "request", "sent")

    def __init__(self, cluster: ClusterClient, node: NodeClient, now: float) -> None:
        self.cluster = cluster
        self.node = node
        self.sent = now
        self.request: SignRequest | None = None
        self.could_be_signed = False
        self._key, self._scheme = _choose(cluster, node)
        self._digest = b""

    def send(self) -> None:
        """Ask; the answer is told to the cluster's `on_tested`."""
        if self._key is None or self._scheme is None:
            self.node.ping(self)
            return
        self._digest = os.urandom(self._scheme.digest_size)
        self.node.send(self, self._scheme.opcode, self._key.ski, self._digest, REMAINING_MS)

    def __call__(self, answer: Answer) -> None:
        """For the link."""
        self.cluster.on_tested(self, answer)

    def is_good(self, payload: bytes) -> bool:
        """Whether this is what was asked for."""
        if self._key is None or self._scheme is None:
            return True
        return self._key.verify(self._scheme, self._digest, payload)

    @property
    def ski(self) -> bytes:
        """The key that was asked for; empty for a ping."""
        return self._key.ski if self._key is not None else b""


def _choose(
    cluster: ClusterClient, node: NodeClient
) -> tuple[VerificationKey | None, SignatureScheme | None]:
    for key in cluster.keys:
        for scheme in key.usual_schemes():
            if not node.may_lack(key.ski) and node.takes(key.ski, scheme.opcode):
                return key, scheme
    return None, None


async def watch(cluster: ClusterClient) -> None:
    """Until cancelled: let time pass for each node's health, and test those that are due."""
    while True:
        await asyncio.sleep(INTERVAL)
        now = cluster.clock()
        cluster.tick(now)
        for node in cluster.nodes:
            if node.ready and not node.retired and node.health.test_is_due(now):
                Probe(cluster, node, now).send()
