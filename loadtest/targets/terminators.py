"""Other TLS-terminating proxies, to compare with: HAProxy, stunnel and hitch, from their Debian packages.

Each is set up as nginx is (`peers`): TLS 1.3 with the same cipher and group, no resumption, one
worker or thread pool, the key in its memory (stunnel's may be in a token), and the plaintext to
the same upstream.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest import procfs
from loadtest.targets.agreement import CIPHER, HOST, OPENSSL_GROUPS
from loadtest.targets.certificates import Credentials
from loadtest.targets.lab import Lab, Server, accepts, free_port, require
from loadtest.targets.pkcs11 import SlowToken


@dataclass(frozen=True)
class Terminator:
    """A running proxy with one listener."""

    server: Server
    port: int
    version: str

    def processes(self) -> dict[str, list[int]]:
        """Groups to measure: all that serves, as `worker` and as `tree`."""
        tree = procfs.process_tree(self.server.pid)
        return {"worker": tree, "tree": tree}


def start_haproxy(lab: Lab, name: str, credentials: Credentials, upstream_port: int) -> Terminator:
    """HAProxy in TCP mode, one thread. Raises LoadTestError or MissingToolError."""
    program = require("haproxy", "apt-get install haproxy")
    port = free_port()
    text = f"""global
  nbthread 1
  tune.ssl.cachesize 0
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen peer
  bind {HOST}:{port} ssl crt {_joined(credentials)} ciphersuites {CIPHER} curves {OPENSSL_GROUPS} ssl-min-ver TLSv1.3 no-tls-tickets
  server upstream {HOST}:{upstream_port}
"""
    path = _write(lab, f"{name}.cfg", text)
    return _started(lab, name, [program, "-db", "-f", str(path)], port, _version([program, "-v"]))


def start_stunnel(
    lab: Lab, name: str, credentials: Credentials, upstream_port: int, token: SlowToken | None = None
) -> Terminator:
    """stunnel, which has a thread for each connection; a token is reached through OpenSSL's pkcs11 engine.

    Raises LoadTestError or MissingToolError.
    """
    program = require("stunnel4", "apt-get install stunnel4")
    port = free_port()
    text = f"""{"engine = pkcs11" if token else ""}
foreground = yes
pid =
syslog = no
debug = err
[peer]
accept = {HOST}:{port}
connect = {HOST}:{upstream_port}
cert = {credentials.chain}
{"engineId = pkcs11" if token else ""}
key = {token.uri if token else credentials.key}
sslVersionMin = TLSv1.3
ciphersuites = {CIPHER}
curves = {OPENSSL_GROUPS}
options = NO_TICKET
"""
    path = _write(lab, f"{name}.conf", text)
    environment = token.environment if token else None
    return _started(lab, name, [program, str(path)], port, _version([program, "-version"]), environment)


def start_hitch(lab: Lab, name: str, credentials: Credentials, upstream_port: int) -> Terminator:
    """hitch with one worker. Raises LoadTestError or MissingToolError."""
    program = require("hitch", "apt-get install hitch")
    port = free_port()
    # It refuses to serve as root; everything that it reads is read before it changes to the user.
    user = 'user = "nobody"' if os.geteuid() == 0 else ""
    text = f"""frontend = {{ host = "{HOST}" port = "{port}" }}
backend = "[{HOST}]:{upstream_port}"
pem-file = "{_joined(credentials)}"
tls-protos = TLSv1.3
ciphersuites = "{CIPHER}"
workers = 1
daemon = off
backlog = 4096
log-level = 0
{user}
"""
    path = _write(lab, f"{name}.conf", text)
    return _started(lab, name, [program, f"--config={path}"], port, _version([program, "--version"]))


_STARTERS: Mapping[str, Callable[[Lab, str, Credentials, int], Terminator]] = {
    "haproxy": start_haproxy,
    "stunnel": start_stunnel,
    "hitch": start_hitch,
}


def start_terminator(
    lab: Lab, program: str, name: str, credentials: Credentials, upstream_port: int, token: SlowToken | None
) -> Terminator:
    """A proxy by its program; of these, stunnel alone takes a key from a token. Raises LoadTestError or MissingToolError."""
    if token is not None:
        return start_stunnel(lab, name, credentials, upstream_port, token)
    return _STARTERS[program](lab, name, credentials, upstream_port)


def _joined(credentials: Credentials) -> Path:
    """Chain and key in one file, as some want them."""
    path = credentials.chain.with_suffix(".pem")
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        with open(descriptor, "wb") as file:
            file.write(credentials.chain.read_bytes() + credentials.key.read_bytes())
    return path


def _write(lab: Lab, name: str, text: str) -> Path:
    path = lab.directory / name
    path.write_text(text)
    return path


def _started(
    lab: Lab,
    name: str,
    command: list[str],
    port: int,
    version: str,
    environment: Mapping[str, str] | None = None,
) -> Terminator:
    server = lab.start(name, command, environment)
    server.wait_until(lambda: accepts(port))
    return Terminator(server, port, version)


def _version(command: list[str]) -> str:
    """The first version number that a program tells of itself; empty if none."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\d+\.\d+[\w.~+-]*", done.stdout + done.stderr)
    return found[0] if found else ""
