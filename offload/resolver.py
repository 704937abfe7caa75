"""Host names of upstream servers, looked up."""

from __future__ import annotations

import socket

from hsm.errors import ConfigurationError
from offload.settings import ServerData
from offload.upstream_config import ServerSettings

ADDRESSES_MOST = 256
"""A name with more is not believed beyond that."""


def look_up(host: str) -> list[str]:
    """A host's addresses as the system knows them (getaddrinfo), in a fixed order. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"not a host name: {error}") from error
    return sorted({str(target[0]) for *_, target in found})[:ADDRESSES_MOST]


def resolve_at_start(server: ServerSettings, key: str) -> list[ServerData]:
    """A configured server, or several. Raises ConfigurationError naming `key`."""
    address = server.address
    try:
        return servers_at(server, [] if address.path else look_up(address.host))
    except OSError as error:
        raise ConfigurationError(f"{key}: cannot resolve {address.host!r}: {error}") from error


def servers_at(server: ServerSettings, hosts: list[str]) -> list[ServerData]:
    """The servers that a configured one stands for, when its name means these addresses."""
    address = server.address
    common = ServerData(
        label=str(address), path=address.path, weight=server.weight, max_connections=server.max_connections
    )
    if address.path:
        return [common]
    return [common.model_copy(update={"host": host, "port": address.port}) for host in hosts]
