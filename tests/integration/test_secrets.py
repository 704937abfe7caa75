"""Where private keys are, and where they never are: read from the memory of the running processes."""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm.signing import PrivateKey
from tests.integration.conftest import Shared
from tests.offload.identities import Identities, key_pem
from tests.support.hsm_support import child_environment, missing
from tests.support.proxy import children_of, running_proxy

_CHUNK = 16 * 1024 * 1024


def needles(key: PrivateKey) -> dict[str, bytes]:
    """The private numbers as a process would hold them: big and little endian, and within the PEM text."""
    found: dict[str, bytes] = {}
    private = key.private_numbers()
    if isinstance(private, rsa.RSAPrivateNumbers):
        numbers = {"p": private.p, "q": private.q, "d": private.d}
    else:
        numbers = {"scalar": private.private_value}
    for name, number in numbers.items():
        # Without the ends: there a library may mask, shift or cut.
        whole = number.to_bytes((number.bit_length() + 7) // 8, "big")
        found[f"{name}, big endian"] = whole[2:-2]
        found[f"{name}, little endian"] = whole[::-1][2:-2]
    body = b"".join(key_pem(key).splitlines()[1:-1])
    assert base64.b64decode(body)
    lines = key_pem(key).splitlines()
    found["PEM"] = max(lines, key=len) if isinstance(private, rsa.RSAPrivateNumbers) else lines[1][44:64]
    return found


def memory(pid: int) -> Iterator[bytes]:
    """The readable memory of a process, in pieces that overlap by a page."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            while start < end:
                size = min(_CHUNK, end - start)
                try:
                    yield os.pread(file.fileno(), size, start)
                except OSError:  # a mapping behind the end of its file
                    break
                start += size if start + size == end else size - mmap.PAGESIZE


def found_in(pid: int, wanted: dict[tuple[str, str], bytes]) -> set[tuple[str, str]]:
    """Which of the needles the memory of a process holds."""
    return {name for piece in memory(pid) for name, needle in wanted.items() if needle in piece}


def test_only_nodes_hold_the_private_key(world: Shared, any_version: ssl.SSLContext) -> None:
    """Neither a worker nor the supervisor has any private number; the node, searched alike, has them all."""
    if os.geteuid() != 0:
        missing("only root may read the memory of processes that are not dumpable")
    for name in ("p256", "p384", "p521", "rsa2048"):
        for _ in range(4):
            with world.connect(name, any_version) as client:
                assert client.get("/").status == 200
    workers = world.proxy.worker_pids()
    assert len(workers) == 2
    nodes = [pid for pid in children_of(world.proxy.pid) if b"hsm.node.main" in command_line(pid)]
    assert len(nodes) == 1
    kinds = ("p256", "p384", "p521", "rsa2048")
    wanted = {
        (kind, name): needle for kind in kinds for name, needle in needles(world.identities[kind].key).items()
    }
    for pid in (*workers, world.proxy.pid):
        assert found_in(pid, wanted) == set(), command_line(pid)
    for pid in (*nodes, world.nodes["unix"].pid):
        assert {kind for kind, name in found_in(pid, wanted) if "endian" in name} == set(kinds)


def command_line(pid: int) -> bytes:
    """A process's arguments."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")


def test_processes_are_not_dumpable(world: Shared) -> None:
    """No other process of the same user may read the memory of a worker or a node, or trace it."""
    nodes = [pid for pid in children_of(world.proxy.pid) if b"hsm.node.main" in command_line(pid)]
    for pid in (*world.proxy.worker_pids(), *nodes):
        # proc(5): what belongs to a process that is not dumpable is root's.
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits), "set together with that"


_DROPS = """
import ctypes, os
from hsm.process import forbid_dumps
if os.getuid() == 0:
    os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid(2) has taken away
before = os.stat("/proc/self/mem").st_uid
forbid_dumps()
print(before == os.getuid(), os.stat("/proc/self/mem").st_uid)
"""


def test_forbidding_dumps_closes_the_memory() -> None:
    """What workers and nodes call at their start makes their memory root's, whoever they run as."""
    ended = subprocess.run(
        [sys.executable, "-c", _DROPS], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout == "True 0\n"


def test_files_of_workers_hold_no_key(world: Shared) -> None:
    """A worker has no file of the key directory open."""
    if os.geteuid() != 0:
        missing("only root may see the files of processes that are not dumpable")
    keys = str(world.identities.keys)
    for pid in world.proxy.worker_pids():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                assert not str(descriptor.readlink()).startswith(keys)


def test_key_in_a_chain_file_is_refused(identities: Identities, tmp_path: Path) -> None:
    """The proxy does not start with a chain file that holds the key: it must not even see it."""
    chain = tmp_path / "web.pem"
    chain.write_bytes(identities["p256"].pem + key_pem(identities["p256"].key))
    chain.chmod(0o600)
    settings = {
        "listeners": [
            {
                "name": "web",
                "address": "127.0.0.1:0",
                "certificates": [{"chain": str(chain)}],
                "upstream": {"servers": ["127.0.0.1:1"]},
            }
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
    }
    with pytest.raises(AssertionError, match="ended before"), running_proxy(tmp_path, settings) as proxy:
        proxy.ready()
