"""The parts of the configuration that say how TLS is spoken."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from hsm.config import Duration, FilePath, Section

Protocol = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]
"""A name of IANA's registry of ALPN protocol IDs (RFC 7301)."""


class CertificateSettings(Section):
    """A certificate; its key is found in the cluster by SKI."""

    chain: FilePath = Field(description="Certificate chain (PEM, leaf first).")


class TLSSettings(Section):
    """How a listener speaks TLS."""

    policy: str = Field(
        "default",
        description="Security policy of s2n-tls: default, default_tls13, default_fips, default_pq, "
        "or a dated one, which never changes.",
    )
    alpn: list[Protocol] = Field(
        default_factory=list,
        description="Protocols to agree on by ALPN, the preferred one first, such as h2 or http/1.1: what the "
        "upstream speaks. A client that offers none of them is served without.",
    )

    @field_validator("alpn")
    @classmethod
    def _unique(cls, alpn: list[str]) -> list[str]:
        if len(set(alpn)) < len(alpn):
            raise ValueError("a protocol stands twice")
        return alpn


class TicketSettings(Section):
    """Session tickets, by which clients resume without a signature."""

    enabled: bool = Field(True, description="Whether clients get session tickets.")
    tls12: bool = Field(
        True,
        description="Whether TLS 1.2 clients get them too. Theirs give up forward secrecy for as long as "
        "the ticket key lives (`rotate` and `lifetime` together).",
    )
    rotate: Duration = Field(
        3600.0, ge=1, multiple_of=1, description="How long one key encrypts tickets; whole seconds."
    )
    lifetime: Duration = Field(
        4 * 3600.0,
        ge=1,
        le=7 * 86400,
        multiple_of=1,
        description="How long a ticket is accepted; whole seconds.",
    )
    secret_file: FilePath | None = Field(
        None,
        description="For replicas that are to accept each other's tickets: a file, the same on all of them, "
        "with a secret on each line (`openssl rand -hex 32`). The first encrypts, all decrypt; "
        "keys are derived from them and still rotate. If left out, keys are random.",
    )
