"""Signatures by keys that live elsewhere: nodes that hold keys, and the client of a cluster of them.

- `hsm.client` asks a cluster of nodes for signatures;
- `hsm.node` is the process that holds keys and makes them;
- `hsm.keyless`, `hsm.signing` and `hsm.errors` are what the two share.

Usable without `offload`.
"""

__version__ = "0.1.0"
