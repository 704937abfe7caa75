"""Where something listens: a TCP host and port, or a unix socket's path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_MAX = 107
"""Longest path of a unix socket in bytes (sun_path, unix(7))."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens: a TCP host and port, or a unix socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str) -> Address:
    """`127.0.0.1:8443`, `example.org:443`, `[::1]:8443`. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:\s/]+)):([0-9]+)", text)
    if match is None:
        raise ValueError(f"{text!r} is not an address; write host:port, or [v6]:port")
    if len(match[3]) > 5 or int(match[3]) > 65535:
        raise ValueError(f"{text!r}: ports end at 65535")
    return Address(host=match[1] or match[2], port=int(match[3]))


def parse_socket_path(text: str, directory: Path | str = "") -> Address:
    """`unix:/run/x.sock`. Raises ValueError when the path is empty or longer than the kernel takes."""
    name = text.removeprefix("unix:")
    path = str(Path(directory) / name)
    if not name or len(path.encode()) > SOCKET_PATH_MAX:
        raise ValueError(f"socket path {path!r} is not 1 to {SOCKET_PATH_MAX} bytes long; use a shorter one")
    return Address(path=path)
