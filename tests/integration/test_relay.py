"""After the handshake: choosing an upstream, both directions, their ends, and who is told of a break."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import subprocess
import threading
import time
from functools import partial
from itertools import pairwise

import pytest

from tests.integration.clients import TIMEOUT, TlsClient, Truncated, connect_tcp, request_bytes
from tests.integration.conftest import Shared
from tests.integration.upstreams import pattern, unique
from tests.support import eventually
from tests.support.hsm_support import require

OUTCOMES = "offload_connections_total"


def outcome(world: Shared, name: str) -> float:
    """How many connections have ended this way."""
    return world.proxy.metrics().value(OUTCOMES, outcome=name)


# -- requests -------------------------------------------------------------------------------


def test_many_requests_on_one_connection(world: Shared, either: ssl.SSLContext) -> None:
    """A connection is kept as long as both sides keep it, and each answer is the right one."""
    before = outcome(world, "relayed")
    with world.connect("p256", either) as client:
        for size in (0, 1, 100, 16_384, 70_000, 300_000):
            assert client.get(f"/bytes/{size}").body == pattern(size)
            body = pattern(size)
            answer = client.request("POST", "/sha256", body)
            assert answer.body.decode() == hashlib.sha256(body).hexdigest()
        client.close_notify()
        world.proxy.wait_metric(OUTCOMES, before + 1, outcome="relayed")


def test_request_in_the_flight_of_the_finished(world: Shared, either: ssl.SSLContext) -> None:
    """A request that comes in one packet with the end of the handshake is not left lying."""
    for _ in range(5):
        with TlsClient(connect_tcp(world.proxy.ports["p256"]), either) as client:
            client.handshake(request_bytes("GET", "/"))
            assert client.response().body == b"hello from upstream"


def test_pipelined_requests_in_one_packet(world: Shared, either: ssl.SSLContext) -> None:
    """Several small records in one packet are all relayed at once: none waits for a further packet."""
    with world.connect("p256", either) as client:
        for _ in range(50):
            client.write(request_bytes("GET", "/"))
        client.flush()
        assert [client.response().status for _ in range(50)] == [200] * 50


def test_slow_upstream(world: Shared, either: ssl.SSLContext) -> None:
    """An answer that takes its time is waited for, and others are served meanwhile."""
    with world.connect("p256", either) as slow, world.connect("p256", either) as quick:
        slow.send(request_bytes("GET", "/wait/600"))
        assert quick.get("/").body == b"hello from upstream"
        assert slow.response().body == b"waited"


def test_unix_upstream(world: Shared, either: ssl.SSLContext) -> None:
    """An upstream can be a unix socket."""
    with world.connect("unix", either) as client:
        assert client.get("/").body == b"hello from unix"
        assert client.get("/bytes/500000").body == pattern(500_000)


# -- which upstream -------------------------------------------------------------------------


def test_refusing_upstream_is_told_by_a_goodbye(world: Shared, either: ssl.SSLContext) -> None:
    """With no server left the client gets a clean end instead of an answer, and both are counted."""
    before = outcome(world, "upstream_failed")
    failures = world.proxy.metrics().value("offload_upstream_failures_total", reason="refused")
    with world.connect("refused", either) as client:
        assert client.recv() == b""
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="upstream_failed")
    world.proxy.wait_metric("offload_upstream_failures_total", failures + 1, reason="refused")


def test_second_server_is_tried_when_the_first_refuses(world: Shared, any_version: ssl.SSLContext) -> None:
    """Each connection is served, whichever server had its turn first."""
    before = world.proxy.metrics().value("offload_upstream_failures_total", reason="refused")
    for _ in range(8):
        with world.connect("second", any_version) as client:
            assert client.get("/").body == b"hello from upstream"
    world.proxy.wait_metric("offload_upstream_failures_total", before + 2, reason="refused")


def test_upstream_that_never_answers_the_connect(world: Shared, any_version: ssl.SSLContext) -> None:
    """After connect_timeout the attempt counts as failed."""
    before = world.proxy.metrics().value("offload_upstream_failures_total", reason="timeout")
    with world.connect("stuck", any_version) as client:
        assert client.recv() == b""
    world.proxy.wait_metric("offload_upstream_failures_total", before + 1, reason="timeout")


def test_client_that_talks_while_the_first_server_is_stuck(world: Shared, either: ssl.SSLContext) -> None:
    """What it sent meanwhile reaches the second server, and so does all that it sends later."""
    before = world.proxy.metrics().value("offload_upstream_failures_total", reason="timeout")
    for _ in range(4):
        with world.connect("stuck-first", either) as client:
            for _ in range(3):
                assert client.get("/").body == b"hello from upstream"
    assert world.proxy.metrics().value("offload_upstream_failures_total", reason="timeout") > before


def test_client_that_leaves_while_the_server_is_stuck(world: Shared, any_version: ssl.SSLContext) -> None:
    """A client that gives up during the connect leaves nothing behind."""
    with world.connect("stuck", any_version) as client:
        client.send(request_bytes("GET", "/"))
        client.reset()
    world.proxy.wait_idle()


# -- ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fin", [False, True])
def test_client_ends_first_and_gets_the_whole_answer(world: Shared, tls13: ssl.SSLContext, fin: bool) -> None:
    """TLS 1.3: request and close_notify in one packet, with or without a FIN; the answer still comes."""
    before = outcome(world, "relayed")
    body = pattern(200_000)
    with world.connect("p256", tls13) as client:
        client.write(request_bytes("GET", "/eof") + body)
        client.close_notify()
        if fin:
            client.fin()
        answer = client.response()
        assert answer.body.decode() == f"{len(body)} {hashlib.sha256(body).hexdigest()}"
        assert client.recv() == b""
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="relayed")


def test_client_that_ended_gets_a_large_answer(world: Shared, tls13: ssl.SSLContext) -> None:
    """TLS 1.3: after its close_notify a client can take its time to read megabytes."""
    with world.connect("p256", tls13) as client:
        client.write(request_bytes("GET", "/closes/5000000"))
        client.close_notify()
        assert client.response().body == pattern(5_000_000)


def test_goodbye_of_tls12_ends_both_directions(world: Shared, tls12: ssl.SSLContext) -> None:
    """TLS 1.2: the end of one direction is the end of both, in order: the upstream sees an EOF."""
    before = outcome(world, "relayed")
    with world.connect("p256", tls12) as client:
        path = unique("/silent")
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        client.close_notify()
        eventually(lambda: seen.end, "the upstream's end")
        assert seen.end == "eof"
        with contextlib.suppress(Truncated):  # s2n can't always say goodbye once it was told
            assert client.recv() == b""
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="relayed")


def test_upstream_ends_first_and_client_sends_on(world: Shared, tls13: ssl.SSLContext) -> None:
    """TLS 1.3: after the upstream's end the client reads a goodbye, and its bytes still arrive."""
    before = outcome(world, "relayed")
    with world.connect("p256", tls13) as client:
        path = unique("/ends")
        client.send(request_bytes("GET", path))
        assert client.response().body == b"all of it"
        seen = world.upstream.wait_for(path)
        so_far = seen.received
        for _ in range(10):
            client.send(pattern(100_000))
        eventually(lambda: seen.received == so_far + 1_000_000, "the client's later bytes")
        client.close_notify()
        eventually(lambda: seen.end == "eof", "the client's end at the upstream")
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="relayed")


