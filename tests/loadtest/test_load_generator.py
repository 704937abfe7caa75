"""Open-loop load against real servers: the timetable is kept, and a stall is seen."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import CLIENT_LIMIT, Generator, Order
from loadtest.generate.records import COMPLETED, Record, summarise
from loadtest.generate.schedule import Phase
from loadtest.generate.target import Target
from loadtest.targets.agreement import POLICY_TLS12
from loadtest.targets.certificates import make_credentials
from loadtest.targets.lab import Lab, LoadTestError, free_port
from loadtest.targets.peers import LARGE_BYTES, SMALL_BYTES, Nginx, start_upstream
from loadtest.targets.proxy import start_node, start_proxy
from tests.support import eventually
from tests.support.proxy import state_of


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections (its kernel does) and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def carry_out(order: Order) -> list[Record]:
    """Run an order in this process, at once."""
    generator = Generator(order, lambda _count, _latencies: None)
    try:
        generator.run(time.monotonic())
        return generator.records
    finally:
        generator.close()


def test_several_processes_keep_one_timetable(nginx: Nginx) -> None:
    """Every arrival once, at the time that the schedule says, and all counted in the reports."""
    started = []
    order = Order(targets=(Target(port=nginx.ports[0]),), phases=(Phase(1, 60),))
    with Fleet(order, 2, lambda count, _: started.append(count.started)) as fleet:
        fleet.begin()
        records = fleet.wait(10)
    assert [round(record.intended * 60 - 0.5) for record in records] == list(range(60))
    assert {record.outcome for record in records} == {COMPLETED}
    assert all(0 <= record.lag <= record.handshake <= record.total for record in records)
    assert sum(started) == 60
    assert fleet.cpu_seconds > 0


def test_a_stall_of_the_server_is_seen_whole(nginx: Nginx) -> None:
    """Those who were due while the server stood still have waited from when they were due.

    A closed loop would have seen one slow answer, and none of those that it did not ask for.
    """
    (worker,) = nginx.processes()["worker"]
    order = Order(targets=(Target(port=nginx.ports[0]),), phases=(Phase(1.5, 100),))
    with Fleet(order) as fleet:
        fleet.begin()
        stop = threading.Timer(0.5, halt, (worker, edges := list[float]()))
        go = threading.Timer(1.1, go_on, (worker, edges, stop))
        stop.start()
        go.start()
        try:
            records = fleet.wait(10)
        finally:
            go.join()
        stopped, going = (edge - fleet.start for edge in edges)
    latency = summarise(records, 0, 1.5).handshake
    assert latency.count == 150
    assert latency.highest > 0.5
    waited = [record for record in records if stopped < record.intended < going]
    assert len(waited) > 10
    assert all(record.handshake > going - record.intended for record in waited)


def halt(pid: int, edges: list[float]) -> None:
    """Stop a process, and note from when on it does nothing."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T", "the process stops")
    edges.append(time.monotonic())


def go_on(pid: int, edges: list[float], halting: threading.Timer) -> None:
    """Note until when it did nothing, and let it go on."""
    halting.join()
    edges.append(time.monotonic())
    os.kill(pid, signal.SIGCONT)


def test_a_silent_server_does_not_slow_the_arrivals(silent: int) -> None:
    """They go on being started, and each fails at its time limit."""
    order = Order(targets=(Target(port=silent, timeout=0.2),), phases=(Phase(0.5, 100),))
    records = carry_out(order)
    assert [record.outcome for record in records] == ["timeout"] * 50
    assert all(record.handshake == -1 and record.total >= 0.2 for record in records)


def test_connections_beyond_the_limit_are_the_clients_fault(silent: int) -> None:
    """They are recorded, not left out: otherwise the load would be less than it says."""
    order = Order(targets=(Target(port=silent, timeout=0.2),), phases=(Phase(0.1, 0, burst=5),), most_open=3)
    assert sorted(record.outcome for record in carry_out(order)) == [CLIENT_LIMIT] * 2 + ["timeout"] * 3


def test_a_server_that_is_not_there() -> None:
    order = Order(targets=(Target(port=free_port()),), phases=(Phase(0.1, 50),))
    assert [record.outcome for record in carry_out(order)] == ["econnrefused"] * 5


def test_poisson_arrivals_are_the_same_in_every_process() -> None:
    """The shares of a fleet together are the timetable of one process."""
    order = Order(targets=(Target(port=1),), phases=(Phase(10, 20),), poisson=True, seed=7)
    shares = [replace(order, index=index, count=3) for index in range(3)]
    together = sorted(at for share in shares for at in share.timetable(0.0).due(100.0))
    assert together == list(order.timetable(0.0).due(100.0))
    assert len(together) > 100


