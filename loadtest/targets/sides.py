"""The sides of a comparison: Offload or another proxy, all before one web server, with the same certificates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from hsm.config import Duration, Section
from loadtest.targets.agreement import CIPHER, Negotiated, parse_s_client, s_client_command
from loadtest.targets.certificates import Credentials, make_credentials
from loadtest.targets.cluster import LISTENER, KeyKind
from loadtest.targets.lab import Lab, LoadTestError, require
from loadtest.targets.peers import Nginx, nginx_version, start_peer, start_upstream
from loadtest.targets.peers import Terminator as NginxTerminator
from loadtest.targets.pkcs11 import SlowToken, make_slow_token
from loadtest.targets.proxy import start_node, start_proxy, start_token_node
from loadtest.targets.terminators import start_terminator

Processes = Callable[[], Mapping[str, Sequence[int]]]
"""Pids by group: `worker`, `tree` (all that serve), and for Offload `node`."""


class ServerSettings(Section):
    """A proxy with one worker and one certificate."""

    server: Literal["offload", "nginx", "haproxy", "stunnel", "hitch"] = Field(description="Which program.")
    mode: Literal["relay", "http"] = Field(
        "relay", description="Whether it passes plaintext on as it is, or HTTP requests one by one."
    )
    key: KeyKind = Field("p256", description="Kind of its key.")
    signature: Duration | None = Field(
        None,
        description="The key is in a PKCS#11 token that takes so long to sign: nginx and stunnel reach it by OpenSSL's "
        "pkcs11 engine, Offload by a node. If left out, the key is in the peer's memory, or a software node's.",
    )
    verify: Literal["always", "rsa"] = Field("always", description="`hsm.verify_signatures` of Offload.")
    certificates: int = Field(0, ge=0, le=10_000, description="Further certificates that Offload has.")
    tickets: bool = Field(False, description="Whether Offload gives session tickets; the others give none.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.server not in {"offload", "nginx"} and self.mode != "relay":
            raise ValueError(f"{self.server} is compared as it passes plaintext on")
        if self.server in {"haproxy", "hitch"} and self.signature is not None:
            raise ValueError(f"{self.server} takes no key from a token")
        if self.server != "offload" and (self.verify != "always" or self.certificates or self.tickets):
            raise ValueError("verify, certificates, tickets: are for offload")
        return self


@dataclass(frozen=True)
class Started:
    """A proxy that runs."""

    port: int
    processes: Processes
    version: str


class Sides:
    """Starts proxies in a lab; they share a web server, certificates and tokens."""

    def __init__(self, lab: Lab) -> None:
        """Starts the web server. Raises LoadTestError."""
        self._lab = lab
        self._upstream: Nginx = start_upstream(lab)
        self._credentials: dict[str, Credentials] = {}
        self._tokens: dict[tuple[str, float], SlowToken] = {}
        self._count = 0

    def start(self, settings: ServerSettings) -> Started:
        """Start one, and see that it agrees on the cipher that all must use.

        Raises MissingToolError when a program is not installed, LoadTestError when it does not start.
        """
        self._count += 1
        label = f"{settings.server}-{self._count}"
        if settings.server == "offload":
            started = self._offload(label, settings)
        elif settings.server == "nginx":
            started = self._nginx(label, settings)
        else:
            started = self._other(label, settings)
        return started

    def negotiated(self, started: Started) -> Negotiated:
        """What it agrees on with `openssl s_client`. Raises LoadTestError when that is another cipher."""
        openssl = require("openssl", "apt-get install openssl")
        try:
            terms = parse_s_client(self._lab.run(s_client_command(openssl, started.port)))
        except ValueError as error:
            raise LoadTestError(f"{started.version}: {error}") from error
        if terms.cipher != CIPHER:
            raise LoadTestError(f"{started.version}: negotiates {terms.cipher} instead of {CIPHER}")
        return terms

    def _offload(self, label: str, settings: ServerSettings) -> Started:
        chains = self._chains(label, settings)
        if settings.signature is None:
            node = start_node(self._lab, f"{label}-node", self._lab.directory / "keys")
        else:
            token = self._token(settings.key, settings.signature)
            node = start_token_node(self._lab, f"{label}-node", token.node_uri, token.environment)
        proxy = start_proxy(
            self._lab, label, {LISTENER: chains}, self._upstream.ports[0], [node],
            verify=settings.verify, mode=settings.mode, gives_tickets=settings.tickets,
        )  # fmt: skip
        return Started(proxy.ports[LISTENER], proxy.processes, "offload")

    def _chains(self, label: str, settings: ServerSettings) -> Path:
        chain = self._key(settings.key).chain
        if not settings.certificates:
            return chain
        directory = self._lab.directory / f"{label}-chains"
        directory.mkdir()
        (directory / chain.name).symlink_to(chain)
        for number in range(settings.certificates):
            make_credentials(self._lab.directory, settings.key, f"host{number}.test", directory)
        return directory

    def _nginx(self, label: str, settings: ServerSettings) -> Started:
        credentials, environment = self._key(settings.key), {}
        terminator = NginxTerminator.in_memory(credentials)
        if settings.signature is not None:
            token = self._token(settings.key, settings.signature)
            terminator, environment = NginxTerminator.on_token(credentials, token), token.environment
        http = settings.mode == "http"
        peer = start_peer(self._lab, label, self._upstream, [terminator], environment, http=http)
        return Started(peer.ports[0], peer.processes, nginx_version())

    def _other(self, label: str, settings: ServerSettings) -> Started:
        token = None if settings.signature is None else self._token(settings.key, settings.signature)
        credentials, port = self._key(settings.key), self._upstream.ports[0]
        peer = start_terminator(self._lab, settings.server, label, credentials, port, token)
        return Started(peer.port, peer.processes, f"{settings.server} {peer.version}")

    def _key(self, kind: str) -> Credentials:
        if kind not in self._credentials:
            self._credentials[kind] = make_credentials(self._lab.directory, kind)
        return self._credentials[kind]

    def _token(self, kind: str, signature: float) -> SlowToken:
        name = (kind, signature)
        if name not in self._tokens:
            label = f"token-{self._count}"
            self._tokens[name] = make_slow_token(self._lab, label, self._key(kind), signature)
        return self._tokens[name]
