"""What a process that gave everything up can still do, tried in processes of its own; and whom it may become."""

from __future__ import annotations

import json
import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm.errors import ConfigurationError
from offload import landlock
from offload.account import Account, find_account
from offload.landlock import Ruleset, ruleset
from tests.offload.identities import Identities
from tests.offload.test_tls_process import python
from tests.support.hsm_support import missing

NOBODY = pwd.getpwnam("nobody")

_TRIES = """
import json, os, signal, socket, sys
from hsm.process import ProcessUsage
from hsm.transport import LinkCredentials
from offload import sandbox
from offload.account import find_account

mode, user, directory, ca, certificate, key, port = sys.argv[1:]
link = LinkCredentials(*(open(path).read() for path in (ca, certificate, key)))
usage = ProcessUsage()
inherited = os.open(key, os.O_RDONLY)
server = socket.socket(socket.AF_UNIX)
server.bind(f"{directory}/path.sock")
server.listen()
os.chmod(f"{directory}/path.sock", 0o777)
os.chmod(directory, 0o711)
words = sandbox.confine(find_account(user or None, None), mode)

def connected(family, address):
    with socket.socket(family) as client:
        client.connect(address)

attempts = {
    "read a file": lambda: open("/etc/passwd").close(),
    "write a file": lambda: open(f"{directory}/new", "w").close(),
    "list a directory": lambda: os.listdir("/"),
    "make a socket's file": lambda: socket.socket(socket.AF_UNIX).bind(f"{directory}/new.sock"),
    "import": lambda: __import__("wave"),
    "execute": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "bind a TCP port": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "reach an abstract socket": lambda: connected(socket.AF_UNIX, f"\\0{directory}"),
    "connect by TCP": lambda: connected(socket.AF_INET, ("127.0.0.1", int(port))),
    "connect to a socket's file": lambda: connected(socket.AF_UNIX, f"{directory}/path.sock"),
    "make the context of a link": link.client_context,
    "see what it takes up": lambda: usage.read(),
    "read what was open": lambda: os.pread(inherited, 1, 0),
}
def can(attempt):
    try:
        attempt()
    except (OSError, ImportError):
        return False
    return True
print(json.dumps({"words": words, "can": [name for name, attempt in attempts.items() if can(attempt)]}))
"""

OPEN = {
    "connect by TCP",
    "connect to a socket's file",
    "make the context of a link",
    "see what it takes up",
    "read what was open",
}


def confined(mode: str, user: str, directory: Path, identities: Identities) -> tuple[list[str], set[str]]:
    """What `confine` says is in force, and what can be done afterwards."""
    link = identities.link("proxy.test")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{directory}")
        abstract.listen()
        port = str(server.getsockname()[1])
        paths = (str(directory), str(link.ca), str(link.certificate), str(link.key))
        ended = python(_TRIES, mode, user, *paths, port)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    return told["words"], set(told["can"])


def require_landlock(abi: int) -> None:
    """Skip where the kernel does not have so much of it."""
    if landlock.abi() < abi:
        missing(f"the kernel has ABI {landlock.abi()} of Landlock, not {abi}")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a socket's path is short enough, and any user gets to."""
    with tempfile.TemporaryDirectory(prefix="offload-test-") as path:
        yield Path(path)


def test_no_files_but_connections(directory: Path, identities: Identities) -> None:
    """Nothing can be opened, made, executed, bound or signalled; what a worker needs still works."""
    require_landlock(6)
    words, can = confined("auto", "", directory, identities)
    assert can == OPEN
    assert words[-4:] == [
        "can't open files", "can't bind TCP ports", "can't signal others", "can't reach abstract sockets"
    ]  # fmt: skip


def test_without_landlock(directory: Path, identities: Identities) -> None:
    """`sandbox: off` leaves files alone; privileges are given up all the same."""
    words, can = confined("off", "", directory, identities)
    assert words == ["no capabilities", "no new privileges", "no core dumps"]
    assert can >= {"read a file", "bind a TCP port", "reach an abstract socket", *OPEN}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_another_user(directory: Path, identities: Identities) -> None:
    """What works under Landlock works for a user who owns nothing of it, too."""
    require_landlock(6)
    words, can = confined("auto", "nobody", directory, identities)
    assert can == OPEN
    assert words[0] == "user nobody"


