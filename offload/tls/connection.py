"""One TLS connection on a file descriptor: the only owner of an s2n_connection.

It never waits and knows no event loop: every call does what it can at once and says what it
needs next. The private key is elsewhere: `negotiate` may answer WANT_SIGNATURE, and goes on
after `apply_signature`.
"""

from __future__ import annotations

from enum import IntEnum
from random import SystemRandom
from typing import Any, NamedTuple

from offload.tls import _s2n_cdef as c
from offload.tls.callbacks import client_certificate, take_fault, take_operation
from offload.tls.client_chain import verified_chain
from offload.tls.context import Context
from offload.tls.s2n import TLSError, check, check_pointer, error_kind, ffi, last_error, lib, text

# One of each for the whole process: s2n writes them in calls that do not nest.
_blocked: Any = ffi.new("int *")
_integer: Any = ffi.new("int *")
_size: Any = ffi.new("uint32_t *")
_text: Any = ffi.new("const char **")
_digest: Any = ffi.new("uint8_t[64]")
_digest_bytes = ffi.buffer(_digest)
_ticket: Any = ffi.new("uint8_t[1024]")
_ticket_bytes = ffi.buffer(_ticket)
_TICKET_KEY_NAME = slice(c.TICKET_VERSION_SIZE, c.TICKET_VERSION_SIZE + c.TICKET_KEY_NAME_SIZE)
_scheme_names: dict[Any, str] = {}
"""s2n's constant strings by address: made into Python strings once."""

_negotiate = lib.s2n_negotiate
_recv = lib.s2n_recv
_send = lib.s2n_send
_buffered = lib.s2n_peek_buffered
_errno_location = lib.s2n_errno_location


class Progress(IntEnum):
    """What a handshake needs next (the numbers are s2n_blocked_status)."""

    DONE = c.NOT_BLOCKED
    WANT_READ = c.BLOCKED_ON_READ
    WANT_WRITE = c.BLOCKED_ON_WRITE
    WANT_SIGNATURE = c.BLOCKED_ON_APPLICATION_INPUT


# Plain names: attribute look-ups on an enum class are slow, and this is the hot path.
_PROGRESS = {int(member): member for member in Progress}
_DONE = Progress.DONE
_WANT_SIGNATURE = Progress.WANT_SIGNATURE

BLINDING_MOST = 3.0
CBC_BLINDING = (10.0, 30.0)
"""Seconds (S2N_DEFAULT_BLINDING_MIN and _MAX)."""
_random = SystemRandom()
_NOT_CBC = ("GCM", "CHACHA20", "NULL")

WOULD_BLOCK = -1
"""`recv_into` and `send`: nothing could be done now."""


class SignatureRequest(NamedTuple):
    """What is to be signed: by which key (SKI), how (s2n's scheme name), and the digest."""

    ski: bytes
    scheme: str
    digest: bytes


def buffer_pointer(buffer: bytearray | memoryview) -> Any:
    """A C pointer into `buffer`, to make once and reuse with `recv_into` and `send`.

    The buffer can't be resized while the pointer lives.
    """
    return ffi.from_buffer(buffer)


def memory_at(pointer: Any, size: int) -> Any:
    """The bytes that such a pointer leads to, as a buffer."""
    return ffi.buffer(pointer, size)


