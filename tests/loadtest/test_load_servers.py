"""The servers of a bench: nginx, a slow token for it, and the settings that Offload gets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from loadtest.targets import pkcs11, proxy
from loadtest.targets.agreement import CIPHER, POLICY, parse_s_client, s_client_command
from loadtest.targets.lab import Lab, MissingToolError
from loadtest.targets.peers import Nginx, nginx_version
from loadtest.targets.sides import ServerSettings, Sides


def test_nginx_has_one_worker(nginx: Nginx) -> None:
    groups = nginx.processes()
    assert len(groups["worker"]) == 1
    assert groups["tree"] == [nginx.server.pid, *groups["worker"]]
    assert nginx_version().startswith("nginx/")


@pytest.mark.parametrize(("index", "signature"), [(0, "ECDSA"), (1, "RSA-PSS")])
def test_what_the_peer_negotiates(lab: Lab, nginx: Nginx, index: int, signature: str) -> None:
    terms = parse_s_client(lab.run(s_client_command("openssl", nginx.ports[index])))
    assert (terms.version, terms.cipher, terms.signature) == ("TLSv1.3", CIPHER, signature)


@pytest.mark.parametrize("server", ["nginx", "stunnel"])
def test_a_peer_whose_key_is_in_a_token(lab: Lab, server: Literal["nginx", "stunnel"]) -> None:
    if not _slowtoken_is_there():
        pytest.skip(f"slowtoken.c is no part of the project: set {pkcs11.SOURCE_VARIABLE}")
    sides = Sides(lab)
    started = sides.start(ServerSettings(server=server, signature=0.001))
    assert sides.negotiated(started).signature == "ECDSA"


def _slowtoken_is_there() -> bool:
    try:
        return pkcs11.slowtoken_source().is_file()
    except MissingToolError:
        return False


def test_a_missing_slowtoken_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(pkcs11.SOURCE_VARIABLE, str(tmp_path / "absent.c"))
    with pytest.raises(MissingToolError, match="set LOADTEST_SLOWTOKEN to its path"):
        pkcs11.slowtoken_source()


def test_settings_of_the_proxy() -> None:
    chains = {"p256": Path("p256.crt")}
    settings = proxy.settings(chains, {"p256": 8443}, 8080, {"a": "unix:a.sock"}, "rsa")
    assert settings["workers"] == 1
    assert settings["hsm"] == {
        "nodes": [{"name": "a", "address": "unix:a.sock"}],
        "verify_signatures": "rsa",
    }
    assert settings["listeners"] == [
        {
            "name": "p256",
            "address": "127.0.0.1:8443",
            "certificates": [{"chain": "p256.crt"}],
            "tls": {"policy": POLICY},
            "upstream": {"servers": ["127.0.0.1:8080"]},
        }
    ]


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ('{"event": "ready"}\n', True),
        ('warning: x\n{"event": "start"}\n{"level": "info", "event": "ready"}\n', True),
        ('{"event": "start", "next": "ready"}\n', False),
        ('{"event": "rea', False),
        ("", False),
    ],
)
def test_the_ready_event_in_a_log(log: str, found: bool) -> None:
    assert proxy.has_event(log, "ready") is found
