"""A lab starts servers, tells of those that fail, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import sys

import pytest

from loadtest.targets.lab import Lab, LoadTestError, MissingToolError, accepts, free_port, require


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


CHILD = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)"
PARENT = (
    "import signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); signal.pause()"
)


def test_a_lab_ends_its_servers_and_their_children(lab: Lab) -> None:
    """The child's connection tells of its end, even to those who may not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        lab.start("parent", [*python(PARENT), CHILD, str(listener.getsockname()[1])])
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            directory = lab.directory
            lab.__exit__(None, None, None)
            assert connection.recv(1) == b""
    assert lab.servers == []
    assert not directory.exists()


def test_a_lab_cleans_up_after_an_exception() -> None:
    lab = Lab()

    def interrupted() -> None:
        with lab:
            lab.start("sleeper", python("import signal; signal.pause()"))
            assert lab.directory.exists()
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert lab.servers == []
    assert not lab.directory.exists()


def test_a_server_that_ends_early_is_quoted(lab: Lab) -> None:
    server = lab.start("broken", python("import sys; print('no such key'); sys.exit(3)"))
    with pytest.raises(LoadTestError, match="broken ended with code 3: no such key"):
        server.wait_until(lambda: False)
    assert lab.obituary() == "broken: no such key"


def test_a_server_that_is_never_ready(lab: Lab) -> None:
    server = lab.start("slow", python("import signal; signal.pause()"))
    with pytest.raises(LoadTestError, match=r"slow was not ready after 0 s: \(no output\)"):
        server.wait_until(lambda: False, timeout=0)


def test_a_tool_that_fails_is_quoted(lab: Lab) -> None:
    with pytest.raises(LoadTestError, match="failed with code 2: bad key"):
        lab.run(python("import sys; print('bad key'); sys.exit(2)"))


def test_a_missing_tool_names_the_remedy() -> None:
    with pytest.raises(MissingToolError, match="no-such-tool is missing: apt-get install it"):
        require("no-such-tool", "apt-get install it")


def test_what_servers_compile_is_kept(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    """Also where we may not: each server and generator would start in twice the time."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert lab.run(python("import sys; print(sys.dont_write_bytecode)")) == "False\n"


def test_nobody_listens_on_a_free_port() -> None:
    assert not accepts(free_port())
