"""The poller: each event reaches the handler of its socket, and never that of another."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from offload import poller as poller_module
from offload.poller import HUP, IN, OUT, Handler, Poller
from tests.offload.turns import HandTurnedLoop


class Bench:
    """A poller on a loop turned by hand, and socket pairs."""

    def __init__(self) -> None:
        self.loop = HandTurnedLoop()
        self.failed: list[Handler] = []
        self.poller = Poller(self.loop.as_loop, self.failed.append)
        self._sockets: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A watched end (not yet watched) and the other end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._sockets += [ours, theirs]
        return ours, theirs

    def close(self) -> None:
        """Close what is open."""
        self.poller.shut_down()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A poller and its loop."""
    with contextlib.closing(Bench()) as made:
        yield made


def reader(sock: socket.socket, into: list[bytes]) -> Callable[[int], None]:
    """A handler that reads all."""

    def on_event(_events: int) -> None:
        into.append(sock.recv(100))

    return on_event


def test_events_reach_the_handler_of_their_socket(bench: Bench) -> None:
    """What comes on one socket is told to its handler only, as long as something is unread."""
    (a, to_a), (b, to_b) = bench.pair(), bench.pair()
    got_a: list[bytes] = []
    got_b: list[bytes] = []
    bench.poller.add(a.fileno(), IN, reader(a, got_a))
    bench.poller.add(b.fileno(), IN, reader(b, got_b))
    to_a.send(b"1")
    bench.loop.run()
    to_b.send(b"2")
    bench.loop.run()
    assert (got_a, got_b) == ([b"1"], [b"2"])


