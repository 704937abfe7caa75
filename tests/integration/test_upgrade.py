"""A new process takes over from a running one, and nobody notices; or it can't, and the old one goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import sys
import venv
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hsm.errors import ConfigurationError
from offload.config import load
from offload.nodes import running_socket
from offload.runtime import directory_of
from tests.integration.clients import Load, TlsClient
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import free_port
from tests.support.proxy import (
    STOP_TIMEOUT,
    Proxy,
    children_of,
    is_running,
    listener,
    run_offload,
    state_of,
)

SECONDS = 60.0
"""Time limit of upgrades that are to succeed: far above what a loaded machine needs."""


@dataclass
class Site:
    """A proxy that is replaced by others, all of which write to one log."""

    proxy: Proxy
    base: dict[str, Any]
    context: ssl.SSLContext
    pids: list[int] = field(default_factory=list)
    """Of all main processes, oldest first."""

    @property
    def port(self) -> int:
        """Where clients connect to."""
        return self.proxy.ports["web"]

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        return self.pids[-1]

    def upgrade(self, **arguments: Any) -> int:
        """Have a new process take over; its pid."""
        said = self.proxy.command("upgrade", **{"program": None, "timeout": SECONDS, **arguments})
        self.pids.append(int(re.findall(r"process (\d+) ", said)[0]))
        return self.pid

    def refused(self, **arguments: Any) -> str:
        """Why no new process takes over."""
        with pytest.raises(ConfigurationError) as caught:
            self.upgrade(**arguments)
        return str(caught.value)

    def load(self) -> Load:
        """Connections one after the other, none of which may fail."""
        return Load(self.port, self.context, threads=2)

    def wait_ended(self, pid: int) -> None:
        """Wait until a main process has ended; the first one with code 0."""
        if pid == self.proxy.pid:
            assert self.proxy.wait() == 0
        eventually(lambda: not is_running(pid), f"process {pid} ends", STOP_TIMEOUT)

    def stop(self) -> None:
        """End the process that serves, and see that nothing is left."""
        if is_running(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        for pid in self.pids:
            self.wait_ended(pid)
        self.proxy.assert_clean()

    def kill(self) -> None:
        """End all, however they fare."""
        self.proxy.kill()
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_site(
    directory: Path, identities: Identities, upstream: Upstream, context: ssl.SSLContext, **changes: Any
) -> Iterator[Site]:
    """One that has not been replaced yet, with a node of its own; in the end nothing of it is left."""
    chain = identities["p256"].chain_path
    base = {
        "listeners": [listener("web", [chain], [upstream.address])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "watch_files": False,
        "limits": {"drain_timeout": "10s"},
        **changes,
    }
    with free_port() as admin_port:
        proxy = Proxy(directory, base, admin_port)
        site = Site(proxy, base, context, [proxy.pid])
        try:
            yield site
        except BaseException:
            site.kill()
            print(proxy.log[-20_000:])
            raise
        site.stop()


@pytest.fixture(scope="module")
def lasting(
    identities: Identities,
    upstream: Upstream,
    any_version: ssl.SSLContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The one of all tests of this module that leave some process serving."""
    with running_site(tmp_path_factory.mktemp("upgrade"), identities, upstream, any_version) as site:
        site.proxy.ready()
        yield site


