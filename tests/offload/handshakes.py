"""A server's `TlsConnection` and a client over a socket pair, driven step by step."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsm.signing import SCHEMES, rsa_padding
from offload.tls import WOULD_BLOCK, Certificate, Context, Progress, SignatureRequest, TlsConnection
from tests.offload.identities import Identity, LinkCredentials

STEPS_MOST = 50
"""A handshake needs a handful of flights; more means that it is stuck."""


def certificate_of(identity: Identity) -> Certificate:
    """An identity's chain as a context takes it."""
    return Certificate(identity.pem, identity.ski)


def sign(identity: Identity, request: SignatureRequest) -> bytes:
    """What a node would answer."""
    scheme = SCHEMES[request.scheme]
    prehashed = Prehashed(scheme.hash)
    if isinstance(identity.key, rsa.RSAPrivateKey):
        return identity.key.sign(request.digest, rsa_padding(scheme), prehashed)
    return identity.key.sign(request.digest, ec.ECDSA(prehashed))


class OpenSslClient:
    """A client that verifies everything: CPython's `ssl` over the socket pair."""

    def __init__(
        self,
        sock: socket.socket,
        ca: str,
        version: ssl.TLSVersion,
        ciphers: str = "",
        session: tuple[ssl.SSLContext, ssl.SSLSession] | None = None,
        protocols: Sequence[str] = (),
        credentials: LinkCredentials | None = None,
    ) -> None:
        """`session`: what `resumable` of an earlier client was; `protocols`: of ALPN."""
        if session is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(ca)
            context.minimum_version = context.maximum_version = version
            if ciphers:
                context.set_ciphers(ciphers)
            if protocols:
                context.set_alpn_protocols(protocols)
            if credentials:
                context.load_cert_chain(credentials.certificate, credentials.key)
        else:
            context = session[0]
        sock.setblocking(False)
        self.tls = context.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False)
        if session is not None:
            self.tls.session = session[1]

    @property
    def resumable(self) -> tuple[ssl.SSLContext, ssl.SSLSession] | None:
        """What another client resumes with, if the server gave a ticket."""
        session = self.tls.session
        return (self.tls.context, session) if session is not None and session.has_ticket else None

    def step(self) -> bool:
        """Go on with the handshake; True when it is done."""
        try:
            self.tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True


class Pair:
    """Both ends of a socket pair: `server` is the connection under test, `client_sock` the other end."""

    def __init__(self, context: Context) -> None:
        self.server_sock, self.client_sock = socket.socketpair()
        self.server_sock.setblocking(False)
        self.client_sock.setblocking(False)
        self.server = TlsConnection(context, self.server_sock.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.close()
        self.server_sock.close()
        self.client_sock.close()

    def until_signature(self, client_step: Callable[[], bool]) -> SignatureRequest:
        """Drive both ends until the server asks for its signature."""
        for _ in range(STEPS_MOST):
            client_step()
            progress = self.server.negotiate()
            if progress is Progress.WANT_SIGNATURE:
                return self.server.signature_request()
            assert progress is Progress.WANT_READ
        raise AssertionError("the server never asked for a signature")

    def finish(self, client_step: Callable[[], bool]) -> None:
        """Drive both ends until both are done."""
        server_done = client_done = False
        for _ in range(STEPS_MOST):
            server_done = server_done or self.server.negotiate() is Progress.DONE
            client_done = client_done or client_step()
            if server_done and client_done:
                return
        raise AssertionError("the handshake never ended")


def s2n_stepper(client: TlsConnection) -> Callable[[], bool]:
    """`client_step` for an s2n client."""
    return lambda: client.negotiate() is Progress.DONE


def receive(connection: TlsConnection, size: int = 65536) -> bytes | None:
    """What can be read now; None when nothing, b"" when the peer said goodbye."""
    from offload.tls import buffer_pointer

    buffer = bytearray(size)
    count = connection.recv_into(buffer_pointer(buffer), size)
    return None if count == WOULD_BLOCK else bytes(buffer[:count])
