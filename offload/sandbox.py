"""What a worker gives up before the first client: its user, its privileges, files, and reach to other processes.

All of it lasts until the process ends. What it needs from files later has to be open or imported by then.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Literal

from hsm.process import forbid_dumps, forbid_new_privileges
from offload import landlock
from offload.account import Account

Mode = Literal["auto", "off"]

_CAPABILITY_VERSION_3 = 0x20080522
"""linux/capability.h: two sets of 32 bits."""

_IMPORTED_LATE = ("encodings.idna", "cryptography.hazmat.backends.openssl.backend")
"""What `ssl` imports at a link's handshake, and cryptography when it verifies the first RSA signature."""


def confine(account: Account | None, mode: Mode) -> list[str]:
    """Confine this process; returns what is in force, in words. Raises OSError if the kernel refuses anything.

    RuntimeError tells of a second thread: Landlock and capabilities belong to threads, and one that
    runs already would keep what this one gives up.
    """
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(f"{len(threads)} threads run already: they would not be confined")
    in_force = [] if account is None else [f"user {account.name}"]
    if account is not None:
        _become(account)
    _drop_capabilities()
    forbid_dumps()  # again: changing the user may have allowed them
    forbid_new_privileges()
    in_force += ["no capabilities", "no new privileges", "no core dumps"]
    abi = landlock.abi() if mode == "auto" else 0
    if abi:
        rules = landlock.ruleset(abi)
        landlock.restrict(rules)
        in_force += [f"can't {words}" for words in rules.words]
    return in_force


def _become(account: Account) -> None:
    """Be this user in every respect, for good (credentials(7))."""
    if account.is_own and os.geteuid() != 0:
        return
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


def _drop_capabilities() -> None:
    """Have none, ambient ones neither (capset(2)): a proxy that may bind port 443 leaves them to its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")
