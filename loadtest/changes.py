"""What clients notice when the proxy changes under load: a new certificate, a new process.

    python -m loadtest.changes reload|restart [--rate N]

Clients arrive by a timetable (`generator`); each makes a full handshake and one small request.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from loadtest.bench import progress
from loadtest.figures import Bar, Figure
from loadtest.generate.connections import Target
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Record, summarise
from loadtest.generate.schedule import Phase
from loadtest.targets.agreement import HOST
from loadtest.targets.certificates import make_credentials, renew
from loadtest.targets.lab import Lab, LoadTestError, raise_file_limit
from loadtest.targets.peers import start_upstream
from loadtest.targets.proxy import start_node, start_proxy
from loadtest.verdict import reasons

WARM_UP, BEFORE, AFTER = 2.0, 5.0, 5.0
"""Seconds of load that are not judged, before a change, and from its beginning on."""
SERIAL_WITHIN = 2.0
RATES = {"reload": 300.0, "restart": 200.0}


def measure(what: Literal["reload", "restart"], rate: float) -> list[Figure]:
    """Change the proxy so while it is loaded. Raises LoadTestError."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        credentials = make_credentials(lab.directory, "p256")
        node = start_node(lab, "a", credentials.key.parent)
        proxy = start_proxy(lab, "proxy", {"web": credentials.chain}, start_upstream(lab).ports[0], [node])
        command = [sys.executable, "-m", "offload.cli", "--config", str(lab.directory / "proxy.yaml")]
        command.insert(3, "reload" if what == "reload" else "upgrade")
        port, figures = proxy.ports["web"], list[Figure]()
        length = WARM_UP + BEFORE + AFTER
        with Fleet(Order(targets=(Target(port=port),), phases=(Phase(length, rate),))) as fleet:
            fleet.begin()
            time.sleep(max(0.0, fleet.start + WARM_UP + BEFORE - time.monotonic()))
            changed = time.monotonic() - fleet.start
            if what == "reload":
                renew(credentials)
                begun = time.monotonic()
                lab.run(command)
                figures.append(
                    _serial_figure(port, begun, lambda: _fingerprint(credentials.chain.read_text()))
                )
            else:
                successor = int(re.findall(r"process (\d+) ", lab.run(command))[0])
                stack.callback(os.kill, successor, signal.SIGTERM)
            took = time.monotonic() - fleet.start - changed
            records = fleet.wait(length)
        progress(f"{what} at {rate:g} handshakes/s: the command took {took:.1f} s")
        return [*judge(records, changed, length), *figures]


def judge(records: list[Record], changed: float, end: float) -> list[Figure]:
    """What is to be reported of a change at `changed`, in seconds of the schedule."""
    judged = [record for record in records if record.intended >= WARM_UP]
    failed = [record for record in judged if record.failed]
    if failed:
        progress(f"clients saw: {reasons(failed)}")
    before = summarise(records, WARM_UP, changed).handshake.p99 * 1000
    after = summarise(records, changed, end).handshake.p99 * 1000
    return [
        Figure(f"failed of {len(judged)}", len(failed), "", len(failed), bar=Bar(0)),
        Figure("handshake p99 from the change on", after, "ms", after, before, bar=Bar(round(2 * before, 1))),
    ]


def _serial_figure(port: int, begun: float, wanted: Callable[[], str]) -> Figure:
    while _served(port) != wanted():
        if time.monotonic() > begun + 10 * SERIAL_WITHIN:
            raise LoadTestError("the new certificate is not served")
    took = time.monotonic() - begun
    return Figure("new certificate served after", took, "s", took, bar=Bar(SERIAL_WITHIN))


def _fingerprint(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _served(port: int) -> str:
    """The fingerprint of the certificate that a new client gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((HOST, port), timeout=5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


def main(
    what: Annotated[str, typer.Argument(help="reload or restart.")],
    rate: Annotated[float | None, typer.Option(min=10, help="Full handshakes a second.")] = None,
) -> None:
    """Change the proxy under load and say what clients noticed."""
    if what not in RATES:
        print(f"error: {what!r} is neither of {', '.join(RATES)}", file=sys.stderr)
        raise typer.Exit(2)
    raise_file_limit()
    try:
        for figure in measure("reload" if what == "reload" else "restart", rate or RATES[what]):
            print(figure)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