@pytest.fixture
def site(lasting: Site) -> Iterator[Site]:
    """The lasting one; afterwards one process serves, with the configuration that it began with."""
    yield lasting
    lasting.proxy.write(lasting.base)
    lasting.proxy.command("reload")
    for pid in lasting.pids[:-1]:
        lasting.wait_ended(pid)
    lasting.proxy.wait_idle()
    assert lasting.proxy.get("/readyz").status == 200
    lasting.proxy.assert_clean()


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A program that says nothing, and writes its pid to a file `pid`."""
    program, told = tmp_path / "silent", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}\nexec sleep 60\n")
    program.chmod(0o700)
    return program


def test_nobody_notices(site: Site, tls12: ssl.SSLContext, tls13: ssl.SSLContext) -> None:
    """Two upgrades in a row under load: every connection succeeds, and tickets are good afterwards."""
    sessions = []
    for context in (tls12, tls13):
        with TlsClient.connect(site.port, context) as client:
            assert client.get("/").status == 200
            sessions.append((context, client.tls.session))
    with site.load() as load:
        load.wait_done(5)
        for workers in (2, 1):
            site.proxy.write({**site.base, "workers": workers})
            old = site.pid
            site.upgrade()
            assert len(site.proxy.worker_pids()) == workers
            site.wait_ended(old)
            load.wait_done(5)
    assert load.failed == []
    for context, session in sessions * 3:
        with TlsClient.connect(site.port, context, session=session) as client:
            assert client.get("/").status == 200
            assert client.tls.session_reused
    assert site.proxy.metrics().value("offload_resumptions_total") == len(sessions) * 3


def test_open_connections_stay_and_disabled_nodes_too(site: Site, tls13: ssl.SSLContext) -> None:
    """The old process ends after its last connection, told by a signal or not; disabled nodes stay disabled."""
    nodes = [*site.base["hsm"]["nodes"], {"name": "b", "address": "unix:/nowhere/b.sock"}]
    site.proxy.write({**site.base, "hsm": {"nodes": nodes}})
    site.proxy.command("reload")
    site.proxy.command("node", name="b", enabled=False)
    old, draining = site.pid, len(site.proxy.events("draining"))
    with TlsClient.connect(site.port, tls13) as client:
        assert client.get("/").status == 200
        site.upgrade()
        eventually(lambda: len(site.proxy.events("draining")) > draining, "the old process drains")
        shown = {each["name"]: each["enabled"] for each in site.proxy.status()["nodes"]}
        assert shown == {"a": True, "b": False}
        os.kill(old, signal.SIGTERM)
        assert client.get("/").status == 200
        assert is_running(old)
        client.close_notify()
    site.wait_ended(old)


def test_failed_upgrade_changes_nothing(
    site: Site, identities: Identities, silent: Path, tmp_path: Path
) -> None:
    """A configuration that is wrong, a key that no node has, a program that ends, hangs, or is none."""
    serving, ends = site.proxy.worker_pids(), tmp_path / "ends"
    ends.write_text("#!/bin/sh\nexit 3\n")
    ends.chmod(0o700)
    stranger = identities.issue("p256", keys=tmp_path).chain_path
    node = running_socket(directory_of(load(site.proxy.config), site.proxy.config), "a")
    with site.load() as clients:
        site.proxy.write(
            {
                **site.base,
                "listeners": [listener("web", [stranger], ["127.0.0.1:1"])],
                "hsm": {"nodes": [{"name": "a", "address": f"unix:{node}"}]},
            }
        )
        assert "the new process: no ready node holds key" in site.refused()
        site.proxy.write(site.base)
        assert "not ready within 1 s" in site.refused(program=str(silent), timeout=1)
        assert f"{ends} ended with code 3 and took nothing over" in site.refused(program=str(ends))
        clients.wait_done(5)
    assert clients.failed == []
    assert site.proxy.worker_pids() == serving


def test_command_line(site: Site, tmp_path: Path) -> None:
    """The command prints who serves now; what is wrong, one line each, with exit code 2."""
    options = ["upgrade", "--config", str(site.proxy.config)]
    failed = run_offload(*options, "--exec", str(tmp_path / "nothing"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == f"error: {tmp_path / 'nothing'}: cannot run it: No such file or directory\n"
    done = run_offload(*options)
    assert done.returncode == 0, done.stderr
    found = re.match(r"process (\d+) \(offload [0-9.a-z]+\) serves now; process (\d+) ends when", done.stdout)
    assert found is not None, done.stdout
    assert int(found[2]) == site.pid
    site.pids.append(int(found[1]))


def begin_upgrade(site: Site, threads: ThreadPoolExecutor) -> tuple[Future[str], int]:
    """Why an upgrade fails, and the new process: it accepts, and the old one, stopped before, has not let go."""
    old = site.pid
    nodes, accepting = (len(site.proxy.events(name)) for name in ("node_ready", "worker_accepting"))
    outcome = threads.submit(site.refused)
    eventually(lambda: len(site.proxy.events("node_ready")) > nodes, "its node runs", SECONDS)
    os.kill(old, signal.SIGSTOP)
    try:
        eventually(lambda: state_of(old) == "T", "the old one stands still")
        if len(site.proxy.events("worker_accepting")) > accepting:
            pytest.skip("a busy machine: the new process accepted before the old one could be stopped")
        eventually(
            lambda: len(site.proxy.events("worker_accepting")) > accepting, "the new one accepts", SECONDS
        )
        (new,) = [pid for pid in children_of(old) if b"serve" in command_line(pid)]
    except BaseException:
        os.kill(old, signal.SIGCONT)
        raise
    return outcome, new


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_new_process_is_ended_when_it_accepts_already(site: Site, number: signal.Signals) -> None:
    """The sockets still listen in the old one, whatever the new one's workers did at their end."""
    with site.load() as clients, ThreadPoolExecutor() as threads:
        refused, new = begin_upgrade(site, threads)
        os.kill(new, number)
        os.kill(site.pid, signal.SIGCONT)
        assert re.search("ended before it was ready|it was told to end", refused.result())
        clients.wait_done(10)
    # A killed one's node goes with it, and handshakes that it had begun; but nobody is turned away.
    lost = {attempt.stage for attempt in clients.failed}
    assert lost <= ({"handshake"} if number == signal.SIGKILL else set())


