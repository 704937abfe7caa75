"""Options that several commands of `hsm` share, and what is made of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hsm import config
from hsm.config import LinkTLS, Pkcs11Settings, Section
from hsm.errors import ConfigurationError

if TYPE_CHECKING:
    from hsm.node.direct import DirectToken

Node = Annotated[str, typer.Option("--node", help="unix:/path or tls://host:port.")]
OneNode = Annotated[str | None, typer.Option("--node", help="A running node: unix:/path or tls://host:port.")]
TokenUri = Annotated[
    str | None,
    typer.Option("--token-uri", help="pkcs11:token=NAME?module-path=/path.so&pin-source=file:/path"),
]
Ca = Annotated[str | None, typer.Option("--tls-ca", help="CA of the node's certificate.")]
Certificate = Annotated[str | None, typer.Option("--tls-certificate", help="Own certificate.")]
Key = Annotated[str | None, typer.Option("--tls-key", help="Its key.")]
ServerName = Annotated[
    str | None,
    typer.Option("--tls-server-name", help="Name in the node's certificate, if not its address's host."),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


M = TypeVar("M", bound=Section)

_SPELLINGS = {
    "allow_users": "--allow-user",
    "tls": "--tls-ca, --tls-certificate, --tls-key",
    "uri": "--token-uri",
}
"""Options that are not called as the key is that they set."""


def spell_option(key: str) -> str:
    """The option that sets a key of a configuration: --tls-ca for `tls.ca`, --emulate for `emulate.latency`."""
    if key.startswith("emulate."):
        return key.replace(".", ": ", 1).replace("emulate", "--emulate")
    return _SPELLINGS.get(key.partition("[")[0]) or "--" + key.replace(".", "-").replace("_", "-")


def from_options(data: dict[str, Any], model: type[M]) -> M:
    """What options say, by the keys that a file has for it. Raises ConfigurationError, which names the options."""
    return config.validate(data, model, "", Path.cwd(), spell_option)


class NodeTarget(Section):
    """A node to talk to, as options name it."""

    node: config.NodeAddress
    tls: LinkTLS | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """The options of a link to a node, as they were given."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    def target(self, node: str) -> NodeTarget:
        """The node with these. Raises ConfigurationError."""
        given = {
            "ca": self.ca,
            "certificate": self.certificate,
            "key": self.key,
            "server_name": self.server_name,
        }
        data: dict[str, object] = {"node": node}
        if any(given.values()):
            data["tls"] = {name: value for name, value in given.items() if value is not None}
        return from_options(data, NodeTarget)


def warn(text: str) -> None:
    """Print what an operator should know and need not mend at once."""
    print(f"warning: {text}", file=sys.stderr)


def only(*names: str, **given: object) -> str:
    """The one option of `names` that is given. Raises ConfigurationError if it is none, or several."""
    chosen = [name for name in names if given[name] is not None]
    if len(chosen) != 1:
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        raise ConfigurationError(f"name one of {options}" + (", not several" if chosen else ""))
    return chosen[0]


def duration(option: str, text: str) -> float:
    """Seconds, more than 0 and at most an hour. Raises ConfigurationError."""
    try:
        seconds = float(config.parse_duration(text))
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from error
    if not 0 < seconds <= 3600:
        raise ConfigurationError(f"{option}: between 0 and 1h")
    return seconds


def token_settings(uri: str) -> Pkcs11Settings:
    """A token as --token-uri names it. Raises ConfigurationError.

    A PIN in the command line is moved out of it, by starting the program anew.
    """
    from hsm.node.environment import hide_pin

    settings = from_options({"token": "pkcs11", "uri": uri}, Pkcs11Settings)
    hide_pin(lambda option, remedy: warn(f"{option}: {remedy}"))
    return settings


def open_token(settings: Pkcs11Settings, command: str) -> DirectToken:
    """The token, its module loaded into this process, logged in to. Raises ConfigurationError."""
    from hsm import logs
    from hsm.node.direct import DirectToken
    from hsm.node.pkcs11 import target_of

    return DirectToken(target_of(settings, logs.configure(command, "warning")))
