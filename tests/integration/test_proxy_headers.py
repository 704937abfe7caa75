"""PROXY headers in and out: real senders and readers, hostile headers, and whose address is told."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from offload import proxy_protocol as pp
from offload.proxy_protocol import Endpoint
from tests.integration.clients import TIMEOUT, TlsClient, connect_tcp, request_bytes
from tests.integration.test_refusals import read_to_the_end
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import free_port, require
from tests.support.nginx import running_nginx
from tests.support.proxy import Proxy, listener, running_proxy

REFUSED = "offload_refused_total"
FAILURES = "offload_handshake_failures_total"
ENDED = "offload_connections_total"
BALANCER = "127.0.6.1"
"""The only address that may send headers, besides nginx's and curl's 127.0.0.1."""
CLIENT, SERVICE = Endpoint("203.0.113.7", 50123), Endpoint("203.0.113.80", 443)
SEEN = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"


@dataclass
class Edge:
    """A proxy between nginx and nginx; `recorder` takes connections for the test to read."""

    proxy: Proxy
    directory: Path
    recorder: socket.socket
    balancer: int
    """The port of an nginx that sends version 1 headers to the listener `behind`."""

    def connect(self, name: str, header: bytes, source: str = BALANCER) -> socket.socket:
        """A connection that begins with a header."""
        sock = connect_tcp(self.proxy.ports[name], source=source)
        sock.sendall(header)
        return sock

    def logged(self) -> list[str]:
        """nginx's access log."""
        return (self.directory / "access.log").read_text().splitlines()


def _reader(port: int) -> str:
    return f"""
        log_format seen '{SEEN} $remote_addr'; access_log access.log seen;
        server {{
            listen 127.0.0.1:{port} proxy_protocol; set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;
            location / {{ return 200 "{SEEN}"; }}
        }}"""


