"""HTTP mode: what of a message reaches the other side, which connections are used again, and how each ends."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.clients import TIMEOUT, Truncated
from tests.integration.scripted import HttpWorld
from tests.integration.upstreams import pattern
from tests.support.proxy import stopped

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def world(http_proxy: HttpWorld) -> Iterator[HttpWorld]:
    """The proxy; afterwards no connection is left, and nothing unexpected is in its log."""
    yield http_proxy
    http_proxy.proxy.wait_idle()
    http_proxy.server.turn_away()
    http_proxy.proxy.assert_clean()


# -- requests -------------------------------------------------------------------------------


def test_connections_are_kept_on_both_sides(world: HttpWorld) -> None:
    """Requests of a client go one after the other over one connection to the server."""
    with world.client() as client, contextlib.ExitStack() as stack:
        for number in range(3):
            client.send(b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % number)
            if number == 0:
                server = stack.enter_context(world.server.accept())
            assert server.head() == [f"GET /{number} HTTP/1.1", "Host: a.test"]
            server.send(OK)
            assert client.response().body == b"ok"
        assert world.server.is_left_alone()
        client.close_notify()
        assert server.is_closed()


def test_what_belongs_to_one_connection_does_not_pass(world: HttpWorld) -> None:
    """Neither way; what Connection names goes with it; Host stands first, and the rest as it came."""
    request = (
        b"GET /a?b HTTP/1.1\r\nX-One:  1 \r\nConnection: keep-alive, X-Own\r\nx-own: 1\r\nKeep-Alive: 5\r\nHOST: a.test:81\r\n"
        b"Proxy-Connection: close\r\nTE: trailers, gzip\r\nUpgrade: h2c\r\nX-Two:\r\n\r\n"
    )
    response = (
        b"HTTP/1.1 299 Fine so\r\nConnection: X-Own\r\nx-oWN: 1\r\nKeep-Alive: 5\r\nUpgrade: h2\r\nX-Three: 3\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    with world.client(sent=request) as client, world.server.accept() as server:
        assert server.head() == [
            "GET /a?b HTTP/1.1", "Host: a.test:81", "X-One:  1 ", "X-Two:", "Connection: TE", "TE: trailers",
        ]  # fmt: skip
        server.send(response)
        received = client.head()
        assert received.status == 299
        assert received.headers == {"x-three": "3", "content-length": "0"}


def test_bodies_of_requests(world: HttpWorld) -> None:
    """Counted and chunked ones, in pieces, with trailers; what follows is the next request."""
    with world.client() as client, contextlib.ExitStack() as stack:
        client.send(b"POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n01234")
        server = stack.enter_context(world.server.accept())
        assert server.head() == ["POST /a HTTP/1.1", "Host: a.test", "Content-Length: 10"]
        assert server.read(5) == b"01234"
        client.send(b"56789POST /b HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=1\r\n01")
        assert server.read(5) == b"56789"
        server.send(OK)
        assert client.response().body == b"ok"
        assert server.head() == ["POST /b HTTP/1.1", "Host: a.test", "Transfer-Encoding: chunked"]
        client.send(b"234\r\n0\r\nX-Sum: 1\r\nX-Forwarded-For: evil\r\nContent-Length: 7\r\n\r\nGET ")
        assert server.read_until(b"\r\n\r\n") == b"5;x=1\r\n01234\r\n0\r\nX-Sum: 1\r\n\r\n"
        server.send(OK)
        assert client.response().body == b"ok"
        client.send(b"/c HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert server.head() == ["GET /c HTTP/1.1", "Host: a.test"]
        server.send(OK)
        assert client.response().body == b"ok"


def test_pipelined_requests_are_answered_in_order(world: HttpWorld) -> None:
    """The server sees one when the one before is answered, and none of the bytes before."""
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % number for number in range(20))
    with world.client(sent=requests) as client, world.server.accept() as server:
        for number in range(20):
            assert server.head()[0] == f"GET /{number} HTTP/1.1"
            if number in (0, 10):
                assert server.is_silent()
            server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % number)
        assert [client.response().body for _ in range(20)] == [b"%02d" % number for number in range(20)]


@pytest.mark.parametrize(("name", "status", "count"), [("web", b"200", 10_000), ("closed", b"503", 1000)])
def test_many_pipelined_requests(world: HttpWorld, name: str, status: bytes, count: int) -> None:
    """Thousands, also such as the proxy answers by itself: it does not lose count, or dig itself in."""
    with world.client(name, GET) as client:
        head = client.head()
        body = int(head.headers["content-length"])
        client.recv_exactly(body)
        client.send(GET)
        one = client.recv()
        answers = client.exchange([GET] * count, count * len(one))
        assert answers.count(b"HTTP/1.1 " + status) == count


def test_http_1_0(world: HttpWorld) -> None:
    """The server is asked by HTTP/1.1; the client gets no chunks, and is kept only if it asked for that."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    with world.client() as client, contextlib.ExitStack() as stack:
        client.send(b"GET /a HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n")
        server = stack.enter_context(world.server.accept())
        assert server.head() == ["GET /a HTTP/1.1", "Host: a.test"]
        server.send(OK)
        first = client.response()
        assert (first.headers["connection"], first.body) == ("keep-alive", b"ok")
        client.send(b"GET /b HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n")
        server.head()
        server.send(chunked[:60])
        server.send(chunked[60:])
        second = client.head()
        assert second.headers == {"connection": "close"}
        assert client.recv_all() == b"abc0123456789abcdef"


