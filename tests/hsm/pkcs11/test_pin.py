"""Where a PIN comes from, and the guard that keeps a refused one from the token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hsm.errors import ConfigurationError
from hsm.node import ckr
from hsm.node.ckr import CryptokiError
from hsm.node.pin import LoginGuard, Pin, PinRefusedError, guards, read_pin, reset_guards, state_directory
from tests.support.hsm_support import LIMIT, child_environment

PIN = Pin(b"user:secret-word", "a test")


class Token:
    """Counts logins and answers them."""

    def __init__(self, code: int = ckr.CKR_OK) -> None:
        self.code = code
        self.logins = 0

    def login(self) -> None:
        """C_Login."""
        self.logins += 1
        if self.code:
            raise CryptokiError("C_Login", self.code)


def test_a_refused_pin_is_not_shown_again(tmp_path: Path) -> None:
    """After CKR_PIN_INCORRECT the same PIN is refused without a login, by a new guard too."""
    token = Token(ckr.CKR_PIN_INCORRECT)
    for _ in range(3):
        with pytest.raises(PinRefusedError, match=r"the PIN from a test was refused \(CKR_PIN_INCORRECT\)"):
            LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    assert token.logins == 1


def test_another_pin_and_another_token_are_free(tmp_path: Path) -> None:
    """The guard holds back one PIN of one token; a right PIN does not set the wrong one free."""
    token = Token(ckr.CKR_PIN_INCORRECT)
    with pytest.raises(PinRefusedError):
        LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    token.code = ckr.CKR_OK
    LoginGuard("tls 1", tmp_path).login(Pin(b"right", "a test"), token.login)
    LoginGuard("tls 2", tmp_path).login(PIN, token.login)
    assert token.logins == 3
    with pytest.raises(PinRefusedError):
        LoginGuard("tls 1", tmp_path).login(PIN, token.login)


def test_the_operator_resets_it(tmp_path: Path) -> None:
    """A reset names what it set free, and only of the tokens asked for."""
    token = Token(ckr.CKR_PIN_LOCKED)
    for name in ("tls 1", "web 2"):
        with pytest.raises(PinRefusedError, match="CKR_PIN_LOCKED"):
            LoginGuard(name, tmp_path).login(PIN, token.login)
    assert [state.token for state in reset_guards(tmp_path, "web")] == ["web 2"]
    assert sorted((state.token, state.refused) for state in guards(tmp_path)) == [
        ("(reset)", 0),
        ("tls 1", 1),
    ]
    token.code = ckr.CKR_OK
    LoginGuard("web 2", tmp_path).login(PIN, token.login)
    assert token.logins == 3


def test_other_failures_hold_nothing_back(tmp_path: Path) -> None:
    """A device that is away says nothing about the PIN."""
    token = Token(0x030)
    for _ in range(5):
        with pytest.raises(CryptokiError):
            LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    assert token.logins == 5


def test_attempts_that_were_cut_off_count_after_the_third(tmp_path: Path) -> None:
    """A process that dies in C_Login again and again must not go on showing the same PIN."""

    class Died(BaseException):
        """The end of the process."""

    logins = 0

    def die() -> None:
        nonlocal logins
        logins += 1
        raise Died

    for _ in range(3):
        with pytest.raises(Died):
            LoginGuard("tls 1", tmp_path).login(PIN, die)
    with pytest.raises(PinRefusedError, match="attempts that were cut off"):
        LoginGuard("tls 1", tmp_path).login(PIN, die)
    assert logins == 3


def test_no_file_holds_the_pin_and_only_its_owner_reads_them(tmp_path: Path) -> None:
    """A salted fingerprint is kept, mode 0600 in a directory 0700; two guards have other salts."""
    for name in ("tls 1", "tls 2"):
        with pytest.raises(PinRefusedError):
            LoginGuard(name, tmp_path).login(PIN, Token(ckr.CKR_PIN_INCORRECT).login)
    files = list((tmp_path / "pin-guard").iterdir())
    texts = [file.read_text() for file in files]
    assert not any("secret" in text for text in texts)
    assert len({text.partition("fingerprint")[2] for text in texts}) == 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (tmp_path / "pin-guard").stat().st_mode & 0o777 == 0o700


def test_a_damaged_guard_stops_logins(tmp_path: Path) -> None:
    """What it held back is not known any more, so nothing is tried until somebody looks."""
    token = Token()
    LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    (file,) = (tmp_path / "pin-guard").iterdir()
    file.write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    reset_guards(tmp_path)
    LoginGuard("tls 1", tmp_path).login(PIN, token.login)
    assert token.logins == 2


_RACER = """
import sys
from pathlib import Path
from hsm.node import ckr
from hsm.node.pin import LoginGuard, Pin, PinRefusedError
directory = Path(sys.argv[1])
def login():
    with (directory / "logins").open("a") as file:
        file.write("x")
    raise ckr.CryptokiError("C_Login", ckr.CKR_PIN_INCORRECT)
