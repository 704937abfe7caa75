"""What a listener and each of its routes do to headers: the configuration, compiled. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from offload.config_http import HeaderRules, HeaderSettings, HttpSettings
from offload.http.answers import Answers
from offload.http.forwarded import Told
from offload.http.guarded import CLIENT_CERT, FORWARDED, REQUEST_ID, X_FORWARDED, DroppedNames, dropped_names
from offload.http.header_rules import HeaderChanges, compile_changes, hsts


@dataclass(frozen=True, slots=True)
class RouteHeaders:
    """What a route does to headers; lines are whole ones, each with its CRLF."""

    request_drop: DroppedNames
    """What of a request does not pass."""
    trusted_drop: DroppedNames
    """The same for a trusted peer's."""
    host: bytes | None
    """What Host is set to; None: it stays."""
    request_lines: bytes
    response_drop: DroppedNames
    response_lines: bytes
    answers: Answers
    """The proxy's own."""


class HeaderPolicy:
    """What all routes of a listener have in common."""

    def __init__(
        self, settings: HttpSettings, pages: Mapping[int, bytes], *, tls: bool, asks_certificates: bool
    ) -> None:
        """`pages`: HTML of error pages by status; `asks_certificates`: of clients."""
        self.told = Told(
            x_forwarded=settings.x_forwarded,
            forwarded=settings.forwarded,
            client_cert=asks_certificates,
            request_id=settings.request_id,
        )
        self._pages = pages
        self._rules = settings.headers
        self._response = HeaderChanges()
        if tls and (said := settings.hsts) is not None:
            self._response = hsts(said.max_age, subdomains=said.include_subdomains, preload=said.preload)

    def of_route(
        self, rules: HeaderSettings, request_drop: frozenset[bytes], response_drop: frozenset[bytes]
    ) -> RouteHeaders:
        """For a route with these rules of its own.

        The names (in lower case) to drop are those that no request, and no response, passes on.
        """
        request = _compiled(self._rules.request).followed_by(_compiled(rules.request))
        response = self._response.followed_by(_compiled(self._rules.response)).followed_by(
            _compiled(rules.response)
        )
        names = request_drop | request.dropped | self._told_names()
        return RouteHeaders(
            request_drop=dropped_names(names, trusted=False),
            trusted_drop=dropped_names(names, trusted=True),
            host=_host(rules.request) or _host(self._rules.request),
            request_lines=request.lines,
            response_drop=DroppedNames(response_drop | response.dropped),
            response_lines=response.lines,
            answers=Answers(self._pages, response),
        )

    def _told_names(self) -> frozenset[bytes]:
        told = self.told
        named = (
            (told.x_forwarded, X_FORWARDED),
            (told.forwarded, FORWARDED),
            (told.client_cert, CLIENT_CERT),
            (told.request_id, REQUEST_ID),
        )
        return frozenset().union(*(names for is_told, names in named if is_told))


def _compiled(rules: HeaderRules) -> HeaderChanges:
    """All but Host, which stands at the top of a request."""
    return compile_changes(
        {name: value for name, value in rules.set.items() if name.lower() != "host"}, rules.remove
    )


def _host(rules: HeaderRules) -> bytes | None:
    return next((value.encode() for name, value in rules.set.items() if name.lower() == "host"), None)
