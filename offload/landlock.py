"""Landlock: a process takes rights from itself that it can't get back (landlock(7), linux/landlock.h).

Which rights there are to take depends on the ABI, a number that grows with kernels. A right that is
taken and given back for no path is one that the process does not have at all.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""System call numbers, the same on every architecture (asm-generic/unistd.h)."""
_CREATE_RULESET_VERSION = 1

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights on files there are, from bit 0 on, since which ABI: then REFER, TRUNCATE and IOCTL_DEV."""
_BIND_TCP_ABI, _BIND_TCP = 4, 1
_SCOPE_ABI, _SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 6, 1, 2


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is taken: bits as of `struct landlock_ruleset_attr`."""

    files: int
    network: int
    scopes: int

    @property
    def words(self) -> list[str]:
        """What a process that lives under it can't do."""
        named = (
            (self.files, "open files"),
            (self.network, "bind TCP ports"),
            (self.scopes, "signal others"),
            (self.scopes, "reach abstract sockets"),
        )
        return [words for bits, words in named if bits]


def ruleset(abi: int) -> Ruleset:
    """All that a worker can do without, as far as this ABI knows it.

    It connects to upstreams and nodes, by TCP and to unix sockets that have a path: that stays.
    """
    count = max((rights for since, rights in _FILE_RIGHTS.items() if since <= abi), default=0)
    return Ruleset(
        files=(1 << count) - 1,
        network=_BIND_TCP if abi >= _BIND_TCP_ABI else 0,
        scopes=_SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if abi >= _SCOPE_ABI else 0,
    )


def abi() -> int:
    """The kernel's; 0 where Landlock is not there, not switched on, or hidden (by a container's seccomp filter)."""
    version = _libc().syscall(
        _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION)
    )
    return max(int(version), 0)


def restrict(rules: Ruleset) -> None:
    """Take these rights from the calling thread and what it starts later. Raises OSError.

    The process needs no_new_privs before.
    """
    attributes = (ctypes.c_uint64 * 3)(rules.files, rules.network, rules.scopes)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    descriptor = _checked(_libc().syscall(_CREATE_RULESET, attributes, size, ctypes.c_uint32(0)))
    try:
        _checked(_libc().syscall(_RESTRICT_SELF, ctypes.c_int(descriptor), ctypes.c_uint32(0)))
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result
