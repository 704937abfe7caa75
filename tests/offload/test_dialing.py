"""Connecting without waiting, and the words for failures."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from pathlib import Path

import pytest

from offload.dialing import dial, failure_word
from offload.upstream import Server
from tests.offload.servers import server_of, tcp, unix
from tests.support.hsm_support import free_port


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ENOENT, "refused"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EMFILE, "exhausted"),
        (errno.EADDRNOTAVAIL, "exhausted"),
        (errno.ECONNRESET, "error"),
        (0, "error"),
    ],
)
def test_failure_words(code: int, word: str) -> None:
    """A small fixed set: a label must not grow with what the network invents."""
    assert failure_word(code) == word


def test_dial_tcp() -> None:
    """On this machine a connection stands at once; the socket does not block and does not wait for more."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        sock, connected = dial(server_of(tcp(listening.getsockname()[1])))
        with contextlib.closing(sock), contextlib.closing(listening.accept()[0]) as peer:
            assert connected
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.send(b"x")
            assert peer.recv(1) == b"x"


def test_dial_unix(tmp_path: Path) -> None:
    """A unix socket by its path."""
    path = str(tmp_path / "web.sock")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(path)
        listening.listen()
        sock, connected = dial(server_of(unix(path)))
        with contextlib.closing(sock):
            assert connected


def refusal(server: Server) -> int:
    """The errno with which a server refuses, at once or a moment later."""
    try:
        sock, connected = dial(server)
    except OSError as error:
        return error.errno or 0
    with contextlib.closing(sock):
        assert not connected
        select.select([], [sock], [], 5)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_dial_that_is_refused(tmp_path: Path) -> None:
    """A closed port and a path that is not there fail with an errno that has a word."""
    with free_port() as port:
        assert failure_word(refusal(server_of(tcp(port)))) == "refused"
    with pytest.raises(OSError, match="ENOENT") as caught:
        dial(server_of(unix(str(tmp_path / "none.sock"))))
    assert failure_word(caught.value.errno or 0) == "refused"


def test_dial_of_a_full_unix_socket_does_not_wait(tmp_path: Path) -> None:
    """Its queue is full: EAGAIN is a failure there, for no event would tell of room."""
    path = str(tmp_path / "web.sock")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        listening.bind(path)
        listening.listen(0)
        server = server_of(unix(path))
        stack.enter_context(contextlib.closing(dial(server)[0]))  # the queue has room for one
        with pytest.raises(OSError, match="EAGAIN"):
            dial(server)


def test_dial_that_hangs_is_pending() -> None:
    """A server whose queue is full answers nothing: the socket is handed out unconnected."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(socket.socket()))
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        dialed = []
        for _ in range(5):
            sock, connected = dial(server_of(tcp(listening.getsockname()[1])))
            stack.enter_context(contextlib.closing(sock))
            dialed.append(connected)
        assert not dialed[-1]
