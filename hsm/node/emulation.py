"""Makes a token as slow, narrow and faulty as an HSM can be.

`Schedule` decides when a signature is done (pure: time is an argument); `EmulatedToken` waits.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
from collections.abc import Callable
from time import monotonic

from hsm import keyless
from hsm.config import Emulation
from hsm.inventory import KeyDetails
from hsm.node.token import Expired, OnResult, Token, TokenError
from hsm.signing import SignatureScheme


class Schedule:
    """A queue in front of `parallel` servers that start at most `signatures_per_second`; 0: unlimited."""

    def __init__(self, signatures_per_second: float, parallel: int) -> None:
        self.pace(signatures_per_second)
        self._next_start = 0.0
        self._free_at = [0.0] * parallel

    def pace(self, signatures_per_second: float) -> None:
        """From now on it starts at most so many; those who wait already keep their time."""
        self._interval = 1 / signatures_per_second if signatures_per_second else 0.0

    def admit(self, now: float, seconds: float, expires: float | None) -> float | None:
        """When a request that arrives at `now` is done; None if it would start after `expires`.

        `seconds` is how long it takes. A request that is not admitted takes no capacity.
        """
        start = max(now, self._next_start)
        if self._free_at:
            start = max(start, self._free_at[0])
        if expires is not None and start > expires:
            return None
        done = start + seconds
        if self._free_at:
            heapq.heapreplace(self._free_at, done)
        if self._interval:
            self._next_start = start + self._interval
        return done


def service_time(emulation: Emulation, draw: float) -> float:
    """How many seconds a signature takes; `draw` in [-1, 1) chooses the jitter."""
    return max(0.0, emulation.latency + draw * emulation.jitter) * emulation.slow_factor


class EmulatedToken:
    """Another token, seen through an emulation that can change while it runs."""

    def __init__(self, token: Token, emulation: Emulation) -> None:
        self.kind = token.kind
        self._token = token
        self.emulation = emulation

    @property
    def emulation(self) -> Emulation:
        """How it behaves; requests that wait already keep their time."""
        return self._emulation

    @emulation.setter
    def emulation(self, emulation: Emulation) -> None:
        self._emulation = emulation
        self._schedule = Schedule(emulation.signatures_per_second, emulation.parallel)

    def keys(self) -> list[tuple[bytes, frozenset[int]]]:
        """The other token's keys."""
        return self._token.keys()

    def details(self) -> list[KeyDetails]:
        """The other token's."""
        return self._token.details()

    def update_gauges(self) -> None:
        """The other token's."""
        self._token.update_gauges()

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],
        on_result: OnResult,
    ) -> None:
        """Like the other token's, but later, or wrong."""
        now = monotonic()
        done = self._schedule.admit(now, service_time(self._emulation, random.uniform(-1, 1)), expires())
        if done is None:
            on_result(Expired())
        elif done <= now:
            self._sign_now(ski, scheme, digest, expires, on_result)
        else:
            asyncio.get_running_loop().call_later(
                done - now, self._sign_now, ski, scheme, digest, expires, on_result
            )

    def _sign_now(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],
        on_result: OnResult,
    ) -> None:
        emulation = self._emulation
        if emulation.error_rate and random.random() < emulation.error_rate:
            on_result(TokenError(keyless.ERR_INTERNAL, "emulated failure"))
            return
        if emulation.wrong_rate and random.random() < emulation.wrong_rate:
            digest = os.urandom(len(digest))  # a well-formed signature, of something else
        self._token.sign(ski, scheme, digest, expires, on_result)
