"""Which nodes a configuration's entries stand for, when names have several addresses, none, or others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.membership import ADDRESSES_MOST, Names, is_name, look_up, members
from hsm.client.options import NodeOptions
from hsm.config import Address
from tests.support.hsm_support import run

UNIX = NodeOptions("local", Address(path="/run/node.sock"))
NUMERIC = NodeOptions("fixed", Address("192.0.2.1", 2407), server_name="node.example")
NAMED = NodeOptions("headless", Address("hsm.example", 2407), zone="a", weight=2.0, capacity=30, links=2)


class Service:
    """A name service whose answers a test decides."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = {name.replace("_", "."): found for name, found in addresses.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        """What is known of a name; nothing known is a failure of the lookup."""
        self.asked.append(host)
        if host not in self.addresses:
            raise OSError(0, "Name or service not known")
        return self.addresses[host]


class Cluster:
    """Entries, and the addresses that their names have by a service."""

    def __init__(self, entries: list[NodeOptions], service: Service) -> None:
        self._entries = entries
        self.names = Names(service)

    def nodes(self) -> list[NodeOptions]:
        """What the entries stand for now."""
        return members(self._entries, self.names.addresses)

    def refresh(self) -> bool:
        """One look-up of all names."""
        return run(self.names.refresh(entry.address for entry in self._entries))


@pytest.mark.parametrize(
    ("address", "named"),
    [
        (Address(path="/run/node.sock"), False),
        (Address("192.0.2.1", 1), False),
        (Address("2001:db8::1", 1), False),
        (Address("hsm.example", 1), True),
        (Address("localhost", 1), True),
    ],
)
def test_only_names_are_looked_up(address: Address, named: bool) -> None:
    """Not sockets, and not numbers."""
    assert is_name(address) is named


def test_a_name_with_several_addresses_is_several_nodes() -> None:
    """Told apart by address; each with what the entry says, its certificate checked against the name."""
    service = Service(hsm_example=["192.0.2.7", "192.0.2.8"])
    cluster = Cluster([UNIX, NUMERIC, NAMED], service)
    assert cluster.nodes() == [UNIX, NUMERIC, NAMED]
    assert cluster.refresh()
    assert service.asked == ["hsm.example"]
    local, fixed, *headless = cluster.nodes()
    assert (local, fixed) == (UNIX, NUMERIC)
    assert [node.name for node in headless] == ["headless/192.0.2.7", "headless/192.0.2.8"]
    for node, host in zip(headless, ["192.0.2.7", "192.0.2.8"], strict=True):
        assert (node.address, node.server_name, node.entry) == (
            Address(host, 2407),
            "hsm.example",
            "headless",
        )
        assert (node.zone, node.weight, node.capacity, node.links) == ("a", 2.0, 30, 2)


def test_a_name_with_one_address_keeps_its_name() -> None:
    """Metrics then carry what the operator wrote; a configured server name goes before the host."""
    entry = NodeOptions("a", Address("hsm.example", 2407), server_name="node.example")
    cluster = Cluster([entry], Service(hsm_example=["192.0.2.7"]))
    cluster.refresh()
    (node,) = cluster.nodes()
    assert (node.name, node.entry, node.server_name) == ("a", "a", "node.example")
    assert node.address == Address("192.0.2.7", 2407)


@pytest.mark.parametrize("answer", [None, []])
def test_what_cannot_be_looked_up_stays(answer: list[str] | None) -> None:
    """A name service that fails, or knows nothing any more, takes no node away."""
    service = Service(hsm_example=["192.0.2.7"])
    cluster = Cluster([NAMED], service)
    assert cluster.refresh()
    before = cluster.nodes()
    if answer is None:
        del service.addresses["hsm.example"]
    else:
        service.addresses["hsm.example"] = answer
    assert not cluster.refresh()
    assert cluster.nodes() == before
    assert cluster.names.failures == ({"hsm.example": "Name or service not known"} if answer is None else {})
    service.addresses["hsm.example"] = ["192.0.2.9"]
    assert cluster.refresh()
    assert cluster.names.failures == {}


@given(found=st.lists(st.lists(st.sampled_from([f"192.0.2.{n}" for n in range(6)]), unique=True), max_size=8))
def test_a_refresh_tells_whether_the_nodes_are_others(found: list[list[str]]) -> None:
    """True just when the list differs from the one before."""
    service = Service()
    cluster = Cluster([NAMED, UNIX], service)

    for addresses in found:
        service.addresses["hsm.example"] = addresses
        before = cluster.nodes()
        assert cluster.refresh() is (cluster.nodes() != before)


def test_a_hostile_name_service_cannot_make_thousands_of_nodes() -> None:
    """What exceeds the bound is cut."""
    cluster = Cluster([NAMED], Service(hsm_example=[f"10.0.{n // 256}.{n % 256}" for n in range(5000)]))
    cluster.refresh()
    assert len(cluster.nodes()) == ADDRESSES_MOST


def test_the_systems_resolver_is_asked() -> None:
    """`localhost` is known everywhere; a name that can't be is an OSError."""
    assert {"127.0.0.1", "::1"} & set(run(look_up("localhost")))
    with pytest.raises(OSError):  # the resolver's words differ
        run(look_up("no-such-host.invalid"))
