"""Who gets anything from a node: users of its unix socket, holders of a certificate, nobody else."""

from __future__ import annotations

import hashlib
import os
import pwd
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm import keyless
from hsm.config import LinkTLS
from hsm.signing import SCHEME_BY_OPCODE, PrivateKey, ski_of
from hsm.transport import client_context
from hsm.verification import VerificationKey
from tests.support.hsm_support import (
    LIMIT,
    Authority,
    KeylessClient,
    NodeProcess,
    child_environment,
    free_port,
    require,
    run_hsm,
    running_nodes,
    write_key,
)

DIGEST = hashlib.sha256(b"what a handshake signs").digest()
PING = keyless.encode(1, keyless.OP_PING)
NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

BECOME_NOBODY = f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})\n"
PING_AS_NOBODY = (
    f"import os, socket, sys\n{BECOME_NOBODY}"
    "with socket.socket(socket.AF_UNIX) as client:\n"
    f"    client.settimeout({LIMIT})\n"
    "    client.connect(sys.argv[1])\n"
    "    try:\n"
    f"        client.sendall(bytes.fromhex('{PING.hex()}'))\n"
    "        print(client.recv(100).hex() or 'refused')\n"
    "    except ConnectionError:\n"
    "        print('refused')\n"
)
# Its own start would do the same: after exec a process may be dumped, after setuid it may not.
# What it imports later has to be there already: this interpreter may be root's.
NODE_AS_NOBODY = (
    "import ctypes, importlib.metadata, os, sys, uvloop, hsm.logs, hsm.node.main\n"
    "from hsm.cli import app\n"
    f"{BECOME_NOBODY}"
    "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
    "assert os.stat('/proc/self/mem').st_uid == os.getuid(), 'this process may be dumped'\n"
    "app(sys.argv[1:])\n"
)
READ_MEMORY_AS_NOBODY = (
    f"import os, sys\n{BECOME_NOBODY}"
    "try:\n"
    "    open(f'/proc/{sys.argv[1]}/mem', 'rb').close()\n"
    "    print('readable')\n"
    "except PermissionError:\n"
    "    print('refused')\n"
)


def run_script(script: str, *arguments: str) -> str:
    """The last line that a Python script prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=child_environment(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def shared_with_nobody(run_directory: Path) -> Path:
    """A directory whose sockets belong to the group of `nobody`, so that only the node's check is left."""
    os.chown(run_directory, 0, NOBODY.pw_gid)
    run_directory.chmod(0o2750)
    return run_directory


@as_root
def test_another_user_is_refused(shared_with_nobody: Path, key_directory: Path) -> None:
    """Who may open the socket file and is not allowed by the node is cut off."""
    with running_nodes(shared_with_nobody, key_directory, a="") as (node,):
        assert run_script(PING_AS_NOBODY, node.address.path) == "refused"
        assert node.wait_event("connection_refused")["uid"] == NOBODY.pw_uid
        with KeylessClient.connect(node.address) as client:
            assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG


@as_root
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_an_allowed_user_is_served(shared_with_nobody: Path, key_directory: Path, user: str) -> None:
    """`--allow-user` takes a name or a number."""
    listen = f"unix:{shared_with_nobody}/a.sock"
    with NodeProcess(listen, "--keys", str(key_directory), "--allow-user", user) as node:
        assert (
            run_script(PING_AS_NOBODY, node.ready().address.path) == keyless.encode(1, keyless.OP_PONG).hex()
        )


@as_root
def test_the_socket_belongs_to_the_group_that_is_named(run_directory: Path, key_directory: Path) -> None:
    """`--socket-group` takes a name or a number; nobody else is let in by the file's mode."""
    path = run_directory / "a.sock"
    for group in ("nogroup", str(NOBODY.pw_gid)):
        with NodeProcess(f"unix:{path}", "--keys", str(key_directory), "--socket-group", group) as node:
            node.ready()
            assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (NOBODY.pw_gid, 0o660)


def test_a_group_that_is_not_there_is_told(run_directory: Path, key_directory: Path) -> None:
    """One line, exit code 2."""
    listen = f"unix:{run_directory}/a.sock"
    ended = run_hsm(
        "node", "--listen", listen, "--keys", str(key_directory), "--socket-group", "no-such-group"
    )
    assert ended.returncode == 2
    assert "socket_group: there is no group 'no-such-group' on this machine" in ended.stderr


def test_a_node_cannot_be_dumped(run_directory: Path, keys: dict[str, PrivateKey]) -> None:
    """A process of the same user reads no memory of a node: its /proc entries are root's."""
    key_files = run_directory / "keys"
    key_files.mkdir()
    write_key(key_files, "p256.pem", keys["p256"])
    listen = f"unix:{run_directory}/a.sock"
    command = None
    if os.geteuid() == 0:
        for path in (run_directory, key_files, key_files / "p256.pem"):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        arguments = ["node", "--listen", listen, "--keys", str(key_files)]
        command = [sys.executable, "-c", NODE_AS_NOBODY, *arguments]
    with NodeProcess(listen, "--keys", str(key_files), command=command) as node:
        node.ready()
        process = Path(f"/proc/{node.pid}")
        assert "Max core file size        0                    0" in (process / "limits").read_text()
        assert (process / "mem").stat().st_uid == 0
        if os.geteuid() == 0:
            assert Path(listen.removeprefix("unix:")).stat().st_uid == NOBODY.pw_uid
            assert run_script(READ_MEMORY_AS_NOBODY, str(node.pid)) == "refused"
        else:
            with pytest.raises(PermissionError):
                (process / "mem").open("rb")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issues the certificates of both ends of a link."""
    return Authority(tmp_path_factory.mktemp("authority"), "ca")


@pytest.fixture(scope="module")
def proxy(authority: Authority) -> LinkTLS:
    """The certificate of the node's client."""
    return authority.issue("proxy")


