"""The load client against real servers: what it counts, and that it always ends."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.client import Mode, Plan, parse_arguments, run
from loadtest.generate.connections import Target
from loadtest.targets.agreement import CIPHER, POLICY
from loadtest.targets.lab import free_port
from loadtest.targets.peers import LARGE_BYTES, SMALL_BYTES, Nginx
from offload.tls import TLSError

AGREED = f"TLSv1.3 {CIPHER} x25519"
TARGET_OPTIONS = ("requests", "path", "policy", "cipher", "timeout", "hold")


def plan(port: int, mode: Mode = Mode.HANDSHAKES, **options: Any) -> Plan:
    """A plan whose options may be the target's or its own."""
    target = {name: options.pop(name) for name in TARGET_OPTIONS if name in options}
    return Plan(Target(port=port, **target), mode, **options)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections (its kernel does) and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_handshakes_with_openssl(s_server: int) -> None:
    result = run(plan(s_server, connections=5, concurrency=2))
    assert (result.errors, result.connections, result.requests) == ({}, 5, 5)
    assert result.negotiated == {AGREED: 5}
    assert result.body_bytes == 5 * len("hello")
    assert result.handshake.count == result.request.count == 5
    assert 0 < result.handshake.p50 <= result.handshake.highest <= result.seconds


def test_a_server_that_closes_early_is_counted(s_server: int) -> None:
    """This server closes after one response: the second request of a connection fails."""
    result = run(plan(s_server, mode=Mode.KEEPALIVE, requests=2))
    assert (result.requests, result.connections, result.failed) == (1, 0, 1)


def test_another_cipher_is_an_error_unless_any_will_do(s_server: int) -> None:
    assert run(plan(s_server, policy="20190801")).errors == {"wrong_cipher": 1}
    assert run(plan(s_server, policy="20190801", cipher="")).negotiated == {
        "TLSv1.3 TLS_AES_256_GCM_SHA384 x25519": 1
    }


@pytest.mark.parametrize("index", [0, 1], ids=["P-256", "RSA-2048"])
def test_many_handshakes_with_nginx(nginx: Nginx, index: int) -> None:
    result = run(plan(nginx.ports[index], connections=40, concurrency=16))
    assert (result.errors, result.negotiated) == ({}, {AGREED: 40})
    assert result.body_bytes == 40 * SMALL_BYTES


def test_requests_on_a_kept_connection(nginx: Nginx) -> None:
    result = run(plan(nginx.ports[0], mode=Mode.KEEPALIVE, requests=30))
    assert (result.connections, result.requests, result.handshake.count) == (1, 30, 1)
    assert result.body_bytes == 30 * SMALL_BYTES


def test_large_bodies(nginx: Nginx) -> None:
    downloads = plan(nginx.ports[0], Mode.DOWNLOAD, connections=2, concurrency=2, requests=3, path="/large")
    result = run(downloads)
    assert (result.errors, result.requests, result.body_bytes) == ({}, 6, 6 * LARGE_BYTES)


def test_an_absent_page_is_counted_by_its_status(nginx: Nginx) -> None:
    assert run(plan(nginx.ports[0], path="/absent")).errors == {"http_404": 1}


def test_a_duration_ends_the_run(nginx: Nginx) -> None:
    result = run(plan(nginx.ports[0], connections=None, duration=0.2, concurrency=4))
    assert result.errors == {}
    assert result.connections >= 4


def test_a_silent_server_costs_the_time_limit(silent: int) -> None:
    result = run(plan(silent, connections=3, concurrency=3, timeout=0.1))
    assert (result.connections, result.errors) == (0, {"timeout": 3})


def test_the_limit_of_the_run_ends_everything(silent: int) -> None:
    result = run(plan(silent, connections=None, concurrency=2, timeout=60, limit=0.1))
    assert (result.connections, result.errors) == (0, {"timeout": 2})


def test_failures_end_the_run() -> None:
    result = run(plan(free_port(), connections=None, duration=60, concurrency=1, max_errors=7))
    assert result.errors == {"econnrefused": 7}


def test_an_unknown_policy() -> None:
    with pytest.raises(TLSError, match="no-such-policy"):
        run(plan(1, policy="no-such-policy"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("handshakes --port 8443", plan(8443)),
        (
            "handshakes --port 1 --duration 3 --concurrency 64",
            plan(1, connections=None, duration=3, concurrency=64),
        ),
        ("idle --port 1 --connections 9", plan(1, Mode.IDLE, connections=9, requests=0, hold=math.inf)),
        (
            "download --port 1 --requests 5 --path /large",
            plan(1, Mode.DOWNLOAD, requests=5, path="/large", policy=POLICY),
        ),
    ],
)
def test_command_lines(line: str, expected: Plan) -> None:
    assert parse_arguments(line.split()) == expected
