"""HTTP listeners with routes, and the listener that redirects to https."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from hsm.errors import ConfigurationError
from offload.show import show_status
from tests.integration.clients import Response, TlsClient, connect_tcp
from tests.integration.scripted import ScriptedServer
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.proxy import Proxy, running_proxy

ROUTES: list[dict[str, Any]] = [
    {"name": "api", "hosts": ["api.test"], "path": "/", "upstream": "b"},
    {"path": "/b", "upstream": "b"},
    {"path": "/silent", "upstream": "a", "timeouts": {"first_byte": "200ms"}},
    {"path": "/sha256/small", "upstream": "a", "body_limit": "1KiB"},
    {"path": "/old", "redirect": "https://www.test/new{rest}"},
    {"path": "/gone", "answer": {"status": 410, "body": "no more\n"},
     "headers": {"response": {"set": {"X-Gone": "yes"}}}},
    {"path": "/admin", "answer": {"status": 403}},
    {"path": "/checked", "upstream": "checked"},
]  # fmt: skip


class PlainClient:
    """A client without TLS."""

    def __init__(self, port: int, first: bytes = b"") -> None:
        """Connected; `first` is what a load balancer says before."""
        self.sock = connect_tcp(port)
        self.sock.sendall(first)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def ask(self, target: str, host: str = "web.test", method: str = "GET") -> Response:
        """A request and its response."""
        self.sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        return Response(status, headers, self._file.read(length))


@dataclass
class Site:
    """The proxy of this module, and the web servers behind it."""

    proxy: Proxy
    context: ssl.SSLContext
    settings: dict[str, Any]
    servers: dict[str, Upstream]
    scripted: ScriptedServer
    mortal: contextlib.ExitStack
    """Closed, it ends the server of the group `checked`."""

    @contextlib.contextmanager
    def client(self, server_name: str = "localhost", name: str = "web") -> Iterator[TlsClient]:
        """A client of a listener after its handshake, with this SNI."""
        with TlsClient(connect_tcp(self.proxy.ports[name]), self.context, server_name) as client:
            client.handshake()
            yield client

    def plain(self, name: str = "plain", first: bytes = b"") -> PlainClient:
        """A client of a listener that redirects."""
        return PlainClient(self.proxy.ports[name], first)


def ask(
    client: TlsClient, target: str, host: str = "localhost", method: str = "GET", body: bytes = b""
) -> Response:
    """A request and its response."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    client.send(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n".encode() + body)
    return client.head() if method == "HEAD" else client.response()


