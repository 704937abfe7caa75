"""The user that workers become when the proxy is started as root."""

from __future__ import annotations

import grp
import os
import pwd
import stat

from hsm.config import Section
from hsm.errors import ConfigurationError


class Account(Section):
    """A user and the groups that a process of his has."""

    name: str
    uid: int
    gid: int
    groups: list[int]

    @property
    def is_own(self) -> bool:
        """Whether this process runs as this user already."""
        return self.uid == os.geteuid()

    def can_enter(self, directory: os.stat_result) -> bool:
        """Whether he may pass through a directory of this state (path_resolution(7))."""
        if directory.st_uid == self.uid:
            return bool(directory.st_mode & stat.S_IXUSR)
        if directory.st_gid in (self.gid, *self.groups):
            return bool(directory.st_mode & stat.S_IXGRP)
        return bool(directory.st_mode & stat.S_IXOTH)


def find_account(user: str | None, group: str | None) -> Account | None:
    """The account of a user, with another primary group if one is named; None if no user is.

    Raises ConfigurationError for names that this machine does not know, and for another user or group
    when this process is not root.
    """
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigurationError(
            f"user: there is no user {user!r} on this machine; create it, or name another"
        ) from error
    gid = entry.pw_gid if group is None else _gid(group)
    account = Account(name=user, uid=entry.pw_uid, gid=gid, groups=sorted(os.getgrouplist(user, gid)))
    is_foreign = not account.is_own or (group is not None and gid != os.getegid())
    if os.geteuid() != 0 and is_foreign:
        raise ConfigurationError(
            f"user: only root can start workers as {user!r} or in another group, and this is {_own_name()}; "
            "start the proxy as root, or leave `user` and `group` out"
        )
    return account


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigurationError(
            f"group: there is no group {group!r} on this machine; create it, or name another"
        ) from error


def _own_name() -> str:
    try:
        return repr(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        return f"user {os.geteuid()}"
