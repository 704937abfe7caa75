"""Sessions that an s2n client keeps and resumes, as load generators do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest

from offload.tickets import TicketRing
from offload.tls import Context, Tickets, TlsConnection, TLSError
from offload.tls.sessions import keep_sessions, take_session
from tests.offload.handshakes import Pair, certificate_of, receive, s2n_stepper, sign
from tests.offload.identities import Identities

HOUR = 3600
POLICIES = {"default_tls13": "TLSv1.3", "20190214": "TLSv1.2"}
"""Policies of clients, and the version that each agrees on with the server."""


@pytest.fixture
def server(identities: Identities) -> Iterator[Context]:
    """A context that gives tickets, to TLS 1.2 too."""
    ring = TicketRing(HOUR, HOUR)
    ring.turn(time.time(), lambda: secrets.token_bytes(32))
    tickets = Tickets(HOUR, HOUR, True, ring.keys("test", "none"))
    context = Context(policy="default", certificates=[certificate_of(identities["p256"])], tickets=tickets)
    yield context
    context.release()


@pytest.fixture(params=POLICIES)
def client(request: pytest.FixtureRequest) -> Iterator[Context]:
    """A client's context that keeps sessions, for each version of TLS."""
    context = Context(policy=request.param, client=True)
    keep_sessions(context)
    yield context
    context.release()


def connect(
    server: Context, client: Context, identities: Identities, session: bytes | None
) -> tuple[bool, str, bytes | None]:
    """Whether both ends resumed, the version, and the session that came of it."""
    with Pair(server) as pair:
        connection = TlsConnection(client, pair.client_sock.fileno())
        try:
            if session is not None:
                connection.set_session(session)
            else:
                request = pair.until_signature(s2n_stepper(connection))
                pair.server.apply_signature(sign(identities["p256"], request))
            pair.finish(s2n_stepper(connection))
            assert pair.server.send(b"hello", 5) == 5
            assert receive(connection) == b"hello"
            assert pair.server.resumed == connection.resumed
            return connection.resumed, connection.version, take_session()
        finally:
            connection.close()


def test_a_kept_session_is_resumed_without_a_signature(
    server: Context, client: Context, identities: Identities, request: pytest.FixtureRequest
) -> None:
    version = POLICIES[request.node.callspec.params["client"]]
    resumed, agreed, session = connect(server, client, identities, None)
    assert (resumed, agreed) == (False, version)
    assert session is not None
    assert connect(server, client, identities, session)[:2] == (True, version)


def test_a_session_is_taken_once(server: Context, client: Context, identities: Identities) -> None:
    """Otherwise the next connection without one would get that of the one before."""
    assert connect(server, client, identities, None)[2] is not None
    assert take_session() is None


def test_nonsense_is_no_session(client: Context, server: Context) -> None:
    with Pair(server) as pair:
        connection = TlsConnection(client, pair.client_sock.fileno())
        with pytest.raises(TLSError, match="s2n_connection_set_session"):
            connection.set_session(b"nonsense")
        connection.close()