_IDENTITY = """
import os, sys
from offload import sandbox
from offload.account import find_account
os.setgroups([0, 4])
sandbox.confine(find_account(sys.argv[1], None), "off")
try:
    os.setuid(0)
except OSError:
    print("stays")
wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapAmb")
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(" ".join(lines[name].split()) for name in wanted), os.stat("/proc/self/mem").st_uid, sep="|")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_for_good() -> None:
    """All user and group ids are his, root's groups are gone, no capability is left, dumps stay forbidden."""
    ended = python(_IDENTITY, "nobody")
    assert ended.returncode == 0, ended.stderr
    groups = " ".join(map(str, sorted(os.getgrouplist("nobody", NOBODY.pw_gid))))
    uids, gids = (" ".join([str(number)] * 4) for number in (NOBODY.pw_uid, NOBODY.pw_gid))
    assert ended.stdout.splitlines() == ["stays", "|".join([uids, gids, groups, "1", *["0" * 16] * 4, "0"])]


def test_a_second_thread_is_an_error() -> None:
    """It would keep what the first one gives up."""
    code = (
        "import threading\nfrom offload import sandbox\n"
        "end = threading.Event()\nthreading.Thread(target=end.wait, daemon=True).start()\n"
        "sandbox.confine(None, 'auto')\n"
    )
    ended = python(code)
    assert ended.stderr.splitlines()[-1].startswith("RuntimeError: 2 threads run already")


def test_an_old_kernel_loses_what_it_knows() -> None:
    """Each ABI takes all that it has, and nothing that a worker needs: TCP connections above all."""
    assert ruleset(0) == Ruleset(0, 0, 0)
    assert [ruleset(abi).files.bit_count() for abi in range(1, 8)] == [13, 14, 15, 15, 16, 16, 16]
    assert [ruleset(abi).network for abi in range(1, 8)] == [0, 0, 0, 1, 1, 1, 1]
    assert [ruleset(abi).scopes for abi in range(1, 8)] == [0, 0, 0, 0, 0, 3, 3]
    assert ruleset(1).words == ["open files"]
    assert ruleset(99) == ruleset(7), "rights of kernels to come are not known"


def test_unknown_names_are_told() -> None:
    """A user or group that is not there is one line with the key and the name."""
    with pytest.raises(ConfigurationError, match="user: there is no user 'no-such-user' on this machine"):
        find_account("no-such-user", None)
    with pytest.raises(ConfigurationError, match="group: there is no group 'no-such-group' on this machine"):
        find_account("nobody", "no-such-group")
    assert find_account(None, None) is None


def test_only_root_can_name_another() -> None:
    """Whoever is not root may name himself, and learns that he can't name root."""
    code = (
        "import importlib.metadata, os, pwd\nfrom offload.account import find_account\n"
        f"if os.getuid() == 0: os.setuid({NOBODY.pw_uid})\n"
        "assert find_account(pwd.getpwuid(os.getuid()).pw_name, None).is_own\n"
        "find_account('root', None)\n"
    )
    ended = python(code)
    assert (
        "user: only root can start workers as 'root' or in another group, and this is"
        in ended.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("mode", "owner", "group", "enters"),
    [
        (0o701, 0, 0, True),
        (0o710, 0, 0, False),
        (0o710, 0, 20, True),
        (0o710, 0, 30, True),
        (0o701, 0, 20, False),
        (0o100, 10, 0, True),
        (0o077, 10, 20, False),
    ],
)
def test_who_may_pass_through_a_directory(mode: int, owner: int, group: int, enters: bool) -> None:
    """The first that fits of owner, group and others decides (path_resolution(7))."""
    account = Account(name="x", uid=10, gid=20, groups=[20, 30])
    state = os.stat_result((mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    assert account.can_enter(state) is enters
