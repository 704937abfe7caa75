"""Much data: it arrives whole and in order, and a side that does not read makes the other wait, not the proxy swell."""

from __future__ import annotations

import hashlib
import random
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pytest

from tests.integration.clients import TlsClient, request_bytes
from tests.integration.conftest import Shared
from tests.integration.upstreams import PATTERN, pattern, unique
from tests.support import eventually, until_still
from tests.support.proxy import resident_bytes, stopped

SIZE = 100_000_000
GROWTH_MOST = 20_000_000
"""Bytes that a worker may grow by while 100 MB pass a side that does not read."""


class Sending(threading.Thread):
    """Sends records from a thread, so that the test can see how far it came; join it by `with`."""

    def __init__(self, client: TlsClient, records: Iterator[bytes], together: int = 1) -> None:
        """`together` records are written to the socket at a time."""
        super().__init__()
        self._client, self._records, self._together = client, records, together
        self.sent = 0

    def run(self) -> None:
        waiting = 0
        for record in self._records:
            self._client.write(record)
            waiting += 1
            if waiting == self._together:
                self._client.flush()
                waiting = 0
            self.sent += len(record)
        self._client.flush()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._client.sock.close()
        self.join()


def pieces(size: int, piece: int) -> Iterator[bytes]:
    """`size` bytes of the known pattern, in pieces."""
    data = memoryview(PATTERN * 2)
    start = 0
    while start < size:
        offset, length = start % len(PATTERN), min(piece, size - start)
        yield bytes(data[offset : offset + length])
        start += length


@contextmanager
def bounded_memory(shared: Shared) -> Iterator[None]:
    """No worker grows by more than `GROWTH_MOST` in this block."""
    pids = shared.proxy.worker_pids()
    before = {pid: resident_bytes(pid) for pid in pids}
    yield
    grown = {pid: resident_bytes(pid) - before[pid] for pid in pids}
    assert max(grown.values()) < GROWTH_MOST, grown


def test_100_mb_to_a_slow_client(world: Shared, tls13: ssl.SSLContext) -> None:
    """While the client does not read the upstream has to wait; then every byte arrives."""
    path = unique(f"/bytes/{SIZE}")
    checksum, received = hashlib.sha256(), 0
    with world.connect("p256", tls13) as client, bounded_memory(world):
        client.send(request_bytes("GET", path))
        seen = world.upstream.wait_for(path)
        stalled = until_still(lambda: seen.sent, "an upstream whose client does not read")
        assert stalled < SIZE / 2
        assert client.head().status == 200
        while received < SIZE:
            if received < SIZE / 2 <= received + 65536:
                assert until_still(lambda: seen.sent, "the upstream, half-way") < SIZE
            part = client.recv(65536)
            assert part
            checksum.update(part)
            received += len(part)
    expected = hashlib.sha256()
    for piece in pieces(SIZE, len(PATTERN)):
        expected.update(piece)
    assert checksum.digest() == expected.digest()


def test_100_mb_to_a_slow_upstream(world: Shared, tls13: ssl.SSLContext) -> None:
    """While the upstream does not read the client has to wait; then every byte arrives."""
    path = unique("/paused")
    expected = hashlib.sha256()
    for piece in pieces(SIZE, len(PATTERN)):
        expected.update(piece)
    with world.connect("p256", tls13) as client, bounded_memory(world):
        head = f"POST {path} HTTP/1.1\r\nContent-Length: {SIZE}\r\n\r\n"
        client.send(head.encode())
        world.upstream.wait_for(path)
        with Sending(client, pieces(SIZE, 65536)) as sending:
            assert until_still(lambda: sending.sent, "a client whose upstream does not read") < SIZE / 2
            world.upstream.release.set()
        assert client.response().body.decode() == expected.hexdigest()


def test_client_that_breaks_off_while_the_upstream_does_not_read(
    world: Shared, either: ssl.SSLContext
) -> None:
    """A reset is noticed also by a connection whose client is not being read from."""
    path = unique("/paused")
    with world.connect("p256", either) as client:
        client.send(f"POST {path} HTTP/1.1\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        seen = world.upstream.wait_for(path)
        assert client.send_until_blocked(PATTERN) < SIZE
        client.reset()
    world.proxy.wait_idle()
    world.upstream.release.set()
    eventually(lambda: seen.end == "reset", "the upstream is reset")


@pytest.mark.parametrize("record", [1, 97, 1023, 1024, 5000, 16_384])
def test_records_of_any_size_to_a_slow_upstream(world: Shared, either: ssl.SSLContext, record: int) -> None:
    """Small records, many to a packet, none left lying when the upstream begins to read again."""
    size = min(8_000_000, record * 30_000)
    path = unique("/paused")
    with world.connect("p256", either) as client:
        head = f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n"
        client.send(head.encode())
        world.upstream.wait_for(path)
        with Sending(client, pieces(size, record), together=max(1, 100_000 // record)) as sending:
            until_still(lambda: sending.sent, "the client")
            world.upstream.release.set()
        assert client.response().body.decode() == hashlib.sha256(pattern(size)).hexdigest()


@pytest.mark.parametrize("record", [40, 97, 1000])
def test_nothing_is_left_lying_in_the_tls_library(world: Shared, either: ssl.SSLContext, record: int) -> None:
    """Bodies of all lengths around the buffers' sizes, each there at once before the worker reads, are relayed
    to the last byte: what the library has taken off the socket is told by no event."""
    workers = world.proxy.worker_pids()
    with world.connect("p256", either) as client:
        for size in range(49_000, 70_000, 610):
            body = pattern(size)
            client.write(f"POST /sha256 HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode())
            for start in range(0, size, record):
                client.write(body[start : start + record])
            with stopped(workers):
                client.flush()
            assert client.response().body.decode() == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("size", [100, 50_000, 200_000])
def test_goodbye_behind_many_small_records(world: Shared, tls13: ssl.SSLContext, size: int) -> None:
    """A close_notify that comes together with the last records ends the direction after them, not before."""
    workers = world.proxy.worker_pids()
    with world.connect("p256", tls13) as client:
        client.write(request_bytes("GET", "/eof"))
        for piece in pieces(size, 90):
            client.write(piece)
        with stopped(workers):
            client.close_notify()
        answer = client.response().body.decode()
    assert answer == f"{size} {hashlib.sha256(pattern(size)).hexdigest()}"


def test_random_records_both_ways_at_once(world: Shared, either: ssl.SSLContext) -> None:
    """An echo of records of all sizes, while both directions are busy, is the same as what was sent."""
    chance = random.Random(8)
    sizes = [chance.choice((1, 50, 1000, 1024, 4096, 16_384, 60_000)) for _ in range(1500)]
    data = pattern(sum(sizes))

    def records() -> Iterator[bytes]:
        start = 0
        for size in sizes:
            yield data[start : start + size]
            start += size

    with world.connect("p256", either) as client:
        client.send(request_bytes("GET", "/echo"))
        assert client.head().status == 200
        assert client.exchange(records(), len(data)) == data
