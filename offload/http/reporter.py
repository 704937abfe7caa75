"""What became of a client's requests, for metrics and the access log."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from offload.http.access_log import AccessLog, Caller, Entry, Form
from offload.http.errors import HttpError
from offload.http.exchange import Exchange
from offload.http.metrics import HttpMetrics, RouteMetrics

if TYPE_CHECKING:
    from offload.connection import Connection


ABORTED = "aborted"
"""The reason if a connection ended before its response was complete, and"""
CLIENT_SLOW = "client_slow"
"""if we ended it, because the client took too little of it."""


class Reporter:
    """Told of each request of one client when it is over."""

    __slots__ = ("_bytes_down", "_connection", "_form", "_log", "_metrics", "_trusted")

    def __init__(
        self, connection: Connection, metrics: HttpMetrics, log: AccessLog | None, trusted: bool
    ) -> None:
        """`trusted`: the client is a proxy in front."""
        self._connection = connection
        self._metrics = metrics
        self._log = log
        self._trusted = trusted
        self._form: Form | None = None
        self._bytes_down = 0
        """Before the request that is not over."""

    def over(
        self, exchange: Exchange, route: RouteMetrics, request_id: bytes, bytes_down: int, now: float
    ) -> None:
        """A request that took this route; `bytes_down`: to the client since it connected."""
        sent, self._bytes_down = bytes_down - self._bytes_down, bytes_down
        head, status, reason = exchange.head, exchange.status, exchange.reason
        seconds = now - exchange.began
        route.done(head.method, status, seconds)
        if exchange.server_seconds:
            route.upstream_seconds.observe(exchange.server_seconds)
        if reason:
            self._failed(exchange, route, request_id)
        if self._log is not None and self._log.wants(status, reason):
            self._write(
                self._log,
                Entry(
                    method=head.method,
                    target=head.target,
                    minor=head.minor,
                    host=head.host,
                    referer=head.get(b"referer") or b"",
                    user_agent=head.get(b"user-agent") or b"",
                    forwarded_for=(head.get(b"x-forwarded-for") or b"") if self._trusted else b"",
                    request_id=request_id,
                    route=route.label,
                    status=status,
                    reason=reason,
                    bytes_up=exchange.bytes_in,
                    bytes_down=sent,
                    seconds=seconds,
                    server=exchange.server,
                    server_seconds=exchange.server_seconds,
                ),
            )

    def _failed(self, exchange: Exchange, route: RouteMetrics, request_id: bytes) -> None:
        """Count it; what is not the client's doing is told without an access log, too (the log cuts floods)."""
        self._metrics.failed(exchange.reason)
        if exchange.reason not in (ABORTED, CLIENT_SLOW) and not 400 <= exchange.status < 500:
            listener = self._connection.listener
            listener.plane.log(
                "request_failed",
                listener=listener.name,
                reason=exchange.reason,
                status=exchange.status,
                route=route.label,
                server=exchange.server,
                request_id=request_id.decode(),
            )

    def unreadable(
        self, error: HttpError, route: RouteMetrics, request_id: bytes, bytes_down: int, received: bytes
    ) -> None:
        """What was `received` is no request, or not all of one, and was answered so; see `over`."""
        sent, self._bytes_down = bytes_down - self._bytes_down, bytes_down
        route.count(b"", error.status)
        self._metrics.failed(error.reason)
        if self._log is not None:
            self._write(
                self._log,
                Entry(
                    method=b"-", target=b"-", minor=1, host=b"", referer=b"", user_agent=b"", forwarded_for=b"",
                    request_id=request_id, route=route.label, status=error.status, reason=error.reason,
                    bytes_up=len(received), bytes_down=sent, seconds=0.0, server="", server_seconds=0.0,
                    line=received.partition(b"\n")[0].removesuffix(b"\r"),
                ),
            )  # fmt: skip

    def _write(self, log: AccessLog, entry: Entry) -> None:
        if self._form is None:
            self._form = log.form(_caller(self._connection))
        log.write(self._form, entry, time())


def _caller(connection: Connection) -> Caller:
    tls, record = connection.tls, connection.record
    host, port = connection.peer[:2]
    if tls is None or not tls.version:
        return Caller(connection.listener.name, host, port)
    node, signature_ms = ("", None) if record is None else record.signer
    return Caller(
        listener=connection.listener.name,
        address=host,
        port=port,
        tls_version=tls.version,
        cipher=tls.cipher,
        server_name=tls.server_name,
        resumed=tls.resumed,
        node=node,
        signature_ms=signature_ms,
    )
