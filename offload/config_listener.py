"""The part of the configuration about listeners, and which of it goes with which mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from hsm.cluster_config import Name
from hsm.config import Section, TcpAddress
from hsm.mistakes import misplaced
from offload.config_http import ACME_PATH, HttpSettings
from offload.config_tls import CertificateSettings, ClientCertificateSettings, TLSSettings
from offload.config_upstream import UpstreamChoice, UpstreamSettings
from offload.networks import Network

HTTP_PROTOCOL = "http/1.1"
"""What an HTTP listener agrees on by ALPN."""

Place = tuple[int | str, ...]
"""The keys that lead to a value."""

_MISSING = "required, but missing"


class AcceptProxySettings(Section):
    """Clients come through load balancers, which put a PROXY header before each connection."""

    trusted: list[Network] = Field(
        min_length=1, description="Networks of the load balancers. Whoever else connects is refused."
    )


class ListenerSettings(Section):
    """An address that clients connect to."""

    name: Name = Field(description="Name in logs and metrics.")
    address: TcpAddress = Field(description="host:port or [v6]:port.")
    mode: Literal["relay", "http", "redirect"] = Field(
        "relay",
        description="relay: TLS here, whatever is inside goes through as it is. http: TLS here, HTTP/1.1 requests "
        "go through one by one. redirect: no TLS; HTTP requests are sent to https.",
    )
    certificates: list[CertificateSettings] = Field(
        default_factory=list, description="Required but for mode: redirect, which has none."
    )
    tls: TLSSettings = Field(default_factory=TLSSettings)
    client_certificates: ClientCertificateSettings = Field(default_factory=ClientCertificateSettings)
    accept_proxy: AcceptProxySettings | None = Field(
        None, description="Every connection must begin with a PROXY header (v1 or v2)."
    )
    upstream: UpstreamChoice | None = Field(
        None,
        description="The name of a group of `upstreams`, or a group of its own, which goes by the listener's name. "
        "mode: relay: where connections go. http: where requests go that no route takes. redirect: where requests "
        "for a certificate authority's challenge (/.well-known/acme-challenge) go.",
    )
    http: HttpSettings = Field(default_factory=HttpSettings)

    @model_validator(mode="after")
    def _goes_with_mode(self) -> Self:
        rules = {"relay": self._relay_faults, "http": self._http_faults, "redirect": self._redirect_faults}
        if faults := list(rules[self.mode]()):
            raise misplaced(faults)
        return self

    def _relay_faults(self) -> Iterator[tuple[Place, str]]:
        if not self.certificates:
            yield ("certificates",), _MISSING
        if self.upstream is None:
            yield ("upstream",), _MISSING
        if "http" in self.model_fields_set:
            yield ("http",), "is for mode: http and mode: redirect; set one of them, or leave it out"

    def _http_faults(self) -> Iterator[tuple[Place, str]]:
        http = self.http
        if not self.certificates:
            yield ("certificates",), _MISSING
        if self.upstream is None and not http.routes:
            yield ("upstream",), f"{_MISSING}; or say where requests go in http.routes"
        if self.upstream is not None and http.catch_all is not None:
            taker = f"http.routes[{http.catch_all}] takes every request that no other route takes"
            yield ("upstream",), f"{taker}, so none is left for it; leave one of them out"
        if self.tls.alpn not in ([], [HTTP_PROTOCOL]):
            yield ("tls", "alpn"), f"mode: http offers {HTTP_PROTOCOL} and no more; leave it out"
        if "https_port" in http.model_fields_set:
            yield ("http", "https_port"), "is for mode: redirect; leave it out"

    def _redirect_faults(self) -> Iterator[tuple[Place, str]]:
        for key in ("certificates", "tls", "client_certificates"):
            if key in self.model_fields_set:
                yield (key,), "mode: redirect speaks no TLS; leave it out, or set mode: http"
        if self.http.hsts is not None:
            yield ("http", "hsts"), "has no effect without TLS (RFC 6797 §8.1); give it to the https listener"
        for index, route in enumerate(self.http.routes):
            if self.upstream is not None and ("", ACME_PATH) in route.keys:
                yield ("http", "routes", index), f"upstream takes {ACME_PATH} already; leave one of them out"

    @property
    def group(self) -> str:
        """The name of the group that `upstream` stands for; empty if there is none."""
        if isinstance(self.upstream, UpstreamSettings):
            return self.name
        return self.upstream or ""

    @property
    def groups(self) -> set[str]:
        """The names of all groups that its clients may get to."""
        return {self.group, *(name for _, name in self.named_groups)} - {""}

    @property
    def named_groups(self) -> Iterator[tuple[Place, str]]:
        """The groups that it names, and where."""
        if isinstance(self.upstream, str):
            yield ("upstream",), self.upstream
        for index, route in enumerate(self.http.routes):
            if route.upstream is not None:
                yield ("http", "routes", index, "upstream"), route.upstream
