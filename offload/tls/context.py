"""Certificates and policy as one s2n_config, shared by connections and freed once.

An s2n_config must outlive every connection made from it, so a context is counted: its owner
holds one reference, each connection another, and the last to go frees the C objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from offload.tickets import TicketKey
from offload.tls import _s2n_cdef as c
from offload.tls import callbacks
from offload.tls.callbacks import Judge
from offload.tls.s2n import TLSError, check, check_pointer, ffi, last_error, lib

SEND_BUFFER_SIZE = 116_000
"""Room for seven full records and their overhead, so that they leave in one write.
Below 128 KiB: from there on malloc maps and unmaps memory for each, which costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain (PEM, leaf first), the SKI of its key, which lives elsewhere, and an OCSP response (DER).

    `staple_until`: the Unix time from which the response is good no more, if it has an end.
    `algorithms`: names of its key's and of its signature's, for whoever is to be told.
    """

    pem: bytes
    ski: bytes
    staple: bytes = b""
    staple_until: float | None = None
    algorithms: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Tickets:
    """Session tickets: what `TicketRing` says of them, and whether TLS 1.2 gets them too."""

    rotate: int
    lifetime: int
    tls12: bool
    keys: Sequence[TicketKey]


@dataclass(frozen=True, slots=True)
class ClientVerification:
    """Clients are asked for a certificate of one of these authorities (PEM), and judged by it."""

    required: bool
    authorities: bytes
    judge: Judge


class Context:
    """What the connections of a listener share: s2n_config and s2n_cert_chain_and_key objects."""

    __slots__ = (
        "_algorithms", "_chains", "_config", "_epochs", "_references", "_rotate", "_skis", "_staples", "mode",
        "only_ski",
    )  # fmt: skip

    def __init__(
        self,
        *,
        policy: str,
        certificates: Sequence[Certificate] = (),
        tickets: Tickets | None = None,
        protocols: Sequence[str] = (),
        names: Iterable[str] | None = None,
        clients: ClientVerification | None = None,
        client: bool = False,
    ) -> None:
        """Raises TLSError for an unknown policy or a chain that s2n can't use.

        `protocols`: those of ALPN, the preferred one first. `names`: all that clients may ask
        for by SNI (lower case, `*.` for any first label), if not any name. With `clients`, handshakes are
        always full ones, whatever `tickets` says: a resumed one shows no certificate.
        `client` makes a context for the other side, which checks no certificate:
        for load generators and tests only.
        """
        self.mode = c.MODE_CLIENT if client else c.MODE_SERVER
        self._references = 1
        self._chains: list[Any] = []
        self._skis: dict[Any, bytes] = {}
        self._algorithms: dict[Any, tuple[str, str]] = {}
        self._staples: dict[Any, float] = {}
        self._epochs: dict[bytes, int] = {}
        self._rotate = 0
        self.only_ski = certificates[0].ski if len(certificates) == 1 else None
        """The SKI of the certificate that every client is shown; None if there are several to choose from."""
        self._config = check_pointer(lib.s2n_config_new_minimal(), "s2n_config_new_minimal")
        try:
            self._configure(policy, certificates, client)
            for protocol in protocols:
                check(
                    lib.s2n_config_append_protocol_preference(
                        self._config, protocol.encode(), len(protocol.encode())
                    ),
                    "s2n_config_append_protocol_preference",
                )
            if names is not None:
                self._refuse_other_names(names)
            if clients is not None:
                self._verify_clients(clients)
            elif tickets is not None:
                self._enable_tickets(tickets)
        except TLSError:
            self.release()
            raise

    def _configure(self, policy: str, certificates: Sequence[Certificate], client: bool) -> None:
        config = self._config
        check(
            lib.s2n_config_set_cipher_preferences(config, policy.encode()),
            f"s2n_config_set_cipher_preferences({policy!r})",
        )
        if client:  # which sends little: s2n's own buffer is smaller, and is wiped after each connection
            check(lib.s2n_config_disable_x509_verification(config), "s2n_config_disable_x509_verification")
            return
        check(
            lib.s2n_config_set_send_buffer_size(config, SEND_BUFFER_SIZE), "s2n_config_set_send_buffer_size"
        )
        check(
            lib.s2n_config_set_async_pkey_callback(config, callbacks.PRIVATE_KEY_OPERATION),
            "s2n_config_set_async_pkey_callback",
        )
        for certificate in certificates:
            self._add_certificate(certificate)

    def _add_certificate(self, certificate: Certificate) -> None:
        chain = check_pointer(lib.s2n_cert_chain_and_key_new(), "s2n_cert_chain_and_key_new")
        self._chains.append(chain)
        self._skis[chain] = certificate.ski
        self._algorithms[chain] = certificate.algorithms
        check(
            lib.s2n_cert_chain_and_key_load_public_pem_bytes(chain, certificate.pem, len(certificate.pem)),
            "s2n_cert_chain_and_key_load_public_pem_bytes",
        )
        check(
            lib.s2n_config_add_cert_chain_and_key_to_store(self._config, chain),
            "s2n_config_add_cert_chain_and_key_to_store",
        )
        self._staple(chain, certificate.staple)
        if certificate.staple and certificate.staple_until is not None:
            self._staples[chain] = certificate.staple_until

    @staticmethod
    def _staple(chain: Any, response: bytes) -> None:
        check(
            lib.s2n_cert_chain_and_key_set_ocsp_data(chain, response, len(response)),
            "s2n_cert_chain_and_key_set_ocsp_data",
        )

    def drop_expired_staples(self, now: float) -> list[bytes]:
        """Staple no more what is good no more (Unix time); the SKIs of those certificates."""
        expired = [chain for chain, until in self._staples.items() if until <= now]
        for chain in expired:
            del self._staples[chain]
            self._staple(chain, b"")
        return [self._skis[chain] for chain in expired]

    @property
    def _number(self) -> int:
        """What callbacks are told: the address of the s2n_config."""
        return int(ffi.cast("uintptr_t", self._config))

    def _refuse_other_names(self, names: Iterable[str]) -> None:
        callbacks.set_names(self._number, names)
        check(
            lib.s2n_config_set_client_hello_cb(self._config, callbacks.KNOWN_NAME, self._config),
            "s2n_config_set_client_hello_cb",
        )

    def _verify_clients(self, clients: ClientVerification) -> None:
        config = self._config
        callbacks.set_judge(self._number, clients.judge)
        kind = c.CERTIFICATE_REQUIRED if clients.required else c.CERTIFICATE_OPTIONAL
        if (
            lib.s2n_config_set_client_auth_type(config, kind) < 0
            or lib.s2n_config_add_pem_to_trust_store(config, clients.authorities) < 0
            or lib.s2n_config_set_verify_host_callback(config, callbacks.ANY_NAME, ffi.NULL) < 0
            or lib.s2n_config_set_cert_validation_cb(config, callbacks.CLIENT_CERTIFICATE, config) < 0
            # Otherwise a refused client is told nothing for a while, not even that the connection ends.
            or lib.s2n_config_set_max_blinding_delay(config, 0) < 0
        ):
            raise last_error("s2n_config_set_client_auth_type")

    def _enable_tickets(self, tickets: Tickets) -> None:
        config = self._config
        # The ring says which keys there are; s2n's own second phase is but a limit above that,
        # in which the keys of a shared secret that doesn't encrypt fit (one `rotate` more).
        decrypting = tickets.lifetime + tickets.rotate
        if (
            lib.s2n_config_set_session_state_lifetime(config, tickets.lifetime) < 0
            or lib.s2n_config_set_ticket_encrypt_decrypt_key_lifetime(config, tickets.rotate) < 0
            or lib.s2n_config_set_ticket_decrypt_key_lifetime(config, decrypting) < 0
            or lib.s2n_config_require_ticket_forward_secrecy(config, not tickets.tls12) < 0
        ):
            raise last_error("s2n_config_set_session_state_lifetime")
        self._rotate = tickets.rotate
        self.set_ticket_keys(tickets.keys)

    def set_ticket_keys(self, keys: Sequence[TicketKey]) -> None:
        """Encrypt and decrypt tickets with these STEKs alone, from now on. Raises TLSError."""
        config = self._config
        # Off frees all keys (and overwrites them). Nothing of s2n runs between these calls.
        for enabled in (0, 1):
            check(
                lib.s2n_config_set_session_tickets_onoff(config, enabled),
                "s2n_config_set_session_tickets_onoff",
            )
        for key in keys:
            check(
                lib.s2n_config_add_ticket_crypto_key(
                    config, key.name, len(key.name), key.key, len(key.key), key.introduced
                ),
                "s2n_config_add_ticket_crypto_key",
            )
        self._epochs = {key.name: key.epoch for key in keys}

    def rotations_since(self, key_name: bytes, now: float) -> int | None:
        """How many rotations before `now` (Unix time) the STEK of this name was the current one.

        None if it is no STEK of this context any more. Other replicas' clocks may be ahead: that counts as now.
        """
        epoch = self._epochs.get(key_name)
        return None if epoch is None else max(0, int(now // self._rotate) - epoch)

    @property
    def config(self) -> Any:
        """The s2n_config, for the connection that acquires this context."""
        return self._config

    @property
    def references(self) -> int:
        """The owner and the connections that still use this context; 0 when freed."""
        return self._references

    def ski_of(self, chain: Any) -> bytes:
        """The SKI of a certificate that s2n selected (its s2n_cert_chain_and_key)."""
        return self._skis[chain]

    def algorithms_of(self, chain: Any) -> tuple[str, str]:
        """The `algorithms` of a certificate that s2n selected."""
        return self._algorithms[chain]

    def acquire(self) -> None:
        """One more user; pair with `release`."""
        if self._references == 0:
            raise ValueError("the context is freed")
        self._references += 1

    def release(self) -> None:
        """One user less; the last one frees the s2n objects (s2n_config_free first)."""
        if self._references == 0:
            raise ValueError("the context is freed already")
        self._references -= 1
        if self._references:
            return
        lib.s2n_config_free(self._config)
        for chain in self._chains:
            lib.s2n_cert_chain_and_key_free(chain)
        callbacks.forget(self._number)
        self._config = ffi.NULL
        self._chains.clear()
        self._skis.clear()
        self._algorithms.clear()
        self._staples.clear()
