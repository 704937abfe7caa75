"""The PIN: where it comes from, and the guard that keeps a wrong one from locking the user.

A token locks its user after a few wrong PINs (CloudHSM: more than five), and nodes restart by
themselves: one wrong PIN in one file would lock the user for every node of the cluster. So all logins
of a machine go through a `LoginGuard`: one at a time (flock), and a PIN that the token has refused is
not shown to it again until it is changed or an operator resets the guard, restarts included. What the
guard keeps is a salted scrypt fingerprint, never the PIN.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from hsm.errors import ConfigurationError
from hsm.node import ckr
from hsm.node.ckr import CryptokiError

_PIN_MOST = 4096
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "maxmem": 64 * 2**20, "dklen": 32}
"""OWASP's lower end; a guess at a PIN costs about 50 ms of somebody who can read the file."""
_INTERRUPTED_MOST = 3
"""Attempts whose end nobody saw (the process was killed) before the PIN counts as refused."""
_ENTRIES_MOST = 32
_UNREADABLE = "(unreadable)"
STATE_VARIABLE = "HSM_STATE_DIRECTORY"
_CODES = (ckr.CKR_PIN_INCORRECT, ckr.CKR_PIN_INVALID, ckr.CKR_PIN_LEN_RANGE, ckr.CKR_PIN_LOCKED)
"""What C_Login says of a PIN that is not the user's; some tokens count one of a wrong length too."""


class Pin:
    """A PIN that shows itself nowhere. `reveal` is for C_Login alone."""

    __slots__ = ("_value", "source")

    def __init__(self, value: bytes, source: str) -> None:
        self._value = value
        self.source = source

    def reveal(self) -> bytes:
        """The PIN's bytes."""
        return self._value

    def __repr__(self) -> str:
        return f"<Pin from {self.source}>"


def read_pin(source: str) -> Pin:
    """The PIN of `file:/path` (or a plain absolute path), `fd:N` or `env:NAME`.

    One newline at the end is not part of it. Raises ConfigurationError.
    """
    kind, _, name = source.partition(":")
    if source.startswith("/"):
        kind, name = "file", source
    if kind == "file":
        # RFC 8089: file:/path and file:///path; the URI's own escapes are gone by now
        value, shown = _from_file(unquote(name.removeprefix("//"))), f"file {name.removeprefix('//')}"
    elif kind == "fd" and name.isdigit():
        value, shown = _from_descriptor(int(name)), f"file descriptor {name}"
    elif kind == "env" and name:
        value, shown = _from_environment(name), f"environment variable {name}"
    else:
        raise ConfigurationError("pin-source: write file:/path, fd:NUMBER or env:NAME")
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise ConfigurationError(f"pin-source: {shown} is empty; put the PIN there")
    if len(value) > _PIN_MOST:
        raise ConfigurationError(f"pin-source: {shown} is longer than any PIN; is it the right one?")
    return Pin(value, shown)


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_PIN_MOST + 3)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigurationError(f"pin-source: cannot read file {path}: {reason}") from error


def _from_descriptor(number: int) -> bytes:
    try:
        os.set_inheritable(number, False)  # not for programs that the module may start
        try:
            return os.pread(number, _PIN_MOST + 3, 0)  # a file can be read again after a restart
        except OSError:
            return b"".join(iter(lambda: os.read(number, _PIN_MOST), b""))  # a pipe, once
    except OSError as error:
        raise ConfigurationError(
            f"pin-source: cannot read file descriptor {number}: {error.strerror}; pass it to the process"
        ) from error


def _from_environment(name: str) -> bytes:
    value = os.environb.get(name.encode())
    if value is None:
        raise ConfigurationError(f"pin-source: environment variable {name} is not set")
    return value


def state_directory() -> Path:
    """Where guards live.

    $HSM_STATE_DIRECTORY, systemd's $STATE_DIRECTORY, /var/lib/offload for root, $XDG_STATE_HOME/offload.
    """
    named = os.environ.get(STATE_VARIABLE) or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/offload")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "offload"


class PinRefusedError(ConfigurationError):
    """The token does not take this PIN: now, or according to the guard, before."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """One token's guard file, for people: which token, and how many PINs are held back."""

    path: Path
    token: str
    refused: int


@dataclass(slots=True)
class _Entry:
    salt: str
    fingerprint: str
    code: str = ""
    """CKR name of the refusal; empty while an attempt is under way, or was when its process ended."""
    interrupted: int = 0

    def is_of(self, pin: Pin) -> bool:
        return secrets.compare_digest(self.fingerprint, _fingerprint(pin, self.salt))

    @property
    def holds_back(self) -> bool:
        return bool(self.code) or self.interrupted >= _INTERRUPTED_MOST


