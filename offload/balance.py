"""Which server gets a connection: pure functions of the candidates.

A candidate's `share` is what it is to get in proportion to the others: its weight, less while it
starts slowly. All candidates given may be used; whoever calls has left the others out.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

_HASH_BITS = 52
"""So many that the hash as a fraction is never rounded up to 1, whose logarithm is 0."""


class Candidate(Protocol):
    """What choosing needs to know of a server."""

    credit: float
    """Belongs to `round_robin`: how far it is behind its share."""

    @property
    def key(self) -> bytes:
        """Names it, the same in every process and on every machine."""

    @property
    def share(self) -> float:
        """Above 0."""

    @property
    def connections(self) -> int:
        """Those that are open or being opened, as this process knows."""


C = TypeVar("C", bound=Candidate)


def round_robin(candidates: Sequence[C]) -> C:
    """In turns, the heavier ones more often, and as evenly mixed as can be.

    nginx's smooth weighted round-robin: each gains its share, the richest is chosen and pays
    what all have gained.
    """
    best, total = candidates[0], 0.0
    for candidate in candidates:
        total += candidate.share
        candidate.credit += candidate.share
        if candidate.credit > best.credit:
            best = candidate
    best.credit -= total
    return best


def least_connections(candidates: Sequence[C]) -> C:
    """The one with the fewest connections for its share; equals take turns."""
    loads = [(candidate.connections + 1) / candidate.share for candidate in candidates]
    least = min(loads)
    return round_robin([c for c, load in zip(candidates, loads, strict=True) if load == least])


def source_hash(candidates: Sequence[C], source: bytes) -> C:
    """The same one for the same source, as long as it is there.

    Rendezvous hashing with weights (the logarithmic method of Schindelhauer and Schomaker): when
    a server goes, only its sources move; when one comes, only those that move to it.
    """
    return max(candidates, key=lambda candidate: (_score(candidate, source), candidate.key))


def _score(candidate: Candidate, source: bytes) -> float:
    digest = blake2b(candidate.key + b"\0" + source, digest_size=8).digest()
    fraction = ((int.from_bytes(digest) >> (64 - _HASH_BITS)) + 0.5) / (1 << _HASH_BITS)
    return candidate.share / -math.log(fraction)


def source_of(host: str) -> bytes:
    """A client's address as the source of `source_hash`: 4 or 16 bytes, none if it has no address.

    An IPv4 address is the same whether it is written as one or mapped into IPv6 (RFC 4291 §2.5.5.2).
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return b""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed
