"""The parts of a configuration that nodes and their clients share, and how mistakes are told.

Durations are written `250ms`, `5s`, `1m`, `1h`, `1d`, `1y` (365 days); relative paths are relative to the file that
names them; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from hsm.address import SOCKET_PATH_MAX, Address, parse_host_port, parse_socket_path
from hsm.errors import ConfigurationError
from hsm.mistakes import explain, misplaced

__all__ = [
    "SOCKET_PATH_MAX", "Address", "Duration", "Emulation", "FilePath", "KeyMapping", "LinkTLS", "NodeAddress",
    "NodeSettings", "Pkcs11Node", "Pkcs11Settings", "Section", "SoftwareNode", "SoftwareSettings",
    "StreamAddress", "TcpAddress", "TokenSettings", "load", "parse_duration", "parse_host_port",
    "parse_socket_path", "validate",
]  # fmt: skip

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "y": 365 * 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d|y)")
_LONGEST = 366 * 86400.0


def parse_duration(value: Any) -> float:
    """`250ms`, `5s`, `1h` → seconds. Raises ValueError for anything else but 0: a unit is never guessed."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write one like 250ms, 5s, 10m, 1h, 1d or 1y")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise ValueError(f"{value!r} is longer than 366 days; check its unit")
    return seconds


def _validate_duration(value: Any, info: ValidationInfo) -> Any:
    return value if isinstance(value, float) and not info.context else parse_duration(value)


Duration = Annotated[
    float,
    BeforeValidator(_validate_duration, json_schema_input_type=str),
    PlainSerializer(lambda seconds: f"{seconds:f}s", return_type=str, when_used="json"),
    Field(ge=0),
]
"""Seconds, written with a unit; code may give a float."""


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("not a path")
    base = (info.context or {}).get("directory", Path())
    return Path(base) / Path(value).expanduser()


FilePath = Annotated[Path, BeforeValidator(_resolve_path, json_schema_input_type=str)]
"""A path; relative ones are relative to the configuration file's directory."""


def _parse_tcp(value: Any) -> Any:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address; write host:port, or [v6]:port")
    return parse_host_port(value)


