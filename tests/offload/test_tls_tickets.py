"""Session tickets between contexts, as workers, listeners and epochs have them, with CPython's `ssl` as client."""

from __future__ import annotations

import ssl
import time

import pytest

from offload.tickets import TicketKey, TicketRing
from offload.tls import Context, Progress, Tickets
from tests.offload.handshakes import STEPS_MOST, OpenSslClient, Pair, certificate_of, sign
from tests.offload.identities import Identities

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
HOUR, LIFETIME = 3600, 4 * 3600


def ring(epochs_ago: int = 0, *shared: bytes) -> TicketRing:
    """A ring as it was so many hours ago."""
    made = TicketRing(HOUR, LIFETIME, shared)
    made.turn(time.time() - epochs_ago * HOUR, lambda: next(_secrets))
    return made


_secrets = iter(number.to_bytes(32) for number in range(1, 10_000))


def tickets(keys: list[TicketKey], *, tls12: bool = True) -> Tickets:
    """Settings of a context."""
    return Tickets(HOUR, LIFETIME, tls12, keys)


Session = tuple[ssl.SSLContext, ssl.SSLSession]


class Server:
    """A context with one certificate, and handshakes with it."""

    def __init__(self, identities: Identities, settings: Tickets | None) -> None:
        self._identity, self._ca = identities["p256"], str(identities.ca)
        self.rotations: int | None = None
        """How old the key of the ticket was that the last handshake resumed by, at the time `now`."""
        self.now = time.time()
        self.context = Context(
            policy="default", certificates=[certificate_of(self._identity)], tickets=settings
        )

    def connect(self, version: ssl.TLSVersion, session: Session | None = None) -> tuple[bool, Session | None]:
        """Whether the handshake resumed, which both ends must agree on; and what can be resumed next."""
        with Pair(self.context) as pair:
            client = OpenSslClient(pair.client_sock, self._ca, version, session=session)
            signed = False
            for _ in range(STEPS_MOST):
                client_done = client.step()
                progress = pair.server.negotiate()
                if progress is Progress.WANT_SIGNATURE:
                    signed = True
                    pair.server.apply_signature(sign(self._identity, pair.server.signature_request()))
                elif progress is Progress.DONE and client_done:
                    break
            self.rotations = pair.server.ticket_rotations(self.now)
            assert pair.server.send(b"answer", 6) == 6
            assert client.tls.recv(6) == b"answer"  # and before it the ticket, in TLS 1.3
            assert pair.server.resumed is client.tls.session_reused is not signed
            resumable = client.resumable
            client.tls.close()
            return not signed, resumable

    def ticket(self, version: ssl.TLSVersion) -> Session:
        """What a full handshake gives."""
        resumed, session = self.connect(version)
        assert not resumed
        assert session is not None
        return session


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_ticket_of_one_worker_resumes_in_another(identities: Identities, version: ssl.TLSVersion) -> None:
    """Two contexts with the same keys; neither makes a signature for the second handshake."""
    keys = ring().keys("web", "off")
    first, second = Server(identities, tickets(keys)), Server(identities, tickets(keys))
    assert second.connect(version, first.ticket(version))[0]
    first.context.release()
    second.context.release()


def test_resumption_gives_a_new_ticket_in_tls13(identities: Identities) -> None:
    """So that a client, which uses each ticket once, can go on resuming."""
    server = Server(identities, tickets(ring().keys("web", "off")))
    session: Session | None = server.ticket(TLS13)
    for _ in range(3):
        resumed, session = server.connect(TLS13, session)
        assert resumed
        assert session is not None
    server.context.release()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_ticket_survives_rotations_until_its_lifetime_is_over(
    identities: Identities, version: ssl.TLSVersion
) -> None:
    """A live context gets the keys of the next epochs; the ticket's own goes with the fifth."""
    made = TicketRing(HOUR, LIFETIME)
    now = time.time()
    made.turn(now, lambda: next(_secrets))
    server = Server(identities, tickets(made.keys("web", "off")))
    session = server.ticket(version)
    assert server.rotations is None
    for epoch in range(1, 7):
        server.now = now + epoch * HOUR
        made.turn(server.now, lambda: next(_secrets))
        server.context.set_ticket_keys(made.keys("web", "off"))
        # s2n's clock stays, so the key goes because the ring drops it.
        assert server.connect(version, session)[0] is (epoch <= 4)
        assert server.rotations == (epoch if epoch <= 4 else None)
    server.context.release()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_alien_ticket_means_a_full_handshake(identities: Identities, version: ssl.TLSVersion) -> None:
    """A ticket of another listener of the same ring, or of another ring, is ignored."""
    made = ring()
    ours = Server(identities, tickets(made.keys("web", "off")))
    for keys in (made.keys("other", "off"), made.keys("web", "required"), ring().keys("web", "off")):
        alien = Server(identities, tickets(keys))
        resumed, session = ours.connect(version, alien.ticket(version))
        assert not resumed
        assert session is not None
        alien.context.release()
    ours.context.release()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_second_secret_decrypts_and_does_not_encrypt(identities: Identities, version: ssl.TLSVersion) -> None:
    """A replica that has the secrets in the other order accepts ours, and we accept its."""
    both = Server(identities, tickets(ring(0, b"a" * 32, b"b" * 32).keys("web", "off")))
    old, new = (
        Server(identities, tickets(ring(0, secret * 32).keys("web", "off"))) for secret in (b"b", b"a")
    )
    assert both.connect(version, old.ticket(version))[0]
    assert both.rotations == 0
    session = both.ticket(version)
    assert new.connect(version, session)[0]
    assert not old.connect(version, session)[0]
    for server in (both, old, new):
        server.context.release()


def test_tickets_for_tls13_only(identities: Identities) -> None:
    """`tls12: false` keeps forward secrecy: TLS 1.2 clients get no ticket, TLS 1.3 ones do."""
    server = Server(identities, tickets(ring().keys("web", "off"), tls12=False))
    assert server.connect(TLS12) == (False, None)
    assert server.connect(TLS13, server.ticket(TLS13))[0]
    server.context.release()


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("settings", [None, tickets(ring(3).keys("web", "off"))], ids=["off", "asleep"])
def test_no_key_to_encrypt_means_no_ticket(
    identities: Identities, version: ssl.TLSVersion, settings: Tickets | None
) -> None:
    """With tickets off, or keys from before the machine slept, handshakes are full and work."""
    server = Server(identities, settings)
    assert server.connect(version) == (False, None)
    server.context.release()


def test_all_keys_that_a_ring_may_have_fit(identities: Identities) -> None:
    """The ring's limit is s2n-tls's own, also when the keys are replaced while they are in use."""
    made = TicketRing(HOUR, 46 * HOUR, [b"s" * 32])
    made.turn(time.time(), lambda: b"")
    keys = made.keys("web", "off")
    assert len(keys) == 48
    server = Server(identities, Tickets(HOUR, 46 * HOUR, True, keys))
    session = server.ticket(TLS13)
    server.context.set_ticket_keys(keys)
    assert server.connect(TLS13, session)[0]
    server.context.release()
