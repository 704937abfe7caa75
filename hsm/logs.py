"""Logs by structlog: for people on a terminal, JSON lines otherwise; one line per event, on stderr.

A flood of equal events is cut: the first few in a window are told, the rest are counted and the
count rides on the next line. The level can change while the process runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, MutableMapping
from time import monotonic
from typing import Any, Literal

from hsm.log_stream import LogStream


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Imports in this block find no module of this name."""
    found = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's own word for it
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not None:
            sys.modules[name] = found


with _without("rich"):  # structlog would colour tracebacks with it: 70 ms of every process's start
    import structlog

Logger = structlog.typing.FilteringBoundLogger
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
Form = Literal["auto", "json", "console"]
FLOOD_WINDOW = 10.0
"""Seconds in which equal events are counted."""
FLOOD_TOLD = 5
"""Equal events in one window that are told."""
_SAME = ("event", "reason", "node", "listener", "name", "slot", "worker")
"""Events with the same values of these are equal."""


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


class _Render:
    """The processor that makes text of an event: for people, or for programs."""

    def __init__(self) -> None:
        self._console: Any = structlog.dev.ConsoleRenderer()
        self._json: Any = structlog.processors.JSONRenderer(default=str)
        self.choose("auto")

    def choose(self, form: Form) -> None:
        console = sys.stderr.isatty() if form == "auto" else form == "console"
        self._renderer = self._console if console else self._json
        self.stamp = structlog.processors.TimeStamper(fmt="iso", utc=not console)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        text: str = self._renderer(logger, method, event)
        return text


_gate = _Gate()
_render = _Render()
_stream: LogStream | None = None


def set_level(level: str) -> None:
    """Tell from this level on (one of LEVELS) from now on. Raises KeyError."""
    _gate.level = LEVELS[level]


def set_form(form: Form) -> None:
    """Write lines for people, for programs, or as stderr suggests."""
    _render.choose(form)


def lost() -> int:
    """Lines that could not be written since the start."""
    return 0 if _stream is None else _stream.lost


def _stamp(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return _render.stamp(logger, method, event)


def every_line(process: str) -> Callable[..., object]:
    """A function `log(event, **fields)` for a log that is switched on by itself: no level, no flood."""
    logger = structlog.wrap_logger(
        structlog.WriteLogger(_stream),  # type: ignore[arg-type]  # has write and flush
        processors=[_stamp, _render],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    log: Callable[..., object] = logger.bind(process=process, level="info").info
    return log


def write_line(text: str) -> None:
    """A line of a log whose form is its own; it is lost rather than waited for."""
    if _stream is not None:
        _stream.write(text + "\n")
        _stream.flush()


def configure(process: str, level: str = "info") -> Logger:
    """Set logging up for this process and return its logger."""
    global _stream
    set_level(level)
    set_form("auto")
    if _stream is not None:
        _stream.close()
    _stream = LogStream(sys.stderr)
    processors: list[Any] = [
        _gate,
        structlog.processors.add_log_level,
        _stamp,
        structlog.processors.format_exc_info,
        _render,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),  # _gate filters: its level can change
        logger_factory=structlog.WriteLoggerFactory(_stream),  # type: ignore[arg-type]  # has write and flush
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger().bind(process=process)
    return logger