def _parse_stream(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value.startswith("unix:"):
        return parse_socket_path(value, (info.context or {}).get("directory", ""))
    return _parse_tcp(value)


def _parse_node(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value.startswith("unix:"):
        return parse_socket_path(value, (info.context or {}).get("directory", ""))
    if isinstance(value, str) and value.startswith("tls://"):
        return parse_host_port(value.removeprefix("tls://"))
    if isinstance(value, Address):
        return value
    raise ValueError(f"{value!r} is not a node's address; write unix:/path or tls://host:port")


TcpAddress = Annotated[Address, BeforeValidator(_parse_tcp, json_schema_input_type=str)]
StreamAddress = Annotated[Address, BeforeValidator(_parse_stream, json_schema_input_type=str)]
NodeAddress = Annotated[Address, BeforeValidator(_parse_node, json_schema_input_type=str)]


class Section(BaseModel):
    """A part of a configuration: frozen, and unknown keys are errors.

    Its validator is made when it is first used: no process uses all models that it imports.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)


class LinkTLS(Section):
    """Mutual TLS between a node and its clients: both sides show a certificate of one CA."""

    ca: FilePath = Field(description="CA certificates (PEM) that the other side's certificate must chain to.")
    certificate: FilePath = Field(description="Own certificate chain (PEM, leaf first).")
    key: FilePath = Field(
        description="Own private key (PEM); a credential of the link, not a TLS server key."
    )
    server_name: str | None = Field(
        None, description="Name that the node's certificate must carry; the address's host if left out."
    )


class Emulation(Section):
    """How the software token imitates an HSM. All limits are real: work queues and waits."""

    latency: Duration = Field(0.0, description="Time that one signature takes.")
    jitter: Duration = Field(0.0, description="Latency varies evenly by up to this much, both ways.")
    signatures_per_second: float = Field(0.0, ge=0, description="Highest rate; 0 is unlimited.")
    parallel: int = Field(0, ge=0, le=100_000, description="Signatures at a time; 0 is unlimited.")
    error_rate: float = Field(0.0, ge=0, le=1, description="Share of requests answered with an error.")
    wrong_rate: float = Field(0.0, ge=0, le=1, description="Share of signatures that are wrong.")
    slow_factor: float = Field(1.0, gt=0, description="Latency is multiplied by this.")


class TokenSettings(Section):
    """What a node signs with; `token` decides which other keys there are (`token_kinds`)."""

    token: Literal["software", "pkcs11"] = Field(
        "software", description="Kind of token; it decides which keys there are beside this one."
    )

    @classmethod
    def token_kinds(cls) -> dict[str, type[TokenSettings]]:
        """The model of each kind of token; empty for such a model itself."""
        if cls is not TokenSettings:
            return {}
        return {"software": SoftwareSettings, "pkcs11": Pkcs11Settings}

    def revealed(self) -> dict[str, Any]:
        """All of it as plain data, a PIN in the URI included: for the node's process alone."""
        return self.model_dump(mode="json", exclude_none=True)

    def inherited_descriptors(self) -> list[int]:
        """The file descriptors that the node's process has to be given."""
        return []

    @model_validator(mode="wrap")
    @classmethod
    def _choose_kind(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        kinds = cls.token_kinds()
        if not kinds or not isinstance(data, dict):
            return handler(data)
        kind = data.get("token", "software")
        chosen = kinds.get(kind) if isinstance(kind, str) else None
        if chosen is None:  # nothing is known of its other keys
            return handler({key: value for key, value in data.items() if key in cls.model_fields})
        return cast("Self", chosen.model_validate(data, context=info.context))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        if kinds := cls.token_kinds():
            return {"oneOf": [handler(kind.__pydantic_core_schema__) for kind in kinds.values()]}
        return handler(core_schema)


class SoftwareSettings(TokenSettings):
    """Keys in files: for development, tests and load tests."""

    token: Literal["software"] = Field("software", description="Kind of token.")
    keys: FilePath = Field(description="Directory of PEM private keys.")
    passphrase_file: FilePath | None = Field(None, description="File with the passphrase of encrypted keys.")
    emulate: Emulation = Field(default_factory=Emulation, description="Imitate an HSM.")
    emulate_file: FilePath | None = Field(
        None, description="YAML file with the keys of `emulate`; read again on SIGUSR1."
    )


class KeyMapping(Section):
    """A private key whose public half is not on the token."""

    object: str = Field(min_length=1, description="Label (CKA_LABEL) of the private key.")
    certificate: FilePath = Field(description="Certificate (PEM) of that key.")


class Pkcs11Settings(TokenSettings):
    """A vendor's PKCS#11 module. The token is named by `uri`, or by the keys that say the same."""

    token: Literal["pkcs11"] = Field(description="Kind of token.")
    uri: SecretStr | None = Field(
        None, description="RFC 7512: pkcs11:token=NAME?module-path=/path.so&pin-source=file:/path"
    )
    module: FilePath | None = Field(None, description="The module's .so file (module-path in the URI).")
    label: str | None = Field(None, description="The token's label (token= in the URI).")
    serial: str | None = Field(None, description="The token's serial number.")
    slot_id: int | None = Field(None, ge=0, description="The slot's number; it may change at a restart.")
    pin_source: str | None = Field(None, description="file:/path, fd:N or env:NAME.")
    sessions: PositiveInt | Literal["auto"] = Field(
        "auto", description="Signatures at a time at most; sessions are opened as the load asks for them."
    )
    keys: list[KeyMapping] = Field(
        default_factory=list, description="Keys whose public half is not on the token."
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment of the module.")
    directory: FilePath | None = Field(None, description="Working directory of the module.")
    keepalive: Duration = Field(
        20.0, ge=0.1, description="How often an idle session is used, and new keys are looked for."
    )
    idle_timeout: Duration = Field(60.0, ge=0.1, description="A session idle for this long is closed.")
    stuck_after: Duration = Field(
        5.0, ge=0.1, description="A call of the module that lasts longer is given up as lost."
    )
    stuck_sessions: PositiveInt = Field(
        2, description="So many lost calls end the process, so that a fresh one takes its place."
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: SecretStr | None) -> SecretStr | None:
        from hsm.node.uri import parse

        if uri is not None:
            parse(uri.get_secret_value())
        return uri

    @model_validator(mode="after")
    def _uri_or_keys(self) -> Self:
        parts = {"module": self.module, "label": self.label, "serial": self.serial, "slot_id": self.slot_id}
        given = [name for name, value in parts.items() if value is not None]
        if self.uri is None and self.module is None:
            remedy = "write pkcs11:token=NAME?module-path=/path.so"
            raise misplaced([(("uri",), f"a pkcs11 token needs it (or module); {remedy}")])
        if self.uri is not None and given:
            raise ValueError(f"uri and {given[0]} are both given; keep uri")
        for name in self.env:
            if not name or "=" in name or "\0" in name + self.env[name]:
                raise ValueError(f"env: {name!r} can't be the name of an environment variable")
        return self

    def revealed(self) -> dict[str, Any]:
        """All of it as plain data, a PIN in the URI included: for the node's process alone."""
        data = super().revealed()
        if self.uri is not None:
            data["uri"] = self.uri.get_secret_value()
        return data

    def inherited_descriptors(self) -> list[int]:
        """The file descriptor of the PIN (`fd:N`)."""
        from hsm.node.uri import parse

        uri = parse(self.uri.get_secret_value()) if self.uri is not None else None
        kind, _, number = (self.pin_source or (uri.pin_source if uri else None) or "").partition(":")
        return [int(number)] if kind == "fd" and number.isdigit() else []


class NodeSettings(TokenSettings):
    """A node process: `hsm node --config FILE`, or the same as options."""

    name: str = Field("node", min_length=1, max_length=64, description="Name in logs and metrics.")
    listen: NodeAddress = Field(description="unix:/path or tls://host:port.")
    tls: LinkTLS | None = Field(None, description="Needed with tls://.")
    allow_users: list[str] = Field(
        default_factory=list,
        description="Users that may connect to the unix socket, besides root and the node's own.",
    )
    socket_group: str | None = Field(
        None, description="Group of the unix socket, which only its owner and group can connect to."
    )
    admin: StreamAddress | None = Field(None, description="Address for metrics and probes.")

    @classmethod
    def token_kinds(cls) -> dict[str, type[TokenSettings]]:
        """The model of each kind of token; empty for such a model itself."""
        return {"software": SoftwareNode, "pkcs11": Pkcs11Node} if cls is NodeSettings else {}

    @model_validator(mode="after")
    def _tls_where_needed(self) -> Self:
        if self.listen.path and self.tls:
            raise misplaced(
                [(("tls",), "for tls:// addresses; a unix socket checks its peer's user instead")]
            )
        if not self.listen.path and not self.tls:
            raise misplaced([(("tls",), "a tls:// address needs it: ca, certificate and key")])
        return self


class SoftwareNode(NodeSettings, SoftwareSettings):
    """A node with keys in files."""


class Pkcs11Node(NodeSettings, Pkcs11Settings):
    """A node with a PKCS#11 token."""


M = TypeVar("M", bound=BaseModel)


def load(path: Path, model: type[M]) -> M:
    """Read a YAML file into a model.

    Raises ConfigurationError whose message holds one line per mistake: file, key, what, remedy.
    """
    return validate(read(path), model, str(path), path.parent)


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigurationError."""
    import yaml

    from hsm.strict_yaml import StrictLoader

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text") from error
    try:
        data = yaml.load(text, StrictLoader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date; nested too deeply
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        remedy = "; indent with spaces" if "'\\t'" in problem else ""
        raise ConfigurationError(f"{path}{where}: not valid YAML: {problem}{remedy}") from error
    if data is None:
        raise ConfigurationError(f"{path}: is empty")
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected keys and values at the top level")
    return data


def validate(
    data: dict[str, Any], model: type[M], source: str, directory: Path, spell: Callable[[str], str] = str
) -> M:
    """Build a model from parsed data. Raises ConfigurationError.

    In errors `source` names where it comes from (unless empty), and `spell` what is called `tls.ca` in a file.
    """
    try:
        return model.model_validate(data, context={"directory": directory.absolute()})
    except ValidationError as error:
        lines = [f"{source}: {line}" if source else line for line in explain(model, error, spell)]
        raise ConfigurationError("\n".join(lines)) from error
