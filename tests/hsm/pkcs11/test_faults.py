"""A real token behind a module that fails, hangs and crashes: what the node answers, and how it gets well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hsm import keyless
from hsm.signing import PrivateKey
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, get, sample
from tests.support.pkcs11 import Faults, SoftToken, TokenClient, configured_node

P256 = 0x15

Start = Callable[..., NodeProcess]


@pytest.fixture
def node_with(token: SoftToken, faults: Faults, run_directory: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the node of a test, with these settings."""
    started = []

    def start(**settings: Any) -> NodeProcess:
        whole = {
            "uri": token.uri(faults.module),
            "env": token.environment | faults.environment,
            "admin": f"unix:{run_directory}/admin.sock",
            **settings,
        }
        environment = {"HSM_STATE_DIRECTORY": str(tmp_path / "state")}
        context = configured_node(run_directory, tmp_path, environment, whole)
        started.append(context)
        return context.__enter__()

    yield start
    for context in started:
        context.__exit__(None, None, None)


def test_a_session_gone_bad_is_replaced_within_the_request(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """The client gets its signature: another session is opened, the key's handle found in it.

    After CKR_KEY_HANDLE_INVALID the same session looks the key up again.
    """
    with TokenClient(node_with(sessions=1), keys) as client:
        client.sign("p256", P256)
        opened = faults.count("opened")
        for code, more in (
            ("b3", 1),  # CKR_SESSION_HANDLE_INVALID
            ("b0", 1),  # CKR_SESSION_CLOSED
            ("90", 1),  # CKR_OPERATION_ACTIVE
            ("91", 1),  # CKR_OPERATION_NOT_INITIALIZED
            ("60", 0),  # CKR_KEY_HANDLE_INVALID
        ):
            faults.set("C_SignInit", f"{code} once")
            client.sign("p256", P256)
            opened += more
            assert faults.count("opened") == opened, code
        assert faults.count("logins") == 1


def test_a_lost_login_is_made_again(node_with: Start, faults: Faults, keys: dict[str, PrivateKey]) -> None:
    """CKR_USER_NOT_LOGGED_IN: one login for all sessions, then the signature."""
    with TokenClient(node_with(), keys) as client:
        faults.set("C_SignInit", "101 once")
        client.sign("p256", P256)
        assert faults.count("logins") == 2


def test_a_token_away_and_back(node_with: Start, faults: Faults, keys: dict[str, PrivateKey]) -> None:
    """While it is away each request is told to go elsewhere, at once; when it is back, it signs."""
    node = node_with()
    with TokenClient(node, keys) as client:
        faults.set("C_Sign", "32")
        for _ in range(5):
            assert client.error("p256", P256) == keyless.ERR_INTERNAL
        faults.clear("C_Sign")
        client.sign("p256", P256)
        text = get("/metrics", f"{Path(node.address.path).parent}/admin.sock")
        assert sample(text, "hsm_node_token_errors_total", code="CKR_DEVICE_REMOVED") == 5


def test_a_token_without_pss_does_not_offer_it(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """The mechanism list decides what an RSA key announces."""
    faults.set("hide", "d")
    with TokenClient(node_with(), keys) as client:
        assert client.offered()[client.ski("rsa2048")] == {0x05, 0x06, 0x07}
        assert client.error("rsa2048", 0x35) == keyless.ERR_CRYPTO
        client.sign("rsa2048", 0x05)


def test_a_scheme_that_the_key_is_refused_is_not_offered_again(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """CKR_MECHANISM_INVALID for one key: that scheme is withdrawn, the rest stays."""
    with TokenClient(node_with(), keys) as client:
        faults.set("C_SignInit", "70 once")
        assert client.error("rsa2048", 0x35) == keyless.ERR_CRYPTO
        assert client.offered()[client.ski("rsa2048")] == {0x05, 0x06, 0x07, 0x36, 0x37}
        client.sign("rsa2048", 0x36)


def test_sessions_stay_within_what_the_token_allows(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """`auto` opens as many as the load asks for, but for one that the token keeps for the login."""
    faults.set("sessions", "4")
    faults.set("delay", "20000")
    with TokenClient(node_with(sessions="auto"), keys) as client:
        client.client.send(*(client.request(id, "p256", P256) for id in range(30)))
        for _ in range(30):
            client.check(client.client.receive(), "p256", P256)
        assert faults.count("opened") == 4


def test_a_hanging_call_is_answered_and_the_others_go_on(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """The request gets its error at its deadline; other requests are signed by other sessions meanwhile."""
    with TokenClient(node_with(stuck_sessions=3, stuck_after="300ms"), keys) as client:
        faults.set("stall", "once")
        started = time.monotonic()
        client.client.send(client.request(1, "p256", P256, remaining_ms=1000))
        eventually(lambda: faults.is_set("stalled"), "the call that hangs")
        client.client.send(*(client.request(id, "p256", P256) for id in range(2, 12)))
        for _ in range(10):
            client.check(client.client.receive(), "p256", P256)
        answer = client.client.receive()
        assert (answer.id, answer.opcode, answer.payload) == (
            1,
            keyless.OP_ERROR,
            bytes([keyless.ERR_EXPIRED]),
        )
        assert time.monotonic() - started >= 1
        faults.clear("stalled")
        client.sign("p256", P256)


def test_a_node_with_stuck_sessions_ends_to_be_replaced(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """Its last requests are answered; the exit code asks for a fresh process, and no module code runs then."""
    node = node_with(stuck_sessions=2, stuck_after="300ms")
    with TokenClient(node, keys) as client:
        faults.set("stall")
        client.client.send(*(client.request(id, "p256", P256, remaining_ms=1000) for id in range(4)))
        for _ in range(4):
            assert client.client.receive().opcode == keyless.OP_ERROR
        assert node.wait() == 75
        assert "calls of the module do not return" in node.wait_event("node_restarts")["cause"]


@pytest.mark.parametrize(("fault", "code"), [("segfault", -11), ("exit", 3)])
def test_a_module_that_crashes_ends_the_node_only(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey], fault: str, code: int
) -> None:
    """The process is gone and its clients see that at once."""
    node = node_with()
    with TokenClient(node, keys) as client:
        faults.set(fault)
        client.client.send(client.request(1, "p256", P256))
        with pytest.raises((EOFError, ConnectionResetError)):
            client.client.receive()
        assert node.wait() == code


def test_idle_sessions_are_kept_alive_and_replaced(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """The probe finds the sessions dead, opens new ones and logs in again; nothing is asked meanwhile."""
    node = node_with(keepalive="200ms")
    opened = faults.count("opened")
    faults.set("C_GenerateRandom", "b3")
    eventually(lambda: faults.count("opened") > opened + 2, "new sessions")
    faults.clear("C_GenerateRandom")
    with TokenClient(node, keys) as client:
        client.sign("p256", P256)


def test_idle_sessions_are_given_back(node_with: Start, faults: Faults, keys: dict[str, PrivateKey]) -> None:
    """After a burst the pool shrinks to its first two sessions."""
    faults.set("delay", "20000")
    node = node_with(keepalive="100ms", idle_timeout="200ms")
    with TokenClient(node, keys) as client:
        client.client.send(*(client.request(id, "p256", P256) for id in range(30)))
        for _ in range(30):
            client.check(client.client.receive(), "p256", P256)
        admin = f"{Path(node.address.path).parent}/admin.sock"
        assert faults.count("opened") > 4
        eventually(lambda: sample(get("/metrics", admin), "hsm_node_sessions") == 2, "two sessions")


def test_a_pin_that_is_wrong_at_a_later_login_ends_the_node(
    node_with: Start, faults: Faults, keys: dict[str, PrivateKey]
) -> None:
    """The user's PIN was changed: one attempt, then the node ends, and its successor does not try."""
    node = node_with()
    with TokenClient(node, keys) as client:
        faults.set("C_Login", "a0")
        faults.set("C_SignInit", "101")
        assert client.error("p256", P256) == keyless.ERR_INTERNAL
        assert node.wait() == 75
        assert faults.count("logins") == 2
