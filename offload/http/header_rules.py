"""Headers that the operator has set or removed, compiled once into names and lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """What becomes of a message's headers: drop those with these names, then append these lines."""

    dropped: frozenset[bytes] = frozenset()
    """Names in lower case."""
    lines: bytes = b""
    """Each with its CRLF."""

    def followed_by(self, more: HeaderChanges) -> HeaderChanges:
        """Both; where they disagree, `more` counts: a route's, after its listener's."""
        kept = (
            line
            for line in self.lines.splitlines(keepends=True)
            if line.partition(b":")[0].lower() not in more.dropped
        )
        return HeaderChanges(self.dropped | more.dropped, b"".join(kept) + more.lines)


def compile_changes(to_set: Mapping[str, str], to_remove: Iterable[str] = ()) -> HeaderChanges:
    """Of names and values that are known to be good ones. What is set replaces what came."""
    return HeaderChanges(
        frozenset(name.lower().encode() for name in (*to_set, *to_remove)),
        b"".join(f"{name}: {value}\r\n".encode() for name, value in to_set.items()),
    )


def hsts(max_age: float, *, subdomains: bool, preload: bool) -> HeaderChanges:
    """Strict-Transport-Security (RFC 6797 section 6.1), which may be said over TLS only (section 7.2)."""
    value = f"max-age={max_age:.0f}" + "; includeSubDomains" * subdomains + "; preload" * preload
    return compile_changes({"Strict-Transport-Security": value})
