"""What all sides of a comparison must agree on, and a look from outside at what they do agree on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
POLICY: Final = "20240417"
"""A dated s2n policy, which never changes: X25519 before P-256, nothing post-quantum, AES-128
first. An OpenSSL 3.0 server and an s2n server agree on the same with it."""

POLICY_TLS12: Final = "20240331"
"""A dated s2n policy for clients that know nothing newer than TLS 1.2."""

CIPHER: Final = "TLS_AES_128_GCM_SHA256"
OPENSSL_GROUPS: Final = "X25519:P-256"
"""The same groups in OpenSSL's words."""

SMALL_PATH: Final = "/small"

_FIELDS = {
    "version": re.compile(r"^New, (\S+), Cipher is", re.MULTILINE),
    "cipher": re.compile(r"^New, .*Cipher is (\S+)", re.MULTILINE),
    "group": re.compile(r"^Server Temp Key: ([^,\n]+)", re.MULTILINE),
    "digest": re.compile(r"^Peer signing digest: (\S+)", re.MULTILINE),
    "signature": re.compile(r"^Peer signature type: (\S+)", re.MULTILINE),
}


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a server agreed on with `openssl s_client`, in OpenSSL's words."""

    version: str
    cipher: str
    group: str
    digest: str
    signature: str

    def __str__(self) -> str:
        return f"{self.version} {self.cipher} {self.group} {self.signature}+{self.digest}"


def s_client_command(openssl: str, port: int) -> list[str]:
    """Shows one handshake as `parse_s_client` reads it; its standard input must be empty."""
    offer = ["-servername", "localhost", "-ciphersuites", CIPHER, "-groups", OPENSSL_GROUPS]
    return [openssl, "s_client", "-connect", f"{HOST}:{port}", *offer]


def parse_s_client(output: str) -> Negotiated:
    """Read what `openssl s_client` prints. Raises ValueError when it shows no handshake."""
    found = {name: pattern.search(output) for name, pattern in _FIELDS.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise ValueError(f"openssl s_client does not show the {', '.join(missing)}")
    return Negotiated(**{name: match[1] for name, match in found.items() if match})