@pytest.fixture(scope="module")
def edge(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One worker; behind it nginx as web server and stream server, before it nginx as load balancer."""
    chain = [identities["p256"].chain_path]
    directory = tmp_path_factory.mktemp("nginx")
    with contextlib.ExitStack() as stack:
        http, stream, balancer, behind = (stack.enter_context(free_port()) for _ in range(4))
        recorder = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        recorder.settimeout(TIMEOUT)
        accept = {"accept_proxy": {"trusted": [BALANCER, "127.0.0.1/32"]}}
        web, record = f"127.0.0.1:{http}", f"127.0.0.1:{recorder.getsockname()[1]}"
        settings = {
            "listeners": [
                listener("v1", chain, [web], proxy_protocol="v1"),
                listener("v2", chain, [web], proxy_protocol="v2"),
                listener("stream", chain, [f"127.0.0.1:{stream}"], proxy_protocol="v2-addresses"),
                listener("recorded", chain, [record], proxy_protocol="v2"),
                listener("rsa", [identities["rsa2048"].chain_path], [record], proxy_protocol="v2")
                | {"client_certificates": {"mode": "optional", "ca": str(identities.ca)}},
                listener("behind", chain, [web], proxy_protocol="v2", address=f"127.0.0.1:{behind}") | accept,
                listener("record-behind", chain, [record], proxy_protocol="v2") | accept,
            ],
            "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
            "log": {"connections": "all"},
            "limits": {
                "drain_timeout": "2s",
                "max_connections_per_address": 2, "exempt": ["127.0.0.0/8"],
            },
        }  # fmt: skip
        proxy = stack.enter_context(running_proxy(tmp_path_factory.mktemp("edge"), settings))
        servers = f"""
            server {{ listen 127.0.0.1:{stream} proxy_protocol; return "{SEEN}"; }}
            server {{ listen 127.0.0.1:{balancer}; proxy_pass 127.0.0.1:{behind}; proxy_protocol on; }}"""
        ports = (http, stream, balancer)
        stack.enter_context(running_nginx(directory, ports, http=_reader(http), stream=servers))
        yield Edge(proxy, directory, recorder, balancer)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_nginx_reads_the_clients_address(edge: Edge, any_version: ssl.SSLContext, name: str) -> None:
    """Its page, and its log, tell the client's real address and port, and where it connected to."""
    with TlsClient.connect(edge.proxy.ports[name], any_version, source="127.0.5.1") as client:
        port = client.sock.getsockname()[1]
        expected = f"127.0.5.1 {port} 127.0.0.1 {edge.proxy.ports[name]}"
        assert client.get("/").body.decode() == expected
        eventually(lambda: f"{expected} 127.0.5.1" in edge.logged(), "nginx's log has the real address")


def test_nginx_stream_reads_it_too(edge: Edge, any_version: ssl.SSLContext) -> None:
    """A server that speaks first gets its header before the client has said anything.

    nginx 1.22 takes no header above 107 bytes here.
    """
    with TlsClient.connect(edge.proxy.ports["stream"], any_version, source="127.0.5.2") as client:
        port = client.sock.getsockname()[1]
        assert client.recv_all().decode() == f"127.0.5.2 {port} 127.0.0.1 {edge.proxy.ports['stream']}"


def curl(identities: Identities, port: int, *options: str) -> str:
    """What curl gets from https://localhost."""
    return subprocess.run(
        [require("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert", str(identities.ca),
         "--resolve", f"localhost:{port}:127.0.0.1", *options, f"https://localhost:{port}/"],
        capture_output=True, text=True, timeout=TIMEOUT, check=True,
    ).stdout  # fmt: skip


def test_curl_through_nginx_as_load_balancer(edge: Edge, identities: Identities) -> None:
    """nginx in front sends version 1, nginx behind reads version 2: the client stays the client."""
    told = curl(identities, edge.balancer, "--interface", "127.0.5.3").split()
    assert told[0] == "127.0.5.3"
    assert told[2:] == ["127.0.0.1", str(edge.balancer)]


def test_curl_sends_a_header(edge: Edge, identities: Identities) -> None:
    """curl is a sender of version 1 itself."""
    told = curl(identities, edge.proxy.ports["behind"], "--haproxy-protocol").split()
    assert told[0] == "127.0.0.1"
    assert told[3] == str(edge.proxy.ports["behind"])


@pytest.mark.parametrize(
    "ends", [(CLIENT, SERVICE), (Endpoint("2001:db8::7", 1), Endpoint("2001:db8::80", 2))]
)
@pytest.mark.parametrize("encode", [pp.encode_v1, pp.encode_v2])
def test_addresses_pass_through(
    edge: Edge, any_version: ssl.SSLContext, ends: tuple[Endpoint, Endpoint], encode: object
) -> None:
    """Both ends of the header that came in are in the one that goes out."""
    assert callable(encode)
    with contextlib.closing(edge.connect("behind", encode(*ends))) as sock:
        client = TlsClient(sock, any_version)
        client.handshake()
        told = " ".join(f"{end.host} {end.port}" for end in ends)
        assert client.get("/").body.decode() == told


def recorded(edge: Edge, client: TlsClient) -> tuple[pp.Header, bytes]:
    """The header that the server got, and the request after it."""
    client.send(request_bytes("GET", "/"))
    return received(edge)


def received(edge: Edge) -> tuple[pp.Header, bytes]:
    """The header of the connection that comes next, and the request after it."""
    server, _ = edge.recorder.accept()
    with server:
        server.settimeout(TIMEOUT)
        data = b""
        while not data.endswith(b"\r\n\r\n") or len(data) < 100:
            data += server.recv(65536)
        server.sendall(b"seen")
    parsed = pp.parse(data)
    assert parsed is not None
    return parsed.header, data[parsed.size :]


def test_what_version_2_tells_of_tls(edge: Edge, tls13: ssl.SSLContext) -> None:
    """SNI, TLS version, cipher and group, and that no certificate was shown."""
    with TlsClient.connect(edge.proxy.ports["recorded"], tls13) as client:
        header, rest = recorded(edge, client)
        cipher = client.tls.cipher()
        assert cipher is not None
    assert rest == request_bytes("GET", "/")
    tlvs = dict(header.tlvs)
    assert tlvs[pp.TLV_AUTHORITY] == b"localhost"
    assert pp.TLV_ALPN not in tlvs
    assert tlvs[pp.TLV_SSL][:5] == b"\x01\0\0\0\x01"
    told = dict(pp.parse_tlvs(tlvs[pp.TLV_SSL][5:]))
    assert told.pop(pp.SSL_GROUP)
    assert told == {
        pp.SSL_VERSION: b"TLSv1.3", pp.SSL_CIPHER: cipher[0].encode(), pp.SSL_KEY: b"EC256",
        pp.SSL_SIGNATURE: b"SHA256", pp.SSL_SIGNATURE_SCHEME: b"ecdsa_secp256r1_sha256",
    }  # fmt: skip


def test_connections_have_a_name(edge: Edge, any_version: ssl.SSLContext) -> None:
    """The server gets what the log says: each connection another one."""
    names = set()
    for _ in range(2):
        with TlsClient.connect(edge.proxy.ports["recorded"], any_version) as client:
            header, _ = recorded(edge, client)
        names.add(dict(header.tlvs)[pp.TLV_UNIQUE_ID].decode())
    assert len(names) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
    eventually(
        lambda: {line.get("unique_id") for line in edge.proxy.events("connection")} >= names,
        "the log has both names",
    )


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_name_of_the_clients_certificate(edge: Edge, identities: Identities, version: str) -> None:
    """s_client shows one: the server learns its CN, that it is verified, and which key the proxy has."""
    shown = identities.client("alice of accounting")
    port = edge.proxy.ports["rsa"]
    command = [
        require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}", "-quiet",
        "-cert", str(shown.certificate), "-key", str(shown.key),
    ]  # fmt: skip
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with client:
        assert client.stdin is not None
        client.stdin.write(request_bytes("GET", "/"))
        client.stdin.flush()
        header, _ = received(edge)
        client.terminate()
    ssl_tlv = dict(header.tlvs)[pp.TLV_SSL]
    assert ssl_tlv[:5] == b"\x07\0\0\0\0"
    told = dict(pp.parse_tlvs(ssl_tlv[5:]))
    assert told[pp.SSL_COMMON_NAME] == b"alice of accounting"
    assert told[pp.SSL_KEY] == b"RSA2048"


def test_what_is_told_after_a_resumption(edge: Edge, either: ssl.SSLContext) -> None:
    """No certificate was shown and nothing signed: what belongs to these is left out."""
    with TlsClient.connect(edge.proxy.ports["recorded"], either) as client:
        recorded(edge, client)
        assert client.recv() == b"seen"
        session = client.tls.session
    with TlsClient.connect(edge.proxy.ports["recorded"], either, session=session) as client:
        header, _ = recorded(edge, client)
        assert client.tls.session_reused
    told = dict(pp.parse_tlvs(dict(header.tlvs)[pp.TLV_SSL][5:]))
    assert {pp.SSL_VERSION, pp.SSL_CIPHER} <= told.keys()
    assert not {pp.SSL_KEY, pp.SSL_SIGNATURE, pp.SSL_SIGNATURE_SCHEME} & told.keys()


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", pp.V2_SIGNATURE + b"\x20\0\0\0", pp.V2_SIGNATURE + b"\x21\0\0\0"]
)
def test_headers_without_a_client(edge: Edge, any_version: ssl.SSLContext, header: bytes) -> None:
    """UNKNOWN and LOCAL: the load balancer itself is the client, and is served."""
    with contextlib.closing(edge.connect("record-behind", header)) as sock:
        client = TlsClient(sock, any_version)
        client.handshake()
        found, _ = recorded(edge, client)
        assert found.source == Endpoint(*sock.getsockname())
        assert found.destination == Endpoint(*sock.getpeername())


