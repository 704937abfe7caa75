"""HTTP mode: who is given up on when nothing comes, or next to nothing, and how that ends."""

from __future__ import annotations

import contextlib

import pytest

from tests.integration.clients import TlsClient, Truncated
from tests.integration.scripted import HttpWorld
from tests.integration.test_http import GET, OK, world  # noqa: F401  # the fixture
from tests.support import eventually


@pytest.mark.parametrize(
    ("limit", "status", "request_"),
    [
        ("head", 408, b"GET / HTTP/1.1\r\n"),
        ("body", 408, b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n12345"),
        ("first_byte", 504, GET),
    ],
)
def test_what_does_not_come(world: HttpWorld, limit: str, status: int, request_: bytes) -> None:  # noqa: F811
    """The rest of a head, of a body, a response: an error."""
    with world.client(f"short-{limit}", request_) as client:
        assert client.response().status == status


def test_a_body_that_trickles_is_cut(world: HttpWorld) -> None:  # noqa: F811
    """A byte now and then, each in time, does not hold the connection for ever."""
    with world.client(
        "short-body", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    ) as client:
        client.sock.settimeout(0.05)

        def is_cut() -> bool:
            client.send(b"x")
            try:
                return client.response().status == 408
            except TimeoutError:
                return False

        eventually(is_cut, "the proxy's answer")


def test_an_idle_client_is_let_go(world: HttpWorld) -> None:  # noqa: F811
    """In order, between two requests."""
    with world.client("short-idle", GET) as client, world.server.accept() as server:
        server.head()
        server.send(OK)
        assert client.response().body == b"ok"
        assert client.recv_all() == b""


def test_a_response_that_stops_is_broken_off(world: HttpWorld) -> None:  # noqa: F811
    """Visibly."""
    with world.client("short-response", GET) as client, world.server.accept() as server:
        server.head()
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        assert client.head().status == 200
        with pytest.raises((Truncated, ConnectionResetError)):
            client.recv_all()


def test_a_client_that_takes_nothing_is_cut(world: HttpWorld) -> None:  # noqa: F811
    """The server is let go, too, and it is the client's fault, which nobody is told of but by a counter."""

    def is_cut() -> bool:
        """Whether it was the client that was given up on, and not a server that stalled for as long."""
        port = world.proxy.ports["short-response"]
        with TlsClient.connect(port, world.context, receive_buffer=4096) as client:
            client.send(GET)
            with world.server.accept() as server, contextlib.suppress(ConnectionError):
                server.head()
                server.send(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    server.send(bytes(100_000))
        metrics = world.proxy.metrics()
        return metrics.value("offload_http_errors_total", listener="short-response", reason="client_slow") > 0

    eventually(is_cut, "a client that is cut")
    labels = {"listener": "short-response", "outcome": "idle_timeout"}
    eventually(
        lambda: world.proxy.metrics().value("offload_connections_total", **labels), "the connection's outcome"
    )
    assert not [event for event in world.proxy.events("request_failed") if event["reason"] == "client_slow"]
