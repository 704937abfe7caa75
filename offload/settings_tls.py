"""What a worker is told of how a listener speaks TLS: plain data, from which a context is made."""

from __future__ import annotations

from pydantic import Field

from hsm.config import Section
from offload.config_tls import AllowedClients


class ChainData(Section):
    """A certificate chain, and its key's name in hex; an OCSP response (base64), good until a Unix time.

    `algorithms`: the leaf's key's and signature's, as PROXY headers name them.
    """

    pem: str
    ski: str
    staple: str = ""
    staple_until: float | None = None
    algorithms: tuple[str, str]


class TicketKeyData(Section):
    """A session-ticket key (STEK), as `TicketKey`; name and key in hex."""

    name: str
    key: str = Field(repr=False)
    introduced: int
    epoch: int


class TicketData(Section):
    """The session tickets of a listener; times in seconds."""

    rotate: int
    lifetime: int
    tls12: bool
    keys: list[TicketKeyData]


class ClientCertificateData(Section):
    """How clients are verified; the authorities as PEM."""

    required: bool
    authorities: str
    allow: AllowedClients | None


class TlsData(Section):
    """All of it."""

    policy: str
    names: tuple[str, ...] | None = None
    """Those of all certificates, if clients that ask for others are refused."""
    alpn: tuple[str, ...] = ()
    chains: list[ChainData]
    tickets: TicketData | None = None
    client_certificates: ClientCertificateData | None = None
