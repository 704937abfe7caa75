"""The parts of the configuration about listeners that speak HTTP: routes, limits, headers, errors, access log."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from hsm.cluster_config import Name
from hsm.config import Duration, FilePath, Section
from hsm.mistakes import misplaced
from offload.config_tls import DnsPattern
from offload.config_upstream import or_string
from offload.networks import Network

ACME_PATH = "/.well-known/acme-challenge"
"""Where a certificate authority looks for its challenge (RFC 8555 §8.3)."""

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,12}) ?(KiB|MiB|GiB|)")


def _parse_size(value: Any) -> int:
    match = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) and value is not True else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write bytes, or one like 32KiB, 10MiB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


Size = Annotated[int, BeforeValidator(_parse_size, json_schema_input_type=int | str)]
"""Bytes, or `32KiB`, `10MiB`, `1GiB`."""


def of_form(pattern: str, words: str) -> AfterValidator:
    """For text that matches all of a pattern. A mistake is told in words, without the text: it may be a secret."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {words}")
        return value

    return AfterValidator(check)


# -- headers ----------------------------------------------------------------------------------

_OWN_HEADERS = frozenset(
    ("connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)  # fmt: skip
"""What frames a message, or belongs to one connection (RFC 9110 §7.6.1): no rule may touch it."""


def _parse_header_name(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", value):
        raise ValueError(f"{value!r} is no header's name")
    if value.lower() in _OWN_HEADERS:
        raise ValueError(f"{value} is the proxy's own business; leave it out")
    return value


HeaderName = Annotated[str, BeforeValidator(_parse_header_name, json_schema_input_type=str)]
HeaderValue = Annotated[
    str, Field(max_length=4096), of_form(r"([!-~]([ \t!-~]*[!-~])?)?", "visible ASCII, with spaces between")
]


class HeaderRules(Section):
    """Headers that are set and removed on the way through."""

    set: dict[HeaderName, HeaderValue] = Field(
        default_factory=dict, description="Names and values; what was there under the name is replaced."
    )
    remove: tuple[HeaderName, ...] = Field((), description="Names of headers that do not pass.")

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [name.lower() for name in (*self.set, *self.remove)]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"{name} stands twice; to replace a header, set it and no more")
        return self


class HeaderSettings(Section):
    """Rules for both directions."""

    request: HeaderRules = Field(default_factory=HeaderRules)
    response: HeaderRules = Field(default_factory=HeaderRules)

    @field_validator("request")
    @classmethod
    def _keeps_host(cls, rules: HeaderRules) -> HeaderRules:
        if "host" in (name.lower() for name in rules.remove):
            raise ValueError("Host can't be removed: every request has it; set it instead")
        return rules


class HstsSettings(Section):
    """Browsers are told to come by https only (RFC 6797); the time alone may stand for it."""

    model_config = ConfigDict(json_schema_extra=or_string)

    max_age: Duration = Field(multiple_of=1, description="For how long they remember it, such as 1y.")
    include_subdomains: bool = Field(False, description="Whether it holds for all names below, too.")
    preload: bool = Field(False, description="Whether browsers' makers may put the name on their lists.")

    @model_validator(mode="before")
    @classmethod
    def _from_time(cls, data: Any) -> Any:
        return data if isinstance(data, dict | cls) else {"max_age": data}


# -- limits and times ---------------------------------------------------------------------------


class HttpLimits(Section):
    """How large a request may be, and how slow a client."""

    request_line: Size = Field(8192, ge=64, le=1 << 20, description="Bytes of the first line; more: 414.")
    head: Size = Field(
        32_768, ge=256, le=1 << 20, description="Bytes of the head, the first line included; more: 431."
    )
    headers: PositiveInt = Field(100, le=10_000, description="Header fields; more: 431.")
    body: Size | None = Field(None, description="Bytes of the body; more: 413. Unlimited if left out.")
    lowest_rate: Size = Field(
        240,
        description="Bytes a second at which a client must at least send a body, and take a response, or its time "
        "(timeouts.body, timeouts.response) runs out however often it moves one. 0: any rate will do.",
    )


class HttpTimeouts(Section):
    """How long each stage of a request may take."""

    head: Duration = Field(
        10.0, gt=0, description="From the first byte of a request's head to its last; else 408."
    )
    body: Duration = Field(
        30.0, gt=0, description="Without a byte of a request's body, or with too few; else 408."
    )
    first_byte: Duration = Field(
        60.0, gt=0, description="From the end of the request to the first byte of the response; else 504."
    )
    response: Duration = Field(60.0, gt=0, description="Without progress in a response that has begun.")
    idle: Duration = Field(
        75.0, gt=0, description="Without a request on a client's connection, which is then closed."
    )
    upstream_idle: Duration = Field(
        30.0, gt=0, description="Without a request on a connection to a web server, which is then closed."
    )


class RouteTimeouts(Section):
    """Those that a route has of its own; what is left out is the listener's."""

    body: Duration | None = Field(None, gt=0, description="As in http.timeouts.")
    first_byte: Duration | None = Field(None, gt=0, description="As in http.timeouts.")
    response: Duration | None = Field(None, gt=0, description="As in http.timeouts.")


# -- routes -------------------------------------------------------------------------------------

_SEGMENT = r"\.{0,2}[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*"
RoutePath = Annotated[
    str,
    of_form(
        rf"/|(/{_SEGMENT})+",
        "a path such as / or /v2/users, of characters that need no escape, without empty or dotted parts",
    ),
]


def _parse_route_path(value: Any) -> Any:
    if isinstance(value, str) and len(value) > 1 and value.endswith("/"):
        raise ValueError(f"leave the slash at the end out: {value.rstrip('/')} takes what is below it too")
    return value


_TARGET = re.compile(
    r"https?://(\{host\}|[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[!-z|~]*)?(\{path\}|\{rest\})?"
)


def _parse_target(value: Any) -> Any:
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise ValueError(
            f"{value!r} is no URL to send clients to; write one like https://{{host}}{{path}}, "
            "https://www.example.org/new{rest} or https://www.example.org/"
        )
    return value


class RedirectSettings(Section):
    """The client is sent elsewhere; the URL alone may stand for it."""

    model_config = ConfigDict(json_schema_extra=or_string)

    to: Annotated[str, BeforeValidator(_parse_target, json_schema_input_type=str)] = Field(
        max_length=2048,
        description="An http(s) URL. In the place of its host, {host} stands for that of the request; at its end, "
        "{path} for path and query of the request, and {rest} for what of them follows the route's path.",
    )
    status: Literal[301, 302, 303, 307, 308] = Field(308, description="Status of the answer.")

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, data: Any) -> Any:
        return data if isinstance(data, dict | cls) else {"to": data}


class AnswerSettings(Section):
    """An answer that needs no web server."""

    status: int = Field(200, ge=200, le=599, description="Status of the answer.")
    body: str = Field("", max_length=65_536, description="Its text.")
    content_type: HeaderValue = Field("text/plain; charset=utf-8", description="What the text is.")

    @model_validator(mode="after")
    def _body_where_allowed(self) -> Self:
        if self.body and self.status in (204, 304):
            raise ValueError(f"an answer with status {self.status} has no body (RFC 9110 §15); leave it out")
        return self


class RouteSettings(Section):
    """Which requests, and what becomes of them: an upstream, a redirect or an answer."""

    name: Name | None = Field(
        None, description="Name in metrics and the access log; if left out, the first host and the path."
    )
    hosts: tuple[DnsPattern, ...] = Field(
        (),
        description="Hosts of its requests; a first label * stands for any one label. Any host if left out.",
    )
    path: Annotated[RoutePath, BeforeValidator(_parse_route_path)] = Field(
        "/",
        description="/v2 takes /v2 and all below it, not /v2x. The longest path of the most specific host wins.",
    )
    upstream: Name | None = Field(
        None, description="A group of `upstreams`, or a listener's own by its name."
    )
    redirect: RedirectSettings | None = Field(None, description="A URL, or keys:")
    answer: AnswerSettings | None = Field(None)
    timeouts: RouteTimeouts = Field(default_factory=RouteTimeouts)
    body_limit: Size | None = Field(None, description="As http.limits.body, which it replaces.")
    lowest_rate: Size | None = Field(None, description="As http.limits.lowest_rate, which it replaces.")
    headers: HeaderSettings = Field(
        default_factory=HeaderSettings, description="In addition to http.headers, and stronger."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(each is not None for each in (self.upstream, self.redirect, self.answer)) != 1:
            raise ValueError("give one of upstream, redirect and answer")
        return self

    @property
    def label(self) -> str:
        """Its name in metrics and the access log."""
        return self.name or f"{self.hosts[0] if self.hosts else '*'}{self.path}"

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The hosts (empty: any) and paths that it stands for."""
        return [(host, self.path) for host in self.hosts or ("",)]


# -- errors and the access log ------------------------------------------------------------------


def _parse_status(value: Any) -> Any:
    if str(value) not in map(str, range(400, 600)):
        raise ValueError(f"{value!r} is not the status of an error; write one from 400 to 599")
    return int(value)


class ErrorSettings(Section):
    """Answers of the proxy's own when something is wrong."""

    pages: dict[Annotated[int, BeforeValidator(_parse_status, json_schema_input_type=int)], FilePath] = Field(
        default_factory=dict,
        description="HTML files by status, for clients that accept HTML; {request_id} in them is replaced.",
    )
    retry_after: Duration = Field(
        5.0, multiple_of=1, description="With 503: when to try again (Retry-After); whole seconds."
    )


class AccessLogSettings(Section):
    """A line per request."""

    format: Literal["combined", "json"] = Field(
        "combined", description="combined: as web servers write it, with more at the end; or json."
    )
    sample: float = Field(
        1.0, gt=0, le=1, description="Share of the requests that get a line; those that failed always do."
    )
    query: bool = Field(
        False, description="Whether queries are told, in which some applications put passwords and tokens."
    )


_TOLD = (
    ("x_forwarded", ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port")),
    ("forwarded", ("forwarded",)),
    ("request_id", ("x-request-id",)),
)
"""Headers of requests that are written by these switches, not by rules."""


class HttpSettings(Section):
    """What a listener with `mode: http` or `mode: redirect` does besides TLS."""

    routes: list[RouteSettings] = Field(default_factory=list)
    limits: HttpLimits = Field(default_factory=HttpLimits)
    timeouts: HttpTimeouts = Field(default_factory=HttpTimeouts)
    trusted: list[Network] = Field(
        default_factory=list,
        description="Networks of proxies before this one: what they say in X-Forwarded-…, Forwarded and "
        "X-Request-ID is kept and extended. Whatever others say there is removed.",
    )
    x_forwarded: bool = Field(
        True, description="Tell X-Forwarded-For, -Proto, -Host and -Port to web servers."
    )
    forwarded: bool = Field(True, description="Tell them Forwarded (RFC 7239).")
    request_id: bool = Field(True, description="Give each request an X-Request-ID.")
    headers: HeaderSettings = Field(default_factory=HeaderSettings)
    hsts: HstsSettings | None = Field(
        None, description="Strict-Transport-Security in every response: a time such as 1y, or keys:"
    )
    errors: ErrorSettings = Field(default_factory=ErrorSettings)
    access_log: AccessLogSettings | None = Field(None, description="`{}` turns it on.")
    https_port: PositiveInt = Field(
        443, le=65_535, description="With mode: redirect, the port that clients are sent to."
    )

    @model_validator(mode="after")
    def _no_rule_for_what_is_told(self) -> Self:
        rules: list[tuple[tuple[int | str, ...], HeaderRules]] = [
            (("headers", "request"), self.headers.request),
            *(
                (("routes", index, "headers", "request"), route.headers.request)
                for index, route in enumerate(self.routes)
            ),
        ]
        faults = [
            (place, f"{name} is told of every client; leave it out, or set {switch}: false")
            for place, rule in rules
            for name in (*rule.set, *rule.remove)
            for switch, names in _TOLD
            if name.lower() in names and getattr(self, switch)
        ]
        if faults:
            raise misplaced(faults)
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        faults: list[tuple[tuple[int | str, ...], str]] = []
        taken: dict[tuple[str, str], int] = {}
        labels: dict[str, int] = {}
        for index, route in enumerate(self.routes):
            for host, path in route.keys:
                first = taken.setdefault((host, path), index)
                if first != index or route.hosts.count(host) > 1:
                    what = f"{host or 'any host'} with path {path}"
                    faults.append((("routes", index), f"routes[{first}] takes {what} already; leave one out"))
            if (first := labels.setdefault(route.label, index)) not in (index, taken[route.keys[0]]):
                text = f"routes[{first}] is called {route.label!r} too; give this one another name"
                faults.append((("routes", index, "name"), text))
        if faults:
            raise misplaced(faults)
        return self

    @property
    def catch_all(self) -> int | None:
        """The index of the route that takes every request that no other takes."""
        return next((i for i, route in enumerate(self.routes) if ("", "/") in route.keys), None)
