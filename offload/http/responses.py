"""From the servers to the client: heads rewritten, bodies passed on as they come."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from offload.http.body import CHUNKED, UNTIL_CLOSE, Body, ChunkedBody, UntilClose
from offload.http.errors import HttpError
from offload.http.exchange import Exchange, RequestState, ResponseState
from offload.http.head import ResponseHead, parse_response, pass_trailers, write_response

if TYPE_CHECKING:
    from offload.http.proxy import HttpSession

HEAD_MOST = 65_536
"""Bytes of a response's head."""
FIELDS_MOST = 1000

_AWAITED = ResponseState.AWAITED


class Responses:
    """This direction of a session."""

    __slots__ = ("_body", "_session")

    def __init__(self, session: HttpSession) -> None:
        self._session = session
        self._body: Body | None = None
        """Of the response that is passing; None before its head is complete."""

    def received(self, size: int) -> bool:
        """The server: so many bytes are in the shared buffer; whether more are wanted."""
        session = self._session
        exchange, body = session.exchange, self._body
        if exchange is None or exchange.over:
            session.upstream.close()  # nobody asked
            return False
        try:
            if body is not None:
                self._pass_body(exchange, body, size)
            else:
                self._take_heads(exchange, session.upstream.rest + session.listener.buffers.down_view[:size])
        except HttpError as error:
            session.fail(error)
        return (
            session.exchange is exchange
            and exchange.response < ResponseState.COMPLETE
            and session.client.pending is None
        )

    def ended(self, exchange: Exchange) -> bool:
        """The server closed its connection: whether that is the end of a response."""
        if not isinstance(self._body, UntilClose):
            return False
        self._end(exchange)
        self._session.finish_if_taken()
        return True

    # -- heads ----------------------------------------------------------------------------

    def _take_heads(self, exchange: Exchange, data: bytes) -> None:
        """Those of interim responses, and that of the response."""
        session = self._session
        if not exchange.server_seconds:
            exchange.server_seconds = monotonic() - exchange.asked
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end == 3:
                if len(data) > HEAD_MOST:
                    raise HttpError(502, "head_size")
                session.upstream.rest = data
                return
            if end > HEAD_MOST:
                raise HttpError(502, "head_size")
            head = parse_response(data[:end], FIELDS_MOST, exchange.head.method)
            data = data[end:]
            passes = exchange.response_head(head, ending=session.ending)
            if exchange.response is not _AWAITED:
                break
            if passes:
                session.client.send(self._written(exchange, head))
                if session.closed:
                    return
        if exchange.response is ResponseState.UPGRADED:
            session.upgrade(exchange, self._written(exchange, head) + data)
        else:
            self._begin(exchange, head, data)

    def _written(self, exchange: Exchange, head: ResponseHead) -> bytes:
        headers = self._session.route.headers
        return write_response(
            head, exchange.head.minor, headers.response_drop, headers.response_lines, exchange.keep_client
        )

    def _begin(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        """The response, and what has come of its body."""
        session = self._session
        if head.framing == CHUNKED:
            decode = exchange.head.minor == 0
            body: Body = ChunkedBody(502, self._pass_trailers, decode=decode)
        elif head.framing == UNTIL_CLOSE:
            body = UntilClose()
        else:
            body = Body(head.framing)
        passes, used = body.take(data, 0, len(data))
        session.upstream.rest = data[used:]
        content = body.content(data, 0, passes) if body.decodes else data[:passes]
        if body.done:
            self._end(exchange)
        else:
            self._body = body
            session.wait(session.route.response, monotonic())
        session.client.send(self._written(exchange, head) + content + body.tail)
        session.finish_if_taken()

    # -- bodies ---------------------------------------------------------------------------

    def _pass_body(self, exchange: Exchange, body: Body, size: int) -> None:
        """More of the body is in the shared buffer."""
        session = self._session
        view, rest = session.listener.buffers.down_view, session.upstream.rest
        data: bytes | memoryview = view
        if rest:
            data = rest + view[:size]
            size = len(data)
        passes, used = body.take(data, 0, size)
        session.upstream.rest = bytes(data[used:size])
        if body.done:
            self._end(exchange)
        else:
            session.wait(session.route.response, monotonic())
        if rest or body.tail or body.decodes:
            session.client.send(b"".join((body.content(data, 0, passes), body.tail)))
        elif passes:
            session.client.send_received(passes)
        session.finish_if_taken()

    def _end(self, exchange: Exchange) -> None:
        """All of it has come: the server's connection is kept, or not."""
        upstream = self._session.upstream
        self._body = None
        exchange.response_ends()
        if exchange.keep_upstream and not upstream.rest and upstream.pending is None:
            upstream.keep(monotonic())
        else:
            upstream.close(reset=exchange.request is not RequestState.SENT)

    def _pass_trailers(self, section: bytes) -> bytes:
        return pass_trailers(section, self._session.route.headers.response_drop, 502)
