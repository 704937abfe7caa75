"""The TLS side of a listener's plan: its files read and found to go together."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from hsm.errors import ConfigurationError
from offload.certificates import Chain, chain_files, load_chain
from offload.client_certificates import load_authorities
from offload.config_listener import HTTP_PROTOCOL, ListenerSettings
from offload.config_tls import CertificateSettings
from offload.contexts import make_context
from offload.demands import Demand, demand
from offload.ocsp import load_staple
from offload.problems import Problems
from offload.settings_tls import ChainData, ClientCertificateData, TicketData, TlsData
from offload.tls import TLSError

T = TypeVar("T")


@dataclass
class TlsPlan:
    """What a listener's TLS needs, and what its policy demands of each certificate's key."""

    settings: ListenerSettings
    chains: list[Chain]
    client_authorities: bytes
    demands: list[Demand] = field(default_factory=list)

    def data(self, tickets: TicketData | None = None) -> TlsData:
        """What a worker is told."""
        refuses = self.settings.tls.unknown_names == "refuse"
        now = datetime.now(UTC)
        return TlsData(
            policy=self.settings.tls.policy,
            names=tuple(name.lower() for chain in self.chains for name in chain.names) if refuses else None,
            alpn=(HTTP_PROTOCOL,) if self.settings.mode == "http" else tuple(self.settings.tls.alpn),
            chains=[_chain_data(chain, now) for chain in self.chains],
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
    chains = [
        chain
        for position, certificate in enumerate(settings.certificates)
        for chain in _load_chains(certificate, f"{key}.certificates[{position}]", problems)
    ]
    ca = settings.client_certificates.ca
    authorities: bytes | None = b""
    if ca is not None:
        authorities = problems.attempt(_at, f"{key}.client_certificates.ca", load_authorities, ca)
    plan = TlsPlan(settings, chains, authorities or b"")
    if authorities is not None:
        plan.demands = problems.attempt(_check_context, plan, key) or []
    return plan


def _load_chains(certificate: CertificateSettings, key: str, problems: Problems) -> list[Chain]:
    if certificate.directory is not None:
        key = f"{key}.directory"
        files = problems.attempt(_at, key, chain_files, certificate.directory) or []
    else:
        assert certificate.chain is not None
        files, key = [certificate.chain], f"{key}.chain"
    found = [problems.attempt(_at, key, load_chain, path) for path in files]
    chains = [replace(chain, place=key) for chain in found if chain is not None]
    if certificate.ocsp is None:
        return chains
    ocsp = f"{key.removesuffix('.chain')}.ocsp"
    return [
        replace(
            chain, staple=problems.attempt(_at, ocsp, load_staple, certificate.ocsp, chain.certificates[0])
        )
        for chain in chains
    ]


def _at(key: str, load: Callable[..., T], *arguments: Any) -> T:
    """What `load` returns; what it finds wrong is told with the key that names the file."""
    try:
        return load(*arguments)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def _chain_data(chain: Chain, now: datetime) -> ChainData:
    data = ChainData(pem=chain.pem.decode(), ski=chain.ski.hex(), algorithms=chain.algorithms)
    staple = chain.staple
    if staple is None or staple.fault(now):
        return data
    until = staple.until.timestamp() if staple.until is not None else None
    encoded = base64.b64encode(staple.response).decode()
    return data.model_copy(update={"staple": encoded, "staple_until": until})


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
