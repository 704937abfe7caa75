"""Real PKCS#11 tokens for tests: SoftHSM2 with a token directory of its own, and a module with faults before it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hsm import keyless
from hsm.signing import SCHEME_BY_OPCODE, PrivateKey, PublicKey, ski_of
from hsm.verification import VerificationKey
from tests.support.forked import run_forked
from tests.support.hsm_support import (
    LIMIT,
    KeylessClient,
    NodeProcess,
    child_environment,
    hsm_command,
    missing,
    require,
    write_key,
)

_MODULES = ("softhsm", "x86_64-linux-gnu/softhsm", "aarch64-linux-gnu/softhsm", "pkcs11")
_FAULTS = Path(__file__).with_name("modules") / "faults.c"


def softhsm() -> Path:
    """SoftHSM2's module; the test is skipped without it."""
    for directory in _MODULES:
        module = Path("/usr/lib") / directory / "libsofthsm2.so"
        if module.is_file():
            return module
    return missing("softhsm2 is not installed")


def compile_faults(directory: Path) -> Path:
    """The module with faults, compiled."""
    module = directory / "faults.so"
    command = [require("cc"), "-shared", "-fPIC", "-O2", "-o", str(module), str(_FAULTS), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, timeout=LIMIT)
    return module


@dataclass
class SoftToken:
    """A directory with one or more SoftHSM2 tokens."""

    directory: Path
    pin: str = field(default_factory=lambda: "user:" + secrets.token_hex(6))  # as CloudHSM has it

    def __post_init__(self) -> None:
        (self.directory / "tokens").mkdir(mode=0o700)
        (self.directory / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.pin_file = self.directory / "pin"
        self.pin_file.touch(0o600)
        self.pin_file.write_text(self.pin + "\n")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the token, and a place for the login guard."""
        return {
            "SOFTHSM2_CONF": str(self.directory / "softhsm2.conf"),
            "HSM_STATE_DIRECTORY": str(self.directory / "state"),
        }

    def run(self, program: str, *arguments: str) -> str:
        """Run a tool on the token; its output."""
        return subprocess.run(
            [require(program), *arguments],
            env={**child_environment(), **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        ).stdout

    def initialise(self, label: str = "tls") -> None:
        """Make a token."""
        pins = ["--pin", self.pin, "--so-pin", secrets.token_hex(6)]
        self.run("softhsm2-util", "--init-token", "--free", "--label", label, *pins)

    def import_key(self, label: str, key: PrivateKey, id: str) -> None:
        """Put a private key and its public half on the token `tls`."""
        path = write_key(self.directory, f"{label}.pem", key)
        options = ["--token", "tls", "--label", label, "--id", id, "--pin", self.pin]
        self.run("softhsm2-util", "--import", str(path), *options)
        path.unlink()

    def import_rsa_key(self, label: str, key: PrivateKey, id: str, *options: str) -> None:
        """Put a private RSA key on the token `tls` with pkcs11-tool, whose options say what it may do."""
        path = self.directory / f"{label}.der"
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.DER, form, plain))
        self.tool("--write-object", str(path), "--type", "privkey", "--id", id, "--label", label, *options)
        path.unlink()

    def tool(self, *arguments: str) -> str:
        """pkcs11-tool, logged in."""
        login = ["--token-label", "tls", "--login", "--pin", self.pin]
        return self.run("pkcs11-tool", "--module", str(softhsm()), *login, *arguments)

    def remove_public_half(self, id: str) -> None:
        """Delete the public-key object."""
        self.tool("--delete-object", "--type", "pubkey", "--id", id)

    def import_certificate(self, label: str, certificate: x509.Certificate, id: str) -> None:
        """Put a certificate object on the token."""
        path = self.directory / f"{label}.der"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.DER))
        self.tool("--write-object", str(path), "--type", "cert", "--id", id, "--label", label)

    def uri(self, module: Path | None = None, *, token: str = "tls") -> str:
        """The token, and its PIN's file."""
        return f"pkcs11:token={token}?module-path={module or softhsm()}&pin-source=file:{self.pin_file}"


@dataclass
class Faults:
    """The files that tell the module how to misbehave."""

    module: Path
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the module needs."""
        return {"FAULTS_MODULE": str(softhsm()), "FAULTS_DIRECTORY": str(self.directory)}

    def set(self, name: str, text: str = "") -> None:
        """Misbehave so from now on; the file appears with its content."""
        new = self.directory / f".{name}"
        new.write_text(text)
        new.rename(self.directory / name)

    def clear(self, name: str) -> None:
        """Stop that."""
        (self.directory / name).unlink(missing_ok=True)

    def is_set(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.directory / name).exists()

    def count(self, name: str) -> int:
        """How many calls were noted."""
        path = self.directory / name
        return path.stat().st_size if path.exists() else 0


def node_command(environment: Mapping[str, str], *arguments: str) -> list[str]:
    """`hsm node …` with more environment."""
    return [
        "env",
        *(f"{name}={value}" for name, value in environment.items()),
        *hsm_command("node", *arguments),
    ]


@contextmanager
def running_node(
    directory: Path, environment: Mapping[str, str], uri: str, *options: str
) -> Iterator[NodeProcess]:
    """A node with this token on a unix socket, serving."""
    with starting_node(directory, environment, uri, *options) as node:
        yield node.ready()


def starting_node(directory: Path, environment: Mapping[str, str], uri: str, *options: str) -> NodeProcess:
    """The same, perhaps not up yet, or never."""
    listen = f"unix:{directory}/n{secrets.token_hex(3)}.sock"
    arguments = ["--listen", listen, "--token", "pkcs11", "--token-uri", uri, *options]
    return NodeProcess(listen, command=node_command(environment, *arguments))


@contextmanager
def configured_node(
    directory: Path, place: Path, environment: Mapping[str, str], settings: Mapping[str, Any]
) -> Iterator[NodeProcess]:
    """A serving node whose settings are a file in `place`, with what options can't say."""
    listen = f"unix:{directory}/n{secrets.token_hex(3)}.sock"
    path = place / "node.yaml"
    path.write_text(yaml.safe_dump({"listen": listen, "token": "pkcs11", **settings}))
    with NodeProcess(listen, command=node_command(environment, "--config", str(path))) as node:
        yield node.ready()


class TokenClient:
    """Asks a node for signatures and verifies them."""

    def __init__(self, node: NodeProcess, keys: Mapping[str, PrivateKey | PublicKey]) -> None:
        self.client = KeylessClient.connect(node.address)
        self._public = {name: _public_half(key) for name, key in keys.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.client.socket.close()

    def ski(self, name: str) -> bytes:
        """A key's name on the wire."""
        return ski_of(self._public[name])

    def offered(self) -> dict[bytes, frozenset[int]]:
        """The keys that the node lists."""
        self.client.send(keyless.encode_keys_request(1))
        return keyless.decode_keys_response(self.client.receive())[0]

    def request(self, id: int, name: str, opcode: int, remaining_ms: int | None = None) -> bytes:
        """A signing request, of a digest that `check` knows."""
        digest = _digest(id, opcode)
        return keyless.encode(id, opcode, digest, ski=self.ski(name), remaining_ms=remaining_ms)

    def check(self, answer: keyless.Message, name: str, opcode: int) -> None:
        """The answer is a signature, and right."""
        assert answer.opcode == keyless.OP_RESPONSE, answer
        verify = VerificationKey(self._public[name]).verify
        assert verify(SCHEME_BY_OPCODE[opcode], _digest(answer.id, opcode), answer.payload)

    def sign(self, name: str, opcode: int, remaining_ms: int | None = None) -> None:
        """One signature, verified."""
        self.client.send(self.request(1, name, opcode, remaining_ms))
        self.check(self.client.receive(), name, opcode)

    def error(self, name: str, opcode: int, remaining_ms: int | None = None) -> int:
        """The error that a request is answered with."""
        self.client.send(self.request(1, name, opcode, remaining_ms))
        answer = self.client.receive()
        assert answer.opcode == keyless.OP_ERROR, answer
        return answer.payload[0]


def _public_half(key: PrivateKey | PublicKey) -> PublicKey:
    return key if isinstance(key, PublicKey) else key.public_key()


def _digest(id: int, opcode: int) -> bytes:
    size = SCHEME_BY_OPCODE[opcode].digest_size
    return (id.to_bytes(4, "big") * 16)[:size]


def run_hsm_with(
    environment: Mapping[str, str], *arguments: str, directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run `hsm …` to its end, with more environment."""
    whole = {**child_environment(), **environment}
    return run_forked("hsm.cli", *arguments, environment=whole, directory=directory, timeout=LIMIT)


_READ_ATTRIBUTES = """
import json, sys
import pkcs11
from pkcs11 import Attribute, ObjectClass
module, pin, label = sys.argv[1:]
def read(key, name):
    try:
        value = key[Attribute[name]]
    except pkcs11.exceptions.AttributeTypeInvalid:
        return None
    return value.hex() if isinstance(value, bytes) else value
names = ["TOKEN", "PRIVATE", "SENSITIVE", "EXTRACTABLE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL",
         "SIGN", "VERIFY", "SIGN_RECOVER", "ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "DERIVE", "ID"]
with pkcs11.lib(module).get_token(token_label="tls").open(user_pin=pin) as session:
    print(json.dumps({
        kind.name: [{name: read(key, name) for name in names}
                    for key in session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label})]
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
    }))
"""


def read_pair(token: SoftToken, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of a private and a public key, as python-pkcs11 reads them in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_ATTRIBUTES, str(softhsm()), token.pin, label],
        env={**child_environment(), **token.environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    found = json.loads(done.stdout)
    (private,), (public,) = found["PRIVATE_KEY"], found["PUBLIC_KEY"]
    return private, public