def test_what_was_quiet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once the poller has looked again, could have seen everything, and found nothing."""
    (a, to_a), (b, to_b) = bench.pair(), bench.pair()
    poller, looks = bench.poller, bench.poller.looks
    seen: list[tuple[bool, bool]] = []

    def on_event(_events: int) -> None:
        b.recv(100)
        seen.append((poller.was_quiet(a.fileno(), looks), poller.was_quiet(b.fileno(), looks)))

    poller.add(a.fileno(), IN, reader(a, []))
    poller.add(b.fileno(), IN, on_event)
    assert not poller.was_quiet(a.fileno(), looks)
    to_b.send(b"1")
    bench.loop.run()
    to_a.send(b"2")
    to_b.send(b"2")
    bench.loop.run()
    monkeypatch.setattr(poller_module, "EVENTS_PER_TURN", 1)
    to_b.send(b"3")
    bench.loop.run()
    assert seen == [(True, False), (False, False), (False, False)]


def test_what_is_left_unread_is_told_again(bench: Bench) -> None:
    """Level-triggered: a handler may take its share and return."""
    ours, theirs = bench.pair()
    got: list[bytes] = []
    bench.poller.add(ours.fileno(), IN, lambda _events: got.append(ours.recv(1)))
    theirs.send(b"abc")
    assert bench.loop.run() == 3
    assert got == [b"a", b"b", b"c"]


def test_hand_over(bench: Bench) -> None:
    """From one turn to the next another handler has the socket."""
    ours, theirs = bench.pair()
    first: list[bytes] = []
    second: list[bytes] = []
    bench.poller.add(ours.fileno(), IN, reader(ours, first))
    theirs.send(b"1")
    bench.loop.run()
    bench.poller.hand_over(ours.fileno(), reader(ours, second))
    theirs.send(b"2")
    bench.loop.run()
    assert (first, second) == ([b"1"], [b"2"])


def test_watching_for_room(bench: Bench) -> None:
    """OUT is told while the socket takes bytes, and no longer once it is not asked for."""
    ours, _theirs = bench.pair()
    seen: list[int] = []

    def on_event(events: int) -> None:
        seen.append(events)
        bench.poller.watch(ours.fileno(), IN)

    bench.poller.add(ours.fileno(), IN | OUT, on_event)
    bench.loop.run()
    assert seen == [OUT]


def test_parked_socket_is_silent_also_when_its_peer_hangs_up(bench: Bench) -> None:
    """A hang-up that nobody acts on must not keep the loop spinning; it is told when asked for again."""
    ours, theirs = bench.pair()
    seen: list[int] = []

    def on_event(events: int) -> None:
        seen.append(events)
        bench.poller.watch(ours.fileno(), 0)

    bench.poller.add(ours.fileno(), IN, on_event)
    bench.poller.watch(ours.fileno(), 0)
    theirs.send(b"x")
    theirs.close()
    assert bench.loop.run() == 0
    assert seen == []
    bench.poller.watch(ours.fileno(), IN)
    bench.loop.run()
    assert len(seen) == 1
    assert seen[0] & (IN | HUP) == IN | HUP


def test_parked_socket_can_be_removed_closed_and_watched_anew(bench: Bench) -> None:
    """Its number comes back with a new socket, which starts unparked."""
    ours, _ = bench.pair()
    bench.poller.add(ours.fileno(), IN, lambda _events: None)
    bench.poller.watch(ours.fileno(), 0)
    bench.poller.remove(ours.fileno())
    bench.poller.add(ours.fileno(), IN, lambda _events: None)
    bench.poller.watch(ours.fileno(), 0)
    number = ours.fileno()
    bench.poller.close(ours)
    again, theirs = socket.socketpair()
    with again, theirs:
        assert number in (again.fileno(), theirs.fileno())
        mine, other = (again, theirs) if again.fileno() == number else (theirs, again)
        got: list[bytes] = []
        bench.poller.add(number, IN, reader(mine, got))
        other.send(b"new")
        bench.loop.run()
        assert got == [b"new"]
        bench.poller.remove(number)


def test_close_within_a_turn_keeps_the_number_until_its_end(bench: Bench) -> None:
    """A socket closed by another's handler gets no event, and a new one can't take its number this turn."""
    pairs = [bench.pair() for _ in range(2)]
    called: list[int] = []
    accepted: list[socket.socket] = []

    def handler(mine: int, other: int) -> Callable[[int], None]:
        def on_event(_events: int) -> None:
            called.append(mine)
            bench.poller.close(pairs[mine][0])
            bench.poller.close(pairs[other][0])
            fresh, peer = socket.socketpair()
            accepted.extend((fresh, peer))
            peer.send(b"for the new one")
            bench.poller.add(fresh.fileno(), IN, lambda _events: called.append(99))

        return on_event

    numbers = {ours.fileno() for ours, _ in pairs}
    for mine, other in ((0, 1), (1, 0)):
        bench.poller.add(pairs[mine][0].fileno(), IN, handler(mine, other))
        pairs[mine][1].send(b"x")
    bench.loop.turn()
    assert len(called) == 1, "the other one was closed before its event came up"
    assert {sock.fileno() for sock in accepted}.isdisjoint(numbers)
    assert [ours.fileno() for ours, _ in pairs] == [-1, -1], "closed at the end of the turn"
    bench.loop.turn()
    assert called[1:] == [99]
    for sock in accepted:
        sock.close()


def test_closing_twice_within_a_turn(bench: Bench) -> None:
    """An abort after an end does no harm."""
    ours, theirs = bench.pair()

    def on_event(_events: int) -> None:
        bench.poller.close(ours)
        bench.poller.close(ours)

    bench.poller.add(ours.fileno(), IN, on_event)
    theirs.send(b"x")
    bench.loop.run()
    assert bench.failed == []


def test_failing_handler_is_reported_and_the_others_go_on(bench: Bench) -> None:
    """One connection's bug does not take the turn from the rest, nor the end-of-turn closes."""
    pairs = [bench.pair() for _ in range(3)]
    got: list[bytes] = []

    def fails(_events: int) -> None:
        pairs[1][0].recv(100)
        raise RuntimeError("a bug")

    bench.poller.add(pairs[0][0].fileno(), IN, reader(pairs[0][0], got))
    bench.poller.add(pairs[1][0].fileno(), IN, fails)
    bench.poller.add(pairs[2][0].fileno(), IN, reader(pairs[2][0], got))
    for _, theirs in pairs:
        theirs.send(b"x")
    bench.loop.run()
    assert got == [b"x", b"x"]
    assert bench.failed == [fails]


def test_more_sockets_than_events_in_a_turn(bench: Bench) -> None:
    """Those that don't fit into a turn come in the next: none is starved."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = poller_module.EVENTS_PER_TURN + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * count)), hard))
    got: list[bytes] = []
    for _ in range(count):
        ours, theirs = bench.pair()
        bench.poller.add(ours.fileno(), IN, reader(ours, got))
        theirs.send(b"x")
    assert bench.loop.run() == 2
    assert len(got) == count


def test_soon_is_the_next_turn(bench: Bench) -> None:
    """What a handler asks for soon is not done within its own turn."""
    called: list[str] = []
    bench.poller.soon(lambda: called.append("soon"))
    assert called == []
    bench.loop.turn()
    assert called == ["soon"]
