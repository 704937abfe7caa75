"""The ring of session-ticket keys under simulated time: rotation, replicas, clocks that jump."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.tickets import KEY_SIZE, NAME_SIZE, SECRET_SIZE, TicketKey, TicketRing

HOUR = 3600
NOON = 500_000 * HOUR
"""A time of this century at which an hourly epoch begins."""

times = st.lists(
    st.one_of(st.integers(0, 40), st.integers(-40, 40).map(lambda hours: hours * HOUR)),
    min_size=1,
    max_size=30,
)
"""Steps of the clock: mostly forward by little, sometimes by hours in either direction."""


def randomness() -> Callable[[], bytes]:
    """Secrets that differ."""
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(SECRET_SIZE)


def ring(*shared: bytes, rotate: int = HOUR, lifetime: int = 4 * HOUR, now: int = NOON) -> TicketRing:
    """A ring that has been turned to `now`."""
    made = TicketRing(rotate, lifetime, shared)
    made.turn(now, randomness())
    return made


def encrypting(keys: list[TicketKey], now: int, rotate: int = HOUR) -> list[TicketKey]:
    """Those that s2n-tls encrypts with (s2n_get_ticket_encrypt_decrypt_key)."""
    return [key for key in keys if key.introduced <= now < key.introduced + rotate]


def decrypting(keys: list[TicketKey], now: int, lifetime: int = 4 * HOUR, rotate: int = HOUR) -> set[bytes]:
    """The names of those that s2n-tls decrypts with (s2n_find_ticket_key; see Context)."""
    return {key.name for key in keys if now < key.introduced + rotate + lifetime + rotate}


def test_one_key_encrypts_and_the_next_is_there_already() -> None:
    """At the start there are two keys: the epoch's, and the next one's, for clocks that are ahead."""
    keys = ring().keys("web", "off")
    assert [key.introduced for key in keys] == [NOON, NOON + HOUR]
    assert [(len(key.name), len(key.key)) for key in keys] == [(NAME_SIZE, KEY_SIZE)] * 2
    assert encrypting(keys, NOON) == keys[:1]


def test_nothing_changes_within_an_epoch() -> None:
    """`turn` says when there is something to tell the workers."""
    made = ring()
    before = made.keys("web", "off")
    assert not made.turn(NOON + HOUR - 1, randomness())
    assert made.keys("web", "off") == before
    assert made.turn(NOON + HOUR, randomness())


def test_next_key_encrypts_also_when_the_rotation_comes_late() -> None:
    """Workers that are told nothing for an epoch go on with the key that they have, and then stop."""
    made = ring()
    keys = made.keys("web", "off")
    assert encrypting(keys, NOON + 2 * HOUR - 1) == keys[1:]
    assert encrypting(keys, NOON + 2 * HOUR) == []
    made.turn(NOON + HOUR, randomness())
    assert made.keys("web", "off")[:2] == keys


def test_ticket_is_accepted_for_its_lifetime_and_then_its_key_is_gone() -> None:
    """Hour by hour: a ticket of the last second of an epoch lives four hours, the key not one epoch more."""
    made = ring()
    (key, _) = made.keys("web", "off")
    accepted = []
    for hour in range(8):
        made.turn(NOON + hour * HOUR, randomness())
        accepted.append(key.name in decrypting(made.keys("web", "off"), NOON + hour * HOUR))
    assert accepted == [True] * 5 + [False] * 3


def test_listeners_and_settings_have_keys_of_their_own() -> None:
    """A ticket of one listener is none on another, nor on the same with other client certificates."""
    made = ring()
    sets = [made.keys(*which) for which in (("a", "off"), ("b", "off"), ("a", "required"), ("a\0off", ""))]
    names = [key.name for keys in sets for key in keys]
    assert len(set(names)) == len(names) == 8
    assert len({key.key for keys in sets for key in keys}) == 8


def test_replicas_with_one_secret_agree_without_talking() -> None:
    """Keys follow from secret and time alone."""
    assert ring(b"s" * 32).keys("web", "off") == ring(b"s" * 32, now=NOON + 5).keys("web", "off")
    assert ring(b"s" * 32).keys("web", "off") != ring(b"t" * 32).keys("web", "off")
    other_rotation = ring(b"s" * 32, rotate=HOUR // 2).keys("web", "off")
    assert not {k.name for k in other_rotation} & {k.name for k in ring(b"s" * 32).keys("web", "off")}


@pytest.mark.parametrize("skew", [-HOUR + 1, -1, 0, 1, HOUR - 1])
def test_replicas_with_different_clocks_accept_each_others_tickets(skew: int) -> None:
    """Up to an epoch apart, in both directions, just before and after a rotation."""
    for now in (NOON - 1, NOON, NOON + 1):
        ours, theirs = ring(b"s" * 32, now=now), ring(b"s" * 32, now=now + skew)
        (key,) = encrypting(theirs.keys("web", "off"), now + skew)
        assert key.name in decrypting(ours.keys("web", "off"), now)


def test_rollout_of_a_new_secret_breaks_nothing() -> None:
    """[old] → [old, new] → [new, old] → [new]: at each step all replicas accept what each encrypts."""
    old, new = b"o" * 32, b"n" * 32
    steps = [(old,), (old, new), (new, old), (new,)]
    for before, after in itertools.pairwise(steps):
        rings = [ring(*before), ring(*after)]
        for encrypts, decrypts in itertools.product(rings, rings):
            (key,) = encrypting(encrypts.keys("web", "off"), NOON)
            accepted = decrypting(decrypts.keys("web", "off"), NOON)
            assert key.name in accepted


@given(st.integers(0, 6 * HOUR), st.integers(0, 5 * HOUR))
def test_second_secret_never_encrypts_and_accepts_for_a_lifetime(now: int, age: int) -> None:
    """A ticket of a replica with the other secret first is good for its lifetime, whatever the time."""
    issued, now = NOON + now, NOON + now + age
    (key,) = encrypting(ring(b"b" * 32, now=issued).keys("web", "off"), issued)
    keys = ring(b"a" * 32, b"b" * 32, now=now).keys("web", "off")
    assert [k.name for k in encrypting(keys, now)] == [
        k.name for k in encrypting(ring(b"a" * 32, now=now).keys("web", "off"), now)
    ]
    # Nor later, when the rotation is late by almost an epoch.
    assert key.name not in {k.name for k in encrypting(keys, now // HOUR * HOUR + 2 * HOUR - 1)}
    assert key.name in decrypting(keys, now) or age > 4 * HOUR
    assert {k.epoch for k in keys if k.name == key.name} <= {issued // HOUR}


def test_keys_of_1970_have_an_intro_time() -> None:
    """Before the clock is set: s2n-tls would take an intro time of 0 for now."""
    assert [key.introduced for key in ring(b"a" * 32, b"b" * 32, now=0).keys("web", "off")] == [1, 1, HOUR, 1]


def test_too_many_keys_are_refused() -> None:
    """s2n-tls holds 48; what can't fit is told before anything is started."""
    TicketRing(HOUR, 46 * HOUR)
    with pytest.raises(ValueError, match="49 ticket keys"):
        TicketRing(HOUR, 47 * HOUR)
    with pytest.raises(ValueError, match="54 ticket keys"):
        TicketRing(HOUR, 4 * HOUR, [bytes([n]) * 32 for n in range(9)])


