"""Which nodes the entries of a configuration stand for: names are looked up, again and again.

A name with several addresses (a Kubernetes headless service, say) is several nodes. What can't be
looked up stays as it was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from hsm.client.options import NodeOptions
from hsm.config import Address

ADDRESSES_MOST = 64
"""A name with more addresses than this is cut: a cluster has a few dozen nodes at most."""

Lookup = Callable[[str], Awaitable[list[str]]]
"""The numeric addresses of a host name. Raises OSError."""


async def look_up(host: str) -> list[str]:
    """By the system's resolver (getaddrinfo)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def is_name(options: NodeOptions) -> bool:
    """Whether a node's host has to be looked up."""
    if options.address.path:
        return False
    try:
        ipaddress.ip_address(options.address.host)
    except ValueError:
        return True
    return False


def expand(entry: NodeOptions, addresses: Sequence[str]) -> list[NodeOptions]:
    """The nodes that an entry with a name stands for: one for each address, told apart by it.

    The node's certificate is still checked against the name.
    """
    name, port = entry.server_name or entry.address.host, entry.address.port
    several = len(addresses) > 1
    return [
        replace(
            entry,
            name=f"{entry.name}/{host}" if several else entry.name,
            group=entry.name,
            address=Address(host, port),
            server_name=name,
        )
        for host in addresses[:ADDRESSES_MOST]
    ]


class Membership:
    """The entries, and the addresses that their names had when they were looked up last."""

    def __init__(self, entries: Sequence[NodeOptions], lookup: Lookup = look_up) -> None:
        self._entries = list(entries)
        self._lookup = lookup
        self._found: dict[str, list[str]] = {}
        self.failures: dict[str, str] = {}
        """Why names could not be looked up the last time, by host."""

    def nodes(self) -> list[NodeOptions]:
        """The nodes as far as is known; names that were never found stand for themselves."""
        nodes: list[NodeOptions] = []
        for entry in self._entries:
            found = self._found.get(entry.address.host) if is_name(entry) else None
            nodes += expand(entry, found) if found else [entry]
        return nodes

    async def refresh(self) -> bool:
        """Look all names up; whether that changed the nodes."""
        before = self.nodes()
        for host in {entry.address.host for entry in self._entries if is_name(entry)}:
            try:
                found = await self._lookup(host)
            except OSError as error:
                self.failures[host] = error.strerror or str(error)
                continue
            self.failures.pop(host, None)
            if found:
                self._found[host] = found
        return self.nodes() != before

    async def watch(self, interval: float, changed: Callable[[list[NodeOptions]], None]) -> None:
        """Until cancelled: look the names up every `interval` seconds, and tell of other nodes."""
        if not any(map(is_name, self._entries)):
            return
        while True:
            if await self.refresh():
                changed(self.nodes())
            await asyncio.sleep(interval)
