"""Listeners that speak HTTP, and named groups: what is accepted, and how mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsm.config import validate
from hsm.errors import ConfigurationError
from offload.config import Config
from offload.config_http import HttpSettings, RouteSettings

WHOLE = """\
listeners:
  - name: web
    address: 127.0.0.1:8443
    mode: http
    certificates: [{chain: web.pem}]
    upstream: site
    http:
      hsts: 1y
      limits: {head: 64KiB, body: 10MiB}
      trusted: [10.0.0.0/8]
      headers: {response: {set: {X-Frame-Options: DENY}, remove: [Server]}}
      routes:
        - {hosts: [api.example.org, "*.api.example.org"], path: /v2, upstream: api, timeouts: {first_byte: 5s}}
        - {path: /old, redirect: "https://{host}/new{rest}"}
        - {path: /healthz, answer: {body: ok}}
      errors: {pages: {502: 502.html}}
      access_log: {format: json, sample: 0.1}
  - name: plain
    address: 127.0.0.1:8080
    mode: redirect
    upstream: {servers: ["127.0.0.1:8009"]}
  - name: raw
    address: 127.0.0.1:8444
    certificates: [{chain: web.pem}]
    upstream: tcp
upstreams:
  site: {servers: ["127.0.0.1:8001"]}
  api: {servers: ["127.0.0.1:8002", "127.0.0.1:8003"], balance: least_connections}
  tcp: {servers: ["127.0.0.1:8004"], proxy_protocol: v2}
