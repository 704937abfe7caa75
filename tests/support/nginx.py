"""A real nginx, with its stream module, on ports that the test chose."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import eventually
from tests.support.hsm_support import missing, require

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _stream_module(nginx: str) -> str:
    told = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    if re.search(r"--with-stream(\s|$)", told):
        return ""
    found = re.search(r"--modules-path=(\S+)", told)
    module = Path(found[1] if found else "") / "ngx_stream_module.so"
    if not module.is_file():
        missing("nginx has no stream module (Debian: libnginx-mod-stream)")
    return f"load_module {module};"


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@contextlib.contextmanager
def running_nginx(
    directory: Path, ports: Sequence[int], *, http: str = "", stream: str = ""
) -> Iterator[None]:
    """nginx with these blocks; when the `with` block begins it accepts on `ports`.

    Relative paths, such as those of logs, are in `directory`.
    """
    nginx = require("nginx")
    directory.mkdir(exist_ok=True)
    temporary = " ".join(f"{kind}_temp_path temp.{kind};" for kind in _TEMPORARY)
    (directory / "nginx.conf").write_text(
        f"""{_stream_module(nginx)}
{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes 1; pid nginx.pid; error_log error.log info;
events {{ worker_connections 512; }}
http {{ {temporary} {http or "access_log off;"} }}
stream {{ {stream} }}
"""
    )
    command = [nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: process.poll() is not None or all(map(_accepts, ports)), "nginx accepts")
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield
        finally:
            process.terminate()
