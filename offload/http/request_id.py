"""Names for requests, by which log lines, error pages and the application's log are matched. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

_SIZE = 16
_BATCH = 256
_WELL_FORMED = re.compile(rb"[0-9A-Za-z._~+/=:@-]{1,128}")


class RequestIds:
    """Makes ids of 32 hexadecimal digits: 128 random bits, fetched for many at a time."""

    __slots__ = ("_digits", "_position", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """`random(size)` gives unguessable bytes (os.urandom)."""
        self._random = random
        self._digits = b""
        self._position = 0

    def make(self) -> bytes:
        """The next one."""
        start = self._position
        if start == len(self._digits):
            self._digits = self._random(_SIZE * _BATCH).hex().encode()
            start = 0
        self._position = end = start + 2 * _SIZE
        return self._digits[start:end]


def is_well_formed(request_id: bytes) -> bool:
    """Whether a trusted peer's id can be kept: short, and harmless in a header and a log."""
    return _WELL_FORMED.fullmatch(request_id) is not None
