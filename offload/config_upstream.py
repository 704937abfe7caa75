"""The part of the configuration file about web servers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    PositiveInt,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from hsm.cluster_config import Name
from hsm.config import Duration, Section, StreamAddress
from offload.proxy_protocol import Version

WEIGHT_MOST = 1000


def or_string(schema: dict[str, Any]) -> None:
    """Make a model's JSON schema one that takes a string too."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, whole]


class ServerSettings(Section):
    """A web server; its address alone may stand for it."""

    model_config = ConfigDict(json_schema_extra=or_string)

    address: StreamAddress = Field(
        description="host:port or unix:/path. A name with several addresses is several servers."
    )
    weight: PositiveInt = Field(1, le=WEIGHT_MOST, description="Its share, beside the others' weights.")
    max_connections: PositiveInt | None = Field(
        None, description="Open connections to it, all workers together; unlimited if left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_address(cls, data: Any) -> Any:
        return data if isinstance(data, dict | cls) else {"address": data}


class HttpCheckSettings(Section):
    """A GET request that a healthy server answers as expected."""

    path: str = Field("/", pattern=r"^/[!-~]*$", description="What is asked for.")
    expect: int = Field(200, ge=100, le=599, description="Status of the answer of a healthy server.")
    host: str | None = Field(
        None, pattern=r"^[!-~]+$", description="Host header; the server's address if left out."
    )


class HealthSettings(Section):
    """How the supervisor checks servers."""

    interval: Duration = Field(5.0, ge=0.1, description="From one check of a server to the next.")
    timeout: Duration = Field(2.0, gt=0, description="A check that takes longer is a bad one.")
    rise: PositiveInt = Field(2, description="So many good checks in a row, and a server is up.")
    fall: PositiveInt = Field(3, description="So many bad checks in a row, and a server is down.")
    http: HttpCheckSettings | None = Field(
        None, description="Check by an HTTP GET; if left out, that a connection can be opened."
    )


class UpstreamSettings(Section):
    """A group of web servers."""

    servers: list[ServerSettings] = Field(
        min_length=1, description="Each is host:port, unix:/path, or has keys:"
    )
    balance: Literal["round_robin", "least_connections", "source_hash"] = Field(
        "round_robin",
        description="Which server gets a connection: each in turn, the least busy one (as the worker sees it), "
        "or always the same for a client address.",
    )
    connect_timeout: Duration = Field(5.0, gt=0, description="Time to connect to one server.")
    attempts: PositiveInt = Field(
        3, description="Servers tried for one connection at most, until one can be connected to."
    )
    max_fails: int = Field(
        3,
        ge=0,
        description="So many failures to connect in a row, and a server is left out for a while, longer each "
        "time; 0: never.",
    )
    proxy_protocol: Version | None = Field(
        None,
        description="Begin every connection to a server with a PROXY header of this version: the client's "
        "address, and with v2 what TLS has negotiated. Checks begin with one that tells of no client.",
    )
    slow_start: Duration = Field(
        10.0, description="A server that came back, or is new, gets its full share after this time."
    )
    resolve_interval: Duration = Field(
        30.0, description="How often host names are looked up again; 0: only at start."
    )
    health: HealthSettings | None = Field(
        None, description="Regular checks of each server; `{}` turns them on."
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        addresses = [str(server.address) for server in self.servers]
        for index, address in enumerate(addresses):
            if address in addresses[:index]:
                raise ValueError(f"servers: {address} stands twice; give it a weight instead")
        return self


_NAME = TypeAdapter[str](Name)


def _choose(value: Any, info: ValidationInfo) -> UpstreamSettings | str:
    if isinstance(value, str):
        return _NAME.validate_python(value)
    return UpstreamSettings.model_validate(value, context=info.context)


UpstreamChoice = Annotated[
    UpstreamSettings | str, PlainValidator(_choose, json_schema_input_type=UpstreamSettings | Name)
]
"""A group of its own, or the name of one in `upstreams`."""
