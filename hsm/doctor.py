"""Examines tokens and nodes: does each key sign, by each scheme, and how fast; what is wrong otherwise.

A PKCS#11 module is never loaded into this process: `hsm.node.examination` does that in a child, whose
crash or hanging is a finding like another.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import IO

from hsm import start
from hsm.client import ClusterClient
from hsm.config import Pkcs11Settings
from hsm.connect import SIGN_TIMEOUT, connect, key_details
from hsm.errors import HSMError
from hsm.findings import Finding, Level, broken, key_warnings, ok, signed, warning
from hsm.inventory import KeyDetails
from hsm.options import NodeTarget
from hsm.signing import SCHEME_BY_OPCODE, SignatureScheme
from hsm.terminal import counted
from hsm.verification import VerificationKey

START_PATIENCE = 30.0
"""Seconds until the child has started: no time of the module's."""
SAMPLES = 5
PARALLEL = 32


def examine_token(settings: Pkcs11Settings, patience: float) -> Iterator[Finding]:
    """Examine a PKCS#11 token; `patience` is for how many seconds the module may do one thing."""
    file = _settings_file(settings)
    try:
        process = subprocess.Popen(
            start.command("hsm.node.examination", f"/proc/self/fd/{file}", str(os.getpid())),
            pass_fds=(file, *settings.inherited_descriptors()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    finally:
        os.close(file)
    assert process.stdout is not None
    step = "starting"
    try:
        for line in _lines(process.stdout, max(patience, START_PATIENCE), patience):
            if line is None:
                yield broken("module", f"no answer for {patience:g} s while {step}; it hangs")
                return
            told = json.loads(line)
            if "step" in told:
                step = told["step"]
            else:
                yield Finding(Level(told["level"]), told["subject"], told["text"])
        code = process.wait()
        if code:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            yield broken("module", f"ended its process {how} while {step}; ask its vendor for a newer one")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _settings_file(settings: Pkcs11Settings) -> int:
    """The token's settings in a file that exists in memory only: they may hold a PIN."""
    descriptor = os.memfd_create("examination")
    told = {name: value for name, value in settings.revealed().items() if name in Pkcs11Settings.model_fields}
    os.write(descriptor, json.dumps(told).encode())
    return descriptor


def _lines(stream: IO[bytes], first: float, patience: float) -> Iterator[bytes | None]:
    """The stream's lines until its end; None, and no more, when nothing came for so many seconds."""
    rest, left = b"", first
    while True:
        ready, _, _ = select.select([stream], [], [], left)
        if not ready:
            yield None
            return
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return
        left = patience
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


async def examine_node(target: NodeTarget) -> AsyncIterator[Finding]:
    """Examine a running node over its address. Raises ConfigurationError if it can't be asked."""
    cluster = await connect(target, "always")
    try:
        keys = await key_details(cluster)
        yield ok("node", f"{target.node} holds {counted(len(keys), 'key')}")
        if not keys:
            yield broken("node", "no key to sign with; put one into its token")
        for key in keys:
            for warned in key_warnings(key):
                yield warned
            if key.public_key is None:
                yield warning(f"key {key}", "the node does not tell its public half: nothing can be verified")
            else:
                cluster.add_key(VerificationKey(key.public_key))
            for scheme in (SCHEME_BY_OPCODE[o] for o in sorted(key.opcodes) if o in SCHEME_BY_OPCODE):
                yield await _time(cluster, key, scheme)
    finally:
        await cluster.close()


async def _time(cluster: ClusterClient, key: KeyDetails, scheme: SignatureScheme) -> Finding:
    taken: list[float] = []

    async def sign() -> None:
        await cluster.sign_async(key.ski, scheme, os.urandom(scheme.digest_size), SIGN_TIMEOUT)

    try:
        for _ in range(SAMPLES):
            started = monotonic()
            await sign()
            taken.append(monotonic() - started)
    except HSMError as error:
        return broken(f"key {key}", f"{scheme.name} does not sign: {error}")
    ended = await asyncio.gather(*(sign() for _ in range(PARALLEL)), return_exceptions=True)
    failed = [error for error in ended if isinstance(error, HSMError)]
    if failed:
        return broken(
            f"key {key}", f"{len(failed)} of {PARALLEL} {scheme.name} signatures at once failed: {failed[0]}"
        )
    return signed(key, scheme, taken)
