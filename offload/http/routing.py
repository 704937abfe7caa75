"""A listener's routes with all that serving them takes, made once from the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from offload.config_http import ACME_PATH, HeaderSettings, RouteSettings, RouteTimeouts
from offload.http.head import REQUEST_DROP, RESPONSE_DROP
from offload.http.header_policy import HeaderPolicy, RouteHeaders
from offload.http.metrics import HttpMetrics, RouteMetrics
from offload.http.routes import Fixed, Redirect, Routes
from offload.http.time_limit import PacedLimit, TimeLimit
from offload.settings_http import HttpData

if TYPE_CHECKING:
    from offload.upstream import Upstream

REDIRECT_STATUS = 308
"""Of listeners that redirect: the request is repeated as it is (RFC 9110 §15.4.9)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What becomes of a request."""

    headers: RouteHeaders
    metrics: RouteMetrics
    body_most: int | None
    """Bytes of a request's body."""
    body: TimeLimit
    first_byte: TimeLimit
    response: TimeLimit


@dataclass(frozen=True, slots=True)
class Forward(Target):
    """It goes to a web server."""

    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Answer(Target):
    """It is answered here."""

    answer: Redirect | Fixed


Route = Forward | Answer
T = TypeVar("T", bound=Target)


class Routing:
    """The targets of a listener."""

    def __init__(
        self, data: HttpData, policy: HeaderPolicy, metrics: HttpMetrics, upstreams: Mapping[str, Upstream]
    ) -> None:
        self._data, self._policy, self._metrics, self._upstreams = data, policy, metrics, upstreams
        self._limits: dict[tuple[str, float, int], TimeLimit] = {}
        self.none = self._target(Target, "-")
        """Of a request that has no route, or can't be read."""
        self.routes: Routes[Route] = Routes([*self._implied(), *self._configured()])

    @property
    def limits(self) -> list[TimeLimit]:
        """All time limits of targets."""
        return list(self._limits.values())

    def _configured(self) -> Iterator[tuple[str, str, Route]]:
        for route in self._data.settings.routes:
            target = self._of_route(route)
            yield from ((host, path, target) for host, path in route.keys)

    def _of_route(self, route: RouteSettings) -> Route:
        if route.upstream is not None:
            return self._target(Forward, route.label, route, upstream=self._upstreams[route.upstream])
        if route.redirect is not None:
            answer: Redirect | Fixed = Redirect(route.redirect.status, route.redirect.to, route.path)
        else:
            assert route.answer is not None
            fixed = route.answer
            answer = Fixed(fixed.status, fixed.content_type.encode(), fixed.body.encode())
        return self._target(Answer, route.label, route, answer=answer)

    def _implied(self) -> Iterator[tuple[str, str, Route]]:
        """What the listener's `upstream` takes, and where a listener without TLS sends the rest.

        What is configured takes its place.
        """
        data, settings = self._data, self._data.settings
        if data.default:
            path = "/" if data.tls else ACME_PATH
            forward = self._target(Forward, f"*{path}", upstream=self._upstreams[data.default])
            yield "", path, forward
            if not data.tls:  # a challenge may be for any host that has routes of its own, too
                yield from ((host, path, forward) for route in settings.routes for host in route.hosts)
        if not data.tls:
            port = "" if settings.https_port == 443 else f":{settings.https_port}"
            redirect = Redirect(REDIRECT_STATUS, f"https://{{host}}{port}{{path}}", "/")
            yield "", "/", self._target(Answer, "*/", answer=redirect)

    def _target(self, kind: type[T], label: str, route: RouteSettings | None = None, **more: Any) -> T:
        """With what the route has of its own, and the listener's in the other places."""
        settings = self._data.settings
        own, times = route.timeouts if route else RouteTimeouts(), settings.timeouts
        body_limit = route.body_limit if route else None
        rate = route.lowest_rate if route else None
        rate = settings.limits.lowest_rate if rate is None else rate
        return kind(
            headers=self._policy.of_route(
                route.headers if route else HeaderSettings(), REQUEST_DROP, RESPONSE_DROP
            ),
            metrics=self._metrics.route(label),
            body_most=settings.limits.body if body_limit is None else body_limit,
            body=self._limit("body", own.body or times.body, rate),
            first_byte=self._limit("first_byte", own.first_byte or times.first_byte),
            response=self._limit("response", own.response or times.response, rate),
            **more,
        )

    def _limit(self, stage: str, seconds: float, lowest_rate: int = 0) -> TimeLimit:
        """One for all targets with the same: each takes up time when it is looked at."""
        limit = PacedLimit(seconds, lowest_rate) if lowest_rate else TimeLimit(seconds)
        return self._limits.setdefault((stage, seconds, lowest_rate), limit)
