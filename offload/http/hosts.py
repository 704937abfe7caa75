"""Names of hosts: what a Host field says, and what a certificate is good for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_HOST = re.compile(rb"(?:\[([^]]*)\]|([^:]*))(?::[0-9]*)?")

NAME_MOST = 255
"""Bytes of a Host field for which answers are kept: names are no longer (RFC 1035 §2.3.4)."""
REMEMBERED = 1024
"""Answers that are kept, so that a client with ever new names takes up no memory."""


def name_of(host: bytes) -> str:
    """The name in a Host field that is known to be a good one: lower case, without port and final dot."""
    match = _HOST.fullmatch(host)
    if match is None:
        return ""
    return (match[1] or match[2] or b"").decode("ascii", "replace").lower().removesuffix(".")


def above(name: str) -> str:
    """The pattern for the names beside this one: `*.example.org` for `a.example.org`."""
    return f"*.{name.partition('.')[2]}"


class CertifiedNames:
    """Whether requests for a host may come over a connection that was opened for another name.

    421 Misdirected Request (RFC 9110 §15.5.20) keeps apart what clients were told is apart: whoever
    verified the certificate of one name has not verified another one's.
    """

    __slots__ = ("_answers", "_certificates")

    def __init__(self, certificates: Iterable[Sequence[str]]) -> None:
        """The names of each certificate of a listener (`*.` for any one label), the default one first."""
        self._certificates = [frozenset(name.lower() for name in names) for names in certificates]
        self._answers: dict[tuple[str, bytes], bool] = {}

    def covers(self, server_name: str, host: bytes) -> bool:
        """Whether a client that asked for `server_name` by SNI (empty: for none) may ask for this Host.

        It may if it said the same twice, or if the certificate that it was shown is good for both.
        """
        key = server_name, host
        answer = self._answers.get(key)
        if answer is None:
            answer = self._covers(server_name.lower().removesuffix("."), name_of(host))
            if len(host) <= NAME_MOST:
                if len(self._answers) >= REMEMBERED:
                    self._answers.clear()
                self._answers[key] = answer
        return answer

    def _covers(self, server_name: str, name: str) -> bool:
        if name == server_name or not server_name:
            return True
        shown = [names for names in self._certificates if is_among(server_name, names)]
        return any(is_among(name, names) for names in shown or self._certificates[:1])


def is_among(name: str, names: frozenset[str]) -> bool:
    """Whether one of a certificate's names (`*.` for any one label) is this one, or stands for it."""
    return name in names or above(name) in names
