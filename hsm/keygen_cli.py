"""`hsm keygen`: a key in a file or in a token, and a certificate or a request for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsm.errors import ConfigurationError
from hsm.options import TokenUri
from hsm.terminal import fail


def command(
    key: Annotated[Path | None, typer.Option("--out", help="Key file to make (PEM, mode 0600).")] = None,
    token_uri: TokenUri = None,
    label: Annotated[
        str | None, typer.Option(help="With --token-uri: name of the new key (or object= in the URI).")
    ] = None,
    kind: Annotated[
        str, typer.Option("--type", help="p256, p384, p521, rsa2048, rsa3072, rsa4096.")
    ] = "p256",
    passphrase_file: Annotated[Path | None, typer.Option(help="Encrypt the key file with this.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Also make a self-signed certificate.")] = None,
    csr: Annotated[Path | None, typer.Option(help="Also make a certificate signing request.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="DNS name or IP address (repeatable).")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Life of the certificate.")] = 90,
) -> None:
    """Make a key, in a file or inside a PKCS#11 token, and a certificate or CSR for it. Overwrites nothing."""
    from hsm.issue import Papers, in_file, in_token

    papers = Papers(certificate, csr, name or [], days)
    try:
        if (key is None) is (token_uri is None):
            raise ConfigurationError(
                "name where the key goes: --out FILE, or --token-uri for a PKCS#11 token"
            )
        if key is not None:
            if label is not None:
                raise ConfigurationError("--label is for keys in a token; a file has its name")
            in_file(key, kind, passphrase_file, papers)
        elif token_uri is not None:
            if passphrase_file is not None:
                raise ConfigurationError("--passphrase-file is for key files; the token keeps the key itself")
            in_token(token_uri, kind, label, papers)
    except ConfigurationError as error:
        raise fail(error) from error
