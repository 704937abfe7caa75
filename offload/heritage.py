"""What a process finds when it starts: listening sockets, from the one it replaces or a service manager."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offload import descriptors
from offload.errors import ConfigurationError

if TYPE_CHECKING:
    from offload.supervisor import Supervisor


class HeritageData(BaseModel):
    """What goes before the sockets, as JSON. A newer version may know more: that is passed over."""

    model_config = ConfigDict(frozen=True)

    sockets: dict[str, int]
    """How many of each place (`ListenerPlan.place`), in the order in which they were sent."""
    lent: frozenset[str]
    directory: str
    admin_address: str
    """Of the socket that comes after the others; empty if none does."""
    tickets: dict[str, Any] = Field(repr=False)
    """`TicketKeeper.export`: secret."""
    disabled_nodes: frozenset[str]
    log_level: str
    seconds: float
    """How long it is waited for."""


@dataclass
class Heritage:
    """What there is already; nothing for a process that starts on its own."""

    held: dict[str, list[socket.socket]] = field(default_factory=dict)
    """Listening sockets by place."""
    lent: frozenset[str] = frozenset()
    """Places whose sockets belong to a service manager: closed here, they still listen."""
    directory: str = ""
    """Where the process before has its control socket."""
    admin: socket.socket | None = None
    admin_address: str = ""
    tickets: dict[str, Any] = field(default_factory=dict, repr=False)
    disabled_nodes: frozenset[str] = frozenset()
    log_level: str = "info"
    seconds: float = 0.0

    def forget(self, places: set[str]) -> None:
        """Close sockets of other places than these."""
        for place in self.held.keys() - places:
            for sock in self.held.pop(place):
                sock.close()


def give(supervisor: Supervisor, channel: socket.socket, seconds: float) -> dict[str, Any]:
    """Send all sockets over `channel`, and return what they are. Raises OSError."""
    state, pool, admin = supervisor.state, supervisor.pool, supervisor.entrances.admin
    descriptors.send(channel, [*state.sockets, *([admin] if admin is not None else [])])
    return HeritageData(
        sockets={listener.place: len(listener.sockets) for listener in state.listeners},
        lent=state.lent,
        directory=str(supervisor.directory),
        admin_address=_admin_address(supervisor),
        tickets=state.tickets.export(),
        disabled_nodes=frozenset(pool.disabled_nodes),
        log_level=pool.log_level,
        seconds=seconds,
    ).model_dump(mode="json")


def _admin_address(supervisor: Supervisor) -> str:
    admin = supervisor.state.config.admin
    return "" if admin is None else str(admin.address)


def receive(answer: dict[str, Any], channel: socket.socket) -> Heritage:
    """What `give` gave. Raises ConfigurationError if it is something else."""
    try:
        data = HeritageData.model_validate(answer)
        has_admin = bool(data.admin_address) and not data.admin_address.startswith("unix:")
        sockets = iter(descriptors.receive(channel, sum(data.sockets.values()) + has_admin))
    except (ValidationError, OSError) as error:
        raise ConfigurationError(
            f"this version can't take over from the one that runs: {error}; end that one and start this one"
        ) from error
    return Heritage(
        held={place: [next(sockets) for _ in range(count)] for place, count in data.sockets.items()},
        lent=data.lent,
        directory=data.directory,
        admin=next(sockets, None),
        admin_address=data.admin_address,
        tickets=data.tickets,
        disabled_nodes=data.disabled_nodes,
        log_level=data.log_level,
        seconds=data.seconds,
    )
