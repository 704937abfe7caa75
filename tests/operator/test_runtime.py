"""The runtime directory: nobody else may put sockets into it, or another directory in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offload import runtime
from offload.errors import ConfigurationError

UNSAFE = "belongs to somebody else or is writable for everybody; name another one"


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a path belong to another user than this process."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    else:
        somebody_else = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody_else)


def refused(directory: Path) -> str:
    """Why the directory is not taken."""
    with pytest.raises(ConfigurationError) as caught, runtime.make(directory):
        pass
    return str(caught.value)


def test_it_is_made_for_its_user_alone_and_goes_in_the_end(tmp_path: Path) -> None:
    """Mode 0700; what others put into it keeps it there."""
    directory = tmp_path / "made" / "run"
    with runtime.make(directory) as made:
        assert made.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()
    with runtime.make(directory):
        (directory / "a.sock").touch()
    assert directory.exists()


def test_a_configuration_that_cannot_be_looked_at() -> None:
    """One line; the same where a directory above it is closed."""
    with pytest.raises(ConfigurationError, match="cannot read it: File name too long"):
        runtime.find_directory(Path("c" * 300))


def test_one_that_everybody_can_write_to(tmp_path: Path) -> None:
    """Refused by name, sticky or not above it: only in a sticky directory others can't replace it."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert UNSAFE in refused(open_to_all)
    assert f"{open_to_all}/run" in refused(open_to_all / "run")
    open_to_all.chmod(0o1777)
    with runtime.make(open_to_all / "run"):
        pass


def test_one_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That user could put a control socket there which takes our commands."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    give_away(theirs, monkeypatch)
    assert UNSAFE in refused(theirs)


def test_one_below_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That user could put another directory in its place."""
    theirs = tmp_path / "theirs"
    ours = theirs / "run"
    ours.mkdir(parents=True)
    give_away(theirs, monkeypatch)
    assert UNSAFE in refused(ours)


def test_a_link_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own link to a directory of ours is good; one that somebody else can turn elsewhere is not."""
    directory, link = tmp_path / "real", tmp_path / "link"
    directory.mkdir(mode=0o700)
    link.symlink_to(directory)
    (directory / "kept").touch()
    with runtime.make(link):
        pass
    give_away(link, monkeypatch)
    assert UNSAFE in refused(link)


def test_one_that_can_not_be_made(tmp_path: Path) -> None:
    """The reason is the system's, in one line."""
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "run") == (
        f"runtime_directory: cannot make {tmp_path}/file/run: Not a directory; name another one"
    )
