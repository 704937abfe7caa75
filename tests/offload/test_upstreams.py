"""Which servers there are and which are up, as the supervisor keeps it: names that change, servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from offload.config_upstream import UpstreamSettings
from offload.plan_upstreams import GroupPlan
from offload.resolver import servers_at
from offload.upstreams import Upstreams
from tests.support.hsm_support import free_port

FAST = "100ms"


class Names:
    """A name server: `hosts` may change at any time; a name without addresses is not found."""

    def __init__(self, **hosts: list[str]) -> None:
        self.hosts = hosts
        self.asked = 0

    def look_up(self, host: str) -> list[str]:
        """As `resolver.look_up`."""
        self.asked += 1
        found = self.hosts.get(host)
        if not found:
            raise OSError(f"no such name: {host}")
        return found


class Told:
    """What the workers were told, in order: the addresses of the servers that are up, and of those that are not."""

    def __init__(self) -> None:
        self.all: list[tuple[list[str], list[str]]] = []
        self._more = asyncio.Event()

    async def tell(self, plan: GroupPlan) -> None:
        """As the supervisor does."""
        both: tuple[list[str], list[str]] = ([], [])
        for server in plan.servers:
            both[not server.up].append(str(server.address))
        self.all.append(both)
        self._more.set()

    async def next(self) -> tuple[list[str], list[str]]:
        """What comes next."""
        async with asyncio.timeout(10):
            while not self.all:
                self._more.clear()
                await self._more.wait()
        return self.all.pop(0)


def plan_of(names: Names, *servers: str, **upstream: Any) -> GroupPlan:
    """The plan of a group with these servers, names looked up."""
    settings = UpstreamSettings.model_validate({"servers": list(servers), **upstream})
    found = [
        data
        for server in settings.servers
        for data in servers_at(server, names.hosts.get(server.address.host, [server.address.host]))
    ]
    return GroupPlan("web", settings, found)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """What was logged."""
    with capture_logs() as entries:
        yield entries


def watched(names: Names, scenario: Callable[[Upstreams, Told], Awaitable[None]]) -> None:
    """Run a scenario with everything stopped at its end."""

    async def run() -> None:
        told = Told()
        upstreams = Upstreams(told.tell, structlog.get_logger(), names.look_up)
        try:
            await scenario(upstreams, told)
        finally:
            upstreams.stop()

    asyncio.run(run())


def test_a_name_that_changes(logs: list[Any]) -> None:
    """Other addresses reach the workers; the same ones are no news."""
    names = Names(web=["10.0.0.1"])

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        upstreams.watch([plan_of(names, "web:80", "10.9.9.9:80", resolve_interval=FAST)])
        names.hosts["web"] = ["10.0.0.2", "10.0.0.3"]
        assert await told.next() == (["10.0.0.2:80", "10.0.0.3:80", "10.9.9.9:80"], [])
        before = names.asked
        while names.asked < before + 3:
            await asyncio.sleep(0.01)
        assert told.all == []

    watched(names, scenario)
    assert [entry["event"] for entry in logs] == ["upstream_servers"]


def test_a_name_server_that_fails_changes_nothing(logs: list[Any]) -> None:
    """The old addresses stay; one line in the log until it works again, which is news only if they changed."""
    names = Names(web=["10.0.0.1"], other=["10.0.1.1"])

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        upstreams.watch([plan_of(names, "web:80", "other:80", resolve_interval=FAST)])
        names.hosts["web"] = []
        while names.asked < 6:
            await asyncio.sleep(0.01)
        assert told.all == []
        names.hosts["other"] = ["10.0.1.2"]
        assert await told.next() == (["10.0.0.1:80", "10.0.1.2:80"], [])
        names.hosts["web"] = ["10.0.0.9"]
        assert await told.next() == (["10.0.0.9:80", "10.0.1.2:80"], [])

    watched(names, scenario)
    events = [entry["event"] for entry in logs]
    assert events.count("upstream_unresolved") == 1
    assert logs[0]["server"] == "web:80"
    assert "no such name" in logs[0]["error"]


def test_only_names_are_looked_up_and_only_if_wanted() -> None:
    """An address is never asked for, and `resolve_interval: 0` leaves it at the start."""
    names = Names(web=["10.0.0.1"])

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        upstreams.watch([plan_of(names, "10.0.0.1:80", resolve_interval=FAST)])
        await asyncio.sleep(0.15)
        upstreams.watch([plan_of(names, "web:80", resolve_interval=0)])
        await asyncio.sleep(0.15)
        assert names.asked == 0
        assert told.all == []

    watched(names, scenario)


@contextlib.contextmanager
def listening(port: int = 0) -> Iterator[int]:
    """A server that can be connected to, and its port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(100)
        yield sock.getsockname()[1]


CHECKS = {"interval": FAST, "timeout": "1s", "rise": 2, "fall": 2}


def test_a_server_that_dies_and_comes_back(logs: list[Any]) -> None:
    """Down after bad checks, up after good ones; the workers and the log learn each once."""
    names = Names()

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        with listening() as steady, free_port() as port, contextlib.ExitStack() as dying:
            dying.enter_context(listening(port))
            a, b = f"127.0.0.1:{steady}", f"127.0.0.1:{port}"
            upstreams.watch([plan_of(names, a, b, health=CHECKS)])
            await asyncio.sleep(0.15)
            dying.close()
            assert await told.next() == ([a], [b])
            assert upstreams.checks("web")[b].why == "Connection refused"
            with listening(port):
                assert await told.next() == ([a, b], [])
            assert await told.next() == ([a], [b])

    watched(names, scenario)
    assert [entry["event"] for entry in logs] == ["upstream_down", "upstream_up", "upstream_down"]


def test_a_server_that_goes_is_checked_no_more_and_a_new_one_is() -> None:
    """A name's addresses change: the new one is checked at once."""
    names = Names(web=["127.0.0.1"])

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        with listening() as port:
            upstreams.watch([plan_of(names, f"web:{port}", resolve_interval=FAST, health=CHECKS)])
            await asyncio.sleep(0.05)
            names.hosts["web"] = ["127.0.0.2"]
            assert await told.next() == ([f"127.0.0.2:{port}"], [])
            assert await told.next() == ([], [f"127.0.0.2:{port}"])
            assert list(upstreams.checks("web")) == [f"127.0.0.2:{port}"]

    watched(names, scenario)


def test_a_reload_keeps_what_is_known() -> None:
    """A server that was down before is down in the new plan; one that went, and its checks, are forgotten."""
    names = Names()

    async def scenario(upstreams: Upstreams, told: Told) -> None:
        with listening() as up, listening() as closed:
            pass
        with listening(up):
            a, b = f"127.0.0.1:{up}", f"127.0.0.1:{closed}"
            upstreams.watch([plan_of(names, a, b, health=CHECKS)])
            assert await told.next() == ([a], [b])
            again = plan_of(names, b, health=CHECKS)
            upstreams.watch([again])
            assert [server.up for server in again.servers] == [False]
            assert list(upstreams.checks("web")) == [b]
            without = plan_of(names, b)
            upstreams.watch([without])
            assert [server.up for server in without.servers] == [True]
            upstreams.watch([])
            assert upstreams.checks("web") == {}

    watched(names, scenario)
