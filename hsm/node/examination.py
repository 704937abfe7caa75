"""What a doctor looks at in a PKCS#11 token, in a process of its own: `python -m hsm.node.examination`.

A module that hangs or crashes takes only that process with it. It is told the settings by a file, and
writes a line of JSON for each thing that it is about to do and for each finding (`hsm.doctor` reads them).
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

from hsm import config, logs
from hsm.config import Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.findings import Finding, Level, broken, key_warnings, ok, signed, warning
from hsm.node import environment
from hsm.node.ckr import CryptokiError
from hsm.node.cryptoki import Session, TokenInfo
from hsm.node.direct import DirectToken, sign
from hsm.node.keys import TokenKey
from hsm.node.pkcs11 import target_of
from hsm.process import die_with_parent, forbid_dumps
from hsm.signing import SCHEME_BY_OPCODE, SignatureScheme
from hsm.verification import VerificationKey

FEW_SESSIONS = 8
"""A token that allows fewer sessions limits the node's throughput."""
CLOCK_TOLERANCE = timedelta(seconds=30)
SAMPLES = 5
SAMPLE_TIME = 0.5
"""Seconds after which no further sample of a slow signature is taken."""
THREADS = 4
PARALLEL_EACH = 25
PARALLEL_TIME = 2.0
"""Seconds after which the threads of a slow token stop."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done next: told first, because the module may end the process in it, or never return."""

    text: str


@dataclass(frozen=True, slots=True)
class Proven:
    """A key and a scheme by which it signs, and what verifies that."""

    key: TokenKey
    scheme: SignatureScheme
    verifier: VerificationKey


def examine(token: DirectToken, now: datetime) -> Iterator[Step | Finding]:
    """Everything about a token that was opened. Raises CryptokiError where going on makes no sense."""
    yield from _about(token, now)
    yield Step("opening a read-only session")
    yield _read_only(token)
    yield Step("reading the keys")
    found = token.keys()
    for problem in found.problems:
        yield warning("token", f"not offered: {problem}")
    if not found.keys:
        yield broken("token", "no key to sign with; make one with 'hsm keygen --token-uri', or import one")
    good: list[Proven] = []
    for key in found.keys.values():
        yield from key_warnings(key.details())
        verifier = VerificationKey(key.public_key)
        for scheme in (SCHEME_BY_OPCODE[opcode] for opcode in sorted(key.opcodes)):
            yield Step(f"signing by {scheme.name} with key {key.details()}")
            way = Proven(key, scheme, verifier)
            finding = _time(token.session, way)
            yield finding
            if finding.level is Level.OK:
                good.append(way)
    if good:
        yield Step("signing from several sessions at once")
        yield _in_parallel(token, good)


def _about(token: DirectToken, now: datetime) -> Iterator[Finding]:
    about, info = token.module.describe(), token.info
    yield ok(
        "module",
        f"{about['manufacturer']} {about['description']} {about['version']}, PKCS#11 {about['cryptoki']}",
    )
    yield ok("token", str(info))
    yield session_finding(info)
    if info.utc_time:
        yield clock_finding(info.utc_time, now)


def session_finding(info: TokenInfo) -> Finding:
    """Whether the token allows enough sessions; one is the login's own. Pure."""
    most = info.max_rw_sessions
    if most is None:
        return ok("token", "tells no limit of its sessions")
    if most < FEW_SESSIONS:
        return warning(
            "token",
            f"allows {most} read-write sessions, so a node makes at most {max(1, most - 1)} signatures at a time; "
            "raise the token's limit, or add nodes with other tokens",
        )
    return ok("token", f"allows {most} read-write sessions")