def test_next_process_goes_on_with_the_same_keys() -> None:
    """Export and restore hand the ring over; one with other epochs begins afresh."""
    made = ring()
    heir = TicketRing(HOUR, 4 * HOUR)
    heir.restore(made.export())
    assert heir.turn(NOON + 1, randomness())
    assert heir.keys("web", "off") == made.keys("web", "off")
    stranger = TicketRing(2 * HOUR, 4 * HOUR)
    stranger.restore(made.export())
    stranger.turn(NOON, lambda: b"x" * SECRET_SIZE)
    assert not {k.key for k in stranger.keys("web", "off")} & {k.key for k in made.keys("web", "off")}


def test_shared_secrets_are_not_exported() -> None:
    """The next process reads them from the same file."""
    assert ring(b"s" * 32).export()["secrets"] == {}


def test_repr_shows_no_key() -> None:
    """A STEK does not get into a log or a traceback by accident."""
    key = ring().keys("web", "off")[0]
    assert key.key.hex() not in repr(key)
    assert repr(key.key) not in repr(key)


def _clock(steps: list[int]) -> Iterator[int]:
    now = NOON
    for step in steps:
        now = max(0, now + step)
        yield now


@given(times)
def test_whatever_the_clock_does_one_young_key_encrypts(steps: list[int]) -> None:
    """Forwards, backwards, asleep for a day: always one encrypting key, none from afar, never two alike."""
    made, new_secret = TicketRing(HOUR, 4 * HOUR), randomness()
    for now in _clock(steps):
        made.turn(now, new_secret)
        keys = made.keys("web", "off")
        assert len(encrypting(keys, now)) == 1
        assert all(now - 6 * HOUR < key.introduced <= now + HOUR for key in keys)
        assert len({key.name for key in keys}) == len({key.key for key in keys}) == len(keys) <= 48
        assert len(made.export()["secrets"]) == len(keys)


@given(times)
def test_shared_secrets_depend_on_the_time_alone(steps: list[int]) -> None:
    """Whatever way the clock came, replicas agree."""
    made = TicketRing(HOUR, 4 * HOUR, [b"a" * 32, b"b" * 32])
    for now in _clock(steps):
        made.turn(now, randomness())
        assert made.keys("web", "off") == ring(b"a" * 32, b"b" * 32, now=now).keys("web", "off")


@given(st.integers(1, 12 * HOUR))
def test_clock_that_steps_back_a_little_keeps_tickets_good(back: int) -> None:
    """The keys of the last epochs are still there after a step back, as far as they lie within a lifetime."""
    made, new_secret = TicketRing(HOUR, 4 * HOUR), randomness()
    for hour in range(6):
        made.turn(NOON + hour * HOUR, new_secret)
    before = {key.introduced: key for key in made.keys("web", "off")}
    now = NOON + 5 * HOUR + 1800 - back
    made.turn(now, new_secret)
    for key in made.keys("web", "off"):
        assert before.get(key.introduced, key) == key
