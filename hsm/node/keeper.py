"""One thread keeps the token: loads the module, logs in, knows the keys, holds the login's session.

PKCS#11 logs a whole process in, for as long as one of its sessions is open (2.40 base §5.6, C_Login);
so one session is never used for signatures and never given back. All logins of the process happen on
this thread, one after the other; those of the machine by `hsm.node.pin.LoginGuard`.

Handles belong to an epoch: `epoch` grows with every session that is lost and every new login, and the
handles that a scan found are good for sessions of its own epoch or an older one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hsm.errors import ConfigurationError
from hsm.node.ckr import CryptokiError, Step
from hsm.node.cryptoki import Module, Session, TokenInfo
from hsm.node.keys import Found, KeyScanner, TokenKey, TokenObject
from hsm.node.mechanisms import CKM_ECDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, MechanismInfo
from hsm.node.pin import LoginGuard, Pin
from hsm.node.uri import Pkcs11Uri
from hsm.signing import PublicKey

Report = Callable[..., None]
"""`report(event, **fields)`: a log line, from any thread."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which token, and how to get in. Times in seconds."""

    uri: Pkcs11Uri
    module_path: str
    pin: Callable[[], Pin | None]
    """Reads the PIN, again for each login; None where there is none to give."""
    mapped: Mapping[str, PublicKey]
    keepalive: float
    state_directory: Any


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The keys of the last scan, and the epoch that their handles belong to."""

    epoch: int
    found: Found


class Keeper(threading.Thread):
    """See the module's text. Its methods may be called from any thread."""

    def __init__(
        self,
        target: Target,
        report: Report,
        on_keys: Callable[[KeyTable], None],
        on_fatal: Callable[[str], None],
    ) -> None:
        """`on_keys` is told of each new table, `on_fatal` when only a fresh process helps; on this thread."""
        super().__init__(name="keeper", daemon=True)
        self.opened: Future[TokenInfo] = Future()
        self.epoch = 0
        self.logins = 0
        self.table = KeyTable(0, Found({}, ()))
        self.module: Module
        self.token: TokenInfo
        self._target = target
        self._report = report
        self._on_keys = on_keys
        self._on_fatal = on_fatal
        self._scanner: KeyScanner
        self._session: Session
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()

    # For other threads

    def lost(self) -> int:
        """A session or handle went bad: the epoch that starts now."""
        with self._lock:
            self.epoch += 1
            return self.epoch

    def login_again(self, seen: int) -> None:
        """Log in again unless that was done after `seen` logins; returns when it is done.

        Raises CryptokiError or ConfigurationError.
        """
        done: Future[None] = Future()

        def order() -> None:
            try:
                if self.logins <= seen:
                    self._login_anew()
            except Exception as error:  # told to the one who waits
                done.set_exception(error)
            else:
                done.set_result(None)

        self._orders.put(order)
        done.result()

    def rescan(self) -> Future[None]:
        """Look for keys again; done when the table is up to date, or can't be brought up to date."""
        done: Future[None] = Future()

        def order() -> None:
            self._look_after()
            done.set_result(None)

        self._orders.put(order)
        return done

    def stop(self, *, finalize: bool) -> None:
        """End the thread, once what is ordered is done, and with it the module's use (`finalize`).

        Not to be finalized while another thread is in a call of the module.
        """

        def order() -> None:
            if finalize:
                with contextlib.suppress(CryptokiError):
                    self.module.finalize()

        self._orders.put(order)
        self._orders.put(None)

    def open_session(self) -> Session:
        """Another session of the token. Raises CryptokiError."""
        return self.module.open_session(self.token.slot_id)

    # On its own thread

    def run(self) -> None:
        """Open the token, then carry out orders; between them, keep the session alive."""
        if not self.opened.set_running_or_notify_cancel():  # from here on nobody can cancel it
            return
        try:
            self._open()
        except BaseException as error:
            self.opened.set_exception(error)
            return
        self.opened.set_result(self.token)
        while True:
            try:
                order = self._orders.get(timeout=self._target.keepalive)
            except Empty:
                self._look_after()
                continue
            if order is None:
                return
            order()

    def _open(self) -> None:
        target = self._target
        try:
            self.module = Module(target.module_path)
            self.token = choose_token(self.module.tokens(), target.uri)
            mechanisms = self.module.mechanisms(self.token.slot_id)
            self._scanner = KeyScanner(mechanisms, target.mapped, key_filter(target.uri))
            self._session = self.open_session()
            log_in(self._session, self.token, self._target)
            self._scan()
        except CryptokiError as error:
            raise ConfigurationError(f"module {target.module_path}: {error}; is the token there?") from error
        self._report("token_open", **_token_fields(self.module, self.token, mechanisms))

    def _login_anew(self) -> None:
        self._session.close()
        self._session = self.open_session()
        log_in(self._session, self.token, self._target)
        self.logins += 1
        self.lost()
        self._scanner.forget()
        self._report("logged_in_again")
        self._scan()

    def _scan(self) -> None:
        epoch = self.epoch
        found = self._scanner.scan(self._session)
        before, self.table = self.table, KeyTable(epoch, found)
        if before.found is not found:
            for problem in found.problems:
                if problem not in before.found.problems:
                    self._report("key_not_offered", problem=problem)
            self._on_keys(self.table)

    def _look_after(self) -> None:
        """Use the session and see whether the keys have changed; put both right if they are not well."""
        try:
            try:
                self._session.probe()
                self._scan()
            except CryptokiError as error:
                self._report("login_session_lost", error=str(error))
                if error.step is Step.RESTART:
                    self._on_fatal(str(error))
                self._login_anew()
        except CryptokiError as error:
            self._report("token_lost", error=str(error))
        except ConfigurationError as error:  # the PIN is no good any more
            self._on_fatal(str(error))


