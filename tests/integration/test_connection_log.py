"""One line per connection: what it tells of each outcome, and that a log nobody reads stops nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from offload import proxy_protocol as pp
from tests.integration.clients import TIMEOUT, TlsClient, connect_tcp, request_bytes
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import child_environment, free_port
from tests.support.proxy import (
    STOP_TIMEOUT,
    Metrics,
    Proxy,
    listener,
    offload_command,
    running_proxy,
)


def settings_for(identities: Identities, upstream: Upstream, closed: str) -> dict[str, Any]:
    """One worker that tells of every connection."""
    chain, web = [identities["p256"].chain_path], [upstream.address]
    no_key = identities.issue("p256", keys=identities.keys.parent / "elsewhere").chain_path
    return {
        "listeners": [
            listener("web", chain, web),
            listener("down", chain, [closed]),
            listener("no-key", [no_key], web),
            listener("behind", chain, web) | {"accept_proxy": {"trusted": ["127.0.0.0/8"]}},
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}], "sign_timeout": "300ms"},
        "workers": 1,
        "limits": {"drain_timeout": "2s"},
        "log": {"connections": "all", "format": "json"},
    }


@pytest.fixture(scope="module")
def proxy(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Its log is what the tests read; each test has an address of its own."""
    (identities.keys.parent / "elsewhere").mkdir(exist_ok=True)
    with free_port() as closed:
        settings = settings_for(identities, upstream, f"127.0.0.1:{closed}")
        with running_proxy(tmp_path_factory.mktemp("log"), settings) as running:
            yield running


def line_of(proxy: Proxy, source: str) -> dict[str, Any]:
    """The only line of a connection from this address; waits for it."""

    def find() -> dict[str, Any] | None:
        found = [entry for entry in proxy.events("connection") if entry["peer"].startswith(source + ":")]
        assert len(found) < 2
        return found[0] if found else None

    return eventually(find, f"a line of {source}", TIMEOUT) or {}


def test_all_of_a_good_connection(proxy: Proxy, upstream: Upstream, tls13: ssl.SSLContext) -> None:
    """Who, how it spoke TLS, who signed, how long each stage took, how much went each way."""
    with TlsClient.connect(proxy.ports["web"], tls13, source="127.0.7.1") as client:
        port = client.sock.getsockname()[1]
        client.get("/bytes/1000")
        client.close_notify()
        client.recv_all()
        cipher = client.tls.cipher()
        assert cipher is not None
    line = line_of(proxy, "127.0.7.1")
    request = request_bytes("GET", "/bytes/1000")
    expected = {
        "event": "connection", "level": "info", "process": "worker-0", "listener": "web",
        "peer": f"127.0.7.1:{port}", "outcome": "relayed", "sni": "localhost", "version": "TLSv1.3",
        "cipher": cipher[0], "scheme": "ecdsa_secp256r1_sha256", "node": "a", "resumed": False,
        "upstream": upstream.address, "bytes_up": len(request),
    }  # fmt: skip
    assert expected.items() <= line.items()
    assert line["group"]
    assert 1000 < line["bytes_down"] < 1200
    stages = ("client_hello_ms", "signature_ms", "handshake_ms", "upstream_ms", "total_ms")
    assert all(line[stage] >= 0 for stage in stages)
    assert line["signature_ms"] <= line["handshake_ms"] <= line["total_ms"]
    assert "reason" not in line


def test_resumed(proxy: Proxy, either: ssl.SSLContext) -> None:
    """It says so, and nobody has signed."""
    with TlsClient.connect(proxy.ports["web"], either, source="127.0.7.12") as client:
        assert client.get("/").status == 200
        session = client.tls.session
    source = "127.0.7.13" if client.tls.version() == "TLSv1.2" else "127.0.7.14"
    with TlsClient.connect(proxy.ports["web"], either, source=source, session=session) as client:
        assert client.get("/").status == 200
    line = line_of(proxy, source)
    assert line["resumed"] is True
    assert line["outcome"] in ("relayed", "truncated")
    assert {"cipher", "handshake_ms"} <= line.keys()
    assert not {"scheme", "node", "signature_ms"} & line.keys()


