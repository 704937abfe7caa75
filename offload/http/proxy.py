"""A client that speaks HTTP/1.1, request by request: read, sent to a server, answered, and on to the next.

One client has at most one connection to a server, and that is never another client's. Which server
is chosen anew at each message boundary; only a connection on which both messages ended exactly where
they should is used again (`Exchange`).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time
from typing import TYPE_CHECKING

from offload.http.answers import Request
from offload.http.client import ClientSide
from offload.http.errors import HttpError
from offload.http.exchange import Exchange, RequestState
from offload.http.forwarded import told
from offload.http.guarded import DroppedNames
from offload.http.head import RequestHead
from offload.http.reporter import ABORTED, CLIENT_SLOW, Reporter
from offload.http.requests import Requests
from offload.http.responses import Responses
from offload.http.routes import Redirect
from offload.http.routing import Answer, Forward, Route, Target
from offload.http.service import HttpService
from offload.http.time_limit import TimeLimit
from offload.http.upstream import UpstreamSide
from offload.relay import set_reset_on_close
from offload.relay_session import RelaySession
from offload.tls import TLSError

if TYPE_CHECKING:
    from offload.connection import Connection


class HttpSession:
    """Ties the two sides together; `exchange` is the request at hand, None between two."""

    __slots__ = (
        "_host", "_limit", "_outcome", "_reporter", "_trusted", "_writer",
        "bytes_down", "bytes_up", "client", "closed", "closing", "exchange", "listener", "owner", "request_id",
        "requests", "responses", "route", "service", "upstream",
    )  # fmt: skip

    def __init__(self, connection: Connection, service: HttpService) -> None:
        self.owner = connection
        self.listener = connection.listener
        self.service = service
        self.closed = False
        self.closing = False
        """The last answer is on its way: then it ends, as `_outcome`."""
        self.exchange: Exchange | None = None
        self.route = service.unrouted
        """Of the request at hand, or the last one."""
        self.request_id = b""
        self._host = b""
        """Of the request before: nearly always that of the next, too."""
        self.bytes_up = self.bytes_down = 0
        """Plaintext from and to the client."""
        self._limit: TimeLimit | None = None
        self._outcome = ""
        self._trusted, self._writer = service.introduce(connection)
        self._reporter = Reporter(connection, service.metrics, service.access_log, self._trusted)
        self.client = ClientSide(self)
        self.upstream = UpstreamSide(self)
        self.requests = Requests(self)
        self.responses = Responses(self)

    def __repr__(self) -> str:
        return f"<HttpSession of {self.owner}>"

    def begin(self, now: float) -> None:
        """The handshake is done; a request may have come with its last flight."""
        self.wait(self.service.idle, now)
        self.client.read()

    @property
    def server(self) -> str:
        """The address of the server of the present or the last request; empty if there is none."""
        return self.upstream.server

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Plaintext bytes from and to the client."""
        return self.bytes_up, self.bytes_down

    @property
    def ending(self) -> bool:
        """Whether the client is to come back on another connection: this listener is replaced, or all ends."""
        return self.service.ending

    def retire(self) -> None:
        """The listener: the client is to come back on another connection."""
        if self.exchange is None and not self.closing and not self.client.rest:
            self.owner.end("served", goodbye=True)

    def close(self) -> None:
        """The connection: it ends."""
        self.closed = True
        if self._limit is not None:
            self._limit.stop(self)
        is_taking = self.client.pending is not None
        self.client.forget_pending()
        exchange, self.exchange = self.exchange, None
        self.upstream.close(reset=exchange is not None and not exchange.over)
        if exchange is not None:
            if not exchange.over or is_taking:
                exchange.reason = exchange.reason or ABORTED
            self._reporter.over(exchange, self.route.metrics, self.request_id, self.bytes_down, monotonic())

    def find_route(self, head: RequestHead) -> Route:
        """Where a request goes. Raises HttpError: 400, 404 or 421."""
        self.route = self.service.unrouted
        if head.host != self._host:
            self.service.admit(self.owner, head.host)
            self._host = head.host
        self.route = route = self.service.routes.find(head.host, head.target)
        return route

    # -- what a server is told ------------------------------------------------------------

    def drop(self, route: Target) -> DroppedNames:
        """The names of fields that do not pass to the servers of a route."""
        return route.headers.trusted_drop if self._trusted else route.headers.request_drop

    def lines(self, route: Forward, head: RequestHead) -> bytes:
        """Who the client is, and what rules add: lines for a request."""
        incoming = self._incoming(head)
        self.request_id = self.service.request_id(incoming)
        return self._writer.lines(head.host, incoming, self.request_id) + route.headers.request_lines

    def _incoming(self, head: RequestHead) -> Mapping[bytes, bytes] | None:
        """What a trusted peer tells of whoever it speaks for."""
        return told(head.fields) if self._trusted else None

    # -- time -----------------------------------------------------------------------------

    def wait(self, limit: TimeLimit, now: float) -> None:
        """From now on this is what takes its time."""
        if self._limit is not limit and self._limit is not None:
            self._limit.stop(self)
        self._limit = limit
        limit.start(self, now)

    def moved(self, limit: TimeLimit, size: int, now: float) -> None:
        """So many bytes of what this limit is for: it goes on, or begins."""
        if self._limit is limit:
            limit.moved(self, size, now)
        else:
            self.wait(limit, now)

    def timed_out(self, limit: TimeLimit) -> None:
        """What was waited for did not come."""
        self._limit = None
        client_is_slow = limit is self.route.response and self.client.pending is not None
        if client_is_slow and self.exchange is not None:
            self.exchange.reason = self.exchange.reason or CLIENT_SLOW
        if self.closing:
            self.owner.end(self._outcome)
        elif client_is_slow:
            set_reset_on_close(self.owner.sock)
            self.owner.end("idle_timeout")
        elif limit is self.service.idle:
            self.owner.end("idle_timeout", goodbye=True)
        elif limit is self.service.head or (limit is self.route.body and self.upstream.pending is None):
            self.fail(HttpError(408, "request_timeout"))
        else:
            self.fail(HttpError(504, "response_timeout"))

    def server_took_some(self) -> None:
        """The server: of the request."""
        if self.exchange is not None and self.exchange.request is RequestState.COMING:
            self.wait(self.route.body, monotonic())

    def client_took_some(self, size: int) -> None:
        """The client: so many bytes of the response."""
        self.moved(self.route.response, size, monotonic())

    # -- the client -----------------------------------------------------------------------

    def client_ended(self) -> None:
        """The client: it will send no more (close_notify)."""
        exchange = self.exchange
        assert self.owner.tls is not None
        if exchange is None:
            self.owner.end("served", goodbye=True)
        elif exchange.request is RequestState.COMING:
            self.owner.end("truncated")
        elif not self.owner.tls.half_close:
            self.owner.end("client_reset")

    def client_broke(self, error: TLSError | None) -> None:
        """The client: it reset the connection, left without close_notify, or sent a bad record."""
        if error is None:
            self.owner.end("client_reset")
        elif self.exchange is None and error.truncated:
            self.owner.end("served")  # many clients leave an idle connection like that
        else:
            self.owner.broke(error)

    def client_took_all(self) -> None:
        """The client: nothing is pending any more."""
        if self.closing:
            self.owner.end(self._outcome, goodbye=True)
            return
        if self.exchange is not None and not self.exchange.over:
            self.wait(self.route.response, monotonic())  # the server had to wait, too
            self.upstream.resume()
        self.finish_if_taken()

    def finish_if_taken(self) -> None:
        """The exchange is over once the client has taken all of the response."""
        exchange = self.exchange
        if exchange is None or not exchange.over:
            return
        if self.client.pending is not None:
            self.wait(self.route.response, monotonic())
            return
        self.exchange = None
        now = monotonic()
        self._reporter.over(exchange, self.route.metrics, self.request_id, self.bytes_down, now)
        self.request_id = self.requests.repeatable = b""
        client = self.client
        if not exchange.keep_client or (client.over and not client.rest):
            self.owner.end("served", goodbye=True)
            return
        self.wait(self.service.idle, now)
        if client.rest:
            self.requests.take_up()
        if not self.closed and self.requests.wanted:
            client.resume()

    # -- the server -----------------------------------------------------------------------

    @property
    def may_read_server(self) -> bool:
        """Whether the client takes what would come; after the response, only an end or surplus can."""
        return self.client.pending is None or self.exchange is None or self.exchange.over

    def server_took_all(self) -> None:
        """The server: more of the request can be sent."""
        exchange = self.exchange
        if exchange is not None and exchange.request is RequestState.COMING:
            if exchange.may_answer:
                self.wait(self.route.body, monotonic())  # the client had to wait, too
            self.client.resume()

    def upstream_failed(self, outcome: str) -> None:
        """No server can be reached."""
        self.fail(HttpError(503, outcome))

    def upstream_broke(self) -> None:
        """The server takes no more; what it has answered is still read."""
        exchange = self.exchange
        if exchange is None or exchange.over:
            self.upstream.close()
        elif not self._retry(exchange):
            if exchange.request is not RequestState.CUT:
                exchange.server_is_deaf()
            if self.client.pending is None:
                self.upstream.read()

    def upstream_ended(self) -> None:
        """The server closed its connection."""
        exchange = self.exchange
        if exchange is None or not self.responses.ended(exchange):
            self.upstream_reset()

    def upstream_reset(self) -> None:
        """The server's connection broke, or ended within a message."""
        exchange = self.exchange
        if exchange is None or exchange.over:
            self.upstream.close()
        elif not self._retry(exchange):
            self.fail(HttpError(502, "upstream_reset"))

    def _retry(self, exchange: Exchange) -> bool:
        """Whether the request is sent once more, because a kept connection was closed under it."""
        upstream, request = self.upstream, self.requests.repeatable
        if upstream.rest or not exchange.may_retry(reused=upstream.reused, body_sent=not request):
            return False
        upstream.close()
        assert isinstance(self.route, Forward)
        upstream.ask(self.route.upstream, request, repeatable=True)
        return True

    def upgrade(self, exchange: Exchange, response: bytes) -> None:
        """Another protocol from now on: both sides get what has come of it, then a relay takes over."""
        self.client.send(response)
        if self.closed:
            return
        if self._limit is not None:
            self._limit.stop(self)
        self.closed = True
        now = monotonic()
        self._reporter.over(exchange, self.route.metrics, self.request_id, self.bytes_down, now)
        early = self.client.rest
        connection, sock = self.upstream.release()
        relay = RelaySession(self.owner, connection)
        relay.take_over(sock, memoryview(early) if early else None, self.client.release(), now)

    # -- what goes wrong ------------------------------------------------------------------

    def fail(self, error: HttpError) -> None:
        """Answer with an error while that is possible, else break off visibly."""
        exchange = self.exchange
        self.upstream.close(reset=exchange is not None)
        if exchange is not None:
            exchange.reason = error.reason
            if not exchange.may_answer:
                set_reset_on_close(self.owner.sock)
                self.owner.end("upstream_reset" if error.status >= 500 else "bad_request")
                return
        head, close = self._answered(exchange, error.status)
        retry_after = self.service.retry_after if error.status == 503 else None
        answers, request = self.route.headers.answers, self._request(head)
        answer = answers.error(error.status, request, time(), close=close, retry_after=retry_after)
        self._send_own(answer, "bad_request" if error.status < 500 else "served", close=close)
        if exchange is None:
            metrics = self.service.unrouted.metrics
            self._reporter.unreadable(error, metrics, self.request_id, self.bytes_down, self.client.rest)
        self._end_if_taken()

    def answer(self, exchange: Exchange, route: Answer) -> None:
        """The request at hand needs no server."""
        what, answers, head = route.answer, route.headers.answers, exchange.head
        _, close = self._answered(exchange, what.status)
        request, now = self._request(head), time()
        if isinstance(what, Redirect):
            location = what.location(head.host, head.target)
            answer = answers.redirect(what.status, location, request, now, close=close)
        else:
            answer = answers.fixed(what.status, what.content_type, what.body, request, now, close=close)
        self._send_own(answer, "served", close=close)
        self._end_if_taken()

    def _answered(self, exchange: Exchange | None, status: int) -> tuple[RequestHead | None, bool]:
        """What is answered, if it could be read, and whether the connection ends with that."""
        if exchange is None:
            return None, True
        exchange.answered(status)
        head = exchange.head
        return head, head.minor == 0 or not exchange.keep_client or self.ending

    def _send_own(self, answer: bytes, outcome: str, *, close: bool) -> None:
        if not close:
            self.client.send(answer)
            self.finish_if_taken()
            return
        self.closing = True
        self._outcome = outcome
        self.wait(self.route.response, monotonic())
        self.client.send(answer)

    def _end_if_taken(self) -> None:
        """The client has the last answer: then it ends."""
        if self.closing and self.client.pending is None and not self.closed:
            self.owner.end(self._outcome, goodbye=True)

    def _request(self, head: RequestHead | None) -> Request:
        """What an answer of ours depends on; without a head, a request that can't be read."""
        if not self.request_id:
            self.request_id = self.service.request_id(None if head is None else self._incoming(head))
        if head is None:
            return Request(request_id=self.request_id)
        return Request(head.get(b"accept") or b"", self.request_id, head.method == b"HEAD")