def test_expect_100_continue(world: HttpWorld) -> None:
    """The server decides: its 100 passes, and the body after it."""
    head = b"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n"
    with world.client(sent=head) as client, world.server.accept() as server:
        assert server.head()[-1] == "Expect: 100-continue"
        server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.head().status == 100
        client.send(b"body")
        assert server.read(4) == b"body"
        server.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
        assert client.head().headers == {"link": "</a>"}
        assert client.response().body == b"ok"
        client.send(GET)
        assert server.head() == ["GET / HTTP/1.1", "Host: a.test"]
        server.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        assert client.response().status == 200  # nobody expected the 100


def test_early_response(world: HttpWorld) -> None:
    """An answer before the end of the request passes at once; then neither connection is used again."""
    head = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n"
    with world.client(sent=head + b"x") as client, world.server.accept() as server:
        server.head()
        server.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nno!")
        response = client.response()
        assert (response.status, response.headers["connection"], response.body) == (413, "close", b"no!")
        assert client.recv_all() == b""
        with pytest.raises(ConnectionResetError):
            server.read(2)


# -- responses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "response", "headers"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", {"content-length": "5"}),
        ("GET", b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", {}),
        (
            "GET",
            b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\nETag: a\r\n\r\n",
            {"content-length": "5", "etag": "a"},
        ),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", {}),
    ],
)
def test_responses_without_a_body(
    world: HttpWorld, method: str, response: bytes, headers: dict[str, str]
) -> None:
    """Whatever their length says: the next response on the connection is found."""
    with world.client() as client:
        client.send(f"{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
        with world.server.accept() as server:
            server.head()
            server.send(response)
            assert client.head().headers == headers
            client.send(GET)
            server.head()
            server.send(OK)
            assert client.response().body == b"ok"


def test_response_up_to_the_end_of_the_connection(world: HttpWorld) -> None:
    """It ends the client's connection too, in order."""
    with world.client(sent=GET) as client:
        with world.server.accept() as server:
            server.head()
            server.send(b"HTTP/1.1 200 OK\r\n\r\nsome ")
            assert client.head().headers == {"connection": "close"}
            server.send(b"bytes")
        assert client.recv_all() == b"some bytes"


def test_chunked_response(world: HttpWorld) -> None:
    """Chunks pass as they are, trailers too, and the connection is kept."""
    with world.client(sent=GET) as client, world.server.accept() as server:
        server.head()
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r")
        assert client.head().headers == {"transfer-encoding": "chunked"}
        server.send(b"\n0\r\nX-Sum: 1\r\nConnection: x\r\n\r\n")
        assert client.recv_exactly(23) == b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
        client.send(GET)
        server.head()
        server.send(OK)
        assert client.response().body == b"ok"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n" + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"",
    ],
)
def test_responses_that_are_none(world: HttpWorld, response: bytes) -> None:
    """They are answered with 502, and nothing of them passes."""
    with world.client(sent=GET) as client:
        with world.server.accept() as server:
            server.head()
            with contextlib.suppress(OSError):
                server.send(response)
                server.sock.shutdown(socket.SHUT_WR)
            while (received := client.head()).status == 103:
                pass
        assert received.status == 502
        assert client.recv_exactly(int(received.headers["content-length"])).endswith(b"</html>\n")


