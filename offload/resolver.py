"""Host names of upstream servers: looked up at start, and again and again while the proxy runs."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable

from hsm.config import Address
from hsm.errors import ConfigurationError
from offload.config_upstream import ServerSettings
from offload.settings import ServerData

ADDRESSES_MOST = 256
"""A name with more is not believed beyond that."""

Lookup = Callable[[str], list[str]]
"""The addresses of a host name; may take long. Raises OSError."""


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
        raise ConfigurationError(
            f"{key}: cannot resolve {address.host!r}: {error.strerror or error}"
        ) from error


def servers_at(server: ServerSettings, hosts: list[str]) -> list[ServerData]:
    """The servers that a configured one stands for, when its name means these addresses."""
    address = server.address
    common = ServerData(
        label=str(address), path=address.path, weight=server.weight, max_connections=server.max_connections
    )
    if address.path:
        return [common]
    return [common.model_copy(update={"host": host, "port": address.port}) for host in hosts]


def is_name(address: Address) -> bool:
    """Whether its host is a name, which may mean another address tomorrow."""
    if address.path:
        return False
    try:
        ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return True
    return False


def look_up_aside(host: str, lookup: Lookup) -> asyncio.Future[list[str]]:
    """The same without blocking the loop.

    The thread is a daemon: an executor's would be waited for at the end, and a name server that
    does not answer would delay it.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: OSError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(addresses)
        else:
            answer.set_exception(error)

    def run() -> None:
        addresses: list[str] = []
        failure: OSError | None = None
        try:
            addresses = lookup(host)
        except OSError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    return answer
