"""A key is made, in a file or in a token, and with it the certificate or the request that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from hsm import keygen
from hsm.errors import ConfigurationError
from hsm.options import open_token, token_settings, warn
from hsm.secret_file import read_secret
from hsm.signing import PrivateKey, ski_of


@dataclass(frozen=True, slots=True)
class Papers:
    """What is to be made for the key, and for which names."""

    certificate: Path | None
    csr: Path | None
    names: Sequence[str]
    days: int

    def check(self, *others: Path) -> None:
        """Find what is wrong before there is a key. Raises ConfigurationError."""
        if (self.certificate or self.csr) and not self.names:
            raise ConfigurationError("a certificate or CSR needs --name, once for each name")
        keygen.check_names(self.names)
        outputs = [path for path in (*others, self.certificate, self.csr) if path is not None]
        for path in outputs:
            _check_free(path)
        if len(set(outputs)) < len(outputs):
            raise ConfigurationError("--out, --certificate and --csr must be different files")

    def make(self, key: PrivateKey, *, pss: bool = False) -> list[tuple[Path, bytes, str]]:
        """Path, PEM and a word about each. Raises ConfigurationError."""
        made = []
        if self.certificate is not None:
            pem = keygen.self_signed(key, self.names, self.days, pss=pss).public_bytes(Encoding.PEM)
            told = f"certificate  {self.certificate}  (self-signed, {self.days} days)"
            made.append((self.certificate, pem, told))
        if self.csr is not None:
            pem = keygen.signing_request(key, self.names, pss=pss).public_bytes(Encoding.PEM)
            made.append((self.csr, pem, f"request      {self.csr}  (have your CA sign it)"))
        return made


def _check_free(path: Path) -> None:
    """Whether a file can be made there, as far as that can be seen before. Raises ConfigurationError."""
    try:
        if path.exists():
            raise ConfigurationError(f"{path}: is there already; nothing is overwritten: choose another")
        if not path.parent.is_dir():
            raise ConfigurationError(f"{path}: cannot write it: its directory is not there; make it first")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot write it: {error.strerror}") from error


def in_file(path: Path, kind: str, passphrase_file: Path | None, papers: Papers) -> None:
    """Make a key file, encrypted if there is a passphrase, and its papers. Raises ConfigurationError."""
    papers.check(path)
    passphrase = read_secret(passphrase_file, "passphrase") if passphrase_file is not None else None
    key = keygen.make_key(kind)
    # Everything is made before anything is written, so that a mistake leaves no key behind.
    made = papers.make(key)
    keygen.write_key(path, key, passphrase)
    print(f"key          {path}  ({kind}, SKI {ski_of(key.public_key()).hex()})")
    _write(made)


def in_token(uri: str, kind: str, label: str | None, papers: Papers) -> None:
    """Make a key inside the token of a URI, and its papers. Raises ConfigurationError."""
    from hsm.node import generate
    from hsm.node.pkcs11_settings import uri_of

    keygen.check_kind(kind)
    papers.check()
    settings = token_settings(uri)
    named = uri_of(settings).object
    if label and named and label != named:
        raise ConfigurationError(f"--label {label!r} and object={named} in the URI differ; keep one")
    chosen = label or named
    if not chosen:
        raise ConfigurationError("--label: name the new key, so that it is found again")
    with open_token(settings, "keygen") as token:
        pair = generate.generate(token, kind, chosen)
        ids = f"SKI {pair.key.ski.hex()}, CKA_ID {pair.key.id.hex()}"
        with generate.discarding(pair.discard):
            made = papers.make(pair.signer, pss=pair.needs_pss)
            print(f"key          {chosen!r} on token {token.info.label!r}  ({kind}, {ids})")
            _write(made)
    if pair.extras:
        warn(f"the token lets the key do more than sign, though told otherwise: {', '.join(pair.extras)}")


def _write(made: Sequence[tuple[Path, bytes, str]]) -> None:
    for path, pem, told in made:
        keygen.write_new(path, pem, 0o644)
        print(told)
