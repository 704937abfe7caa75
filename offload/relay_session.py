"""After the handshake of a client that is relayed: a web server is dialed, then bytes go both ways."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from offload.dialing import UpstreamConnection
from offload.introduction import introduce
from offload.poller import IN, RawSocket
from offload.relay import Relay, set_reset_on_close
from offload.tls import TLSError

if TYPE_CHECKING:
    from offload.connection import Connection


class RelaySession:
    """The owner of the upstream connection and the relay; told by both how they fare."""

    __slots__ = ("_paused", "_relay", "_upstream", "closed", "listener", "owner")

    def __init__(self, connection: Connection, upstream: UpstreamConnection | None = None) -> None:
        """To a server of the listener's, unless there is a connection to one already."""
        self.owner = connection
        self.listener = listener = connection.listener
        self.closed = False
        self._paused = False
        self._relay: Relay | None = None
        if upstream is None:
            assert listener.upstream is not None
            upstream = UpstreamConnection(self, listener, listener.upstream, connection.peer)
        self._upstream = upstream

    def begin(self, now: float) -> None:
        """The handshake is done; the connection may end before this returns."""
        self._upstream.dial(now)
        if self._relay is None and not self.closed:
            self.listener.poller.hand_over(self.owner.fd, self._on_client_while_dialing)

    def take_over(
        self, upstream: RawSocket, to_upstream: memoryview | None, to_client: memoryview | None, now: float
    ) -> None:
        """Relay from now on; either side, watched for IN, gets first what is there for it."""
        connection = self.owner
        assert connection.tls is not None
        self._upstream.owner = connection.session = self
        self.listener.idle.add(self, now)
        self._relay = Relay(self, connection.sock, connection.tls, upstream)
        self._relay.owe(to_upstream, to_client)

    @property
    def server(self) -> str:
        """The address of the server that was tried last; empty if none was."""
        return self._upstream.address

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Plaintext bytes to the server and to the client; None before there could be any."""
        return None if self._relay is None else (self._relay.bytes_up, self._relay.bytes_down)

    def retire(self) -> None:
        """Only the peers know when they are done."""

    def close(self) -> None:
        """The connection: it ends."""
        self.closed = True
        self.listener.half_closed.pop(self, None)
        self.listener.idle.remove(self)
        self._upstream.close()
        if self._relay is not None:
            self._relay.forget_pending()

    # -- upstream -------------------------------------------------------------------------

    def _on_client_while_dialing(self, _events: int) -> None:
        """Whatever it sent waits in the kernel until the upstream is there."""
        self._paused = True
        self.listener.poller.watch(self.owner.fd, 0)

    def upstream_connected(self, upstream: RawSocket) -> None:
        """The upstream: a server took the connection."""
        connection, listener = self.owner, self.listener
        tls = connection.tls
        assert tls is not None
        if self._paused:
            listener.poller.watch(connection.fd, IN)
        if connection.record is not None:
            connection.record.connected = monotonic()
        assert listener.upstream is not None
        version = listener.upstream.proxy_protocol
        if version is not None and not introduce(connection, version, upstream):
            self.relay_aborted("upstream_reset")
            return
        self._relay = Relay(self, connection.sock, tls, upstream)
        # The request often came with the client's Finished.
        self._relay.read_client()

    def upstream_failed(self, outcome: str) -> None:
        """The upstream: no server can be reached."""
        self.owner.end(outcome, goodbye=True)

    def upstream_lasts(self, now: float) -> None:
        """The upstream: it is open for a while, so from now on silence is watched for."""
        if self not in self.listener.half_closed:
            self.listener.idle.add(self, now)

    # -- the relay's reports ----------------------------------------------------------------

    def relay_finished(self) -> None:
        """Both directions ended in order."""
        self.owner.end("relayed")

    def relay_drained(self) -> None:
        """The answer is complete and the client may still send: let it read the tail."""
        self.owner.end("relayed", drain=True)

    def relay_half_closed(self) -> None:
        """One direction ended: the other may go on while something moves."""
        self.listener.idle.remove(self)
        self.listener.half_closed[self] = monotonic() + self.listener.half_close_timeout

    def relay_aborted(self, reason: str) -> None:
        """One side broke off: so does the other, visibly (a reset, no close_notify)."""
        self._upstream.reset_on_close()
        if reason.startswith("upstream"):
            set_reset_on_close(self.owner.sock)
        self.owner.end(reason)

    def relay_tls_failed(self, error: TLSError) -> None:
        """The client's side broke: it left without close_notify, reset, or sent a bad record."""
        self._upstream.reset_on_close()
        self.owner.broke(error)

    # -- time limits ------------------------------------------------------------------------

    def half_close_timed_out(self) -> None:
        """The listener: time to see whether anything moved."""
        if self.moved():
            self.relay_half_closed()
        else:
            self.owner.end("half_close_timeout")

    def moved(self) -> bool:
        """Whether a byte has been relayed since this was asked before."""
        return self._relay is not None and self._relay.moved()

    def idle_timed_out(self) -> None:
        """The listener: neither side has said anything for too long."""
        self.owner.end("idle_timeout")
