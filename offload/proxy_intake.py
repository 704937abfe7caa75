"""The PROXY header that a load balancer puts before a client's first byte: read, and not a byte beyond it.

What was peeked at is taken off the socket only once it is known to belong to the header, so
that s2n finds the ClientHello next. Bytes of an unfinished header are taken at once: left
there, they would keep the socket readable and the loop spinning.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING

from offload.poller import IN, RawSocket
from offload.proxy_protocol import SIZE_MOST, Header, ProxyProtocolError, parse

if TYPE_CHECKING:
    from offload.connection import Connection


class HeaderReader:
    """Has a new connection's socket until its header is read. Time limits are the connection's."""

    __slots__ = ("_received", "_sock", "owner")

    def __init__(self, connection: Connection, sock: RawSocket) -> None:
        self.owner = connection
        self._sock = sock
        self._received = b""
        connection.listener.poller.hand_over(sock.fileno(), self._on_readable)

    def _on_readable(self, _events: int) -> None:
        sock, received = self._sock, self._received
        try:
            data = sock.recv(SIZE_MOST, socket.MSG_PEEK)
            parsed = parse(received + data)
            if data:
                sock.recv(len(data) if parsed is None else parsed.size - len(received))
        except BlockingIOError:
            return
        except OSError:
            data, parsed = b"", None
        except ProxyProtocolError as error:
            self._refuse(str(error))
            return
        if parsed is not None:
            self._introduce(parsed.header)
        elif data:
            self._received = received + data
        elif received:
            self._refuse("it ended within")
        else:
            self.owner.abort("probe")

    def _refuse(self, fault: str) -> None:
        connection = self.owner
        connection.listener.plane.log(
            "proxy_header_refused", listener=connection.listener.name, peer=connection.peer, fault=fault
        )
        connection.refuse("proxy_header")

    def _introduce(self, header: Header) -> None:
        connection = self.owner
        if header.source is None:
            # The load balancer speaks for itself, or for nobody it knows: no client's limits are met.
            connection.listener.poller.hand_over(self._sock.fileno(), self._on_more)
            self._on_more(IN)
            return
        connection.peer, connection.destination = header.source, header.destination
        if connection.listener.lets_in(connection, monotonic()):
            connection.begin()

    def _on_more(self, _events: int) -> None:
        """TLS, or the end: a load balancer only looked whether we live."""
        try:
            more = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if more:
            self.owner.begin()
        else:
            self.owner.abort("probe")
