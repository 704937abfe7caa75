"""Labs that clean up, and rounds in the right order."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

import pytest

from loadtest import harness
from loadtest.harness import Round, Side, held_connections, interleave, measure, run_client
from loadtest.results import LoadResult
from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import Lab, LoadTestError, MissingToolError, accepts, free_port, require
from loadtest.targets.peers import Nginx, Terminator, start_peer, start_upstream

DONE = LoadResult("handshakes", 10, 10, 2000, 0.5)


def processes(*answers: Sequence[int]) -> Callable[[], Mapping[str, Sequence[int]]]:
    """What a side says when asked for its worker: each answer once, the last for ever."""
    left = list(answers)
    return lambda: {"worker": left.pop(0) if len(left) > 1 else left[0]}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_rounds_alternate_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def fake_measure(side: Side) -> Round:
        order.append(side.name)
        return Round(DONE, {"worker": len(order)})

    monkeypatch.setattr(harness, "measure", fake_measure)
    sides = [Side(name, lambda: DONE, processes([])) for name in "ABC"]
    said: list[str] = []
    comparison = interleave(sides, 2, said.append)
    assert "".join(order) == "ABC" + "ABC" + "CBA"
    samples = comparison.samples("A", lambda entry: entry.per_connection("worker"))
    assert samples == [(4, 10), (9, 10)]
    assert said == ["warm-up of A, B, C", "round 1 of 2", "round 2 of 2"]


def test_units_of_a_round() -> None:
    entry = Round(DONE, {"worker": 700})
    assert entry.per_connection("worker") == (700, 10)
    assert entry.per_request("worker") == (700, 10)
    assert entry.per_megabyte("worker") == (700, 0.002)
    assert entry.rate == (10, 0.5)


def test_the_cpu_of_a_round_is_the_work_done_in_it() -> None:
    def work() -> LoadResult:
        sum(range(500_000))
        return DONE

    assert measure(Side("busy", work, processes([os.getpid()]))).cpu["worker"] > 0


def test_a_replaced_process_spoils_a_round() -> None:
    side = Side("ours", lambda: DONE, processes([os.getpid()], [os.getppid()]))
    with pytest.raises(LoadTestError, match="ours: a process was replaced"):
        measure(side)


def test_failed_connections_spoil_a_round() -> None:
    failed = LoadResult("handshakes", 9, 9, 1800, 0.5, {"timeout": 1})
    with pytest.raises(LoadTestError, match=r"ours: 1 connections failed: .*timeout"):
        measure(Side("ours", lambda: failed, processes([])))


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


def test_nobody_listens_on_a_free_port() -> None:
    assert not accepts(free_port())


def test_the_client_runs_in_a_process_of_its_own(nginx: Nginx) -> None:
    result = run_client("handshakes", nginx.ports[0], {"connections": 4, "concurrency": 2})
    assert (result.connections, result.errors) == (4, {})


def test_a_client_that_says_nothing_is_an_error() -> None:
    with pytest.raises(LoadTestError, match=r"failed with code 2: .*--no-such-option"):
        run_client("handshakes", 1, {"no_such_option": 1})


@pytest.mark.parametrize("requests", [0, 1])
def test_idle_connections_are_held(nginx: Nginx, requests: int) -> None:
    with held_connections(nginx.ports[0], 20, {"concurrency": 4, "requests": requests}) as opened:
        assert (opened.connections, opened.requests) == (20, 20 * requests)


def test_idle_connections_that_can_not_be_opened() -> None:
    with (
        pytest.raises(LoadTestError, match=r"0 of 3 connections opened: .*econnrefused"),
        held_connections(free_port(), 3, {}),
    ):
        pass


def test_idle_connections_that_the_server_ends(lab: Lab) -> None:
    terminator = Terminator.in_memory(make_credentials(lab.directory, "p256"))
    peer = start_peer(lab, "peer", start_upstream(lab), [terminator])
    with (
        pytest.raises(LoadTestError, match="the server ended idle connections"),
        held_connections(peer.ports[0], 2, {}),
    ):
        peer.server.stop()