def test_header_and_hello_in_small_pieces(edge: Edge, any_version: ssl.SSLContext) -> None:
    """However they are cut, no byte of the ClientHello is taken for the header, nor the other way round."""
    header = pp.encode_v2(CLIENT, SERVICE, [(pp.TLV_NOOP, bytes(40))])
    for step in (1, 7, len(header) - 1, len(header) + 5):
        with contextlib.closing(connect_tcp(edge.proxy.ports["behind"], source=BALANCER)) as sock:
            client = TlsClient(sock, any_version)
            flight = header + client.client_hello()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(header) + 10, step):
                sock.sendall(flight[start : start + step])
            sock.sendall(flight[start + step :])
            client.handshake()
            assert client.get("/").body.startswith(b"203.0.113.7 50123")


def test_only_from_trusted_networks(edge: Edge) -> None:
    """Whoever else connects is reset at once, header or not: it could claim any address."""
    before = edge.proxy.metrics().value(REFUSED, reason="proxy_untrusted")
    for data in (b"", pp.encode_v1(CLIENT, SERVICE)):
        with contextlib.closing(socket.socket()) as sock, contextlib.suppress(ConnectionError):
            sock.bind(("127.0.6.2", 0))
            sock.connect(("127.0.0.1", edge.proxy.ports["behind"]))
            sock.sendall(data)
            assert sock.recv(1) == b""
    assert edge.proxy.metrics().value(REFUSED, listener="behind", reason="proxy_untrusted") == before + 2


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        pp.V2_SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
        pp.V2_SIGNATURE + b"\x21\x11\0\x04" + bytes(4),
        pp.V2_SIGNATURE + b"\x11\x11\0\x0c" + bytes(12),
    ],
    ids=["tls", "http", "short", "endless", "huge", "no room", "version"],
)
def test_bad_headers(edge: Edge, data: bytes) -> None:
    """A balancer that sends no header, or a bad one, is refused, counted, and told of in the log."""
    before = edge.proxy.metrics().value(REFUSED, reason="proxy_header")
    with contextlib.closing(edge.connect("behind", data)) as sock:
        assert read_to_the_end(sock) == b""
    assert edge.proxy.metrics().value(REFUSED, listener="behind", reason="proxy_header") == before + 1
    assert edge.proxy.events("proxy_header_refused")[-1]["listener"] == "behind"


