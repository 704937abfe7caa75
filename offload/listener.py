"""Accepts a listener's clients, within limits, and ends what takes too long.

A worker has its own listening socket of each listener (SO_REUSEPORT), and serves a sibling's
too while that sibling is not there ("slots"). Listening sockets are set up in `sockets.py`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar, cast

from hsm.client import SignRequest
from hsm.metrics import MetricStore
from offload import metrics as m
from offload.address_limits import AddressLimits
from offload.config import LimitSettings
from offload.connection import Connection, Session, Signer
from offload.connection_log import ConnectionLog
from offload.dialing import UpstreamConnection
from offload.http.plain import PlainConnection
from offload.http.proxy import HttpSession
from offload.http.service import HttpService
from offload.idleness import IdleWatch
from offload.lingering import Lingering
from offload.metrics import ListenerMetrics
from offload.networks import Networks
from offload.poller import IN, Poller, RawSocket
from offload.proxy_intake import HeaderReader
from offload.relay import RelayBuffers, set_reset_on_close
from offload.relay_session import RelaySession
from offload.tls import Context
from offload.upstream import Upstream

T = TypeVar("T")

ACCEPTS_PER_TURN = 64
EXPIRED_PER_TURN = 64
"""Of those whose time is up: to end thousands at once, as silent clients have it, would hold up all others."""
EMFILE_PAUSE = 0.1
"""Seconds without accepting after the process ran out of file descriptors or memory."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Gate:
    """How many connections a worker may have open, over all its listeners."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = 0


class DataPlane:
    """What all listeners and connections of a worker share."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, signer: Signer, store: MetricStore, limits: LimitSettings,
        gate: Gate, address_limits: AddressLimits, log: Callable[..., object],
        connection_log: ConnectionLog | None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.signer = signer
        self.store = store
        self.limits = limits
        self.gate = gate
        self.address_limits = address_limits
        self.connection_log = connection_log
        self.log = log
        self.poller = Poller(loop, self._on_handler_error)
        self.lingering = Lingering(self.poller, monotonic)
        self.buffers = RelayBuffers()

    def _on_handler_error(self, handler: Callable[[int], None]) -> None:
        self.store.value(m.INTERNAL_ERRORS).value += 1
        owner = getattr(handler, "__self__", None)
        self.log("internal_error", owner=repr(owner), exc_info=True)
        while owner is not None and not isinstance(owner, Connection):
            owner = getattr(owner, "owner", None)  # whoever handles events knows for whom
        if owner is not None:
            owner.abort("internal_error")


