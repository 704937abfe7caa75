"""What both ends of a link between client and node do with TLS and sockets."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from _socket import socket as RawSocket
from dataclasses import dataclass, field
from pathlib import Path

from hsm.address import parse_socket_path
from hsm.config import Address, LinkTLS
from hsm.errors import ConfigurationError

USER_TIMEOUT_MS = 10_000
"""TCP_USER_TIMEOUT: unacknowledged data for this long ends a connection (tcp(7))."""


@dataclass(frozen=True, slots=True)
class LinkCredentials:
    """What a LinkTLS names, as PEM text: for a process that reads no files."""

    ca: str
    certificate: str
    key: str = field(repr=False)

    def client_context(self) -> ssl.SSLContext:
        """The client's side of mutual TLS. Raises ssl.SSLError for what `client_context` refuses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.ca)
        descriptor = os.memfd_create("link")  # `ssl` reads keys from files only: this one is in memory
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(f"{self.certificate}\n{self.key}".encode())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
        finally:
            os.close(descriptor)
        return context


def read_credentials(tls: LinkTLS) -> LinkCredentials:
    """Read and check them. Raises ConfigurationError naming the file at fault."""
    client_context(tls)
    try:
        ca, certificate, key = (path.read_text("ascii") for path in (tls.ca, tls.certificate, tls.key))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{tls.certificate}: the link's PEM files can't be read: {error}") from error
    return LinkCredentials(ca, certificate, key)


def client_context(tls: LinkTLS) -> ssl.SSLContext:
    """The client's side of mutual TLS. Raises ConfigurationError naming the file at fault."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, tls)


def server_context(tls: LinkTLS) -> ssl.SSLContext:
    """The node's side: a client without a certificate of the CA gets nothing.

    TLS 1.2 is allowed for other Keyless clients, which go no higher.
    Raises ConfigurationError naming the file at fault.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(protocol: int, tls: LinkTLS) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (tls.ca, tls.certificate, tls.key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    try:
        context.load_verify_locations(cafile=str(tls.ca))
    except ssl.SSLError as error:
        raise ConfigurationError(f"{tls.ca}: holds no PEM certificates") from error
    try:
        context.load_cert_chain(str(tls.certificate), str(tls.key), password=_no_password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"{tls.certificate}: no PEM certificate, or {tls.key} is not its unencrypted PEM key"
        ) from error
    return context


def _no_password() -> str:
    return ""  # without a callback OpenSSL would ask on the terminal


def keep_alive(sock: RawSocket) -> None:
    """Notice a dead TCP peer within tens of seconds instead of hours."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def listen_unix(path: str, mode: int, group: int | None = None) -> socket.socket:
    """A listening unix socket whose file has `mode` from its first moment, and belongs to `group` if one is given.

    The file of a process that is gone is replaced; one that is in use is an error.
    Raises ConfigurationError.
    """
    try:
        parse_socket_path(path)
    except ValueError as error:
        raise ConfigurationError(f"unix:{path}: {error}") from error
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    previous = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"unix:{path}: cannot listen there: {error.strerror}; "
            "create its directory and give this user the right to write to it"
        ) from error
    finally:
        os.umask(previous)
    if group is not None:
        _give_to(group, path, sock)
    sock.listen(1024)
    return sock


def _give_to(group: int, path: str, sock: socket.socket) -> None:
    try:
        os.chown(path, -1, group)
    except OSError as error:
        sock.close()
        Path(path).unlink()
        raise ConfigurationError(
            f"unix:{path}: cannot give it to group {group}: {error.strerror}; only root and its members can"
        ) from error


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigurationError(f"unix:{path}: a file that is no socket is there; choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"unix:{path}: cannot listen there: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigurationError(
                f"unix:{path}: a socket is there that cannot be examined: {error.strerror}"
            ) from error
    raise ConfigurationError(f"unix:{path}: another process listens there; stop it or choose another path")


def listen_tcp(address: Address, key: str) -> socket.socket:
    """A listening TCP socket; `key` names the address in errors. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigurationError(f"{key}: cannot resolve {address.host}: {error.strerror}") from error
    family, kind, protocol, _, target = found[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigurationError(not_listening(address, error, key)) from error
    return sock


def not_listening(address: Address, error: OSError, key: str) -> str:
    """Why a TCP socket can't be bound, and what helps; `key` names the address."""
    if isinstance(error, PermissionError):
        remedy = "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one or grant it"
    elif error.errno == errno.EADDRINUSE:
        remedy = "stop what listens there, or choose another port"
    else:
        remedy = "choose an address of this machine"
    return f"{key}: cannot listen on {address}: {error.strerror}; {remedy}"
