"""The command line: mistakes of the operator, the demo, and what is left when it ends."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from offload.cli import app
from tests.integration.clients import TIMEOUT
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import free_port, require
from tests.support.proxy import Metrics, Program, children_of, is_running, listener, run_offload


def good(identities: Identities) -> dict[str, Any]:
    """A configuration without mistakes."""
    return {
        "listeners": [listener("web", [identities["p256"].chain_path], ["127.0.0.1:1"])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "admin": None,
        "workers": 1,
    }


def serve(directory: Path, settings: dict[str, Any] | str) -> list[str]:
    """The lines of stderr of `offload serve` with a bad configuration; exit code 2 is asserted.

    In this process, because nothing is started before all is known to be good.
    """
    file = directory / "offload.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    ended = CliRunner().invoke(app, ["serve", "--config", str(file)])
    assert ended.exit_code == 2, ended.output
    assert isinstance(ended.exception, SystemExit)
    lines = ended.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


def change(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The settings with another value at a dotted path, such as `listeners.0.address`."""
    target: Any = settings
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[int(last) if isinstance(target, list) else last] = value
    return settings


MISTAKES = {
    "unknown key": ("listener", [], "listener: unknown key; did you mean 'listeners'?"),
    "unknown nested key": ("limits.handshake_timeot", "1s", "limits.handshake_timeot: unknown key; did you mean"),
    "bad address": ("listeners.0.address", "localhost", "listeners[0].address: 'localhost' is not an address; write"),
    "bad port": ("listeners.0.address", "127.0.0.1:99999", "listeners[0].address: "),
    "bad upstream": ("listeners.0.upstream.servers", ["http://x/"], "listeners[0].upstream.servers[0].address: "),
    "no upstream": ("listeners.0.upstream.servers", [], "listeners[0].upstream.servers: "),
    "bad node address": ("hsm.nodes.0", {"name": "a", "address": "10.0.0.1:2407"}, "hsm.nodes[0].address: "),
    "plain tls": ("hsm.nodes.0", {"name": "a", "address": "tls://10.0.0.1:2407"}, "hsm.nodes[0]: tls goes with"),
    "bad duration": ("hsm.sign_timeout", "5", "hsm.sign_timeout: '5' is not a duration; write one like"),
    "bad choice": ("hsm.verify_signatures", "never", "hsm.verify_signatures: "),
    "bad workers": ("workers", 0, "workers"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_file(identities: Identities, tmp_path: Path, mistake: str) -> None:
    """One line that names the file, the key and the remedy, exit code 2, and no traceback."""
    path, value, expected = MISTAKES[mistake]
    lines = serve(tmp_path, change(good(identities), path, value))
    assert all(line.startswith(f"error: {tmp_path}/offload.yaml: ") for line in lines)
    assert any(expected in line for line in lines), lines
    if mistake != "bad workers":  # which of the two kinds was meant can't be told
        assert len(lines) == 1


def test_several_mistakes_are_told_at_once(identities: Identities, tmp_path: Path) -> None:
    """Each mistake has a line of its own."""
    settings = change(change(good(identities), "unknown", 1), "listeners.0.address", "nowhere")
    assert len(serve(tmp_path, settings)) == 2


def test_missing_key(identities: Identities, tmp_path: Path) -> None:
    """A section that must be there is named."""
    settings = good(identities)
    del settings["hsm"]
    (line,) = serve(tmp_path, settings)
    assert line.endswith("offload.yaml: hsm: required, but missing")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "listeners: [", "a: b: c\n", "\x00"])
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    """A file that holds something else is one line, not a traceback."""
    (line,) = serve(tmp_path, text)
    assert "offload.yaml" in line


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """The path and the reason are told, by the real command too."""
    ended = run_offload("serve", "--config", str(tmp_path / "none.yaml"))
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path}/none.yaml: cannot read it: No such file or directory\n"


def test_chain_that_is_not_there(identities: Identities, tmp_path: Path) -> None:
    """An unreadable chain is named."""
    settings = change(good(identities), "listeners.0.certificates.0.chain", "missing.pem")
    (line,) = serve(tmp_path, settings)
    assert f"{tmp_path}/missing.pem" in line
    assert "No such file" in line