def log_in(session: Session, token: TokenInfo, target: Target) -> None:
    """Log in, by the guard of the machine's logins; nothing to do where the token wants none.

    Raises CryptokiError, and ConfigurationError when there is no PIN, or a refused one.
    """
    if not token.needs_login:
        return
    pin = target.pin()
    if pin is None:
        if not token.has_pin_pad:
            raise ConfigurationError(
                f"token {token.label!r} wants a PIN; name its source: pin-source=file:/path, fd:N or env:NAME"
            )
        session.login(None)
        return
    name = f"{token.label} {token.manufacturer} {token.model} {token.serial}"
    guard = LoginGuard(" ".join(name.split()), target.state_directory)
    guard.login(pin, lambda: session.login(pin.reveal()))


def choose_token(tokens: list[TokenInfo], uri: Pkcs11Uri) -> TokenInfo:
    """The one token that a URI names; pure. Raises ConfigurationError if it is none, or several."""
    wanted = {
        "label": uri.token,
        "manufacturer": uri.manufacturer,
        "model": uri.model,
        "serial": uri.serial,
        "slot_id": uri.slot_id,
        "slot_description": uri.slot_description,
    }
    fitting = [
        token
        for token in tokens
        if all(value is None or getattr(token, name) == value for name, value in wanted.items())
    ]
    if len(fitting) == 1:
        return fitting[0]
    shown = "; ".join(map(str, fitting or tokens)) or "no token at all"
    if fitting:
        raise ConfigurationError(
            f"{uri}: several tokens fit; add serial= or slot-id= to choose one of: {shown}"
        )
    raise ConfigurationError(
        f"{uri}: no such token; the module has: {shown}; check its name, env: and the device"
    )


def key_filter(uri: Pkcs11Uri) -> Callable[[TokenObject], bool]:
    """Which private keys a URI means: all, or those of its `object` and `id`."""

    def wanted(key: TokenObject) -> bool:
        return (uri.object is None or key.label == uri.object) and (uri.id is None or key.id == uri.id)

    return wanted


def _token_fields(
    module: Module, token: TokenInfo, mechanisms: Mapping[int, MechanismInfo]
) -> dict[str, object]:
    names = {CKM_RSA_PKCS: "RSA_PKCS", CKM_RSA_PKCS_PSS: "RSA_PKCS_PSS", CKM_ECDSA: "ECDSA"}
    about = module.describe()
    return {
        "module": f"{about['manufacturer']} {about['description']} {about['version']}",
        "token": token.label,
        "serial": token.serial,
        "mechanisms": " ".join(names[kind] for kind in mechanisms if kind in names),
        "max_rw_sessions": token.max_rw_sessions,
    }


def find_handle(session: Session, key: TokenKey) -> int | None:
    """A key's handle in this session; None if it is not there, or not alone. Raises CryptokiError."""
    handles = session.find(key.locator)
    return handles[0] if len(handles) == 1 else None
