"""Workers that have given up files, privileges and root: what the kernel says of them, and that all still works."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from offload import landlock
from tests.integration.clients import TlsClient, client_context, request_bytes
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import proxy as programs
from tests.support.hsm_support import NodeProcess, child_environment, free_port, missing, require
from tests.support.proxy import Proxy, listener, offload_command, run_offload, running_proxy

IS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
NO_CAPABILITIES = "0" * 16

_TELLS = """
import os, sys
status = os.open("/proc/self/status", os.O_RDONLY)
told = os.open(os.environ["TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def tell(event, arguments):
    if event in ("import", "open") and b"NoNewPrivs:\\t1" in os.pread(status, 4096, 0):
        if not isinstance(arguments[0], int):
            os.write(told, f"{event} {arguments[0]}\\n".encode())
sys.addaudithook(tell)
"""
"""A sitecustomize.py: tells what a process imports or opens by a path once it is confined."""


def status_of(pid: int) -> dict[str, list[str]]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What confined processes of programs that start now import and open, one a line."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_TELLS)
    path = tmp_path / "told"
    path.touch()
    variables = child_environment()
    variables |= {"PYTHONPATH": f"{tmp_path}/site:{variables['PYTHONPATH']}", "TOLD": str(path)}
    monkeypatch.setattr(programs, "child_environment", lambda: variables)
    return path


@contextlib.contextmanager
def tls_node(identities: Identities) -> Iterator[dict[str, Any]]:
    """A node elsewhere, as an entry of a configuration; its host is a name."""
    link = identities.link("localhost")
    options = ["--keys", str(identities.keys), "--tls-ca", str(link.ca)]
    options += ["--tls-certificate", str(link.certificate), "--tls-key", str(link.key)]
    with free_port() as port, NodeProcess(f"tls://127.0.0.1:{port}", "--name", "far", *options).ready():
        credentials = identities.link("proxy.test").settings()
        yield {"name": "far", "address": f"tls://localhost:{port}", "tls": credentials}


def get(proxy: Proxy, name: str, context: ssl.SSLContext) -> None:
    """A full handshake and a request at a listener."""
    with TlsClient.connect(proxy.ports[name], context) as client:
        assert client.get("/").status == 200


def test_confined_workers_do_all_their_work(
    identities: Identities, upstream: Upstream, socket_directory: Path, tmp_path: Path, told: Path
) -> None:
    """Both kinds of upstream and key, a local node, and a remote one that a reload brings; nothing is opened or imported."""
    context = client_context(identities.ca)
    p256, rsa = identities["p256"].chain_path, identities["rsa2048"].chain_path
    socket_directory.chmod(0o711)
    with Upstream("unix", f"{socket_directory}/confined.sock") as unix_web, tls_node(identities) as far:
        (socket_directory / "confined.sock").chmod(0o666)
        listeners = [
            listener("tcp", [p256], [upstream.address]),
            listener("unix", [rsa], [unix_web.address]),
        ]
        local = {"name": "local", "run": {"keys": str(identities.keys)}}
        settings: dict[str, Any] = {"listeners": listeners, "hsm": {"nodes": [local]}, "workers": 1}
        settings |= {"user": "nobody"} if IS_ROOT else {}
        settings["log"] = {"connections": "all"}
        with running_proxy(tmp_path / "proxy", settings) as proxy:
            (pid,) = proxy.worker_pids()
            check_process(proxy, pid)
            for name in ("tcp", "unix"):
                get(proxy, name, context)
            proxy.write({**settings, "hsm": {"nodes": [local, far]}})
            assert "node far added" in proxy.command("reload")
            proxy.command("node", name="local", enabled=False)
            for name in ("tcp", "unix"):
                get(proxy, name, context)
            assert proxy.metrics().value("offload_process_resident_memory_bytes", process="worker-0") > 1e6
            assert proxy.worker_pids() == [pid]
    assert told.read_text() == ""


def check_process(proxy: Proxy, pid: int) -> None:
    """The kernel's view of a worker, and what the proxy tells of it."""
    status = status_of(pid)
    assert status["NoNewPrivs"] == ["1"]
    assert {status[name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {NO_CAPABILITIES}
    if IS_ROOT:
        assert status["Uid"] == [str(NOBODY.pw_uid)] * 4
        assert status["Gid"] == [str(NOBODY.pw_gid)] * 4
        assert status["Groups"] == [str(each) for each in sorted(os.getgrouplist("nobody", NOBODY.pw_gid))]
    words = proxy.status()["workers"][0]["confined_by"]
    assert words == proxy.wait_event("workers_confined")["by"]
    assert ("can't open files" in words) == (landlock.abi() > 0)


def port_443() -> str:
    """A loopback address whose port 443 is free."""
    address = f"127.43.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
    try:
        socket.create_server((address, 443)).close()
    except OSError as error:
        missing(f"{address}:443: {error.strerror}")
    return f"{address}:443"


def as_nobody(*arguments: str) -> list[str]:
    """`offload …` as another user, who may bind any port, and read what is root's: his Python may be."""
    capabilities = "+net_bind_service,+dac_read_search"
    return [
        require("setpriv"), f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups",
        f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}", *offload_command(*arguments),
    ]  # fmt: skip


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a capability to another user")
def test_port_443_without_root(
    identities: Identities, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CAP_NET_BIND_SERVICE another user serves on port 443, and his workers don't keep the capability."""
    monkeypatch.setattr(programs, "offload_command", as_nobody)
    address = port_443()
    with tempfile.TemporaryDirectory(prefix="offload-test-") as directory:
        os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
        settings = {
            "listeners": [
                listener("web", [identities["p256"].chain_path], [upstream.address], address=address)
            ],
            "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
            "runtime_directory": f"{directory}/run",
        }
        with running_proxy(Path(directory), settings) as proxy:
            assert status_of(proxy.pid)["Uid"] == [str(NOBODY.pw_uid)] * 4
            (pid,) = proxy.worker_pids()
            assert status_of(pid)["CapEff"] == [NO_CAPABILITIES]
            sock = socket.create_connection((address.removesuffix(":443"), 443), timeout=10)
            with client_context(identities.ca).wrap_socket(sock, server_hostname="localhost") as client:
                client.sendall(request_bytes("GET", "/"))
                assert client.recv(12) == b"HTTP/1.1 200"


def test_supervisor_may_not_be_dumped(identities: Identities, tmp_path: Path) -> None:
    """It holds the keys of session tickets: no core file, and its memory is root's."""
    settings = {
        "listeners": [listener("web", [identities["p256"].chain_path], ["127.0.0.1:1"])],
        "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "sandbox": "off",
    }
    with running_proxy(tmp_path, settings) as proxy:
        assert Path(f"/proc/{proxy.pid}/mem").stat().st_uid == 0
        limits = Path(f"/proc/{proxy.pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
        words = proxy.status()["workers"][0]["confined_by"]
        assert words == ["no capabilities", "no new privileges", "no core dumps"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user": "no-such-user"}, "user: there is no user 'no-such-user' on this machine; create it"),
        ({"group": "nogroup"}, "group: is of no use without `user`"),
    ],
)
def test_a_user_that_cannot_be_is_told_at_once(
    identities: Identities, tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    """`offload check` and `offload serve` both say so, and nothing is started."""
    settings = {
        "listeners": [listener("web", [identities["p256"].chain_path], ["127.0.0.1:1"])],
        "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
        "admin": None,
    }
    path = tmp_path / "offload.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    for command in ("check", "serve"):
        ended = run_offload(command, "--config", str(path))
        assert ended.returncode == 2
        assert expected in ended.stderr
        assert "Traceback" not in ended.stderr