def test_failures(proxy: Proxy, hasty: Proxy, any_version: ssl.SSLContext) -> None:
    """Each tells its reason, and what was known by then."""
    sources = {"not_tls": "127.0.7.2", "timeout": "127.0.7.3", "no_key": "127.0.7.4", "down": "127.0.7.5"}
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(
            contextlib.closing(connect_tcp(proxy.ports["web"], source=sources["not_tls"]))
        )
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock = stack.enter_context(
            contextlib.closing(connect_tcp(hasty.ports["p256"], source=sources["timeout"]))
        )
        sock.sendall(TlsClient(sock, any_version).client_hello()[:100])
        with pytest.raises((ssl.SSLError, OSError)):
            TlsClient.connect(proxy.ports["no-key"], any_version, source=sources["no_key"])
        with TlsClient.connect(proxy.ports["down"], any_version, source=sources["down"]) as client:
            assert client.recv() == b""
        lines = {
            name: line_of(hasty if name == "timeout" else proxy, source) for name, source in sources.items()
        }
    for name, reason in (("not_tls", "not_tls"), ("timeout", "timeout"), ("no_key", "signature_no_node")):
        assert lines[name]["outcome"] == "handshake_failed"
        assert lines[name]["reason"] == reason
        assert "cipher" not in lines[name]
    assert lines["no_key"]["sni"] == "localhost"
    assert lines["down"]["outcome"] == "upstream_failed"
    assert lines["down"]["upstream"].startswith("127.0.0.1:")
    assert "bytes_up" not in lines["down"]


def test_ends_after_the_handshake(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """A client that resets, a server that does."""
    with TlsClient.connect(proxy.ports["web"], any_version, source="127.0.7.6") as client:
        client.get("/")
        client.reset()
    assert line_of(proxy, "127.0.7.6")["outcome"] == "client_reset"
    with TlsClient.connect(proxy.ports["web"], any_version, source="127.0.7.7") as client:
        client.send(request_bytes("GET", "/reset"))
        with pytest.raises((OSError, EOFError)):
            client.response()
    assert line_of(proxy, "127.0.7.7")["outcome"] == "upstream_reset"


def test_whoever_a_header_names_is_the_peer(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """Not the load balancer."""
    with contextlib.closing(connect_tcp(proxy.ports["behind"], source="127.0.7.8")) as sock:
        sock.sendall(pp.encode_v1(pp.Endpoint("2001:db8::9", 9), pp.Endpoint("2001:db8::1", 443)))
        TlsClient(sock, any_version).handshake()
    eventually(
        lambda: "[2001:db8::9]:9" in [entry["peer"] for entry in proxy.events("connection")], "its line"
    )


def test_hostile_names_stay_in_their_field(proxy: Proxy) -> None:
    """A newline, quotes and an escape sequence as SNI: one line, in which they are escaped."""
    context = ssl.create_default_context()
    hostile = b'a\n{"event":"x"}\x1b[31m'
    with contextlib.closing(connect_tcp(proxy.ports["web"], source="127.0.7.9")) as sock:
        hello = TlsClient(sock, context, "n" * len(hostile)).client_hello()
        sock.sendall(hello.replace(b"n" * len(hostile), hostile))
        sock.recv(1)
    sni = line_of(proxy, "127.0.7.9")["sni"]
    assert "\\u{a}" in sni
    assert sni.isprintable()


def test_silent_visitors_are_not_told(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """A connection without a byte only looked whether the port is open."""
    connect_tcp(proxy.ports["web"], source="127.0.7.10").close()
    connect_tcp(proxy.ports["behind"], source="127.0.7.10").close()
    proxy.wait_idle()
    with TlsClient.connect(proxy.ports["web"], any_version, source="127.0.7.11"):
        pass
    line_of(proxy, "127.0.7.11")
    assert not [entry for entry in proxy.events("connection") if entry["peer"].startswith("127.0.7.10:")]


def test_a_log_that_nobody_reads_stops_nothing(
    identities: Identities, upstream: Upstream, any_version: ssl.SSLContext, tmp_path: Path
) -> None:
    """stderr is a full pipe: clients are served, and the lost lines are counted."""
    (identities.keys.parent / "elsewhere").mkdir(exist_ok=True)
    with free_port() as admin:
        settings = settings_for(identities, upstream, upstream.address)
        settings["admin"] = {"address": f"127.0.0.1:{admin}"}
        settings["runtime_directory"] = str(tmp_path)
        settings["listeners"] = settings["listeners"][:1]
        (tmp_path / "offload.yaml").write_text(yaml.safe_dump(settings))
        command = offload_command("serve", "--config", str(tmp_path / "offload.yaml"))
        with subprocess.Popen(
            command, env=child_environment(), stderr=subprocess.PIPE, cwd=tmp_path
        ) as process:
            try:
                assert process.stderr is not None
                fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
                entries = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
                ready = next(entry for entry in entries if entry["event"] == "ready")
                port = int(ready["listeners"]["web"].rpartition(":")[2])
                for _ in range(30):
                    with TlsClient.connect(port, any_version) as client:
                        assert client.get("/").status == 200
                eventually(lambda: _lost(admin) > 0, "lost lines are counted", TIMEOUT)
            finally:
                process.terminate()
                assert process.wait(STOP_TIMEOUT) == 0


def _lost(admin: int) -> float:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as answer:
        return Metrics(answer.read().decode()).value("offload_log_lines_lost_total")
