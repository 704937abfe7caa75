"""Which nodes the entries of a configuration stand for: names are looked up, again and again.

A name with several addresses (a Kubernetes headless service, say) is several nodes. What can't be
looked up stays as it was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from hsm.client.options import NodeOptions
from hsm.config import Address

ADDRESSES_MOST = 64
"""A name with more addresses than this is cut: a cluster has a few dozen nodes at most."""
LOOKUP_TIMEOUT = 5.0

Lookup = Callable[[str], Awaitable[list[str]]]
"""The numeric addresses of a host name. Raises OSError."""
Addresses = Mapping[str, Sequence[str]]
"""Numeric addresses by host name."""


async def look_up(host: str) -> list[str]:
    """By the system's resolver (getaddrinfo)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def is_name(address: Address) -> bool:
    """Whether a node's host has to be looked up."""
    if address.path:
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return True
    return False


def members(entries: Iterable[NodeOptions], addresses: Addresses) -> list[NodeOptions]:
    """The nodes that entries stand for: one for each address of a name.

    The node's certificate is still checked against the name. A name without addresses stands for itself.
    """
    return [node for entry in entries for node in _expand(entry, addresses.get(entry.address.host, ()))]


def _expand(entry: NodeOptions, addresses: Sequence[str]) -> list[NodeOptions]:
    if not addresses or not is_name(entry.address):
        return [entry]
    return [
        replace(
            entry,
            name=f"{entry.name}/{address}" if len(addresses) > 1 else entry.name,
            group=entry.name,
            address=Address(address, entry.address.port),
            server_name=entry.server_name or entry.address.host,
        )
        for address in addresses[:ADDRESSES_MOST]
    ]


class Names:
    """The addresses that names had when they were looked up last."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.failures: dict[str, str] = {}
        """Why names could not be looked up the last time, by name."""
        self._lookup = lookup

    async def refresh(self, entries: Iterable[Address]) -> bool:
        """Look up the names among these hosts; whether any has other addresses than before."""
        hosts = {address.host for address in entries if is_name(address)}
        before = dict(self.addresses)
        await asyncio.gather(*(self._refresh(host) for host in sorted(hosts)))
        return self.addresses != before

    async def _refresh(self, host: str) -> None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                found = await self._lookup(host)
        except OSError as error:  # TimeoutError is one
            self.failures[host] = error.strerror or str(error) or "no answer in time"
            return
        self.failures.pop(host, None)
        if found:
            self.addresses[host] = found
