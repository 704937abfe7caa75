"""nginx: the upstream that all sides share, and the peer that Offload is compared with.

The peer terminates TLS in its `stream` module with one worker and, as the bars say, the same
cipher as the others, buffers of 64 KB, and no resumption. It is installed from Debian:
`apt-get install nginx libnginx-mod-stream`.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import procfs
from loadtest.targets.agreement import CIPHER, HOST
from loadtest.targets.certificates import Credentials
from loadtest.targets.lab import Lab, MissingToolError, Server, accepts, free_port, require
from loadtest.targets.pkcs11 import SlowToken

_REMEDY = "apt-get install nginx libnginx-mod-stream"
_HTTP_SETTINGS = (
    "client_body_temp_path {name}.client_body; proxy_temp_path {name}.proxy; fastcgi_temp_path {name}.fastcgi; "
    "uwsgi_temp_path {name}.uwsgi; scgi_temp_path {name}.scgi; "
    "keepalive_timeout 1h; keepalive_requests 1000000000; client_header_timeout 1h;"
)
_FORWARD = (
    "location / { proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ''; "
    "proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; "
    "proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k; }"
)
"""As an HTTP proxy: connections to the upstream are kept, clients' addresses told."""
SMALL_BYTES = 200
LARGE_BYTES = 1_000_000
"""Size of the large body: 1 MB."""


@dataclass(frozen=True)
class Nginx:
    """A running nginx; `ports` as asked for when it was started."""

    server: Server
    ports: tuple[int, ...]

    def processes(self) -> dict[str, list[int]]:
        """Groups to measure: `worker` is its one worker, `tree` master and worker."""
        tree = procfs.process_tree(self.server.pid)
        return {"worker": tree[1:], "tree": tree}


@dataclass(frozen=True, slots=True)
class Terminator:
    """A TLS server in the peer: a certificate and where its key is."""

    chain: Path
    key: str

    @classmethod
    def in_memory(cls, credentials: Credentials) -> Terminator:
        """The key is read from a file and stays in nginx's memory."""
        return cls(credentials.chain, str(credentials.key))

    @classmethod
    def on_token(cls, credentials: Credentials, token: SlowToken) -> Terminator:
        """The key stays in a token, reached through OpenSSL's pkcs11 engine."""
        return cls(credentials.chain, f"engine:pkcs11:{token.uri}")


def nginx_version() -> str:
    """Such as `nginx/1.22.1, OpenSSL 3.0.19`. Raises MissingToolError."""
    text = _describe(require("nginx", _REMEDY))
    name = re.search(r"nginx version: (\S+)", text)
    library = re.search(r"running with (OpenSSL \S+)", text) or re.search(r"built with (OpenSSL \S+)", text)
    return ", ".join(match[1] for match in (name, library) if match)


def _describe(nginx: str) -> str:
    done = subprocess.run([nginx, "-V"], capture_output=True, text=True, timeout=10, check=False)
    return done.stderr


def _stream_module(nginx: str) -> str:
    """The directive that loads the stream module; empty where it is built in."""
    text = _describe(nginx)
    if re.search(r"--with-stream(?:\s|$)", text):
        return ""
    found = re.search(r"--modules-path=(\S+)", text)
    module = Path(found[1] if found else "") / "ngx_stream_module.so"
    if not module.is_file():
        raise MissingToolError(f"nginx's stream module is missing: {_REMEDY}")
    return f"load_module {module};"


def _head(name: str, nginx: str, environment: Sequence[str] = (), stream: bool = False) -> str:
    # Started by root, nginx would change to a user that can't read the temporary directory.
    user = "user root;" if os.geteuid() == 0 else ""
    variables = " ".join(f"env {variable};" for variable in environment)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"""{_stream_module(nginx) if stream else ""}
{user}
{variables}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {name}.pid;
error_log {name}.error.log error;
events {{ worker_connections {files}; }}
"""


def _start(lab: Lab, name: str, text: str, ports: Sequence[int], environment: Mapping[str, str]) -> Nginx:
    (lab.directory / f"{name}.conf").write_text(text)
    command = [require("nginx", _REMEDY), "-p", str(lab.directory), "-c", f"{name}.conf", "-e", "stderr"]
    server = lab.start(name, command, environment)
    server.wait_until(lambda: all(accepts(port) for port in ports))
    peer = Nginx(server, tuple(ports))
    # A listening socket accepts as soon as the master has bound it; the worker comes a little later.
    server.wait_until(lambda: len(peer.processes()["worker"]) == 1)
    return peer


def start_upstream(lab: Lab, name: str = "upstream") -> Nginx:
    """A plain web server with `/small` (200 bytes) and `/large` (1 MB); one port."""
    pages = lab.directory / "pages"
    pages.mkdir(exist_ok=True)
    (pages / "small").write_bytes(b"s" * SMALL_BYTES)
    (pages / "large").write_bytes(os.urandom(LARGE_BYTES))
    port = free_port()
    text = (
        _head(name, require("nginx", _REMEDY))
        + f"""
http {{
  access_log off; sendfile on; tcp_nopush on; open_file_cache max=10;
  {_HTTP_SETTINGS.format(name=name)}
  server {{ listen {HOST}:{port} backlog=4096; root {pages}; }}
}}
"""
    )
    return _start(lab, name, text, [port], {})


def start_peer(
    lab: Lab,
    name: str,
    upstream: Nginx,
    terminators: Sequence[Terminator],
    environment: Mapping[str, str] | None = None,
    *,
    http: bool = False,
) -> Nginx:
    """nginx terminating TLS before `upstream`, in its `stream` or `http` module; one port for each terminator.

    `environment` reaches the worker too: a slow token's settings. Raises LoadTestError or MissingToolError.
    """
    environment = environment or {}
    ports = [free_port() for _ in terminators]
    action = _FORWARD if http else f"proxy_pass {HOST}:{upstream.ports[0]};"
    servers = "\n".join(
        f'  server {{ listen {HOST}:{port} ssl backlog=4096; ssl_certificate "{terminator.chain}"; '
        f'ssl_certificate_key "{terminator.key}"; {action} }}'
        for port, terminator in zip(ports, terminators, strict=True)
    )
    head = _head(name, require("nginx", _REMEDY), list(environment), stream=not http)
    settings = "proxy_buffer_size 64k; proxy_timeout 1h;"
    if http:
        settings = (
            f"access_log off; {_HTTP_SETTINGS.format(name=name)} "
            f"upstream web {{ server {HOST}:{upstream.ports[0]}; keepalive 64; }}"
        )
    text = f"""{head}
{"http" if http else "stream"} {{
  ssl_protocols TLSv1.2 TLSv1.3; ssl_conf_command Ciphersuites {CIPHER};
  ssl_session_tickets off; ssl_session_cache off;
  {settings}
{servers}
}}
"""
    return _start(lab, name, text, ports, environment)
