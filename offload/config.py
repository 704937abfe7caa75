"""The configuration file: frozen models, one per section, validated where they are built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hsm import config as shared
from hsm.cluster_config import ADMIN_ADDRESS, ClusterSettings, Name
from hsm.config import Duration, FilePath, Section, StreamAddress
from hsm.logs import Form
from hsm.mistakes import misplaced, nearest
from offload.config_listener import ListenerSettings, Place
from offload.config_tls import TicketSettings
from offload.config_upstream import UpstreamSettings
from offload.networks import Network


class AdminSettings(Section):
    """The read-only HTTP server with metrics and probes."""

    address: StreamAddress = Field(ADMIN_ADDRESS, description="host:port or unix:/path.")


class LimitSettings(Section):
    """What a client can take up at most."""

    handshake_timeout: Duration = Field(10.0, gt=0, description="From accept to the end of the handshake.")
    max_connections: PositiveInt = Field(10_000, description="Open client connections, all workers together.")
    drain_timeout: Duration = Field(30.0, description="Time for open connections to end on shutdown.")
    half_close_timeout: Duration = Field(
        30.0,
        gt=0,
        description="A connection with one direction ended and nothing moving for this long is closed.",
    )
    max_handshake_bytes: PositiveInt = Field(
        65_536, description="A client that has sent more before the end of its handshake is closed."
    )
    idle_timeout: Duration = Field(
        600.0,
        description="A connection in which nothing moves, either way, for this long is closed; 0: never.",
    )
    max_connections_per_address: PositiveInt | None = Field(
        None,
        description="Open connections of one client: an IPv4 address, or the /64 of an IPv6 one. Every worker "
        "has its share, with room for chance: see operations.md.",
    )
    handshakes_per_second_per_address: PositiveFloat | None = Field(
        None, description="New connections of one client in a second, on average."
    )
    handshake_burst_per_address: PositiveInt = Field(
        20, description="New connections of one client that may come at once, before the average counts."
    )
    exempt: list[Network] = Field(
        default_factory=list, description="Networks whose clients meet no limit per address."
    )
    heartbeat_timeout: Duration = Field(
        3.0, ge=0.5, description="A worker that does not answer for this long is replaced."
    )


class LogSettings(Section):
    """What the log tells besides events, and how."""

    connections: Literal["none", "failures", "all"] = Field(
        "none",
        description="One line per connection when it ends: for none, for those that failed, or for the others too.",
    )
    sample: float = Field(
        1.0, gt=0, le=1, description="With all: the share of connections without failure that get a line."
    )
    format: Form = Field("auto", description="json, console, or auto: console on a terminal.")


class Config(Section):
    """The whole file."""

    listeners: list[ListenerSettings] = Field(min_length=1)
    upstreams: dict[Name, UpstreamSettings] = Field(
        default_factory=dict, description="Groups of web servers, by the names that listeners and routes use."
    )
    hsm: ClusterSettings
    tickets: TicketSettings = Field(default_factory=TicketSettings)
    admin: AdminSettings | None = Field(default_factory=AdminSettings, description="null turns it off.")
    workers: PositiveInt | Literal["auto"] = Field("auto", description="Processes; auto is one per core.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    watch_files: bool = Field(
        True, description="Reload when this file, or one that it names, has other content."
    )
    user: str | None = Field(
        None, description="Who workers run as when the proxy is started as root; if left out, root."
    )
    group: str | None = Field(None, description="Their primary group; if left out, the user's.")
    sandbox: Literal["auto", "off"] = Field(
        "auto",
        description="auto: workers can open no file, bind no port and signal no other process, as far as the "
        "kernel has Landlock; /status tells what is in force.",
    )
    runtime_directory: FilePath | None = Field(
        None,
        description="Where the control socket and sockets of local nodes live; if left out, a directory "
        "below /run/offload (root), $XDG_RUNTIME_DIR or the temporary directory that follows from this file's path.",
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _check_unique([listener.name for listener in self.listeners], "listeners")
        fixed = [str(listener.address) for listener in self.listeners if listener.address.port]
        _check_unique(fixed, "listeners (address)")
        if self.group is not None and self.user is None:
            raise ValueError("group: is of no use without `user`; name one, or leave it out")
        return self

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        if faults := [*self._group_faults()]:
            raise misplaced(faults)
        return self

    def _group_faults(self) -> Iterator[tuple[Place, str]]:
        groups = self.groups
        for index, listener in enumerate(self.listeners):
            at: Place = ("listeners", index)
            if listener.name in self.upstreams and isinstance(listener.upstream, UpstreamSettings):
                yield (
                    (*at, "upstream"),
                    f"`upstreams` has a group {listener.name!r} too; give one another name",
                )
            for place, name in listener.named_groups:
                if name not in groups:
                    yield (*at, *place), f"there is no group {name!r} in `upstreams`{nearest(name, groups)}"
            if listener.mode != "redirect":
                continue
            for name in listener.groups & groups.keys():
                place, group = groups[name]
                if group.proxy_protocol is not None:
                    why = f"listener {listener.name} (mode: redirect) sends none"
                    yield (*place, "proxy_protocol"), f"{why}; leave it out, or give it another group"

    @property
    def groups(self) -> dict[str, tuple[Place, UpstreamSettings]]:
        """All groups of web servers by name, each with the keys that lead to it."""
        found: dict[str, tuple[Place, UpstreamSettings]] = {
            name: (("upstreams", name), group) for name, group in self.upstreams.items()
        }
        for index, listener in enumerate(self.listeners):
            if isinstance(listener.upstream, UpstreamSettings):
                found[listener.name] = ("listeners", index, "upstream"), listener.upstream
        return found

    @property
    def worker_count(self) -> int:
        """How many workers run."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers


def _check_unique(names: list[str], what: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"{what}: {name!r} stands twice")


def load(path: Path) -> Config:
    """Read the configuration. Raises ConfigurationError with one line per mistake."""
    return shared.load(path, Config)
