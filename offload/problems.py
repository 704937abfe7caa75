"""Mistakes in a configuration, collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hsm.errors import ConfigurationError

T = TypeVar("T")


class Problems:
    """Collects mistakes, so that an operator sees all of them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """What `make` returns; None if it raised ConfigurationError, whose lines are kept."""
        try:
            return make(*arguments)
        except ConfigurationError as error:
            self.lines += str(error).splitlines()
            return None

    def raise_if_any(self) -> None:
        """Raise them all as one ConfigurationError."""
        if self.lines:
            raise ConfigurationError("\n".join(self.lines))
