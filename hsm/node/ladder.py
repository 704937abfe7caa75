"""A session that signs, and the ladder that it climbs when the module says no.

Rungs: find the key again, open another session, log in again, have a fresh process. What the codes mean
is in `hsm.node.ckr`; here is what is done. Faults of the device are answered at once, so that the client
can ask another node; the session is put in order after that.
"""

from __future__ import annotations

import contextlib
from time import monotonic

from hsm import keyless
from hsm.errors import ConfigurationError
from hsm.node.ckr import Class, CryptokiError, Step
from hsm.node.cryptoki import Session
from hsm.node.keeper import Keeper, Report, find_handle
from hsm.node.keys import TokenKey
from hsm.node.sessions import Job
from hsm.node.token import Expired, Result, TokenError

RUNGS = 3
"""Tries at one signature after the first."""
RESTART_AFTER = 30.0
"""Seconds of nothing but faults of the device after which a fresh process is worth a try."""


class Health:
    """How the token fares, over all sessions of the node."""

    def __init__(self) -> None:
        self.failing_since = 0.0

    def well(self) -> None:
        """A signature was made."""
        if self.failing_since:
            self.failing_since = 0.0

    def failed(self, now: float) -> bool:
        """A fault of the device; whether that has lasted too long."""
        if not self.failing_since:
            self.failing_since = now
        return now - self.failing_since > RESTART_AFTER


class _KeyGoneError(Exception):
    """The token has no such key any more."""


class KeyRefusedError(TokenError):
    """The token will not do this with this key, now or later."""

    def __init__(self, error: CryptokiError) -> None:
        super().__init__(keyless.ERR_CRYPTO, str(error))
        self.is_for_good = error.code in _NEVER_CODES


_NEVER_CODES = (0x054, 0x063, 0x068, 0x070, 0x071)
"""CKR_FUNCTION_NOT_SUPPORTED, KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED, MECHANISM_(PARAM_)INVALID."""


class TokenSigner:
    """One session, used by one thread; `hsm.node.sessions.Signer`."""

    def __init__(self, keeper: Keeper, health: Health, report: Report, on_fatal: Report) -> None:
        self.is_spoiled = False
        self._keeper = keeper
        self._health = health
        self._report = report
        self._on_fatal = on_fatal
        self._session: Session | None = None
        self._handles: dict[bytes, int] = {}
        self._epoch = 0
        self._logins = 0

    def open(self) -> None:
        """Open the session; one that can't be opened now is opened with the next job."""
        try:
            self._open()
        except CryptokiError as error:
            self._report("session_not_opened", error=str(error))

    def sign(self, job: Job) -> Result:
        """The signature, or a TokenError that says where to try it next."""
        try:
            return self._sign(job)
        except CryptokiError as error:
            return self._recover(job, error)
        except _KeyGoneError:
            return self._key_gone(job)

    def settle(self) -> None:
        """After a fault of the device: this session is not to be trusted, open another."""
        self.is_spoiled = False
        try:
            self._reopen()
        except CryptokiError as error:
            self._report("session_not_opened", error=str(error))

    def probe(self) -> None:
        """Keep the session alive; one that is not is opened again."""
        try:
            if self._session is None:
                self._open()
            else:
                self._session.probe()
        except CryptokiError:
            self.settle()

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> Session:
        self._epoch, self._logins = self._keeper.epoch, self._keeper.logins
        self._session = self._keeper.open_session()
        return self._session

    def _reopen(self) -> None:
        self.close()
        self._handles.clear()
        self._keeper.lost()
        self._open()

    def _sign(self, job: Job) -> bytes:
        session = self._session or self._open()
        key = job.key
        handle = self._handles.get(key.ski) or self._find(session, key)
        raw = session.sign(job.recipe.mechanism, handle, job.data)
        self._health.well()
        return job.recipe.signature(raw)

    def _find(self, session: Session, key: TokenKey) -> int:
        table = self._keeper.table
        known = table.found.keys.get(key.ski)
        if known is not None and table.epoch >= self._epoch:
            handle: int | None = known.handle
        else:  # the scan is older than this session: its handles may be another object's by now
            handle = find_handle(session, key)
        if handle is None:
            raise _KeyGoneError
        self._handles[key.ski] = handle
        return handle

    def _recover(self, job: Job, error: CryptokiError) -> Result:
        for _ in range(RUNGS):
            if error.kind is not Class.RETRY_HERE:
                break
            if monotonic() > job.deadline:
                return Expired()
            try:
                self._repair(job, error.step)
                return self._sign(job)
            except CryptokiError as again:
                error = again
            except _KeyGoneError:
                return self._key_gone(job)
            except ConfigurationError as refused:  # no login: the PIN is held back
                self._on_fatal(str(refused))
                return TokenError(keyless.ERR_INTERNAL, str(refused))
        return self._give_up(job, error)

    def _repair(self, job: Job, step: Step) -> None:
        if step is Step.REFIND:
            self._handles.pop(job.key.ski, None)
            self._epoch = self._keeper.lost()
            return
        if step is Step.LOGIN:
            self._keeper.login_again(self._logins)
        self._reopen()

    def _give_up(self, job: Job, error: CryptokiError) -> TokenError:
        self._report("signature_failed", key=job.key.label, error=str(error), reason=error.name)
        if error.kind is Class.KEY:
            return KeyRefusedError(error)
        if error.step is not Step.NONE:
            self.is_spoiled = True
        if error.step is Step.RESTART:
            self._on_fatal(str(error))
        elif error.kind is not Class.OPERATOR and self._health.failed(monotonic()):
            self._on_fatal(f"no signature for {RESTART_AFTER:.0f} s: {error}")
        return TokenError(keyless.ERR_INTERNAL, str(error))

    def _key_gone(self, job: Job) -> TokenError:
        with contextlib.suppress(KeyError):
            del self._handles[job.key.ski]
        self._keeper.rescan()
        return TokenError(keyless.ERR_KEY_NOT_FOUND, f"the token has key {job.key.label!r} no more")