class TlsConnection:
    """Wraps one s2n_connection. `close` frees it; the file descriptor is the caller's.

    It belongs to the thread that made it.
    """

    __slots__ = ("_connection", "_context", "_errno", "_is_signed", "_operation", "_ticket_key")

    def __init__(self, context: Context, fd: int) -> None:
        """Raises TLSError if s2n has no memory for it."""
        self._connection = check_pointer(lib.s2n_connection_new(context.mode), "s2n_connection_new")
        context.acquire()
        self._context = context
        self._errno = _errno_location()  # one for each thread
        self._operation: Any = None
        self._is_signed = False
        self._ticket_key = b""
        connection = self._connection
        if (
            lib.s2n_connection_set_config(connection, context.config) < 0
            or lib.s2n_connection_set_fd(connection, fd) < 0
            # Self-service: otherwise s2n sleeps in the call, and with it the whole process.
            or lib.s2n_connection_set_blinding(connection, c.SELF_SERVICE_BLINDING) < 0
            # Buffers only while they hold something: 8 KB an idle connection instead of 26.
            or lib.s2n_connection_set_dynamic_buffers(connection, True) < 0
            or lib.s2n_connection_prefer_throughput(connection) < 0
            # One read for several records, instead of two for each.
            or lib.s2n_connection_set_recv_buffering(connection, True) < 0
        ):
            error = last_error("s2n_connection_new")
            self.close()
            raise error

    def set_server_name(self, name: str) -> None:
        """The SNI that a client sends."""
        check(lib.s2n_set_server_name(self._connection, name.encode()), "s2n_set_server_name")

    def set_session(self, session: bytes) -> None:
        """What a client resumes (s2n_connection_set_session); see `sessions`. Raises TLSError."""
        check(
            lib.s2n_connection_set_session(self._connection, session, len(session)),
            "s2n_connection_set_session",
        )

    def negotiate(self) -> Progress:
        """Go on with the handshake as far as possible. Raises TLSError when it failed.

        WANT_SIGNATURE is answered once for each request; until `apply_signature`
        nothing else may be called but `signature_request` and `close`.
        """
        connection = self._connection
        if _negotiate(connection, _blocked) == 0:
            # A handshake that took a signature was a full one: no need to ask.
            if not self._is_signed and self._context.mode == c.MODE_SERVER and self.resumed:
                self._ticket_key = self._read_ticket_key()
            lib.s2n_connection_free_handshake(connection)
            return _DONE
        if error_kind(self._errno[0]) != c.ERR_T_BLOCKED:
            error = last_error("s2n_negotiate")
            self._drop_operation(take_operation())
            raise take_fault() or error
        progress = _PROGRESS[_blocked[0]]
        if progress is _WANT_SIGNATURE:
            self._operation = take_operation()
        return progress

    def signature_request(self) -> SignatureRequest:
        """What WANT_SIGNATURE asks for. Raises TLSError, also for a decrypt operation.

        s2n_async_pkey_op_get_input; RSA key exchange (decrypt) is refused: it has no
        forward secrecy and would make the cluster a padding oracle.
        """
        operation = self._operation
        if (
            lib.s2n_async_pkey_op_get_op_type(operation, _integer) < 0
            or lib.s2n_async_pkey_op_get_input_size(operation, _size) < 0
        ):
            raise last_error("s2n_async_pkey_op_get_op_type or _input_size")
        if _integer[0] != c.ASYNC_SIGN:
            raise TLSError(
                "signature_request", "RSA_KEY_EXCHANGE", "RSA key exchange is refused", c.ERR_T_USAGE, ""
            )
        size = _size[0]
        if size > 64:
            raise TLSError("signature_request", "DIGEST", f"a digest of {size} bytes", c.ERR_T_USAGE, "")
        if lib.s2n_async_pkey_op_get_input(operation, _digest, size) < 0:
            raise last_error("s2n_async_pkey_op_get_input")
        ski = self._context.only_ski
        if ski is None:
            ski = self._context.ski_of(lib.s2n_connection_get_selected_cert(self._connection))
        return SignatureRequest(ski, self._negotiated_scheme(), _digest_bytes[:size])

    def _negotiated_scheme(self) -> str:
        if lib.s2n_connection_get_signature_scheme(self._connection, _text) < 0:
            raise last_error("s2n_connection_get_signature_scheme")
        name = _text[0]
        scheme = _scheme_names.get(name)
        if scheme is None:
            scheme = _scheme_names[name] = ffi.string(name).decode()
        return scheme

    def apply_signature(self, signature: bytes) -> None:
        """Hand over the signature (RSA: raw, ECDSA: DER); then call `negotiate` again.

        s2n does not check it (FAST mode): the caller has. Raises TLSError.
        """
        operation, self._operation = self._operation, None
        self._is_signed = True
        try:
            if (
                lib.s2n_async_pkey_op_set_output(operation, signature, len(signature)) < 0
                or lib.s2n_async_pkey_op_apply(operation, self._connection) < 0
            ):
                raise last_error("s2n_async_pkey_op_apply")
        finally:
            lib.s2n_async_pkey_op_free(operation)

    def recv_into(self, pointer: Any, size: int) -> int:
        """Decrypt into a C buffer: bytes read, 0 when the peer closed, or WOULD_BLOCK.

        0 means a close_notify; a bare FIN is a TLSError of type CLOSED.
        At most one record is taken. More may be `buffered` in s2n, where no event tells of
        it: call again until WOULD_BLOCK, or until a short record leaves nothing buffered.
        """
        count: int = _recv(self._connection, pointer, size, _blocked)
        if count >= 0:
            return count
        if error_kind(self._errno[0]) == c.ERR_T_BLOCKED:
            return WOULD_BLOCK
        raise last_error("s2n_recv")

    @property
    def buffered(self) -> bool:
        """Whether encrypted bytes have been read from the socket and wait in s2n."""
        return bool(_buffered(self._connection))

    def send(self, data: Any, size: int) -> int:
        """Encrypt and send from a C buffer or bytes: bytes taken, or WOULD_BLOCK.

        What was not taken is to be offered again, the same bytes, from where it
        stopped. Raises TLSError when the connection is broken.
        """
        count: int = _send(self._connection, data, size, _blocked)
        if count >= 0:
            return count
        if error_kind(self._errno[0]) == c.ERR_T_BLOCKED:
            return WOULD_BLOCK
        raise last_error("s2n_send")

    def shutdown_send(self) -> bool:
        """Send close_notify; False if it has to be called again when writable.

        s2n_shutdown_send: does not wait for the peer's. Raises TLSError.
        """
        if lib.s2n_shutdown_send(self._connection, _blocked) == 0:
            return True
        if error_kind(self._errno[0]) == c.ERR_T_BLOCKED:
            return False
        raise last_error("s2n_shutdown_send")

    @property
    def half_close(self) -> bool:
        """Whether one direction can end before the other: in TLS 1.3 only."""
        return self._is_tls13()

    def _is_tls13(self) -> bool:
        version: int = lib.s2n_connection_get_actual_protocol_version(self._connection)
        return version >= 34

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session: no signature was needed."""
        resumed: int = lib.s2n_connection_is_session_resumed(self._connection)
        return resumed == 1

    def _read_ticket_key(self) -> bytes:
        """The name of the STEK that the accepted ticket was made with; empty if it can't be told.

        It is in the ticket that the client sent: in TLS 1.3 one of perhaps several identities, in TLS 1.2
        in an extension of the ClientHello, which is gone after the handshake.
        """
        connection = self._connection
        if self._is_tls13():
            read = lib.s2n_connection_get_negotiated_psk_identity(connection, _ticket, len(_ticket_bytes))
        else:
            read = lib.s2n_client_hello_get_extension_by_id(
                lib.s2n_connection_get_client_hello(connection),
                c.EXTENSION_SESSION_TICKET, _ticket, len(_ticket_bytes),
            )  # fmt: skip
        return b"" if read < 0 else _ticket_bytes[_TICKET_KEY_NAME]

    def ticket_rotations(self, now: float) -> int | None:
        """How many rotations ago (`now`: Unix time) the key of the ticket that was resumed was the current one.

        None after a full handshake, and when that key is gone meanwhile.
        """
        return self._context.rotations_since(self._ticket_key, now)

    @property
    def version(self) -> str:
        """`TLSv1.2` or `TLSv1.3`."""
        number = lib.s2n_connection_get_actual_protocol_version(self._connection)
        return c.PROTOCOL_VERSIONS.get(number, str(number))

    @property
    def cipher(self) -> str:
        """The cipher suite's name."""
        return str(ffi.string(lib.s2n_connection_get_cipher(self._connection)).decode())

    @property
    def group(self) -> str:
        """The key exchange group, such as `X25519MLKEM768`; empty when there is none."""
        if lib.s2n_connection_get_key_exchange_group(self._connection, _text) < 0:
            return ""
        return str(ffi.string(_text[0]).decode())

    @property
    def signature_scheme(self) -> str:
        """s2n's name of how the server's key signed (as in `SignatureRequest`); empty when resumed."""
        return "" if self.resumed else self._negotiated_scheme()

    @property
    def certificate_algorithms(self) -> tuple[str, str]:
        """The `algorithms` of the certificate that was shown; empty ones when resumed."""
        if self.resumed:
            return "", ""
        return self._context.algorithms_of(lib.s2n_connection_get_selected_cert(self._connection))

    @property
    def server_name(self) -> str:
        """The SNI that the client sent, of whatever characters; empty when there is none."""
        return text(lib.s2n_get_server_name(self._connection))

    @property
    def application_protocol(self) -> str:
        """The protocol agreed on by ALPN, such as `h2`; empty when there is none."""
        return text(lib.s2n_get_application_protocol(self._connection))

    @property
    def client_certificate(self) -> bytes | None:
        """The client's certificate (the leaf, DER), verified and judged; None if it showed none."""
        return client_certificate(self._connection)

    @property
    def client_chain(self) -> list[bytes]:
        """The client's certificates (DER), the leaf first, as far as they led to an authority: it is not
        among them, nor is what the client showed besides. Empty if it showed none.

        s2n_connection_get_peer_cert_chain. Raises TLSError.
        """
        return [] if self.client_certificate is None else verified_chain(self._connection)[:-1]

    @property
    def blinding_delay(self) -> float:
        """Seconds that the socket should stay open after a failure that the peer caused.

        10 to 30 s with a CBC cipher, against timing attacks, as s2n has it. With any other, or
        none yet, that would just tie up sockets: then at most 3 s (s2n_connection_get_delay).
        """
        if not any(mark in self.cipher for mark in _NOT_CBC):
            return _random.uniform(*CBC_BLINDING)
        return min(float(lib.s2n_connection_get_delay(self._connection)) * 1e-9, BLINDING_MOST)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._connection is None

    def close(self) -> None:
        """Free everything (s2n_connection_free), a pending operation included. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        operation, self._operation = self._operation, None
        self._drop_operation(operation)
        lib.s2n_connection_free(connection)
        self._context.release()

    @staticmethod
    def _drop_operation(operation: Any) -> None:
        if operation is not None:
            lib.s2n_async_pkey_op_free(operation)