hsm: {nodes: [{name: a, run: {token: software, keys: ./keys}}]}
"""


def read(data: dict[str, Any]) -> Config:
    """The configuration as `offload serve` reads it."""
    return validate(data, Config, "file", Path("/etc/offload"))


def spoilt(path: str, value: Any) -> list[str]:
    """The lines about `WHOLE` with another value at a dotted path; None takes the key away."""
    data = yaml.safe_load(WHOLE)
    target: Any = data
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if value is None:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
    with pytest.raises(ConfigurationError) as caught:
        read(data)
    return [line.removeprefix("file: ") for line in str(caught.value).splitlines()]


def test_all_of_it_is_understood() -> None:
    """Modes, groups by name and inline, routes of each kind, and their short forms."""
    config = read(yaml.safe_load(WHOLE))
    web, plain, raw = config.listeners
    assert [each.mode for each in config.listeners] == ["http", "redirect", "relay"]
    assert (web.group, plain.group, raw.group) == ("site", "plain", "tcp")
    assert {name: ".".join(map(str, place)) for name, (place, _) in config.groups.items()} == {
        "site": "upstreams.site",
        "api": "upstreams.api",
        "tcp": "upstreams.tcp",
        "plain": "listeners.1.upstream",
    }
    assert (web.http.limits.head, web.http.limits.body) == (65_536, 10 << 20)
    assert web.http.hsts is not None
    assert web.http.hsts.max_age == 365 * 86_400
    forward, redirect, answer = web.http.routes
    assert (forward.label, forward.timeouts.first_byte) == ("api.example.org/v2", 5)
    assert redirect.redirect is not None
    assert (redirect.label, redirect.redirect.status) == ("*/old", 308)
    assert answer.answer is not None
    assert answer.answer.body == "ok"
    assert web.http.errors.pages == {502: Path("/etc/offload/502.html")}


def test_what_a_worker_is_told_survives_the_way() -> None:
    """The section goes to workers as JSON, and means the same there."""
    http = read(yaml.safe_load(WHOLE)).listeners[0].http
    assert HttpSettings.model_validate(json.loads(http.model_dump_json())) == http


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("listeners.0.mode", "https", "listeners[0].mode: expected 'relay', 'http' or 'redirect'"),
        ("listeners.0.mode", "relay", "listeners[0].http: is for mode: http and mode: redirect; set one"),
        ("listeners.0.certificates", None, "listeners[0].certificates: required, but missing"),
        ("listeners.0.tls", {"alpn": ["h2"]}, "listeners[0].tls.alpn: mode: http offers http/1.1 and no more; leave"),
        ("listeners.0.upstream", "sit", "listeners[0].upstream: there is no group 'sit' in `upstreams`; did you mean 'site'?"),
        ("listeners.0.upstream", "a b", "listeners[0].upstream: expected text of the form"),
        ("listeners.0.upstream", {"servers": ["a:1"], "balanse": 1}, "listeners[0].upstream.balanse: unknown key; did you mean 'balance'?"),
        ("listeners.0.upstream", {"servers": [{"address": "a:1", "weight": 0}]}, "listeners[0].upstream.servers[0].weight: expected a number above 0"),
        ("listeners.0.http.https_port", 8443, "listeners[0].http.https_port: is for mode: redirect; leave it out"),
        ("listeners.0.http.routes", [{"upstream": "api"}], "listeners[0].upstream: http.routes[0] takes every request that no other"),
        ("listeners.0.http.routes.0.upstream", "raw", "listeners[0].http.routes[0].upstream: there is no group 'raw'"),
        ("listeners.0.http.routes.0.upstream", None, "listeners[0].http.routes[0]: give one of upstream, redirect and answer"),
        ("listeners.0.http.routes.1.upstream", "api", "listeners[0].http.routes[1]: give one of upstream, redirect and answer"),
        ("listeners.0.http.routes.1.path", "/healthz", "listeners[0].http.routes[2]: routes[1] takes any host with path /healthz already"),
        ("listeners.0.http.routes.1.path", "/old/", "listeners[0].http.routes[1].path: leave the slash at the end out: /old takes"),
        ("listeners.0.http.routes.1.path", "old", "listeners[0].http.routes[1].path: expected a path such as / or /v2"),
        ("listeners.0.http.routes.1.path", "/a//b", "listeners[0].http.routes[1].path: expected a path such as / or /v2"),
        ("listeners.0.http.routes.1.path", "/a/../b", "listeners[0].http.routes[1].path: expected a path such as / or /v2"),
        ("listeners.0.http.routes.1.path", "/%61", "listeners[0].http.routes[1].path: expected a path such as / or /v2"),
        ("listeners.0.http.routes.0.hosts.0", "a*.example.org", "listeners[0].http.routes[0].hosts[0]: 'a*.example.org' is no DNS name"),
        ("listeners.0.http.routes.1.redirect", "{path}", "listeners[0].http.routes[1].redirect.to: '{path}' is no URL to send clients to"),
        ("listeners.0.http.routes.1.redirect", "https://a.{host}/", "listeners[0].http.routes[1].redirect.to: "),
        ("listeners.0.http.routes.1.redirect", "https://a/{path}x", "listeners[0].http.routes[1].redirect.to: "),
        ("listeners.0.http.routes.1.redirect", "https://a/\r\nX: 1", "listeners[0].http.routes[1].redirect.to: "),
        ("listeners.0.http.routes.1.redirect", {"to": "https://a", "status": 200}, "listeners[0].http.routes[1].redirect.status: "),
        ("listeners.0.http.routes.2.answer", {"status": 204, "body": "x"}, "listeners[0].http.routes[2].answer: an answer with status 204"),
        ("listeners.0.http.headers.response.set", {"X-A": "1", "x-a": "2"}, "listeners[0].http.headers.response: x-a stands twice"),
        ("listeners.0.http.headers.response.set", {"X-A": "1\r\nB: 2"}, "listeners[0].http.headers.response.set.X-A: "),
        ("listeners.0.http.headers.response.set", {"Content-Length": "5"}, "listeners[0].http.headers.response.set.Content-Length: Content-Length is the proxy's own"),
        ("listeners.0.http.headers.response.remove", ["Transfer-Encoding"], "listeners[0].http.headers.response.remove[0]: Transfer-Encoding is the proxy's own"),
        ("listeners.0.http.headers.request", {"remove": ["Host"]}, "listeners[0].http.headers.request: Host can't be removed"),
        ("listeners.0.http.limits.head", "64kb", "listeners[0].http.limits.head: '64kb' is not a size; write bytes, or one like"),
        ("listeners.0.http.limits.head", 1, "listeners[0].http.limits.head: expected a number of at least 256"),
        ("listeners.0.http.errors.pages", {200: "x"}, "listeners[0].http.errors.pages"),
        ("listeners.0.http.hsts", 1, "listeners[0].http.hsts.max_age: 1 is not a duration"),
        ("listeners.1.certificates", [{"chain": "a.pem"}], "listeners[1].certificates: mode: redirect speaks no TLS; leave it out"),
        ("listeners.1.http", {"hsts": "1y"}, "listeners[1].http.hsts: has no effect without TLS"),
        ("listeners.1.http", {"routes": [{"path": "/.well-known/acme-challenge", "upstream": "api"}]}, "listeners[1].http.routes[0]: upstream takes /.well-known/acme-challenge already"),
        ("listeners.2.upstream", None, "listeners[2].upstream: required, but missing"),
        ("listeners.2.upstream", "plane", "listeners[2].upstream: there is no group 'plane' in `upstreams`; did you mean 'plain'?"),
        ("upstreams.plain", {"servers": ["a:1"]}, "listeners[1].upstream: `upstreams` has a group 'plain' too; give one another name"),
        ("listeners.1.upstream.proxy_protocol", "v1", "listeners[1].upstream.proxy_protocol: listener plain (mode: redirect) sends none; leave"),
        ("upstreams", {"a b": {"servers": ["a:1"]}}, "upstreams.a b"),
    ],
)  # fmt: skip
def test_mistakes_name_key_and_remedy(path: str, value: Any, expected: str) -> None:
    """One line, with the key where it has to be mended."""
    (line,) = spoilt(path, value)
    assert line.startswith(expected)


def test_http_needs_somewhere_to_go() -> None:
    """Without an upstream and without routes no request could be answered."""
    data = yaml.safe_load(WHOLE)
    del data["listeners"][0]["upstream"], data["listeners"][0]["http"]
    with pytest.raises(ConfigurationError, match=r"listeners\[0\]\.upstream: required.*http\.routes"):
        read(data)


@pytest.mark.parametrize(
    ("written", "size"),
    [(0, 0), (500, 500), ("500", 500), ("1KiB", 1024), ("10 MiB", 10 << 20), ("1GiB", 1 << 30)],
)
def test_sizes(written: int | str, size: int) -> None:
    """Bytes, or a number with a unit."""
    assert RouteSettings(upstream="a", body_limit=written).body_limit == size


def test_names_of_routes_stand_once() -> None:
    """Metrics could not tell them apart."""
    routes = [{"name": "a", "path": path, "upstream": "x"} for path in ("/1", "/2")]
    with pytest.raises(ValueError, match=r"routes\[0\] is called 'a' too"):
        HttpSettings.model_validate({"routes": routes})