def test_upstream_closes_first_and_the_tail_is_not_cut(world: Shared, either: ssl.SSLContext) -> None:
    """A client that sends on after the upstream closed is not reset: it can read the whole answer."""
    size = 1_000_000
    with TlsClient.connect(world.proxy.ports["p256"], either, receive_buffer=16_384) as client:
        path = unique(f"/closes/{size}")
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        eventually(lambda: seen.sent >= size, "the upstream has sent all")
        for _ in range(5):
            client.send(b"too late")
        assert client.response().body == pattern(size)
        for _ in range(5):
            client.send(b"much too late")
        assert client.recv() == b""


def test_upstream_ends_first_in_tls12(world: Shared, tls12: ssl.SSLContext) -> None:
    """TLS 1.2: the upstream's end reaches the client as a goodbye after the whole answer."""
    before = outcome(world, "relayed")
    with world.connect("p256", tls12) as client:
        client.send(request_bytes("GET", "/ends"))
        assert client.response().body == b"all of it"
        assert client.recv() == b""
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="relayed")


def test_early_answer_during_an_upload(world: Shared, either: ssl.SSLContext) -> None:
    """An upstream that refuses a large body before it has come is heard by the client that sends it."""
    with world.connect("p256", either) as client:
        client.send(b"POST /early HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n")
        expected = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nno, thank you"
        assert client.exchange((pattern(16_384) for _ in range(300)), len(expected)) == expected


def test_end_without_goodbye_resets_the_upstream(world: Shared, either: ssl.SSLContext) -> None:
    """A bare FIN may be an attacker's truncation: the upstream must not take it for the end."""
    before = outcome(world, "truncated")
    with world.connect("p256", either) as client:
        path = unique("/silent")
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        client.fin()
        eventually(lambda: seen.end, "the upstream's end")
        assert seen.end == "reset"
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="truncated")


def test_reset_of_the_client_resets_the_upstream(world: Shared, either: ssl.SSLContext) -> None:
    """A client that breaks off is no client that is done."""
    with world.connect("p256", either) as client:
        path = unique("/silent")
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        client.reset()
        eventually(lambda: seen.end, "the upstream's end")
        assert seen.end == "reset"