def clock_finding(utc_time: str, now: datetime) -> Finding:
    """Whether a token's clock, `YYYYMMDDhhmmss00`, goes with this machine's. Pure."""
    try:
        shown = datetime.strptime(utc_time[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return warning("token", f"its clock shows {utc_time!r}, which is no time")
    ahead = (shown - now).total_seconds()
    if abs(ahead) > CLOCK_TOLERANCE.total_seconds():
        way = "ahead of" if ahead > 0 else "behind"
        return warning(
            "token", f"its clock is {abs(ahead):.0f} s {way} this machine's; set the one that is wrong"
        )
    return ok("token", "its clock goes with this machine's")


def _read_only(token: DirectToken) -> Finding:
    try:
        token.module.open_session(token.info.slot_id, read_only=True).close()
    except CryptokiError as error:
        return warning(
            "token",
            f"refuses read-only sessions ({error.name}): nodes open read-write ones, other programs may fail",
        )
    return ok("token", "opens read-only sessions too")


def _time(session: Session, way: Proven) -> Finding:
    key, scheme, taken = way.key, way.scheme, list[float]()
    subject = f"key {key.details()}"
    until = monotonic() + SAMPLE_TIME
    while len(taken) < SAMPLES and (not taken or monotonic() < until):
        digest = os.urandom(scheme.digest_size)
        started = monotonic()
        try:
            signature = sign(session, key, scheme, digest)
        except (CryptokiError, ValueError) as error:
            return broken(subject, f"{scheme.name} does not sign: {error}")
        taken.append(monotonic() - started)
        if not way.verifier.verify(scheme, digest, signature):
            return broken(subject, f"{scheme.name} signs wrongly: the signature does not verify")
    return signed(key.details(), scheme, taken)


def _in_parallel(token: DirectToken, good: list[Proven]) -> Finding:
    """Sign in several threads, each with its session, and verify all: is the module safe to be used so?"""
    most = token.info.max_rw_sessions
    sessions: list[Session] = []
    try:
        while len(sessions) < (THREADS if most is None else max(1, min(THREADS, most - 1))):
            sessions.append(token.open_session())
    except CryptokiError as error:
        return broken("module", f"opens {len(sessions) + 1} sessions and no more: {error}; set sessions: 1")
    outcomes: list[str] = []
    threads = [
        threading.Thread(target=_sign_many, args=(session, good, outcomes), daemon=True)
        for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [outcome for outcome in outcomes if outcome]
    how = f"signatures made in {len(sessions)} sessions at once"
    if failed:
        return broken(
            "module",
            f"{len(failed)} of {len(outcomes)} {how} failed ({failed[0]}): it is not safe to be used by several "
            "threads; ask its vendor, or set sessions: 1 and run more nodes",
        )
    return ok("module", f"all {len(outcomes)} {how} verify")


def _sign_many(session: Session, good: list[Proven], outcomes: list[str]) -> None:
    until = monotonic() + PARALLEL_TIME
    for turn in range(PARALLEL_EACH):
        if monotonic() > until:
            return
        way = good[turn % len(good)]
        digest = os.urandom(way.scheme.digest_size)
        try:
            signature = sign(session, way.key, way.scheme, digest)
        except (CryptokiError, ValueError) as error:
            outcomes.append(str(error))
        else:
            is_right = way.verifier.verify(way.scheme, digest, signature)
            outcomes.append("" if is_right else "a wrong signature")


def _steps(settings: Pkcs11Settings) -> Iterator[Step | Finding]:
    """The whole examination, the module's loading included."""
    yield Step("loading the module and logging in")
    try:
        with DirectToken(target_of(settings, logs.configure("doctor", "warning"))) as token:
            yield from examine(token, datetime.now(UTC))
            yield Step("letting the module go")
    except CryptokiError as error:
        yield broken("module", f"{error}; nothing more can be examined")
    except ConfigurationError as error:
        yield broken("token", str(error))


def main(settings_file: str, parent: str) -> None:
    """Examine the token that a file describes, for the process `parent`, until it ends."""
    die_with_parent(int(parent))
    settings = config.load(Path(settings_file), Pkcs11Settings)
    environment.apply(settings)  # may start this program anew
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    forbid_dumps()
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the module prints is not a finding
    for step in _steps(settings):
        line = {"step": step.text} if isinstance(step, Step) else step.as_json()
        print(json.dumps(line), file=report, flush=True)
