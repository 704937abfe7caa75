"""What applications see of clients through HTTP mode, and what they can't be made to see."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from offload.http.guarded import STRANGERS
from tests.integration.clients import TIMEOUT, Response, TlsClient, client_context, request_bytes
from tests.integration.mirrors import mirror, wsgi
from tests.integration.upstreams import Upstream, unique
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import free_port, require
from tests.support.proxy import Proxy, listener, running_proxy

BALANCER = "127.0.8.1"
"""The only address that is trusted."""
CLIENT_CERTIFICATES = ("client-cert", "client-cert-chain")


def http_listener(name: str, chain: list[Path], server: str, **more: Any) -> dict[str, Any]:
    """A listener in HTTP mode; `more` is its section `http`."""
    return listener(name, chain, [server]) | {"mode": "http", "http": more}


@dataclass
class Site:
    """A proxy in HTTP mode, and who speaks to it."""

    proxy: Proxy
    identities: Identities
    context: ssl.SSLContext
    page: Path
    """The error page of `own-page`."""
    slow: Upstream
    """The server behind `slow` and `held`."""

    def ask(self, name: str, *lines: str, source: str = "", method: str = "GET", path: str = "/") -> Response:
        """A request with these header lines, and its response, on a connection of its own."""
        with TlsClient.connect(self.proxy.ports[name], self.context, source=source) as client:
            head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]
            client.send("\r\n".join(head).encode())
            response = client.head() if method == "HEAD" else client.response()
            client.close_notify()
            return response

    def seen(self, name: str, *lines: str, source: str = "") -> dict[str, str]:
        """The headers that the application sees, by name in lower case; each stands once."""
        response = self.ask(name, *lines, source=source)
        assert response.status == 200, response
        pairs = json.loads(response.body)["headers"]
        found = {name.lower(): value for name, value in pairs}
        assert len(found) == len(pairs), pairs
        return found

    def curl(self, name: str, *options: str) -> str:
        """What curl prints for https://localhost."""
        port = self.proxy.ports[name]
        return subprocess.run(
            [require("curl"), "--silent", "--show-error", "--noproxy", "*", "--cacert", str(self.identities.ca),
             "--resolve", f"localhost:{port}:127.0.0.1", *options, f"https://localhost:{port}/"],
            capture_output=True, text=True, timeout=TIMEOUT, check=True,
        ).stdout  # fmt: skip


