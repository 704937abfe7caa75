"""One client: ClientHello → handshake → signature → session → end.

Callbacks, not coroutines: each method does what can be done now and returns to the loop.
The signature comes from a `Signer`; while it is pending nothing else of the connection runs.
What a client is served after its handshake is its `Session`'s business.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

from hsm.client import SignRequest
from hsm.signing import SCHEMES, SignatureScheme
from offload.connection_log import Record
from offload.failures import UNKNOWN_NAME, UNRECOGNIZED_NAME_ALERT, failure_word
from offload.poller import IN, OUT, RawSocket
from offload.proxy_protocol import Endpoint
from offload.relay import set_reset_on_close
from offload.sockets import bytes_received
from offload.tls import Progress, TlsConnection, TLSError, asks_full_handshake

if TYPE_CHECKING:
    from offload.listener import Listener

_TLS_HANDSHAKE_RECORD = b"\x16"
_RECORD_MOST = 5 + 0x4000
FREE_TURNS = 4
"""Wake-ups of a handshake before its bytes are looked at: the usual one has one or two."""
_WANT_READ = Progress.WANT_READ
_WANT_SIGNATURE = Progress.WANT_SIGNATURE
_DONE = Progress.DONE


class Signer(Protocol):
    """Where signatures come from: `hsm.client.ClusterClient`, or another in tests."""

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        deadline: float,
        done: Callable[[SignRequest], None],
    ) -> SignRequest:
        """Ask for a signature; `done` is called once, not before this returns."""

    def would_refuse(self, timeout: float) -> bool:
        """Whether a request made now, due within `timeout` seconds, would be refused for overload."""


class Session(Protocol):
    """What a client is served after its handshake; it ends with the connection, its `owner`."""

    def begin(self, now: float) -> None:
        """Take the client's socket over, which is watched for IN; the connection may end before this returns."""

    @property
    def server(self) -> str:
        """The address of the web server that was tried last; empty if none was."""

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Plaintext bytes to web servers and to the client; None before there could be any."""

    def retire(self) -> None:
        """No connection is accepted here any more: end as soon as nothing is interrupted by it."""

    def close(self) -> None:
        """The connection ends: free everything. Called once."""


class Connection:
    """The owner of a client's socket, its TLS connection, and what is pending for it."""

    __slots__ = (
        "_accepted", "_corked", "_hello", "_paused", "_request", "_signed", "_turns",
        "closed", "destination", "fd", "listener", "peer", "record", "session",
        "sock", "tls",
    )  # fmt: skip

    def __init__(self, listener: Listener, sock: RawSocket, peer: Any, now: float) -> None:
        self.listener = listener
        self.peer = peer
        """The client's address and port: the socket's peer, or who a PROXY header says it is."""
        self.destination: Endpoint | None = None
        """Where the client connected to, when a PROXY header says so."""
        self.closed = False
        self.sock = sock
        self.fd = fd = sock.fileno()
        self._accepted = now
        self._hello = self._signed = 0.0
        self.tls: TlsConnection | None = None
        self._request: SignRequest | None = None
        self.session: Session | None = None
        self.record = Record(listener.connection_log, now) if listener.keeps_records else None
        # Listening sockets are corked, and what they accept inherits it: see listener.py.
        self._corked = True
        self._paused = False
        self._turns = 0
        listener.poller.add(fd, IN, self._on_first_byte)

    def __repr__(self) -> str:
        return f"<Connection from {self.peer} on {self.listener.name}>"

    @property
    def local_address(self) -> Any:
        """Where the client connected to: an address as of sockets, or what a PROXY header says."""
        return self.destination or self.sock.getsockname()

    def begin(self) -> None:
        """A PROXY header has been read: now TLS."""
        self.listener.poller.hand_over(self.fd, self._on_first_byte)
        self._on_first_byte(IN)

    def refuse(self, reason: str) -> None:
        """Reset it before any TLS."""
        self.listener.metrics.refused(reason)
        if self.record is not None:
            self.record.reason = reason
        set_reset_on_close(self.sock)
        self.end("refused")

    # -- handshake ------------------------------------------------------------------------

    def _on_first_byte(self, _events: int) -> None:
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._fail("peer_left")
            return
        if first != _TLS_HANDSHAKE_RECORD:
            # s2n would wait for more on plain HTTP or SSH.
            self._fail("not_tls" if first else "peer_left")
            return
        listener = self.listener
        self._hello = monotonic()
        listener.metrics.stage_client_hello.observe(self._hello - self._accepted)
        if listener.signer.would_refuse(listener.sign_timeout) and self._needs_signature():
            self._fail("overloaded")
            return
        try:
            assert listener.context is not None
            self.tls = TlsConnection(listener.context, self.fd)
        except TLSError as error:
            self._handshake_failed(error)
            return
        listener.poller.hand_over(self.fd, self._on_handshake)
        self._negotiate()

    def _needs_signature(self) -> bool:
        """Whether the client brings no ticket: then nothing is spent on it while signatures come too late.

        A ticket may be bogus: the signer refuses again, when a signature is asked for.
        """
        try:
            return asks_full_handshake(self.sock.recv(_RECORD_MOST, socket.MSG_PEEK))
        except OSError:
            return False  # the handshake will tell

    def _on_handshake(self, _events: int) -> None:
        self._turns += 1
        if self._turns > FREE_TURNS and bytes_received(self.sock) > self.listener.max_handshake_bytes:
            self._fail("too_many_bytes")
            return
        self._negotiate()

    def _negotiate(self) -> None:
        assert self.tls is not None
        try:
            progress = self.tls.negotiate()
            if progress is _WANT_SIGNATURE:
                self._ask_signature()
                return
        except TLSError as error:
            self._handshake_failed(error)
            return
        if progress is _DONE:
            self._handshake_done()
        elif progress is _WANT_READ:
            if self._corked:
                self._uncork()
            if self._paused:
                self._pause(False)
        else:
            self.listener.poller.watch(self.fd, OUT)
            self._paused = True  # so that WANT_READ watches IN again

    def _uncork(self) -> None:
        """Push the flight that s2n wrote in several small records as one packet."""
        self._corked = False
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self.listener.poller.watch(self.fd, 0 if paused else IN)

    def _ask_signature(self) -> None:
        assert self.tls is not None
        ski, name, digest = self.tls.signature_request()
        scheme = SCHEMES.get(name)
        if scheme is None or scheme.digest_size != len(digest):
            self._fail("unsupported_scheme")
            return
        listener = self.listener
        if self._paused:  # the flight before had to wait for room, and that is still watched for
            self._pause(False)
        listener.poller.hand_over(self.fd, self._on_event_while_signing)
        self._request = listener.signer.sign(
            ski, scheme, digest, monotonic() + listener.sign_timeout, self._on_signed
        )

    def _on_event_while_signing(self, _events: int) -> None:
        """The client has nothing to say now: most likely it left."""
        try:
            left = not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            left = True
        if left:
            self._fail("peer_left")
        else:
            self._pause(True)

    def _on_signed(self, request: SignRequest) -> None:
        self._request = None
        assert self.tls is not None
        if self.record is not None:
            self.record.answered(request)
        if request.signature is None:
            assert request.error is not None
            self.listener.log_failed_signature(request)
            self._fail("signature_" + request.error.reason)
            return
        self._signed = now = monotonic()
        self.listener.metrics.signed(request.node, request.scheme.name, now - request.started)
        self.listener.poller.hand_over(self.fd, self._on_handshake)
        try:
            self.tls.apply_signature(request.signature)
        except TLSError as error:
            self._handshake_failed(error)
            return
        self._negotiate()

    def _handshake_done(self) -> None:
        assert self.tls is not None
        listener, now = self.listener, monotonic()
        listener.handshaking.pop(self, None)
        metrics = listener.metrics
        if self._signed:
            metrics.stage_finish.observe(now - self._signed)
            metrics.full.observe(now - self._hello)
        else:
            metrics.resumed.observe(now - self._hello)
            if (rotations := self.tls.ticket_rotations(time())) is not None:
                metrics.resumed_after(rotations)
        if self.record is not None:
            self.record.done = now
        if self._corked:
            self._uncork()
        if self._paused:
            self._pause(False)
        self.session = session = listener.make_session(self)
        session.begin(now)

    def _handshake_failed(self, error: TLSError) -> None:
        reason = failure_word(error)
        if reason == UNKNOWN_NAME:
            self._count_failure(reason)
            with contextlib.suppress(OSError):
                self.sock.send(UNRECOGNIZED_NAME_ALERT)
            self.end("handshake_failed", drain=True)
        elif error.caused_by_peer and self.tls is not None and (delay := self.tls.blinding_delay) > 0:
            self._count_failure(reason)
            self.end("handshake_failed", hold=delay)
        elif error.caused_by_peer and self.tls is not None:
            # Such as no common version or cipher: s2n has an alert ready that says so.
            self._count_failure(reason)
            self.end("handshake_failed", goodbye=True)
        else:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        """The handshake can't succeed; s2n has no way to tell the peer why."""
        self._count_failure(reason)
        self.end("handshake_failed")

    def _count_failure(self, reason: str) -> None:
        self.listener.metrics.handshake_failed(reason)
        if self.record is not None:
            self.record.reason = reason

    def handshake_timed_out(self) -> None:
        """The listener: its time for the handshake is over."""
        self._fail("timeout")

    # -- end --------------------------------------------------------------------------------

    def abort(self, outcome: str) -> None:
        """Close at once (drain deadline, internal error)."""
        if not self.closed:
            self.end(outcome)

    def broke(self, error: TLSError) -> None:
        """The session: the client left without close_notify, reset, or sent a bad record."""
        assert self.tls is not None
        if error.caused_by_peer and (delay := self.tls.blinding_delay) > 0:
            self.end("client_bad_record", hold=delay)
        else:
            self.end("truncated" if error.truncated else "client_reset")

    def end(self, outcome: str, *, goodbye: bool = False, drain: bool = False, hold: float = 0.0) -> None:
        """Free everything; the one place where a connection ends."""
        listener = self.listener
        self.closed = True
        if self._request is not None:
            self._request.cancel()
            self._request = None
        if self.record is not None:
            self.record.end(outcome, listener.name, self.peer, self._hello, self.tls, self.session)
        if self.session is not None:
            self.session.close()
            self.session = None
        if self.tls is not None:
            if goodbye:
                self._say_goodbye(self.tls)
            self.tls.close()
            self.tls = None
        if hold:
            listener.lingering.hold(self.sock, hold)
        elif drain or goodbye:
            listener.lingering.drain(self.sock)
        else:
            listener.poller.close(self.sock)
        listener.connection_ended(self, outcome)

    @staticmethod
    def _say_goodbye(tls: TlsConnection) -> None:
        try:
            tls.shutdown_send()
        except TLSError:
            pass
