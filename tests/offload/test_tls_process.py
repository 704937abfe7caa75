"""The TLS binding in processes of its own: hardened by the kernel, or with a library that is none."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys

from tests.offload.identities import Identities
from tests.support.hsm_support import child_environment, missing

_HARDENED = """
import ctypes, mmap, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: before anything is loaded
    import os
    print("kernel:", os.strerror(ctypes.get_errno()))
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except OSError:
    pass
else:
    sys.exit("the kernel lets memory be writable and executable all the same")

from pathlib import Path
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hsm.signing import SCHEMES
from offload.tls import Certificate, Context, Progress, TlsConnection

chain, key = sys.argv[1:]
private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
server_context = Context(policy="default", certificates=[Certificate(Path(chain).read_bytes(), b"s" * 20)])
client_context = Context(policy="default", client=True)
ours, theirs = socket.socketpair()
ours.setblocking(False)
theirs.setblocking(False)
server, client = TlsConnection(server_context, ours.fileno()), TlsConnection(client_context, theirs.fileno())
done = set()
for _ in range(50):
    for name, connection in (("client", client), ("server", server)):
        if name in done:
            continue
        progress = connection.negotiate()
        if progress is Progress.WANT_SIGNATURE:
            request = connection.signature_request()
            assert request.ski == b"s" * 20
            algorithm = ec.ECDSA(Prehashed(SCHEMES[request.scheme].hash))
            connection.apply_signature(private.sign(request.digest, algorithm))
        elif progress is Progress.DONE:
            done.add(name)
assert len(done) == 2, done
print(server.version)
client.close()
server.close()
"""


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**child_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_callbacks_without_executable_memory(identities: Identities) -> None:
    """A handshake works where memory must not be writable and executable (systemd's MemoryDenyWriteExecute)."""
    identity = identities["p256"]
    ended = python(_HARDENED, str(identity.chain_path), str(identity.key_path))
    if ended.returncode == 77:
        missing(f"PR_SET_MDWE is not there; {ended.stdout.strip()}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "TLSv1.3\n"


def test_library_that_lacks_symbols_is_told_by_name() -> None:
    """OFFLOAD_S2N_LIBRARY that is no s2n-tls: the message names what is missing and what is known to work."""
    library = ctypes.util.find_library("c")
    assert library is not None
    ended = python("import offload.tls", OFFLOAD_S2N_LIBRARY=library)
    assert ended.returncode != 0
    told = ended.stderr.splitlines()[-1]
    assert f"{library}: lacks" in told
    assert "s2n_negotiate" in told
    assert "known to work: awscrt" in told


def test_library_that_is_not_there_is_told_by_path() -> None:
    """So is a path where nothing is."""
    ended = python("import offload.tls", OFFLOAD_S2N_LIBRARY="/nonexistent/libs2n.so")
    assert ended.returncode != 0
    assert "/nonexistent/libs2n.so: cannot load it as s2n-tls" in ended.stderr.splitlines()[-1]


def test_library_of_ones_own() -> None:
    """OFFLOAD_S2N_LIBRARY with a good library is used instead of the wheel's."""
    code = "import _awscrt; print(_awscrt.__file__)"
    path = python(code).stdout.strip()
    ended = python("from offload.tls import library_info; print(library_info())", OFFLOAD_S2N_LIBRARY=path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("s2n-tls from OFFLOAD_S2N_LIBRARY")
