"""The listeners of a worker, and how they follow the configuration without losing a connection.

A reload comes in two steps: `prepare` makes all that can fail beside what runs, `commit` swaps it
in within one turn of the loop. A listener whose settings are the same stays the same object;
one that is replaced or gone keeps its connections, with their certificates and upstreams, until
the last of them ends.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast

from hsm.verification import VerificationKey
from offload.address_limits import AddressLimits
from offload.certificates import key_of
from offload.contexts import make_context, ticket_keys
from offload.http.service import HttpService
from offload.listener import DataPlane, Listener
from offload.networks import Networks
from offload.settings import ListenerData, UpstreamData, WorkerSettings
from offload.settings_tls import TicketKeyData
from offload.tls import Context
from offload.upstream import Upstream


@dataclass
class Prepared:
    """What is ready to be swapped in; `discard` it if that does not happen."""

    settings: WorkerSettings
    sockets: dict[str, list[socket.socket]]
    """By address and slot."""
    contexts: dict[str, Context | None] = field(default_factory=dict)
    """Of new and changed listeners, by name; None without TLS."""
    keys: list[VerificationKey] = field(default_factory=list)

    def discard(self) -> None:
        """Free it."""
        for sockets in self.sockets.values():
            _close(sockets)
        for context in self.contexts.values():
            if context is not None:
                context.release()


class ListenerSet:
    """All listeners, those of earlier configurations included."""

    def __init__(self) -> None:
        self._settings: WorkerSettings | None = None
        self._current: dict[str, Listener] = {}
        self._upstreams: dict[str, Upstream] = {}
        """The groups of web servers, each shared by the listeners that name it."""
        self._retired: list[Listener] = []
        self._sockets: dict[str, list[socket.socket]] = {}
        self.slots: set[int] = set()
        """The slots whose clients are accepted here."""

    def __iter__(self) -> Iterator[Listener]:
        """Those that accept, and those that have connections left."""
        yield from self._current.values()
        yield from self._retired

    @property
    def connections(self) -> dict[str, int]:
        """How many connections each listener has."""
        counts: dict[str, int] = {}
        for listener in self:
            counts[listener.name] = counts.get(listener.name, 0) + len(listener.connections)
        return counts

    @property
    def upstreams(self) -> dict[str, Any]:
        """How the servers of each group fare."""
        return {name: upstream.status() for name, upstream in self._upstreams.items()}

    # -- reload -----------------------------------------------------------------------------

    def prepare(self, settings: WorkerSettings, sockets: Sequence[socket.socket]) -> Prepared:
        """Make what is new in `settings`. Raises TLSError; then nothing is left of it."""
        rest = iter(sockets)
        prepared = Prepared(
            settings, {each.address: [next(rest) for _ in range(each.count)] for each in settings.sockets}
        )
        try:
            for data in settings.listeners:
                if not self._is_unchanged(data, settings):
                    prepared.contexts[data.name] = make_context(data.tls) if data.tls else None
                    chains = data.tls.chains if data.tls else []
                    prepared.keys += [key_of(chain.pem.encode()) for chain in chains]
        except BaseException:
            prepared.discard()
            raise
        return prepared

    def _is_unchanged(self, data: ListenerData, settings: WorkerSettings) -> bool:
        """But for its servers, which follow their settings by themselves."""
        before = self._settings
        return (
            before is not None
            and data in before.listeners
            and (settings.limits, settings.log) == (before.limits, before.log)
            and settings.cluster.sign_timeout == before.cluster.sign_timeout
        )

    def commit(self, prepared: Prepared, plane: DataPlane) -> None:
        """From now on new connections are made by `prepared`."""
        settings = prepared.settings
        self._apply_limits(settings, plane)
        self._stop_accepting(keep=prepared.sockets)
        for sockets in self._sockets.values():
            _close(sockets)
        self._upstreams = {data.name: self._upstream(data, plane) for data in settings.upstreams}
        before = self._current
        self._current = {data.name: self._listener(data, prepared, plane) for data in settings.listeners}
        replaced = [each for each in before.values() if each not in self._current.values()]
        self._retired += replaced
        for listener in replaced:
            listener.retire()
        self._settings, self._sockets = settings, prepared.sockets
        self._release_idle()
        for slot in self.slots:
            self._serve(slot)

    def _apply_limits(self, settings: WorkerSettings, plane: DataPlane) -> None:
        plane.gate.limit = settings.connections_most
        before = self._settings
        if before is None or (settings.limits, settings.workers) == (before.limits, before.workers):
            return
        plane.limits = settings.limits
        plane.address_limits = AddressLimits(settings.limits, settings.workers)
        if plane.address_limits.active:
            for listener in self:
                for connection in listener.connections:
                    plane.address_limits.hold(connection, cast("tuple[str, int]", connection.peer)[0])

    def _listener(self, data: ListenerData, prepared: Prepared, plane: DataPlane) -> Listener:
        if data.name not in prepared.contexts:
            return self._current[data.name]
        upstream = self._upstreams.get(data.upstream)
        trusted = None if data.trusted is None else Networks(data.trusted)
        context = prepared.contexts[data.name]
        listener = Listener(
            data.name, context, upstream, prepared.settings.cluster.sign_timeout, plane, trusted
        )
        if data.http is not None:
            process = f"worker-{prepared.settings.slot}"
            listener.serve_http(HttpService(data.name, data.http, self._upstreams, plane.store, process))
        return listener

    def _upstream(self, data: UpstreamData, plane: DataPlane) -> Upstream:
        upstream = self._upstreams.get(data.name)
        if upstream is None:
            return Upstream(data, plane.store, monotonic())
        upstream.update(data, monotonic())
        return upstream

    def update_upstream(self, data: UpstreamData) -> None:
        """Other servers in a group, or servers judged otherwise."""
        upstream = self._upstreams.get(data.name)
        if upstream is not None:
            upstream.update(data, monotonic())

    def renew_tickets(self, keys: dict[str, list[dict[str, Any]]]) -> None:
        """The session-ticket keys of listeners from now on."""
        for name, listener in self._current.items():
            if name in keys and listener.context is not None:
                renewed = [TicketKeyData.model_validate(key) for key in keys[name]]
                listener.context.set_ticket_keys(ticket_keys(renewed))

    def _release_idle(self) -> None:
        idle = [listener for listener in self._retired if not listener.connections]
        for listener in idle:
            self._retired.remove(listener)
            listener.release()

    # -- accepting --------------------------------------------------------------------------

    def serve_slot(self, slot: int) -> None:
        """Accept this slot's clients from now on."""
        self.slots.add(slot)
        self._serve(slot)

    def _serve(self, slot: int) -> None:
        assert self._settings is not None
        for data in self._settings.listeners:
            sockets = self._sockets[data.address]
            if slot < len(sockets):
                self._current[data.name].serve_slot(slot, sockets[slot])

    def leave_slot(self, slot: int) -> None:
        """Leave this slot's clients to a sibling."""
        self.slots.discard(slot)
        for listener in self._current.values():
            listener.leave_slot(slot)

    def _stop_accepting(self, keep: Collection[str]) -> None:
        """Leave every socket; those not kept are emptied first, and shut for all who have them."""
        if self._settings is None:
            return
        lent = {each.address for each in self._settings.sockets if each.lent}
        for data in self._settings.listeners:
            listener = self._current[data.name]
            for slot in listener.slots:
                if data.address in keep or data.address in lent:
                    listener.leave_slot(slot)
                else:
                    listener.drain_slot(slot)

    # -- ends -------------------------------------------------------------------------------

    def drain(self, keep: Collection[str] | None) -> None:
        """Accept no more. Sockets of addresses to `keep` (None: all) stay open for others."""
        self._stop_accepting(self._sockets.keys() if keep is None else keep)
        self.slots.clear()
        for listener in self:
            listener.retire()

    def expire(self, now: float) -> bool:
        """End what takes too long, and forget listeners that are over. Whether there may be more of that."""
        more = [listener.expire(now) for listener in list(self)]
        if self._retired:
            self._release_idle()
        return any(more)

    def abort_all(self, outcome: str) -> None:
        """End every connection at once."""
        for listener in self:
            listener.abort_all(outcome)

    def close(self) -> None:
        """End every connection, and free all."""
        self.abort_all("closed")
        for listener in self:
            listener.release()


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
