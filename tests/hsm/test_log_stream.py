"""Writing log lines to whatever stderr is: never waiting, losing whole lines, and saying how many."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from hsm.log_stream import LogStream

Make = Callable[[TextIO], LogStream]
LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe of one page: the reading end, and the writing end as the stream that a process inherits."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with open(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


@pytest.fixture
def log_stream() -> Iterator[Make]:
    """Makes log streams, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(inherited: TextIO) -> LogStream:
            return stack.enter_context(contextlib.closing(LogStream(inherited)))

        yield make


def put(stream: LogStream, line: str) -> None:
    """One line, as structlog writes it."""
    stream.write(line)
    stream.flush()


def test_a_full_pipe_loses_lines_and_no_time(pipe: tuple[int, TextIO], log_stream: Make) -> None:
    """What does not fit is counted; when it is read again, lines are whole, and come again."""
    reader, inherited = pipe
    stream = log_stream(inherited)
    for _ in range(100):
        put(stream, LINE)
    assert stream.lost == 60
    assert os.read(reader, 65536).decode() == LINE * 40
    put(stream, "again\n")
    assert os.read(reader, 65536) == b"again\n"
    assert stream.lost == 60


def test_a_long_line_is_finished_before_the_next(pipe: tuple[int, TextIO], log_stream: Make) -> None:
    """A traceback longer than the pipe: its rest comes first, and lines meanwhile are lost."""
    reader, inherited = pipe
    stream = log_stream(inherited)
    long = "y" * 6000 + "\n"
    put(stream, long)
    put(stream, "lost\n")
    assert stream.lost == 1
    received = os.read(reader, 65536)
    put(stream, "next\n")
    received += os.read(reader, 65536)
    assert received.decode() == long + "next\n"


def test_the_inherited_descriptor_stays_as_it_was(pipe: tuple[int, TextIO], log_stream: Make) -> None:
    """O_NONBLOCK on it would surprise whoever it is shared with."""
    _, inherited = pipe
    log_stream(inherited)
    assert not fcntl.fcntl(inherited, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_reader_that_is_gone(pipe: tuple[int, TextIO], log_stream: Make) -> None:
    """A broken pipe is lost lines, before and after it breaks."""
    reader, inherited = pipe
    before = log_stream(inherited)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, reader)
    os.close(null)
    for stream in (before, log_stream(inherited)):
        put(stream, LINE)
        assert stream.lost == 1


def test_a_socket_that_nobody_reads(log_stream: Make) -> None:
    """The journal of systemd is one."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.dup(ours.fileno()), "w") as inherited:
        stream = log_stream(inherited)
        put(stream, LINE)
        assert theirs.recv(1000).decode() == LINE
        while not stream.lost:
            put(stream, LINE)
        assert theirs.recv(100).decode() == LINE


def test_a_file_is_shared_with_other_writers(tmp_path: Path, log_stream: Make) -> None:
    """Two processes that inherited one file go on after each other's lines."""
    with (tmp_path / "log").open("w") as inherited:
        for text in ("one\n", "two\n"):
            put(log_stream(inherited), text)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_stream_without_descriptor(log_stream: Make) -> None:
    """Such as a test's; and text that is no UTF-8 is written as an escape."""
    text = io.StringIO()
    put(log_stream(text), "a\udc80\n")
    assert text.getvalue() == "a\\udc80\n"