sys.stdin.readline()
try:
    LoginGuard("tls 1", directory).login(Pin(b"wrong", "a test"), login)
except PinRefusedError:
    print("refused")
"""


def test_processes_that_start_together_cost_one_attempt(tmp_path: Path) -> None:
    """Six processes race with the same wrong PIN: the token sees it once."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(tmp_path)],
            env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=LIMIT)[0].strip() for racer in racers] == ["refused"] * 6
    assert (tmp_path / "logins").read_text() == "x"


def test_a_state_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """Without a guard no login is made: the message names the variable to set."""
    (tmp_path / "file").touch()
    token = Token()
    with pytest.raises(ConfigurationError, match="set HSM_STATE_DIRECTORY to a directory that this user may"):
        LoginGuard("tls 1", tmp_path / "file").login(PIN, token.login)
    assert token.logins == 0


def test_the_state_directory_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable first, then systemd's, then the user's own."""
    monkeypatch.setenv("HSM_STATE_DIRECTORY", "/a")
    monkeypatch.setenv("STATE_DIRECTORY", "/b:/c")
    assert state_directory() == Path("/a")
    monkeypatch.delenv("HSM_STATE_DIRECTORY")
    assert state_directory() == Path("/b")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() in (Path("/var/lib/offload"), tmp_path / "offload")


def test_pins_are_read_from_files_descriptors_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One newline at the end is no part of it, blanks and colons are; a pipe is read whole."""
    (tmp_path / "pin").write_bytes(b"user: p w \n")
    monkeypatch.setenv("TOKEN_PIN", "user: p w ")
    reading, writing = os.pipe()
    os.write(writing, b"user: p w \r\n")
    os.close(writing)
    held = os.open(tmp_path / "pin", os.O_RDONLY)
    try:
        for source in (
            f"file:{tmp_path}/pin", f"file://{tmp_path}/pin", f"{tmp_path}/pin", f"fd:{reading}",
            f"fd:{held}", f"fd:{held}", "env:TOKEN_PIN",
        ):  # fmt: skip
            assert read_pin(source).reveal() == b"user: p w "
    finally:
        os.close(reading)
        os.close(held)


def test_a_pin_does_not_show_itself() -> None:
    """Its repr tells where it is from."""
    assert repr(PIN) == "<Pin from a test>"
    assert str(PIN) == "<Pin from a test>"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (lambda path: f"file:{path}/none", "cannot read file .*/none: No such file or directory"),
        (lambda path: f"file:{path}/empty", "file .*/empty is empty; put the PIN there"),
        (lambda path: f"file:{path}/long", "is longer than any PIN"),
        (lambda _: "env:NO_SUCH_PIN", "environment variable NO_SUCH_PIN is not set"),
        (lambda _: "fd:999", "cannot read file descriptor 999: Bad file descriptor"),
        (lambda _: "fd:x", "write file:/path, fd:NUMBER or env:NAME"),
        (lambda _: "secret", "write file:/path, fd:NUMBER or env:NAME"),
        (lambda _: "|cat /pin", "write file:/path, fd:NUMBER or env:NAME"),
    ],
)
def test_a_pin_that_is_not_there(tmp_path: Path, source: Callable[[Path], str], complaint: str) -> None:
    """The message names the place; a source that may be the PIN itself is not repeated."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("1" * 5000)
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read_pin(source(tmp_path))
    assert "secret" not in str(caught.value)
