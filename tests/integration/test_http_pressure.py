"""HTTP mode when both sides push and neither takes: a break is seen once, and what comes later is not lost."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

from offload.relay import DOWN_BUFFER_SIZE
from tests.integration.clients import TlsClient
from tests.integration.scripted import HttpWorld, Peer
from tests.integration.test_http import GET, OK, UPGRADE, world  # noqa: F401  # the fixture
from tests.integration.test_waiting import assert_idle
from tests.integration.upstreams import pattern
from tests.support.proxy import resident_bytes

LARGE = 100_000


@contextlib.contextmanager
def slow_client(site: HttpWorld) -> Iterator[TlsClient]:
    """One that takes next to nothing at a time."""
    with TlsClient.connect(site.proxy.ports["http"], site.context, receive_buffer=4096) as client:
        yield client


def send_until_blocked(server: Peer, data: bytes) -> None:
    """Send the same bytes again and again until the proxy takes no more."""
    while select.select([], [server.sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            server.sock.send(data)


def test_a_server_that_resets_while_nobody_takes_anything(world: HttpWorld) -> None:  # noqa: F811
    """The reset comes while the request and the response both have to wait: no loop spins over it."""
    with slow_client(world) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000000\r\n\r\n")
        with world.server.accept() as server:
            server.head()
            client.send_until_blocked(bytes(LARGE))
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            server.sock.setblocking(False)
            send_until_blocked(server, bytes(LARGE))
            server.reset()
            assert_idle(world.proxy)


def test_a_server_that_closes_while_its_response_is_not_taken(world: HttpWorld) -> None:  # noqa: F811
    """The next request does not go into the closed connection, where nobody would look for an answer."""
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE + bytes(LARGE)
    with slow_client(world) as client:
        client.send(GET * 500)
        count = 1
        with world.server.accept() as server:
            server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGE)  # it need not wait either
            server.head()
            server.send(response)
            while select.select([server.sock], [], [], 0.3)[0]:
                server.head()
                server.send(response)
                count += 1
            server.sock.shutdown(socket.SHUT_WR)  # what the proxy asks at this moment costs no response
            assert count < 500
            client.recv_exactly(count * len(response))
            with world.server.accept() as another:
                another.head()
                another.send(OK)
                assert client.response().body == b"ok"
                client.reset()


def test_an_upgrade_with_a_buffer_full_of_data(world: HttpWorld) -> None:  # noqa: F811
    """What comes with 101 passes, however much it is."""
    size = 4 * DOWN_BUFFER_SIZE
    with world.client(sent=UPGRADE) as client, world.server.accept() as server:
        server.head()
        response = b"HTTP/1.1 101 Go on\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        with server.sending(response + pattern(size)):
            assert client.head().status == 101
            assert client.recv_exactly(size) == pattern(size)


def test_an_idle_client_leaves_no_large_head_behind(world: HttpWorld) -> None:  # noqa: F811
    """What its last request was takes up no memory, whatever was in it."""
    count, large = 150, 30_000
    (worker,) = world.proxy.worker_pids()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(world.client("closed", GET)) for _ in range(count)]
        assert {client.response().status for client in clients} == {503}
        before = resident_bytes(worker)
        for number, client in enumerate(clients):
            line = b"X-%d: " % number + bytes([ord("a") + number % 26]) * (large // 90) + b"\r\n"
            client.send(GET[:-2] + line * 90 + b"\r\n")
            assert client.response().status == 503
        assert resident_bytes(worker) - before < count * large // 2
