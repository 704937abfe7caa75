"""Sockets that stay open for a while: bounded in number, oldest closed first, and in time."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from offload import lingering as lingering_module
from offload.lingering import DRAIN_SECONDS, HELD_MOST, Lingering
from offload.poller import IN, Poller
from tests.offload.turns import HandTurnedLoop


class Bench:
    """Lingering with a clock and a loop that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = HandTurnedLoop()
        self.poller = Poller(self.loop.as_loop, lambda handler: None)
        self.lingering = Lingering(self.poller, lambda: self.now)
        self._peers: list[socket.socket] = []

    def watched(self) -> tuple[socket.socket, socket.socket]:
        """A socket that the poller watches, and its peer."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._peers.append(theirs)
        self.poller.add(ours.fileno(), IN, lambda _events: pytest.fail("its old handler was called"))
        return ours, theirs

    def close(self) -> None:
        """Close what is open."""
        self.lingering.close()
        self.poller.shut_down()
        for sock in self._peers:
            sock.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Nothing lingers yet."""
    with contextlib.closing(Bench()) as made:
        yield made


def said(sock: socket.socket) -> bytes | None:
    """What a peer reads now: None for nothing, b"" for an end."""
    try:
        return sock.recv(100)
    except BlockingIOError:
        return None


def is_open(sock: socket.socket) -> bool:
    """Whether the other end holds its socket still."""
    try:
        return sock.send(b"?") == 1
    except BrokenPipeError:
        return False


def test_held_socket_is_open_and_silent_until_its_time(bench: Bench) -> None:
    """Blinding: the peer sees nothing, and what it sends wakes nobody."""
    ours, theirs = bench.watched()
    bench.lingering.hold(ours, 2.0)
    theirs.send(b"hello?")
    assert bench.loop.run() == 0
    bench.lingering.expire(101.9)
    assert said(theirs) is None
    assert len(bench.lingering) == 1
    bench.lingering.expire(102.0)
    assert not is_open(theirs)
    assert len(bench.lingering) == 0


def test_drained_socket_says_its_end_and_discards(bench: Bench) -> None:
    """The peer reads an end at once, and what it sends still is taken until it closes."""
    ours, theirs = bench.watched()
    bench.lingering.drain(ours)
    assert said(theirs) == b""
    for _ in range(50):
        theirs.send(b"x" * 4000)
        bench.loop.run()
    assert len(bench.lingering) == 1
    theirs.close()
    bench.loop.run()
    assert len(bench.lingering) == 0
    assert ours.fileno() == -1


def test_drained_socket_is_closed_in_the_end(bench: Bench) -> None:
    """A peer that never closes is not waited for longer than DRAIN_SECONDS."""
    ours, theirs = bench.watched()
    bench.lingering.drain(ours)
    bench.lingering.expire(100 + DRAIN_SECONDS - 0.1)
    assert is_open(theirs)
    bench.lingering.expire(100 + DRAIN_SECONDS)
    assert not is_open(theirs)


def test_parked_socket_can_be_drained_and_held(bench: Bench) -> None:
    """Whatever was watched before: a socket that was not to be read is drained all the same."""
    ours, theirs = bench.watched()
    bench.poller.watch(ours.fileno(), 0)
    bench.lingering.drain(ours)
    theirs.send(b"x")
    theirs.close()
    bench.loop.run()
    assert len(bench.lingering) == 0
    ours, theirs = bench.watched()
    bench.poller.watch(ours.fileno(), 0)
    bench.lingering.hold(ours, 1.0)
    bench.lingering.expire(101)
    assert not is_open(theirs)


def test_drain_of_a_broken_socket_closes_it(bench: Bench) -> None:
    """Where there is nobody to say goodbye to, nothing lingers."""
    ours, _ = bench.watched()
    ours.shutdown(socket.SHUT_RDWR)
    sock, peer = socket.socketpair()
    peer.close()
    bench.poller.add(sock.fileno(), IN, lambda _events: None)
    sock.close()
    bench.lingering.drain(ours)
    bench.loop.run()
    assert len(bench.lingering) == 0


@pytest.mark.parametrize("way", ["hold", "drain"])
def test_oldest_is_closed_first_when_there_are_too_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An attacker can't collect more than the bound, for each of the two reasons."""
    monkeypatch.setattr(lingering_module, "HELD_MOST", 3)
    peers = []
    for number in range(5):
        ours, theirs = bench.watched()
        bench.now = 100 + number
        if way == "hold":
            bench.lingering.hold(ours, 50 - number)  # the oldest, not the one that is due next
        else:
            bench.lingering.drain(ours)
        peers.append(theirs)
        assert len(bench.lingering) == min(number + 1, 3)
    assert [is_open(peer) for peer in peers] == [False, False, True, True, True]


def test_the_two_reasons_have_a_bound_each(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad clients that are held can't push out good ones that read their tail."""
    monkeypatch.setattr(lingering_module, "HELD_MOST", 2)
    good = [bench.watched() for _ in range(2)]
    for ours, _ in good:
        bench.lingering.drain(ours)
    for _ in range(5):
        bench.lingering.hold(bench.watched()[0], 10)
    assert len(bench.lingering) == 4
    assert all(is_open(theirs) for _, theirs in good)


def test_the_bound_is_the_documented_one() -> None:
    """At most 1,000 sockets are kept for blinding."""
    assert HELD_MOST == 1000


def test_close_closes_all(bench: Bench) -> None:
    """At the end of the process nothing is left."""
    held, drained = bench.watched(), bench.watched()
    bench.lingering.hold(held[0], 10)
    bench.lingering.drain(drained[0])
    bench.lingering.close()
    assert len(bench.lingering) == 0
    assert not is_open(held[1])
    assert not is_open(drained[1])
