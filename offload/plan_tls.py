"""The TLS side of a listener's plan: its files read and found to go together."""

from __future__ import annotations

from hsm.errors import ConfigurationError
from offload.certificates import Chain
from offload.config import ListenerSettings
from offload.contexts import make_context
from offload.demands import Demand, demand
from offload.settings_tls import ChainData, TicketData, TlsData
from offload.tls import TLSError


def tls_data(settings: ListenerSettings, chains: list[Chain], tickets: TicketData | None = None) -> TlsData:
    """What a worker is told."""
    return TlsData(
        policy=settings.tls.policy,
        alpn=tuple(settings.tls.alpn),
        chains=[ChainData(pem=chain.pem.decode(), ski=chain.ski.hex()) for chain in chains],
        tickets=tickets,
    )


def check_context(settings: ListenerSettings, chains: list[Chain], key: str) -> list[Demand]:
    """What the policy demands of each certificate's key, if they go together. Raises ConfigurationError."""
    policy = settings.tls.policy
    try:
        make_context(tls_data(settings, chains)).release()
        return [demand(settings.name, policy, chain) for chain in chains]
    except TLSError as error:
        if error.name == "S2N_ERR_INVALID_SECURITY_POLICY":
            raise ConfigurationError(
                f"{key}.tls.policy: s2n-tls has no policy {policy!r}; "
                "try default, default_tls13 or default_fips"
            ) from error
        raise ConfigurationError(f"{key}: the certificates don't go with the policy: {error}") from error
