"""Contexts, connections and pending operations: each C object is freed once, and not too early."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from offload.tls import Certificate, Context, TlsConnection, TLSError, library_info
from offload.tls import connection as connection_module
from offload.tls import context as context_module
from offload.tls.s2n import lib
from tests.offload.handshakes import OpenSslClient, Pair, certificate_of, receive, sign
from tests.offload.identities import Identities

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Calls:
    """Stands in for the library: passes every call on, and counts it."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> Any:
            self.counts[name] += 1
            return function(*arguments)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each s2n function was called from now on."""
    spy = Calls(lib)
    monkeypatch.setattr(context_module, "lib", spy)
    monkeypatch.setattr(connection_module, "lib", spy)
    return spy.counts


def make(identities: Identities, *kinds: str, policy: str = "default") -> Context:
    """A server's context."""
    return Context(policy=policy, certificates=[certificate_of(identities[kind]) for kind in kinds])


def assert_all_freed(calls: Counter[str]) -> None:
    """As many objects were freed as made."""
    assert calls["s2n_config_new_minimal"] == calls["s2n_config_free"] == 1
    assert calls["s2n_cert_chain_and_key_new"] == calls["s2n_cert_chain_and_key_free"]
    assert calls["s2n_connection_new"] == calls["s2n_connection_free"]


def test_context_lives_as_long_as_its_last_connection(identities: Identities, calls: Counter[str]) -> None:
    """A connection goes on after its context's owner let go, and the last one frees everything, once."""
    context = make(identities, "p256", "rsa2048")
    with Pair(context) as first, Pair(context) as second:
        assert context.references == 3
        context.release()
        second.server.close()
        assert context.references == 1
        assert calls["s2n_config_free"] == 0
        client = OpenSslClient(first.client_sock, str(identities.ca), TLS13)
        first.server.apply_signature(sign(identities["p256"], first.until_signature(client.step)))
        first.finish(client.step)
        client.tls.send(b"still there")
        assert receive(first.server) == b"still there"
        client.tls.close()
    assert context.references == 0
    assert calls["s2n_cert_chain_and_key_free"] == 2
    assert_all_freed(calls)


def test_closing_twice_frees_once(identities: Identities, calls: Counter[str]) -> None:
    """`close` may be called again, on each path that ends a connection."""
    context = make(identities, "p256")
    with Pair(context) as pair:
        pair.server.close()
        pair.server.close()
        assert pair.server.closed
    context.release()
    assert_all_freed(calls)


def test_freed_context_takes_no_more_connections(identities: Identities) -> None:
    """Using a freed context is a bug that is told at once."""
    context = make(identities, "p256")
    context.release()
    with pytest.raises(ValueError, match="freed"):
        context.acquire()
    with pytest.raises(ValueError, match="freed"):
        context.release()


def test_unknown_policy_is_an_error_that_leaves_nothing(calls: Counter[str]) -> None:
    """The error carries s2n's own name for it, by which the configuration's remedy is chosen."""
    with pytest.raises(TLSError) as caught:
        Context(policy="no-such-policy")
    assert caught.value.name == "S2N_ERR_INVALID_SECURITY_POLICY"
    assert "no-such-policy" in str(caught.value)
    assert_all_freed(calls)


@pytest.mark.parametrize("pem", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_bad_chain_is_an_error_that_leaves_nothing(pem: bytes, calls: Counter[str]) -> None:
    """Of a chain that s2n can't read nothing stays allocated."""
    with pytest.raises(TLSError):
        Context(policy="default", certificates=[Certificate(pem, bytes(20))])
    assert_all_freed(calls)


def test_pending_operation_is_freed_when_the_connection_closes(
    identities: Identities, calls: Counter[str]
) -> None:
    """The peer left while its signature was pending: operation and connection are freed, once each."""
    context = make(identities, "p256")
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS13)
        pair.until_signature(client.step)
        client.tls.close()
        pair.server.close()
        assert calls["s2n_async_pkey_op_free"] == 1
    assert calls["s2n_async_pkey_op_free"] == 1
    context.release()
    assert_all_freed(calls)


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_operation_is_freed_when_it_is_applied(
    identities: Identities, calls: Counter[str], version: ssl.TLSVersion
) -> None:
    """A signature that was used leaves no operation behind."""
    context = make(identities, "p256")
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), version)
        pair.server.apply_signature(sign(identities["p256"], pair.until_signature(client.step)))
        assert calls["s2n_async_pkey_op_free"] == 1
        pair.finish(client.step)
        client.tls.close()
    assert calls["s2n_async_pkey_op_free"] == 1
    context.release()
    assert_all_freed(calls)


def test_operation_is_freed_when_it_is_refused(identities: Identities, calls: Counter[str]) -> None:
    """A decrypt operation (RSA key exchange) is freed with its connection."""
    context = make(identities, "rsa2048", policy="20170210")
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS12, "AES128-GCM-SHA256")
        with pytest.raises(TLSError):
            pair.until_signature(client.step)
        client.tls.close()
    assert calls["s2n_async_pkey_op_free"] == 1
    context.release()
    assert_all_freed(calls)


def test_operation_is_freed_when_it_cannot_be_applied(identities: Identities, calls: Counter[str]) -> None:
    """An RSA signature that is longer than the key breaks the connection, and leaks nothing."""
    context = make(identities, "rsa2048")
    with Pair(context) as pair:
        client = OpenSslClient(pair.client_sock, str(identities.ca), TLS13)
        pair.until_signature(client.step)
        try:
            pair.server.apply_signature(bytes(100_000))
            pair.server.negotiate()
        except TLSError:
            pass
        assert calls["s2n_async_pkey_op_free"] == 1
        client.tls.close()
    assert calls["s2n_async_pkey_op_free"] == 1
    context.release()
    assert_all_freed(calls)


def test_failed_set_up_of_a_connection_frees_it(identities: Identities, calls: Counter[str]) -> None:
    """A descriptor that s2n refuses leaves neither a connection nor a reference."""
    context = make(identities, "p256")
    try:
        TlsConnection(context, -1).close()
    except TLSError:
        pass
    assert context.references == 1
    context.release()
    assert_all_freed(calls)


def test_many_connections_leave_no_reference(identities: Identities, calls: Counter[str]) -> None:
    """Hundreds of connections that end before, during and after the handshake leave the context as it was."""
    context = make(identities, "p256")
    for number in range(300):
        with Pair(context) as pair:
            if number % 3:
                client = OpenSslClient(pair.client_sock, str(identities.ca), TLS13)
                request = pair.until_signature(client.step)
                if number % 3 == 1:
                    pair.server.apply_signature(sign(identities["p256"], request))
                    pair.finish(client.step)
                client.tls.close()
    assert context.references == 1
    assert calls["s2n_async_pkey_op_free"] == 200
    context.release()
    assert_all_freed(calls)


def test_library_says_what_it_is() -> None:
    """Version, path and FIPS mode are known, for the log and the metrics."""
    info = library_info()
    assert info.path
    assert info.version
    assert "FIPS" in str(info)
