"""Listening sockets: one for each worker on one port, and mistakes that name their key."""

from __future__ import annotations

import contextlib
import socket

import pytest

from hsm.config import Address
from hsm.errors import ConfigurationError
from offload.sockets import bind_listener, listen, resolve


def test_all_sockets_share_one_port() -> None:
    """Port 0 takes a free one, the same for each; every socket listens and does not block."""
    with contextlib.ExitStack() as stack:
        sockets = bind_listener(Address("127.0.0.1", 0), 4, "listeners[0].address")
        listen(sockets, Address("127.0.0.1", 0), "x")
        for sock in sockets:
            stack.enter_context(contextlib.closing(sock))
        assert len({sock.getsockname() for sock in sockets}) == 1
        assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in sockets)
        with pytest.raises(BlockingIOError):
            sockets[0].accept()


def test_what_is_accepted_has_the_options_already() -> None:
    """Accepted sockets inherit keepalive, so that a vanished client is noticed without a further call."""
    (listening,) = bind_listener(Address("127.0.0.1", 0), 1, "x")
    listening.listen()
    with contextlib.closing(listening), contextlib.closing(socket.create_connection(listening.getsockname())):
        listening.setblocking(True)
        with contextlib.closing(listening.accept()[0]) as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ipv6_is_ipv6_only() -> None:
    """[::1] does not take the IPv4 port of the same number."""
    try:
        (six,) = bind_listener(Address("::1", 0), 1, "x")
    except ConfigurationError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with contextlib.closing(six):
        assert six.family == socket.AF_INET6
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("reuse", [False, True])
def test_occupied_port_is_told_with_its_key(reuse: bool) -> None:
    """Also one whose owner would share it (SO_REUSEPORT): two proxies must not share a port unnoticed."""
    with contextlib.closing(socket.socket()) as other:
        if reuse:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            bind_listener(Address("127.0.0.1", port), 2, "listeners[3].address")
    assert str(caught.value) == (
        f"listeners[3].address: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "stop what listens there, or choose another port"
    )


def test_port_can_be_taken_again_after_an_end() -> None:
    """Connections in TIME_WAIT of the last run do not keep the next one from starting."""
    (listening,) = bind_listener(Address("127.0.0.1", 0), 1, "x")
    listening.listen()
    name = listening.getsockname()
    client = socket.create_connection(name)
    listening.setblocking(True)
    accepted, _ = listening.accept()
    accepted.close()  # the server's side closes first, and so keeps the TIME_WAIT
    client.close()
    listening.close()
    (again,) = bind_listener(Address(*name), 1, "x")
    again.close()


def test_address_of_another_machine() -> None:
    """An address that is not here is told with a remedy."""
    with pytest.raises(
        ConfigurationError, match=r"x: cannot listen on 192\.0\.2\.1:443: .*; choose an address"
    ):
        bind_listener(Address("192.0.2.1", 443), 1, "x")


def test_host_that_does_not_resolve() -> None:
    """The host and the key are named."""
    with pytest.raises(ConfigurationError, match=r"key: cannot resolve 'nobody\.invalid'"):
        resolve(Address("nobody.invalid", 1), "key")


def test_resolving_numbers() -> None:
    """Numeric hosts stay what they are."""
    assert resolve(Address("127.0.0.1", 80), "x") == (socket.AF_INET, ("127.0.0.1", 80))
    assert resolve(Address("::1", 80), "x") == (socket.AF_INET6, ("::1", 80))
