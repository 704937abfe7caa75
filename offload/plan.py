"""From a configuration to what is needed to run it: everything that can be wrong is found here.

Nothing is started before all of it is known to be good.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hsm.cluster_config import ClusterPolicy, NodeEntry
from hsm.config import Address, Emulation, Pkcs11Settings, SoftwareSettings
from hsm.config import load as load_settings
from hsm.errors import ConfigurationError
from hsm.node.keycheck import check_key_files
from hsm.node.pkcs11_settings import check_settings
from hsm.transport import read_credentials
from hsm.verification import VerificationKey
from offload.certificates import Chain
from offload.config import Config
from offload.config_listener import ListenerSettings
from offload.demands import Demand
from offload.plan_pages import plan_pages
from offload.plan_tls import TlsPlan, plan_tls
from offload.plan_upstreams import GroupPlan, plan_groups
from offload.problems import Problems
from offload.rotation import TicketKeeper
from offload.settings import (
    LinkData,
    ListenerData,
    NodeData,
    SocketsData,
    WorkerSettings,
)
from offload.settings_http import HttpData
from offload.sockets import bind_listener, listen


@dataclass
class ListenerPlan:
    """One listener with its chains read, sockets bound."""

    settings: ListenerSettings
    tls: TlsPlan
    sockets: list[socket.socket] = field(default_factory=list)
    pages: dict[int, str] = field(default_factory=dict)
    """Error pages (HTML) by status."""

    @property
    def chains(self) -> list[Chain]:
        """Its certificates."""
        return self.tls.chains

    @property
    def demands(self) -> list[Demand]:
        """What its policy demands of their keys."""
        return self.tls.demands

    @property
    def place(self) -> str:
        """What its sockets go by: with the same place, a later plan keeps them."""
        address = self.settings.address
        return str(address) if address.port else f"{address} ({self.settings.name})"

    @property
    def bound(self) -> Address:
        """The address it listens on: with the real port where 0 was asked for."""
        host, port = self.sockets[0].getsockname()[:2]
        return Address(host, port)


def plan_service(config: Config) -> tuple[list[ListenerPlan], list[GroupPlan]]:
    """Read and check everything but the ports. Raises ConfigurationError."""
    problems = Problems()
    groups = plan_groups(config, problems)
    listeners = [
        plan_listener(settings, f"listeners[{index}]", problems)
        for index, settings in enumerate(config.listeners)
    ]
    problems.raise_if_any()
    return listeners, groups


def plan_listener(settings: ListenerSettings, key: str, problems: Problems) -> ListenerPlan:
    """One listener, as far as it is good; what is wrong goes to `problems`."""
    pages = plan_pages(settings.http.errors, problems)
    has_tls = settings.mode != "redirect"
    tls = plan_tls(settings, key, problems) if has_tls else TlsPlan(settings, [], b"")
    return ListenerPlan(settings, tls, pages=pages)


Held = Mapping[str, Sequence[socket.socket]]
"""Listening sockets that are there already, by `ListenerPlan.place`."""


def bind(plans: list[ListenerPlan], count: int, held: Held) -> None:
    """Give each listener `count` sockets or more: those held, and new ones, which don't listen yet.

    Raises ConfigurationError; then no new one is left.
    """
    ours = {sock.getsockname()[1] for sockets in held.values() for sock in sockets}
    try:
        for index, plan in enumerate(plans):
            address, key = plan.settings.address, f"listeners[{index}].address"
            plan.sockets = bind_listener(address, count, key, held.get(plan.place, ()), ours)
    except ConfigurationError:
        unbind(plans, held)
        raise


def unbind(plans: list[ListenerPlan], held: Held) -> None:
    """Close all sockets but those held."""
    kept = {sock for sockets in held.values() for sock in sockets}
    for plan in plans:
        for sock in plan.sockets:
            if sock not in kept:
                sock.close()


def start_listening(plans: list[ListenerPlan]) -> None:
    """From now on clients may connect. Raises ConfigurationError."""
    for index, plan in enumerate(plans):
        listen(plan.sockets, plan.settings.address, f"listeners[{index}].address")


def node_data(entry: NodeEntry, address: Address) -> NodeData:
    """How a node is reached at this address. Raises ConfigurationError for bad credentials."""
    link = None
    if entry.tls is not None:
        read = read_credentials(entry.tls)
        link = LinkData(
            ca=read.ca, certificate=read.certificate, key=read.key, server_name=entry.tls.server_name
        )
    return NodeData(
        name=entry.name,
        host=address.host,
        port=address.port,
        path=address.path,
        link=link,
        zone=entry.zone,
        weight=entry.weight,
        capacity=entry.capacity,
        links=entry.links,
    )


def plan_nodes(config: Config, addresses: Sequence[Address]) -> list[NodeData]:
    """All nodes at these addresses, in the configuration's order. Raises ConfigurationError."""
    problems = Problems()
    pairs = zip(config.hsm.nodes, addresses, strict=True)
    nodes = [problems.attempt(node_data, entry, address) for entry, address in pairs]
    problems.raise_if_any()
    return [node for node in nodes if node is not None]


