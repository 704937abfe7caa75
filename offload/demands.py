"""Whether the nodes can do what a listener's security policy may ask of a certificate's key.

s2n cannot leave single signature schemes out of a policy: if the policy may choose RSA-PSS and no token
that holds the key can do it, handshakes fail as clients happen to ask. So that is found before they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hsm.errors import ConfigurationError
from hsm.signing import SCHEMES, KeyType, Padding, scheme_names
from offload.certificates import Chain
from offload.tls import TLSError, policy_schemes

POLICIES_WITHOUT_PSS = ("ELBSecurityPolicy-FS-1-2-Res-2019-08", "20240416")
"""TLS 1.2 with forward secrecy, RSA signatures by PKCS#1 v1.5 only; the second is for FIPS 140."""

Held = Mapping[str, Mapping[bytes, frozenset[int]] | None]
"""Each node's keys (SKI) and what they can do (opcodes); None where that can't be known yet."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A listener's certificate, and the opcodes that clients of its policy will ask of the key."""

    listener: str
    policy: str
    chain: Path
    ski: bytes
    key_type: KeyType
    opcodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A demand that the nodes that hold the key can't meet, not even together."""

    demand: Demand
    nodes: tuple[str, ...]
    able: frozenset[int]
    """The opcodes that one of them or another can do."""
    is_final: bool
    """Every node has told what it holds: no other can come to help."""

    def __str__(self) -> str:
        demand = self.demand
        lacking = scheme_names(demand.opcodes - self.able)
        good = " or ".join(policies_within(self.able, demand.key_type))
        remedy = f"set the listener's tls.policy to {good}, or " if good else ""
        return (
            f"listener {demand.listener}: {demand.chain}: its key {demand.ski.hex()} (on node "
            f"{', '.join(self.nodes)}) can't do {lacking}, which policy {demand.policy!r} "
            f"may choose; {remedy}put the key into a token that can"
        )


def demand(listener: str, policy: str, chain: Chain) -> Demand:
    """What a listener demands of a certificate's key.

    Raises TLSError for an unknown policy, ConfigurationError for one that does not sign with such keys.
    """
    opcodes = policy_opcodes(policy, chain.key.key_type)
    if not opcodes:
        raise ConfigurationError(
            f"tls.policy: {policy!r} does not sign with {chain.key.key_type.upper()} keys such as that of "
            f"{chain.path}; choose another policy, e.g. default"
        )
    return Demand(listener, policy, chain.path, chain.ski, chain.key.key_type, opcodes)


@lru_cache  # a listener may have thousands of certificates
def policy_opcodes(policy: str, key_type: KeyType) -> frozenset[int]:
    """The opcodes that a key of this type needs for a policy. Raises TLSError for an unknown policy.

    With PSS among them PKCS#1 v1.5 is for clients from before TLS 1.3, which a token may do without
    (that of an HSM in FIPS mode, say): s2n prefers PSS.
    """
    schemes = [scheme for name in policy_schemes(policy) if (scheme := SCHEMES[name]).key_type is key_type]
    pss = [scheme for scheme in schemes if scheme.padding is Padding.PSS]
    return frozenset(scheme.opcode for scheme in pss or schemes)


def policies_within(opcodes: frozenset[int], key_type: KeyType) -> list[str]:
    """The policies to recommend for a key of this type that can do no more than these opcodes."""
    good = []
    for policy in POLICIES_WITHOUT_PSS:
        try:
            wanted = policy_opcodes(policy, key_type)
        except TLSError:  # the library in use may have other policies
            continue
        if wanted and wanted <= opcodes:
            good.append(policy)
    return good


def shortfall(demand: Demand, held: Held) -> Shortfall | None:
    """What the nodes lack for a demand; None if nothing, or if no node is known to hold the key."""
    holders = {name: keys[demand.ski] for name, keys in held.items() if keys and demand.ski in keys}
    able = frozenset[int]().union(*holders.values())
    if not holders or demand.opcodes <= able:
        return None
    return Shortfall(demand, tuple(holders), able, is_final=None not in held.values())
