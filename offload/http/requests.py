"""From the client to the servers: requests are taken up one by one, in order, and bodies passed on as they come."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from offload.http.body import CHUNKED, Body, ChunkedBody
from offload.http.errors import HttpError
from offload.http.exchange import Exchange, RequestState, ResponseState
from offload.http.head import BLOCK_MOST, RequestHead, head_size, parse_request, pass_trailers, write_request
from offload.http.routing import Answer

if TYPE_CHECKING:
    from offload.http.proxy import HttpSession

ANSWERS_PER_TURN = 16
"""Requests of a client that are answered without a server, before other clients get their turn."""
HEAD_KEPT_MOST = 2 * BLOCK_MOST
"""Bytes of a head that a client may leave with us when its request is over: thousands of idle ones do."""

_COMING = RequestState.COMING
_AWAITED = ResponseState.AWAITED


class Requests:
    """This direction of a session."""

    __slots__ = (
        "_body", "_examined", "_head", "_head_since", "_later", "_session", "_taking", "repeatable",
    )  # fmt: skip

    def __init__(self, session: HttpSession) -> None:
        self._session = session
        self._body: Body | None = None
        self._head: RequestHead | None = None
        """Of the last request, if it is small: the next one is often the same but for its first line."""
        self._head_since = 0.0
        """When the first byte came of a head that is not complete; 0 if there is none."""
        self._examined = 0
        """Bytes of it that need no second look."""
        self._taking = False
        self._later = False
        """Whether there is more to take up, and it has to wait for its turn."""
        self.repeatable = b""
        """The request at hand, as long as all of it that was sent is its head."""

    @property
    def wanted(self) -> bool:
        """Whether bytes of the client are of use now; one buffer beyond the present request is taken."""
        session = self._session
        exchange = session.exchange
        if exchange is None:
            return not (session.closing or session.closed or self._later)
        if exchange.request is _COMING:
            return session.upstream.pending is None and not exchange.over
        return not session.client.rest

    def received(self, size: int) -> bool:
        """The client: so many bytes are in the shared buffer; whether more are wanted."""
        session = self._session
        exchange = session.exchange
        view = session.listener.buffers.up_view[:size]
        if exchange is not None and exchange.request is _COMING:
            self._pass_body(exchange, view)
        else:
            session.client.rest += view
            if exchange is None:
                self.take_up()
        return self.wanted

    # -- heads ----------------------------------------------------------------------------

    def take_up(self) -> None:
        """Begin with what has come, until a request has to wait for its server."""
        if self._taking:  # a request was answered at once: go on there
            return
        self._taking = True
        session = self._session
        for _ in range(ANSWERS_PER_TURN):
            if session.exchange is not None or not session.client.rest or not self._take_head():
                break
        else:
            if not self._later:
                self._later = True
                session.listener.poller.soon(self._take_up_later)
        self._taking = False

    def _take_up_later(self) -> None:
        session = self._session
        self._later = False
        if not session.closed and not session.closing and session.exchange is None:
            self.take_up()
            if self.wanted:
                session.client.resume()

    def _take_head(self) -> bool:
        """Begin with the request that has come first; False if it has not come whole, or no more will."""
        session, service, rest = self._session, self._session.service, self._session.client.rest
        if rest.startswith(b"\r\n"):  # tolerated before a request (RFC 9112 §2.2)
            rest = session.client.rest = rest[2:]
            self._examined = 0
        now = monotonic()
        try:
            size = head_size(rest, service.line_most, service.head_most, self._examined)
            if size == 0:
                self._examined = len(rest)
                if not self._head_since:
                    self._head_since = now
                    session.wait(service.head, now)
                return False
            head = parse_request(rest[:size], service.fields_most, self._head)
        except HttpError as error:
            session.fail(error)
            return False
        self._head = head if head.block and size <= HEAD_KEPT_MOST else None
        session.client.rest = rest[size:]
        exchange = session.exchange = Exchange(head, self._head_since or now, size)
        self._head_since, self._examined = 0.0, 0
        try:
            self._ask(exchange, head, now)
        except HttpError as error:
            session.fail(error)
        return not session.closed and not session.closing

    def _ask(self, exchange: Exchange, head: RequestHead, now: float) -> None:
        """Find out where it goes, and send it there with what has come of its body."""
        session = self._session
        route = session.find_route(head)
        if isinstance(route, Answer):
            session.answer(exchange, route)
            return
        most = route.body_most
        if most is not None and head.framing > most:
            raise HttpError(413, "body_size")
        request = write_request(head, route.headers.host, session.drop(route), session.lines(route, head))
        self.repeatable = request
        if exchange.request is _COMING:
            self._body = (
                ChunkedBody(400, self._pass_trailers, most=most)
                if head.framing == CHUNKED
                else Body(head.framing)
            )
            body = self._take_body(exchange, memoryview(session.client.rest))
            if body:
                self.repeatable = b""
                request += body
        session.wait(route.body if exchange.request is _COMING else route.first_byte, now)
        session.upstream.ask(route.upstream, request, repeatable=bool(self.repeatable) and head.idempotent)

    # -- bodies ---------------------------------------------------------------------------

    def _take_body(self, exchange: Exchange, view: memoryview) -> bytes | memoryview:
        """What of the received bytes goes to the server; those that are not used are left for later."""
        body = self._body
        assert body is not None
        passes, used = body.take(view, 0, len(view))
        exchange.bytes_in += used
        self._session.client.rest = bytes(view[used:])
        if body.done:
            exchange.request_ends()
            if body.tail:
                return b"".join((view[:passes], body.tail))
        return view[:passes]

    def _pass_trailers(self, section: bytes) -> bytes:
        session = self._session
        return pass_trailers(section, session.drop(session.route), 400)

    def _pass_body(self, exchange: Exchange, view: memoryview) -> None:
        """More of the body is there."""
        session, size = self._session, len(view)
        if session.client.rest:
            view = memoryview(session.client.rest + view)
        try:
            data = self._take_body(exchange, view)
        except HttpError as error:
            session.fail(error)
            return
        if exchange.response is _AWAITED:
            if exchange.request is _COMING:
                session.moved(session.route.body, size, monotonic())
            else:
                session.wait(session.route.first_byte, monotonic())
        if data:
            self.repeatable = b""
            session.upstream.send(memoryview(data))
            if session.upstream.pending is not None and exchange.request is _COMING and exchange.may_answer:
                session.wait(session.route.body, monotonic())  # the server has all of its time, too
