"""Which nodes a configuration's entries stand for, when names have several addresses, none, or others."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client import membership
from hsm.client.membership import ADDRESSES_MOST, Names, is_name, look_up, members
from hsm.client.options import NodeOptions
from hsm.config import Address
from tests.support.hsm_support import run

UNIX = NodeOptions("local", Address(path="/run/node.sock"))
NUMERIC = NodeOptions("fixed", Address("192.0.2.1", 2407), server_name="node.example")
NAMED = NodeOptions("headless", Address("hsm.example", 2407), zone="a", weight=2.0, capacity=30, links=2)
HOSTS = [entry.address for entry in (UNIX, NUMERIC, NAMED)]


class NameService:
    """A name service whose answers a test decides."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = list(addresses)
        """Of hsm.example; None: it can't be asked."""
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        """What is known of a name."""
        self.asked.append(host)
        if self.addresses is None:
            raise OSError(0, "Name or service not known")
        return self.addresses


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
    service = NameService("192.0.2.7", "192.0.2.8")
    names = Names(service)
    assert run(names.refresh(HOSTS))
    assert service.asked == ["hsm.example"]
    local, fixed, *headless = members([UNIX, NUMERIC, NAMED], names.addresses)
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
    (node,) = members([entry], {"hsm.example": ["192.0.2.7"]})
    assert (node.name, node.entry, node.server_name) == ("a", "a", "node.example")
    assert node.address == Address("192.0.2.7", 2407)


def test_a_name_that_was_never_found_stands_for_itself() -> None:
    """The node is then told as not connected, with the reason."""
    assert members([NAMED], {}) == [NAMED]


@pytest.mark.parametrize("answer", [None, []])
def test_what_cannot_be_looked_up_stays(answer: list[str] | None) -> None:
    """A name service that fails, or knows nothing any more, takes no node away."""
    service = NameService("192.0.2.7")
    names = Names(service)
    assert run(names.refresh(HOSTS))
    service.addresses = answer
    assert not run(names.refresh(HOSTS))
    assert names.addresses == {"hsm.example": ["192.0.2.7"]}
    assert names.failures == ({} if answer == [] else {"hsm.example": "Name or service not known"})
    service.addresses = ["192.0.2.9"]
    assert run(names.refresh(HOSTS))
    assert names.failures == {}


def test_a_name_service_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other names are not held up, and the failure is told."""
    monkeypatch.setattr(membership, "LOOKUP_TIMEOUT", 0.01)

    async def lookup(host: str) -> list[str]:
        if host == "slow.example":
            await asyncio.Event().wait()
        return ["192.0.2.7"]

    names = Names(lookup)
    assert run(names.refresh([Address("slow.example", 1), *HOSTS]))
    assert names.addresses == {"hsm.example": ["192.0.2.7"]}
    assert names.failures == {"slow.example": "no answer in time"}


@given(found=st.lists(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2"]), unique=True), max_size=8))
def test_a_refresh_tells_whether_the_nodes_are_others(found: list[list[str]]) -> None:
    """True just when the list differs from the one before."""
    service = NameService()
    names = Names(service)

    async def main() -> None:
        for addresses in found:
            service.addresses = addresses
            before = members([NAMED, UNIX], names.addresses)
            changed = await names.refresh(HOSTS)
            assert changed is (members([NAMED, UNIX], names.addresses) != before)

    run(main())


def test_a_hostile_name_service_cannot_make_thousands_of_nodes() -> None:
    """What exceeds the bound is cut."""
    hosts = [f"10.0.{number // 256}.{number % 256}" for number in range(5000)]
    assert len(members([NAMED], {"hsm.example": hosts})) == ADDRESSES_MOST


def test_the_systems_resolver_is_asked() -> None:
    """`localhost` is known everywhere; a name that can't be is an OSError."""
    assert {"127.0.0.1", "::1"} & set(run(look_up("localhost")))
    with pytest.raises(OSError):  # the resolver's words differ
        run(look_up("no-such-host.invalid"))