@pytest.fixture(scope="module")
def node(authority: Authority, key_directory: Path) -> Iterator[NodeProcess]:
    """A node on a tls:// address."""
    tls = authority.issue("node")
    with (
        free_port() as port,
        NodeProcess(
            f"tls://127.0.0.1:{port}", "--keys", str(key_directory), "--tls-ca", str(tls.ca),
            "--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key),
        ) as process,
    ):  # fmt: skip
        yield process.ready()


def assert_serves(node: NodeProcess, tls: ssl.SSLContext, key: PrivateKey) -> None:
    """The node signs for a client with this context."""
    verifier = VerificationKey(key.public_key())
    with KeylessClient.connect(node.address, tls) as client:
        answer = client.ask(0x15, DIGEST, ski=ski_of(key.public_key()))
        assert verifier.verify(SCHEME_BY_OPCODE[0x15], DIGEST, answer.payload)


def assert_gets_nothing(node: NodeProcess, tls: ssl.SSLContext | None) -> None:
    """A ping is answered by no byte: the handshake fails, or the connection ends after it."""
    try:
        with KeylessClient.connect(node.address, tls) as client:
            client.send(PING)
            assert client.is_closed()
    except (ssl.SSLError, ConnectionError):
        pass


def context_without_certificate(authority: Authority) -> ssl.SSLContext:
    """A client that trusts the node and shows nothing of its own."""
    return ssl.create_default_context(cafile=str(authority.ca))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_with_a_certificate_is_served(
    node: NodeProcess, proxy: LinkTLS, keys: dict[str, PrivateKey], version: ssl.TLSVersion
) -> None:
    """Both TLS 1.2 and TLS 1.3 do."""
    tls = client_context(proxy)
    tls.minimum_version = tls.maximum_version = version
    assert_serves(node, tls, keys["p256"])


def test_a_client_like_gokeyless_is_served(
    node: NodeProcess, proxy: LinkTLS, keys: dict[str, PrivateKey]
) -> None:
    """At most TLS 1.2, with one cipher suite."""
    tls = client_context(proxy)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    assert_serves(node, tls, keys["p256"])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_a_certificate_gets_nothing(
    node: NodeProcess, authority: Authority, proxy: LinkTLS, keys: dict[str, PrivateKey],
    version: ssl.TLSVersion,
) -> None:  # fmt: skip
    """It is cut off in the handshake, or with its first bytes; others are served as before."""
    tls = context_without_certificate(authority)
    tls.minimum_version = tls.maximum_version = version
    assert_gets_nothing(node, tls)
    assert_serves(node, client_context(proxy), keys["p256"])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_of_another_authority_gets_nothing(
    node: NodeProcess, authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Also when that authority has the same name as the right one."""
    stranger = Authority(tmp_path, "ca").issue("proxy")
    tls = context_without_certificate(authority)
    tls.load_cert_chain(stranger.certificate, stranger.key)
    tls.minimum_version = tls.maximum_version = version
    assert_gets_nothing(node, tls)


def test_plain_tcp_gets_nothing(node: NodeProcess) -> None:
    """A Keyless request without TLS is answered by no Keyless message."""
    with KeylessClient.connect(node.address) as client:
        client.send(PING)
        try:
            data = client.socket.recv(100)
        except ConnectionResetError:
            data = b""
        assert data[:1] in (b"", b"\x15")  # nothing, or a TLS alert
        assert not data or client.is_closed()


def run_openssl(node: NodeProcess, tls: LinkTLS, *options: str) -> subprocess.CompletedProcess[str]:
    """`openssl s_client` with a certificate; it ends after the handshake."""
    host = f"{node.address.host}:{node.address.port}"
    own = ["-cert", str(tls.certificate), "-key", str(tls.key)]
    command = [require("openssl"), "s_client", "-connect", host, *own, *options]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=LIMIT, check=False)


def test_old_tls_versions_get_nothing(node: NodeProcess, proxy: LinkTLS) -> None:
    """A client that goes no higher than TLS 1.1 has no handshake."""
    done = run_openssl(node, proxy, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert done.returncode != 0
    assert "Cipher is (NONE)" in done.stdout


def test_a_real_client_verifies_the_node(node: NodeProcess, proxy: LinkTLS) -> None:
    """openssl completes a mutual handshake and finds the node's chain good."""
    done = run_openssl(node, proxy, "-CAfile", str(proxy.ca), "-verify_return_error")
    assert done.returncode == 0, done.stderr
    assert "Verify return code: 0 (ok)" in done.stdout
