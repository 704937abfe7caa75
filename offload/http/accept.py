"""Which of a few media types a client likes best (RFC 9110 section 12.5.1). Pure, and bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

EXAMINED_MOST = 1024
"""Bytes of an Accept header that are looked at."""
_RANGE = re.compile(rb"[ \t]*([!#$%&'*+.^_`|~0-9a-z-]+)/([!#$%&'*+.^_`|~0-9a-z-]+)[ \t]*")
_QUALITY = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_ANY = b"*"


def preferred(accept: bytes, offered: Sequence[bytes]) -> bytes:
    """The type to send: that of the highest quality, then the one named most exactly, then the first.

    The first, too, when none would do: an error page in the wrong form is better than none.
    """
    if not accept:
        return offered[0]
    ranges = list(_ranges(accept[:EXAMINED_MOST].lower()))
    return max(offered, key=lambda each: _weight(each, ranges))


_Range = tuple[int, bytes, float]
"""How exact, the range, its quality."""


def _ranges(accept: bytes) -> Iterator[_Range]:
    for part in accept.split(b","):
        media, *parameters = part.split(b";")
        if (found := _RANGE.fullmatch(media)) is None:
            continue
        exactness = (found[1] != _ANY) + (found[2] != _ANY)
        yield exactness, found[1] + b"/" + found[2], _quality(parameters)


def _quality(parameters: Sequence[bytes]) -> float:
    for parameter in parameters:
        if found := _QUALITY.fullmatch(parameter.strip(b" \t")):
            return float(found[1])
    return 1.0


def _weight(offer: bytes, ranges: Sequence[_Range]) -> tuple[float, int]:
    """Quality and exactness by the most exact range that has it."""
    patterns = (offer, offer.partition(b"/")[0] + b"/*", b"*/*")
    exactness, quality = max(
        ((exactness, quality) for exactness, pattern, quality in ranges if pattern in patterns),
        default=(0, 0.0),
    )
    return quality, exactness if quality else 0
