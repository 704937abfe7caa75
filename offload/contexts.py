"""From what a worker is told about TLS to the s2n objects that do it."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from offload.client_certificates import judge_of
from offload.settings_tls import ChainData, ClientCertificateData, TicketData, TicketKeyData, TlsData
from offload.tickets import TicketKey
from offload.tls import Certificate, ClientVerification, Context, Tickets


def make_context(data: TlsData) -> Context:
    """A listener's context. Raises TLSError."""
    return Context(
        policy=data.policy,
        protocols=data.alpn,
        certificates=[_certificate(chain) for chain in data.chains],
        names=data.names,
        clients=_clients(data.client_certificates) if data.client_certificates is not None else None,
        tickets=_tickets(data.tickets) if data.tickets is not None else None,
    )


def _certificate(data: ChainData) -> Certificate:
    staple = base64.b64decode(data.staple)
    return Certificate(data.pem.encode(), bytes.fromhex(data.ski), staple, data.staple_until, data.algorithms)


def _clients(data: ClientCertificateData) -> ClientVerification:
    return ClientVerification(data.required, data.authorities.encode(), judge_of(data.allow))


def _tickets(data: TicketData) -> Tickets:
    return Tickets(data.rotate, data.lifetime, data.tls12, ticket_keys(data.keys))


def ticket_keys(keys: Iterable[TicketKeyData]) -> list[TicketKey]:
    """STEKs as a context takes them."""
    return [
        TicketKey(bytes.fromhex(key.name), bytes.fromhex(key.key), key.introduced, key.epoch) for key in keys
    ]
