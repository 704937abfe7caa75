"""Which of many things get a line in a log: a share of them, spread evenly. Pure."""

from __future__ import annotations


class Sample:
    """Takes the same share of any run of things, give or take one."""

    __slots__ = ("_due", "_share")

    def __init__(self, share: float) -> None:
        """`share` is from 0 (none) to 1 (all)."""
        self._share = share
        self._due = 0.0

    def takes_next(self) -> bool:
        """Whether the next one is in it."""
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True