@pytest.mark.parametrize("end", ["eof", "reset", "chunk"])
def test_a_response_that_breaks_off_is_seen_to(world: HttpWorld, end: str) -> None:
    """The client never takes half an answer for a whole one."""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n3\r\nab"
    counted = b"Content-Length: 10\r\n\r\nab"
    with world.client(sent=GET) as client:
        with world.server.accept() as server:
            server.head()
            server.send(b"HTTP/1.1 200 OK\r\n" + (chunked if end == "chunk" else counted))
            assert client.head().status == 200
            if end == "reset":
                server.reset()
            elif end == "chunk":
                server.send(b"c\r\nx\r\n")
        with pytest.raises((Truncated, ConnectionResetError)):
            client.recv_all()


def test_surplus_bytes_are_nobodys_response(world: HttpWorld) -> None:
    """A server that sends more than it said is not asked again on that connection."""
    with world.client(sent=GET) as client:
        with world.server.accept() as server:
            server.head()
            server.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            assert client.response().body == b"ok"
            assert server.is_closed()
        client.send(GET)
        with world.server.accept() as server:
            server.head()
            server.send(OK)
            assert client.response().body == b"ok"


def test_surplus_bytes_that_come_with_the_next_request(world: HttpWorld) -> None:
    """They are seen before it is sent, even if the worker learns of both at once, and of the request first."""
    with world.client(sent=GET) as client, world.server.accept() as first:
        first.head()
        first.send(OK)
        assert client.response().body == b"ok"
        with stopped(world.proxy.worker_pids()):
            client.send(GET)
            first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        with world.server.accept() as second:
            assert second.head() == ["GET / HTTP/1.1", "Host: a.test"]
            second.send(OK)
            assert client.response().body == b"ok"
        assert first.is_closed()


# -- which connection ------------------------------------------------------------------------


def test_a_request_is_repeated_once_when_a_kept_connection_was_closed(world: HttpWorld) -> None:
    """On a fresh connection; if that is closed too, the client learns of it."""
    with world.client(sent=GET) as client:
        server = world.server.accept()
        server.head()
        server.send(OK)
        assert client.response().body == b"ok"
        client.send(GET)
        server.head()
        server.sock.close()
        with world.server.accept() as second:
            assert second.head() == ["GET / HTTP/1.1", "Host: a.test"]
        assert client.response().status == 502
        assert world.server.is_left_alone()


def test_a_post_is_never_repeated(world: HttpWorld) -> None:
    """It may have had an effect."""
    with world.client(sent=GET) as client:
        with world.server.accept() as server:
            server.head()
            server.send(OK)
            assert client.response().body == b"ok"
            client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
            server.head()
        assert client.response().status == 502
        assert world.server.is_left_alone()


