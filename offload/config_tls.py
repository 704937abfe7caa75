"""The parts of the configuration that say how TLS is spoken."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from pydantic import BeforeValidator, Field, field_validator, model_validator

from hsm.config import Duration, FilePath, Section

Protocol = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]
"""A name of IANA's registry of ALPN protocol IDs (RFC 7301)."""


_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_PATTERN = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


class CertificateSettings(Section):
    """A certificate, or a directory of them; the keys are found in the cluster by SKI."""

    chain: FilePath | None = Field(None, description="Certificate chain (PEM, leaf first).")
    directory: FilePath | None = Field(
        None, description="Instead of chain: a directory; each *.pem and *.crt in it, by name, is a chain."
    )
    ocsp: FilePath | None = Field(
        None, description="OCSP response (DER) for the chain's leaf, to staple while it is valid."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.chain is None) == (self.directory is None):
            raise ValueError("give either chain or directory")
        if self.ocsp is not None and self.chain is None:
            raise ValueError("ocsp goes with a chain, not with a directory")
        return self


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

    unknown_names: Literal["default", "refuse"] = Field(
        "default",
        description="What a client gets that asks for a name that no certificate has, or for none: the first "
        "certificate of a key type that it can verify, or the alert unrecognized_name.",
    )

    @field_validator("alpn")
    @classmethod
    def _unique(cls, alpn: list[str]) -> list[str]:
        if len(set(alpn)) < len(alpn):
            raise ValueError("a protocol stands twice")
        return alpn


def _parse_dns_pattern(value: Any) -> Any:
    if not isinstance(value, str) or not _DNS_PATTERN.fullmatch(value):
        raise ValueError(f"{value!r} is no DNS name; write a.example.org, or *.example.org")
    return value.lower()


def _parse_subject(value: Any) -> Any:
    try:
        return x509.Name.from_rfc4514_string(value).rfc4514_string()
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{value!r} is no subject; write one like CN=client,O=Example (RFC 4514)") from error


DnsPattern = Annotated[str, BeforeValidator(_parse_dns_pattern, json_schema_input_type=str)]
Subject = Annotated[str, BeforeValidator(_parse_subject, json_schema_input_type=str)]
Uri = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9+.-]*:[!-~]+$")]


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads off as a boolean


class AllowedClients(Section):
    """Names of clients: a certificate with any of them is welcome."""

    dns: tuple[DnsPattern, ...] = Field(
        (), description="DNS names of the certificate (SAN); a first label * stands for any one label."
    )
    uri: tuple[Uri, ...] = Field((), description="URIs of the certificate (SAN), such as SPIFFE IDs; exact.")
    subject: tuple[Subject, ...] = Field(
        (), description="Subjects as RFC 4514 writes them (CN=client,O=Example); exact."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.dns or self.uri or self.subject):
            raise ValueError(
                "nobody would be allowed; name somebody, or leave allow out: then all of the CA are"
            )
        return self


class ClientCertificateSettings(Section):
    """Certificates that clients show. Such listeners give out no session tickets."""

    mode: Annotated[Literal["off", "optional", "required"], BeforeValidator(_off)] = Field(
        "off",
        description="Whether clients are asked for one, and whether they may have none. One that is shown is "
        "verified in either mode.",
    )
    ca: FilePath | None = Field(None, description="CA certificates (PEM) that issue the clients'.")
    allow: AllowedClients | None = Field(
        None, description="Who may connect; if left out, every client with a certificate of the CA."
    )

    @model_validator(mode="after")
    def _ca_where_needed(self) -> Self:
        if self.mode != "off" and self.ca is None:
            raise ValueError(f"mode {self.mode} needs ca: the certificates that issue the clients'")
        return self


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
