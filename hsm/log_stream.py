"""Log lines to a descriptor whose reader may be slow, stalled or gone: a line is lost, never time.

A pipe that nobody reads would block its writer, and with it every connection of a worker.
O_NONBLOCK belongs to what was opened, not to the descriptor, so setting it on an inherited
stderr would change the parent's too: a pipe or a terminal is opened once more instead.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TextIO

Write = Callable[[bytes], int]


class LogStream:
    """Takes text like a file; each `flush` is to end a line."""

    def __init__(self, stream: TextIO) -> None:
        self._opened: socket.socket | io.FileIO | None = None
        self._write = self._writer(stream)
        self._line: list[str] = []
        self._rest = b""
        """What a long line's reader has not taken yet."""
        self.lost = 0
        """Lines that could not be written."""

    def write(self, text: str) -> None:
        """Gather a line."""
        self._line.append(text)

    def flush(self) -> None:
        """Write the line, or lose it."""
        data = "".join(self._line).encode(errors="backslashreplace")
        self._line.clear()
        if self._rest:
            self._rest = self._rest[self._push(self._rest) :]
        sent = 0 if self._rest else self._push(data)
        if sent:
            self._rest = data[sent:]  # the half of a line would spoil the next one
        else:
            self.lost += 1

    def _push(self, data: bytes) -> int:
        try:
            return self._write(data)
        except (OSError, ValueError):  # no room, no disk, nobody there, closed
            return 0

    def _writer(self, stream: TextIO) -> Write:
        """How to write to what is behind a text stream without waiting."""
        try:
            fd = stream.fileno()
            mode = os.fstat(fd).st_mode
        except (OSError, ValueError, AttributeError):  # no descriptor: a test's, say
            return lambda data: _write_text(stream, data)
        if stat.S_ISSOCK(mode):
            self._opened = sock = socket.socket(fileno=os.dup(fd))
            return lambda data: sock.send(data, socket.MSG_DONTWAIT)
        if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
            return lambda data: os.write(fd, data)
        try:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # not this user's, or the reader is gone
            return lambda data: os.write(fd, data) if select.select([], [fd], [], 0)[1] else 0
        self._opened = io.FileIO(own, "w")
        return lambda data: os.write(own, data)

    def close(self) -> None:
        """Free what was opened; the stream itself is its owner's."""
        if self._opened is not None:
            self._opened.close()


def _write_text(stream: TextIO, data: bytes) -> int:
    stream.write(data.decode())
    stream.flush()
    return len(data)