def _settings(
    identities: Identities, app: str, environ: str, slow: str, dead: str, page: Path
) -> dict[str, Any]:
    chain = [identities["p256"].chain_path]
    clients = {"client_certificates": {"mode": "optional", "ca": str(identities.ca)}}
    rules = {
        "request": {"set": {"X-Tenant": "shop", "Host": "inner.example"}, "remove": ["X-Debug"]},
        "response": {"set": {"X-Frame-Options": "DENY"}, "remove": ["Server", "X-Powered-By"]},
    }
    return {
        "listeners": [
            http_listener("web", chain, app, trusted=[BALANCER], access_log={"format": "json"}),
            http_listener("wsgi", chain, environ),
            http_listener("mtls", chain, app, trusted=[BALANCER]) | clients,
            http_listener("rules", chain, app, headers=rules, hsts={"max_age": "1y", "include_subdomains": True}),
            http_listener("plain", chain, app, x_forwarded=False, forwarded=False, request_id=False),
            http_listener("combined", chain, app, access_log={"query": True}),
            http_listener("sampled", chain, app, access_log={"format": "json", "sample": 0.001}),
            http_listener("dead", chain, dead, access_log={"format": "json"}, errors={"retry_after": "7s"}, hsts="1y"),
            http_listener("own-page", chain, dead, errors={"pages": {503: str(page)}}),
            http_listener("routed", chain, app, hsts="1y", access_log={"format": "json"}, routes=[
                {"path": "/old", "redirect": "https://new.example{rest}"},
                {"name": "ping", "path": "/ping", "answer": {"body": "pong"}},
                {"path": "/bare", "upstream": "routed", "headers": {"request": {"remove": ["User-Agent"]}}},
            ]),
            http_listener("held", chain, slow, access_log={"format": "json"}),
            http_listener("small", chain, app, trusted=[BALANCER], access_log={"format": "json"}, limits={"body": 9}),
            http_listener("slow", chain, slow, timeouts={"first_byte": "300ms"}, access_log={"format": "json"}),
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "limits": {"drain_timeout": "2s"},
        "log": {"format": "json"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def site(
    identities: Identities, any_version: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One worker with a listener for each way to treat headers."""
    directory = tmp_path_factory.mktemp("http-headers")
    page = directory / "503.html"
    page.write_text("<h1>Back soon</h1>{request_id}")
    with ExitStack() as stack:
        app, environ = stack.enter_context(mirror()), stack.enter_context(wsgi())
        slow = stack.enter_context(Upstream())
        dead = stack.enter_context(free_port())
        settings = _settings(identities, app, environ, slow.address, f"127.0.0.1:{dead}", page)
        proxy = stack.enter_context(running_proxy(directory / "proxy", settings))
        yield Site(proxy, identities, any_version, page, slow)


# -- who the client is ------------------------------------------------------------------------------


def test_an_application_learns_who_its_client_is(site: Site) -> None:
    """Address, scheme, Host and port, in both forms, and an id of 128 bits."""
    seen = site.seen("web", source="127.0.8.7")
    assert seen["x-forwarded-for"] == "127.0.8.7"
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("https", "localhost")
    assert seen["x-forwarded-port"] == str(site.proxy.ports["web"])
    assert seen["forwarded"] == "for=127.0.8.7;host=localhost;proto=https"
    assert re.fullmatch(r"[0-9a-f]{32}", seen["x-request-id"])
    assert not seen.keys() & set(CLIENT_CERTIFICATES)


def test_ids_differ_on_one_connection(site: Site) -> None:
    """And nothing else that is told does."""
    with TlsClient.connect(site.proxy.ports["web"], site.context) as client:
        told = [dict(json.loads(client.get("/").body)["headers"]) for _ in range(3)]
    assert len({each.pop("X-Request-ID") for each in told}) == 3
    assert told[0] == told[1] == told[2]


def spoofed(spelling: str = "{}") -> list[str]:
    """A line for each header that a stranger may not send."""
    names = [
        *(name.decode() for name in STRANGERS),
        "x-forwarded-user",
        "x-client-cert-dn",
        "ssl-client-verify",
    ]
    return [f"{spelling.format(name)}: spoofed" for name in names]


def test_a_strangers_headers_are_dropped(site: Site) -> None:
    """By any spelling; others pass, in order."""
    underscores = [line.replace("-", "_", 1) for line in spoofed() if "-" in line]
    seen = site.seen("web", *spoofed(), *underscores, "X-Request-ID: spoofed", "X-Other: a", "x_other: b")
    assert "spoofed" not in seen.values()
    assert (seen["x-other"], seen["x_other"]) == ("a", "b")


def test_wsgi_has_no_variable_of_a_stranger(site: Site) -> None:
    """There HTTP_X_FORWARDED_FOR is ours, whatever was sent, and however it was spelt."""
    spellings = [
        "X_Forwarded_For: 6.6.6.6",
        "X-Forwarded_For: 6.6.6.6",
        "x-forwarded-for: 6.6.6.6",
        "X_Real_IP: 6.6.6.6",
    ]
    variables = json.loads(site.ask("wsgi", *spellings).body)
    assert variables["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert "6.6.6.6" not in variables.values()


def test_headers_that_connection_names_are_still_ours(site: Site) -> None:
    """A client can't have what we tell taken for its own, and removed."""
    seen = site.seen("web", "Connection: keep-alive, X-Forwarded-For, X-Request-ID, Forwarded")
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert {"x-request-id", "forwarded"} <= seen.keys()


def test_a_trusted_balancer_is_extended(site: Site) -> None:
    """Its client stays the first of the list; its id, its scheme and its look-alikes stay."""
    seen = site.seen(
        "web", "X-Forwarded-For: 198.51.100.9", "X-Forwarded-Proto: http", 'Forwarded: for="[2001:db8::9]"',
        "X-Request-ID: its-own", "X-Real-IP: 198.51.100.9", "X_Forwarded_For: 6.6.6.6", source=BALANCER,
    )  # fmt: skip
    assert seen["x-forwarded-for"] == f"198.51.100.9, {BALANCER}"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["forwarded"] == f'for="[2001:db8::9]", for={BALANCER};host=localhost;proto=https'
    assert (seen["x-request-id"], seen["x-real-ip"]) == ("its-own", "198.51.100.9")
    assert "6.6.6.6" not in seen.values()


def test_a_trusted_balancers_bad_id_is_replaced(site: Site) -> None:
    """One that could not stand in a page or a log."""
    seen = site.seen("web", "X-Request-ID: <script>", source=BALANCER)
    assert re.fullmatch(r"[0-9a-f]{32}", seen["x-request-id"])


def test_switches(site: Site) -> None:
    """Nothing is told; a stranger's word is not believed all the same, but its id is its own."""
    seen = site.seen("plain", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Request-ID: mine")
    assert not [name for name in seen if "forwarded" in name]
    assert seen["x-request-id"] == "mine"


# -- client certificates ----------------------------------------------------------------------------


def test_a_client_certificate_is_told(site: Site, identities: Identities) -> None:
    """The application parses it back; the chain has the intermediate and nothing that was not verified."""
    stranger = Identities(identities.directory / "stranger")
    credentials = identities.client("alice", ["alice.test"], shown=[stranger.ca.read_bytes()])
    context = client_context(identities.ca)
    context.load_cert_chain(credentials.certificate, credentials.key)
    with TlsClient.connect(site.proxy.ports["mtls"], context) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nClient-Cert: :c3Bvb2ZlZA==:\r\n\r\n")
        told = dict(json.loads(client.response().body)["headers"])
    found = [
        x509.load_der_x509_certificate(b64decode(told[name].strip(":")))
        for name in ("Client-Cert", "Client-Cert-Chain")
    ]
    shown = x509.load_pem_x509_certificates(credentials.certificate.read_bytes())
    assert [each.public_bytes(Encoding.DER) for each in found] == [
        each.public_bytes(Encoding.DER) for each in shown[:2]
    ]


def test_without_a_certificate_nobody_has_one(site: Site) -> None:
    """Where it is optional, and where none is asked for; only a trusted balancer may tell of its client's."""
    lines = ["Client-Cert: :c3Bvb2ZlZA==:", "Client-Cert-Chain: :c3Bvb2ZlZA==:", "Client_Cert: x"]
    for name in ("mtls", "web"):
        assert not site.seen(name, *lines).keys() & {*CLIENT_CERTIFICATES, "client_cert"}
    assert site.seen("mtls", *lines, source=BALANCER)["client-cert"] == ":c3Bvb2ZlZA==:"


# -- rules ------------------------------------------------------------------------------------------


def test_rules_for_both_directions(site: Site) -> None:
    """What is set replaces what came; HSTS is ours, once."""
    response = site.ask("rules", "X-Tenant: mine", "X-Debug: 1", "X_Debug: 1")
    seen = {name.lower(): value for name, value in json.loads(response.body)["headers"]}
    assert (seen["x-tenant"], seen["host"], seen["x-forwarded-host"]) == (
        "shop",
        "inner.example",
        "localhost",
    )
    assert not seen.keys() & {"x-debug", "x_debug"}
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
    assert not response.headers.keys() & {"server", "x-powered-by"}
    assert "inner" in site.ask("web").headers["server"]


def test_routes_have_rules_and_lines_of_their_own(site: Site) -> None:
    """Redirects and fixed answers tell what every response does, and are in the log."""
    for path, status, route in (
        ("/old/a", 308, "*/old"),
        ("/ping", 200, "ping"),
        ("/nowhere", 200, "*/"),
    ):
        response = site.ask("routed", f"Referer: http://r{path}", path=path)
        assert response.status == status
        assert response.headers["strict-transport-security"] == "max-age=31536000"
        line = line_with(site, referer=f"http://r{path}")
        assert (line["status"], line["route"]) == (status, route)
        assert "reason" not in line
    for path, passes in (("/bare", False), ("/", True)):
        pairs = json.loads(site.ask("routed", "User-Agent: x", path=path).body)["headers"]
        assert (["User-Agent", "x"] in pairs) == passes


# -- errors -----------------------------------------------------------------------------------------


def test_a_dead_server(site: Site) -> None:
    """503 in the form that the client likes, when to try again, and the id that is in the log."""
    before = site.proxy.metrics().value(
        "offload_http_errors_total", listener="dead", reason="upstream_failed"
    )
    response = site.ask("dead", "Accept: application/json")
    assert (response.status, response.headers["retry-after"]) == (503, "7")
    assert response.headers["strict-transport-security"] == "max-age=31536000"
    told = json.loads(response.body)
    assert told["request_id"] == response.headers["x-request-id"]
    line = line_with(site, request_id=told["request_id"])
    assert (line["status"], line["reason"]) == (503, "upstream_failed")
    site.proxy.wait_event(
        "request_failed", request_id=told["request_id"], reason="upstream_failed", route="*/"
    )
    page = site.curl("dead", "-H", "Accept: text/html", "-i")
    assert re.search(r"Content-Type: text/html", page)
    assert re.search(r"<h1>503 Service Unavailable</h1>", page)
    site.proxy.wait_metric("offload_http_errors_total", before + 2, listener="dead", reason="upstream_failed")


def test_a_page_of_ones_own(site: Site) -> None:
    """With the request's id; a HEAD request gets its length and no more."""
    response = site.ask("own-page", "Accept: text/html")
    assert response.body.decode() == f"<h1>Back soon</h1>{response.headers['x-request-id']}"
    head = site.ask("own-page", method="HEAD")
    assert (head.status, int(head.headers["content-length"])) == (503, len(response.body))


def test_a_changed_page_is_taken_over(site: Site) -> None:
    """Its file is watched as others are."""
    site.page.write_text("<h1>Back on Monday</h1>")
    changes = site.proxy.wait_event("reloaded", cause="files")["changes"]
    assert changes == ["listener own-page: error pages with other content"]
    assert site.ask("own-page").body == b"<h1>Back on Monday</h1>"


def test_a_slow_server(site: Site) -> None:
    """504, counted and logged with its reason."""
    response = site.ask("slow", path="/silent")
    assert response.status == 504
    line = line_with(site, request_id=response.headers["x-request-id"])
    assert (line["status"], line["reason"], line["target"]) == (504, "response_timeout", "/silent")


def test_a_bad_request(site: Site) -> None:
    """400 with an id, which is in the log although the request could not be read."""
    with TlsClient.connect(site.proxy.ports["web"], site.context) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        response = client.response()
        assert client.recv() == b""
    assert response.status == 400
    assert response.headers["connection"] == "close"
    assert line_with(site, request_id=response.headers["x-request-id"])["reason"] == "host"


def test_an_answer_of_ours_keeps_a_trusted_peers_id(site: Site) -> None:
    """Also where the request was never sent on; a stranger's is not repeated to it."""
    lines = ["Content-Length: 99999", "X-Request-ID: too-large-1"]
    trusted = site.ask("small", *lines, source=BALANCER)
    assert (trusted.status, trusted.headers["x-request-id"]) == (413, "too-large-1")
    assert line_with(site, request_id="too-large-1")["reason"] == "body_size"
    assert "too-large-1" not in site.ask("small", *lines).headers["x-request-id"]


def test_a_client_that_leaves(site: Site) -> None:
    """Its request was broken off: counted without a code, and told."""
    before = site.proxy.metrics().value("offload_http_requests_total", listener="held", code="000")
    with TlsClient.connect(site.proxy.ports["held"], site.context, source="127.0.8.11") as client:
        path = unique("/silent")
        client.send(request_bytes("GET", path))
        site.slow.wait_for(path)
        client.reset()
    line = line_with(site, peer="127.0.8.11")
    assert (line["status"], line["reason"], line["tls"]) == (0, "aborted", "TLSv1.3")
    site.proxy.wait_metric("offload_http_requests_total", before + 1, listener="held", code="000")


# -- access log and metrics -------------------------------------------------------------------------


def line_with(site: Site, **fields: object) -> dict[str, Any]:
    """The only line of the access log (JSON) with these fields; waits for it."""

    def find() -> dict[str, Any] | None:
        found = [entry for entry in site.proxy.events("request") if fields.items() <= entry.items()]
        assert len(found) < 2
        return found[0] if found else None

    return eventually(find, f"a line with {fields}", TIMEOUT) or {}


def test_a_line_as_json(site: Site, identities: Identities, tls13: ssl.SSLContext) -> None:
    """Who, what, what became of it, how long, how TLS was spoken, and who signed."""
    with TlsClient.connect(site.proxy.ports["web"], tls13, source="127.0.8.9") as client:
        port = client.sock.getsockname()[1]
        request = (
            b'POST /a/b?token=secret HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nUser-Agent: x "y"\r\n'
            b"Authorization: Basic c2VjcmV0\r\nCookie: secret\r\nReferer: https://r/?secret\r\n\r\nabc"
        )
        client.send(request)
        response = client.response()
        client.close_notify()
    line = line_with(site, peer="127.0.8.9")
    assert {
        "event": "request", "level": "info", "process": "worker-0", "listener": "web", "port": port, "method": "POST",
        "target": "/a/b", "version": "1.1", "status": 200, "host": "localhost", "referer": "https://r/",
        "user_agent": 'x "y"', "tls": "TLSv1.3", "sni": "localhost", "resumed": False, "node": "a",
    }.items() <= line.items()  # fmt: skip
    assert line["request_id"] == dict(json.loads(response.body)["headers"])["X-Request-ID"]
    assert line["bytes_down"] > len(response.body)
    assert line["bytes_up"] == len(request)
    assert 0 < line["server_ms"] <= line["ms"]
    assert line["signature_ms"] > 0
    assert line["server"].startswith("127.0.0.1:")
    assert "secret" not in site.proxy.log


def test_a_line_as_web_servers_write_it(site: Site) -> None:
    """What is known of web servers' logs finds its fields; more follows."""
    site.curl(
        "combined", "--interface", "127.0.8.10", "-A", 'evil" "x\\', "--referer", "https://r/?q", "--next"
    )
    form = re.compile(
        r'127\.0\.8\.10 - - \[(\S+ \+0000)\] "GET / HTTP/1\.1" 200 \d+ "https://r/\?q" "evil\\x22 \\x22x\\x5c" (.*)'
    )
    found = eventually(lambda: form.search(site.proxy.log), "its line", TIMEOUT)
    assert found
    more = dict(pair.split("=", 1) for pair in found[2].split(" "))
    assert (more["listener"], more["tls"], more["node"]) == ("combined", "TLSv1.3", "a")


def test_failures_get_a_line_whatever_the_sample(site: Site) -> None:
    """Of a hundred good requests there is hardly one, of one bad request there is."""
    with TlsClient.connect(site.proxy.ports["sampled"], site.context) as client:
        for _ in range(100):
            client.get("/")
        client.send(b"GET /what?secret HTTP/1.1\r\nHost: a b\r\n\r\n")
        request_id = client.response().headers["x-request-id"]
    assert line_with(site, request_id=request_id)["request_line"] == "GET /what"
    assert len([entry for entry in site.proxy.events("request") if entry["listener"] == "sampled"]) <= 2


def test_requests_are_counted(site: Site) -> None:
    """By listener, route, method and code; rare methods are `other`."""
    with TlsClient.connect(site.proxy.ports["plain"], site.context) as client:
        for method in ("GET", "PROPFIND", "PROPFIND"):
            client.request(method, "/")
    total = "offload_http_requests_total"
    site.proxy.wait_metric(total, 2, listener="plain", code="200", method="other")
    metrics = site.proxy.metrics()
    assert metrics.value(total, listener="plain", code="200", method="GET") >= 1
    assert metrics.value("offload_http_request_seconds_count", listener="plain") >= 3
    assert metrics.value("offload_http_bytes_total", listener="plain", direction="to_client") > 300
    assert metrics.value("offload_http_bytes_total", listener="plain", direction="from_client") > 100
