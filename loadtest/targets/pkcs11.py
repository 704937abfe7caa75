"""A slow PKCS#11 token for both sides: SoftHSM2 behind a module that makes each signature take time.

The module (`slowtoken.c`) is compiled when needed; its source is named by the environment
variable LOADTEST_SLOWTOKEN, or lies in `../shared/slowtoken` beside the project.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from loadtest.targets.certificates import Credentials
from loadtest.targets.lab import PROJECT, Lab, MissingToolError, require

SOURCE_VARIABLE = "LOADTEST_SLOWTOKEN"
_LABEL = "loadtest"
_MODULE_NAME = "libsofthsm2.so"
_MODULE_DIRECTORIES = ("softhsm", "x86_64-linux-gnu/softhsm", "aarch64-linux-gnu/softhsm", "pkcs11")
_LIBRARY_DIRECTORIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


@dataclass(frozen=True, slots=True)
class SlowToken:
    """A token with one key. `uri` is for OpenSSL's pkcs11 engine and holds the PIN; `node_uri` is for a node."""

    uri: str
    node_uri: str
    environment: dict[str, str]


def slowtoken_source() -> Path:
    """The module's source. Raises MissingToolError when it is not there."""
    named = os.environ.get(SOURCE_VARIABLE)
    source = Path(named) if named else PROJECT.parent / "shared" / "slowtoken" / "slowtoken.c"
    if not source.is_file():
        raise MissingToolError(
            f"slowtoken.c, which makes a token slow, is missing: set {SOURCE_VARIABLE} to its path"
        )
    return source


def softhsm_module() -> Path:
    """SoftHSM2's PKCS#11 module. Raises MissingToolError when it is not installed."""
    for library in _LIBRARY_DIRECTORIES:
        for directory in _MODULE_DIRECTORIES:
            module = Path(library) / directory / _MODULE_NAME
            if module.is_file():
                return module
    raise MissingToolError(f"{_MODULE_NAME} is missing: apt-get install softhsm2")


def make_slow_token(lab: Lab, name: str, credentials: Credentials, delay: float) -> SlowToken:
    """A new token with this key, whose signatures take `delay` seconds longer, in the directory `name`.

    Its environment makes OpenSSL load the pkcs11 engine with the slow module. Raises
    MissingToolError or LoadTestError.
    """
    directory = lab.directory / name
    (directory / "tokens").mkdir(parents=True, mode=0o700)
    (directory / "softhsm2.conf").write_text(
        f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    module = compile_slowtoken(lab, directory)
    (directory / "openssl.cnf").write_text(_engine_settings(module, lab))
    pin, pin_file = secrets.token_hex(8), directory / "pin"
    pin_file.touch(0o600)
    pin_file.write_text(pin)
    store = {"SOFTHSM2_CONF": str(directory / "softhsm2.conf")}
    _fill_token(lab, credentials, pin, store)
    return SlowToken(
        f"pkcs11:token={_LABEL};object={credentials.kind};type=private;pin-value={pin}",
        f"pkcs11:token={_LABEL}?module-path={module}&pin-source=file:{pin_file}",
        {
            **store,
            "SLOWTOKEN_MODULE": str(softhsm_module()),
            "SLOWTOKEN_SIGN_US": str(round(delay * 1e6)),
            "OPENSSL_CONF": str(directory / "openssl.cnf"),
            "HSM_STATE_DIRECTORY": str(directory),
        },
    )


def compile_slowtoken(lab: Lab, directory: Path) -> Path:
    """The module, compiled into a directory. Raises MissingToolError or LoadTestError."""
    compiler = require("cc", "apt-get install gcc libc6-dev")
    module = directory / "slowtoken.so"
    source = str(slowtoken_source())
    lab.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(module), source, "-ldl", "-lpthread"])
    return module


def _fill_token(lab: Lab, credentials: Credentials, pin: str, environment: dict[str, str]) -> None:
    util = require("softhsm2-util", "apt-get install softhsm2")
    new = ["--init-token", "--free", "--label", _LABEL, "--pin", pin, "--so-pin", secrets.token_hex(8)]
    lab.run([util, *new], environment)
    key = ["--import", str(credentials.key), "--label", credentials.kind, "--id", "01"]
    lab.run([util, *key, "--token", _LABEL, "--pin", pin], environment)


def _engine_settings(module: Path, lab: Lab) -> str:
    openssl = require("openssl", "apt-get install openssl")
    # ENGINESDIR: "/usr/lib/…/engines-3"
    engines = Path(lab.run([openssl, "version", "-e"]).partition('"')[2].rpartition('"')[0])
    if not (engines / "pkcs11.so").exists():
        raise MissingToolError("OpenSSL's pkcs11 engine is missing: apt-get install libengine-pkcs11-openssl")
    return f"""openssl_conf = openssl_init
[openssl_init]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
dynamic_path = {engines}/pkcs11.so
MODULE_PATH = {module}
init = 1
"""