def test_a_share_of_arrivals_resumes(lab: Lab) -> None:
    """Once the server has given sessions; each of them is resumed once. Without tickets there is none."""
    credentials = make_credentials(lab.directory, "p256")
    upstream = start_upstream(lab)
    node = start_node(lab, "a", lab.directory / "keys")
    chains, web = {"p256": credentials.chain}, upstream.ports[0]
    proxy = start_proxy(lab, "proxy", chains, web, [node])
    # One after the other, so that there is a session to resume however slow the machine is.
    target = Target(port=proxy.ports["p256"], resumed=0.5, again=True)
    records = carry_out(Order(targets=(target,), phases=(Phase(0.5, 0, burst=1),)))
    assert {record.outcome for record in records} == {COMPLETED}
    assert not records[0].resumed
    assert 0.2 <= sum(record.resumed for record in records) / len(records) <= 0.8
    proxy = start_proxy(lab, "without", chains, web, [node], gives_tickets=False)
    target = Target(port=proxy.ports["p256"], resumed=1.0, again=True)
    records = carry_out(Order(targets=(target,), phases=(Phase(0.2, 0, burst=1),)))
    assert {(record.outcome, record.resumed) for record in records} == {(COMPLETED, False)}


def test_kinds_of_clients_come_at_their_shares(nginx: Nginx) -> None:
    """TLS 1.2 and 1.3, small requests and large bodies, in one timetable."""
    port = nginx.ports[0]
    old = Target(port=port, share=3, policy=POLICY_TLS12, cipher="", requests=2)
    records = carry_out(Order(targets=(old, Target(port=port, path="/large")), phases=(Phase(1, 100),)))
    assert {record.outcome for record in records} == {COMPLETED}
    assert 50 <= sum(record.kind == 0 for record in records) <= 90
    served = {(record.kind, record.requests, record.body_bytes) for record in records}
    assert served == {(0, 2, 2 * SMALL_BYTES), (1, 1, LARGE_BYTES)}


def reach(target: Target) -> Record:
    """What becomes of one client."""
    (record,) = carry_out(Order(targets=(target,), phases=(Phase(0.1, 10),)))
    return record


def test_a_handshake_and_a_request_with_openssl(s_server: int) -> None:
    record = reach(Target(port=s_server))
    assert (record.outcome, record.requests, record.body_bytes) == (COMPLETED, 1, len("hello"))
    assert 0 < record.handshake < record.total


def test_a_server_that_closes_early(s_server: int) -> None:
    """This server closes after one response: the second request of a connection fails."""
    record = reach(Target(port=s_server, requests=2))
    assert (record.failed, record.requests) == (True, 1)


def test_another_cipher_is_a_failure_unless_any_will_do(s_server: int) -> None:
    assert reach(Target(port=s_server, policy="20190801")).outcome == "wrong_cipher"
    assert reach(Target(port=s_server, policy="20190801", cipher="")).outcome == COMPLETED


def test_an_absent_page_is_counted_by_its_status(nginx: Nginx) -> None:
    assert reach(Target(port=nginx.ports[0], path="/absent")).outcome == "http_404"


def test_clients_that_come_again_until_the_load_ends(nginx: Nginx) -> None:
    """A closed loop: as many at a time as came in the beginning, and not one after the end."""
    target = Target(port=nginx.ports[1], again=True)
    records = carry_out(Order(targets=(target,), phases=(Phase(0.5, 0, burst=4),)))
    assert {record.outcome for record in records} == {COMPLETED}
    assert len(records) > 4
    assert max(record.intended for record in records) < 0.5


def test_a_slow_client_takes_the_time_of_its_bytes(nginx: Nginx) -> None:
    """The server's certificate alone takes so long to arrive; the handshake succeeds all the same."""
    certificate = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", nginx.ports[0])))
    target = Target(port=nginx.ports[0], bytes_per_second=4000, path="/small")
    (record,) = carry_out(Order(targets=(target,), phases=(Phase(0.1, 10),)))
    assert record.outcome == COMPLETED
    assert len(certificate) / target.bytes_per_second < record.handshake < record.total


def test_a_slow_client_of_a_server_that_is_not_there() -> None:
    target = Target(port=free_port(), bytes_per_second=4000)
    records = carry_out(Order(targets=(target,), phases=(Phase(0.1, 10),)))
    assert [record.outcome for record in records] == ["econnrefused"]


def test_a_client_that_stays_after_its_request(nginx: Nginx) -> None:
    target = Target(port=nginx.ports[0], hold=0.3)
    (record,) = carry_out(Order(targets=(target,), phases=(Phase(0.1, 10),)))
    assert record.outcome == COMPLETED
    assert record.total - record.handshake >= 0.3


def test_an_order_survives_json() -> None:
    order = Order(targets=(Target(port=1, path="/x"),), phases=(Phase(1, 2, 3), Phase(4, 5, burst=6)), seed=9)
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_too_many_arrivals_are_refused() -> None:
    order = Order(targets=(Target(port=1),), phases=(Phase(3600, 1000),))
    with pytest.raises(LoadTestError, match="more than 1,000,000 arrivals in one process"):
        order.timetable(0.0)


def test_a_generator_that_fails_is_an_error_with_its_last_words() -> None:
    order = Order(targets=(Target(port=1, policy="no-such-policy"),), phases=(Phase(1, 1),))
    with pytest.raises(LoadTestError, match=r"a load generator failed: .*no-such-policy"), Fleet(order):
        pass


def test_a_generator_whose_fleet_is_gone_ends() -> None:
    """It is ready, and then its standard input ends: nothing is sent to anybody."""
    order = Order(targets=(Target(port=1),), phases=(Phase(1, 1),))
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.generate.generator"],
        input=json.dumps(order.to_json()) + "\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (1, '{"ready":true}', "")
