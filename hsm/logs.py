"""Logs by structlog: for people on a terminal, JSON lines otherwise; one line per event, on stderr.

A flood of equal events is cut: the first few in a window are told, the rest are counted and the
count rides on the next line. The level can change while the process runs.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from time import monotonic
from typing import Any, TextIO

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FLOOD_WINDOW = 10.0
"""Seconds in which equal events are counted."""
FLOOD_TOLD = 5
"""Equal events in one window that are told."""
_SAME = ("event", "reason", "node", "listener", "name", "slot", "worker")
"""Events with the same values of these are equal."""


class _Stream:
    """stderr that outlives a full disk or a closed pipe: losing a log line must not end the server."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            pass

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass


class FloodGuard:
    """Counts equal events by windows of time; pure: time is an argument."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, ...], tuple[float, int]] = {}

    def admit(self, key: tuple[str, ...], now: float) -> bool:
        """Whether this event is among the first of its window."""
        start, count = self._windows.get(key, (now, 0))
        if now - start >= FLOOD_WINDOW:
            start, count = now, 0
        self._windows[key] = (start, count + 1)
        return count < FLOOD_TOLD

    def take_suppressed(self, now: float) -> dict[str, int]:
        """How many of which event were not told, in windows that are over; forgets them."""
        suppressed: dict[str, int] = {}
        for key, (start, count) in list(self._windows.items()):
            if now - start >= FLOOD_WINDOW:
                del self._windows[key]
                if count > FLOOD_TOLD:
                    name = " ".join(filter(None, key))
                    suppressed[name] = suppressed.get(name, 0) + count - FLOOD_TOLD
        return suppressed


class _Gate:
    """The processor that drops what is below the level or part of a flood."""

    def __init__(self) -> None:
        self.level = LEVELS["info"]
        self.flood = FloodGuard()

    def __call__(
        self,
        _logger: Any,
        method: str,
        event: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        if LEVELS.get(method, 100) < self.level:
            raise structlog.DropEvent
        now = monotonic()
        suppressed = self.flood.take_suppressed(now)
        if not self.flood.admit(tuple(str(event.get(name, "")) for name in _SAME), now):
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        return event


_gate = _Gate()


def set_level(level: str) -> None:
    """Tell from this level on (one of LEVELS) from now on. Raises KeyError."""
    _gate.level = LEVELS[level]


def configure(process: str, level: str = "info") -> structlog.typing.FilteringBoundLogger:
    """Set logging up for this process and return its logger."""
    set_level(level)
    terminal = sys.stderr.isatty()
    processors: list[Any] = [
        _gate,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(default=str),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),  # _gate filters: its level can change
        logger_factory=structlog.PrintLoggerFactory(_Stream(sys.stderr)),  # type: ignore[arg-type]  # has write and flush
        cache_logger_on_first_use=False,
    )
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(process=process)
    return logger