def check_local_nodes(entries: Sequence[NodeEntry]) -> None:
    """Find now what would make local nodes fail at their start; no key is read here. Raises ConfigurationError."""
    problems = Problems()
    runs = [entry.run for entry in entries]
    software = [run for run in runs if isinstance(run, SoftwareSettings)]
    problems.lines += check_key_files((run.keys, run.passphrase_file) for run in software)
    for run in runs:
        if isinstance(run, Pkcs11Settings):
            problems.attempt(check_settings, run)
        elif isinstance(run, SoftwareSettings) and run.emulate_file is not None:
            problems.attempt(load_settings, run.emulate_file, Emulation)
    problems.raise_if_any()


@dataclass(frozen=True)
class State:
    """What one configuration came to, and runs. A reload makes another one."""

    config: Config
    listeners: list[ListenerPlan]
    groups: list[GroupPlan]
    nodes: list[NodeData]
    tickets: TicketKeeper
    addresses: dict[str, list[str]] = field(default_factory=dict)
    """Of the nodes whose hosts are names; kept current while the state lasts."""
    generation: int = 1
    lent: frozenset[str] = frozenset()
    """Places whose sockets another process has too."""

    @property
    def held(self) -> Held:
        """The listening sockets."""
        return {listener.place: listener.sockets for listener in self.listeners}

    @property
    def sockets(self) -> list[socket.socket]:
        """All listening sockets, in the order of `WorkerSettings.sockets`."""
        return [sock for listener in self.listeners for sock in listener.sockets]

    @property
    def slots(self) -> int:
        """How many slots have sockets; more than workers after their count went down."""
        return max(len(listener.sockets) for listener in self.listeners)

    @property
    def keys(self) -> list[VerificationKey]:
        """The keys that the certificates need."""
        return [chain.key for listener in self.listeners for chain in listener.chains]

    @property
    def demands(self) -> list[Demand]:
        """What the listeners may ask of those keys."""
        return [demand for listener in self.listeners for demand in listener.demands]


def worker_settings(state: State, slot: int) -> WorkerSettings:
    """What one worker is told."""
    config = state.config
    return WorkerSettings(
        generation=state.generation,
        slot=slot,
        sockets=[
            SocketsData(address=each.place, count=len(each.sockets), lent=each.place in state.lent)
            for each in state.listeners
        ],
        listeners=[_listener_data(each, state.tickets) for each in state.listeners],
        upstreams=[group.data(config.worker_count) for group in state.groups],
        nodes=state.nodes,
        addresses=state.addresses,
        cluster=ClusterPolicy(**{key: getattr(config.hsm, key) for key in ClusterPolicy.model_fields}),
        limits=config.limits,
        log=config.log,
        sandbox=config.sandbox,
        workers=config.worker_count,
        connections_most=-(-config.limits.max_connections // config.worker_count),
    )


def _listener_data(plan: ListenerPlan, tickets: TicketKeeper) -> ListenerData:
    return ListenerData(
        name=plan.settings.name,
        address=plan.place,
        tls=None if plan.settings.mode == "redirect" else plan.tls.data(tickets.data(plan.settings)),
        upstream=plan.settings.group,
        trusted=plan.settings.accept_proxy and plan.settings.accept_proxy.trusted,
        http=_http_data(plan),
    )


def _http_data(plan: ListenerPlan) -> HttpData | None:
    settings = plan.settings
    if settings.mode == "relay":
        return None
    asks_certificates = settings.client_certificates.mode != "off"
    return HttpData(
        settings=settings.http,
        names=[chain.names or (chain.subject,) for chain in plan.chains],
        pages=plan.pages,
        asks_certificates=asks_certificates,
        default=settings.group,
    )
