"""Which certificates' keys are on a ready node: what readiness stands on.

Nodes of ours list their keys. Other Keyless servers can't: there the supervisor, alone and
rarely, asks for one real signature per certificate.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from hsm.client import ClusterClient
from hsm.errors import HSMError
from hsm.signing import SCHEMES, KeyType
from hsm.verification import VerificationKey
from offload.demands import Demand, Held, Shortfall, shortfall

PROBE_INTERVAL = 10.0
PROBE_TIMEOUT = 5.0
SHORTFALL_INTERVAL = 0.5


class KeyWatch:
    """The keys that the configured certificates need, whether they have been found, and can do what is asked."""

    def __init__(
        self, cluster: ClusterClient, keys: Sequence[VerificationKey], demands: Sequence[Demand]
    ) -> None:
        self._cluster = cluster
        self._probed: set[bytes] = set()
        self.replace(keys, demands)

    def replace(self, keys: Sequence[VerificationKey], demands: Sequence[Demand]) -> None:
        """Watch these from now on."""
        self._demands = demands
        self._keys = {key.ski: key for key in keys}
        for key in self._keys.values():
            self._cluster.add_key(key)

    def holders(self, ski: bytes) -> list[str]:
        """The ready nodes on which a key was found."""
        return [
            node.name
            for node in self._cluster.nodes
            if node.ready and (ski in self._probed if node.keys is None else ski in node.keys)
        ]

    def missing(self) -> list[bytes]:
        """The keys that no ready node holds, as far as is known."""
        return [ski for ski in self._keys if not self.holders(ski)]

    def shortfalls(self) -> list[Shortfall]:
        """The demands that the nodes which hold the key can't meet; none while it may be on one that lists none."""
        nodes = [node for node in self._cluster.nodes if node.enabled]
        if any(node.ready and node.keys is None for node in nodes):
            return []
        held: Held = {node.name: node.keys if node.ready else None for node in nodes}
        found = (shortfall(demand, held) for demand in self._demands)
        return [each for each in found if each is not None]

    async def tell_shortfalls(self, tell: Callable[[list[Shortfall]], None]) -> None:
        """Until cancelled: call `tell` with the shortfalls that are new."""
        told: list[Shortfall] = []
        while True:
            found = self.shortfalls()
            tell([each for each in found if each not in told])
            told = found
            await asyncio.sleep(SHORTFALL_INTERVAL)

    async def probe(self) -> None:
        """Until cancelled: find keys on nodes that can't list them."""
        while True:
            if any(node.ready and node.keys is None for node in self._cluster.nodes):
                for key in [self._keys[ski] for ski in self.missing()]:
                    await self._probe(key)
            await asyncio.sleep(PROBE_INTERVAL if not self.missing() else 1.0)

    async def _probe(self, key: VerificationKey) -> None:
        name = "rsa_pkcs1_sha256" if key.key_type is KeyType.RSA else "ecdsa_secp256r1_sha256"
        try:
            await self._cluster.sign_async(key.ski, SCHEMES[name], os.urandom(32), PROBE_TIMEOUT)
        except HSMError:
            return
        self._probed.add(key.ski)
