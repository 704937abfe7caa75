"""Host names of upstream servers."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hsm.config import Address
from hsm.errors import ConfigurationError
from offload.config_upstream import ServerSettings
from offload.resolver import is_name, look_up, look_up_aside, resolve_at_start, servers_at


def configured(address: str, **more: object) -> ServerSettings:
    """A server as in a configuration file."""
    return ServerSettings.model_validate({"address": address, **more})


def test_addresses_come_once_and_in_order() -> None:
    """Whatever order a name server answers in: the same addresses are the same servers."""
    found = look_up("localhost")
    assert "127.0.0.1" in found
    assert found == sorted(set(found))
    assert look_up("127.0.0.1") == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid", ".", "a..b"])
def test_what_is_no_name_is_an_os_error(host: str) -> None:
    """Unknown, or not even a name: one kind of error for the caller."""
    with pytest.raises(OSError, match=r"host name|known|resolution"):
        look_up(host)


def test_a_name_with_several_addresses_is_several_servers() -> None:
    """They share label, weight and limit; each has its own address."""
    web = configured("web.internal:80", weight=3, max_connections=7)
    servers = servers_at(web, ["10.0.0.1", "fd00::1"])
    assert [str(server.address) for server in servers] == ["10.0.0.1:80", "[fd00::1]:80"]
    assert {(s.label, s.weight, s.max_connections) for s in servers} == {("web.internal:80", 3, 7)}


def test_a_unix_socket_needs_no_looking_up() -> None:
    """It is one server, by its path."""
    (server,) = resolve_at_start(configured("unix:/run/web.sock"), "key")
    assert server.address == Address(path="/run/web.sock")


def test_an_unknown_name_at_start_is_the_operators_mistake() -> None:
    """One line that names the key and the host."""
    with pytest.raises(ConfigurationError, match=r"^a\.b: cannot resolve 'no-such-host\.invalid'"):
        resolve_at_start(configured("no-such-host.invalid:80"), "a.b")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("10.0.0.1:80", False),
        ("[::1]:80", False),
        ("[fe80::1%eth0]:80", False),
        ("unix:/x", False),
        ("web:80", True),
    ],
)
def test_only_names_are_looked_up_again(address: str, named: bool) -> None:
    """An address stays what it is."""
    assert is_name(configured(address).address) is named


def test_looking_up_leaves_the_loop_free() -> None:
    """While a name server says nothing, all else goes on; the answer arrives, an error too."""
    answer = threading.Event()

    def slow(host: str) -> list[str]:
        assert answer.wait(10)
        if host == "bad":
            raise OSError("no such name")
        return [host]

    async def run() -> None:
        good, bad = look_up_aside("good", slow), look_up_aside("bad", slow)
        await asyncio.sleep(0)
        assert not good.done()
        answer.set()
        assert await good == ["good"]
        with pytest.raises(OSError, match="no such name"):
            await bad

    asyncio.run(run())


def test_nobody_waits_for_a_name_server_at_the_end() -> None:
    """The loop ends while a lookup is under way; its late answer disturbs nobody."""
    answer, over = threading.Event(), threading.Event()

    def slow(_host: str) -> list[str]:
        assert answer.wait(10)
        over.set()
        return []

    async def run() -> None:
        look_up_aside("x", slow)

    asyncio.run(run())
    threads = [thread for thread in threading.enumerate() if thread.name == "look up x"]
    assert len(threads) == 1
    answer.set()
    threads[0].join(10)
    assert over.is_set()
    assert not threads[0].is_alive()
