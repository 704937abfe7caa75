"""What all HTTP sessions of a listener share: where requests go, limits, and who waits for what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hsm.logs import write_line
from hsm.metrics import MetricStore
from offload.http.access_log import AccessLog
from offload.http.errors import HttpError
from offload.http.forwarded import Client, ForwardedHeaders
from offload.http.header_policy import HeaderPolicy
from offload.http.hosts import CertifiedNames
from offload.http.metrics import HttpMetrics
from offload.http.request_id import RequestIds, is_well_formed
from offload.http.routing import Routing
from offload.http.time_limit import TimeLimit
from offload.networks import Networks

if TYPE_CHECKING:
    from offload.connection import Connection
    from offload.settings_http import HttpData
    from offload.upstream import Upstream


class HttpService:
    """A listener in HTTP mode."""

    def __init__(
        self,
        name: str,
        data: HttpData,
        upstreams: Mapping[str, Upstream],
        store: MetricStore,
        process: str,
    ) -> None:
        """`process`: what the log calls this one."""
        settings = data.settings
        limits, timeouts = settings.limits, settings.timeouts
        self.tls = data.tls
        self.metrics = HttpMetrics(store, name)
        log = settings.access_log
        self.access_log = None if log is None else AccessLog(log, write_line, process)
        self.ending = False
        """Whether clients are to come back on another connection."""
        self.line_most, self.head_most = limits.request_line, limits.head
        self.fields_most = limits.headers
        self.retry_after = settings.errors.retry_after
        self.head = TimeLimit(timeouts.head)
        self.idle = TimeLimit(timeouts.idle)
        self.upstream_idle = TimeLimit(timeouts.upstream_idle)
        self._trusted = Networks(settings.trusted)
        self._ids = RequestIds(os.urandom)
        pages = {status: page.encode() for status, page in data.pages.items()}
        self._policy = HeaderPolicy(settings, pages, tls=data.tls, asks_certificates=data.asks_certificates)
        self._names = CertifiedNames(data.names)
        routing = Routing(data, self._policy, self.metrics, upstreams)
        self.unrouted = routing.none
        """What holds for requests without a route."""
        self.routes = routing.routes
        self._limits = (self.head, self.idle, self.upstream_idle, *routing.limits)

    def admit(self, connection: Connection, host: bytes) -> None:
        """See that requests for this Host may come over this connection. Raises HttpError (421).

        A trusted proxy has one connection for all of its clients' hosts.
        """
        if self.tls and not self._trusted.contain(connection.peer[0]):
            assert connection.tls is not None
            if not self._names.covers(connection.tls.server_name, host):
                raise HttpError(421, "misdirected")

    def introduce(self, connection: Connection) -> tuple[bool, ForwardedHeaders]:
        """Whether a client is trusted to say who it speaks for, and how servers are told of it."""
        host, told = connection.peer[0], self._policy.told
        certificates = connection.tls.client_chain if told.client_cert and connection.tls is not None else ()
        client = Client(
            host, "https" if self.tls else "http", connection.local_address[1], tuple(certificates)
        )
        return self._trusted.contain(host), ForwardedHeaders(client, told)

    def request_id(self, incoming: Mapping[bytes, bytes] | None) -> bytes:
        """What a trusted peer said, if that is well-formed; else a new one."""
        given = incoming.get(b"x-request-id") if incoming else None
        return given if given is not None and is_well_formed(given) else self._ids.make()

    def expire(self, now: float) -> None:
        """End what takes too long."""
        for limit in self._limits:
            limit.expire(now)
