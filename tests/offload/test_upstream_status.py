"""The workers' views of a server and its checks, put together."""

from __future__ import annotations

from typing import Any

import pytest

from offload.upstream_health import CheckHealth
from offload.upstream_status import ServerStatus, outage, server_statuses
from tests.offload.servers import tcp


def view(out: bool = False, *, connections: int = 1, since: float = 0.0) -> list[dict[str, Any]]:
    """What one worker says of 127.0.0.1:80."""
    why = "refused" if out else ""
    return [
        {"server": "127.0.0.1:80", "connections": connections, "out": out, "why": why, "since": since},
    ]


def checked(*faults: str) -> dict[str, CheckHealth]:
    """What checks with these results say."""
    health = CheckHealth(1, 1, 0.0)
    for now, fault in enumerate(faults, 1):
        health.observe(fault, float(now))
    return {"127.0.0.1:80": health}


@pytest.mark.parametrize(
    ("views", "checks", "state", "why", "since"),
    [
        ([], {}, "up", "", None),
        ([view(), view(since=3.0)], {}, "up", "", 3.0),
        ([view(True, since=2.0), view()], {}, "partly out", "refused", 2.0),
        ([view(True, since=2.0), view(True, since=4.0)], {}, "out", "refused", 4.0),
        ([view()], checked(""), "up", "", 0.0),
        ([view()], checked("", "answered 500, not 200"), "down", "answered 500, not 200", 2.0),
        ([view(True)], checked("no", "no", ""), "out", "refused", 0.0),
    ],
)
def test_states(
    views: list[list[dict[str, Any]]],
    checks: dict[str, CheckHealth],
    state: str,
    why: str,
    since: float | None,
) -> None:
    """Checks come first, then what the workers found; and since when, and why."""
    (status,) = server_statuses([tcp(80, weight=2)], checks, views)
    assert (status.state, status.why, status.since, status.weight) == (state, why, since, 2)
    assert status.connections == len(views)
    assert status.is_up is (state in ("up", "partly out"))


def test_a_server_that_left_is_shown_while_it_has_connections() -> None:
    """So that an operator sees when it can be switched off."""
    views = [view(connections=2), view(connections=1)]
    assert server_statuses([], {}, views) == [
        ServerStatus("127.0.0.1:80", "127.0.0.1:80", 0, "leaving", "", None, 3)
    ]
    assert server_statuses([], {}, [view(connections=0)]) == []


def test_an_outage_is_a_group_without_a_server() -> None:
    """It is told with each server's reason; one that some workers reach is enough."""
    servers, out = [tcp(80), tcp(81)], view(True)
    assert outage("site", server_statuses(servers, {}, [out])) == ""
    servers = servers[:1]
    assert outage("site", server_statuses(servers, {}, [out, view()])) == ""
    expected = "upstream site: no server is up (127.0.0.1:80: refused)"
    assert outage("site", server_statuses(servers, {}, [out, out])) == expected