@pytest.fixture(scope="module")
def site(
    identities: Identities, any_version: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Two servers, two certificates; one worker, so that what it keeps can be seen."""
    directory = tmp_path_factory.mktemp("routes")
    other = identities.issue("p256", "api.test")
    with (
        Upstream("a") as a,
        Upstream("b") as b,
        contextlib.closing(ScriptedServer()) as scripted,
        contextlib.ExitStack() as mortal,
    ):
        c = mortal.enter_context(Upstream("c"))
        checked = {"servers": [c.address], "health": {"interval": "100ms", "rise": 1, "fall": 1}}
        settings = {
            "listeners": [
                {
                    "name": "web",
                    "address": "127.0.0.1:0",
                    "mode": "http",
                    "certificates": [{"chain": str(each.chain_path)} for each in (identities["p256"], other)],
                    "upstream": "a",
                    "http": {"routes": ROUTES},
                },
                {
                    "name": "plain",
                    "address": "127.0.0.1:0",
                    "mode": "redirect",
                    "upstream": "a",
                    "http": {
                        "https_port": 8443,
                        "timeouts": {"head": "300ms"},
                        "routes": [{"hosts": ["moved.test"], "redirect": "https://www.test/"}],
                    },
                },
                {
                    "name": "trusting",
                    "address": "127.0.0.1:0",
                    "mode": "http",
                    "certificates": [{"chain": str(identities["p256"].chain_path)}],
                    "upstream": "scripted",
                    "http": {"trusted": ["127.0.0.1"]},
                },
                {
                    "name": "behind",
                    "address": "127.0.0.1:0",
                    "mode": "redirect",
                    "accept_proxy": {"trusted": ["127.0.0.1"]},
                },
            ],
            "upstreams": {
                "a": {"servers": [a.address]},
                "b": {"servers": [b.address], "balance": "least_connections", "connect_timeout": "1s"},
                "checked": checked,
                "scripted": {"servers": [scripted.address], "proxy_protocol": "v1"},
            },
            "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
            "watch_files": False,
        }
        with running_proxy(directory, settings) as proxy:
            yield Site(proxy, any_version, settings, {"a": a, "b": b}, scripted, mortal)


def test_each_request_goes_by_its_host_and_path(site: Site) -> None:
    """On one connection, to the web servers of one group after another's."""
    before = site.proxy.metrics()
    with site.client("api.test") as client:
        assert ask(client, "/", "api.test").body == b"hello from b"
        assert ask(client, "/b/x", "api.test:8443").body == b"hello from b"
    with site.client() as client:
        for target, server in (("/", b"a"), ("/b", b"b"), ("/b/x?y", b"b"), ("/bb", b"a"), ("/b", b"b")):
            assert ask(client, target).body == b"hello from " + server
    after = site.proxy.metrics()
    for route, count in (("api", 2), ("*/b", 3), ("*/", 2)):
        name, labels = "offload_http_requests_total", {"listener": "web", "route": route, "code": "200"}
        assert after.value(name, method="GET", **labels) == before.value(name, method="GET", **labels) + count


def test_redirects_and_fixed_answers_need_no_server(site: Site) -> None:
    """The connection goes on after them, and a HEAD gets no body."""
    with site.client() as client:
        moved = ask(client, "/old/x?y=1")
        assert (moved.status, moved.headers["location"]) == (308, "https://www.test/new/x?y=1")
        gone = ask(client, "/gone")
        assert (gone.status, gone.body) == (410, b"no more\n")
        assert gone.headers["content-type"] == "text/plain; charset=utf-8"
        assert gone.headers["x-gone"] == "yes"
        assert ask(client, "/gone", method="HEAD").headers["content-length"] == "8"
        assert ask(client, "/").body == b"hello from a"


def test_no_way_around_a_route(site: Site) -> None:
    """A path that some web servers read as another route's is refused."""
    name, reason = "offload_http_errors_total", "ambiguous_path"
    before = site.proxy.metrics().value(name, reason=reason)
    with site.client() as client:
        assert ask(client, "/admin/x").status == 403
        for target in ("//admin", "/%61dmin", "/x/..%2fadmin", "/x/../admin", "/admin;x"):
            assert ask(client, target).status == 400
        assert ask(client, "/caf%C3%A9").status == 200
    assert site.proxy.metrics().value(name, reason=reason) == before + 5


def test_a_host_of_another_certificate_is_misdirected(site: Site) -> None:
    """421, so that the client comes again on a connection for that name."""
    with site.client() as client:
        assert ask(client, "/", "api.test").status == 421
        assert ask(client, "/", "localhost:443").status == 200
    with site.client("api.test") as client:
        assert ask(client, "/", "API.test").status == 200
        assert ask(client, "/").status == 421


def test_a_trusted_proxy_speaks_for_any_host(site: Site) -> None:
    """It has one connection for all; a group's PROXY header comes once before the requests of a connection."""
    with site.client(name="trusting") as client:
        for number, host in enumerate(("www.test", "api.test")):
            client.send(f"GET /{number} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            if number == 0:
                server = site.scripted.accept()
                assert server.read_until(b"\r\n").startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
            assert server.head()[:2] == [f"GET /{number} HTTP/1.1", f"Host: {host}"]
            server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert client.head().status == 204
        server.sock.close()


def test_routes_have_their_own_times_and_limits(site: Site) -> None:
    """The first byte of a response in 200 ms, and a body of 1 KiB; other routes have more of both."""
    with site.client() as client:
        assert ask(client, "/silent").status == 504
    with site.client() as client:
        assert ask(client, "/sha256/small", method="POST", body=b"x" * 1024).status == 200
        assert ask(client, "/sha256", method="POST", body=b"x" * 1025).status == 200
        assert ask(client, "/sha256/small", method="POST", body=b"x" * 1025).status == 413


def test_without_tls_clients_are_sent_to_https(site: Site) -> None:
    """With the same host, path and query, request after request."""
    name = "offload_http_requests_total"
    before = site.proxy.metrics().value(name, listener="plain", code="308")
    with site.plain() as client:
        for target in ("/", "/a/b?c=d", "//evil.test/"):
            answer = client.ask(target, "web.test:8080")
            assert (answer.status, answer.headers["location"]) == (308, f"https://web.test:8443{target}")
        assert client.ask("/", method="HEAD").status == 308
        assert "strict-transport-security" not in answer.headers
    assert site.proxy.metrics().value(name, listener="plain", code="308") == before + 4


def test_a_certificate_authority_reaches_the_web_server(site: Site) -> None:
    """Its challenge is passed to the upstream; what only looks like one is redirected or refused."""
    with site.plain() as client:
        assert client.ask("/.well-known/acme-challenge/token").body == b"hello from a"
        assert client.ask("/.well-known/acme-challenge/token", "moved.test").body == b"hello from a"
        assert client.ask("/x", "moved.test").headers["location"] == "https://www.test/"
        assert client.ask("/.well-known/acme-challengex").status == 308
        assert client.ask("/.well-known/acme-challenge/../x").status == 400
    assert "/.well-known/acme-challenge/token" in site.servers["a"].connections[-1].requests


def test_a_plain_listener_has_limits_too(site: Site) -> None:
    """A head that does not end is answered 408; TLS on the wrong port, 400."""
    for first, status in (
        (b"GET / HTTP/1.1\r\nHost: a", b"408"),
        (b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", b"400"),
    ):
        with contextlib.closing(connect_tcp(site.proxy.ports["plain"])) as sock:
            sock.sendall(first)
            assert sock.recv(65536).startswith(b"HTTP/1.1 " + status)
            assert sock.recv(1) == b""


def test_a_plain_listener_behind_a_load_balancer(site: Site) -> None:
    """The PROXY header is read before the first request; one without it is refused."""
    with site.plain("behind", b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 80\r\n") as client:
        assert client.ask("/x").headers["location"] == "https://web.test/x"
    with contextlib.closing(connect_tcp(site.proxy.ports["behind"])) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    site.proxy.wait_metric("offload_refused_total", 1, listener="behind", reason="proxy_header")


def test_plain_connections_end_as_they_should(site: Site) -> None:
    """One that says nothing is a probe; half a close still gets its answer; none is left."""
    connect_tcp(site.proxy.ports["plain"]).close()
    site.proxy.wait_metric("offload_connections_total", 1, listener="plain", outcome="probe")
    with site.plain() as client:
        client.sock.sendall(b"GET /y HTTP/1.1\r\nHost: web.test\r\n\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert b"https://web.test:8443/y" in client.sock.recv(65536)
    site.proxy.wait_metric("offload_connections_active", 0, listener="plain")


def test_status_on_a_terminal(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Listeners without TLS are there too, and each server of a group once, with what is wrong with it."""
    status = site.proxy.status()
    servers = [server for listener in status["listeners"] for server in listener["upstream"]]
    for server in servers:
        server.update(state="down", why="refused")
    show_status(status)
    shown = capsys.readouterr().out
    assert shown.count("no TLS") == 2
    assert shown.count("DOWN") == len({(server["upstream"], server["server"]) for server in servers})
    assert all(f" {server['server']} " in shown for server in servers)
    assert "refused" in shown


def test_limits_and_drain_without_tls(identities: Identities, tmp_path: Path) -> None:
    """One client has so many connections, and an idle one does not keep the proxy from ending."""
    identities["p256"]
    settings = {
        "listeners": [{"name": "plain", "address": "127.0.0.1:0", "mode": "redirect"}],
        "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "limits": {"max_connections_per_address": 1, "drain_timeout": "20s"},
    }
    with running_proxy(tmp_path, settings) as proxy, PlainClient(proxy.ports["plain"]) as client:
        assert client.ask("/").headers["location"] == "https://web.test/"
        with (  # the reset may come before connect returns
            pytest.raises(ConnectionResetError),
            contextlib.closing(connect_tcp(proxy.ports["plain"])) as refused,
        ):
            refused.recv(1)
        proxy.signal(signal.SIGTERM)
        assert client.sock.recv(1) == b""
        client.sock.close()
        proxy.stop()


def test_checks_of_a_group(site: Site) -> None:
    """A group's servers are checked for all routes that name it; a dead one is down behind its listener."""

    def state() -> str:
        (web,) = [each for each in site.proxy.status()["listeners"] if each["name"] == "web"]
        (server,) = [each for each in web["upstream"] if each["upstream"] == "checked"]
        return str(server["state"])

    with site.client() as client:
        assert ask(client, "/checked").body == b"hello from c"
    site.mortal.close()
    eventually(lambda: state() == "down", "the server is down")
    with site.client() as client:
        assert ask(client, "/checked").status == 503
        assert ask(client, "/").status == 200


def test_reload_of_routes_and_groups(site: Site) -> None:
    """A keep-alive connection goes on, or is told to come again; new ones follow the new routes at once."""
    web, *others = site.settings["listeners"]
    routes = [{"path": "/new", "upstream": "b"}]
    with site.client() as client, site.plain() as plain:
        assert ask(client, "/b").body == b"hello from b"
        assert plain.ask("/").status == 308
        groups = {**site.settings["upstreams"], "b": {"servers": [site.servers["a"].address]}}
        site.proxy.write({**site.settings, "upstreams": groups})
        assert "upstream b changed" in site.proxy.command("reload")
        assert ask(client, "/b").status == 200
        with site.client() as another:
            assert ask(another, "/b").body == b"hello from a"
        changed = {**web, "http": {"routes": routes}}
        site.proxy.write({**site.settings, "listeners": [changed, *others]})
        assert "listener web: http changed" in site.proxy.command("reload")
        assert plain.ask("/").status == 308
    with site.client() as client:
        assert ask(client, "/new").body == b"hello from b"
        assert ask(client, "/old").body == b"hello from a"
    site.proxy.write({**site.settings, "listeners": [{**changed, "upstream": "none"}, *others]})
    with pytest.raises(ConfigurationError, match=r"listeners\[0\]\.upstream: there is no group 'none'"):
        site.proxy.command("reload")
    site.proxy.write(site.settings)
    site.proxy.command("reload")