def test_health_checks_are_no_failures(edge: Edge) -> None:
    """Connections closed without a byte, or after LOCAL, end as `probe`; a header cut off does not."""
    before, told = edge.proxy.metrics(), len(edge.proxy.events("proxy_header_refused"))
    for data in (b"", pp.V2_SIGNATURE + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n"):
        edge.connect("behind", data).close()
    edge.proxy.wait_metric(ENDED, before.value(ENDED, outcome="probe") + 3, outcome="probe")
    assert edge.proxy.metrics().value(FAILURES) == before.value(FAILURES)
    assert edge.proxy.metrics().value(REFUSED) == before.value(REFUSED)
    assert len(edge.proxy.events("proxy_header_refused")) == told
    edge.connect("behind", b"PROXY TCP4 ").close()
    edge.proxy.wait_metric(REFUSED, before.value(REFUSED) + 1)


def test_slow_headers_meet_the_time_limit(hasty: Proxy) -> None:
    """Silence, half a header, and nothing after it end with handshake_timeout."""
    before = hasty.metrics().value(FAILURES, reason="timeout")
    with contextlib.ExitStack() as stack:
        sockets = []
        for data in (b"", b"PROXY TC", pp.V2_SIGNATURE, pp.V2_SIGNATURE + b"\x20\0\0\0"):
            sock = stack.enter_context(contextlib.closing(connect_tcp(hasty.ports["behind"])))
            sock.sendall(data)
            sockets.append(sock)
        assert all(read_to_the_end(sock) == b"" for sock in sockets)
    assert hasty.metrics().value(FAILURES, reason="timeout") == before + 4


def test_limits_are_the_clients_not_the_balancers(edge: Edge, any_version: ssl.SSLContext) -> None:
    """The header's address is counted: a third connection for it is refused, for another it is not."""
    with contextlib.ExitStack() as stack:
        for port in (1, 2):
            header = pp.encode_v2(Endpoint("198.51.100.9", port), SERVICE)
            sock = stack.enter_context(contextlib.closing(edge.connect("behind", header)))
            TlsClient(sock, any_version).handshake()
        before = edge.proxy.metrics().value(REFUSED, reason="address_connections")
        sock = stack.enter_context(
            contextlib.closing(edge.connect("behind", pp.encode_v2(Endpoint("198.51.100.9", 3), SERVICE)))
        )
        assert read_to_the_end(sock) == b""
        sock = stack.enter_context(
            contextlib.closing(edge.connect("behind", pp.encode_v2(Endpoint("198.51.100.8", 3), SERVICE)))
        )
        TlsClient(sock, any_version).handshake()
        assert edge.proxy.metrics().value(REFUSED, reason="address_connections") == before + 1
    edge.proxy.wait_idle()
