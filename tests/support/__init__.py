"""What tests share: helpers that start and stop the real programs, and wait for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL = 0.01


def eventually(condition: Callable[[], T], what: str, within: float = 15.0) -> T:
    """The condition's value as soon as it is true; fails after `within` seconds, naming `what` never came."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(_POLL)


def until_still(progress: Callable[[], int], what: str, seconds: float = 0.3, within: float = 20.0) -> int:
    """What `progress` has come to when it has begun, and not changed for some `seconds`."""
    deadline = time.monotonic() + within
    last, since = progress(), time.monotonic()
    while True:
        time.sleep(_POLL)
        value, now = progress(), time.monotonic()
        if value != last:
            last, since = value, now
        elif value and now - since >= seconds:
            return value
        if now >= deadline:
            raise AssertionError(f"not within {within:g} s: {what} comes to a standstill (at {value})")
