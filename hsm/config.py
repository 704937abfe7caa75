"""The parts of a configuration that nodes and their clients share, and how mistakes are told.

Durations are written `250ms`, `5s`, `1m`, `1h`; relative paths are relative to the file that
names them; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from hsm.errors import ConfigurationError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
SOCKET_PATH_MAX = 107
"""Longest path of a unix socket in bytes (sun_path, unix(7))."""


def parse_duration(value: Any) -> Any:
    """`250ms`, `5s`, `1h` → seconds. Raises ValueError for anything else but 0."""
    if isinstance(value, float) or value == 0:
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write one like 250ms, 5s or 1h")
    return float(match[1]) * _UNITS[match[2]]


Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=str),
    Field(ge=0, le=366 * 86400),
]
"""Seconds, written with a unit."""


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("not a path")
    base = (info.context or {}).get("directory", Path())
    return Path(base) / Path(value).expanduser()


FilePath = Annotated[Path, BeforeValidator(_resolve_path, json_schema_input_type=str)]
"""A path; relative ones are relative to the configuration file's directory."""


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
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:\s/]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is not an address; write host:port, or [v6]:port")
    return Address(host=match[1] or match[2], port=int(match[3]))


def parse_socket_path(text: str, directory: Path | str = "") -> Address:
    """`unix:/run/x.sock`. Raises ValueError when the path is empty or longer than the kernel takes."""
    name = text.removeprefix("unix:")
    path = str(Path(directory) / name)
    if not name or len(path.encode()) > SOCKET_PATH_MAX:
        raise ValueError(f"socket path {path!r} is not 1 to {SOCKET_PATH_MAX} bytes long; use a shorter one")
    return Address(path=path)


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
    """A part of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


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
    """What a node signs with."""

    token: Literal["software"] = Field("software", description="Kind of token.")
    keys: FilePath = Field(description="Directory of PEM private keys (software token).")
    passphrase_file: FilePath | None = Field(None, description="File with the passphrase of encrypted keys.")
    emulate: Emulation = Field(default_factory=Emulation, description="Imitate an HSM.")
    emulate_file: FilePath | None = Field(
        None, description="YAML file with the keys of `emulate`; read again on SIGUSR1."
    )


class NodeSettings(TokenSettings):
    """A node process: `hsm node --config FILE`, or the same as options."""

    name: str = Field("node", min_length=1, max_length=64, description="Name in logs and metrics.")
    listen: NodeAddress = Field(description="unix:/path or tls://host:port.")
    tls: LinkTLS | None = Field(None, description="Needed with tls://.")
    allow_users: list[str] = Field(
        default_factory=list,
        description="Users that may connect to the unix socket, besides root and the node's own.",
    )
    admin: StreamAddress | None = Field(None, description="Address for metrics and probes.")

    @model_validator(mode="after")
    def _tls_where_needed(self) -> Self:
        if self.listen.path and self.tls:
            raise ValueError("tls is for tls:// addresses; a unix socket checks the peer's user instead")
        if not self.listen.path and not self.tls:
            raise ValueError("a tls:// address needs tls: {ca, certificate, key}")
        return self


M = TypeVar("M", bound=BaseModel)


def load(path: Path, model: type[M]) -> M:
    """Read a YAML file into a model.

    Raises ConfigurationError whose message holds one line per mistake: file, key, what, remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date; nested too deeply
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigurationError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: expected keys and values at the top level")
    return validate(data, model, str(path), path.parent)


def validate(data: dict[str, Any], model: type[M], source: str, directory: Path) -> M:
    """Build a model from parsed data; `source` names it in errors. Raises ConfigurationError."""
    try:
        return model.model_validate(data, context={"directory": directory.absolute()})
    except ValidationError as error:
        lines = [f"{source}: {_explain(model, problem)}" for problem in error.errors()]
        raise ConfigurationError("\n".join(dict.fromkeys(lines))) from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = problem["loc"]
    place = _key_path(location) or "(top level)"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_keys(model, location[:-1]), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "; remove it"
        return f"{place}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{place}: required, but missing"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def _key_path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _known_keys(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and current is not None and part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation)
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None
