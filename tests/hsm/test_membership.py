"""Which nodes a configuration's entries stand for, when names have several addresses, none, or others."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.membership import ADDRESSES_MOST, Membership, is_name, look_up
from hsm.client.options import NodeOptions
from hsm.config import Address
from tests.support.hsm_support import run

UNIX = NodeOptions("local", Address(path="/run/node.sock"))
NUMERIC = NodeOptions("fixed", Address("192.0.2.1", 2407), server_name="node.example")
NAMED = NodeOptions("headless", Address("hsm.example", 2407), zone="a", weight=2.0, capacity=30, links=2)


class Names:
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


def refreshed(members: Membership) -> bool:
    """One look-up of all names."""
    return run(members.refresh())


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
    assert is_name(NodeOptions("a", address)) is named


def test_a_name_with_several_addresses_is_several_nodes() -> None:
    """Told apart by address; each with what the entry says, its certificate checked against the name."""
    names = Names(hsm_example=["192.0.2.7", "192.0.2.8"])
    members = Membership([UNIX, NUMERIC, NAMED], names)
    assert members.nodes() == [UNIX, NUMERIC, NAMED]
    assert refreshed(members)
    assert names.asked == ["hsm.example"]
    local, fixed, *headless = members.nodes()
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
    members = Membership([entry], Names(hsm_example=["192.0.2.7"]))
    refreshed(members)
    (node,) = members.nodes()
    assert (node.name, node.entry, node.server_name) == ("a", "a", "node.example")
    assert node.address == Address("192.0.2.7", 2407)


@pytest.mark.parametrize("answer", [None, []])
def test_what_cannot_be_looked_up_stays(answer: list[str] | None) -> None:
    """A name service that fails, or knows nothing any more, takes no node away."""
    names = Names(hsm_example=["192.0.2.7"])
    members = Membership([NAMED], names)
    assert refreshed(members)
    before = members.nodes()
    if answer is None:
        del names.addresses["hsm.example"]
    else:
        names.addresses["hsm.example"] = answer
    assert not refreshed(members)
    assert members.nodes() == before
    assert members.failures == ({"hsm.example": "Name or service not known"} if answer is None else {})
    names.addresses["hsm.example"] = ["192.0.2.9"]
    assert refreshed(members)
    assert members.failures == {}


@given(found=st.lists(st.lists(st.sampled_from([f"192.0.2.{n}" for n in range(6)]), unique=True), max_size=8))
def test_a_refresh_tells_whether_the_nodes_are_others(found: list[list[str]]) -> None:
    """True just when the list differs from the one before."""
    names = Names()
    members = Membership([NAMED, UNIX], names)

    async def main() -> None:
        for addresses in found:
            names.addresses["hsm.example"] = addresses
            before = members.nodes()
            assert await members.refresh() is (members.nodes() != before)

    run(main())


def test_a_hostile_name_service_cannot_make_thousands_of_nodes() -> None:
    """What exceeds the bound is cut."""
    members = Membership([NAMED], Names(hsm_example=[f"10.0.{n // 256}.{n % 256}" for n in range(5000)]))
    refreshed(members)
    assert len(members.nodes()) == ADDRESSES_MOST


def test_names_are_watched() -> None:
    """Changes are told, and nothing is told while there is none."""
    told: asyncio.Queue[list[NodeOptions]] = asyncio.Queue()

    async def main() -> None:
        names = Names(hsm_example=["192.0.2.7"])
        watching = asyncio.create_task(Membership([NAMED], names).watch(0.001, told.put_nowait))
        assert len(await told.get()) == 1
        asked = len(names.asked)
        while len(names.asked) < asked + 3:  # looked up again, without a change
            await asyncio.sleep(0)
        assert told.empty()
        names.addresses["hsm.example"] = ["192.0.2.7", "192.0.2.8"]
        assert len(await told.get()) == 2
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    run(main())


def test_without_names_there_is_nothing_to_watch() -> None:
    """The watch ends at once."""
    names = Names()
    run(Membership([UNIX, NUMERIC], names).watch(0.001, lambda _nodes: None))
    assert names.asked == []


def test_the_systems_resolver_is_asked() -> None:
    """`localhost` is known everywhere; a name that can't be is an OSError."""
    assert {"127.0.0.1", "::1"} & set(run(look_up("localhost")))
    with pytest.raises(OSError):  # the resolver's words differ
        run(look_up("no-such-host.invalid"))