def test_old_process_is_killed_when_the_new_one_accepts_already(site: Site) -> None:
    """The new one goes on by itself; the other's workers leave the sockets alone at their end."""
    if site.pid == site.proxy.pid:  # which is to end with code 0
        site.upgrade()
    old, ready = site.pid, len(site.proxy.events("ready"))
    with site.load() as clients, ThreadPoolExecutor() as threads:
        lost, new = begin_upgrade(site, threads)
        site.pids.append(new)
        os.kill(old, signal.SIGKILL)
        assert "did not answer" in lost.result()
        eventually(lambda: len(site.proxy.events("ready")) > ready, "the new one is ready", SECONDS)
        clients.wait_done(10)
    assert {attempt.stage for attempt in clients.failed} <= {"handshake"}  # they had begun in the old one
    assert len(site.proxy.events("predecessor_lost")) == 1
    with site.load() as clients:
        clients.wait_done(10)
    assert clients.failed == []


def another_installation(directory: Path) -> Path:
    """`offload` in an environment of its own, with what is installed in this one."""
    venv.create(directory, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("\n".join(path for path in sys.path if path))
    program = directory / "bin" / "offload"
    program.write_text(f"#!{directory}/bin/python\nfrom offload.cli import main\nmain()\n")
    program.chmod(0o755)
    return program


def test_another_installation_user_and_admin_socket(
    identities: Identities,
    upstream: Upstream,
    any_version: ssl.SSLContext,
    socket_directory: Path,
    tmp_path: Path,
) -> None:
    """`--exec`: all children run from there too; a unix admin address and a user of the workers come along."""
    socket_directory.chmod(0o711)
    program, admin = another_installation(tmp_path / "venv"), socket_directory / "admin.sock"
    changes: dict[str, Any] = {"admin": {"address": f"unix:{admin}"}}
    if os.geteuid() == 0:
        changes["user"] = "nobody"
    with running_site(tmp_path, identities, upstream, any_version, **changes) as site:
        site.proxy.ready()
        old = site.pid
        new = site.upgrade(program=str(program))
        site.wait_ended(old)
        commands = [command_line(pid) for pid in children_of(new)]
        assert len(commands) == 2
        assert all(command.startswith(f"{tmp_path}/venv/bin/python".encode()) for command in commands)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(admin))
            sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.0 200 ")
        with TlsClient.connect(site.port, any_version) as client:
            assert client.get("/").status == 200


def command_line(pid: int) -> bytes:
    """Of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_only_one_at_a_time_and_sigterm_ends_both(
    identities: Identities, upstream: Upstream, any_version: ssl.SSLContext, tmp_path: Path, silent: Path
) -> None:
    """While an upgrade is under way, others and reloads are refused; told to end, the old one ends the new one."""
    with running_site(tmp_path, identities, upstream, any_version) as site, ThreadPoolExecutor() as threads:
        site.proxy.ready()
        refused = threads.submit(site.refused, program=str(silent))
        eventually((tmp_path / "pid").exists, "the new process runs")
        assert site.refused() == "an upgrade is under way; ask again when it is over"
        with pytest.raises(ConfigurationError, match="an upgrade is under way"):
            site.proxy.command("reload")
        site.proxy.signal(signal.SIGTERM)
        assert "told to end" in refused.result()
        eventually(lambda: not is_running(int((tmp_path / "pid").read_text())), "the new process ends")
