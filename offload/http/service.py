"""What all HTTP sessions of a listener share: where requests go, limits, and who waits for what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hsm.logs import write_line
from hsm.metrics import MetricStore
from offload.config_http import HeaderSettings
from offload.http.access_log import AccessLog
from offload.http.forwarded import Client, ForwardedHeaders
from offload.http.head import REQUEST_DROP, RESPONSE_DROP
from offload.http.header_policy import HeaderPolicy, RouteHeaders
from offload.http.metrics import HttpMetrics, RouteMetrics
from offload.http.request_id import RequestIds, is_well_formed
from offload.networks import Networks

if TYPE_CHECKING:
    from offload.connection import Connection
    from offload.settings import HttpData
    from offload.upstream import Upstream


class Waiting(Protocol):
    """Something that may take only so long."""

    def timed_out(self, limit: TimeLimit) -> None:
        """The time is over; `limit` has forgotten it."""


class TimeLimit:
    """A number of seconds, and who has that much time, by when it is over: the oldest come first."""

    __slots__ = ("_waiting", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[Waiting, float] = {}

    def start(self, waiting: Waiting, now: float) -> None:
        """Its time begins now, also if it had begun before."""
        self._waiting.pop(waiting, None)
        self._waiting[waiting] = now + self.seconds

    def stop(self, waiting: Waiting) -> None:
        """It waits no longer."""
        self._waiting.pop(waiting, None)

    def expire(self, now: float) -> None:
        """Tell those whose time is over; call it a few times a second."""
        due = []
        for waiting, deadline in self._waiting.items():
            if deadline > now:
                break
            due.append(waiting)
        for waiting in due:
            if self._waiting.pop(waiting, None) is not None:  # an earlier one may have ended it
                waiting.timed_out(self)


@dataclass(frozen=True)
class Forward:
    """A route to web servers."""

    upstream: Upstream
    headers: RouteHeaders
    metrics: RouteMetrics
    body_most: int | None
    """Bytes of a request's body."""
    body: TimeLimit
    first_byte: TimeLimit
    response: TimeLimit


class HttpService:
    """A listener in HTTP mode."""

    def __init__(
        self,
        name: str,
        data: HttpData,
        upstream: Upstream,
        store: MetricStore,
        process: str,
    ) -> None:
        """`process`: what the log calls this one."""
        settings = data.settings
        limits, timeouts = settings.limits, settings.timeouts
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
        self._policy = HeaderPolicy(settings, pages, tls=True, asks_certificates=data.asks_certificates)
        self.default = Forward(
            upstream, self._policy.of_route(HeaderSettings(), REQUEST_DROP, RESPONSE_DROP), self.metrics.route("*/"),
            limits.body, TimeLimit(timeouts.body), TimeLimit(timeouts.first_byte), TimeLimit(timeouts.response),
        )  # fmt: skip

    def introduce(self, connection: Connection) -> tuple[bool, ForwardedHeaders]:
        """Whether a client is trusted to say who it speaks for, and how servers are told of it."""
        host, told = connection.peer[0], self._policy.told
        certificates = connection.tls.client_chain if told.client_cert and connection.tls is not None else ()
        client = Client(host, "https", connection.local_address[1], tuple(certificates))
        return self._trusted.contain(host), ForwardedHeaders(client, told)

    def request_id(self, incoming: Mapping[bytes, bytes] | None) -> bytes:
        """What a trusted peer said, if that is well-formed; else a new one."""
        given = incoming.get(b"x-request-id") if incoming else None
        return given if given is not None and is_well_formed(given) else self._ids.make()

    def expire(self, now: float) -> None:
        """End what takes too long."""
        for limit in (self.head, self.idle, self.upstream_idle, self.default.body, self.default.first_byte,
                      self.default.response):  # fmt: skip
            limit.expire(now)