def test_chain_that_holds_its_key(identities: Identities, tmp_path: Path) -> None:
    """A private key where only certificates belong is refused, with what to do about it."""
    chain = tmp_path / "web.pem"
    chain.write_bytes(identities["p256"].pem + identities["p256"].key_path.read_bytes())
    (line,) = serve(tmp_path, change(good(identities), "listeners.0.certificates.0.chain", "web.pem"))
    assert f"{chain}: holds a private key" in line


def test_unknown_policy(identities: Identities, tmp_path: Path) -> None:
    """A policy that s2n does not know is named together with some that it knows."""
    (line,) = serve(tmp_path, change(good(identities), "listeners.0.tls", {"policy": "modern"}))
    assert "listeners[0].tls.policy" in line
    assert "'modern'" in line
    assert "default" in line


def test_key_directory_without_keys(identities: Identities, tmp_path: Path) -> None:
    """A local node that would not start is found before anything is started."""
    (tmp_path / "empty").mkdir()
    (line,) = serve(tmp_path, change(good(identities), "hsm.nodes.0.run", {"keys": "empty"}))
    assert f"{tmp_path}/empty" in line


@pytest.mark.parametrize("which", ["listener", "admin"])
def test_occupied_port(identities: Identities, tmp_path: Path, which: str) -> None:
    """One line that names the address, exit code 2, and nothing was started."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        if which == "listener":
            settings = change(good(identities), "listeners.0.address", address)
        else:
            settings = change(good(identities), "admin", {"address": address})
        (line,) = serve(tmp_path, settings)
    assert address in line
    assert "in use" in line
    assert ("listeners[0].address" if which == "listener" else "admin.address") in line


def test_occupied_port_in_the_demo(tmp_path: Path) -> None:
    """The demo says which port is taken, and leaves nothing running."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other, free_port() as admin_port:
        port = other.getsockname()[1]
        ended = run_offload(
            "demo", "--port", str(port), "--admin-port", str(admin_port), "--directory", str(tmp_path)
        )
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"127.0.0.1:{port}" in line
    assert "Traceback" not in ended.stderr


def curl(*arguments: str) -> str:
    """What curl gets."""
    ended = subprocess.run(
        [require("curl"), "--silent", "--show-error", "--fail", "--noproxy", "*", *arguments],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_demo(tmp_path: Path) -> None:
    """Page by the printed curl line, metrics by the printed URL; Ctrl-C ends everything, with code 0."""
    directory = tmp_path / "state"
    with free_port() as port, free_port() as admin_port:
        demo = Program(
            _made(tmp_path / "log"),
            "demo", "--port", str(port), "--admin-port", str(admin_port), "--directory", str(directory),
        )  # fmt: skip
        try:
            eventually(lambda: "Ctrl-C ends everything" in demo.output, "the demo's greeting", 30)
            shown = re.search(r"curl (--cacert \S+ https://\S+)", demo.output)
            assert shown is not None
            assert "It works" in curl("--resolve", f"localhost:{port}:127.0.0.1", *shown[1].split())
            found = re.search(r"metrics +(http://\S+)", demo.output)
            assert found is not None
            metrics = Metrics(curl(found[1]))
            assert metrics.value("offload_handshake_seconds_count", kind="full") == 1
            assert metrics.value("hsm_node_sign_seconds_count") == 1
            children = children_of(demo.pid)
            assert len(children) == 3, "a worker and two nodes"
            for path in directory.rglob("*"):
                if path.is_file():
                    assert path.stat().st_mode & 0o777 == 0o600, path
            demo.signal(signal.SIGINT)
            assert demo.wait() == 0
        finally:
            demo.kill()
        assert not any(is_running(pid) for pid in children)
        assert "demo ended" in demo.output
        demo.assert_clean()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_version() -> None:
    """`offload --version` tells its own and the TLS library's."""
    ended = run_offload("--version")
    assert ended.returncode == 0
    assert re.fullmatch(r"offload \d+\.\d+\.\d+, s2n-tls from .*, FIPS (on|off)\n", ended.stdout)
