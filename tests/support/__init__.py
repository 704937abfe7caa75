"""What tests share: helpers that start and stop the real programs, and wait for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL, _POLL_MOST = 0.005, 0.05
"""Seconds between two looks: the longer the wait, the rarer, because many a look keeps others busy."""


def eventually(condition: Callable[[], T], what: str, within: float = 15.0) -> T:
    """The condition's value as soon as it is true; fails after `within` seconds, naming `what` never came."""
    started = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - started
        if waited >= within:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(min(max(_POLL, waited / 10), _POLL_MOST))


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
