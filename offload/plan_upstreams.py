"""The web servers' side of a plan: named groups, whose servers are looked up once for all listeners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offload import resolver
from offload.config import Config
from offload.config_listener import Place
from offload.config_upstream import UpstreamSettings
from offload.problems import Problems
from offload.settings import ServerData, UpstreamData


@dataclass
class GroupPlan:
    """A group of web servers."""

    name: str
    settings: UpstreamSettings
    servers: list[ServerData]
    """Those that there are at present, and whether they are up."""

    def data(self, workers: int) -> UpstreamData:
        """What each of so many workers is told."""
        settings = self.settings
        return UpstreamData(
            name=self.name,
            servers=self.servers,
            balance=settings.balance,
            connect_timeout=settings.connect_timeout,
            attempts=settings.attempts,
            max_fails=settings.max_fails,
            slow_start=settings.slow_start,
            proxy_protocol=settings.proxy_protocol,
            workers=workers,
        )


def plan_groups(config: Config, problems: Problems) -> list[GroupPlan]:
    """All groups, as far as they are good; what is wrong goes to `problems`."""
    return [
        GroupPlan(name, settings, _resolve(settings, place, problems))
        for name, (place, settings) in config.groups.items()
    ]


def _resolve(settings: UpstreamSettings, place: Place, problems: Problems) -> list[ServerData]:
    found = [
        problems.attempt(resolver.resolve_at_start, server, written((*place, "servers", position)))
        for position, server in enumerate(settings.servers)
    ]
    return [server for each in found if each for server in each]


def written(place: Place) -> str:
    """As an operator reads it: `listeners[0].upstream`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".")


def keep_servers(old: Sequence[GroupPlan], new: Sequence[GroupPlan]) -> None:
    """Groups that are configured as before go on as they were judged, and looked up."""
    before = {group.name: group for group in old}
    for group in new:
        known = before.get(group.name)
        if known is not None and known.settings == group.settings:
            group.servers = known.servers
