"""From a configuration to what is needed to run it: everything that can be wrong is found here.

Nothing is started before all of it is known to be good.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from hsm.client import NodeOptions
from hsm.cluster_config import NodeEntry
from hsm.config import Address, Emulation, Pkcs11Settings, SoftwareSettings
from hsm.config import load as load_settings
from hsm.errors import ConfigurationError
from hsm.node.keycheck import check_key_files
from hsm.node.pkcs11 import check_settings
from hsm.transport import client_context
from offload import resolver
from offload.certificates import Chain
from offload.config import Config, ListenerSettings
from offload.demands import Demand
from offload.plan_tls import TlsPlan, plan_tls
from offload.problems import Problems
from offload.rotation import TicketKeeper
from offload.settings import ListenerData, NodeData, ServerData, UpstreamData, WorkerSettings
from offload.sockets import bind_listener


@dataclass
class ListenerPlan:
    """One listener with its chains read, upstreams resolved, sockets bound."""

    settings: ListenerSettings
    tls: TlsPlan
    servers: list[ServerData]
    """Those that there are at present, and whether they are up."""
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def chains(self) -> list[Chain]:
        """Its certificates."""
        return self.tls.chains

    @property
    def demands(self) -> list[Demand]:
        """What its policy demands of their keys."""
        return self.tls.demands

    @property
    def bound(self) -> Address:
        """The address it listens on: with the real port where 0 was asked for."""
        host, port = self.sockets[0].getsockname()[:2]
        return Address(host, port)


def plan_listeners(config: Config) -> list[ListenerPlan]:
    """Read and check everything but the ports. Raises ConfigurationError."""
    problems = Problems()
    plans = [
        plan_listener(settings, f"listeners[{index}]", problems)
        for index, settings in enumerate(config.listeners)
    ]
    problems.raise_if_any()
    return plans


def plan_listener(settings: ListenerSettings, key: str, problems: Problems) -> ListenerPlan:
    """One listener, as far as it is good; what is wrong goes to `problems`."""
    servers = [
        problems.attempt(resolver.resolve_at_start, server, f"{key}.upstream.servers[{position}]")
        for position, server in enumerate(settings.upstream.servers)
    ]
    found = [server for each in servers if each for server in each]
    return ListenerPlan(settings, plan_tls(settings, key, problems), found)


def bind(plans: list[ListenerPlan], count: int) -> None:
    """Bind `count` sockets for each listener, or none at all. Raises ConfigurationError."""
    try:
        for index, plan in enumerate(plans):
            plan.sockets = bind_listener(plan.settings.address, count, f"listeners[{index}].address")
    except ConfigurationError:
        for plan in plans:
            for sock in plan.sockets:
                sock.close()
        raise


def node_options(entry: NodeEntry, address: Address) -> NodeOptions:
    """How the supervisor reaches a node. Raises ConfigurationError for bad credentials."""
    if entry.tls is None:
        return NodeOptions(entry.name, address)
    return NodeOptions(entry.name, address, client_context(entry.tls), entry.tls.server_name)


def check_local_node(entry: NodeEntry) -> None:
    """Find now what would make a local node fail at its start; no key is read here. Raises ConfigurationError."""
    if isinstance(entry.run, SoftwareSettings):
        check_key_files(entry.run.keys, entry.run.passphrase_file)
        if entry.run.emulate_file is not None:
            load_settings(entry.run.emulate_file, Emulation)
    elif isinstance(entry.run, Pkcs11Settings):
        check_settings(entry.run)


def worker_settings(
    config: Config,
    plans: list[ListenerPlan],
    nodes: list[tuple[NodeEntry, Address]],
    tickets: TicketKeeper,
    slot: int,
) -> WorkerSettings:
    """What one worker is told."""
    return WorkerSettings(
        slot=slot,
        listeners=[_listener_data(plan, tickets, config.worker_count) for plan in plans],
        nodes=[
            NodeData(name=entry.name, host=address.host, port=address.port, path=address.path, tls=entry.tls)
            for entry, address in nodes
        ],
        sign_timeout=config.hsm.sign_timeout,
        verify_signatures=config.hsm.verify_signatures,
        limits=config.limits,
        log=config.log,
        workers=config.worker_count,
        connections_most=-(-config.limits.max_connections // config.worker_count),
    )


def _listener_data(plan: ListenerPlan, tickets: TicketKeeper, workers: int) -> ListenerData:
    return ListenerData(
        name=plan.settings.name,
        tls=plan.tls.data(tickets.data(plan.settings)),
        upstream=upstream_data(plan, workers),
        trusted=plan.settings.accept_proxy and plan.settings.accept_proxy.trusted,
        sockets=[sock.fileno() for sock in plan.sockets],
    )


def upstream_data(plan: ListenerPlan, workers: int) -> UpstreamData:
    """What each of so many workers is told of the servers behind a listener."""
    settings = plan.settings.upstream
    return UpstreamData(
        servers=plan.servers,
        balance=settings.balance,
        connect_timeout=settings.connect_timeout,
        attempts=settings.attempts,
        max_fails=settings.max_fails,
        slow_start=settings.slow_start,
        proxy_protocol=settings.proxy_protocol,
        workers=workers,
    )
