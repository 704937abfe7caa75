"""One request and its response: what may still happen, and what becomes of the two connections. Sans I/O.

Every transition of the two directions stands in a table; what is not there is a mistake of ours.

Request: COMING (its body is not complete) → SENT, or CUT when the server takes no more of it.
Response: AWAITED → PASSING → COMPLETE, or UPGRADED. Interim responses (1xx) leave it AWAITED.
"""

from __future__ import annotations

from enum import IntEnum

from offload.http.body import NO_BODY, UNTIL_CLOSE
from offload.http.errors import HttpError
from offload.http.head import RequestHead, ResponseHead

INTERIM_MOST = 16
"""Interim responses to one request."""


class RequestState(IntEnum):
    """How far the request is on its way to the server."""

    COMING = 0
    SENT = 1
    CUT = 2


class ResponseState(IntEnum):
    """How far the response is on its way to the client."""

    AWAITED = 0
    PASSING = 1
    COMPLETE = 2
    UPGRADED = 3


class Event(IntEnum):
    """What happens to either."""

    REQUEST_ENDS = 0
    SERVER_DEAF = 1
    HEAD = 2
    RESPONSE_ENDS = 3
    ANSWERED = 4
    UPGRADE = 5


_COMING, _SENT, _CUT = RequestState
_AWAITED, _PASSING, _COMPLETE, _UPGRADED = ResponseState

REQUEST = {
    (_COMING, Event.REQUEST_ENDS): _SENT,
    (_COMING, Event.SERVER_DEAF): _CUT,
    (_SENT, Event.SERVER_DEAF): _CUT,
}
RESPONSE = {
    (_AWAITED, Event.HEAD): _PASSING,
    (_AWAITED, Event.ANSWERED): _COMPLETE,
    (_AWAITED, Event.UPGRADE): _UPGRADED,
    (_PASSING, Event.RESPONSE_ENDS): _COMPLETE,
}


class Exchange:
    """The state of both directions; `keep_client` and `keep_upstream` are settled when it is over."""

    __slots__ = (
        "_client_keeps", "_interim", "_server_keeps",
        "asked", "began", "bytes_in", "head", "reason", "request", "response", "server",
        "server_seconds", "status",
    )  # fmt: skip

    def __init__(self, head: RequestHead, began: float, size: int) -> None:
        """A request whose head of so many bytes is complete, and whose first byte came at `began`."""
        self.head = head
        self.began = self.asked = began
        """time.monotonic; `asked`: when a server was there for it."""
        self.bytes_in = size
        """Of the client, used for the request."""
        self.server = ""
        """The address of the web server that was asked, or tried last."""
        self.server_seconds = 0.0
        """From `asked` to the first byte of the response; 0 if there is none."""
        self.reason = ""
        """Why the proxy answered itself, or broke off."""
        self.request = _SENT if head.framing == NO_BODY else _COMING
        self.response = _AWAITED
        self.status = 0
        """Of the response that the client gets; 0 before there is one."""
        self._client_keeps = head.keep_alive
        self._server_keeps = False
        self._interim = 0

    # -- events ---------------------------------------------------------------------------

    def request_ends(self) -> None:
        """All of it has been handed to the server."""
        self.request = REQUEST[self.request, Event.REQUEST_ENDS]

    def server_is_deaf(self) -> None:
        """The server takes no more; it may have answered, though."""
        self.request = REQUEST[self.request, Event.SERVER_DEAF]
        self._server_keeps = False

    def answered(self, status: int) -> None:
        """The proxy answers by itself, and keeps the client only if no byte of the request is missing."""
        self.response = RESPONSE[self.response, Event.ANSWERED]
        self.status = status
        if self.request is not _SENT:
            self._client_keeps = False

    def response_head(self, head: ResponseHead, *, ending: bool) -> bool:
        """A response's head: whether it is to be passed on; with `ending`, the client's connection is to end.

        Raises HttpError (502) for one that nobody asked for.
        """
        if head.status < 200 and head.status != 101:
            self._interim += 1
            if self._interim > INTERIM_MOST:
                raise HttpError(502, "interim_responses")
            wanted = head.status != 100 or self.head.expects_continue
            return wanted and self.head.minor == 1
        if head.status == 101:
            if not self.head.upgrade or head.upgrade.lower() != self.head.upgrade.lower():
                raise HttpError(502, "upgrade")
            self.response = RESPONSE[self.response, Event.UPGRADE]
        else:
            self.response = RESPONSE[self.response, Event.HEAD]
            self._server_keeps = head.keep_alive and head.framing != UNTIL_CLOSE
            # Whoever answers before the end of the request may never read the rest of it, and a
            # body that ends with its connection ends the client's too.
            if ending or self.request is not _SENT or head.framing == UNTIL_CLOSE:
                self._client_keeps = False
            elif head.framing < 0 and self.head.minor == 0:
                self._client_keeps = False  # decoded: HTTP/1.0 knows no chunks
        self.status = head.status
        return True

    def response_ends(self) -> None:
        """All of it has come from the server."""
        self.response = RESPONSE[self.response, Event.RESPONSE_ENDS]

    # -- questions ------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the client has, or will get, all that it gets."""
        return self.response is _COMPLETE

    @property
    def may_answer(self) -> bool:
        """Whether the proxy can still answer by itself."""
        return self.response is _AWAITED

    @property
    def keep_client(self) -> bool:
        """Whether the client's connection goes on afterwards."""
        return self._client_keeps

    @property
    def keep_upstream(self) -> bool:
        """Whether the server's connection can take another request: both messages ended where they should."""
        return self._server_keeps and self.response is _COMPLETE and self.request is _SENT

    def may_retry(self, *, reused: bool, body_sent: bool) -> bool:
        """Whether to ask again on a fresh connection after a kept one broke (RFC 9112 §9.3.1)."""
        return (
            reused
            and not body_sent
            and self.head.idempotent
            and self.response is _AWAITED
            and self._interim == 0
        )