class Listener:
    """One configured listener in one worker."""

    def __init__(
        self, name: str, context: Context | None, upstream: Upstream | None, sign_timeout: float, plane: DataPlane,
        trusted: Networks | None,
    ) -> None:  # fmt: skip
        """`trusted` is where a PROXY header is expected from; None expects none.

        No `context`: no TLS. No `upstream`: HTTP, all of whose routes name theirs.
        """
        self.name = name
        self._trusted = trusted
        self._guarded = trusted is not None or plane.address_limits.active
        self.context = context
        self.upstream = upstream
        self.sign_timeout = sign_timeout
        self.plane = plane
        self.poller = plane.poller
        self.signer = plane.signer
        self.buffers = plane.buffers
        self.lingering = plane.lingering
        self.connection_log = plane.connection_log
        self.metrics = ListenerMetrics(plane.store, name)
        self.make_session: Callable[[Connection], Session] = RelaySession
        self.make_connection: type[Connection] = Connection
        self.http: HttpService | None = None
        self.keeps_records = plane.connection_log is not None
        """Whether more is to be known of a connection than its end."""
        self.max_handshake_bytes = plane.limits.max_handshake_bytes
        self.half_close_timeout = plane.limits.half_close_timeout
        # Deadlines of connections. Each is a constant after now, so the oldest come first.
        self.handshaking: dict[Connection, float] = {}
        self.dialing: dict[UpstreamConnection, float] = {}
        self.half_closed: dict[RelaySession, float] = {}
        self.young: dict[UpstreamConnection, float] = {}
        self.idle = IdleWatch(plane.limits.idle_timeout)
        self.connections: set[Connection] = set()
        self._handshake_timeout = plane.limits.handshake_timeout
        self._slots: dict[int, socket.socket] = {}
        self._paused = False

    def __repr__(self) -> str:
        return f"<Listener {self.name}, {len(self.connections)} connections>"

    def serve_http(self, service: HttpService) -> None:
        """Clients speak HTTP, from now on: none has connected yet."""
        self.http = service
        if not service.tls:
            self.make_connection = PlainConnection
        self.keeps_records |= service.access_log is not None
        self.make_session = lambda connection: HttpSession(connection, service)

    # -- accepting ------------------------------------------------------------------------

    def serve_slot(self, slot: int, sock: socket.socket) -> None:
        """Accept from this listening socket from now on."""
        if slot not in self._slots:
            self._slots[slot] = sock
            if not self._paused:
                family = int(sock.family)
                self.poller.add(sock.fileno(), IN, lambda _events: self._on_clients(sock, family))

    def leave_slot(self, slot: int) -> None:
        """Leave this listening socket to a sibling."""
        sock = self._slots.pop(slot, None)
        if sock is not None and not self._paused:
            self.poller.remove(sock.fileno())

    def drain_slot(self, slot: int) -> None:
        """Accept all that has been queued, then stop listening, for every process that shares it."""
        sock = self._slots.get(slot)
        if sock is None:
            return
        while self._accept(sock, sock.family):
            pass
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # a sibling was faster
            pass
        self.leave_slot(slot)

    @property
    def slots(self) -> list[int]:
        """The slots whose clients are accepted here."""
        return sorted(self._slots)

    def _on_clients(self, listening: socket.socket, family: int) -> None:
        self._accept(listening, family)

    def _accept(self, listening: socket.socket, family: int) -> bool:
        """Accept a bounded number; False when there are no more, or none may be taken.

        `family` is the socket's, which takes a while to ask for (it makes an enum of it).
        """
        gate, connections, handshaking = self.plane.gate, self.connections, self.handshaking
        now = monotonic()
        deadline = now + self._handshake_timeout
        # What socket.accept() itself calls; the socket object around it is made below.
        accept = cast("Any", listening)._accept  # noqa: SLF001
        for _ in range(ACCEPTS_PER_TURN):
            if gate.open >= gate.limit:
                self._pause("max_connections")
                return False
            try:
                fd, peer = accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(errno.errorcode[error.errno or 0])
                    self.plane.loop.call_later(EMFILE_PAUSE, self.resume)
                    return False
                if error.errno == errno.EINVAL:  # shut down: draining
                    return False
                continue  # that one client is gone already: accept(2)
            sock = RawSocket(family, socket.SOCK_STREAM, 0, fd)
            if self._guarded and (reason := self._refusal(peer[0], now)):
                self.metrics.refused(reason)
                turn_away(sock)
                continue
            sock.setblocking(False)
            gate.open += 1
            connection = self.make_connection(self, sock, peer, now)
            connections.add(connection)
            handshaking[connection] = deadline
            self.metrics.active.value += 1
            if self._trusted is not None:
                HeaderReader(connection, sock)
            elif self._guarded:
                self.plane.address_limits.hold(connection, peer[0])
        return True

    def _refusal(self, host: str, now: float) -> str:
        """Why whoever connects from there is turned away at the door."""
        if self._trusted is not None:
            return "" if self._trusted.contain(host) else "proxy_untrusted"
        return self.plane.address_limits.refusal(host, now)

    def lets_in(self, connection: Connection, now: float) -> bool:
        """Whether the client that a PROXY header named may stay; refused if not."""
        address_limits = self.plane.address_limits
        if address_limits.active:
            if reason := address_limits.refusal(connection.peer[0], now):
                connection.refuse(reason)
                return False
            address_limits.hold(connection, connection.peer[0])
        return True

    def _pause(self, reason: str) -> None:
        """Leave clients in the kernel's queue for a while."""
        if not self._paused:
            self._paused = True
            self.plane.store.value(m.ACCEPT_PAUSES, reason).value += 1
            self.plane.log("accept_paused", listener=self.name, reason=reason)
            for sock in self._slots.values():
                self.poller.remove(sock.fileno())

    def resume(self) -> None:
        """Accept again after a pause."""
        if self._paused and self.plane.gate.open < self.plane.gate.limit:
            self._paused = False
            for slot, sock in list(self._slots.items()):
                del self._slots[slot]
                self.serve_slot(slot, sock)

    # -- ends -------------------------------------------------------------------------------

    def release(self) -> None:
        """Nobody connects any more, and nobody is connected."""
        if self.context is not None:
            self.context.release()

    def connection_ended(self, connection: Connection, outcome: str) -> None:
        """A connection has freed what it held."""
        self.connections.discard(connection)
        self.handshaking.pop(connection, None)
        if self.plane.address_limits.active:
            self.plane.address_limits.release(connection)
        self.plane.gate.open -= 1
        self.metrics.ended(outcome)
        if self._paused:
            self.plane.loop.call_soon(self.resume)

    def expire(self, now: float) -> bool:
        """End what takes too long; called a few times a second. Whether there may be more: then soon again."""
        late = _due(self.handshaking, now)
        for connection in late:
            connection.handshake_timed_out()
        for upstream in _due(self.dialing, now):
            upstream.timed_out()
        for session in _due(self.half_closed, now):
            session.half_close_timed_out()
        for upstream in _due(self.young, now):
            upstream.outlived_youth(now)
        self.idle.expire(now)
        if self.http is not None:
            self.http.expire(now)
        self.resume()
        return len(late) == EXPIRED_PER_TURN

    def retire(self) -> None:
        """No connection is accepted here any more: those that wait for another request end."""
        if self.http is not None:
            self.http.ending = True
            for connection in list(self.connections):
                if connection.session is not None:
                    connection.session.retire()

    def abort_all(self, outcome: str) -> None:
        """End every connection at once."""
        for connection in list(self.connections):
            connection.abort(outcome)

    def log_failed_signature(self, request: SignRequest) -> None:
        """Tell why a handshake got no signature (the log cuts floods)."""
        assert request.error is not None
        self.plane.log(
            "signature_failed",
            listener=self.name,
            ski=request.ski.hex(),
            scheme=request.scheme.name,
            reason=request.error.reason,
            error=str(request.error),
        )


def turn_away(sock: RawSocket) -> None:
    """Close a client's socket that nothing else knows of, by a reset: no state stays behind."""
    set_reset_on_close(sock)
    sock.close()


def _due(deadlines: dict[T, float], now: float) -> list[T]:
    due: list[T] = []
    for waiting, deadline in deadlines.items():
        if deadline > now or len(due) == EXPIRED_PER_TURN:
            break
        due.append(waiting)
    for waiting in due:
        del deadlines[waiting]
    return due
