"""The TLS side of a listener's plan: its files read and found to go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hsm.errors import ConfigurationError
from offload.certificates import Chain, load_chain
from offload.client_certificates import load_authorities
from offload.config import ListenerSettings
from offload.contexts import make_context
from offload.demands import Demand, demand
from offload.problems import Problems
from offload.settings_tls import ChainData, ClientCertificateData, TicketData, TlsData
from offload.tls import TLSError


@dataclass
class TlsPlan:
    """What a listener's TLS needs, and what its policy demands of each certificate's key."""

    settings: ListenerSettings
    chains: list[Chain]
    client_authorities: bytes
    demands: list[Demand] = field(default_factory=list)

    def data(self, tickets: TicketData | None = None) -> TlsData:
        """What a worker is told."""
        return TlsData(
            policy=self.settings.tls.policy,
            alpn=tuple(self.settings.tls.alpn),
            chains=[ChainData(pem=chain.pem.decode(), ski=chain.ski.hex()) for chain in self.chains],
            tickets=tickets,
            client_certificates=self._client_certificates(),
        )

    def _client_certificates(self) -> ClientCertificateData | None:
        settings = self.settings.client_certificates
        if settings.mode == "off":
            return None
        return ClientCertificateData(
            required=settings.mode == "required",
            authorities=self.client_authorities.decode(),
            allow=settings.allow,
        )


def plan_tls(settings: ListenerSettings, key: str, problems: Problems) -> TlsPlan:
    """As far as it is good; what is wrong goes to `problems`."""
    found = [
        problems.attempt(_load_chain, certificate.chain, f"{key}.certificates[{position}].chain")
        for position, certificate in enumerate(settings.certificates)
    ]
    chains = [chain for chain in found if chain is not None]
    authorities = problems.attempt(_client_authorities, settings)
    plan = TlsPlan(settings, chains, authorities or b"")
    if authorities is not None:
        plan.demands = problems.attempt(_check_context, plan, key) or []
    return plan


def _load_chain(path: Path, key: str) -> Chain:
    try:
        return load_chain(path)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def _client_authorities(settings: ListenerSettings) -> bytes:
    ca = settings.client_certificates.ca
    return load_authorities(ca) if ca is not None else b""


def _check_context(plan: TlsPlan, key: str) -> list[Demand]:
    """What the policy demands of each certificate's key, if they go together."""
    policy = plan.settings.tls.policy
    try:
        make_context(plan.data()).release()
        return [demand(plan.settings.name, policy, chain) for chain in plan.chains]
    except TLSError as error:
        if error.name == "S2N_ERR_INVALID_SECURITY_POLICY":
            raise ConfigurationError(
                f"{key}.tls.policy: s2n-tls has no policy {policy!r}; "
                "try default, default_tls13 or default_fips"
            ) from error
        raise ConfigurationError(f"{key}: the certificates don't go with the policy: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}.{error}") from error