def test_no_server(world: HttpWorld) -> None:
    """503, and the client is kept: another request may fare better."""
    with world.client("closed") as client:
        for _ in range(2):
            client.send(GET)
            assert client.response().status == 503


# -- upgrades --------------------------------------------------------------------------------

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"


def test_upgrade(world: HttpWorld) -> None:
    """After 101 both sides speak freely, with what came early, up to the end of either."""
    with world.client(sent=UPGRADE + b"early") as client, world.server.accept() as server:
        head = server.head()
        assert head[0] == "GET /ws HTTP/1.1"
        assert head[-2:] == ["Connection: Upgrade", "Upgrade: websocket"]
        assert server.is_silent()  # no byte of another protocol before it was agreed on
        server.send(b"HTTP/1.1 101 Go on\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        received = client.head()
        assert received.headers == {"connection": "Upgrade", "upgrade": "websocket"}
        assert client.recv_exactly(5) == b"hello"
        assert server.read(5) == b"early"
        for size in (1, 100_000):
            client.send(pattern(size))
            assert server.read(size) == pattern(size)
            server.send(pattern(size))
            assert client.recv_exactly(size) == pattern(size)
        client.close_notify()
        assert server.is_closed()


def test_upgrade_that_is_declined(world: HttpWorld) -> None:
    """Then it was a request like any other, and what follows it is the next."""
    with world.client(sent=UPGRADE + GET) as client, world.server.accept() as server:
        server.head()
        server.send(OK)
        assert client.response().body == b"ok"
        assert server.head() == ["GET / HTTP/1.1", "Host: a.test"]
        server.send(OK)
        assert client.response().body == b"ok"


# -- what is refused, and limits --------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n"),
        (400, b"GET / HTTP/1.1\nHost: a\n\n"),
        (405, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (405, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (417, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 1\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    ],
)  # fmt: skip
def test_refused(world: HttpWorld, status: int, request_: bytes) -> None:
    """An error, the end of the connection, and not a byte for the server."""
    assert world.error_of(request_ + GET) == status


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (414, b"GET /" + b"a" * 100),
        (414, b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1000),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1000 + b"\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 5 + b"\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n"),
    ],
)
def test_limits(world: HttpWorld, status: int, request_: bytes) -> None:
    """Each with its status; the connection is closed, because the end of the request is not known."""
    assert world.error_of(request_, "small") == status


def test_body_limit_is_met_on_the_way(world: HttpWorld) -> None:
    """A chunked body that grows too large: the server sees it broken off."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with world.client("small", head) as client, world.server.accept() as server:
        server.head()
        for _ in range(11):
            client.send(b"64\r\n" + b"a" * 100 + b"\r\n")
        assert client.response().status == 413
        with pytest.raises(ConnectionResetError):
            server.read(100_000)


# -- clients ---------------------------------------------------------------------------------


def curl(world: HttpWorld, *arguments: str) -> bytes:
    """What curl prints for requests to the real web server."""
    command = ["curl", "-sSk", "--max-time", str(TIMEOUT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=2 * TIMEOUT).stdout


def test_curl(world: HttpWorld) -> None:
    """Downloads and uploads of several buffers, counted and chunked, with and without Expect."""
    url = f"https://localhost:{world.proxy.ports['web']}"
    assert curl(world, f"{url}/bytes/3000000") == pattern(3_000_000)
    assert curl(world, f"{url}/closes/300000") == pattern(300_000)
    assert (
        curl(world, "-w", "%{num_connects} ", f"{url}/", f"{url}/")
        == b"hello from upstream1 hello from upstream0 "
    )
    body = pattern(2_000_000)
    for header in ("Expect:", "Expect: 100-continue"):
        command = ["curl", "-sSk", "-H", header, "--data-binary", "@-", f"{url}/sha256"]
        answer = subprocess.run(command, check=True, capture_output=True, input=body, timeout=TIMEOUT).stdout
        assert answer.decode() == hashlib.sha256(body).hexdigest()