def test_reset_of_the_upstream_is_no_clean_end(world: Shared, either: ssl.SSLContext) -> None:
    """An answer that broke off reaches the client as a break: never with a close_notify."""
    before = outcome(world, "upstream_reset")
    with world.connect("p256", either) as client:
        client.send(request_bytes("GET", "/reset"))
        with pytest.raises((Truncated, ConnectionResetError)):
            client.response()
    world.proxy.wait_metric(OUTCOMES, before + 1, outcome="upstream_reset")


def test_garbage_after_the_handshake(world: Shared, either: ssl.SSLContext) -> None:
    """Bytes that are no record break the connection, also towards the upstream, and no other."""
    with world.connect("p256", either) as client, world.connect("p256", either) as other:
        path = unique("/silent")
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        eventually(lambda: seen.end, "the upstream's end")
        assert seen.end == "reset"
        assert other.get("/").status == 200


def test_record_with_a_flipped_bit(world: Shared, tls12: ssl.SSLContext, tls13: ssl.SSLContext) -> None:
    """A record that was tampered with never reaches the upstream, and the close is delayed (blinding)."""
    before = outcome(world, "client_bad_record")
    with world.connect("p256", tls12) as old, world.connect("p256", tls13) as new:
        started = time.monotonic()
        for client in (old, new):  # both at a time: most of it is waiting
            client.write(request_bytes("GET", "/tampered"))
            record = bytearray(client._outgoing.read())
            record[-1] ^= 1
            client.sock.sendall(record)
        for client in (old, new):
            with pytest.raises((Truncated, OSError)):  # ssl.SSLError is an OSError
                client.recv()
            assert 0.5 < time.monotonic() - started < 10, "s2n itself wants 10 to 30 s"
    world.proxy.wait_metric(OUTCOMES, before + 2, outcome="client_bad_record")
    assert not any("/tampered" in seen.requests for seen in world.upstream.connections)


# -- what s_client can do beside --------------------------------------------------------------


def interactive(world: Shared, version: str, *dialogue: tuple[str, str]) -> str:
    """Type lines into s_client, each when its output (`-msg`) shows what the line before led to."""
    command = [
        require("openssl"), "s_client", "-connect", f"127.0.0.1:{world.proxy.ports['p256']}", version,
        "-CAfile", str(world.identities.ca), "-servername", "localhost", "-crlf", "-msg",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        output = bytearray()

        def read() -> None:
            while part := stdout.read(4096):
                output.extend(part)

        def shows(text: str) -> bool:
            return text.encode() in output

        reading = threading.Thread(target=read)
        reading.start()
        try:
            for text, line in dialogue:
                eventually(partial(shows, text), f"{text!r} in s_client's output")
                stdin.write(line.encode())
            process.wait(TIMEOUT)
        finally:
            process.kill()
            reading.join()
        return output.decode(errors="replace")


CONNECTED = "---\nSSL handshake has read"
REQUEST = "GET /closes HTTP/1.1\n\n"


def test_key_update(world: Shared) -> None:
    """TLS 1.3: a client that changes its keys, and asks for ours to change, is served on."""
    output = interactive(world, "-tls1_3", (CONNECTED, "K\n"), (", KeyUpdate", REQUEST))
    assert output.count(", KeyUpdate") == 2, "one each way"
    assert "all of it" in output


def test_renegotiation_is_not_taken_up(world: Shared) -> None:
    """TLS 1.2: a client that renegotiates ends with an error; it never hangs, and others are served."""
    output = interactive(world, "-tls1_2", (CONNECTED, "R\n"))
    assert "RENEGOTIATING" in output
    assert output.count(", ServerHelloDone") == 1
    world.proxy.wait_idle()


def test_bytes_and_connects_are_counted(world: Shared, any_version: ssl.SSLContext) -> None:
    """Relayed bytes of both directions and the connect times are counted."""
    before = world.proxy.metrics()
    with world.connect("p256", any_version) as client:
        assert client.get("/bytes/100000").body == pattern(100_000)
        client.close_notify()
    world.proxy.wait_idle()
    after = world.proxy.metrics()
    grown = {
        direction: after.value("offload_relay_bytes_total", direction=direction)
        - before.value("offload_relay_bytes_total", direction=direction)
        for direction in ("to_upstream", "to_client")
    }
    assert 100_000 < grown["to_client"] < 100_200
    assert 40 < grown["to_upstream"] < 200
    counts = [scrape.value("offload_upstream_connect_seconds_count") for scrape in (before, after)]
    assert all(later == earlier + 1 for earlier, later in pairwise(counts))
