"""IP networks that a configuration names: who may send a PROXY header, whom no limit meets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator

IPNetwork = IPv4Network | IPv6Network
_REMEMBERED = 1024
_CLIENT_NETWORK_BYTES = 8


def parse_network(value: Any) -> IPNetwork:
    """`10.0.0.0/8`, `2001:db8::/32`, or one address. Raises ValueError."""
    try:
        if isinstance(value, str | IPv4Network | IPv6Network):
            return ip_network(value)
        reason = "it is not a text"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{value!r} is not a network ({reason}); write one like 10.0.0.0/8 or 2001:db8::/32")


Network = Annotated[IPNetwork, BeforeValidator(parse_network, json_schema_input_type=str)]
"""As a configuration writes it: `10.0.0.0/8`, or one address."""


class Networks:
    """A set of networks; asked about the same few addresses again and again."""

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self._networks = tuple(networks)
        self.contain = lru_cache(_REMEMBERED)(self._contain)
        """Whether an address, as accept(2) tells it, is in one of them."""

    def _contain(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)


def client_of(host: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one.

    Whoever has one IPv6 address usually has the other 2^64 of its network too.
    """
    if ":" not in host:
        return host
    address = _address(host)
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(address.packed[:_CLIENT_NETWORK_BYTES] + bytes(8))}/64"
    return str(address or host)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """None for what is no address: the path of a unix socket that a PROXY header names."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