def _fingerprint(pin: Pin, salt: str) -> str:
    return hashlib.scrypt(pin.reveal(), salt=bytes.fromhex(salt), **_SCRYPT).hex()


class LoginGuard:
    """The guard of one token, shared by the processes of this machine and user."""

    def __init__(self, token: str, directory: Path) -> None:
        """`token` names it for ever: its serial number, say."""
        self._token = token
        name = hashlib.sha256(token.encode()).hexdigest()[:32]
        self._path = directory / "pin-guard" / f"{name}.json"

    def login(self, pin: Pin, attempt: Callable[[], None]) -> None:
        """Call `attempt` (C_Login) unless this PIN is held back; other logins wait meanwhile.

        Raises PinRefusedError, what `attempt` raises, or ConfigurationError if the guard can't be kept.
        """
        with self._locked() as descriptor:
            entries = self._read(descriptor)
            entry = next((entry for entry in entries if entry.is_of(pin)), None)
            if entry is not None and entry.holds_back:
                raise PinRefusedError(self._refusal(pin, entry.code or "attempts that were cut off"))
            if entry is None:
                salt = secrets.token_hex(16)
                entry = _Entry(salt, _fingerprint(pin, salt))
                entries.append(entry)
            entry.interrupted += 1  # undone below; counts if this process is killed in between
            self._write(descriptor, entries)
            try:
                attempt()
            except CryptokiError as error:
                entry.interrupted -= 1
                if error.code in _CODES:
                    entry.code = error.name
                self._write(descriptor, [e for e in entries if e.code or e.interrupted])
                if error.code in _CODES:
                    raise PinRefusedError(self._refusal(pin, error.name)) from error
                raise
            entries.remove(entry)
            self._write(descriptor, entries)

    def _refusal(self, pin: Pin, code: str) -> str:
        return (
            f"token {self._token}: the PIN from {pin.source} was refused ({code}); no further login is tried "
            "with it, lest the user be locked: put the right PIN there, or, if this one is right now, run "
            f"'hsm pin reset-guard' (the guard is {self._path})"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"{self._path}: cannot keep the login guard there: {error.strerror}; without it a wrong PIN "
                f"could lock the token: set {STATE_VARIABLE} to a directory that this user may write to"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released by the kernel if this process dies
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> list[_Entry]:
        data = os.pread(descriptor, 1 << 20, 0)
        if not data:
            return []
        try:
            rows = json.loads(data)["refused"]
            return [
                _Entry(str(r["salt"]), str(r["fingerprint"]), str(r["code"]), int(r["interrupted"]))
                for r in rows
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self._path}: damaged, so it is not known which PINs the token refused; "
                "check the PIN, then run 'hsm pin reset-guard'"
            ) from error

    def _write(self, descriptor: int, entries: list[_Entry]) -> None:
        rows = [
            {"salt": e.salt, "fingerprint": e.fingerprint, "code": e.code, "interrupted": e.interrupted}
            for e in entries[-_ENTRIES_MOST:]
        ]
        data = json.dumps({"token": self._token, "refused": rows}).encode()
        # One write over the old text, then the cut: a reader has to hold the lock anyway.
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)


def guards(directory: Path) -> list[GuardState]:
    """The guards kept in a state directory; unreadable ones count as one refused PIN."""
    states: list[GuardState] = []
    for path in sorted((directory / "pin-guard").glob("*.json")):
        try:
            content = json.loads(path.read_bytes() or b'{"token": "(reset)", "refused": []}')
            refused = sum(
                bool(r["code"]) or r["interrupted"] >= _INTERRUPTED_MOST for r in content["refused"]
            )
            states.append(GuardState(path, str(content["token"]), refused))
        except (OSError, ValueError, KeyError, TypeError):
            states.append(GuardState(path, _UNREADABLE, 1))
    return states


def reset_guards(directory: Path, token: str = "") -> list[GuardState]:
    """Let refused PINs be tried again: those of tokens whose name holds `token`. Returns what was reset.

    Raises OSError. The file stays, emptied: unlinked, a process that waits for it would hold another lock
    than the next.
    """
    reset = [state for state in guards(directory) if token in state.token or state.token == _UNREADABLE]
    for state in reset:
        with open(state.path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
    return [state for state in reset if state.refused]
